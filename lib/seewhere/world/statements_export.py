"""The world's statements on disk, in VSR's layout, beside the rest of a build.

Layout::

    vsr/manifest.json                          version, counts, SHA-256 of every file
    vsr/random/<train|dev|test|novel>.jsonl    over the pictures of the splits train, val, test, novel
    vsr/zeroshot/<train|dev|test>.jsonl        the same pictures; no category is in two of the three
    vsr-dense/dense/train.jsonl                on demand: many more statements about each of the train pictures

They depend on the scenes alone, not on their pictures, so a build that was made without them gets them afterwards, and
nothing else of it changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import joblib
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.world.scenes import sample_scene
from seewhere.world.sprites import SpriteSet, load_sprites
from seewhere.world.statements import STATEMENTS_VERSION, Statement, balanced, candidates, record

FOLDER = "vsr"
FILES = {"train": "train", "val": "dev", "test": "test", "novel": "novel"}
"""Split of the world -> name of VSR's file."""
DENSE = "dense"
"""Name of the partition that `ensure_dense` writes."""
SHARES = {"train": 0.55, "val": 0.15, "test": 0.30}
"""Share of the categories that each split of the zero-shot partition may speak of."""
_SCENES_PER_TASK = 200


def ensure(root: Path, scenes: Mapping[str, int], sprites: SpriteSet, workers: int, progress: bool = True) -> Path:
    """Write the statements of a build, unless this version of them is there already.

    Args:
        root: folder of the build.
        scenes: split -> number of scenes.
        sprites: the cast.
        workers: processes.
        progress: show a bar.

    Returns:
        The folder of the statements.
    """
    target = root / FOLDER
    manifest = target / "manifest.json"
    if manifest.is_file() and storage.read_json(manifest).get("version") == STATEMENTS_VERSION:
        return target
    with storage.atomic_directory(target, overwrite=target.exists()) as folder:
        write(folder, scenes, sprites, workers, progress)
    return target


def write(folder: Path, scenes: Mapping[str, int], sprites: SpriteSet, workers: int, progress: bool = True) -> None:
    """Write all statement files of a build into an empty folder; arguments as `ensure`."""
    splits = {s: count for s, count in scenes.items() if count and (s != "novel" or sprites.novel)}
    offered = _offer(splits, sprites, workers, progress)
    groups = concept_groups(sprites)
    counts: dict[str, dict[str, int]] = {"random": {}, "zeroshot": {}}
    hashes: dict[str, str] = {}
    for split, count in splits.items():
        parts = {"random": offered[split]}
        if split in groups:
            parts["zeroshot"] = [s for s in offered[split] if groups[split].issuperset(s.nouns)]
        for partition, statements in parts.items():
            chosen = balanced(statements, count, seed=list(FILES).index(split))
            path = _write_lines(folder / partition / f"{FILES[split]}.jsonl", chosen)
            counts[partition][FILES[split]] = len(chosen)
            hashes[path.relative_to(folder).as_posix()] = storage.hash_file(path)
    content: dict[str, Any] = {"version": STATEMENTS_VERSION, "counts": counts, "hashes": hashes}
    storage.atomic_write_json(folder / "manifest.json", content)


def ensure_dense(root: Path, scenes: int, aim: int, sprites: SpriteSet, workers: int, progress: bool = True) -> Path:
    """Write many statements about every train picture of a build, unless they are there already.

    A picture settles far more statements than a benchmark needs. A model of a few million weights that is trained on
    few of them learns these by heart, and the relations only from many.

    Args:
        root: folder of the build.
        scenes: number of its train scenes.
        aim: statements per scene, see `statements.balanced`.
        sprites, workers, progress: as for `ensure`.

    Returns:
        The folder of the statements, for `load_vsr`; their partition is `DENSE`.
    """
    target = root / f"{FOLDER}-{DENSE}"
    manifest, wanted = target / "manifest.json", {"version": STATEMENTS_VERSION, "aim": aim, "scenes": scenes}
    if manifest.is_file() and wanted.items() <= storage.read_json(manifest).items():
        return target
    with storage.atomic_directory(target, overwrite=target.exists()) as folder:
        chosen = balanced(_offer({"train": scenes}, sprites, workers, progress)["train"], scenes, aim=aim)
        path = _write_lines(folder / DENSE / "train.jsonl", chosen)
        about = {**wanted, "count": len(chosen), "sha256": storage.hash_file(path)}
        storage.atomic_write_json(folder / "manifest.json", about)
    return target


def _write_lines(path: Path, statements: Sequence[Statement]) -> Path:
    lines = [json.dumps(record(s, f"{s.image_id:012d}.jpg"), ensure_ascii=False) for s in statements]
    return storage.atomic_write_text(path, "".join(line + "\n" for line in lines))


def concept_groups(sprites: SpriteSet) -> dict[str, set[str]]:
    """Return split -> the categories that the zero-shot partition's statements may speak of there; no two share one."""
    names = sorted(c.name for c in sprites.coco)
    Random(f"zero-shot {STATEMENTS_VERSION}").shuffle(names)
    groups, start = {}, 0.0
    for split, share in SHARES.items():
        groups[split] = set(names[round(start * len(names)) : round((start + share) * len(names))])
        start += share
    return groups


def _offer(splits: Mapping[str, int], sprites: SpriteSet, workers: int, progress: bool) -> dict[str, list[Statement]]:
    """Compose every scene (without painting it) and collect what it offers."""
    cast = None if sprites.folder is None else str(sprites.folder)
    tasks = [
        (split, first, min(first + _SCENES_PER_TASK, count))
        for split, count in splits.items()
        for first in range(0, count, _SCENES_PER_TASK)
    ]
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
    found: dict[str, list[Statement]] = {split: [] for split in splits}
    with tqdm(total=sum(splits.values()), desc="statements", unit="scene", disable=not progress) as bar:
        results = parallel(joblib.delayed(_offer_range)(*task, cast) for task in tasks)
        for (split, first, last), statements in zip(tasks, results, strict=True):
            found[split] += statements
            bar.update(last - first)
    return found


def _offer_range(split: str, first: int, last: int, cast: str | None) -> Sequence[Statement]:
    sprites = load_sprites(cast)
    return [s for number in range(first, last) for s in candidates(sample_scene(number, sprites, split=split))]
