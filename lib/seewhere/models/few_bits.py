"""Weights in little space: seven bits a number, where a package has room for that only.

A matrix is kept as whole numbers -63..63 with one scale (fp16) for every 64 of a row, deflated; vectors stay in fp16.
That is well under half of fp16's room, and the rounding is smaller than what training leaves undecided. What ships in
this form is rounded before it is scored, so a card's scores are of the weights that users get.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GROUP, LARGEST = 64, 63
KINDS = ("half", "whole", "scale", "shape")


def squeeze(tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor as it is stored: "half" alone, or "whole" (deflated int8) and "scale" (fp16, one per `GROUP`).

    Rows that `GROUP` does not divide, and vectors, are stored in fp16.
    """
    values = tensor.detach().cpu().float()
    if values.ndim < 2 or values[0].numel() % GROUP:
        return {"half": values.half()}
    groups = values.reshape(len(values), -1, GROUP)
    scale = (groups.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp(min=1e-7).half()
    whole = (groups / scale.float()).round().clamp(-LARGEST, LARGEST).to(torch.int8)
    deflated = np.frombuffer(zlib.compress(whole.numpy().tobytes(), 9), dtype=np.uint8).copy()
    return {"whole": torch.from_numpy(deflated), "scale": scale[..., 0]}


def expand(stored: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """Return the tensor (fp32, of this shape) that `squeeze` made ``stored`` of, up to rounding."""
    if "half" in stored:
        return stored["half"].float().reshape(shape)
    whole = np.frombuffer(zlib.decompress(stored["whole"].numpy().tobytes()), dtype=np.int8).copy()
    groups = torch.from_numpy(whole).reshape(shape[0], -1, GROUP).float()
    return (groups * stored["scale"].float()[..., None]).reshape(shape)


@torch.no_grad()
def round_parameters(module: nn.Module) -> None:
    """Give every parameter, in place, the value that it will have when stored; doing it twice changes nothing."""
    for parameter in module.parameters():
        parameter.copy_(expand(squeeze(parameter), parameter.shape))


def save_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write parameters by name into a safetensors file that `load_state` reads."""
    from safetensors.torch import save_file  # slow to import

    parts: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stored = squeeze(tensor) | {"shape": torch.tensor(tensor.shape, dtype=torch.int32)}
        parts |= {f"{name}|{kind}": part.contiguous().clone() for kind, part in stored.items()}
    save_file(parts, path)


def load_state(path: Path) -> dict[str, Tensor]:
    """Return parameters by name, fp32, from a file of `save_state` or one of plain tensors."""
    from safetensors.torch import load_file

    parts = load_file(path)
    names = [key.rpartition("|")[0] for key in parts if key.endswith("|shape")]
    if not names:
        return {name: tensor.float() for name, tensor in parts.items()}
    found = {}
    for name in names:
        stored = {kind: parts[f"{name}|{kind}"] for kind in KINDS if f"{name}|{kind}" in parts}
        found[name] = expand(stored, torch.Size(stored.pop("shape").tolist()))
    return found
