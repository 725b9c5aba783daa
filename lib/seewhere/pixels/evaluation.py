"""How well a model reads pixels, beside what needs no model, and what it still knows of everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from seewhere import metrics
from seewhere.models import micro_vlm_weights, world_questions
from seewhere.pixels import targets
from seewhere.pixels.errors import scores
from seewhere.pixels.mixture import WORDS, object_phrase
from seewhere.pixels.pictures import world_pictures
from seewhere.pixels.reader import PixelReader
from seewhere.world.language import SYNONYMS, plural
from seewhere.world.scenes import Scene
from seewhere.world.sprites import load_sprites

FORGETTING_FILE = "forgetting.csv"


def evaluate_pictures(
    reader: PixelReader, pictures: Mapping[str, Image.Image], set_name: str, progress: bool = True
) -> pd.DataFrame:
    """Read whole pictures and compare them with their targets.

    Args:
        reader: the model; every cell of every picture is one question.
        pictures: by name.
        set_name: what to call the set.
        progress: show a progress bar.

    Returns:
        One row per picture and model: set, picture, model, re, re_mean, psnr, ssim. Beside the model stand the
        reconstructions of `targets.BASELINES`.
    """
    rows: list[dict[str, Any]] = []
    for name, image in tqdm(pictures.items(), desc=set_name, unit="picture", disable=not progress):
        wanted = targets.target(image, reader.grid)
        seen = {reader.name: reader.reconstruct([image])[0]}
        seen |= {baseline: made(wanted) for baseline, made in targets.BASELINES.items()}
        for model, found in seen.items():
            rows.append({"set": set_name, "picture": name, "model": model, **scores(found, wanted)})
    return pd.DataFrame(rows, columns=["set", "picture", "model", "re", "re_mean", "psnr", "ssim"])


# ---------------------------------------------------------------------------------------------------- forgetting


def forgetting_rows(reader: PixelReader, scenes: int = 100, split: str = "val", seed: int = 0) -> pd.DataFrame:
    """Ask a model what it knew before it learnt pixels: one question of each task about every scene.

    Returns:
        Rows of task, image_id, score. "refer": 1 where the box overlaps by an IoU above 0.5. "identify": 1 where the
        answer names the object's category. "question": 1 where the short answer is right word for word. "caption":
        F1 of the categories that the caption names.
    """
    rows: list[dict[str, Any]] = []
    for number, (image, scene) in enumerate(tqdm(world_pictures(scenes, split, seed), desc="tasks", leave=False)):
        random = Random(f"forgetting {split} {seed} {number}")
        for task in WORDS:
            score = _SCORES[task](reader, image, scene, random)
            if score is not None:
                rows.append({"task": task, "image_id": number, "score": float(score)})
    return pd.DataFrame(rows, columns=["task", "image_id", "score"])


def forgetting(reader: PixelReader, scenes: int = 100, split: str = "val", seed: int = 0) -> dict[str, float]:
    """Means of `forgetting_rows` by task, 0..1."""
    return {
        str(k): float(v)
        for k, v in forgetting_rows(reader, scenes, split, seed).groupby("task")["score"].mean().items()
    }


def summarise(rows: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Means of `forgetting_rows` with 95 % intervals over scenes: stage, task, value, low, high, n."""
    found = []
    for task, part in rows.groupby("task"):
        interval = metrics.bootstrap_interval(part["score"].to_numpy(), groups=part["image_id"].to_numpy())
        found.append(
            {
                "stage": stage,
                "task": task,
                "value": interval.value,
                "low": interval.low,
                "high": interval.high,
                "n": len(part),
            }
        )
    return pd.DataFrame(found, columns=["stage", "task", "value", "low", "high", "n"])


def shipped_forgetting() -> pd.DataFrame:
    """What the shipped models' training wrote down after each stage (`summarise`); empty where nothing is shipped."""
    path = micro_vlm_weights.FOLDER / FORGETTING_FILE
    if not path.is_file():
        return pd.DataFrame(columns=["stage", "task", "value", "low", "high", "n"])
    return pd.read_csv(path)


def _refer(reader: PixelReader, image: Image.Image, scene: Scene, random: Random) -> float | None:
    index = random.randrange(len(scene.objects))
    phrase = object_phrase(scene, index, random)
    if phrase is None:
        return None
    box = reader.find_boxes([image], [phrase])
    return float(metrics.precision_at_1(box, np.array([scene.objects[index].box]), rule="strict")[0])


def _identify(reader: PixelReader, image: Image.Image, scene: Scene, random: Random) -> float:
    item = random.choice(scene.objects)
    said = f" {reader.name_regions([image], [item.box])[0]} "
    return float(names(item.category, said))


def _question(reader: PixelReader, image: Image.Image, scene: Scene, random: Random) -> float:
    text, answer = world_questions.question(scene, random)
    while text == world_questions.DESCRIBE:
        text, answer = world_questions.question(scene, random)
    return float(reader.answer([image], [text])[0] == answer)


def _caption(reader: PixelReader, image: Image.Image, scene: Scene, random: Random) -> float:
    said = f" {reader.describe([image])[0]} "
    there = {item.category for item in scene.objects}
    named = {name for name in _categories() if names(name, said)}
    right = len(there & named)
    return 2 * right / (len(there) + len(named)) if there or named else 0.0


_SCORES = {"refer": _refer, "identify": _identify, "question": _question, "caption": _caption}


def names(category: str, text: str) -> bool:
    """Whether a text names a category: by its name, a synonym, or the plural of one, as whole words."""
    words = "".join(c if c.isalnum() else " " for c in text.lower())
    padded = f" {' '.join(words.split())} "
    forms = [form for noun in (category, *SYNONYMS.get(category, ())) for form in (noun, plural(noun))]
    return any(f" {form} " in padded for form in forms)


def _categories() -> Sequence[str]:
    return [category.name for category in load_sprites().coco]
