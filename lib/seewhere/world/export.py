"""The world on disk, in the published formats, so that the default run goes through the readers of the real data.

Layout of a build::

    manifest.json                                  version, seeds, counts, hashes
    images/<image id, 12 digits>.jpg
    annotations/instances_<split>.json             COCO; boxes xywh, masks as compressed RLE
    annotations/captions_<split>.json              COCO captions, which never tell place
    refer/<refcoco|refcoco+|refcocog|refcoco_long>/instances.json, refs(world).p, programs.json
    vsr/<random|zeroshot>/<train|dev|test>.jsonl   spatial statements (see `statements_export`)

Splits are train, val, test and novel; only the last shows novel categories. A build is put in place whole or not at
all, and its bytes depend on the version, the cast and the preset only, not on how many processes made it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import PIL
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.world import annotations as notes
from seewhere.world import statements_export
from seewhere.world.render import render
from seewhere.world.scenes import SPLITS, WORLD_VERSION, sample_scene, scene_seed
from seewhere.world.sprites import SpriteSet, load_sprites

JPEG_QUALITY = 92
_SCENES_PER_TASK = 50


@dataclass(frozen=True, slots=True)
class Scale:
    """How many scenes each split of a preset holds."""

    train: int
    val: int
    test: int
    novel: int


PRESETS: dict[str, Scale] = {
    "smoke": Scale(60, 20, 30, 20),
    "quick": Scale(3000, 300, 600, 200),
    "full": Scale(12000, 1000, 2000, 1000),
}


def world_root(preset: str = "quick") -> Path:
    """Return the folder where a preset's build lives by default; it need not exist yet."""
    _scale(preset)
    return storage.data_home() / f"world-{WORLD_VERSION}-{preset}"


def build(
    root: Path | str | None = None,
    preset: str = "quick",
    workers: int | None = None,
    progress: bool = True,
    sprites_folder: Path | str | None = None,
) -> Path:
    """Make the world on disk, unless it is there already.

    Args:
        root: folder of the data set; None for `world_root`.
        preset: "smoke", "quick" or "full".
        workers: processes; None for one per usable core.
        progress: show a bar.
        sprites_folder: another cast (see `seewhere.world.sprites.load_sprites`); it wants a root of its own.

    Returns:
        The folder.

    Raises:
        ValueError: unknown preset, or `root` holds something else than this build.
    """
    scale = _scale(preset)
    if sprites_folder is not None and root is None:
        raise ValueError("a world with its own sprites needs a folder of its own; pass root=...")
    target = world_root(preset) if root is None else Path(root)
    sprites = load_sprites(sprites_folder if sprites_folder is None else str(sprites_folder))
    settings = {"version": WORLD_VERSION, "preset": preset, "scenes": asdict(scale), "sprites": sprites.fingerprint}
    if target.exists():
        _check_same(target, settings)
        statements_export.ensure(target, asdict(scale), sprites, workers or _cores(), progress)
        return target
    with storage.atomic_directory(target) as folder:
        scenes = list(_compose(folder, scale, sprites, workers or _cores(), progress))
        statements_export.ensure(folder, asdict(scale), sprites, workers or _cores(), progress)
        hashes = _write_annotations(folder, scenes, sprites)
        manifest = _manifest(settings, scenes, scale, hashes, sprites)
        storage.atomic_write_json(folder / "manifest.json", manifest)
    return target


def dense_statements(preset: str, aim: int, workers: int | None = None, progress: bool = True) -> Path:
    """Write many statements about every train picture of a build of the usual place; see `ensure_dense`.

    Args:
        preset: of the build, which is made first if it is not there.
        aim: statements per scene.
        workers, progress: as for `build`.

    Returns:
        The folder of the statements.
    """
    root = build(None, preset, workers, progress)
    scenes = _scale(preset).train
    return statements_export.ensure_dense(root, scenes, aim, load_sprites(), workers or _cores(), progress)


def _scale(preset: str) -> Scale:
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r} of the world; expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_same(target: Path, settings: dict[str, Any]) -> None:
    manifest = target / "manifest.json"
    if not manifest.is_file():
        raise ValueError(f"{target} exists but is no build of the world (no manifest.json). Choose another folder.")
    found = storage.read_json(manifest)
    for key, value in settings.items():
        if found.get(key) != value:
            raise ValueError(
                f"{target} holds a world of another {key} ({found.get(key)!r}, wanted {value!r}). "
                "Remove the folder, or choose another one."
            )


# -- scenes, in parallel ---------------------------------------------------------------------------------------------


def _compose(folder: Path, scale: Scale, sprites: SpriteSet, workers: int, progress: bool) -> Iterator[dict[str, Any]]:
    """Write the pictures and yield what annotations need of each scene, in order of image id."""
    (folder / "images").mkdir()
    tasks = [
        (split, first, min(first + _SCENES_PER_TASK, count))
        for split, count in asdict(scale).items()
        if split != "novel" or sprites.novel
        for first in range(0, count, _SCENES_PER_TASK)
    ]
    cast = None if sprites.folder is None else str(sprites.folder)
    calls = (joblib.delayed(_compose_range)(str(folder / "images"), *task, cast) for task in tasks)
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
    with tqdm(total=sum(b - a for _, a, b in tasks), desc="scenes", unit="scene", disable=not progress) as bar:
        for done in parallel(calls):
            bar.update(len(done))
            yield from done


def _compose_range(images: str, split: str, first: int, last: int, cast: str | None) -> list[dict[str, Any]]:
    sprites = load_sprites(cast)
    return [_compose_one(Path(images), split, number, sprites) for number in range(first, last)]


def _compose_one(images: Path, split: str, number: int, sprites: SpriteSet) -> dict[str, Any]:
    scene = sample_scene(number, sprites, split=split)
    picture, masks = render(scene, sprites)
    name = f"{scene.seed:012d}.jpg"
    # Full colour resolution: flat artwork with sharp edges shows the bleeding of halved colour.
    picture.save(images / name, quality=JPEG_QUALITY, subsampling=0)
    return {
        "split": split,
        "image": notes.image_record(scene, name),
        "annotations": notes.annotation_records(scene, masks),
        "captions": notes.caption_texts(scene),
        "references": notes.scene_references(scene),
        "hash": storage.hash_file(images / name),
    }


# -- files -----------------------------------------------------------------------------------------------------------


def _write_annotations(folder: Path, scenes: list[dict[str, Any]], sprites: SpriteSet) -> dict[str, str]:
    """Write every annotation file and return its SHA-256 by path within the build."""
    written: list[Path] = []
    for split, group in itertools.groupby(scenes, key=lambda s: s["split"]):
        members = list(group)
        categories = sprites.novel if split == "novel" else sprites.coco
        about = notes.header(sprites, f"seewhere world {WORLD_VERSION}, {split}")
        pictures = [s["image"] for s in members]
        objects = [a for s in members for a in s["annotations"]]
        content = {
            **about,
            "images": pictures,
            "annotations": objects,
            "categories": notes.category_records(categories),
        }
        written.append(_write_json(folder / "annotations" / f"instances_{split}.json", content))
        content = {**about, "images": pictures, "annotations": _captions(members)}
        written.append(_write_json(folder / "annotations" / f"captions_{split}.json", content))
    written += _write_refer(folder / "refer", scenes, sprites)
    return {path.relative_to(folder).as_posix(): storage.hash_file(path) for path in sorted(written)}


def _captions(scenes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"id": scene["image"]["id"] * 8 + k + 1, "image_id": scene["image"]["id"], "caption": text}
        for scene in scenes
        for k, text in enumerate(scene["captions"])
    ]


def _write_refer(folder: Path, scenes: list[dict[str, Any]], sprites: SpriteSet) -> list[Path]:
    instances = {
        **notes.header(sprites, f"seewhere world {WORLD_VERSION}, all splits"),
        "images": [s["image"] for s in scenes],
        "annotations": [a for s in scenes for a in s["annotations"]],
        "categories": notes.category_records(sprites.categories),
    }
    written: list[Path] = []
    for style, name in notes.REFER_NAMES.items():
        place = folder / name / "instances.json"
        if written:
            place.parent.mkdir(parents=True)
            shutil.copyfile(written[0], place)
        else:
            _write_json(place, instances)
        records, programs = notes.reference_records(scenes, style)
        written.append(place)
        written.append(storage.atomic_write_bytes(place.with_name("refs(world).p"), _pickled(records)))
        written.append(_write_json(place.with_name("programs.json"), programs))
    return written


def _write_json(path: Path, content: Any) -> Path:
    return storage.atomic_write_text(path, json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n")


def _pickled(records: list[dict[str, Any]]) -> bytes:
    """Pickle plain records; equal records give equal bytes.

    A pickle writes an object that it meets again as a reference to the first, so two equal lists differ in bytes when
    they share strings differently, as lists from several processes do. A pass through JSON makes every string anew.
    """
    return pickle.dumps(json.loads(json.dumps(records)), protocol=2)


def _manifest(
    settings: dict[str, Any], scenes: list[dict[str, Any]], scale: Scale, hashes: dict[str, str], sprites: SpriteSet
) -> dict[str, Any]:
    pictures = hashlib.sha256("".join(s["hash"] for s in scenes).encode()).hexdigest()
    return {
        **settings,
        "seeds": {s: [scene_seed(s, 0), scene_seed(s, max(asdict(scale)[s] - 1, 0))] for s in SPLITS},
        "counts": {split: _counts([s for s in scenes if s["split"] == split]) for split in SPLITS},
        "categories": {"coco": len(sprites.coco), "novel": len(sprites.novel)},
        "attribution": sprites.attribution,
        "made_with": {"pillow": PIL.__version__},
        "images_hash": pictures,
        "hashes": hashes,
    }


def _counts(scenes: list[dict[str, Any]]) -> dict[str, int]:
    counts = {
        "images": len(scenes),
        "objects": sum(len(s["annotations"]) for s in scenes),
        "captions": sum(len(s["captions"]) for s in scenes),
    }
    for style, name in notes.REFER_NAMES.items():
        counts[f"{name} references"] = sum(len(s["references"][style]) for s in scenes)
        counts[f"{name} sentences"] = sum(len(r[2]) for s in scenes for r in s["references"][style])
    return counts
