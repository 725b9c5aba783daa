"""What a probe asks of a model: its tokens, frozen; or its forward pass with gradients, to be trained along.

Structural types, as in `seewhere.models.protocols`: anything with these attributes can be probed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image


@runtime_checkable
class Resampler(Protocol):
    """A model that turns a picture and a text into a few tokens.

    ``name`` stands in tables, ``layers`` names what can be probed, from early to late (the last one is the output), and
    ``weights_hash`` says which weights these are: cached features are found again under it.
    """

    name: str
    layers: tuple[str, ...]
    weights_hash: str

    def features(
        self, images: Sequence[Image.Image], texts: Sequence[str], layers: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return tokens of N (picture, text) pairs without gradients: layer -> (N, tokens, width) float.

        `layers` None means the last one.
        """
        ...


@runtime_checkable
class TrainableResampler(Resampler, Protocol):
    """A resampler that can be trained: ``module`` holds its parameters, those that require gradients are trained."""

    module: torch.nn.Module

    def forward(self, images: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """Return the last layer's tokens of N pairs, (N, tokens, width), with gradients."""
        ...


@runtime_checkable
class EncodedResampler(TrainableResampler, Protocol):
    """A trainable resampler on a frozen image encoder, whose output per picture is computed once and kept."""

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return the frozen encoder's tokens of N pictures, (N, patches, width) float."""
        ...

    def forward_encoded(self, encoded: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """Return what ``forward`` returns, from the encoder's tokens (N, patches, width)."""
        ...

    def features_encoded(
        self, encoded: np.ndarray, texts: Sequence[str], layers: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return what ``features`` returns, from the encoder's tokens (N, patches, width)."""
        ...


@runtime_checkable
class VisualChooser(Protocol):
    """A whole vision-language model that ranks given answers to a question about a picture."""

    name: str

    def choose(
        self, images: Sequence[Image.Image], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """Return for each question the probabilities of its options, (number of options,), summing to 1."""
        ...


@runtime_checkable
class Matcher(Protocol):
    """A whole vision-language model that says how likely a statement is true of a picture."""

    name: str

    def match(self, images: Sequence[Image.Image], statements: Sequence[str]) -> np.ndarray:
        """Return probabilities (N,) that ``statements[i]`` is true of ``images[i]``."""
        ...


@runtime_checkable
class EncodedMatcher(EncodedResampler, Matcher, Protocol):
    """One whose frozen encoder's tokens may be kept: pictures need not be encoded again to be asked about."""

    def match_encoded(self, encoded: np.ndarray, statements: Sequence[str]) -> np.ndarray:
        """Return probabilities (N,) that statements are true, from the encoder's tokens (N, patches, width)."""
        ...
