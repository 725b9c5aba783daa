"""The three tasks in one form: a picture, a text, and a box or a yes/no to be read from the tokens.

``rec`` (referring boxes; explicit), ``vsr`` (spatial statements) and ``rcm`` (region cell matching; both implicit). A
target box is (cx, cy, w, h) in shares of the picture's sides, which is the same before and after a squash; IoU is the
same in shares and in pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seewhere import storage
from seewhere.boxes import CELLS, cell_of, from_xyxy
from seewhere.datasets import ReferringDataset, StatementSet, load, load_vsr
from seewhere.datasets.coco import read_annotations
from seewhere.datasets.refer import LAYOUTS, find_folder
from seewhere.probing import rcm as region_cells
from seewhere.records import DataError, Expression
from seewhere.world.export import build, dense_statements
from seewhere.world.statements_export import DENSE

Kind = Literal["box", "binary"]
TASKS: dict[str, Kind] = {"rec": "box", "vsr": "binary", "rcm": "binary"}
SPLITS = ("train", "validation", "test")


class Picture(Protocol):
    """A picture on disk: ``ImageRecord`` and VSR's ``Statement`` are such."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    def open(self) -> Image.Image:
        """Read it as RGB."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question to a probe. `target` is (cx, cy, w, h) in 0..1, or (0.0,) or (1.0,); `meta` holds group columns."""

    example_id: int
    picture: Picture
    image_id: str
    text: str
    target: tuple[float, ...]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task with its three splits. `source` names the data set.

    `larger` names the preset whose build of the world unfrozen arms learn from, where that is another one. `start`
    names the task whose unfrozen arm of the same seed a training begins with; "" for the resampler as it is.
    """

    name: str
    kind: Kind
    source: str
    splits: dict[str, list[Example]]
    larger: str = ""
    start: str = ""

    @property
    def outputs(self) -> int:
        """Numbers that a probe puts out: 4 for a box, 1 for yes/no."""
        return 4 if self.kind == "box" else 1

    def targets(self, split: str) -> NDArray[np.float32]:
        """Return the targets of a split, (N, outputs)."""
        return np.array([e.target for e in self.splits[split]], dtype=np.float32).reshape(-1, self.outputs)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(examples)}" for name, examples in self.splits.items())
        return f"Task({self.name} on {self.source}: {sizes})"


# -- making them -------------------------------------------------------------------------------------------------------


def load_task(
    name: str,
    root: Path | str,
    data: str,
    sizes: Mapping[str, int | None] | None = None,
    seed: int = 0,
    images: Path | str | None = None,
) -> Task:
    """Read a task from a data set on disk, the world's or a real one.

    Args:
        name: "rec", "vsr" or "rcm".
        root: folder of the data set.
        data: for rec and rcm a name of `seewhere.datasets.load` ("worldg", "refcocog"); for vsr a partition.
        sizes: split -> most examples, drawn by the seed; missing or None: all.
        seed: of the draws.
        images: folder of the images, if they are not in a usual place.

    Raises:
        DataError: unknown task, or what the readers say.
    """
    if name not in TASKS:
        raise DataError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}.")
    wanted = dict.fromkeys(SPLITS) | dict(sizes or {})
    supers = _supers(name, data, root)
    splits = {split: _examples(name, root, data, split, wanted[split], seed, images, supers) for split in SPLITS}
    return Task(name, TASKS[name], f"vsr-{data}" if name == "vsr" else data, splits)


def _supers(name: str, data: str, root: Path | str) -> dict[str, str]:
    """Super-categories where a task has them; read once for all splits, for real files have hundreds of megabytes."""
    return {} if name == "vsr" else super_categories(data, root)


def _examples(
    name: str,
    root: Path | str,
    data: str,
    split: str,
    size: int | None,
    seed: int,
    images: Path | str | None,
    supers: Mapping[str, str],
) -> list[Example]:
    """Return the examples of one split, see `load_task`."""
    file = {"validation": "val"}.get(split, split)
    if name == "vsr":
        found = _draw(statement_examples(load_vsr(data, file, root, images).on_disk()), size, seed)
    else:
        expressions = on_disk(load(data, file, root, images=images)).expressions
        if name == "rec":
            found = _draw(box_examples(expressions, supers), size, seed)
        else:
            found = cell_examples(expressions, supers, size, seed)
    if not found:
        raise DataError(f"{name} {data}: the split {split} has no example whose picture is on disk below {root}.")
    return found


def with_train_of(
    task: Task,
    root: Path | str,
    data: str,
    size: int | None = None,
    seed: int = 0,
    images: Path | str | None = None,
) -> Task:
    """Return the task with the training examples of another, larger build of its data; the other splits stay.

    Args:
        task: as `load_task` gave it.
        root, data, size, seed, images: as for `load_task`; of the larger build. Scenes of the world never change their
            split, whatever the size of the build, so nothing that is tested on is trained on.
    """
    supers = _supers(task.name, data, root)
    examples = _examples(task.name, root, data, "train", size, seed, images, supers)
    return replace(task, splits={**task.splits, "train": examples})


def with_larger_train(task: Task, preset: Mapping[str, Any], data: str, progress: bool = True) -> Task:
    """Return the task with all that unfrozen arms read of the build that it names as `larger`, which is made if needed.

    Args:
        task: of the world.
        preset: of notebook 01: ``unfrozen_examples`` bounds the examples of rec and rcm (0: all). Of statements there
            are ``unfrozen_statements`` a picture, instead of the few of a benchmark's size (0: those).
        data: as for `load_task`.
        progress: show bars.
    """
    root, size = build(None, task.larger, progress=progress), preset["unfrozen_examples"] or None
    if task.name != "vsr" or not preset["unfrozen_statements"]:
        return with_train_of(task, root, data, size)
    dense = dense_statements(task.larger, preset["unfrozen_statements"], progress=progress)
    return with_train_of(task, dense, DENSE, images=root / "images")


def with_fewer(task: Task, size: int, seed: int = 0, split: str = "train") -> Task:
    """Return the task with at most so many examples of one split, drawn by a seed; the other splits stay."""
    return replace(task, splits={**task.splits, split: _draw(task.splits[split], size, seed)})


def on_disk(dataset: ReferringDataset) -> ReferringDataset:
    """Return the data set without the expressions whose pictures are missing."""
    missing = {image.image_id for image in dataset.missing_images()}
    return replace(dataset, expressions=[e for e in dataset.expressions if e.image.image_id not in missing])


def _draw(examples: list[Example], size: int | None, seed: int) -> list[Example]:
    if size is None or size >= len(examples):
        return examples
    return sorted(Random(seed).sample(examples, size), key=lambda e: e.example_id)


def box_examples(expressions: Iterable[Expression], supers: Mapping[str, str] | None = None) -> list[Example]:
    """Return referring expressions as questions for a box."""
    return [
        Example(e.expression_id, e.image, str(e.image.image_id), e.text, unit_box(e), region_columns(e, supers or {}))
        for e in expressions
    ]


def cell_examples(
    expressions: Iterable[Expression], supers: Mapping[str, str] | None = None, size: int | None = None, seed: int = 0
) -> list[Example]:
    """Return region cell matching built from expressions; `size` bounds the number of items, positive and negative."""
    per_cell = None if size is None else max(size // (2 * len(CELLS)), 1)
    examples = []
    for item in region_cells.build(expressions, seed, per_cell, skip_empty=True):
        columns = region_columns(item.expression, supers or {})
        meta = {**columns, "claimed": CELLS[item.claimed], "expression_id": item.expression.expression_id}
        image = item.expression.image
        examples.append(Example(item.item_id, image, str(image.image_id), item.text, (float(item.label),), meta))
    return examples


def statement_examples(statements: StatementSet) -> list[Example]:
    """Return spatial statements as yes/no questions."""
    return [
        Example(
            s.statement_id,
            s,
            s.image,
            s.text,
            (float(s.label),),
            {"relation": s.relation, "category": s.category, "words": len(s.text.split())},
        )
        for s in statements.statements
    ]


def unit_box(expression: Expression) -> tuple[float, ...]:
    """Return an expression's box as (cx, cy, w, h) in 0..1 of the picture's sides."""
    return tuple(from_xyxy(expression.region.box, "cxcywh_unit", expression.image.size)[0].tolist())


def region_columns(expression: Expression, supers: Mapping[str, str]) -> dict[str, Any]:
    """Return what analyses group by: label, super_category, cell, area (share of the picture), distance, words.

    `distance` is that of the box's centre from the picture's centre, as a share of the half diagonal, both sides of
    the picture counting as one.
    """
    cx, cy, width, height = unit_box(expression)
    return {
        "label": expression.region.label,
        "super_category": supers.get(expression.region.label, ""),
        "cell": CELLS[cell_of(expression.region.box, expression.image.size)],
        "area": width * height,
        "distance": math.hypot(cx - 0.5, cy - 0.5) / math.hypot(0.5, 0.5),
        "words": len(expression.text.split()),
    }


def super_categories(data: str, root: Path | str) -> dict[str, str]:
    """Return category -> super-category, as ``instances.json`` of a REFER data set tells; empty where it does not.

    Data sets of another layout tell none. An unknown name is for their reader to refuse.
    """
    if data not in LAYOUTS:
        return {}
    path = find_folder(data, Path(root).expanduser()) / "instances.json"
    content = read_annotations(path, ("categories",))
    return {str(c["name"]): str(c["supercategory"]) for c in content["categories"] if c.get("supercategory")}


# -- what a cache must know --------------------------------------------------------------------------------------------


def data_hash(examples: Sequence[Example]) -> str:
    """Return a SHA-256 over the texts and the pictures' contents, in order: other data, another hash."""
    digest = hashlib.sha256()
    for name, example in zip(picture_hashes(examples), examples, strict=True):
        digest.update(f"{name}\0{example.text}\0".encode())
    return digest.hexdigest()


def examples_hash(examples: Sequence[Example]) -> str:
    """Return a SHA-256 over pictures' names, texts and targets, in order: what a trained arm says it has seen.

    The pictures' bytes are left out, unlike in `data_hash`: a shipped arm must know its examples again where another
    version of the PNG writer has packed the same pixels otherwise.
    """
    digest = hashlib.sha256()
    for example in examples:
        target = " ".join(f"{value:.6f}" for value in example.target)
        digest.update(f"{example.image_id}\0{example.text}\0{target}\0".encode())
    return digest.hexdigest()


def picture_hashes(examples: Sequence[Example]) -> list[str]:
    """Return the SHA-256 of each example's picture file; a file that has not changed is read once per process."""
    return [
        _file_hash(path, path.stat().st_mtime_ns, path.stat().st_size) for path in (e.picture.path for e in examples)
    ]


@lru_cache(maxsize=1_000_000)
def _file_hash(path: Path, changed: int, size: int) -> str:
    return storage.hash_file(path)
