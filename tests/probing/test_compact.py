"""Arms in few numbers: what is not trained along, and what rounding a change to few levels costs."""

import torch
from seewhere.models import few_bits
from seewhere.models.micro_qformer import MicroBlip2, QFormerSettings
from seewhere.probing import compact, experiments
from seewhere.probing.training import ProbeSettings
from tiny import TinyEncoded


def test_only_what_words_pass_through_is_kept():
    module = MicroBlip2(QFormerSettings(vocabulary=50, sees=64, width=64, layers=2, heads=2, queries=4))
    compact.keep_words(module)
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    words = {f"qformer.encoder.layer.{n}.{part}.{kind}" for n in (0, 1) for kind in ("weight", "bias")
             for part in ("intermediate.dense", "output.dense", "output.LayerNorm")}  # fmt: skip
    assert words <= frozen and all("embeddings" in name for name in frozen - words)
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    assert any("output_query.dense" in n for n in trained) and any("attention.output.dense" in n for n in trained)


def test_a_training_leaves_words_alone_only_if_asked(binary_task, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path))
    model = TinyEncoded()
    for words in (True, False):
        settings = ProbeSettings(learning_rate=1e-2, epochs=2, batch=16, words=words)
        trained = experiments.unfrozen_arm(binary_task, model, settings, progress=False).fitted[0].module
        assert torch.equal(trained.words.weight, model.module.words.weight) != words
        assert not torch.equal(trained.queries, model.module.queries)


def test_few_levels_keep_most_of_a_change_in_two_bits():
    torch.manual_seed(0)
    change = 0.01 * torch.randn(192, 192)
    change[3, 5] = 0.4  # one entry far out takes nothing from the others
    stored = few_bits.squeeze(change, compact.STEPS["rcm"])
    back = few_bits.expand(stored, change.shape)
    assert (back - change).square().sum() / change.square().sum() < 0.15
    assert abs(back[3, 5] - 0.4) < 0.02
    assert sum(part.numel() * part.element_size() for part in stored.values()) < 2.4 / 8 * change.numel()
