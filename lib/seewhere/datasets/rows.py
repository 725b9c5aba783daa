"""Flat tables of expressions (parquet, JSON lists, hub copies): one row per object, its sentences in one of its
columns.

Nobody agrees on column names, so a small table of known ones is tried, and ``columns=`` overrides it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seewhere.boxes import to_xyxy
from seewhere.datasets.coco import box_error, convention_problem
from seewhere.datasets.dataset import ReferringDataset
from seewhere.records import DataError, Expression, ImageRecord, Region

KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("caption", "captions", "expression", "expressions", "sentences", "sentence", "raw", "answer", "text"),
    "box": ("bbox", "box", "2d_box"),
    "image": ("image",),
    "file_name": ("file_name", "image_path", "image_id"),
    "label": ("category", "label", "category_name", "obj_name"),
    "width": ("width", "image_width"),
    "height": ("height", "image_height"),
}
"""What a row may call its columns, best first."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Where an image lies, and its size in pixels."""

    path: Path
    width: int
    height: int


def choose_columns(present: Iterable[str], given: Mapping[str, str] | None, source: str) -> dict[str, str]:
    """Return role -> column name, for the roles of ``KNOWN_COLUMNS`` that the table has.

    Raises:
        DataError: no column for the text or the box, or `given` names an unknown role or column.
    """
    names = list(present)
    found = {role: next((n for n in known if n in names), "") for role, known in KNOWN_COLUMNS.items()}
    for role, name in (given or {}).items():
        if role not in KNOWN_COLUMNS or name not in names:
            raise DataError(
                f"{source}: columns={{{role!r}: {name!r}}} fits nothing; roles: {', '.join(KNOWN_COLUMNS)}; "
                f"columns: {', '.join(names)}."
            )
        found[role] = name
    for role in ("text", "box"):
        if not found[role]:
            raise DataError(
                f"{source}: none of its columns ({', '.join(names)}) is known to hold the {role}. "
                f"Pass columns={{{role!r}: NAME}}."
            )
    return {role: name for role, name in found.items() if name}


def sentences_of(value: Any) -> list[str]:
    """Return the sentences of a cell: a text, a list of texts, or a list of REFER's sentence records."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [str(value.get("raw", value.get("sent", "")))]
    if isinstance(value, Iterable):
        return [text for item in value for text in sentences_of(item)]
    return []


def dataset_from_rows(
    name: str,
    split: str,
    root: Path,
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str],
    picture: Callable[[Mapping[str, Any]], Picture],
    annotation_hash: str,
    box_convention: str = "xywh",
    default_label: str = "object",
    style: str = "",
    keep_columns: Iterable[str] = (),
) -> ReferringDataset:
    """Build a data set from rows. Rows with the same image and box are one region; images are numbered as they come.

    Args:
        name: of the data set.
        split: of the rows.
        root: where they come from.
        rows: the table.
        columns: role -> column name (``choose_columns``).
        picture: the image of a row.
        annotation_hash: of the files.
        box_convention: how the table writes boxes (see ``seewhere.boxes``).
        default_label: label where the table has none.
        style: written into the expressions.
        keep_columns: columns kept in ``Expression.meta``.

    Raises:
        DataError: a row without text or box, or boxes in another convention than `box_convention`.
    """
    table = list(rows)
    pictures = [picture(row) for row in table]
    written = _boxes(table, columns["box"], name)
    sizes = np.array([(p.width, p.height) for p in pictures], dtype=np.float64).reshape(-1, 2)
    problem = convention_problem(written, sizes) if box_convention == "xywh" else None
    if problem:
        raise box_error(f"{name} {split}", f"{problem}; if they are, pass box='xyxy'")
    images: dict[Path, ImageRecord] = {}
    regions: dict[tuple[int, tuple[float, ...]], Region] = {}
    categories: dict[str, int] = {}
    expressions: list[Expression] = []
    for row, found, numbers in zip(table, pictures, written, strict=True):
        image = images.setdefault(found.path, ImageRecord(len(images), found.path, found.width, found.height))
        x1, y1, x2, y2 = to_xyxy(numbers, box_convention, image.size)[0].tolist()
        label = str(row[columns["label"]]) if "label" in columns else default_label
        category = categories.setdefault(label, len(categories) + 1)
        fresh = Region(len(regions), image.image_id, (x1, y1, x2, y2), label, category)
        region = regions.setdefault((image.image_id, fresh.box), fresh)
        texts = [text for text in sentences_of(row[columns["text"]]) if text.strip()]
        if not texts:
            raise DataError(f"{name} {split}: row {len(expressions)} has no text in {columns['text']!r}.")
        meta = {key: row[key] for key in keep_columns if key in row}
        for text in texts:
            expressions.append(Expression(len(expressions), image, region, text, split, style, meta))
    return ReferringDataset(
        name,
        split,
        root,
        {image.image_id: image for image in images.values()},
        {region.region_id: region for region in regions.values()},
        expressions,
        {number: label for label, number in categories.items()},
        annotation_hash,
    )


def _boxes(table: list[Mapping[str, Any]], column: str, source: str) -> np.ndarray:
    boxes = []
    for place, row in enumerate(table):
        try:
            box = np.asarray(row[column], dtype=np.float64)
        except (TypeError, ValueError):
            box = np.zeros(0)
        if box.shape != (4,) or not np.isfinite(box).all():
            raise DataError(f"{source}: row {place} has the box {row[column]!r}; expected four numbers.")
        boxes.append(box)
    return np.array(boxes).reshape(-1, 4)
