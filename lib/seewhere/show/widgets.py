"""Widgets to play with: look through a data set, ask a detector and a wrapper, draw a box yourself.

Each is an ordinary `ipywidgets.VBox`, so it shows itself as the value of a cell, and each has `static()`: the same
view as a figure, for readers who have the page but no kernel. Where a data set is expected, several over the same
images (the four styles of the world) will do as well. The widgets know data sets, grounders and wrappers only through
what they yield.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seewhere.show.asking import Answer, Asker, Wrapper, panel_rows
from seewhere.show.browsing import Browser
from seewhere.show.drawing import BoxDrawer

if TYPE_CHECKING:
    from seewhere.datasets import ReferringDataset
    from seewhere.models.protocols import Grounder

__all__ = ["Answer", "Asker", "BoxDrawer", "Browser", "Wrapper", "ask", "browse", "draw", "panel_rows"]


def browse(dataset: ReferringDataset | Sequence[ReferringDataset]) -> Browser:
    """A widget to look through a data set: slider, style, boxes, labels, expressions."""
    return Browser(dataset)


def ask(grounder: Grounder, wrapper: Wrapper, dataset: ReferringDataset | Sequence[ReferringDataset]) -> Asker:
    """A widget to put a phrase to a detector and to a wrapper, and to see why each chose as it did."""
    return Asker(grounder, wrapper, dataset)


def draw(dataset: ReferringDataset | Sequence[ReferringDataset]) -> BoxDrawer:
    """A widget to draw your own box for a phrase and see its IoU with the truth."""
    return BoxDrawer(dataset)
