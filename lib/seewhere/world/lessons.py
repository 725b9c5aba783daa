"""Lessons: a scene written out as a list of boxes, and many small questions about that one list.

A small language model that reads only box lists does not learn to choose a box from the choice alone: the skill
rests on looking things up (what is box 3?), matching words, and comparing numbers, and these form late. A lesson asks
for all of them at once, so that every pass over a list is paid for by a dozen answers. Every question carries the
name of its skill, so that a training can see what is mastered and ask more of what is not.

Coordinates are integers 0-100 of the picture's width and height, xyxy.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from seewhere.world.language import captions, expressions, plural
from seewhere.world.programs import mentions

if TYPE_CHECKING:
    from seewhere.world.programs import Program
    from seewhere.world.scenes import Scene

Box = tuple[int, int, int, int]
Item = tuple[str, Box]
REFERRING_STYLES = ("short", "relational", "plus")

# The writing of a box choice, word for word as LLM-wrapper asks for it.
OPENING = "You are a helpful assistant who understands spatial information."
COUNT = "The image contains {n} boxes:"
ASK = 'Which box best matches "{}"? Answer with the index only, without explanation.'
SET_PHRASES = (
    f"{OPENING}\n",
    "The image contains ",
    " boxes:\n- ",
    ASK.partition("{}")[0],
    ASK.partition("{}")[2],
)
"""Text that stands unchanged in every such prompt; a tokenizer may make one token of each."""


class Asked(NamedTuple):
    """A question about a list, its answer, and the skill that it trains."""

    question: str
    answer: str
    skill: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """One list of boxes as text, and questions with their answers; every question stands alone after the list."""

    context: str
    questions: tuple[Asked, ...]


def percent_box(box: Sequence[float], size: tuple[int, int]) -> Box:
    """Return a box (pixels, xyxy) as integers 0-100 of (width, height)."""
    sides = (size[0], size[1], size[0], size[1])
    x1, y1, x2, y2 = (min(max(round(100 * float(v) / s), 0), 100) for v, s in zip(box, sides, strict=True))
    return x1, y1, x2, y2


def smaller_scene(scene: Scene, most: int, random: Random) -> Scene:
    """Return a scene with at most `most` of its objects; objects that have a twin of their category stay first.

    Sentences about the result are sentences about a picture in which the others were never there.
    """
    if len(scene.objects) <= most:
        return scene
    counts = Counter(item.category for item in scene.objects)
    order = sorted(scene.objects, key=lambda o: (counts[o.category] == 1, o.category_id, random.random()))
    keep = min(most, max(2, sum(count > 1 for count in (counts[o.category] for o in order)) - random.randrange(2)))
    others = order[keep:]
    random.shuffle(others)
    chosen = order[:keep] + others[: most - keep]
    random.shuffle(chosen)
    return dataclasses.replace(
        scene, objects=tuple(dataclasses.replace(item, index=i) for i, item in enumerate(chosen))
    )


def shuffled_items(
    scene: Scene, random: Random, missed: float = 0.0, doubled: float = 0.0
) -> tuple[list[Item], list[int]]:
    """Return (label, box) items in random order with a little box noise, and each item's object index.

    Args:
        scene: the scene.
        random: source of choices.
        missed: share of objects left out (two at least stay).
        doubled: share of objects that stand there a second time, under the label of some object; their index is -1.
    """
    order = [i for i in range(len(scene.objects)) if random.random() >= missed]
    if len(order) < 2:
        order = list(range(len(scene.objects)))
    entries = [(i, scene.objects[i].category, 0.02) for i in order]
    for i in order:
        if random.random() < doubled:
            entries.append((i, random.choice(scene.objects).category, 0.1))
    random.shuffle(entries)
    items = [
        (label, percent_box(moved(scene.objects[i].box, noise, random), (scene.width, scene.height)))
        for i, label, noise in entries
    ]
    return items, [i if noise == 0.02 else -1 for i, _, noise in entries]


def moved(box: Sequence[float], noise: float, random: Random) -> list[float]:
    """Return a box (xyxy) whose sides moved at random by `noise` of its width or height (one standard deviation)."""
    width, height = box[2] - box[0], box[3] - box[1]
    moved = [v + random.gauss(0, noise) * s for v, s in zip(box, (width, height, width, height), strict=True)]
    return [min(moved[0], moved[2]), min(moved[1], moved[3]), max(moved[0], moved[2]), max(moved[1], moved[3])]


def write_list(items: Sequence[Item], random: Random, usual: float = 0.8) -> str:
    """Write items as a list, indices from 0: as LLM-wrapper does (share `usual`), or in one of several other ways."""
    bullets = [f'- {i}: "{label}", [{", ".join(map(str, box))}]' for i, (label, box) in enumerate(items)]
    if random.random() < usual:
        return "\n".join([OPENING, COUNT.format(n=len(items)), *bullets])
    style = random.choice(["bullets", "rows", "prose"])
    if style == "bullets":
        head, lines = random.choice(["There are {n} boxes:", "Boxes in the image: {n}"]), bullets
    elif style == "rows":
        head = random.choice(["{n} things, one in a row:", "Index, name, box ({n} rows):"])
        lines = [f"{i} {label} {' '.join(map(str, box))}" for i, (label, box) in enumerate(items)]
    else:
        head = "The picture shows {n} things."
        lines = [f"Box {i} is a {label} at {', '.join(map(str, box))}." for i, (label, box) in enumerate(items)]
    return "\n".join([head.format(n=len(items)), *lines])


# ------------------------------------------------------------------------------------------------------- drills


def _middle(box: Box) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def _size(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _name(items: Sequence[Item], random: Random) -> tuple[str, str]:
    i = random.randrange(len(items))
    return f"What is box {i}?", items[i][0]


def _where(items: Sequence[Item], random: Random) -> tuple[str, str]:
    i = random.randrange(len(items))
    if random.random() < 0.3:
        return f"Where is the middle of box {i}?", _numbers(_middle(items[i][1]))
    return f"Where is box {i}?", _numbers(items[i][1])


def _find(items: Sequence[Item], random: Random) -> tuple[str, str]:
    label = random.choice(items)[0]
    found = [i for i, (other, _) in enumerate(items) if other == label]
    return random.choice([f"Which boxes show a {label}?", f"Find: {label}"]), _numbers(found)


def _count(items: Sequence[Item], random: Random) -> tuple[str, str]:
    label = random.choice(items)[0]
    return f"How many {plural(label)} are there?", str(sum(other == label for other, _ in items))


ORDERS: dict[str, Callable[[Sequence[float]], float]] = {
    "from left to right": lambda b: b[0] + b[2],
    "from right to left": lambda b: -b[0] - b[2],
    "from top to bottom": lambda b: b[1] + b[3],
    "from bottom to top": lambda b: -b[1] - b[3],
    "from small to large": _size,
    "from large to small": lambda b: -_size(b),
}


def _sort(items: Sequence[Item], random: Random) -> tuple[str, str]:
    counts = Counter(label for label, _ in items)
    repeated = [label for label, count in counts.items() if count > 1]
    label = random.choice(repeated) if repeated else random.choice(items)[0]
    name, key = random.choice(list(ORDERS.items()))
    found = sorted((i for i, (other, _) in enumerate(items) if other == label), key=lambda i: key(items[i][1]))
    return f"List the {plural(label)} {name}.", _numbers(found)


def _compare(items: Sequence[Item], random: Random) -> tuple[str, str]:
    i, j = random.sample(range(len(items)), 2)
    a, b = items[i][1], items[j][1]
    (ax, ay), (bx, by) = _middle(a), _middle(b)
    word, truth = random.choice(
        [
            ("to the left of", ax < bx),
            ("to the right of", ax > bx),
            ("above", ay < by),
            ("below", ay > by),
            ("larger than", _size(a) > _size(b)),
            ("smaller than", _size(a) < _size(b)),
        ]
    )
    return f"Is box {i} {word} box {j}?", "yes" if truth else "no"


_EXTREMES: dict[str, Callable[[Sequence[float]], float]] = {
    "farthest to the left": lambda b: b[0] + b[2],
    "farthest to the right": lambda b: -b[0] - b[2],
    "highest up": lambda b: b[1] + b[3],
    "lowest down": lambda b: -b[1] - b[3],
    "smallest": _size,
    "largest": lambda b: -_size(b),
}


def _extreme(items: Sequence[Item], random: Random) -> tuple[str, str]:
    word, key = random.choice(list(_EXTREMES.items()))
    best = min(range(len(items)), key=lambda i: key(items[i][1]))
    return f"Which box is {word}?", str(best)


DRILLS: dict[str, Callable[[Sequence[Item], Random], tuple[str, str]]] = {
    "name": _name,
    "where": _where,
    "find": _find,
    "count": _count,
    "sort": _sort,
    "compare": _compare,
    "extreme": _extreme,
}

# ---------------------------------------------------------------------------------------------------- referring

_OTHER_WORDINGS = ('Which box is "{}"?', "Which box shows {}?", "Find: {}")
_SKILLS = {
    "category": "noun", "tint": "colour", "hidden": "colour", "middle": "ordinal", "relation": "relation",
    "nearest": "nearest", "farthest": "nearest", "between": "both", "and": "both",
}  # fmt: skip
REFERRING_SKILLS = ("noun", "colour", "place", "size", "ordinal", "relation", "nearest", "both")
# Asking for a thing that is alone in its category needs no comparison, and colour is not in a list of boxes.
_RARE = {"noun": 0.5, "alone": 0.12, "colour": 0.1}


def skill_of(program: Program) -> str:
    """Return which of `REFERRING_SKILLS` a phrase with this program asks for."""
    if mentions(program, ("tint", "hidden")):
        return "colour"
    if program[0] == "rank":
        if program[1] in ("large", "small"):
            return "size"
        return "place" if int(program[2]) == 1 else "ordinal"
    return _SKILLS[program[0]]


def referring_questions(
    scene: Scene, order: Sequence[int], random: Random, weights: Mapping[str, float] | None = None, usual: float = 0.8
) -> list[Asked]:
    """Return questions for phrases whose target stands in the list, those that matter more first.

    Args:
        scene: the scene.
        order: object index at each list position (-1: none).
        random: source of choices.
        weights: how much a skill is wanted, 1 where it is not named.
        usual: share of questions in LLM-wrapper's wording.
    """
    counts = Counter(item.category for item in scene.objects)
    found: list[tuple[Asked, float]] = []
    for position, index in enumerate(order):
        if index < 0:
            continue
        rare = _RARE["alone"] if counts[scene.objects[index].category] == 1 else 1.0
        for style in REFERRING_STYLES:
            for phrase in expressions(scene, index, style, random):
                skill = skill_of(phrase.program)
                wording = ASK if random.random() < usual else random.choice(_OTHER_WORDINGS)
                wanted = (weights or {}).get(skill, 1.0) * _RARE.get(skill, 1.0) * rare
                found.append((Asked(wording.format(phrase.text), str(position), skill), wanted))
    # There are ten times as many ways to say "left of" as to say "middle": a skill weighs by the root of its number.
    crowd = Counter(asked.skill for asked, _ in found)
    # Drawing without replacement by weight is the order of exponential waiting times.
    times = [random.expovariate(max(wanted, 1e-6) / crowd[asked.skill] ** 0.5) for asked, wanted in found]
    return [found[i][0] for i in sorted(range(len(found)), key=times.__getitem__)]


def make_lesson(
    scene: Scene,
    random: Random,
    drills: int = 8,
    referring: int = 8,
    weights: Mapping[str, float] | None = None,
    usual: float = 0.8,
) -> Lesson:
    """Return one lesson about a scene: its list, and drills, referring questions and sometimes a caption, mixed.

    Args:
        scene: a scene with at least two objects.
        random: source of all choices; the same state gives the same lesson.
        drills: number of look-up, counting, sorting and comparing questions.
        referring: largest number of referring questions.
        weights: how much each skill is wanted, 1 where it is not named.
        usual: share of lists and referring questions in LLM-wrapper's writing.

    Raises:
        ValueError: the scene has fewer than two objects.
    """
    if len(scene.objects) < 2:
        raise ValueError(f"a lesson compares objects: expected at least 2, scene {scene.seed} has {len(scene.objects)}")
    items, order = shuffled_items(scene, random, 0.03, 0.05)
    wanted = [(weights or {}).get(name, 1.0) for name in DRILLS]
    questions = [Asked(*DRILLS[name](items, random), name) for name in random.choices(list(DRILLS), wanted, k=drills)]
    questions += referring_questions(scene, order, random, weights, usual)[:referring]
    if random.random() < 0.1:
        caption = random.choice(captions(scene, random))
        questions.append(Asked("Describe the picture without saying where things are.", caption, "caption"))
    random.shuffle(questions)
    return Lesson(write_list(items, random, usual), tuple(questions))
