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
