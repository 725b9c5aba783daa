"""From a resampler and a task's examples to cached tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seewhere.probing import cache
from seewhere.probing.cores import alike, over_cores, spreads
from seewhere.probing.encodings import EncodedPictures, EncodingStore
from seewhere.probing.protocols import EncodedResampler, Resampler
from seewhere.probing.tasks import Example, Picture, data_hash, picture_hashes

BATCH, SEEN = 64, 32
"""Examples that a resampler reads at a time, and pictures that its encoder looks at."""


def open_pictures(examples: Sequence[Example]) -> list[Image.Image]:
    """Open the pictures of some examples, each file once."""
    opened: dict[Path, Image.Image] = {}
    for example in examples:
        if example.picture.path not in opened:
            opened[example.picture.path] = example.picture.open()
    return [opened[example.picture.path] for example in examples]


def compute_features(model: Resampler, examples: Sequence[Example], layers: Sequence[str]) -> dict[str, NDArray]:
    """Return the tokens of some examples straight from the model: layer -> (N, tokens, width).

    A model whose ``sees_pictures`` is false is given no pictures.
    """
    sees = getattr(model, "sees_pictures", True)
    parts: dict[str, list[NDArray]] = {layer: [] for layer in layers}
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        found = model.features(open_pictures(batch) if sees else [], [e.text for e in batch], list(layers))
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
    keep_encodings: bool = True,
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
        keep_encodings: where the model has its frozen encoder apart, keep that encoder's tokens too (half precision),
            so that every picture is encoded once for all tasks and arms. ViT-g takes 0.7 MB a picture.
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
    weights = model.weights_hash + (" in bfloat16" if getattr(model, "bf16", False) else "")
    keys = [cache.Key(model.name, weights, data, layer, dtype, len(examples), shard_rows) for layer in wanted]

    encoded: EncodedPictures | None = None

    def compute(rows: slice, names: Sequence[str]) -> dict[str, NDArray]:
        nonlocal encoded
        if keep_encodings and encoded is None and isinstance(model, EncodedResampler):
            encoded = cached_encodings(model, examples, root, progress)
        if encoded is None or not isinstance(model, EncodedResampler):
            return compute_features(model, examples[rows], names)
        return features_of_encodings(model, encoded, examples, range(len(examples))[rows], names)

    return cache.fill(keys, compute, root, progress, f"{model.name} features")


def features_of_encodings(
    model: EncodedResampler,
    encoded: EncodedPictures,
    examples: Sequence[Example],
    rows: Sequence[int],
    layers: Sequence[str],
) -> dict[str, NDArray]:
    """Return the tokens of some examples from their pictures' kept encodings: layer -> (N, tokens, width)."""
    batches, back = alike([len(examples[row].text) for row in rows], BATCH)

    def compute(batch: NDArray[np.int64]) -> dict[str, NDArray]:
        chosen = [rows[place] for place in batch]
        return model.features_encoded(encoded[chosen], [examples[row].text for row in chosen], list(layers))

    found = list(over_cores(compute, batches, spreads(model)))
    return {layer: np.concatenate([np.asarray(part[layer]) for part in found])[back] for layer in layers}


def cached_encodings(
    model: EncodedResampler, examples: Sequence[Example], root: Path | None = None, progress: bool = True
) -> EncodedPictures:
    """Return the frozen image encoder's tokens of the examples' pictures, encoding those that are not kept yet.

    A model that tells its encoder's own ``encoder_hash`` shares them with other resamplers on the same encoder.
    """
    store = EncodingStore(getattr(model, "encoder_hash", "") or model.weights_hash, root)
    names = picture_hashes(examples)
    pictures = {name: example.picture for name, example in zip(names, examples, strict=True)}

    def encode(chosen: Sequence[Picture]) -> NDArray:
        batches = [chosen[start : start + SEEN] for start in range(0, len(chosen), SEEN)]
        found = over_cores(lambda batch: model.encode([p.open() for p in batch]), batches, spreads(model))
        return np.concatenate([np.asarray(part) for part in found])

    store.fill(pictures, encode, progress)
    return EncodedPictures(store, names)
