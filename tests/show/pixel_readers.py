"""Readers and a segmenter that answer by rule."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from seewhere.models.pixel_points import cells_of, cells_within


class AlwaysSure:
    """Says [column, row, 7] of every cell, with the same confidence each time."""

    name = "sure"

    def __init__(self) -> None:
        self.asked = 0

    def read_colours(self, images: Any, points: Any) -> list[SimpleNamespace]:
        found = []
        for image, places in zip(images, points, strict=True):
            cells = cells_of(places, image.size)
            self.asked += len(cells)
            values = np.column_stack([cells, np.full(len(cells), 7)])
            logs = np.log(np.tile([0.9, 0.5, 0.25], (len(cells), 1)))
            found.append(SimpleNamespace(values=values, log_probabilities=logs))
        return found

    def read_pixels(self, images: Any, points: Any) -> list[np.ndarray]:
        return [answer.values.astype(float) for answer in self.read_colours(images, points)]


class Silent:
    """Never gives a usable answer."""

    name = "silent"

    def read_pixels(self, images: Any, points: Any) -> list[np.ndarray]:
        return [np.full((len(places), 3), np.nan) for places in points]


class Segmenting:
    """Finds the box of the label in the phrase, and is 0.9 sure of the cells in it; names no box for nonsense."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.asked = dataset, []

    def __call__(self, image: Image.Image, phrase: str) -> SimpleNamespace:
        self.asked.append(phrase)
        values = np.full((64, 64), np.nan)
        regions = self.dataset.by_image[max(self.dataset.by_image)]
        box = next((r.box for r in regions if r.label.split()[0] in phrase), None)
        if box is None:
            return SimpleNamespace(box=np.full(4, np.nan), probabilities=values)
        box = next((e.region.box for e in self.dataset.expressions if e.text == phrase), box)
        cells = cells_within(box, image.size)
        values[cells[:, 1], cells[:, 0]] = 0.9
        return SimpleNamespace(box=np.array(box), probabilities=values)
