"""One look for every picture, so that a colour or a line means the same thing in every notebook.

The colours are the eight of Okabe and Ito ("Color Universal Design", 2008), told apart by readers with any of the
usual kinds of colour blindness. Meaning is never carried by colour alone: hits and misses also have their IoU
written beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import ImageFont

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILLION, YELLOW, BLACK = "#56B4E9", "#D55E00", "#F0E442", "#000000"
GREY = "#7F7F7F"

PALETTE: tuple[str, ...] = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, YELLOW, BLACK)
"""Order in which series and boxes take their colours."""

TRUTH = GREEN
CANDIDATE = SKY

_SETTINGS: Any = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=PALETTE),
    "figure.constrained_layout.use": True,
}


def color(index: int) -> str:
    """Colour number `index` of the palette, going round when there are more than eight."""
    return PALETTE[index % len(PALETTE)]


def iou_color(value: float, threshold: float = 0.5) -> str:
    """Colour for an IoU in 0..1: blue above the threshold (a hit), orange for a part, vermillion for none."""
    if value > threshold:
        return BLUE
    return ORANGE if value > 0.1 else VERMILLION


def ink_on(background: str) -> str:
    """Black or white, whichever is easier to read on `background` ("#rrggbb")."""
    red, green, blue = (int(background[start : start + 2], 16) for start in (1, 3, 5))
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    return "#000000" if luminance > 140 else "#FFFFFF"


@lru_cache(maxsize=16)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The DejaVu face that ships inside matplotlib, `size` in pixels: the same letters on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@contextmanager
def drawing() -> Iterator[None]:
    """Use the house style inside the block and leave the reader's own matplotlib settings alone outside it."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def finish(figure: Figure) -> Figure:
    """Take the figure out of pyplot's hands: a notebook then shows it once, as the cell's value."""
    pyplot.close(figure)
    return figure
