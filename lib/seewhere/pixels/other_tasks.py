"""What a model that learns pixels may forget: boxes, descriptions, questions and captions about held-out scenes.

One row per question, so that two stages are compared on the very same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from seewhere import metrics, storage
from seewhere.models import world_questions
from seewhere.models.micro_vlm_weights import FOLDER
from seewhere.models.registry import MINIGPTS
from seewhere.pixels import mixture, pictures
from seewhere.world.scenes import Scene
from seewhere.world.sprites import load_sprites

TASKS = ("refer", "identify", "question", "caption")
FILE = "forgetting.csv"
SHIPPED = FOLDER
FIRST_SEED = 50
"""Scenes are drawn as those of this seed and later ones, away from the pictures that are reconstructed."""


def rows(
    readers: Mapping[str, Any], scenes: int, seed: int = 0, split: str = "val", progress: bool = True
) -> pd.DataFrame:
    """Ask models one question of every task about each of some scenes.

    *refer*: the box found for a phrase has an IoU above 0.5 with the object's. *identify*: the description of a box
    names the object's category. *question*: the answer is the right one, word for word. *caption*: F1 of the categories
    named against those in the scene.

    Args:
        readers: name -> `PixelReader`.
        scenes: how many.
        seed: of scenes and questions.
        split: of the world.
        progress: show bars.

    Returns:
        Columns: model, task, image_id, score (0..1); the same questions in the same order for every model.

    Raises:
        ValueError: a model that has no prompts for these tasks, such as a chat model.
    """
    for name, reader in readers.items():
        if not all(hasattr(reader, method) for method in ("find_boxes", "name_regions", "answer", "describe")):
            raise ValueError(
                f"{name} is {type(reader).__name__}, which cannot be asked to describe boxes and pictures by prompts "
                "of its own. A chat model joins as one more (more=...), not in the place of a stage."
            )
    shown = pictures.world_pictures(scenes, split, FIRST_SEED + seed)
    found = []
    for name, reader in readers.items():
        bar = tqdm(shown, desc=f"{name}, other tasks", unit="scene", disable=not progress, leave=False)
        for number, (image, scene) in enumerate(bar):
            random = Random(f"{seed} {number}")
            for task, score in _scores(reader, image, scene, random).items():
                found.append((name, task, number, score))
    return pd.DataFrame(found, columns=["model", "task", "image_id", "score"])


def _scores(reader: Any, image: Any, scene: Scene, random: Random) -> dict[str, float]:
    index, phrase = mixture.some_phrase(scene, random)
    item = scene.objects[index]
    box = reader.find_boxes([image], [phrase])
    asked, answer = world_questions.question(scene, random)
    while asked == world_questions.DESCRIBE:
        asked, answer = world_questions.question(scene, random)
    return {
        "refer": float(metrics.precision_at_1(box, [item.box])[0]),
        "identify": float(item.category in named(reader.name_regions([image], [item.box])[0])),
        "question": float(reader.answer([image], [asked])[0].strip().lower() == answer.lower()),
        "caption": f1(named(reader.describe([image])[0]), {o.category for o in scene.objects}),
    }


def named(text: str) -> set[str]:
    """The world's categories that a text names, in the singular or plural; the longer name where one holds another."""
    from seewhere.world.language import plural

    rest, found = f" {' '.join(text.lower().split())} ", set()
    for name in sorted((c.name for c in load_sprites().coco), key=len, reverse=True):
        for form in (plural(name), name):
            if form in rest:
                found.add(name)
                rest = rest.replace(form, " ")
    return found


def f1(said: set[str], true: set[str]) -> float:
    """Harmonic mean of precision and recall of a set of names; 0 where none is right."""
    right = len(said & true)
    return 2 * right / (len(said) + len(true)) if right else 0.0


def means(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Model -> task -> mean score, 0..1."""
    found = table.groupby(["model", "task"], sort=False).score.mean()
    return {str(model): found[model].to_dict() for model in table.model.unique()}


def write(table: pd.DataFrame, folder: Path) -> Path:
    """Keep the rows beside the weights that they are about."""
    return storage.atomic_write_text(folder / FILE, table.to_csv(index=False, float_format="%.4g"))


def shipped_rows(sources: Iterable[str] = (), folder: Path = SHIPPED) -> pd.DataFrame:
    """The rows that came with the weights, of every stage; empty where there are none.

    Args:
        sources: the models that they are to be told of; where one is not of the package, they are about others.
        folder: where they lie.
    """
    path = folder / FILE
    ours = all(source in MINIGPTS for source in sources)
    return (
        pd.read_csv(path) if ours and path.is_file() else pd.DataFrame(columns=["model", "task", "image_id", "score"])
    )
