"""``load``: the one call through which notebooks and experiments get their expressions."""

from __future__ import annotations

from pathlib import Path

from seewhere.datasets.dataset import ReferringDataset
from seewhere.datasets.hc_refloco import load_hc_refloco
from seewhere.datasets.refer import LAYOUTS, load_refer
from seewhere.datasets.talk2car import load_talk2car
from seewhere.records import DataError

NAMES: tuple[str, ...] = (*LAYOUTS, "talk2car", "hc-refloco")
"""Names that ``load`` knows."""


def load(
    name: str,
    split: str,
    root: Path | str,
    split_by: str | None = None,
    images: Path | str | None = None,
    masks: bool = False,
) -> ReferringDataset:
    """Read one split of a data set of referring expressions.

    Args:
        name: one of ``NAMES``: the real ones ("refcoco", "refcoco+", "refcocog", "talk2car", "hc-refloco"), or the
            world's four styles ("world", "world+", "worldg", "worldlong").
        split: as the data set names it ("train", "val", "testA", ...). REFER's also take "all" and "testA+testB",
            and "test" for both where there is no other.
        root: folder of the data set; ``data_cards`` says what is looked for in it.
        split_by: which ``refs(<split_by>).p`` of a REFER folder; None takes unc (RefCOCO, RefCOCO+), umd (RefCOCOg).
        images: folder of the images, if they are not in a usual place at or beside `root`.
        masks: also turn polygons into run-length codes (REFER only; the world's codes are there anyway).

    Returns:
        The split, with boxes in pixels of the original image, xyxy. Missing images are warned of, not fatal.

    Raises:
        DataError: unknown name or split, missing, broken or hostile file, dangling ids, boxes in another convention.
    """
    if name not in NAMES:
        raise DataError(f"Unknown data set {name!r}; known ones: {', '.join(NAMES)}.")
    place = Path(root).expanduser()
    if not place.is_dir():
        raise DataError(f"{place}: no such folder to read {name} from.")
    pictures = None if images is None else Path(images).expanduser()
    if pictures is not None and not pictures.is_dir():
        raise DataError(f"{pictures}: no such folder of images.")
    if name in LAYOUTS:
        return load_refer(name, split, place, split_by, pictures, masks)
    if split_by is not None:
        raise DataError(
            f"{name} comes in one partition only; split_by={split_by!r} is for RefCOCO, RefCOCO+, RefCOCOg."
        )
    return (load_talk2car if name == "talk2car" else load_hc_refloco)(split, place, pictures)
