"""Where a data set's pictures lie: every download of COCO puts them somewhere else, under one of a few names."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

_COCO_SPLITS = ("train2014", "train2017", "val2014", "val2017")
_PARENTS = ("", "images", "coco", "coco/images", "images/mscoco/images", "images/mscoco", "coco128/images")
PLACES: tuple[str, ...] = ("images", "imgs", *(f"{parent}/{split}" for split in _COCO_SPLITS for parent in _PARENTS))
"""Folders that are looked into, below each base folder."""


class ImageFinder:
    """Finds image files by name or COCO id in the usual places."""

    def __init__(self, bases: Iterable[Path], images: Path | None = None, coco: bool = True) -> None:
        """Look below `bases`, or, when it is given, into the folder `images` only; `coco`: in COCO's folders too."""
        if images is not None:
            self.folders = [images, *(images / split for split in _COCO_SPLITS if (images / split).is_dir())]
        else:
            names = PLACES if coco else PLACES[:2]
            places = dict.fromkeys(base / place.lstrip("/") for base in bases for place in names)
            self.folders = [place for place in places if place.is_dir()] or [next(iter(places))]
        self._last = (self.folders[0], 0)

    def find(self, file_name: str, image_id: int | None = None) -> Path:
        """Return the path of an image; where it is nowhere, the path where it would be first looked for."""
        names = [file_name]
        if "/" in file_name:
            names.append(Path(file_name).name)
        if image_id is not None:
            names += [f"COCO_train2014_{image_id:012d}.jpg", f"{image_id:012d}.jpg"]
        folder, kind = self._last
        if kind < len(names) and (folder / names[kind]).is_file():
            return folder / names[kind]
        for folder in self.folders:
            for kind, name in enumerate(names):
                if (folder / name).is_file():
                    self._last = (folder, kind)
                    return folder / name
        return self.folders[0] / file_name


def warn_missing(source: str, paths: Sequence[Path], folders: Sequence[Path]) -> None:
    """Warn, once and with the counts, when images are not on disk; the annotations are of use without them."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        looked = ", ".join(str(folder) for folder in folders[:4])
        warnings.warn(
            f"{source}: {len(missing)} of {len(paths)} images are not on disk (first: {missing[0].name}; looked in "
            f"{looked}). Pass images=FOLDER if they are elsewhere; opening a missing one raises an error.",
            stacklevel=3,
        )
