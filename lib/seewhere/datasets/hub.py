"""Hub copies of referring data sets, through the ``datasets`` library: a hub id, or a folder saved from one.

Copies differ in their columns and, worse, in their boxes (xywh in most, xyxy in some, said nowhere): the convention is
an argument, and boxes that do not look like it are refused.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.datasets.dataset import ReferringDataset
from seewhere.datasets.images import ImageFinder
from seewhere.datasets.rows import Picture, choose_columns, dataset_from_rows
from seewhere.records import DataError

if TYPE_CHECKING:
    import datasets


def load_hub(
    source: Path | str,
    split: str,
    name: str | None = None,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    box: str = "xywh",
    images: Path | str | None = None,
    style: str = "",
    revision: str | None = None,
) -> ReferringDataset:
    """Read one split of a hub copy.

    One row per object (``caption``/``sentences``/``answer``/..., ``bbox``, ``image`` or ``file_name``), or one row per
    image with a list of such objects in ``samples``. Pictures inside the table are written once into the cache.

    Args:
        source: hub id ("owner/name"), a folder made by ``save_to_disk``, or a folder of parquet or JSON files.
        split: as the copy names it.
        name: of the result; None takes the last part of `source`.
        config: configuration of the copy, where it has several.
        columns: role -> column name, for copies with names of their own (see ``rows.KNOWN_COLUMNS``).
        box: convention of its boxes: "xywh", "xyxy", "xyxy_unit", ...
        images: folder of the images, for copies that hold file names only.
        style: written into the expressions.
        revision: of the hub copy.

    Raises:
        DataError: unknown split, no text or box column, images nowhere, or boxes in another convention.
    """
    import datasets  # here, because it takes a second or two, and most readers do without it

    table = _open(source, split, config, revision)
    title = name or Path(str(source)).name
    nested = "samples" in table.column_names
    names = [c for c in table.column_names if c != "samples"]
    if nested:
        names += [key for key in table[0]["samples"][0] if key not in names]
    chosen = choose_columns(names, columns, title)
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    fingerprint = hashlib.sha256(f"{source} {config} {revision} {split} {table._fingerprint}".encode()).hexdigest()
    pictures = _Pictures(chosen, storage.cache_home() / "hub" / fingerprint[:16], images, title)
    rows = list(_flat(tqdm(table, desc=title, unit="row", delay=1, leave=False), nested, pictures))
    return dataset_from_rows(
        title, split, Path(str(source)), rows, chosen, lambda row: row["_picture"], fingerprint, box, style=style
    )


def _open(source: Path | str, split: str, config: str | None, revision: str | None) -> datasets.Dataset:
    import datasets

    folder = Path(source)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(source), config, revision=revision)
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise DataError(f"{source}: cannot be read ({error}). Is the id right, and the net there?") from error
    if isinstance(found, datasets.Dataset):
        return found
    if split not in found:
        raise DataError(f"{source}: no split {split!r}; it has {', '.join(found)}.")
    return found[split]


def _flat(table: Any, nested: bool, pictures: _Pictures) -> Iterator[dict[str, Any]]:
    """Yield one row per object, each with its picture."""
    for place, row in enumerate(table):
        picture = pictures.of(place, row)
        for item in row["samples"] if nested else [row]:
            yield {**row, **item, "_picture": picture}


class _Pictures:
    """Finds a row's picture on disk, or puts it there."""

    def __init__(self, columns: Mapping[str, str], cache: Path, images: Path | str | None, title: str) -> None:
        self.columns, self.cache, self.title = columns, cache, title
        self.finder = None if images is None else ImageFinder([], Path(images))
        self.seen: dict[str, Picture] = {}

    def of(self, place: int, row: Mapping[str, Any]) -> Picture:
        """Return the picture of a row; the same bytes are one picture, so that regions of an image stay together."""
        stored = row.get(self.columns.get("image", ""))
        if isinstance(stored, Mapping) and stored.get("bytes"):
            key = hashlib.sha256(stored["bytes"]).hexdigest()
            path = self.cache / f"{key[:24]}{Path(stored.get('path') or '.img').suffix or '.img'}"
            if key not in self.seen and not path.is_file():
                storage.atomic_write_bytes(path, stored["bytes"])
        elif isinstance(stored, Mapping) and stored.get("path"):
            path = Path(stored["path"])
            key = str(path)
        elif self.finder is not None and "file_name" in self.columns:
            path = self.finder.find(str(row[self.columns["file_name"]]))
            key = str(path)
        else:
            raise DataError(f"{self.title}: row {place} holds no picture. Pass images=FOLDER to find it by file name.")
        if key not in self.seen:
            self.seen[key] = Picture(path, *self._size(place, row, path, stored))
        return self.seen[key]

    def _size(self, place: int, row: Mapping[str, Any], path: Path, stored: Any) -> tuple[int, int]:
        content = stored.get("bytes") if isinstance(stored, Mapping) else None
        if content is None and not path.is_file() and "width" in self.columns and "height" in self.columns:
            return int(row[self.columns["width"]]), int(row[self.columns["height"]])
        try:
            with Image.open(io.BytesIO(content) if content else path) as image:
                return image.size
        except OSError as error:
            raise DataError(f"{self.title}: the picture of row {place} ({path}) cannot be read ({error}).") from error
