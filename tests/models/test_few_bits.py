"""Weights in seven bits: how far they are off, that rounding is done once, and that files come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from seewhere.models import few_bits
from torch import nn


def test_a_stored_number_is_off_by_half_a_step_at_most() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(7, 128) * torch.rand(7, 1)
    stored = few_bits.squeeze(matrix)
    step = stored["scale"].float()
    apart = (few_bits.expand(stored, matrix.shape) - matrix).abs().view(7, 2, 64).amax(-1)
    assert (apart <= 0.51 * step).all() and step.max() < 0.2
    for odd in (torch.randn(5), torch.randn(3, 30)):
        assert torch.allclose(few_bits.expand(few_bits.squeeze(odd), odd.shape), odd, atol=2e-3, rtol=0)


def test_rounding_twice_changes_nothing_and_a_file_keeps_what_was_rounded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(128, 9), nn.Linear(9, 4))
    before = module[0].weight.detach().clone()
    few_bits.round_parameters(module)
    once = {name: value.clone() for name, value in module.state_dict().items()}
    assert not torch.equal(before, once["0.weight"])
    few_bits.round_parameters(module)
    path = tmp_path / "model.safetensors"
    few_bits.save_state(module.state_dict(), path)
    for name, value in few_bits.load_state(path).items():
        assert torch.equal(value, once[name]) and torch.equal(module.state_dict()[name], once[name]), name


@pytest.mark.parametrize("shape", [(1, 4, 64), (2, 3, 5), (6,)])
def test_shapes_come_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    few_bits.save_state({"a.b": torch.ones(shape)}, tmp_path / "x")
    found = few_bits.load_state(tmp_path / "x")["a.b"]
    assert found.shape == shape and torch.allclose(found, torch.ones(shape), atol=1e-3)


def test_plain_files_are_read_too(tmp_path: Path) -> None:
    save_file({"a": torch.arange(4).half()}, tmp_path / "x")
    assert torch.equal(few_bits.load_state(tmp_path / "x")["a"], torch.arange(4.0))
