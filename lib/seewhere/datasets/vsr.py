"""Visual Spatial Reasoning: captions about two things in a picture, each true or false of it.

Liu, Emerson, Collier, *Visual Spatial Reasoning*, TACL 2023. A folder holds ``random/`` and ``zeroshot/`` (in the
second, no concept is in two splits), each with ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``. The world writes its
own statements in the same layout, so one reader serves both.

Format traps: the votes are *strings* that hold lists, ``subj`` and ``obj`` are only in some versions, the sizes of the
images are nowhere, and one relation of the random dev split belongs to none of the paper's categories.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from seewhere import storage
from seewhere.datasets.images import ImageFinder, warn_missing
from seewhere.records import DataError, open_image

PARTITIONS = ("random", "zeroshot", "dense")
"""The published two, and one of the world's alone, for training: many statements about each picture."""
SPLITS = ("train", "dev", "test")
OTHER_NAMES = {"val": "dev", "validation": "dev"}
NEEDED = ("image", "caption", "label", "relation")

RELATIONS: dict[str, frozenset[str]] = {
    "Adjacency": frozenset(
        [
            "adjacent to", "ahead of", "against", "alongside", "at the back of", "at the edge of",
            "at the left side of", "at the right side of", "at the side of", "attached to",
        ]
    ),
    "Directional": frozenset(
        [
            "across", "across from", "along", "around", "away from", "deep down", "down", "down from", "from", "into",
            "off", "past", "through", "to", "toward", "up",
        ]
    ),
    "Orientation": frozenset(["facing", "facing away from", "parallel to", "perpendicular to"]),
    "Projective": frozenset(
        [
            "above", "behind", "below", "beneath", "beside", "in front of", "in the middle of", "left of", "on top of",
            "over", "right of", "under",
        ]
    ),
    "Proximity": frozenset(["by", "close to", "far away from", "far from", "near"]),
    "Topological": frozenset(
        [
            "among", "at", "between", "connected to", "consists of", "contains", "detached from", "has as a part", "in",
            "inside", "on", "out of", "outside", "part of", "surrounding", "touching", "with", "within",
        ]
    ),
    "Unallocated": frozenset(["after", "beyond", "enclosed by", "next to", "opposite to"]),
}  # fmt: skip
"""The paper's seven meta-categories. It lists "among" twice; here it counts as topological, where it stands first."""

UNLISTED = "(unlisted)"
"""Category of a relation that is in none of the seven."""

STATEMENTS: dict[str, dict[str, int]] = {
    "random": {"train": 7680, "dev": 1097, "test": 2195},
    "zeroshot": {"train": 3489, "dev": 340, "test": 1222},
}
"""Published sizes: partition -> split -> number of captions."""

_CATEGORY = {relation: category for category, relations in RELATIONS.items() for relation in relations}


def category_of(relation: str) -> str:
    """Return the meta-category of a relation, `UNLISTED` where the paper names none."""
    return _CATEGORY.get(relation.strip().lower(), UNLISTED)


@dataclass(frozen=True, slots=True)
class Statement:
    """One caption: `label` says whether it is true of the picture at `path`; `image` is the picture's file name.

    `votes` are the numbers of the annotators who called it true and false; `meta` holds the other fields of the line.
    """

    statement_id: int
    image: str
    path: Path
    text: str
    label: bool
    relation: str
    category: str
    split: str
    subject: str = ""
    object: str = ""
    votes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    meta: dict[str, Any] = field(default_factory=dict)

    def open(self) -> Image.Image:
        """Read the picture as RGB; DataError where it is missing or broken."""
        return open_image(self.path)


@dataclass(frozen=True)
class StatementSet:
    """One split: its statements in the file's order, and the SHA-256 of the file."""

    partition: str
    split: str
    root: Path
    statements: list[Statement]
    annotation_hash: str

    def __len__(self) -> int:
        return len(self.statements)

    def __repr__(self) -> str:
        return f"StatementSet({self.partition} {self.split}: {len(self)} statements)"

    def on_disk(self) -> StatementSet:
        """Return the same split with only the statements whose pictures are there."""
        kept = [s for s in self.statements if s.path.is_file()]
        return StatementSet(self.partition, self.split, self.root, kept, self.annotation_hash)

    def majority(self) -> tuple[bool, float]:
        """Return the commoner label and its share: what a model gets that never looks.

        Raises:
            DataError: no statements.
        """
        if not self.statements:
            raise DataError(f"{self!r}: no statements, so no majority.")
        share = sum(s.label for s in self.statements) / len(self)
        return share >= 0.5, max(share, 1 - share)

    def frame(self) -> pd.DataFrame:
        """Return one row per statement; its columns are the fields of `Statement` that analyses group by."""
        columns = ["statement_id", "image", "text", "label", "relation", "category", "split", "subject", "object"]
        return pd.DataFrame([[getattr(s, name) for name in columns] for s in self.statements], columns=columns)


def load_vsr(partition: str, split: str, root: Path | str, images: Path | str | None = None) -> StatementSet:
    """Read one split of VSR, or of the world's statements.

    Args:
        partition: "random" or "zeroshot"; "dense", which the world alone has, with nothing but "train".
        split: "train", "dev" (or "val") or "test"; the world's random partition has "novel" too.
        root: a folder that holds the partitions' folders, at once or under ``vsr``, ``splits`` or ``data/splits``.
        images: folder of the images, if they are not in a usual place at or beside `root`.

    Raises:
        DataError: unknown partition, no such file, or a line that is not in the format; the message says which.
    """
    place = Path(root).expanduser()
    if partition not in PARTITIONS:
        raise DataError(f"VSR has no partition {partition!r}; expected one of {', '.join(PARTITIONS)}.")
    path = _find(place, partition, OTHER_NAMES.get(split, split))
    folder = path.parent
    bases = dict.fromkeys([place, folder, folder.parent, folder.parent.parent, place.parent])
    finder = ImageFinder(bases, None if images is None else Path(images).expanduser())
    statements = list(_statements(path, finder))
    if not statements:
        raise DataError(f"{path}: no lines. Was it cut short on its way here?")
    warn_missing(f"VSR {partition} {split}", list({s.path for s in statements}), finder.folders)
    return StatementSet(partition, split, place, statements, storage.hash_file(path))


def _find(root: Path, partition: str, split: str) -> Path:
    places = [root / part / partition for part in ("", "vsr", "splits", "data/splits")]
    if root.name == partition:
        places.append(root)
    for folder in places:
        if (folder / f"{split}.jsonl").is_file():
            return folder / f"{split}.jsonl"
    present = sorted({p.stem for folder in places for p in folder.glob("*.jsonl")})
    if present:
        raise DataError(f"VSR {partition} has no split {split!r} below {root}; it has {', '.join(present)}.")
    looked = ", ".join(str(folder / f"{split}.jsonl") for folder in places)
    raise DataError(f"VSR {partition} {split}: no such file; looked for {looked}. See data_cards/vsr.md.")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) of a jsonl of statements, checked for the fields that are needed.

    Raises:
        DataError: a line that is not JSON, lacks a field, or whose label is neither 0 nor 1.
    """
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg}). Fetch this file again.") from error
            lacking = [key for key in NEEDED if not isinstance(row, dict) or key not in row]
            if lacking:
                has = sorted(row) if isinstance(row, dict) else type(row).__name__
                raise DataError(f"{path}, line {number}: no {', '.join(lacking)}; it has {has}. Is this VSR's jsonl?")
            if row["label"] not in (0, 1):
                raise DataError(f"{path}, line {number}: label {row['label']!r}; expected 0 (false) or 1 (true).")
            if not str(row["caption"]).strip():
                raise DataError(f"{path}, line {number}: an empty caption.")
            yield number, row


def _statements(path: Path, finder: ImageFinder) -> Iterable[Statement]:
    known = {*NEEDED, "subj", "obj", "vote_true_validator_id", "vote_false_validator_id"}
    places: dict[str, Path] = {}
    for number, row in read_rows(path):
        name = str(row["image"])
        if name not in places:
            places[name] = finder.find(name)
        relation = str(row["relation"]).strip()
        yield Statement(
            statement_id=number - 1,
            image=name,
            path=places[name],
            text=str(row["caption"]),
            label=bool(row["label"]),
            relation=relation,
            category=category_of(relation),
            split=path.stem,
            subject=str(row.get("subj") or ""),
            object=str(row.get("obj") or ""),
            votes=(
                _votes(row.get("vote_true_validator_id"), path, number),
                _votes(row.get("vote_false_validator_id"), path, number),
            ),
            meta={key: value for key, value in row.items() if key not in known},
        )


def _votes(value: Any, path: Path, number: int) -> tuple[int, ...]:
    """Return the voters of a cell: a list, a string that holds one, or nothing."""
    if value is None or value == "":
        return ()
    try:
        found = json.loads(value) if isinstance(value, str) else value
        return tuple(int(voter) for voter in found)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}, line {number}: votes {value!r}; expected a list of numbers.") from error


def counts(statements: Iterable[Statement]) -> Counter[str]:
    """Return how many statements each meta-category has."""
    return Counter(s.category for s in statements)
