"""What a data set says about an image, as pictures: its objects, their masks, and what people call them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask as run_length

from seewhere.records import Expression, ImageRecord, Region
from seewhere.show import figures
from seewhere.show.panel import merge

if TYPE_CHECKING:
    from seewhere.datasets import ReferringDataset


def decode_mask(code: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The mask (height, width) bool of a COCO run-length code. size: (width, height) that the image should have.

    Raises:
        ValueError: the code is for an image of another size.
    """
    width, height = size
    if tuple(code["size"]) != (height, width):
        raise ValueError(f"The mask is for {code['size']} (height, width), the image is {height} x {width}.")
    plain = code if isinstance(code["counts"], (str, bytes)) else run_length.frPyObjects(code, height, width)
    return np.asarray(run_length.decode(plain), dtype=bool)


def contact_sheet(dataset: ReferringDataset, count: int, seed: int = 0, columns: int = 8) -> Image.Image:
    """A sheet of `count` images drawn at random from the data set, each with its id and its number of objects."""
    chosen = sorted(Random(seed).sample(sorted(dataset.images), min(count, len(dataset.images))))
    titles = [f"{image_id}: {len(dataset.by_image.get(image_id, []))} objects" for image_id in chosen]
    return figures.contact_sheet([dataset.images[image_id].open() for image_id in chosen], titles, columns)


def image_boxes_masks(record: ImageRecord, regions: Sequence[Region]) -> Figure:
    """One image three times: as it is, with the boxes of its regions, with their masks (where they have one)."""
    image = record.open()
    labels = [f"{index} {region.label}" for index, region in enumerate(regions)]
    masks = [decode_mask(region.mask, record.size) for region in regions if region.mask is not None]
    pictures = [figures.enlarge(image)[0], figures.draw_boxes(image, [region.box for region in regions], labels)]
    pictures.append(figures.draw_masks(image, masks))
    titles = [f"image {record.image_id}, {record.width} x {record.height}", "boxes and labels", f"{len(masks)} masks"]
    return figures.gallery(pictures, titles, columns=3, tile_inches=3.9)


def rich_image(datasets: ReferringDataset | Sequence[ReferringDataset], objects: int = 5) -> int:
    """Id of an image worth a close look.

    It has about `objects` objects, two of one category, and sentences in the most styles; ties: the first.
    """
    dataset = merge(datasets)
    styles: dict[int, set[str]] = {}
    for expression in dataset.expressions:
        styles.setdefault(expression.image.image_id, set()).add(expression.style)

    def merit(image_id: int) -> tuple[int, bool, int]:
        labels = [region.label for region in dataset.by_image.get(image_id, [])]
        return len(styles.get(image_id, ())), len(set(labels)) < len(labels), -abs(len(labels) - objects)

    if not dataset.images:
        raise ValueError(f"The data set {dataset.name!r} has no images.")
    return max(sorted(dataset.images), key=merit)


def sayings(datasets: ReferringDataset | Sequence[ReferringDataset], image_id: int) -> pd.DataFrame:
    """What is said in each style about the object of an image that is spoken of in most styles.

    Columns: object (its number and label), style, expression; shortest first. Raises ValueError when nothing is said.
    """
    dataset = merge(datasets)
    by_region: dict[int, list[Expression]] = {}
    for item in dataset.expressions:
        if item.image.image_id == image_id:
            by_region.setdefault(item.region.region_id, []).append(item)
    if not by_region:
        raise ValueError(f"Nothing is said about image {image_id} in {dataset.name!r}.")
    best = max(by_region.values(), key=lambda found: len({item.style for item in found}))
    number = [region.region_id for region in dataset.by_image[image_id]].index(best[0].region.region_id)
    first = {item.style or dataset.name: item.text for item in reversed(best)}
    table = pd.DataFrame(sorted(first.items(), key=lambda pair: len(pair[1])), columns=["style", "expression"])
    table["object"] = f"{number} {best[0].region.label}"
    return table[["object", "style", "expression"]]
