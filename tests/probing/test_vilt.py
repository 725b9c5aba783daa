"""ViLT as an upper baseline, on a tiny random one saved to disk and loaded like the real one."""

import numpy as np
import pytest
import torch
from seewhere.probing.adapter import load_probed
from seewhere.probing.experiments import unfrozen_arm
from seewhere.probing.features import open_pictures
from seewhere.probing.protocols import EncodedResampler, TrainableResampler
from seewhere.probing.training import ProbeSettings
from seewhere.probing.vilt import Vilt
from transformers import BertTokenizerFast, ViltConfig, ViltForMaskedLM, ViltImageProcessorPil, ViltProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("vilt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "square", "is", "on", "left", "right"]
    (place / "vocab.txt").write_text("\n".join(words))
    config = ViltConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=48, image_size=64, patch_size=16, max_position_embeddings=16)  # fmt: skip
    torch.manual_seed(0)
    ViltForMaskedLM(config).save_pretrained(place)  # as the released one: with a head that is not needed
    image_processor = ViltImageProcessorPil(size={"shortest_edge": 48}, size_divisor=16)
    ViltProcessor(image_processor, BertTokenizerFast(str(place / "vocab.txt"))).save_pretrained(place)
    return place


def test_its_token_is_its_own_pooled_state(folder, binary_task):
    model = load_probed(folder)
    assert isinstance(model, Vilt) and isinstance(model, TrainableResampler) and not isinstance(model, EncodedResampler)
    examples = binary_task.splits["test"][:6]
    images, texts = open_pictures(examples), [e.text for e in examples]
    found = model.features(images, texts)["pooled"]
    inputs = model.processor(images=images, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        own = model.module(**inputs).pooler_output
    np.testing.assert_allclose(found[:, 0], own, atol=1e-5)
    assert found.shape == (6, 1, 32)
    long = model.features(images[:1], ["the red square is on the left " * 9])["pooled"]
    assert np.isfinite(long).all()


def test_it_is_fine_tuned_as_a_whole(folder, binary_task, home):
    model = load_probed(folder)
    arm = unfrozen_arm(binary_task, model, ProbeSettings(learning_rate=1e-3, epochs=1, batch=24), progress=False)
    trained, before = arm.fitted[0].module.state_dict(), model.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], trained[name])}
    assert any("embeddings" in name for name in changed) and any("encoder.layer.0" in name for name in changed)
    assert set(arm.table.resampler) == {"vilt"}


def test_another_family_is_refused(folder, tmp_path):
    ViltConfig(model_type="vilt").save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"vilt"', '"bert"')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="vilt"):
        Vilt.load(tmp_path)
