"""Some references as the four arms answered them, to look at: pictures that ship where twelve models do not.

A folder ``cases`` holds the pictures, ``index.json`` (phrases, true boxes and masks, the boxes that the arms found) and
``answers.npz`` (the probability of every cell that was asked, in steps of 1/254). Half of the references stand at fixed
places of the draw and are not chosen for looks; the other half are the best, the middle and the worst of one arm.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pycocotools import mask as run_length

from seewhere import metrics, storage
from seewhere.pixels import segmentation
from seewhere.pixels.segmentation import Reference, Segmentation, Segmenter
from seewhere.records import Expression, ImageRecord, Region
from seewhere.show.regions import decode_mask

FOLDER, INDEX, ANSWERS = "cases", "index.json", "answers.npz"
SHARES, EACH = (0.25, 0.75), 2
"""Where the references not chosen stand among those of each style, and cases of each kind (best, middle, worst)."""
STEPS, UNASKED = 254, 255


@dataclass(frozen=True, slots=True)
class Cases:
    """References and what each arm said of them.

    Attributes:
        references: the phrases, with true boxes and masks.
        said: arm -> what it said of each, in the order of the references.
        drawn: positions of those that were not chosen for looks.
        kinds: "best", "median", "worst" -> positions.
        arm: whose best and worst they are.
    """

    references: list[Reference]
    said: dict[str, list[Segmentation]]
    drawn: list[int]
    kinds: dict[str, list[int]]
    arm: str


def choose(references: Sequence[Reference], table: pd.DataFrame) -> tuple[list[int], dict[str, list[int]]]:
    """Return which references are shown: some of each style by their places, and the best, middle and worst of a table.

    Args:
        references: all that were asked.
        table: one arm's rows under one seed in found boxes, in the order of the references.

    Raises:
        ValueError: rows of other references.
    """
    asked = [(item.data, item.expression.expression_id) for item in references]
    if asked != list(zip(table.data, table.expression_id, strict=True)):
        raise ValueError(f"{len(table)} rows do not belong to these {len(asked)} references, one each, in their order")
    styles = dict.fromkeys(item.data for item in references)
    drawn = [places[int(share * len(places))] for style in styles for places in [_places(references, style)]
             for share in SHARES]  # fmt: skip
    return drawn, segmentation.extremes(table, EACH)


def _places(references: Sequence[Reference], style: str) -> list[int]:
    return [place for place, item in enumerate(references) if item.data == style]


def write(
    folder: Path, references: Sequence[Reference], arms: Mapping[str, Segmenter], table: pd.DataFrame, arm: str
) -> None:
    """Ask every arm about the references of `choose`, and write what they say, whole or not at all.

    Args:
        folder: where to; the files of an earlier call are replaced.
        references: all that were asked.
        arms: name -> its model.
        table: predictions of all arms under the seed that the models were tuned with.
        arm: whose best and worst are shown.
    """
    own = table[(table.system == arm) & (table.box == "found")]
    drawn, kinds = choose(references, own)
    places = list(dict.fromkeys([*drawn, *(place for found in kinds.values() for place in found)]))
    shown = [references[place] for place in places]
    said = {name: segmentation.predict(model, shown, name)[1] for name, model in arms.items()}
    order = {place: number for number, place in enumerate(places)}
    index = {
        "arm": arm,
        "drawn": [order[place] for place in drawn],
        "kinds": {kind: [order[place] for place in found] for kind, found in kinds.items()},
        "references": [_described(item) for item in shown],
        "boxes": {name: [_box(answer) for answer in answers] for name, answers in said.items()},
    }
    maps = {name: np.stack([_levels(answer.probabilities) for answer in answers]) for name, answers in said.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **maps)
    target = folder / FOLDER
    with storage.atomic_directory(target, overwrite=target.exists()) as work:
        for number, item in enumerate(shown):
            item.expression.image.open().save(work / f"{number}.png", optimize=True)
        storage.atomic_write_json(work / INDEX, index)
        storage.atomic_write_bytes(work / ANSWERS, buffer.getvalue())


def _described(item: Reference) -> dict[str, Any]:
    expression = item.expression
    code = run_length.encode(np.asfortranarray(item.mask, dtype=np.uint8))
    return {
        "data": item.data,
        "expression_id": expression.expression_id,
        "image_id": expression.image.image_id,
        "size": list(expression.image.size),
        "text": expression.text,
        "label": expression.region.label,
        "box": [round(value, 2) for value in expression.region.box],
        "mask": code["counts"].decode(),
    }


def _box(answer: Segmentation) -> list[float] | None:
    return None if np.isnan(answer.box).any() else [round(value, 2) for value in answer.box.tolist()]


def _levels(probabilities: NDArray) -> NDArray[np.uint8]:
    whole = np.rint(np.nan_to_num(probabilities) * STEPS)
    # Rounding must not carry a cell over the threshold, which a mask is drawn at.
    middle = STEPS * segmentation.THRESHOLD
    whole[(whole <= middle) & (probabilities > segmentation.THRESHOLD)] = np.floor(middle) + 1
    return np.where(np.isnan(probabilities), UNASKED, whole).astype(np.uint8)


def there(folder: Path | str) -> bool:
    """Whether `write` has left anything in a folder."""
    return (Path(folder) / FOLDER / INDEX).is_file()


def load(folder: Path | str) -> Cases | None:
    """Read what `write` left in a folder; None where there is nothing of it."""
    place = Path(folder) / FOLDER
    if not there(folder):
        return None
    index = storage.read_json(place / INDEX)
    references = [_reference(entry, place / f"{number}.png") for number, entry in enumerate(index["references"])]
    with np.load(place / ANSWERS) as maps:
        said = {name: _answers(found, maps[name]) for name, found in index["boxes"].items()}
    return Cases(references, said, index["drawn"], index["kinds"], index["arm"])


def _reference(entry: Mapping[str, Any], file: Path) -> Reference:
    width, height = entry["size"]
    code = {"size": [height, width], "counts": entry["mask"].encode()}
    region = Region(entry["expression_id"], entry["image_id"], tuple(entry["box"]), entry["label"], 0, code)
    image = ImageRecord(entry["image_id"], file, width, height)
    expression = Expression(entry["expression_id"], image, region, entry["text"], "test")
    mask = decode_mask(code, image.size)
    return Reference(entry["data"], expression, mask, metrics.mask_overlap(segmentation.on_grid(mask), mask))


def _answers(boxes: Sequence[list[float] | None], levels: NDArray[np.uint8]) -> list[Segmentation]:
    values = np.where(levels == UNASKED, np.nan, levels / STEPS)
    return [
        Segmentation(np.full(4, np.nan) if box is None else np.array(box), own)
        for box, own in zip(boxes, values, strict=True)
    ]


def copy(source: Path, target: Path) -> None:
    """Copy what `write` left in one folder into another; nothing where there is nothing."""
    if there(source):
        shutil.copytree(source / FOLDER, target / FOLDER)
