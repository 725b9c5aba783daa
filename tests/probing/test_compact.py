"""Arms at a low rank: near to what was trained, exact on disk up to rounding, and far smaller."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from seewhere.probing import arms, compact, experiments
from seewhere.probing.training import ProbeSettings, predict
from tiny import TinyEncoded
from torch.nn.utils import parametrize

RANK = 3


@pytest.fixture
def trained(binary_task, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path))
    model = TinyEncoded()
    settings = ProbeSettings(learning_rate=1e-2, epochs=12, batch=16)
    return model, experiments.unfrozen_arm(binary_task, model, settings, progress=False).fitted[0]


def test_factors_are_the_nearest_matrix_of_their_rank():
    torch.manual_seed(0)
    exact = torch.randn(9, RANK) @ torch.randn(RANK, 7)
    left, right = compact.factors(exact, RANK)
    assert left.shape == (9, RANK) and right.shape == (RANK, 7) and torch.allclose(left @ right, exact, atol=1e-5)
    noisy = exact + 0.1 * torch.randn(9, 7)
    left, right = compact.factors(noisy, RANK)
    least = float(torch.linalg.svdvals(noisy)[RANK:].norm())
    assert float((left @ right - noisy).norm()) == pytest.approx(least, rel=1e-4)


def test_a_compressed_arm_changes_matrices_by_that_rank_and_keeps_its_score(binary_task, trained):
    model, fitted = trained
    before = {name: value.clone() for name, value in model.module.named_parameters()}
    found, sources = compact.compress(binary_task, model, fitted, RANK, epochs=3, learning_rate=5e-3, progress=False)
    assert not any(map(parametrize.is_parametrized, found.module.modules()))
    cut = 0
    for name, value in found.module.named_parameters():
        change = (value - before[name]).detach()
        if value.requires_grad and compact.is_cut(value.shape, RANK) and change.abs().max() > 0:
            cut += 1
            assert torch.linalg.matrix_rank(change, rtol=1e-3) <= RANK, name
    assert cut >= 2
    for name, value in model.module.named_parameters():
        assert torch.equal(value, before[name]), "the given model stays as it is"
    assert len(found.history) == 15 and found.history.epoch.tolist() == list(range(1, 16))
    outputs = predict(found.probe, sources["validation"])
    right = ((outputs > 0) == (binary_task.targets("validation") > 0.5)).mean()
    assert right == pytest.approx(found.score) and found.score >= fitted.score - 0.15


def test_it_is_written_small_and_read_back(binary_task, trained, tmp_path):
    model, fitted = trained
    found, sources = compact.compress(binary_task, model, fitted, RANK, epochs=1, progress=False)
    small = arms.save_arm(found, tmp_path / "small", model, {}, rank=RANK)
    large = arms.save_arm(fitted, tmp_path / "large", model, {})
    stored = load_file(small / arms.WEIGHTS)
    assert any(v.dtype == torch.int8 for v in stored.values())
    size = {f: sum(v.numel() * v.element_size() for k, v in load_file(f / arms.WEIGHTS).items() if "probe" not in k)
            for f in (small, large)}  # fmt: skip
    assert size[small] < size[large]
    probe, own, about = arms.load_arm(small, model)
    assert about["rank"] == RANK
    again = experiments.unfrozen_sources(binary_task, own, progress=False)
    assert np.allclose(predict(probe, again["test"]), predict(found.probe, sources["test"]), atol=0.1)


def test_small_matrices_and_vectors_are_left_whole():
    assert compact.is_cut(torch.Size((64, 64)), 8) and not compact.is_cut(torch.Size((64, 64)), 32)
    assert not compact.is_cut(torch.Size((64,)), 1) and not compact.is_cut(torch.Size((1, 16, 64)), 1)
