"""COCO's annotation files: instances (boxes xywh, masks) and captions. REFER's ``instances.json`` is one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.boxes import to_xyxy
from seewhere.datasets.dataset import group_by_image
from seewhere.datasets.images import ImageFinder, warn_missing
from seewhere.records import Caption, DataError, ImageRecord, Region

BORDER_TOLERANCE = 1.5  # pixels: annotation tools round, and RefCOCO's boxes end up to a pixel beyond the border


@dataclass(frozen=True)
class CocoAnnotations:
    """The contents of an instances file: images, regions (boxes xyxy, pixels), categories, and regions by image."""

    images: dict[int, ImageRecord]
    regions: dict[int, Region]
    by_image: dict[int, list[Region]]
    categories: dict[int, str]
    supercategories: dict[int, str]
    annotation_hash: str


def read_annotations(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a COCO file and make sure that it has the lists `keys`.

    Raises:
        DataError: missing file, broken JSON, or another format; each names the file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        content = storage.read_json(path)
    except ValueError as error:
        raise DataError(str(error)) from error
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in keys):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: expected a COCO file with the lists {', '.join(keys)}; found {found}.")
    return content


def convention_problem(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> str | None:
    """Say why boxes that should be xywh in pixels do not look it, or return None.

    Args:
        boxes: (N, 4) as written in the file.
        sizes: (N, 2) width and height of each box's image.
    """
    if not len(boxes):
        return None
    ends = boxes[:, :2] + boxes[:, 2:]
    outside = (ends > sizes + BORDER_TOLERANCE).any(axis=1)
    ordered = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (boxes[:, 2:] <= sizes + BORDER_TOLERANCE).all(axis=1)
    if outside.mean() > 0.05 and ordered.mean() > 0.98:
        return (
            f"{int(outside.sum())} of {len(boxes)} boxes end outside their image when read as xywh, as they should be, "
            f"and {int(ordered.sum())} of {len(boxes)} are in order and inside when read as xyxy: they look like xyxy"
        )
    if boxes.max() <= 1 and sizes.min() > 2:
        return f"none of the {len(boxes)} boxes has a number above 1: they look like fractions of the image, not pixels"
    return None


def box_error(source: str, problem: str) -> DataError:
    """Make the error for a file whose boxes are in another convention."""
    return DataError(f"{source}: {problem}. Convert the file to xywh in pixels, or fetch the published one.")


def raw_boxes(annotations: Sequence[Mapping[str, Any]], source: str) -> NDArray[np.float64]:
    """Return the `bbox` of every annotation as written, (N, 4).

    Raises:
        DataError: an annotation has no box of four finite numbers, or one of negative size.
    """
    rows: list[Any] = []
    for item in annotations:
        box: Any = item.get("bbox")
        good = isinstance(box, (list, tuple)) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
        if not good or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
            raise DataError(
                f"{source}: annotation {item.get('id')} has the box {box!r}; expected [x, y, width, height] in pixels."
            )
        rows.append(box)
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def parse_instances(
    content: Mapping[str, Any],
    source: str,
    finder: ImageFinder,
    keep: set[int] | None = None,
    masks: bool = False,
) -> tuple[dict[int, ImageRecord], dict[int, Region], dict[int, str]]:
    """Turn the lists of a COCO file into records.

    Args:
        content: the parsed file.
        source: its name, for messages.
        finder: finds the images.
        keep: ids of the images to keep with their regions; None for all.
        masks: turn polygons into run-length codes as well (slow on all of COCO); codes in the file are always kept.

    Raises:
        DataError: ids that are missing, doubled or dangling; boxes that are not xywh in pixels.
    """
    categories = {int(item["id"]): str(item["name"]) for item in content["categories"]}
    images = _images(content["images"], source, finder, keep)
    chosen = [item for item in content["annotations"] if keep is None or item.get("image_id") in images]
    dangling = [item for item in chosen if item.get("image_id") not in images or item["category_id"] not in categories]
    if dangling:
        first = dangling[0]
        raise DataError(
            f"{source}: {len(dangling)} of {len(chosen)} annotations point at images or categories missing from it "
            f"(first: annotation {first.get('id')} -> image {first.get('image_id')}, category {first['category_id']})."
        )
    written = raw_boxes(chosen, source)
    sizes = np.array([images[item["image_id"]].size for item in chosen], dtype=np.float64).reshape(-1, 2)
    problem = convention_problem(written, sizes)
    if problem:
        raise box_error(source, problem)
    regions: dict[int, Region] = {}
    rows = zip(chosen, to_xyxy(written, "xywh").tolist(), strict=True)
    for item, box in tqdm(rows, total=len(chosen), desc=f"reading {source}", unit="object", delay=1, leave=False):
        image = images[item["image_id"]]
        regions[int(item["id"])] = Region(
            region_id=int(item["id"]),
            image_id=image.image_id,
            box=(box[0], box[1], box[2], box[3]),
            label=categories[item["category_id"]],
            category_id=int(item["category_id"]),
            mask=_mask(item.get("segmentation"), image, masks),
            is_crowd=bool(item.get("iscrowd", 0)),
        )
    if len(regions) != len(chosen):
        raise DataError(f"{source}: {len(chosen) - len(regions)} annotation ids occur twice.")
    return images, regions, categories


def _images(
    rows: Iterable[Mapping[str, Any]], source: str, finder: ImageFinder, keep: set[int] | None
) -> dict[int, ImageRecord]:
    images: dict[int, ImageRecord] = {}
    for row in rows:
        number = int(row["id"])
        if keep is not None and number not in keep:
            continue
        if number in images:
            raise DataError(f"{source}: the image id {number} occurs twice.")
        path = finder.find(str(row["file_name"]), number)
        images[number] = ImageRecord(number, path, int(row["width"]), int(row["height"]))
    return images


def _mask(segmentation: Any, image: ImageRecord, polygons: bool) -> dict[str, Any] | None:
    """Return a COCO run-length code, or None where there is no mask (or a polygon that was not asked for)."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation.get("counts"), list):  # uncompressed: crowds
            return coco_mask.frPyObjects(segmentation, image.height, image.width)
        return segmentation
    if polygons and segmentation:
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, image.height, image.width))
    return None


def load_coco(
    annotation_file: Path | str, images: Path | str | None = None, masks: bool = False, warn: bool = True
) -> CocoAnnotations:
    """Read a COCO instances file.

    Args:
        annotation_file: such as ``annotations/instances_train2017.json``.
        images: folder of the images; None looks in the usual places around the file.
        masks: turn polygons into run-length codes as well.
        warn: warn of images that are not on disk.

    Raises:
        DataError: missing or broken file, dangling ids, boxes in another convention.
    """
    path = Path(annotation_file)
    content = read_annotations(path, ("images", "annotations", "categories"))
    finder = ImageFinder([path.parent.parent, path.parent], None if images is None else Path(images))
    found, regions, categories = parse_instances(content, path.name, finder, masks=masks)
    if warn:
        warn_missing(path.name, [image.path for image in found.values()], finder.folders)
    above = {int(item["id"]): str(item.get("supercategory", "")) for item in content["categories"]}
    return CocoAnnotations(found, regions, group_by_image(found, regions), categories, above, storage.hash_file(path))


def load_captions(annotation_file: Path | str, split: str = "", images: Path | str | None = None) -> list[Caption]:
    """Read a COCO captions file; `split` is written into the records.

    Raises:
        DataError: missing or broken file, or captions of images missing from it.
    """
    path = Path(annotation_file)
    content = read_annotations(path, ("images", "annotations"))
    finder = ImageFinder([path.parent.parent, path.parent], None if images is None else Path(images))
    found = _images(content["images"], path.name, finder, None)
    dangling = [item for item in content["annotations"] if item.get("image_id") not in found]
    if dangling:
        raise DataError(
            f"{path.name}: {len(dangling)} of {len(content['annotations'])} captions belong to images missing from it "
            f"(first: caption {dangling[0].get('id')} -> image {dangling[0].get('image_id')})."
        )
    return [Caption(int(c["id"]), found[c["image_id"]], str(c["caption"]), split) for c in content["annotations"]]
