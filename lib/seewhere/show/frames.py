"""Frames and conventions as pictures: the same four numbers mean different boxes, and a crop can lose what was asked.

Wrong box conventions are the commonest reason why published numbers do not come back; a look at these pictures and
tables is the cheapest protection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from seewhere import boxes as box_tools
from seewhere.show import figures, style

if TYPE_CHECKING:
    from seewhere.datasets import ReferringDataset

CONVENTIONS = ("xyxy", "xywh", "cxcywh", "xyxy_unit", "cxcywh_unit", "xyxy_100", "xyxy_999")
LEAST = 0.1
"""Share of a box that must be left for its object to count as in view."""
TRANSFORMS: dict[str, Callable[..., box_tools.ImageTransform]] = {
    "letterbox": box_tools.letterbox,
    "centre crop": box_tools.center_crop,
    "squash": box_tools.squash,
}


def convention_table(box: ArrayLike, size: tuple[int, int]) -> pd.DataFrame:
    """One box, (4,) pixels, xyxy, written in every convention; and its IoU if those numbers are taken for plain xyxy.

    size: (width, height) of the image. Columns: convention, numbers, read as xyxy (IoU with the true box).
    """
    rows = []
    for convention in CONVENTIONS:
        numbers = box_tools.from_xyxy(box, convention, size)
        wrong = numbers.copy()
        wrong[:, 2:] = np.maximum(wrong[:, :2], wrong[:, 2:])  # an inverted box is an empty one
        digits = 3 if "unit" in convention else 1
        written = ", ".join(f"{value:.{digits}f}" for value in numbers[0])
        rows.append((convention, f"[{written}]", round(float(box_tools.iou(wrong, box)[0, 0]), 2)))
    return pd.DataFrame(rows, columns=["convention", "numbers", "IoU if read as xyxy"])


def misread_gallery(image: Image.Image, box: ArrayLike) -> Figure:
    """The box, (4,) pixels, xyxy, and what becomes of it when its numbers are read in the wrong convention."""
    true = box_tools.as_boxes(box)
    wrong = {
        "xywh read as xyxy": box_tools.from_xyxy(true, "xywh"),
        "xyxy read as xywh": box_tools.to_xyxy(true, "xywh"),
        "0-100 read as pixels": box_tools.from_xyxy(true, "xyxy_100", image.size),
    }
    pictures, titles = [figures.draw_boxes(image, true, colors=style.TRUTH)], ["as it is meant: xyxy in pixels"]
    for name, numbers in wrong.items():
        numbers[:, 2:] = np.maximum(numbers[:, :2] + 1, numbers[:, 2:])
        value = float(box_tools.iou(numbers, true)[0, 0])
        below = figures.draw_boxes(image, true, colors=style.TRUTH, dashed=True)
        factor = max(below.size) / max(image.size)
        shown = box_tools.clip(numbers, image.size) * factor
        pictures.append(figures.draw_boxes(below, shown, colors=style.iou_color(value)))
        titles.append(f"{name}: IoU {value:.2f}")
    return figures.gallery(pictures, titles, columns=4)


def transform_gallery(
    image: Image.Image, boxes: ArrayLike, labels: Sequence[str], target_size: tuple[int, int] = (192, 192)
) -> Figure:
    """The image as it is and as each transform hands it to a model, with the boxes carried along.

    boxes: (N, 4) pixels, xyxy, original frame. target_size: (width, height) of the model's input.
    """
    array = box_tools.as_boxes(boxes)
    pictures = [figures.draw_boxes(image, array, labels)]
    titles = [f"original, {image.width} x {image.height}"]
    for name, make in TRANSFORMS.items():
        transform = make(image.size, target_size)
        moved = transform.apply_boxes(array)
        shares = _visible_share(moved, target_size)
        seen, counted = shares > 0, int((shares >= LEAST).sum())
        inks = [style.color(int(index)) for index in np.flatnonzero(seen)]
        names = [label for label, kept in zip(labels, seen, strict=True) if kept]
        shown = box_tools.clip(moved[seen], target_size)
        pictures.append(figures.draw_boxes(transform.apply_image(image), shown, names, inks))
        titles.append(f"{name} to {target_size[0]} x {target_size[1]}: {counted} of {len(array)} objects in view")
    return figures.gallery(pictures, titles, columns=4)


def _visible_share(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N,) share of each box's area, in 0..1, that lies inside a canvas of `size`."""
    whole = box_tools.area(boxes)
    inside = box_tools.area(box_tools.clip(boxes, size))
    return np.divide(inside, whole, out=np.zeros_like(whole), where=whole > 0)


def transform_table(
    boxes: ArrayLike, labels: Sequence[str], size: tuple[int, int], target_size: tuple[int, int] = (192, 192)
) -> pd.DataFrame:
    """What each transform does to where things are: the cell of the 3 x 3 grid that a model would see, per object.

    boxes: (N, 4) pixels, xyxy. size, target_size: (width, height). An object of which less than a tenth is left counts
    as "(gone)".
    """
    array = box_tools.as_boxes(boxes)
    table = pd.DataFrame({"object": list(labels), "original": [_cell(box, size) for box in array]})
    for name, make in TRANSFORMS.items():
        moved = make(size, target_size).apply_boxes(array)
        shares = _visible_share(moved, target_size)
        kept = box_tools.clip(moved, target_size)
        cells = [
            _cell(box, target_size) if share >= LEAST else "(gone)" for box, share in zip(kept, shares, strict=True)
        ]
        table[name] = cells
    return table


def _cell(box: np.ndarray, size: tuple[int, int]) -> str:
    return box_tools.CELLS[box_tools.cell_of(box, size)]


def most_cropped(dataset: ReferringDataset, target_size: tuple[int, int] = (192, 192), least: float = LEAST) -> int:
    """Id of the image that loses most objects to a centre crop (less than `least` of the box in view).

    Ties go to wide images, which lose their left and right ends, and then to the first.
    """
    best, most = -1, (-1, False)
    for image_id, regions in dataset.by_image.items():
        if not regions:
            continue
        transform = box_tools.center_crop(dataset.images[image_id].size, target_size)
        shares = _visible_share(transform.apply_boxes([region.box for region in regions]), target_size)
        record = dataset.images[image_id]
        loss = (int((shares < least).sum()), record.width > record.height)
        if loss > most:
            best, most = image_id, loss
    if best < 0:
        raise ValueError(f"The data set {dataset.name!r} has no image with a region.")
    return best
