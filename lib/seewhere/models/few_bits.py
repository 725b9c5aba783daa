"""Weights in little space: seven bits a number, where a package has room for that only.

A matrix is kept as whole numbers -63..63 with one scale (fp16) for up to 64 of a row, deflated; vectors stay in fp16.
That is well under half of fp16's room, and the rounding is smaller than what training leaves undecided. What ships in
this form is rounded before it is scored, so a card's scores are of the weights that users get.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

GROUP, LEAST, LARGEST = 64, 32, 63
KINDS = ("half", "whole", "scale", "shape")


def squeeze(tensor: Tensor, largest: int = LARGEST) -> dict[str, Tensor]:
    """Return a tensor as it is stored: "half" alone, or "whole" (deflated int8) and "scale" (fp16, one per group).

    A row falls into groups of the largest equal size up to `GROUP`. Where that is below `LEAST`, and of vectors, all is
    stored in fp16. Whole numbers go from minus ``largest`` to ``largest``; fewer take less room when deflated.
    """
    values = tensor.detach().cpu().float()
    group = _group(values[0].numel()) if values.ndim > 1 else 0
    if group < LEAST:
        return {"half": values.half()}
    groups = values.reshape(len(values), -1, group)
    scale = (groups.abs().amax(dim=-1, keepdim=True) / largest).clamp(min=1e-7).half()
    whole = (groups / scale.float()).round().clamp(-largest, largest).to(torch.int8)
    # Nothing in weights repeats, and looking for repetitions costs room: Huffman codes alone take up to 8 % less.
    coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    packed = coder.compress(_packed(whole.numpy(), largest)) + coder.flush()
    deflated = np.frombuffer(packed, dtype=np.uint8).copy()
    return {"whole": torch.from_numpy(deflated), "scale": scale[..., 0]}


def expand(stored: Mapping[str, Tensor], shape: torch.Size, largest: int = LARGEST) -> Tensor:
    """Return the tensor (fp32, of this shape) that `squeeze` made ``stored`` of, up to rounding."""
    if "half" in stored:
        return stored["half"].float().reshape(shape)
    packed = zlib.decompress(stored["whole"].numpy().tobytes())
    groups = torch.from_numpy(_unpacked(packed, largest, shape.numel())).reshape(*stored["scale"].shape, -1).float()
    return (groups * stored["scale"].float()[..., None]).reshape(shape)


def _digits(largest: int) -> int:
    """Return how many whole numbers -largest..largest fit into one byte."""
    return max(n for n in range(1, 6) if (2 * largest + 1) ** n <= 256)


def _packed(whole: NDArray[np.int8], largest: int) -> bytes:
    """Return whole numbers as bytes, several to a byte where they are small, as deflating spends a bit at least."""
    if (digits := _digits(largest)) == 1:
        return whole.tobytes()
    flat = whole.reshape(-1).astype(np.int64) + largest
    rows = np.pad(flat, (0, -len(flat) % digits)).reshape(-1, digits)
    return (rows * (2 * largest + 1) ** np.arange(digits)).sum(axis=1).astype(np.uint8).tobytes()


def _unpacked(packed: bytes, largest: int, count: int) -> NDArray[np.int8]:
    if (digits := _digits(largest)) == 1:
        return np.frombuffer(packed, dtype=np.int8).copy()
    flat = np.frombuffer(packed, dtype=np.uint8).astype(np.int64)[:, None]
    values = flat // (2 * largest + 1) ** np.arange(digits) % (2 * largest + 1)
    return (values.reshape(-1)[:count] - largest).astype(np.int8)


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


def save_state(state: Mapping[str, Tensor], path: Path, levels: Mapping[str, int] | None = None) -> None:
    """Write parameters by name into a safetensors file that `load_state` reads.

    Args:
        state: name -> tensor.
        path: of the file.
        levels: beginning of names -> largest whole number of these (see `squeeze`), kept as the file's metadata.
    """
    from safetensors.torch import save_file  # slow to import

    parts: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stored = squeeze(tensor, _largest(name, levels or {}))
        stored["shape"] = torch.tensor(tensor.shape, dtype=torch.int32)
        parts |= {f"{name}|{kind}": part.contiguous().clone() for kind, part in stored.items()}
    save_file(parts, path, metadata={start: str(largest) for start, largest in (levels or {}).items()} or None)


def _largest(name: str, levels: Mapping[str, int]) -> int:
    return next((largest for start, largest in levels.items() if name.startswith(start)), LARGEST)


def load_state(path: Path) -> dict[str, Tensor]:
    """Return parameters by name, fp32, from a file of `save_state` or one of plain tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        parts = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        metadata = file.metadata() or {}
    names = [key.rpartition("|")[0] for key in parts if key.endswith("|shape")]
    if not names:
        return {name: tensor.float() for name, tensor in parts.items()}
    levels, found = {start: int(value) for start, value in metadata.items()}, {}
    for name in names:
        stored = {kind: parts[f"{name}|{kind}"] for kind in KINDS if f"{name}|{kind}" in parts}
        shape = torch.Size(stored.pop("shape").tolist())
        found[name] = expand(stored, shape, _largest(name, levels))
    return found
