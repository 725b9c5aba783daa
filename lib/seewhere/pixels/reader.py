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
from seewhere.models.pixel_points import as_rgb, cells_of, grid_points
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
        self.boxes = AnswerGrammar.from_texts(model.tokenizer, prompts.BOX_TEXTS)

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

    def reconstruct(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Whole pictures as the model sees them, (grid, grid, 3) uint8 each: one question per cell."""
        points = [grid_points(image.size, self.grid) for image in images]
        found = self.read_pixels(images, points)
        return [values.reshape(self.grid, self.grid, 3).astype(np.uint8) for values in found]

    def read_mask_grid(self, image: Image.Image, phrase: str, box: Sequence[float] | None = None) -> np.ndarray:
        """Probability (grid, grid) of each cell to belong to what `phrase` names; 0 outside of `box` (pixels, xyxy).

        Only cells whose centre lies in the box are asked for.
        """
        points = grid_points(image.size, self.grid)
        asked = np.ones(len(points), dtype=bool)
        if box is not None:
            x1, y1, x2, y2 = box
            asked = (points[:, 0] >= x1) & (points[:, 0] <= x2) & (points[:, 1] >= y1) & (points[:, 1] <= y2)
        found = np.zeros(len(points))
        found[asked] = self.read_mask(image, phrase, points[asked])
        return found.reshape(self.grid, self.grid)

    # ------------------------------------------------------------------------------------------- boxes and words

    def find_boxes(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> np.ndarray:
        """Box (N, 4) of what each phrase names in its picture: pixels of that picture, xyxy; corners in order.

        Raises:
            ValueError: not one phrase per picture, or an empty phrase.
        """
        if len(images) != len(phrases):
            raise ValueError(f"{len(images)} pictures but {len(phrases)} phrases; expected one for each")
        found = np.zeros((len(images), 4))
        for number, (image, phrase) in enumerate(zip(images, phrases, strict=True)):
            shares = self._ask(image, [prompts.refer(phrase)], self.boxes).values[0]
            box = shares / 100 * np.array([*image.size, *image.size])
            found[number] = [*np.minimum(box[:2], box[2:]), *np.maximum(box[:2], box[2:])]
        return found

    def name_regions(self, images: Sequence[Image.Image], boxes: Sequence[Sequence[float]]) -> list[str]:
        """What is in each box (pixels, xyxy) of its picture, in words."""
        texts = [prompts.identify(box, image.size) for image, box in zip(images, boxes, strict=True)]
        return self.write(images, texts)

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """The answer to each question about its picture, in words."""
        return self.write(images, [prompts.question(text) for text in questions])

    def describe(self, images: Sequence[Image.Image]) -> list[str]:
        """A short description of each picture."""
        return self.write(images, [prompts.caption()] * len(images))

    def write(self, images: Sequence[Image.Image], texts: Sequence[str], longest: int = 48) -> list[str]:
        """Greedy free text, at most `longest` tokens, after each task prompt (`prompts`) about its picture.

        Raises:
            ValueError: not one prompt per picture.
        """
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures but {len(texts)} prompts; expected one for each")
        model, found = self.model, []
        for image, text in zip(images, texts, strict=True):
            before, (after,) = model.split_prompts([self.turn(prompts.with_image(text))])
            with torch.inference_mode():
                prefix = model.prefix(model.image_tokens(model.pixels([as_rgb(image)])), before)
                words = model.language.get_input_embeddings()(torch.tensor([after], device=model.device))
                given = torch.cat([prefix, words], dim=1)
                tokens = model.language.generate(
                    inputs_embeds=given,
                    attention_mask=torch.ones(given.shape[:2], dtype=torch.long, device=model.device),
                    max_new_tokens=longest,
                    do_sample=False,
                    pad_token_id=model.tokenizer.pad_token_id,
                    eos_token_id=model.tokenizer.eos_token_id,
                )
            found.append(str(model.tokenizer.decode(tokens[0], skip_special_tokens=True)).strip())
        return found

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
