"""What a data set yields, whatever file it came from: small frozen records.

Readers make them, every later step only reads them. Boxes are xyxy in pixels of the original image (see ``boxes``), so
a record never needs a note on its convention.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

Box = tuple[float, float, float, float]


class DataError(ValueError):
    """A data file is missing, broken, or not what its format promises; the message names the file and what to do."""


def open_image(path: Path) -> Image.Image:
    """Read a picture wholly and return it as RGB; grey-scale, palette, CMYK and alpha pictures are converted.

    Raises:
        DataError: the file is missing, is not an image, or is cut short.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such image. Check the data root, or fetch the image again.")
    try:
        with Image.open(path) as image:
            image.load()  # Pillow reads lazily: only this finds a truncated file
            if image.mode == "RGB":
                return image
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # palette pictures with a transparent colour: it is dropped on purpose
                return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}). Fetch this file again.") from error


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A picture on disk: its id in its data set, where it lies, and its size in pixels."""

    image_id: int
    path: Path
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    def open(self) -> Image.Image:
        """Read the picture as RGB.

        Raises:
            DataError: missing or broken file, or a picture whose size is not the recorded one (its boxes would be in
            another
                frame).
        """
        image = open_image(self.path)
        if image.size != self.size:
            raise DataError(
                f"{self.path}: the annotations are for an image of {self.width} x {self.height}, the file holds "
                f"{image.width} x {image.height}. Is it a resized copy, or another version's image?"
            )
        return image


@dataclass(frozen=True, slots=True)
class Region:
    """One annotated object. `box` is (x1, y1, x2, y2) in pixels of the original image; `mask` is a COCO run-length
    code.
    """

    region_id: int
    image_id: int
    box: Box
    label: str
    category_id: int
    mask: dict[str, Any] | None = None
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class Expression:
    """One sentence that refers to one region of one image. `text` is the sentence as its annotator typed it (RefCOCO's
    raw).
    """

    expression_id: int
    image: ImageRecord
    region: Region
    text: str
    split: str
    style: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence about a whole image."""

    caption_id: int
    image: ImageRecord
    text: str
    split: str


@dataclass(frozen=True, slots=True)
class Question:
    """One question about an image with its expected answer; `meta` holds the columns that analyses group by."""

    question_id: int
    image: ImageRecord
    text: str
    answer: str
    split: str
    meta: dict[str, Any] = field(default_factory=dict)
