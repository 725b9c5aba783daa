"""What a model can be asked, as structural types: anything that answers can be put into any notebook that asks.

There is no base class to inherit from. A model is a grounder because it has the attributes and the method below, which
keeps micro models, hub models, HTTP services and a reader's own ten-line class interchangeable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from seewhere.models.candidates import Detections

Message = dict[str, str]
"""One chat message: ``{"role": "user" | "assistant" | "system", "content": text}``."""


@runtime_checkable
class Grounder(Protocol):
    """A model that proposes boxes for a phrase.

    ``name`` identifies the model in tables and figures. ``scores`` says whether its candidates carry confidences
    (Grounding DINO does, Florence-2 does not); prompts print a score only where there is one.
    """

    name: str
    scores: bool

    def ground(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detections]:
        """Propose candidates for each (image, phrase) pair.

        Args:
            images: N pictures of any mode and size; they are converted to RGB by the model.
            phrases: N non-empty phrases, ``phrases[i]`` asked about ``images[i]``.

        Returns:
            N candidate sets (see :mod:`seewhere.models.candidates`): boxes ``(K, 4)`` as ``x1, y1, x2, y2`` in absolute
            pixels of the original image. K may be 0.

        Raises:
            ValueError: on an empty phrase or when the two sequences differ in length.
        """
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """A text-only chat model that can rank given options or write freely."""

    name: str

    def choose(self, prompts: Sequence[list[Message]], options: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Probability of each option as the whole answer: for prompt i an array ``(len(options[i]),)`` summing to 1."""
        ...

    def generate(self, prompts: Sequence[list[Message]], max_new_tokens: int) -> list[str]:
        """Greedy free text, one string per prompt, without the prompt and without special tokens."""
        ...


@runtime_checkable
class FeatureModel(Protocol):
    """A model whose inner tokens can be read: what a probe is trained on.

    ``sees_text`` says whether the text takes part in making the tokens (a Q-Former) or only stands beside them as one
    last token (a Perceiver resampler, plain patches). ``fingerprint`` changes whenever weights or tokenizer do, so
    that features kept on disk are never taken for another model's.
    """

    name: str
    sees_text: bool

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the tokens depend on beside image and text."""
        ...

    def features(
        self, images: Sequence[Image.Image], texts: Sequence[str], layers: Sequence[int] = (-1,)
    ) -> dict[int, np.ndarray]:
        """Tokens after the asked layers, ``(N, tokens, width)`` float32 each, for ``texts[i]`` about ``images[i]``.

        Layer 0 is what the first layer is given, layer i the output of the i-th layer; negative numbers count from the
        last one. The keys of the answer are those asked for.

        Raises:
            ValueError: not one text per image, an empty text, or a layer that the model does not have.
        """
        ...


@runtime_checkable
class PixelReader(Protocol):
    """A model that can be asked for the colour at a place."""

    name: str

    def read_pixels(self, images: Sequence[Image.Image], points: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Colours at points.

        Args:
            images: pictures of any mode and size.
            points: for each picture an array (N, 2) of x, y in pixels of the picture as given.

        Returns:
            For each picture (N, 3) float64: red, green, blue, 0..255; not-a-number where the answer was unusable.

        Raises:
            ValueError: not one array of points per picture, or points outside of one.
        """
        ...
