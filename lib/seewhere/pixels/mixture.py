"""What one step of training asks: which pictures, and which questions about each, as a function of its number.

Six tasks (PVP, section 3): colours of pixels, pixels of an object, and four that keep the model able to talk: boxes,
descriptions of boxes, questions and captions. A mixture gives each task's share of the pictures. The four that are
answered in words are asked together about one picture, so that its tokens are paid for once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from seewhere.models import world_questions
from seewhere.models.micro_language import END
from seewhere.models.minigpt import MiniGPT
from seewhere.models.world_pairs import PLACE_OF_ALL
from seewhere.packing import Sample
from seewhere.pixels import prompts
from seewhere.world.language import captions, expressions
from seewhere.world.render import owner_map
from seewhere.world.scenes import Scene
from seewhere.world.sprites import load_sprites

WORDS = ("refer", "identify", "question", "caption")
TASKS = ("colour", "mask", *WORDS)
STYLES, STYLE_SHARES = ("short", "relational", "plus"), (0.5, 0.3, 0.2)


def check_mixture(mixture: Mapping[str, float]) -> None:
    """Refuse shares that cannot be drawn from.

    Raises:
        ValueError: unknown tasks, negative shares, or nothing to ask.
    """
    unknown = sorted(set(mixture) - set(TASKS))
    if unknown or any(share < 0 for share in mixture.values()) or not sum(mixture.values()) > 0:
        raise ValueError(f"expected shares 0 or more of {', '.join(TASKS)}, not all 0; got {dict(mixture)}")


def pictures_of_step(mixture: Mapping[str, float], pictures: int, step: int) -> dict[str, int]:
    """How many of a step's pictures are asked about colours, masks and in "words"; exact over many steps."""
    total = sum(mixture.values())
    shares = {
        "colour": mixture.get("colour", 0.0) / total,
        "mask": mixture.get("mask", 0.0) / total,
    }
    found, before = {}, 0
    for group in ("colour", "mask"):
        share = pictures * shares[group]
        found[group] = math.floor((step + 1) * share + 1e-9) - math.floor(step * share + 1e-9)
        before += found[group]
    found["words"] = max(0, pictures - before)
    largest = max(("colour", "mask"), key=lambda group: shares[group])
    found[largest] -= max(0, before - pictures)  # both may come round in one step
    if sum(mixture.get(word, 0.0) for word in WORDS) == 0:
        found[largest] += found["words"]
        found["words"] = 0
    return found


@dataclass(frozen=True, slots=True)
class MaskQuestion:
    """A phrase, its object's cells (grid, grid) bool, and the cells (N, 2) column, row that are asked for."""

    phrase: str
    truth: np.ndarray
    cells: np.ndarray


def object_phrase(scene: Scene, index: int, random: Random) -> str | None:
    """A sentence that names one object and no other, in a style drawn at random; None where there is none."""
    first = random.choices(STYLES, STYLE_SHARES)[0]
    for style in (first, *STYLES):
        found = expressions(scene, index, style, random)
        if found:
            return str(random.choice(found).text)
    return None


def some_phrase(scene: Scene, random: Random) -> tuple[int, str]:
    """An object of the scene (its index) and a sentence that names it alone."""
    order = list(range(len(scene.objects)))
    random.shuffle(order)
    for index in order:
        phrase = object_phrase(scene, index, random)
        if phrase is not None:
            return index, phrase
    item = scene.objects[order[0]]
    return order[0], item.category


def object_cells(scene: Scene, index: int, grid: int = prompts.GRID) -> np.ndarray:
    """Which cells' centres show an object, (grid, grid) bool."""
    owner = owner_map(scene, load_sprites())
    at = (np.arange(grid) + 0.5) / grid
    return np.asarray(owner[(at * scene.height).astype(int)][:, (at * scene.width).astype(int)] == index)


def mask_question(scene: Scene, random: Random, count: int, grid: int = prompts.GRID) -> MaskQuestion:
    """A phrase and `count` cells: most in and around the object's box, the rest anywhere."""
    index, phrase = some_phrase(scene, random)
    truth = object_cells(scene, index, grid)
    x1, y1, x2, y2 = scene.objects[index].box
    draw = np.random.default_rng(random.getrandbits(32))
    left, right = x1 / scene.width * grid - 1, x2 / scene.width * grid + 1
    top, bottom = y1 / scene.height * grid - 1, y2 / scene.height * grid + 1
    near = draw.random(count) < 0.7
    x = np.where(near, draw.uniform(left, right, count), draw.uniform(0, grid, count))
    y = np.where(near, draw.uniform(top, bottom, count), draw.uniform(0, grid, count))
    cells = np.stack([x, y], axis=1).astype(int).clip(0, grid - 1)
    return MaskQuestion(prompts.clean(phrase), truth, cells)


def words_question(scene: Scene, task: str, random: Random) -> tuple[str, str]:
    """Question and answer in words of one task."""
    if task == "refer":
        index, phrase = some_phrase(scene, random)
        return prompts.refer(phrase), prompts.box_answer(scene.objects[index].box, scene.size)
    if task == "identify":
        index, phrase = some_phrase(scene, random)
        return prompts.identify(scene.objects[index].box, scene.size), phrase
    if task == "caption":
        return prompts.caption(), captions(scene, random)[PLACE_OF_ALL]
    text, answer = world_questions.question(scene, random)
    while text == world_questions.DESCRIBE:
        text, answer = world_questions.question(scene, random)
    return prompts.question(text), answer


def words_samples(
    model: MiniGPT, scene: Scene, mixture: Mapping[str, float], count: int, random: Random, longest: int = 40
) -> list[Sample]:
    """Questions in words about one scene, in tokens; what is longer than `longest` tokens is drawn anew, its task too.

    Raises:
        ValueError: in a thousand draws hardly any question was that short.
    """
    shares = [mixture.get(word, 0.0) for word in WORDS]
    found: list[Sample] = []
    drawn = 0
    while len(found) < count:
        if drawn > 1000 + 100 * len(found):
            raise ValueError(
                f"{drawn} questions in words were drawn, and {len(found)} have no more than {longest} tokens with "
                "their answers; expected a larger `longest` in the recipe, or other tasks in its mixture"
            )
        drawn += max(2, count - len(found))
        asked = [
            words_question(scene, random.choices(WORDS, shares)[0], random) for _ in range(max(2, count - len(found)))
        ]
        found += [sample for sample in samples_of(model, asked) if len(sample) <= longest]
    return found[:count]


def samples_of(model: MiniGPT, asked: Sequence[tuple[str, str]]) -> list[Sample]:
    """Questions (behind their image) and answers in tokens, each answer closed by the end token."""
    _, after = model.split_prompts([prompts.with_image(text) for text, _ in asked])
    answers: Any = model.tokenizer([f"{answer}{END}" for _, answer in asked], add_special_tokens=False)["input_ids"]
    return [Sample(tuple(question), tuple(answer)) for question, answer in zip(after, answers, strict=True)]
