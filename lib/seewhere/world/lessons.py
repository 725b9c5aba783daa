"""Lessons: a scene written out as a list of boxes, and many small questions about that one list.

A small language model that reads only box lists does not learn to choose a box from the choice alone: the skill
rests on looking things up (what is box 3?), matching words, and comparing numbers, and these form late. A lesson asks
for all of them at once, so that every pass over a list is paid for by a dozen answers. Lists come in several
writings, so that what is learned is the task and not one prompt.

Coordinates are integers 0-100 of the picture's width and height, xyxy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from seewhere.world.language import captions, expressions, plural

if TYPE_CHECKING:
    from seewhere.world.scenes import Scene

Box = tuple[int, int, int, int]
Item = tuple[str, Box]
REFERRING_STYLES = ("short", "relational", "plus")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One list of boxes as text, and questions with their answers; every question stands alone after the list."""

    context: str
    questions: tuple[tuple[str, str], ...]


def percent_box(box: Sequence[float], size: tuple[int, int]) -> Box:
    """Return a box (pixels, xyxy) as integers 0-100 of (width, height)."""
    sides = (size[0], size[1], size[0], size[1])
    x1, y1, x2, y2 = (min(max(round(100 * float(v) / s), 0), 100) for v, s in zip(box, sides, strict=True))
    return x1, y1, x2, y2


def shuffled_items(scene: Scene, random: Random) -> tuple[list[Item], list[int]]:
    """Return (label, box) items in random order with a little box noise, and each item's object index."""
    order = list(range(len(scene.objects)))
    random.shuffle(order)
    items: list[Item] = []
    for i in order:
        x1, y1, x2, y2 = scene.objects[i].box
        noise = [random.gauss(0, 0.02) for _ in range(4)]
        width, height = x2 - x1, y2 - y1
        sides = (width, height, width, height)
        box = [v + n * s for v, n, s in zip((x1, y1, x2, y2), noise, sides, strict=True)]
        items.append((scene.objects[i].category, percent_box(box, (scene.width, scene.height))))
    return items, order


def write_list(items: Sequence[Item], random: Random) -> str:
    """Write items in one of several list writings; indices count from 0."""
    style = random.choice(["bullets", "bullets", "rows", "prose"])
    if style == "bullets":
        head = random.choice(["The image contains {n} boxes:", "There are {n} boxes:", "Boxes in the image: {n}"])
        lines = [f'- {i}: "{label}", [{", ".join(map(str, box))}]' for i, (label, box) in enumerate(items)]
    elif style == "rows":
        head = random.choice(["{n} things, one in a row:", "Index, name, box ({n} rows):"])
        lines = [f"{i} {label} {' '.join(map(str, box))}" for i, (label, box) in enumerate(items)]
    else:
        head = "The picture shows {n} things."
        lines = [f"Box {i} is a {label} at {', '.join(map(str, box))}." for i, (label, box) in enumerate(items)]
    return "\n".join([head.format(n=len(items)), *lines])


def _middle(box: Box) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def _size(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _look_up(items: Sequence[Item], random: Random) -> tuple[str, str]:
    i = random.randrange(len(items))
    label, box = items[i]
    if random.random() < 0.5:
        return random.choice([f"What is box {i}?", f"What is in box {i}?"]), label
    return random.choice([f"Where is box {i}?", f"Give the corners of box {i}."]), ", ".join(map(str, box))


def _which(items: Sequence[Item], random: Random) -> tuple[str, str]:
    label = random.choice(items)[0]
    found = [str(i) for i, (other, _) in enumerate(items) if other == label]
    if random.random() < 0.3:
        return f"How many {plural(label)} are there?", str(len(found))
    return random.choice([f"Which boxes show a {label}?", f"Find: {label}"]), ", ".join(found)


def _middle_of(items: Sequence[Item], random: Random) -> tuple[str, str]:
    i = random.randrange(len(items))
    return f"Where is the middle of box {i}?", ", ".join(map(str, _middle(items[i][1])))


_ORDERS: dict[str, Callable[[Box], int]] = {
    "from left to right": lambda b: b[0] + b[2],
    "from right to left": lambda b: -b[0] - b[2],
    "from top to bottom": lambda b: b[1] + b[3],
    "from bottom to top": lambda b: -b[1] - b[3],
    "from small to large": _size,
    "from large to small": lambda b: -_size(b),
}


def _sort(items: Sequence[Item], random: Random) -> tuple[str, str]:
    repeated = [label for label, _ in items if sum(other == label for other, _ in items) > 1]
    label = random.choice(repeated) if repeated else random.choice(items)[0]
    name, key = random.choice(list(_ORDERS.items()))
    found = sorted((i for i, (other, _) in enumerate(items) if other == label), key=lambda i: key(items[i][1]))
    return f"List the {plural(label)} {name}.", ", ".join(map(str, found))


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


_DRILLS = (_look_up, _which, _which, _middle_of, _sort, _sort, _compare)
_ASK = ('Which box is "{}"?', "Which box shows {}?", "Find: {}", 'Which box best matches "{}"?')


def referring_questions(
    scene: Scene, order: Sequence[int], random: Random, distractors_only: float = 0.8
) -> list[tuple[str, str]]:
    """Return (question, index) pairs for phrases whose target stands in the list, in random order.

    Args:
        scene: the scene.
        order: object index at each list position.
        random: source of choices.
        distractors_only: chance to leave out a phrase about an object that is alone in its category.
    """
    categories = [o.category for o in scene.objects]
    found = []
    for position, index in enumerate(order):
        if categories.count(categories[index]) == 1 and random.random() < distractors_only:
            continue
        for style in REFERRING_STYLES:
            for phrase in expressions(scene, index, style, random):
                found.append((random.choice(_ASK).format(phrase.text), str(position)))
    random.shuffle(found)
    return found


def make_lesson(scene: Scene, random: Random, drills: int = 8, referring: int = 8) -> Lesson:
    """Return one lesson about a scene: its list, drill questions, referring questions and one caption.

    Args:
        scene: a scene with at least two objects.
        random: source of all choices; the same state gives the same lesson.
        drills: number of look-up, counting, sorting and comparing questions.
        referring: largest number of referring questions.

    Raises:
        ValueError: the scene has fewer than two objects.
    """
    if len(scene.objects) < 2:
        raise ValueError(f"a lesson compares objects: expected at least 2, scene {scene.seed} has {len(scene.objects)}")
    items, order = shuffled_items(scene, random)
    questions = [random.choice(_DRILLS)(items, random) for _ in range(drills)]
    questions += referring_questions(scene, order, random)[:referring]
    questions.append(("Describe the picture without saying where things are.", random.choice(captions(scene, random))))
    return Lesson(write_list(items, random), tuple(questions))
