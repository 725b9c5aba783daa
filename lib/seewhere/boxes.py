"""One frame for boxes, and the only doors into and out of it.

Most numbers that do not reproduce turn out to be boxes read in another convention or frame (xywh for xyxy, 0-100 for
pixels, letterboxed for squashed). So everything in this package holds boxes as ``xyxy``: float64, absolute pixels of
the *original* image, x to the right, y downwards, ``x2``/``y2`` exclusive. Other conventions exist only at the edges,
through ``to_xyxy`` and ``from_xyxy``; other frames only through an ``ImageTransform``, which moves the picture and its
boxes together and back.

A missing box is a row of NaN: it stays NaN through every function here and is never turned into a box of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

Boxes = NDArray[np.float64]
Size = tuple[int, int]
Convention = Literal["xyxy", "xywh", "cxcywh", "xyxy_unit", "cxcywh_unit", "xyxy_100", "xyxy_999"]

CONVENTIONS: tuple[str, ...] = ("xyxy", "xywh", "cxcywh", "xyxy_unit", "cxcywh_unit", "xyxy_100", "xyxy_999")
# Conventions whose numbers are fractions of the image's sides, with the number that stands for the whole side.
_FULL_SIDE: dict[str, float] = {"xyxy_unit": 1.0, "cxcywh_unit": 1.0, "xyxy_100": 100.0, "xyxy_999": 1000.0}

CELLS: tuple[str, ...] = (
    "top left",
    "top",
    "top right",
    "middle left",
    "middle",
    "middle right",
    "bottom left",
    "bottom",
    "bottom right",
)
"""The nine cells of the 3 x 3 grid, row by row; ``cell_of`` returns indices into it."""


def as_boxes(boxes: ArrayLike) -> Boxes:
    """Return `boxes` as a new (N, 4) float64 array; a single box of four numbers becomes (1, 4), nothing becomes (0,
    4).

    Raises:
        ValueError: if the input is not rows of four numbers.
    """
    array = np.array(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim == 1 and array.shape[0] == 4:
        return array[None]
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"Expected boxes as rows of four numbers, (N, 4); got an array of shape {array.shape}.")
    return array


def _side_scale(convention: str, size: Sequence[float] | None) -> Boxes:
    """Pixels per unit of `convention`, as (4,): ones for conventions in pixels."""
    if convention not in CONVENTIONS:
        raise ValueError(f"Unknown box convention {convention!r}; known ones: {', '.join(CONVENTIONS)}.")
    if convention not in _FULL_SIDE:
        return np.ones(4)
    if size is None:
        raise ValueError(f"Boxes in {convention!r} are relative to the image: pass size=(width, height).")
    width, height = _check_size(size)
    return np.array([width, height, width, height], dtype=np.float64) / _FULL_SIDE[convention]


def _check_size(size: Sequence[float]) -> tuple[float, float]:
    if len(size) != 2 or not all(side > 0 for side in size):
        raise ValueError(f"Expected size=(width, height), both above 0; got {tuple(size)!r}.")
    return size[0], size[1]


def to_xyxy(boxes: ArrayLike, convention: str, size: Sequence[float] | None = None) -> Boxes:
    """Read boxes written in `convention` into the frame of this package.

    Args:
        boxes: (N, 4), or one box (4,), in `convention`:
            ``xyxy``, ``xywh`` (left top corner, width, height), ``cxcywh`` (centre, width, height), all in pixels;
            ``xyxy_unit``, ``cxcywh_unit`` in 0..1 of the image's sides; ``xyxy_100`` in 0..100 of them (MiniGPT-v2's
            frame); ``xyxy_999``: bin numbers 0..999 as Florence-2's location tokens, read at the middle of the bin (n
            + 0.5).
        convention: one of ``CONVENTIONS``.
        size: (width, height) of the image in pixels; needed by the relative conventions only.

    Returns:
        (N, 4) float64, xyxy, pixels of the image. Nothing is clipped or re-ordered.

    Raises:
        ValueError: unknown convention, wrong shape, or a missing or non-positive size.
    """
    array = as_boxes(boxes)
    scale = _side_scale(convention, size)
    if convention == "xyxy_999":
        array += 0.5
    array *= scale
    if convention == "xywh":
        array[:, 2:] += array[:, :2]
    elif convention.startswith("cxcywh"):
        half = array[:, 2:] / 2
        array = np.concatenate([array[:, :2] - half, array[:, :2] + half], axis=1)
    return array


def from_xyxy(boxes: ArrayLike, convention: str, size: Sequence[float] | None = None) -> Boxes:
    """Write boxes of this package's frame in `convention`: the inverse of ``to_xyxy``.

    Exact up to floating point, but for ``xyxy_999``, whose numbers are bins: whole, kept within 0..999, and hence
    within half a bin (side / 2000 pixels) of the original for boxes inside the image.

    Args:
        boxes: (N, 4) float, xyxy, pixels.
        convention: one of ``CONVENTIONS``; see ``to_xyxy``.
        size: (width, height) of the image in pixels; needed by the relative conventions only.

    Returns:
        (N, 4) float64 in `convention`.

    Raises:
        ValueError: as ``to_xyxy``.
    """
    array = as_boxes(boxes)
    scale = _side_scale(convention, size)
    if convention == "xywh":
        array[:, 2:] -= array[:, :2]
    elif convention.startswith("cxcywh"):
        sides = array[:, 2:] - array[:, :2]
        array = np.concatenate([(array[:, :2] + array[:, 2:]) / 2, sides], axis=1)
    array /= scale
    if convention == "xyxy_999":
        array = np.clip(np.floor(array), 0, 999)
    return array


def area(boxes: ArrayLike) -> Boxes:
    """Areas in square pixels, (N,); 0 for a box whose corners are swapped, NaN for a missing one."""
    array = as_boxes(boxes)
    sides = np.maximum(array[:, 2:] - array[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def center(boxes: ArrayLike) -> Boxes:
    """Centres (x, y) in pixels, (N, 2)."""
    array = as_boxes(boxes)
    return (array[:, :2] + array[:, 2:]) / 2


def clip(boxes: ArrayLike, size: Sequence[float]) -> Boxes:
    """Boxes cut at the image's borders, (N, 4); `size` is (width, height). A box outside becomes an empty one on the
    border.
    """
    width, height = _check_size(size)
    return np.clip(as_boxes(boxes), 0, [width, height, width, height])


def _overlap(a: ArrayLike, b: ArrayLike) -> tuple[Boxes, Boxes, Boxes, Boxes]:
    """Intersections and unions of all pairs, (N, M) each, and the two inputs as arrays."""
    first, second = as_boxes(a), as_boxes(b)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = np.maximum(high - low, 0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(first)[:, None] + area(second)[None, :] - intersection
    return intersection, union, first, second


def iou(a: ArrayLike, b: ArrayLike) -> Boxes:
    """Intersection over union of every box of `a` (N, 4) with every box of `b` (M, 4), xyxy: (N, M) in 0..1.

    Two empty boxes have IoU 0; a missing (NaN) box has IoU NaN with everything.
    """
    intersection, union, _, _ = _overlap(a, b)
    return _ratio(intersection, union)


def generalized_iou(a: ArrayLike, b: ArrayLike) -> Boxes:
    """Generalised IoU (Rezatofighi et al., CVPR 2019) of every box of `a` with every box of `b`, xyxy: (N, M) in -1..1.

    IoU minus the share of the smallest enclosing box that neither covers.
    """
    intersection, union, first, second = _overlap(a, b)
    low = np.minimum(first[:, None, :2], second[None, :, :2])
    high = np.maximum(first[:, None, 2:], second[None, :, 2:])
    sides = np.maximum(high - low, 0)
    hull = sides[..., 0] * sides[..., 1]
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def _ratio(above: Boxes, below: Boxes) -> Boxes:
    """above / below, 0 where below is 0; NaN stays NaN."""
    return np.divide(above, below, out=np.where(np.isnan(below), np.nan, 0.0), where=below > 0)


def cell_of(box: ArrayLike, size: Sequence[float]) -> int:
    """Index into ``CELLS`` of the cell nearest to the centre of one box (4,), xyxy, in an image of `size` (width,
    height).

    A centre on the line between two cells belongs to the right or lower one; a centre outside the image to the border
    cell.

    Raises:
        ValueError: if `box` is not a single box, or is missing (NaN).
    """
    array = as_boxes(box)
    if len(array) != 1 or np.isnan(array).any():
        raise ValueError(f"Expected one box of four numbers; got {box!r}.")
    width, height = _check_size(size)
    x, y = center(array)[0]
    column, row = (int(np.clip(np.floor(3 * share), 0, 2)) for share in (x / width, y / height))
    return 3 * row + column


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """A resize followed by a shift onto a canvas, known exactly, so that boxes follow the pixels there and back.

    Attributes:
        name: which of the makers below made it.
        size: (width, height) of the original image.
        target_size: (width, height) of the result.
        resized: (width, height) that the whole image is resized to; whole numbers, as a picture has whole pixels.
        offset: where the resized image's left top corner lies on the result; negative where the image is cropped.
    """

    name: str
    size: Size
    target_size: Size
    resized: Size
    offset: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Result pixels per original pixel, (horizontal, vertical)."""
        return self.resized[0] / self.size[0], self.resized[1] / self.size[1]

    def apply_boxes(self, boxes: ArrayLike) -> Boxes:
        """Boxes (N, 4) xyxy in the original image -> (N, 4) xyxy in the result. Not clipped, so that it can be
        inverted.
        """
        return as_boxes(boxes) * np.tile(self.scale, 2) + np.tile(self.offset, 2)

    def invert_boxes(self, boxes: ArrayLike) -> Boxes:
        """Boxes (N, 4) xyxy in the result -> (N, 4) xyxy in the original image. Not clipped."""
        return (as_boxes(boxes) - np.tile(self.offset, 2)) / np.tile(self.scale, 2)

    def apply_image(self, image: Image.Image, fill: tuple[int, int, int] = (127, 127, 127)) -> Image.Image:
        """The transformed picture: RGB, `target_size`; `fill` is the colour of the canvas a letterbox leaves visible.

        Raises:
            ValueError: if `image` has not the size that this transform was made for.
        """
        if image.size != tuple(self.size):
            raise ValueError(f"This {self.name} was made for images of {self.size}; got one of {image.size}.")
        canvas = Image.new("RGB", self.target_size, fill)
        canvas.paste(image.convert("RGB").resize(self.resized, Image.Resampling.BICUBIC), self.offset)
        return canvas


def _transform(
    name: str, size: Sequence[int], target_size: Sequence[int], scales: tuple[float, float]
) -> ImageTransform:
    width, height = (max(1, round(side * scale)) for side, scale in zip(size, scales, strict=True))
    target = (int(target_size[0]), int(target_size[1]))
    offset = ((target[0] - width) // 2, (target[1] - height) // 2)
    return ImageTransform(name, (int(size[0]), int(size[1])), target, (width, height), offset)


def letterbox(size: Sequence[int], target_size: Sequence[int]) -> ImageTransform:
    """Scale the whole image into `target_size`, sides in proportion, centred on a plain canvas. Sizes are (width,
    height).
    """
    width, height = _check_size(size)
    target_width, target_height = _check_size(target_size)
    scale = min(target_width / width, target_height / height)
    return _transform("letterbox", size, target_size, (scale, scale))


def center_crop(size: Sequence[int], target_size: Sequence[int]) -> ImageTransform:
    """Scale the image, sides in proportion, until it covers `target_size`; keep the middle (what CLIP's image
    processor does).

    Whatever lies outside the middle is lost to the model: boxes may leave the result, and left/right may change their
    meaning.
    """
    width, height = _check_size(size)
    target_width, target_height = _check_size(target_size)
    scale = max(target_width / width, target_height / height)
    return _transform("center_crop", size, target_size, (scale, scale))


def squash(size: Sequence[int], target_size: Sequence[int]) -> ImageTransform:
    """Stretch the image to `target_size`, each side on its own (what MiniGPT-v2 and BLIP-2 do)."""
    width, height = _check_size(size)
    target_width, target_height = _check_size(target_size)
    return _transform("squash", size, target_size, (target_width / width, target_height / height))
