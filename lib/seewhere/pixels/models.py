"""Pixel models by name: what notebooks ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seewhere import storage
from seewhere.models import micro_vlm_weights
from seewhere.models.minigpt import MiniGPT
from seewhere.models.registry import MINIGPTS, load_minigpt
from seewhere.pixels.reader import PixelReader

NAMES: tuple[str, ...] = tuple(MINIGPTS)
DEFAULT = "micro-pixels-stage3"


def load_model(source: str | Path = DEFAULT, device: str = "cpu") -> MiniGPT:
    """See `seewhere.models.registry.load_minigpt`."""
    return load_minigpt(source, device)


def load_reader(source: str | Path = DEFAULT, device: str = "cpu", progress: bool = True, **engine: Any) -> PixelReader:
    """A shipped model by name, or a folder made by `MiniGPT.write`, ready to be asked.

    Args:
        source: see `seewhere.models.registry.load_minigpt`.
        device: where it goes.
        progress: show a progress bar over several pictures.
        engine: further settings of `PrefixEngine`.
    """
    model = load_minigpt(source, device)
    model.name = str(source) if str(source) in NAMES else Path(source).name
    return PixelReader(model, progress=progress, **engine)


def weights_hash(source: str | Path) -> str:
    """Hash of a model's weights, for records of results: a shipped model's by name, else of a folder's files."""
    if str(source) in NAMES:
        return micro_vlm_weights.fingerprint(str(source))
    return "+".join(storage.hash_file(path)[:16] for path in sorted(Path(source).rglob("*.safetensors")))
