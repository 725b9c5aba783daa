"""Colours read out of a vision-language model, point by point: the whole picture is one call.

`PixelReader` asks a model in MiniGPT-v2's layout by the shared-prefix engine: the picture is read once, its points are
questions behind it, and answers follow the grammar of ``[r,g,b]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from seewhere.models.grammar import AnswerGrammar
from seewhere.models.minigpt import MiniGPT
from seewhere.models.pixel_points import as_rgb, cells_of
from seewhere.models.shared_prefix import Answers, Prefix, PrefixEngine
from seewhere.pixels import prompts


class PixelReader:
    """Colours and masks from a `MiniGPT`; a `protocols.PixelReader`.

    Args:
        model: the model.
        turn: what is put around a question with its image: `prompts.instruction` for the released model.
        grid: cells along a side of the picture that can be asked for.
        progress: show a progress bar over several pictures.
        engine: further settings of `PrefixEngine` (budget, attention, batch_tokens).
    """

    def __init__(
        self,
        model: MiniGPT,
        turn: Callable[[str], str] | None = None,
        grid: int = prompts.GRID,
        progress: bool = True,
        **engine: Any,
    ) -> None:
        self.model, self.grid, self.name, self.progress = model.eval(), grid, model.name, progress
        self.turn = turn or (lambda text: text)
        self.engine = PrefixEngine(model.language, **engine)
        self.colours = AnswerGrammar.from_texts(model.tokenizer, prompts.RGB_TEXTS)
        self.masks = AnswerGrammar.from_texts(model.tokenizer, [prompts.MASK_TEXTS])

    def read_pixels(self, images: Sequence[Image.Image], points: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `protocols.PixelReader`."""
        return [answer.values.astype(np.float64) for answer in self.read_colours(images, points)]

    def read_colours(self, images: Sequence[Image.Image], points: Sequence[np.ndarray]) -> list[Answers]:
        """Colours with their confidence: `values` (N, 3) and `log_probabilities` (N, 3), one entry per picture.

        Raises:
            ValueError: not one array of points per picture, or points outside of one.
        """
        if len(images) != len(points):
            raise ValueError(f"{len(images)} pictures but {len(points)} arrays of points; expected one for each")
        cells = [cells_of(p, image.size, self.grid) for image, p in zip(images, points, strict=True)]
        found = []
        pairs = zip(images, cells, strict=True)
        for image, asked in tqdm(
            pairs, total=len(images), unit="picture", disable=not self.progress or len(images) < 2
        ):
            texts = [prompts.reconstruct(x, y) for x, y in asked.tolist()]
            found.append(self._ask(image, texts, self.colours))
        return found

    def read_mask(self, image: Image.Image, phrase: str, points: np.ndarray) -> np.ndarray:
        """Probability (N,) that each point (N, 2), pixels, belongs to what `phrase` names.

        Raises:
            ValueError: an empty phrase, or points outside of the picture.
        """
        cells = cells_of(points, image.size, self.grid)
        texts = [prompts.segment(phrase, x, y) for x, y in cells.tolist()]
        if not texts:
            return np.zeros(0)
        prefix, questions = self._prepared(image, texts)
        return self.engine.score(prefix, questions, self.masks.slots[0])[:, 1]

    def _ask(self, image: Image.Image, texts: Sequence[str], grammar: AnswerGrammar) -> Answers:
        if not texts:
            shape = 0, len(grammar.slots)
            return Answers(np.zeros(shape, dtype=np.int64), np.zeros(shape))
        return self.engine.decode(*self._prepared(image, texts), grammar)

    def _prepared(self, image: Image.Image, texts: Sequence[str]) -> tuple[Prefix, list[list[int]]]:
        """The picture, read, and the questions in tokens."""
        before, questions = self.model.split_prompts([self.turn(prompts.with_image(text)) for text in texts])
        with torch.inference_mode():
            image_tokens = self.model.image_tokens(self.model.pixels([as_rgb(image)]))
            prefix = self.model.prefix(image_tokens, before)
        return self.engine.read(prefix), questions
