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


@pytest.mark.parametrize("shape", [(1, 4, 64), (2, 3, 5), (6,), (), (4, 8, 3, 3)])
def test_shapes_come_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    few_bits.save_state({"a.b": torch.ones(shape)}, tmp_path / "x")
    found = few_bits.load_state(tmp_path / "x")["a.b"]
    assert found.shape == shape and torch.allclose(found, torch.ones(shape), atol=1e-3)


@pytest.mark.parametrize(("row", "group"), [(64, 64), (576, 64), (216, 54), (75, 0), (31, 0), (32, 32)])
def test_a_row_falls_into_equal_groups_or_stays_half(row: int, group: int) -> None:
    stored = few_bits.squeeze(torch.randn(3, row))
    assert ("half" in stored) == (group == 0)
    if group:
        assert stored["scale"].shape == (3, row // group)


@pytest.mark.parametrize("step", [0.2, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("shape", [(30, 64), (5, 20, 33), (70, 35)])
def test_few_levels_come_back_and_take_less_room(step: float, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(shape)
    few_bits.save_state({"a": tensor, "b": tensor, "a.flat": tensor[0, 0]}, tmp_path / "x", {"a": step})
    found = few_bits.load_state(tmp_path / "x")
    stored = few_bits.squeeze(tensor, step)
    rows = tensor.reshape(len(tensor), -1)
    assert torch.allclose(stored["scale"].float()[:, 0], step * rows.square().mean(-1).sqrt(), rtol=1e-3)
    assert ((found["a"].reshape(rows.shape) - rows).abs() <= 0.51 * stored["scale"].float()).all()
    assert len(stored["whole"]) < tensor.numel()
    assert torch.equal(found["b"], few_bits.rounded({"b": tensor})["b"])
    assert torch.allclose(found["a.flat"], tensor[0, 0], atol=2e-3)


def test_an_entry_far_out_is_not_clipped() -> None:
    matrix = torch.ones(2, 4000)
    matrix[1, 7] = 1000.0
    back = few_bits.expand(few_bits.squeeze(matrix, 0.05), matrix.shape)
    assert abs(back[1, 7] - 1000) < 1 and torch.allclose(back[0], matrix[0], atol=0.03)


def test_rounded_is_what_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)).state_dict()
    few_bits.save_state(few_bits.rounded(state), tmp_path / "x")
    for name, value in few_bits.load_state(tmp_path / "x").items():
        assert torch.equal(value, few_bits.rounded(state)[name].float()), name


def test_plain_files_are_read_too(tmp_path: Path) -> None:
    save_file({"a": torch.arange(4).half()}, tmp_path / "x")
    assert torch.equal(few_bits.load_state(tmp_path / "x")["a"], torch.arange(4.0))
