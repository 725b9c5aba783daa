"""A data set of drawn rectangles, a grounder and a wrapper that answer by rule: enough to drive every widget."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from seewhere.models.candidates import Detections, make_candidates
from seewhere.records import Expression, ImageRecord, Region

COLOURS = {"red thing": (230, 30, 30), "green thing": (30, 200, 30), "blue thing": (30, 30, 230)}


@dataclass
class SmallDataset:
    """The fields of a data set that widgets read."""

    name: str = "drawn"
    split: str = "test"
    images: dict[int, ImageRecord] = field(default_factory=dict)
    by_image: dict[int, list[Region]] = field(default_factory=dict)
    expressions: list[Expression] = field(default_factory=list)


def make_dataset(folder: Path, count: int = 3) -> SmallDataset:
    """`count` images of 120 x 80; image i holds i + 2 rectangles, each with a short and a plus expression."""
    data = SmallDataset()
    for image_id in range(count):
        record = ImageRecord(image_id, folder / f"{image_id}.png", 120, 80)
        picture = Image.new("RGB", record.size, (200, 200, 200))
        data.images[image_id], data.by_image[image_id] = record, []
        for place in range(min(image_id + 2, 3)):
            label, colour = list(COLOURS.items())[place]
            box = (5.0 + 38 * place, 10.0 + 5 * image_id, 35.0 + 38 * place, 50.0 + 5 * image_id)
            ImageDraw.Draw(picture).rectangle(box, fill=colour)
            region = Region(10 * image_id + place, image_id, box, label, place)
            data.by_image[image_id].append(region)
            for style, text in (("short", f"{label} at place {place}"), ("plus", f"the <{label}>")):
                number = len(data.expressions)
                data.expressions.append(Expression(number, record, region, text, "test", style))
        picture.save(record.path)
    return data


class EveryRectangle:
    """A grounder that knows the data set's boxes and always answers with the first."""

    name, scores = "rectangles", True

    def __init__(self, data: SmallDataset) -> None:
        self.data, self.asked = data, []

    def ground(self, images: Any, phrases: Any) -> list[Detections]:
        self.asked += list(phrases)
        return [self._one(image) for image in images]

    def _one(self, image: Image.Image) -> Detections:
        for image_id, record in self.data.images.items():
            if np.array_equal(np.asarray(record.open()), np.asarray(image)):
                regions = self.data.by_image[image_id]
                scores = np.linspace(0.9, 0.5, len(regions))
                return make_candidates([r.box for r in regions], [r.label for r in regions], scores, self.name, 0)
        raise AssertionError("the grounder was given a changed image")


@dataclass
class SmallAnswer:
    """The fields of an answer that widgets read."""

    index: int
    probabilities: np.ndarray
    prompt: str
    status: str


class ByLabel:
    """A wrapper that picks the candidate whose label is in the phrase."""

    def answer(self, images: Any, phrases: Any, candidates: list[Detections]) -> list[SmallAnswer]:
        return [self._one(phrase, found) for phrase, found in zip(phrases, candidates, strict=True)]

    def _one(self, phrase: str, found: Detections) -> SmallAnswer:
        scores = np.array([float(label in phrase) for label in found.data["label"]]) + 0.1
        probabilities = scores / scores.sum()
        return SmallAnswer(int(scores.argmax()), probabilities, f"Which box is <{phrase}>?", "answered")
