"""Where a probe's tokens come from: the cache (frozen), or a resampler's forward pass (unfrozen)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from seewhere.probing.cores import spreads
from seewhere.probing.features import open_pictures
from seewhere.probing.protocols import EncodedResampler, TrainableResampler
from seewhere.probing.tasks import Example

IN_MEMORY = 1 << 29
"""Bytes up to which a table of frozen tokens is taken into memory as a whole when it is first read."""


class Encoded(Protocol):
    """A frozen image encoder's tokens of some pictures, such as `seewhere.probing.encodings.EncodedPictures`."""

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray:
        """Return (B, patches, width)."""
        ...


class GreyPictures:
    """The encoder's tokens of one plain grey picture, in place of every picture: nothing can be seen in them."""

    def __init__(self, model: EncodedResampler, side: int = 224) -> None:
        self.one = np.asarray(model.encode([Image.new("RGB", (side, side), (127, 127, 127))])[0])

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray:
        return np.repeat(self.one[None], len(rows), axis=0)


class FrozenTokens:
    """Tokens that are there already: a `FeatureTable` of the cache, or an array (N, tokens, width)."""

    def __init__(self, table: object, identity: str = "") -> None:
        self.table, self.module = table, nn.Module()
        self.lengths, self.thread_safe = np.zeros(len(self), dtype=np.int64), False  # nothing to gain
        key = getattr(table, "key", None)
        self.identity = identity or (f"{key.weights} {key.data} {key.layer}" if key is not None else "")

    def __len__(self) -> int:
        return len(self.table)  # type: ignore[arg-type]

    def tokens(self, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        """Return the tokens of some examples, (B, tokens, width) float32."""
        found = self._read(rows) if self._whole is None else self._whole[torch.from_numpy(rows)]
        return found.to(device).float()  # torch widens half precision several times faster than numpy

    def _read(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.table[rows]))  # type: ignore[index]

    @cached_property
    def _whole(self) -> Tensor | None:
        """All tokens, in memory, where they are few."""
        few = len(self) * self._read(np.array([0])).nbytes <= IN_MEMORY
        return self._read(np.arange(len(self))) if few else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is in memory: another process reads it from the disk."""
        return {name: value for name, value in self.__dict__.items() if name != "_whole"}


class TrainedTokens:
    """Tokens of a resampler that is trained along.

    Args:
        model: the resampler; its ``module`` is changed in place.
        examples: of one split.
        encoded: tokens of its frozen image encoder (see `features.cached_encodings`); None: pictures are opened and
            run through the whole model at every look.
    """

    def __init__(self, model: TrainableResampler, examples: Sequence[Example], encoded: Encoded | None = None) -> None:
        self.model, self.examples, self.encoded = model, list(examples), encoded
        self.module = model.module
        self.identity = model.weights_hash
        self.thread_safe = encoded is not None and spreads(model)
        self.lengths = np.array([len(example.text) for example in self.examples], dtype=np.int64)
        self._device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def tokens(self, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        """Return the last layer's tokens of some examples, with gradients where they are enabled."""
        move = getattr(self.model, "to", None)
        if move is not None and device != self._device:  # its frozen parts go where its trained part is
            move(device)
            self._device = device
        chosen = [self.examples[row] for row in rows]
        texts = [example.text for example in chosen]
        if self.encoded is not None:
            assert isinstance(self.model, EncodedResampler)
            return self.model.forward_encoded(torch.from_numpy(self.encoded[rows]).to(device).float(), texts)
        return self.model.forward(open_pictures(chosen), texts)
