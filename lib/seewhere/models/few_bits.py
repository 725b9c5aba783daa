"""Weights in little space: seven bits a number or fewer, where a package has room for that only.

A matrix is kept as whole numbers -63..63 with one scale (fp16) for up to 64 of a row, deflated; vectors stay in fp16.
That is well under half of fp16's room, and the rounding is smaller than what training leaves undecided. Where fewer
bits do, as for a small change of known weights, levels stand evenly at a share of the row's root mean square: then
no large entry is clipped, the many small ones share few levels, and Huffman codes take two bits a number or less.
What ships in either form is rounded before it is scored, so a card's scores are of the weights that users get.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from seewhere import storage

GROUP, LEAST, LARGEST = 64, 32, 63
FARTHEST = 127  # level that int8 holds; a row with an entry farther out gets wider levels
KINDS = ("half", "whole", "scale", "shape")


def squeeze(tensor: Tensor, step: float | None = None) -> dict[str, Tensor]:
    """Return a tensor as it is stored: "half" alone, or "whole" (deflated int8) and "scale" (fp16).

    Args:
        tensor: any shape. What has one dimension is stored in fp16.
        step: None for seven bits: whole numbers -63..63 with a scale for every group of a row, the largest equal size
            up to `GROUP` (fp16 where that is below `LEAST`). Else the width of a level as a share of the row's root
            mean square: 1 takes about two bits a number when deflated, 0.08 five and a half.
    """
    values = tensor.detach().cpu().float()
    if values.ndim < 2:
        return {"half": values.half()}
    if step is not None:
        rows = values.reshape(len(values), 1, -1)
        even, least = rows.square().mean(-1).sqrt() * step, rows.abs().amax(-1) / FARTHEST
        scale = torch.maximum(even, least).clamp(min=1e-7).half()
        return {"whole": _deflated(rows / scale.float()[..., None], FARTHEST), "scale": scale}
    group = _group(values[0].numel())
    if group < LEAST:
        return {"half": values.half()}
    groups = values.reshape(len(values), -1, group)
    scale = (groups.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp(min=1e-7).half()
    return {"whole": _deflated(groups / scale.float(), LARGEST), "scale": scale[..., 0]}


def _deflated(levels: Tensor, largest: int) -> Tensor:
    whole = levels.round().clamp(-largest, largest).to(torch.int8)
    # Nothing in weights repeats, and looking for repetitions costs room: Huffman codes alone take up to 8 % less.
    coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    packed = coder.compress(whole.numpy().tobytes()) + coder.flush()
    return torch.from_numpy(np.frombuffer(packed, dtype=np.uint8).copy())


def expand(stored: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """Return the tensor (fp32, of this shape) that `squeeze` made ``stored`` of, up to rounding."""
    if "half" in stored:
        return stored["half"].float().reshape(shape)
    whole = np.frombuffer(zlib.decompress(stored["whole"].numpy().tobytes()), dtype=np.int8).copy()
    groups = torch.from_numpy(whole).reshape(*stored["scale"].shape, -1).float()
    return (groups * stored["scale"].float()[..., None]).reshape(shape)


def _group(row: int) -> int:
    """Return the size of a row's groups: the largest divisor of its length up to `GROUP`."""
    return max((size for size in range(1, GROUP + 1) if row % size == 0), default=0)


def rounded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters and buffers by name with the values that they will have when stored; whole numbers stay."""
    return {
        name: expand(squeeze(value), value.shape) if value.is_floating_point() else value
        for name, value in state.items()
    }


@torch.no_grad()
def round_parameters(module: nn.Module) -> None:
    """Give every parameter, in place, the value that it will have when stored; doing it twice changes nothing."""
    for parameter in module.parameters():
        parameter.copy_(expand(squeeze(parameter), parameter.shape))


def save_state(state: Mapping[str, Tensor], path: Path, steps: Mapping[str, float] | None = None) -> None:
    """Write parameters by name into a safetensors file that `load_state` reads.

    Args:
        state: name -> tensor.
        path: of the file.
        steps: beginning of names -> width of a level (see `squeeze`); seven bits for the others.
    """
    from safetensors.torch import save_file  # slow to import

    parts: dict[str, Tensor] = {}
    for name, tensor in state.items():
        step = next((step for start, step in (steps or {}).items() if name.startswith(start)), None)
        stored = squeeze(tensor, step) | {"shape": torch.tensor(tensor.shape, dtype=torch.int32)}
        parts |= {f"{name}|{kind}": part.contiguous().clone() for kind, part in stored.items()}
    save_file(parts, path)
    storage.make_readable(path)


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
