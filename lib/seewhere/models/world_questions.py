"""Instructions about pictures of the world that tell no place, with short answers: what the instruct variant learns.

Like the public instruction sets that InstructBLIP was tuned on they ask for presence, number, colour, setting, a
description, and whether a statement is true; unlike some of those, none of them asks where a thing is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from seewhere.models.world_pairs import PLACE_OF_ALL, twist
from seewhere.world.language import captions, plural
from seewhere.world.scenes import Scene
from seewhere.world.sprites import load_sprites

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DESCRIBE = "describe the picture"


def _absent(scene: Scene, random: Random) -> str:
    present = {o.category for o in scene.objects}
    return random.choice([c.name for c in load_sprites().coco if c.name not in present])


def _is_there(scene: Scene, random: Random) -> tuple[str, str]:
    truth = random.random() < 0.5
    name = random.choice(scene.objects).category if truth else _absent(scene, random)
    return f"is there {'an' if name[0] in 'aeiou' else 'a'} {name} in the picture?", "yes" if truth else "no"


def _how_many(scene: Scene, random: Random) -> tuple[str, str]:
    counts = Counter(o.category for o in scene.objects)
    repeated = [c for c, n in counts.items() if n > 1]
    if random.random() < 0.15:
        name = _absent(scene, random)
    else:
        name = random.choice(repeated if repeated and random.random() < 0.6 else list(counts))
    return f"how many {plural(name)} are there?", NUMBERS[counts[name]]


def _what_colour(scene: Scene, random: Random) -> tuple[str, str]:
    counts = Counter(o.category for o in scene.objects)
    tinted = [o for o in scene.objects if o.tint and counts[o.category] == 1]
    if not tinted:
        return _how_many(scene, random)
    item = random.choice(tinted)
    return f"what colour is the {item.category}?", str(item.tint)


def _what_background(scene: Scene, random: Random) -> tuple[str, str]:
    return "what is the background?", scene.background


def _describe(scene: Scene, random: Random) -> tuple[str, str]:
    return DESCRIBE, captions(scene, random)[PLACE_OF_ALL]


def _is_true(scene: Scene, random: Random) -> tuple[str, str]:
    made = twist(scene, random)
    return statement_question(made.true if (truth := random.random() < 0.5) else made.false), "yes" if truth else "no"


def statement_question(statement: str) -> str:
    """Return the yes/no question whether a statement is true of the picture."""
    return f"is this true? {statement}"


_ASKED: tuple[Callable[[Scene, Random], tuple[str, str]], ...] = (
    _is_there,
    _how_many,
    _what_colour,
    _what_background,
    _describe,
    _describe,
    _is_true,
    _is_true,
)


def question(scene: Scene, random: Random) -> tuple[str, str]:
    """Return one (instruction, answer) about a scene."""
    return random.choice(_ASKED)(scene, random)
