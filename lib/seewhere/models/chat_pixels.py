"""Pixels asked of a chat model in plain words, with nothing trained: what does it see before anyone taught it to look?

Answers are free text. One without a colour in it is *unusable*: it comes back as not-a-number, is counted, and is drawn
as missing, because a black pixel would be an answer that nobody gave.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from seewhere.models.chat_vision import ChatVision
from seewhere.models.pixel_points import cells_of

COLOUR = (
    "Look at the image as a grid of {grid} x {grid} cells. Columns are numbered from 0 at the left to {last} at the "
    "right, rows from 0 at the top to {last} at the bottom. What is the colour in column {x}, row {y}? Answer with "
    "[red,green,blue] only, three whole numbers from 0 to 255."
)
MASK = (
    "Look at the image as a grid of {grid} x {grid} cells. Columns are numbered from 0 at the left to {last} at the "
    "right, rows from 0 at the top to {last} at the bottom. Does the cell in column {x}, row {y} belong to: {phrase}? "
    "Answer 1 for yes or 0 for no, nothing else."
)
BOX = (
    "Where in the image is: {phrase}? Answer with its box as [left,top,right,bottom] only, four whole numbers from 0 "
    "to 100, in percent of the image's width and height."
)

_LIST = re.compile(r"-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?)+")
_HEX = re.compile(r"#([0-9a-fA-F]{6})\b")


def parse_colour(text: str) -> np.ndarray:
    """The first colour in free text, (3,) float 0..255: ``[r,g,b]``, ``rgb(r, g, b)`` or ``#rrggbb``; NaN if none.

    Shares such as ``[0.9, 0.1, 0.2]`` are none: they were not asked for, and taken for levels they would be black.
    """
    values = _first_list(text, 3)
    if not np.isnan(values).any():
        shares = (values <= 1).all() and (values % 1).any()
        return np.full(3, np.nan) if shares or (values < 0).any() or (values > 255).any() else values
    code = _HEX.search(text)
    return np.array([float(v) for v in bytes.fromhex(code[1])]) if code else values


def parse_box(text: str, size: tuple[int, int]) -> np.ndarray:
    """The first box in free text, (4,) pixels xyxy of a picture of `size` (width, height); NaN if none.

    Numbers are percent; a box whose corners are not in order, or that leaves the picture, is none, and so are shares
    of one, which were not asked for.
    """
    values = _first_list(text, 4)
    usable = (values >= 0).all() and (values <= 100).all() and (values[2:] > values[:2]).all() and (values > 1).any()
    return values / 100 * np.array([*size, *size], dtype=float) if usable else np.full(4, np.nan)


def _first_list(text: str, count: int) -> np.ndarray:
    """The first list of exactly `count` numbers with commas between them, (count,) float; NaN if there is none."""
    for found in _LIST.finditer(text):
        values = [float(value) for value in found[0].split(",")]
        if len(values) == count:
            return np.array(values)
    return np.full(count, np.nan)


class ChatPixelReader:
    """A chat model as a `protocols.PixelReader`, and as one that finds boxes and masks.

    Args:
        chat: the model.
        grid: cells along a side of the picture that can be asked for.
        progress: show bars over several pictures.
    """

    def __init__(self, chat: ChatVision, grid: int = 64, progress: bool = True) -> None:
        self.chat, self.grid, self.name, self.progress = chat, grid, chat.name, progress

    @classmethod
    def load(cls, source: str | Path, grid: int = 64, progress: bool = True, **options: Any) -> Self:
        """Load a hub id or folder; `options` are those of `ChatVision.load`. Raises as it does."""
        return cls(ChatVision.load(source, progress=progress, **options), grid, progress)

    @property
    def forced(self) -> int:
        """How many cells were asked so far whose own answer would have begun with neither 0 nor 1."""
        return self.chat.forced

    def read_texts(self, image: Image.Image, points: np.ndarray) -> list[str]:
        """What the model writes about the colour at each point (N, 2), pixels."""
        cells = cells_of(points, image.size, self.grid).tolist()
        return self.chat.write(image, [self._place(COLOUR, x, y) for x, y in cells])

    def read_pixels(self, images: Sequence[Image.Image], points: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `protocols.PixelReader`; not-a-number where the answer held no colour."""
        if len(images) != len(points):
            raise ValueError(f"{len(images)} pictures but {len(points)} arrays of points; expected one for each")
        bar = tqdm(images, unit="picture", disable=not self.progress or len(images) < 2)
        texts = [self.read_texts(image, asked) for image, asked in zip(bar, points, strict=True)]
        return [np.array([parse_colour(text) for text in found]).reshape(-1, 3) for found in texts]

    def read_mask(self, image: Image.Image, phrase: str, points: np.ndarray) -> np.ndarray:
        """Probability (N,) of an answer that begins with 1, against 0, for each point (N, 2), pixels.

        A choice between the two is forced where the model would say something else; ``forced`` counts those.

        Raises:
            ValueError: an empty phrase, or points outside of the picture.
        """
        words = _clean(phrase)
        cells = cells_of(points, image.size, self.grid).tolist()
        asked = [self._place(MASK, x, y, phrase=words) for x, y in cells]
        return self.chat.option_chances(image, asked, ("0", "1"))[:, 1]

    def find_boxes(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> np.ndarray:
        """A box (N, 4), pixels xyxy, for each picture and phrase; a row of not-a-number where the answer held none.

        Raises:
            ValueError: not one phrase per picture, or an empty one.
        """
        if len(images) != len(phrases):
            raise ValueError(f"{len(images)} pictures but {len(phrases)} phrases; expected one for each")
        rows = [
            parse_box(self.chat.write(image, [BOX.format(phrase=_clean(phrase))], 32)[0], image.size)
            for image, phrase in zip(images, phrases, strict=True)
        ]
        return np.array(rows).reshape(-1, 4)

    def _place(self, wording: str, x: int, y: int, **more: str) -> str:
        return wording.format(grid=self.grid, last=self.grid - 1, x=x, y=y, **more)


def _clean(phrase: str) -> str:
    words = " ".join(phrase.split())
    if not words:
        raise ValueError(f"the phrase {phrase!r} is empty; expected words that name an object")
    return words
