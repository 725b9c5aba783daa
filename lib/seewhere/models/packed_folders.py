"""Model folders in little space: a folder that transformers reads, with its weights in few bits a number.

What ships so is unpacked once into the cache, as a plain folder that anything of transformers and peft reads.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from seewhere import storage
from seewhere.models import few_bits

PLAIN, PACKED = "model.safetensors", "few_bits.safetensors"


def pack(source: Path, target: Path) -> Path:
    """Write a model folder with its weights in seven bits a number (see `few_bits`), whole or not at all.

    Args:
        source: a folder with `PLAIN` weights.
        target: a folder that must not exist, or one to be replaced.

    Raises:
        FileNotFoundError: the source has no such weights.
    """
    if not (source / PLAIN).is_file():
        raise FileNotFoundError(f"{source} has no {PLAIN}; expected a folder that transformers' save_pretrained wrote")
    with storage.atomic_directory(target, overwrite=target.exists()) as work:
        _copy_but(PLAIN, source, work)
        few_bits.save_state(load_file(source / PLAIN), work / PACKED)
    return target


def plain(folder: Path) -> Path:
    """Return a folder that ``from_pretrained`` reads: the given one, or if that is packed, its copy in the cache.

    Safe to call from several processes at once: one unpacks, the others wait. The copy lies below the hash of the
    packed weights, so other weights never get it.
    """
    packed = folder / PACKED
    if not packed.is_file():
        return folder
    target = storage.cache_home() / "unpacked" / storage.hash_file(packed)[:12] / folder.name
    return storage.made_once(target, lambda work: _unpack(folder, work))


def _unpack(source: Path, target: Path) -> None:
    _copy_but(PACKED, source, target)
    state = {name: value.half().contiguous() for name, value in few_bits.load_state(source / PACKED).items()}
    save_file(state, target / PLAIN, metadata={"format": "pt"})
    storage.make_readable(target / PLAIN)


def _copy_but(left_out: str, source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.is_file() and file.name != left_out:
            shutil.copyfile(file, target / file.name)
