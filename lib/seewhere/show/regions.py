"""What a data set says about an image, as pictures: its objects, their masks, and what people call them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
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


def _repeated(regions: Sequence[Region]) -> set[int]:
    """Ids of the regions whose label another region of the image has too, so that a name alone is not enough."""
    counts = Counter(region.label for region in regions)
    return {region.region_id for region in regions if counts[region.label] > 1}


def _said_of(expressions: Iterable[Expression]) -> dict[int, list[Expression]]:
    by_region: dict[int, list[Expression]] = {}
    for item in expressions:
        by_region.setdefault(item.region.region_id, []).append(item)
    return by_region


def rich_image(datasets: ReferringDataset | Sequence[ReferringDataset], objects: int = 5) -> int:
    """Id of an image worth a close look.

    One of its objects shares its label with another and is spoken of in the most styles, and there are about `objects`
    objects; ties: the first.
    """
    dataset = merge(datasets)
    styles: dict[int, int] = {}
    for found in _said_of(dataset.expressions).values():
        image_id = found[0].image.image_id
        if found[0].region.region_id in _repeated(dataset.by_image[image_id]):
            styles[image_id] = max(styles.get(image_id, 0), len({item.style for item in found}))
    if not dataset.images:
        raise ValueError(f"The data set {dataset.name!r} has no images.")
    return max(
        sorted(dataset.images), key=lambda i: (styles.get(i, 0), -abs(len(dataset.by_image.get(i, [])) - objects))
    )


def sayings(datasets: ReferringDataset | Sequence[ReferringDataset], image_id: int) -> pd.DataFrame:
    """What is said in each style about the object of an image that is hardest to name.

    That is one whose label others have too, and among these the one spoken of in most styles.

    Columns: object (its number and label), style, expression; shortest first. Raises ValueError when nothing is said.
    """
    dataset = merge(datasets)
    by_region = _said_of(item for item in dataset.expressions if item.image.image_id == image_id)
    repeated = _repeated(dataset.by_image.get(image_id, []))
    if not by_region:
        raise ValueError(f"Nothing is said about image {image_id} in {dataset.name!r}.")
    best = max(
        by_region.values(),
        key=lambda found: (found[0].region.region_id in repeated, len({item.style for item in found})),
    )
    number = [region.region_id for region in dataset.by_image[image_id]].index(best[0].region.region_id)
    first = {item.style or dataset.name: item.text for item in reversed(best)}
    table = pd.DataFrame(sorted(first.items(), key=lambda pair: len(pair[1])), columns=["style", "expression"])
    table["object"] = f"{number} {best[0].region.label}"
    return table[["object", "style", "expression"]]
