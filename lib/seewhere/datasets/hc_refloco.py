"""HC-RefLoCo: very long expressions about people, in images from COCO, Objects365, OpenImages and LAION.

Published as parquet (``*val*.parquet``, ``*test*.parquet``) or as one list in ``hc_refloco.json`` (``"split"`` in every
row), with ``images.tar.gz`` to be unpacked into ``images/``. A row: ``id, file_name, width, height, bbox`` (xywh in
pixels), ``caption, labels`` (marked-up parts of the caption, each with a subject category), ``source_dataset``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from seewhere import storage
from seewhere.datasets.dataset import ReferringDataset
from seewhere.datasets.images import ImageFinder, warn_missing
from seewhere.datasets.refer import combined_hash
from seewhere.datasets.rows import Picture, choose_columns, dataset_from_rows
from seewhere.records import DataError

_FOLDERS = ("", "HC-RefLoCo", "HC_RefLoCo", "hc-refloco", "hc_refloco", "data")


def find_tables(split: str, root: Path) -> list[Path]:
    """Return the annotation files of a split: its parquet files, its own JSON file, or the JSON file of all splits.

    Raises:
        DataError: there is none.
    """
    folders = [root / name for name in _FOLDERS] + [root / name / "data" for name in _FOLDERS[1:-1]]
    for folder in folders:
        parquet = sorted(path for path in folder.glob("*.parquet") if split in path.stem.replace("_", "-").split("-"))
        if parquet:
            return parquet
        for name in (f"hc_refloco_{split}.json", f"{split}.json", "hc_refloco.json"):
            if (folder / name).is_file():
                return [folder / name]
    raise DataError(
        f"{root}: no HC-RefLoCo annotations for {split!r}: expected *{split}*.parquet, hc_refloco_{split}.json or "
        "hc_refloco.json. See data_cards/hc_refloco.md."
    )


def read_rows(paths: list[Path], split: str) -> list[Mapping[str, Any]]:
    """Read the rows of a split.

    Raises:
        DataError: a broken file, other contents, or no row of this split.
    """
    rows: list[Mapping[str, Any]] = []
    for path in paths:
        try:
            content = pd.read_parquet(path).to_dict("records") if path.suffix == ".parquet" else storage.read_json(path)
        except (ValueError, OSError) as error:
            raise DataError(f"{path.name}: cannot be read ({error}). Fetch it again.") from error
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise DataError(f"{path.name}: expected a list of rows.")
        rows += content
    known = sorted({str(row["split"]) for row in rows if "split" in row})
    if known and split != "all":
        rows = [row for row in rows if row.get("split") == split]
    if not rows:
        raise DataError(
            f"{paths[0].name}: no row of the split {split!r}; it has {', '.join(known) or 'no rows at all'}."
        )
    return rows


def load_hc_refloco(split: str, root: Path, images: Path | None = None) -> ReferringDataset:
    """Read one split ("val", "test"). The meta of an expression has its `id`, `labels` and `source_dataset`.

    Raises:
        DataError: missing or broken files, boxes in another convention.
    """
    paths = find_tables(split, root)
    rows = read_rows(paths, split)
    finder = ImageFinder([root, paths[0].parent, paths[0].parent.parent], images, coco=False)
    columns = choose_columns(rows[0], None, paths[0].name)
    for key in ("file_name", "width", "height"):
        if any(key not in row for row in rows):
            raise DataError(f"{paths[0].name}: rows without {key!r}; the first has {', '.join(rows[0])}.")

    def picture(row: Mapping[str, Any]) -> Picture:
        return Picture(finder.find(str(row["file_name"])), int(row["width"]), int(row["height"]))

    columns.pop("label", None)  # every region is a person
    dataset = dataset_from_rows(
        "hc-refloco",
        split,
        root,
        rows,
        columns,
        picture,
        combined_hash(paths),
        default_label="person",
        style="long",
        keep_columns=("id", "labels", "source_dataset"),
    )
    warn_missing(f"hc-refloco {split}", [image.path for image in dataset.images.values()], finder.folders)
    return dataset
