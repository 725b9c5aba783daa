"""What the pixel tasks ask, word for word, and what an answer looks like.

Task identifiers and forms are the paper's (PVP, section 3) and those of MiniGPT-v2, on which it builds; `IMAGE` stands
where the image's tokens go. A location is a cell of the grid on which the picture is asked for (64 x 64 in the paper,
x to the right, y down, from 0): which numbers the paper writes is not said, and cells are the cheapest that name every
pixel of its target.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from seewhere.models.grammar import number_slots

IMAGE = "<ImageHere>"
GRID = 64

RGB_TEXTS = number_slots("[", (",", ",", "]"), 255)
"""Slots of ``[r,g,b]`` for `AnswerGrammar.from_texts`."""
BOX_TEXTS = [
    [f"{opening}<{share}>{closing}" for share in range(101)]
    for opening, closing in (("{", ""), ("", ""), ("", ""), ("", "}"))
]
"""Slots of ``{<x1><y1><x2><y2>}``."""
MASK_TEXTS = ("0", "1")
"""Answers about a mask: outside, inside."""

_RGB = re.compile(r"\[\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\]")
_BOX = re.compile(r"<\s*(\d{1,3})\s*>" * 4)


def with_image(text: str) -> str:
    """The question `text` behind its image."""
    return f"<Img>{IMAGE}</Img> {text}"


def instruction(text: str) -> str:
    """A user turn in Llama-2's chat form, as MiniGPT-v2 writes it."""
    return f"[INST] {text} [/INST]"


def reconstruct(x: int, y: int) -> str:
    """Ask for the colour of cell (x, y); the answer is `rgb_answer`."""
    return f"[reconstruct] loc: [{x},{y}] rgb:"


def segment(phrase: str, x: int, y: int) -> str:
    """Ask whether cell (x, y) belongs to what `phrase` names; the answer is one of `MASK_TEXTS`."""
    return f"[segmentation] {clean(phrase)} loc: [{x},{y}] mask:"


def refer(phrase: str) -> str:
    """Ask for the box of what `phrase` names; the answer is `box_answer`."""
    return f"[refer] give me the location of {clean(phrase)}"


def identify(box: Sequence[float], size: tuple[int, int]) -> str:
    """Ask what is in a box (pixels, xyxy) of a picture of `size` (width, height)."""
    return f"[identify] what is this {box_answer(box, size)}"


def caption() -> str:
    """Ask for a short description."""
    return "[caption] briefly describe this image"


def question(text: str) -> str:
    """Ask anything that has a short answer."""
    return f"[vqa] {text.strip()}"


def clean(phrase: str) -> str:
    """A phrase as it stands in a prompt: lower-case, single spaces.

    Raises:
        ValueError: nothing is left of it.
    """
    words = " ".join(phrase.lower().split())
    if not words:
        raise ValueError(f"the phrase {phrase!r} is empty; expected words that name an object")
    return words


def rgb_answer(rgb: Sequence[int]) -> str:
    """Write a colour, whole numbers 0..255, as ``[r,g,b]``.

    Raises:
        ValueError: not three numbers in that range.
    """
    values = [int(v) for v in rgb]
    if len(values) != 3 or not all(0 <= v <= 255 for v in values):
        raise ValueError(f"expected three whole numbers 0..255, got {list(rgb)}")
    return "[{},{},{}]".format(*values)


def parse_rgb(text: str) -> np.ndarray:
    """Read the first ``[r,g,b]`` out of free text, (3,) float; not-a-number where there is none in range."""
    found = _RGB.search(text)
    values = np.array([float(v) for v in found.groups()]) if found else np.full(3, np.nan)
    return values if (values <= 255).all() else np.full(3, np.nan)


def box_answer(box: Sequence[float], size: tuple[int, int]) -> str:
    """Write a box (pixels, xyxy) of a picture of `size` (width, height) as ``{<x1><y1><x2><y2>}``, 0..100."""
    width, height = size
    shares = [min(max(round(100 * v / s), 0), 100) for v, s in zip(box, (width, height) * 2, strict=True)]
    return "{" + "".join(f"<{v}>" for v in shares) + "}"


def parse_box(text: str, size: tuple[int, int]) -> np.ndarray:
    """Read the first box out of free text, (4,) float pixels; not-a-number where there is none."""
    found = _BOX.search(text)
    if not found:
        return np.full(4, np.nan)
    shares = np.array([float(v) for v in found.groups()])
    if (shares > 100).any():
        return np.full(4, np.nan)
    return shares / 100 * np.array([*size, *size], dtype=float)
