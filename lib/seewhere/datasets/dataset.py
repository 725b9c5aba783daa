"""What every reader returns: images, their regions, and the expressions that refer to some of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from seewhere.boxes import CELLS, cell_of
from seewhere.records import Expression, ImageRecord, Region


@dataclass(frozen=True)
class ReferringDataset:
    """One split of a data set of referring expressions. Boxes are xyxy, pixels of the original image.

    Attributes:
        name: the name it was asked for by, such as "refcocog".
        split: such as "testA".
        root: the folder it was read from.
        images: image id -> record, for the images of this split's expressions.
        regions: region id -> record: *all* annotated objects of those images, referred to or not.
        by_image: image id -> its regions, in the order of the annotation file (an empty list where there are none).
        expressions: one per sentence, never merged by image.
        categories: category id -> name.
        annotation_hash: SHA-256 over the annotation files, so that numbers can name the version they were made with.
    """

    name: str
    split: str
    root: Path
    images: dict[int, ImageRecord]
    regions: dict[int, Region]
    expressions: list[Expression]
    categories: dict[int, str]
    annotation_hash: str
    by_image: dict[int, list[Region]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.by_image:
            self.by_image.update(group_by_image(self.images, self.regions))

    def __len__(self) -> int:
        return len(self.expressions)

    def __repr__(self) -> str:
        return (
            f"ReferringDataset({self.name}, {self.split}: {len(self.expressions)} expressions, "
            f"{len(self.regions)} regions, {len(self.images)} images)"
        )

    def missing_images(self) -> list[ImageRecord]:
        """Return the images that are not on disk."""
        return [image for image in self.images.values() if not image.path.is_file()]

    def frame(self) -> pd.DataFrame:
        """Return one row per expression, with the columns that analyses group by.

        Columns: expression_id, image_id, region_id, text, split, style, label, category_id, x1, y1, x2, y2 (pixels),
        width, height (of the image), words, regions (in the image), same_label (regions of the target's category,
        itself included), area (share of the image), cell (name of the 3 x 3 cell of the target's centre).
        """
        labels = {key: Counter(region.category_id for region in found) for key, found in self.by_image.items()}
        rows = []
        for item in self.expressions:
            image, region = item.image, item.region
            x1, y1, x2, y2 = region.box
            rows.append(
                {
                    "expression_id": item.expression_id,
                    "image_id": image.image_id,
                    "region_id": region.region_id,
                    "text": item.text,
                    "split": item.split,
                    "style": item.style,
                    "label": region.label,
                    "category_id": region.category_id,
                    "x1": x1,
                    "y1": y1,
                    "x2": x2,
                    "y2": y2,
                    "width": image.width,
                    "height": image.height,
                    "words": len(item.text.split()),
                    "regions": len(self.by_image[image.image_id]),
                    "same_label": labels[image.image_id][region.category_id],
                    "area": (x2 - x1) * (y2 - y1) / (image.width * image.height),
                    "cell": CELLS[cell_of(region.box, image.size)],
                }
            )
        return pd.DataFrame(rows)


def group_by_image(images: dict[int, ImageRecord], regions: dict[int, Region]) -> dict[int, list[Region]]:
    """Return image id -> its regions, in their order; an empty list for an image without any."""
    found: dict[int, list[Region]] = {image_id: [] for image_id in images}
    for region in regions.values():
        found.setdefault(region.image_id, []).append(region)
    return found
