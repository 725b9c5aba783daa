"""The REFER layout: RefCOCO, RefCOCO+, RefCOCOg, and the world, which is written in it.

A folder holds ``instances.json`` (COCO) and ``refs(<split by>).p`` (a pickle, read as plain data only): a list of
references, each of one annotation and with one or more sentences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seewhere import storage
from seewhere.datasets.coco import parse_instances, read_annotations
from seewhere.datasets.dataset import ReferringDataset
from seewhere.datasets.images import ImageFinder, warn_missing
from seewhere.datasets.plain_pickle import load_plain_pickle
from seewhere.records import DataError, Expression, ImageRecord, Region

HALVES = ("testA", "testB")  # people, and everything else: the test split of RefCOCO and RefCOCO+
_NEEDED = ("ref_id", "ann_id", "image_id", "split", "sentences")
_KNOWN = {*_NEEDED, "category_id", "file_name", "sent_ids", "sent_id", "sent", "raw", "tokens"}


@dataclass(frozen=True, slots=True)
class Layout:
    """One data set in the REFER layout: its folder, the orders in which its split files are preferred, its style."""

    folder: str
    split_by: tuple[str, ...]
    style: str
    is_world: bool = False


LAYOUTS: dict[str, Layout] = {
    "refcoco": Layout("refcoco", ("unc", "google"), "short"),
    "refcoco+": Layout("refcoco+", ("unc", "google"), "plus"),
    "refcocog": Layout("refcocog", ("umd", "google"), "relational"),
    "world": Layout("refcoco", ("world",), "short", True),
    "world+": Layout("refcoco+", ("world",), "plus", True),
    "worldg": Layout("refcocog", ("world",), "relational", True),
    "worldlong": Layout("refcoco_long", ("world",), "long", True),
}


def find_folder(name: str, root: Path) -> Path:
    """Return the folder of `name` below `root` that holds ``instances.json``.

    Raises:
        DataError: there is none; the message lists the places.
    """
    layout = LAYOUTS[name]
    folder = layout.folder
    below = [root / "refer" / folder] if layout.is_world else [root / folder, root / "refcoco" / folder]
    places = [*below, root / "refer" / folder, root] if not layout.is_world else [*below, root]
    for place in places:
        if (place / "instances.json").is_file():
            return place
    looked = ", ".join(str(place / "instances.json") for place in places)
    hint = "Build it with `seewhere world build`." if layout.is_world else "See data_cards/refcoco.md for the layout."
    raise DataError(f"{name}: no instances.json; looked for {looked}. {hint}")


def find_references(name: str, folder: Path, split_by: str | None) -> Path:
    """Return the path of ``refs(<split_by>).p``; None takes the usual one (unc, umd, ..., then google).

    Raises:
        DataError: there is none; the message lists those that are there.
    """
    wanted = LAYOUTS[name].split_by if split_by is None else (split_by,)
    for kind in wanted:
        path = folder / f"refs({kind}).p"
        if path.is_file():
            return path
    present = sorted(path.name for path in folder.glob("refs(*).p")) or ["none"]
    expected = " or ".join(f"refs({kind}).p" for kind in wanted)
    raise DataError(f"{folder}: expected {expected}; found {', '.join(present)}. Pass split_by=... to choose another.")


def read_references(path: Path) -> list[dict[str, Any]]:
    """Read ``refs(*).p`` and check that it is a list of references.

    Raises:
        DataError: a hostile or broken pickle, or other contents.
    """
    references = load_plain_pickle(path)
    if not isinstance(references, list) or not all(isinstance(item, dict) for item in references):
        raise DataError(f"{path.name}: expected a list of references, found {type(references).__name__}.")
    for place, item in enumerate(references):
        lacking = [key for key in _NEEDED if key not in item]
        if lacking:
            raise DataError(f"{path.name}: reference number {place} lacks {', '.join(lacking)}; it has {sorted(item)}.")
    return references


def dangling(references: Sequence[Mapping[str, Any]], regions: Mapping[int, Any]) -> list[Mapping[str, Any]]:
    """Return the references whose annotation is not among `regions`."""
    return [item for item in references if item["ann_id"] not in regions]


def dangling_message(source: str, lost: Sequence[Mapping[str, Any]], total: int) -> str:
    """Say how many references dangle, and which is the first."""
    return (
        f"{source}: {len(lost)} of {total} refs point at annotations missing from instances.json "
        f"(first: ref {lost[0]['ref_id']} -> ann {lost[0]['ann_id']}). Is this another version's file?"
    )


def choose_split(references: Sequence[Mapping[str, Any]], split: str, source: str) -> list[Mapping[str, Any]]:
    """Return the references of `split`; "all" takes all, "testA+testB" both, as does "test" where there is no other.

    Raises:
        DataError: unknown split; the message lists those in the file.
    """
    if split == "all":
        return list(references)
    known = sorted({str(item["split"]) for item in references})
    halves = split == "test" and "test" not in known and set(HALVES) <= set(known)
    wanted = list(HALVES) if halves else split.split("+")
    unknown = [part for part in wanted if part not in known]
    if unknown:
        raise DataError(f"{source}: no split {unknown[0]!r}; it has {', '.join(known) or 'none'} (or 'all').")
    return [item for item in references if item["split"] in wanted]


def load_refer(
    name: str,
    split: str,
    root: Path,
    split_by: str | None = None,
    images: Path | None = None,
    masks: bool = False,
) -> ReferringDataset:
    """Read one split of a data set in the REFER layout; arguments and errors as ``seewhere.datasets.load``."""
    folder = find_folder(name, root)
    path = find_references(name, folder, split_by)
    references = choose_split(read_references(path), split, path.name)
    content = read_annotations(folder / "instances.json", ("images", "annotations", "categories"))
    finder = ImageFinder(image_bases(root, folder), images)
    keep = {int(item["image_id"]) for item in references}
    found, regions, categories = parse_instances(content, f"{folder.name}/instances.json", finder, keep, masks)
    lost = dangling(references, regions)
    if lost:
        raise DataError(dangling_message(path.name, lost, len(references)))
    warn_missing(f"{name} {split}", [image.path for image in found.values()], finder.folders)
    expressions = list(_expressions(references, found, regions, LAYOUTS[name].style, path.name))
    return ReferringDataset(
        name, split, root, found, regions, expressions, categories, combined_hash([folder / "instances.json", path])
    )


def image_bases(root: Path, folder: Path) -> list[Path]:
    """Return the folders below which images are looked for: those around the annotations, nearest first."""
    return list(dict.fromkeys([root, folder, folder.parent, root.parent, folder.parent.parent]))


def _expressions(
    references: Iterable[Mapping[str, Any]],
    images: Mapping[int, ImageRecord],
    regions: Mapping[int, Region],
    style: str,
    source: str,
) -> Iterable[Expression]:
    for item in references:
        region = regions[item["ann_id"]]
        if region.image_id != item["image_id"]:
            raise DataError(
                f"{source}: ref {item['ref_id']} is of image {item['image_id']}, its annotation {region.region_id} of "
                f"image {region.image_id}. Is instances.json another version's file?"
            )
        extra = {key: value for key, value in item.items() if key not in _KNOWN}
        for sentence in item["sentences"]:
            text = sentence.get("raw", sentence.get("sent"))
            if not isinstance(text, str) or "sent_id" not in sentence:
                raise DataError(f"{source}: ref {item['ref_id']} has a sentence without text or id: {sentence!r}.")
            own = {key: value for key, value in sentence.items() if key not in _KNOWN}
            yield Expression(
                expression_id=int(sentence["sent_id"]),
                image=images[region.image_id],
                region=region,
                text=text,
                split=str(item["split"]),
                style=style,
                meta={"ref_id": item["ref_id"], **extra, **own},
            )


def combined_hash(paths: Sequence[Path]) -> str:
    """Return one SHA-256 over several files, in their order."""
    return hashlib.sha256("".join(storage.hash_file(path) for path in paths).encode()).hexdigest()
