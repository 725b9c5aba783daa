"""Readers that know the picture and answer by rule."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from seewhere.models.pixel_points import cells_of
from seewhere.pixels import targets


class Through:
    """Sees every picture through `side` x `side` patches; tells a confidence."""

    def __init__(self, side: int, name: str = "through") -> None:
        self.side, self.name = side, name

    def read_colours(self, images: Any, points: Any) -> list[SimpleNamespace]:
        found = []
        for image, places in zip(images, points, strict=True):
            cells = cells_of(places, image.size)
            values = targets.blur(targets.target(image), self.side)[cells[:, 1], cells[:, 0]]
            found.append(SimpleNamespace(values=values, log_probabilities=np.full(values.shape, -1.0)))
        return found

    def read_pixels(self, images: Any, points: Any) -> list[np.ndarray]:
        return [answer.values.astype(float) for answer in self.read_colours(images, points)]


class Muttering:
    """Right on the left half of a picture, and says nothing usable about the right one."""

    name = "muttering"

    def read_pixels(self, images: Any, points: Any) -> list[np.ndarray]:
        found = []
        for image, places in zip(images, points, strict=True):
            cells = cells_of(places, image.size)
            values = targets.target(image)[cells[:, 1], cells[:, 0]].astype(float)
            values[cells[:, 0] >= 32] = np.nan
            found.append(values)
        return found
