"""From a resampler and a task's examples to cached tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seewhere.probing import cache
from seewhere.probing.protocols import EncodedResampler, Resampler
from seewhere.probing.tasks import Example, data_hash

BATCH = 64
ENCODED = "(encoder)"
"""Name of the layer under which a frozen image encoder's tokens are kept."""


def open_pictures(examples: Sequence[Example]) -> list[Image.Image]:
    """Open the pictures of some examples, each file once."""
    opened: dict[Path, Image.Image] = {}
    for example in examples:
        if example.picture.path not in opened:
            opened[example.picture.path] = example.picture.open()
    return [opened[example.picture.path] for example in examples]


def compute_features(model: Resampler, examples: Sequence[Example], layers: Sequence[str]) -> dict[str, NDArray]:
    """Return the tokens of some examples straight from the model: layer -> (N, tokens, width)."""
    parts: dict[str, list[NDArray]] = {layer: [] for layer in layers}
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        found = model.features(open_pictures(batch), [e.text for e in batch], list(layers))
        for layer in layers:
            parts[layer].append(np.asarray(found[layer]))
    return {layer: np.concatenate(rows) for layer, rows in parts.items()}


def cached_features(
    model: Resampler,
    examples: Sequence[Example],
    layers: Sequence[str] | None = None,
    dtype: str = "float16",
    root: Path | None = None,
    shard_rows: int = cache.SHARD_ROWS,
    progress: bool = True,
) -> dict[str, cache.FeatureTable]:
    """Return the tokens of examples from the cache, computing first what is not there.

    Args:
        model: the resampler; its weights' hash is part of the key.
        examples: of one split of a task; their pictures' contents and texts are part of the key.
        layers: which ones; None for the last.
        dtype: number format on disk; float16 halves the room and costs 0.05 % of precision.
        root: folder of the caches (default: in the cache folder).
        shard_rows: examples per shard; at most these are lost when the process is killed.
        progress: show a bar.

    Raises:
        ValueError: a layer that the model does not have.
        CacheError: see `seewhere.probing.cache.fill`.
    """
    wanted = list(layers) if layers is not None else [model.layers[-1]]
    unknown = [layer for layer in wanted if layer not in model.layers]
    if unknown:
        raise ValueError(f"{model.name} has no layer {unknown[0]!r}; its layers are {', '.join(model.layers)}")
    data = data_hash(examples)
    keys = [
        cache.Key(model.name, model.weights_hash, data, layer, dtype, len(examples), shard_rows) for layer in wanted
    ]

    def compute(rows: slice, names: Sequence[str]) -> dict[str, NDArray]:
        return compute_features(model, examples[rows], names)

    return cache.fill(keys, compute, root, progress, f"{model.name} features")


class EncodedPictures:
    """A frozen encoder's tokens of the pictures of some examples, each picture once: ``encoded[rows]`` by example."""

    def __init__(self, table: cache.FeatureTable, rows: NDArray[np.int64]) -> None:
        self.table, self.rows = table, rows

    def __getitem__(self, rows: NDArray[np.integer]) -> NDArray:
        return self.table[self.rows[rows]]


def cached_encodings(
    model: EncodedResampler, examples: Sequence[Example], root: Path | None = None, progress: bool = True
) -> EncodedPictures:
    """Return the frozen image encoder's tokens of the examples' pictures from the cache, computing what is not there.

    A model that tells its encoder's own ``encoder_hash`` shares them with other resamplers on the same encoder.
    """
    first: dict[Path, int] = {}
    pictures: list[Example] = []
    for example in examples:
        if example.picture.path not in first:
            first[example.picture.path] = len(pictures)
            pictures.append(Example(len(pictures), example.picture, example.image_id, "", ()))
    own: str | None = getattr(model, "encoder_hash", None)
    name, weights = ("encoder", own) if own else (model.name, model.weights_hash)
    key = cache.Key(name, weights, data_hash(pictures), ENCODED, "float16", len(pictures))

    def compute(rows: slice, names: Sequence[str]) -> dict[str, NDArray]:
        chosen = pictures[rows]
        batches = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
        return {ENCODED: np.concatenate([np.asarray(model.encode(open_pictures(batch))) for batch in batches])}

    table = cache.fill([key], compute, root, progress, f"{model.name} encoder")[ENCODED]
    return EncodedPictures(table, np.array([first[e.picture.path] for e in examples], dtype=np.int64))
