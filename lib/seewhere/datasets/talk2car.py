"""Talk2Car: commands to a self-driving car, each about one object in a nuScenes front-camera image.

``<split>_commands.json`` holds ``{"scene_tokens": [...], "commands": [...]}``; ``2d_box`` is xywh in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from seewhere import storage
from seewhere.boxes import to_xyxy
from seewhere.datasets.coco import box_error, convention_problem, raw_boxes
from seewhere.datasets.dataset import ReferringDataset
from seewhere.datasets.images import ImageFinder, warn_missing
from seewhere.records import DataError, Expression, ImageRecord, Region

IMAGE_SIZE = (1600, 900)
"""Width and height of every image: nuScenes' cameras."""

_NUSCENES_CATEGORIES = (
    *("animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker"),
    *("human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller"),
    *("human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris"),
    *("movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack"),
    *("vehicle.bicycle", "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction"),
    *("vehicle.emergency.ambulance", "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer"),
    "vehicle.truck",
)
_TOKENS: tuple[str, ...] = ("command_token", "sample_token", "scene_token", "box_token")
CATEGORIES: dict[int, str] = dict(enumerate(_NUSCENES_CATEGORIES, start=1))


def find_commands(split: str, root: Path) -> Path:
    """Return the path of ``<split>_commands.json``.

    Raises:
        DataError: it is not there; the message lists the places and the splits that are.
    """
    folders = [root, root / "talk2car", root / "commands", root / "talk2car" / "commands", root / "data" / "commands"]
    for folder in folders:
        if (folder / f"{split}_commands.json").is_file():
            return folder / f"{split}_commands.json"
    present = sorted({path.name for folder in folders for path in folder.glob("*_commands.json")}) or ["none"]
    raise DataError(f"{root}: no {split}_commands.json for Talk2Car; found {', '.join(present)}.")


def read_commands(path: Path) -> list[dict[str, Any]]:
    """Read the commands of a file.

    Raises:
        DataError: broken JSON, another format, or commands without boxes (the test split's were long withheld).
    """
    try:
        content = storage.read_json(path)
    except ValueError as error:
        raise DataError(str(error)) from error
    commands = content.get("commands") if isinstance(content, dict) else None
    if not isinstance(commands, list):
        raise DataError(f"{path.name}: expected an object with the list 'commands'.")
    for key in ("2d_box", "command", "t2c_img"):
        without = [place for place, item in enumerate(commands) if key not in item]
        if without:
            raise DataError(
                f"{path.name}: {len(without)} of {len(commands)} commands have no {key!r} (first: number "
                f"{without[0]}). Is this the file of a challenge, which withholds the answers?"
            )
    return commands


def load_talk2car(split: str, root: Path, images: Path | None = None) -> ReferringDataset:
    """Read one split ("train", "val", "test").

    The release brings a picture for every command, but several commands may be about one camera frame, and one box in
    it: those share an image and a region here (the first command's), for they are no independent samples.

    Raises:
        DataError: missing or broken file, boxes in another convention.
    """
    path = find_commands(split, root)
    commands = read_commands(path)
    rows = [{"id": place, "bbox": item["2d_box"]} for place, item in enumerate(commands)]
    written = raw_boxes(rows, path.name)
    problem = convention_problem(written, np.tile(np.array(IMAGE_SIZE, dtype=np.float64), (len(written), 1)))
    if problem:
        raise box_error(path.name, problem)
    finder = ImageFinder([root, path.parent, path.parent.parent], images, coco=False)
    numbers = {name: place for place, name in enumerate(CATEGORIES.values(), start=1)}
    found: dict[int, ImageRecord] = {}
    regions: dict[int, Region] = {}
    expressions: list[Expression] = []
    frames: dict[Any, int] = {}
    objects: dict[Any, int] = {}
    for place, (item, box) in enumerate(zip(commands, to_xyxy(written, "xywh").tolist(), strict=True)):
        label = str(item.get("obj_name", "object"))
        category = numbers.setdefault(label, len(numbers) + 1)
        frame = frames.setdefault(item.get("sample_token", place), place)
        meant = objects.setdefault((frame, item.get("box_token", place), *box), place)
        if frame not in found:
            found[frame] = ImageRecord(frame, finder.find(str(item["t2c_img"])), *IMAGE_SIZE)
        if meant not in regions:
            regions[meant] = Region(meant, frame, (box[0], box[1], box[2], box[3]), label, category)
        meta = {key: item[key] for key in _TOKENS if key in item}
        expressions.append(
            Expression(place, found[frame], regions[meant], str(item["command"]), split, "command", meta)
        )
    warn_missing(f"talk2car {split}", [image.path for image in found.values()], finder.folders)
    categories = {number: name for name, number in numbers.items()}
    return ReferringDataset("talk2car", split, root, found, regions, expressions, categories, storage.hash_file(path))
