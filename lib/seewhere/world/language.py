"""The world's language: captions that never tell place, and referring expressions in the four published styles.

The styles follow the data sets a reader knows: ``short`` (RefCOCO: terse, place words welcome), ``plus`` (RefCOCO+:
no place words), ``relational`` (RefCOCOg: whole noun phrases that lean on other objects) and ``long`` (HC-RefLoCo:
a paragraph). Every phrase carries a program (`seewhere.world.programs`) whose value on the scene is exactly the
target; a phrase whose program says anything else is never emitted.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from seewhere.world.programs import Program, evaluate

if TYPE_CHECKING:
    from seewhere.world.scenes import Scene, SceneObject

__all__ = ["PLACE_WORDS", "STYLES", "SYNONYMS", "Phrase", "captions", "evaluate", "expressions", "plural"]

STYLES = ("short", "plus", "relational", "long")

# What people say for a COCO category besides its name; a baseline that matches words to labels needs them too.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "airplane": ("plane",),
    "bicycle": ("bike",),
    "cell phone": ("phone",),
    "couch": ("sofa",),
    "dining table": ("table",),
    "donut": ("doughnut",),
    "hair drier": ("hair dryer",),
    "laptop": ("computer",),
    "motorcycle": ("motorbike",),
    "person": ("human",),
    "potted plant": ("plant",),
    "refrigerator": ("fridge",),
    "sports ball": ("ball",),
    "teddy bear": ("teddy",),
    "traffic light": ("signal",),
    "tv": ("television", "screen"),
    "wine glass": ("glass",),
}
PLACE_WORDS = frozenset(
    [
        "left",
        "right",
        "top",
        "bottom",
        "middle",
        "center",
        "above",
        "below",
        "under",
        "over",
        "upper",
        "lower",
        "leftmost",
        "rightmost",
        "between",
        "first",
        "second",
        "third",
        "fourth",
        "corner",
        "side",
    ]
)
_ORDINALS = {1: "first", 2: "second", 3: "third", 4: "fourth"}
_PLURALS = {
    "person": "people", "sheep": "sheep", "mouse": "mice", "knife": "knives", "skis": "skis",
    "scissors": "scissors", "human": "humans", "wine glass": "wine glasses", "toothbrush": "toothbrushes",
    "calf": "calves", "leaf": "leaves", "wolf": "wolves", "goose": "geese", "fish": "fish",
}  # fmt: skip
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight",
            9: "nine", 10: "ten"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Phrase:
    """A referring expression: its text, its style, the program that is its meaning, and the target's index."""

    text: str
    style: str
    program: Program
    target: int


def plural(noun: str) -> str:
    """Return the plural of a category name or synonym."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _noun(category: str, random: Random) -> str:
    choices = SYNONYMS.get(category, ())
    return random.choice(choices) if choices and random.random() < 0.3 else category


def _landmarks(scene: Scene, target: int) -> list[tuple[str, Program]]:
    """Return (noun phrase without article, program) for every other object that can be named uniquely."""
    found: list[tuple[str, Program]] = []
    for i, item in enumerate(scene.objects):
        if i == target:
            continue
        named: Program = ("category", item.category)
        if evaluate(named, scene) == {i}:
            found.append((item.category, named))
        elif item.tint and evaluate(("tint", item.tint, named), scene) == {i}:
            found.append((f"{item.tint} {item.category}", ("tint", item.tint, named)))
    return found


def _short(scene: Scene, item: SceneObject, random: Random) -> Iterator[tuple[str, Program]]:
    of: Program = ("category", item.category)
    noun = _noun(item.category, random)
    yield noun, of
    for axis in ("left", "right", "top", "bottom"):
        texts = [f"{noun} on {axis}", f"{axis} {noun}", f"{noun} on the {axis}", f"{axis}most {noun}"]
        if axis in ("top", "bottom"):
            texts = [f"{axis} {noun}", f"{noun} at {axis}", f"{noun} on {axis}", f"{noun} at the {axis}"]
        yield random.choice(texts), ("rank", axis, 1, of)
    for rank in (2, 3):
        for axis in ("left", "right"):
            yield f"{_ORDINALS[rank]} {noun} from {axis}", ("rank", axis, rank, of)
    yield random.choice([f"{noun} in middle", f"middle {noun}", f"{noun} in the middle"]), ("middle", of)
    yield random.choice([f"big {noun}", f"biggest {noun}", f"largest {noun}"]), ("rank", "large", 1, of)
    yield random.choice([f"small {noun}", f"smallest {noun}", f"little {noun}"]), ("rank", "small", 1, of)
    for vertical in ("top", "bottom"):
        for horizontal in ("left", "right"):
            both: Program = ("and", ("rank", vertical, 1, of), ("rank", horizontal, 1, of))
            yield random.choice([f"{vertical} {horizontal} {noun}", f"{noun} {vertical} {horizontal}"]), both
    if item.tint:
        yield f"{item.tint} {noun}", ("tint", item.tint, of)


def _plus(scene: Scene, item: SceneObject, random: Random) -> Iterator[tuple[str, Program]]:
    of: Program = ("category", item.category)
    noun = _noun(item.category, random)
    yield noun, of
    yield random.choice([f"big {noun}", f"biggest {noun}", f"the larger {noun}"]), ("rank", "large", 1, of)
    yield random.choice([f"small {noun}", f"tiny {noun}", f"the smaller {noun}"]), ("rank", "small", 1, of)
    yield random.choice([f"partly hidden {noun}", f"{noun} that is partly covered"]), ("hidden", of)
    if item.tint:
        tinted: Program = ("tint", item.tint, of)
        yield random.choice([f"{item.tint} {noun}", f"{noun} that is {item.tint}"]), tinted
        yield f"big {item.tint} {noun}", ("rank", "large", 1, tinted)
        yield f"small {item.tint} {noun}", ("rank", "small", 1, tinted)
    for other, landmark in _landmarks(scene, item.index)[:4]:
        near: Program = ("nearest", of, landmark)
        yield random.choice([f"{noun} near {other}", f"{noun} next to the {other}"]), near
        yield f"{noun} touching the {other}", ("relation", "overlaps", of, landmark)


_RELATION_WORDS = {
    "left of": ("to the left of", "on the left side of"),
    "right of": ("to the right of", "on the right side of"),
    "above": ("above", "higher up than"),
    "below": ("below", "lower down than"),
}


def _relational(scene: Scene, item: SceneObject, random: Random) -> Iterator[tuple[str, Program]]:
    of: Program = ("category", item.category)
    noun = _noun(item.category, random)
    heads: list[tuple[str, Program]] = [(noun, of)]
    if item.tint and random.random() < 0.25:
        heads.append((f"{item.tint} {noun}", ("tint", item.tint, of)))
    landmarks = _landmarks(scene, item.index)
    random.shuffle(landmarks)
    for head, members in heads:
        start = random.choice(["the ", _article(head).removesuffix(head)]) + head
        for other, landmark in landmarks[:4]:
            for name, words in _RELATION_WORDS.items():
                yield f"{start} {random.choice(words)} the {other}", ("relation", name, members, landmark)
            near = random.choice(["closest to", "nearest to", "next to"])
            yield f"{start} {near} the {other}", ("nearest", members, landmark)
            yield f"{start} farthest from the {other}", ("farthest", members, landmark)
            yield f"{start} that overlaps the {other}", ("relation", "overlaps", members, landmark)
        for (one, first), (two, second) in itertools.pairwise(landmarks):
            yield f"{start} between the {one} and the {two}", ("between", members, first, second)
            yield (
                f"{start} to the left of the {one} and below the {two}",
                ("and", ("relation", "left of", members, first), ("relation", "below", members, second)),
            )
            yield (
                f"{start} to the right of the {one} and above the {two}",
                ("and", ("relation", "right of", members, first), ("relation", "above", members, second)),
            )
        for axis, word in (("left", "farthest to the left"), ("right", "farthest to the right"),
                           ("top", "highest up"), ("bottom", "lowest down")):  # fmt: skip
            yield f"{start} that is {word}", ("rank", axis, 1, members)
    yield f"the largest of the {plural(noun)}", ("rank", "large", 1, of)
    yield f"the smallest of the {plural(noun)}", ("rank", "small", 1, of)


def _facts(scene: Scene, item: SceneObject, random: Random) -> Iterator[tuple[str, Program]]:
    """Yield (sentence, program) pairs that are true of the object, in random order; none need be unique."""
    of: Program = ("category", item.category)
    several = plural(item.category)
    count = len(evaluate(of, scene))
    facts: list[tuple[str, Program]] = []
    if count > 1:
        for axis in ("left", "right", "top", "bottom"):
            for rank in range(1, min(count, 4) + 1):
                which = f"the {_ORDINALS[rank]} one" if rank > 1 else "the one"
                text = f"Counting the {several} from the {axis}, it is {which} you meet first."
                if rank > 1:
                    text = f"Counting the {several} from the {axis}, it is {which}."
                facts.append((text, ("rank", axis, rank, of)))
        facts.append((f"No other {item.category} takes up as much room as this one.", ("rank", "large", 1, of)))
        facts.append((f"Every other {item.category} takes up more room.", ("rank", "small", 1, of)))
    if item.tint:
        facts.append((f"Its colour has a clear {item.tint} tone.", ("tint", item.tint, of)))
    for other, landmark in _landmarks(scene, item.index):
        facts += [
            (f"It can be seen to the left of the {other}.", ("relation", "left of", of, landmark)),
            (f"It can be seen to the right of the {other}.", ("relation", "right of", of, landmark)),
            (f"It sits higher up in the picture than the {other}.", ("relation", "above", of, landmark)),
            (f"It sits lower down in the picture than the {other}.", ("relation", "below", of, landmark)),
        ]
    random.shuffle(facts)
    yield from ((t, p) for t, p in facts if item.index in evaluate(p, scene))


def _long(scene: Scene, item: SceneObject, random: Random) -> Iterator[tuple[str, Program]]:
    """Yield one paragraph of at least five sentences whose conjunction is unique, or nothing."""
    of: Program = ("category", item.category)
    facts = list(_facts(scene, item, random))[:8]
    count = len(evaluate(of, scene))
    if len(facts) < 3:
        return
    opening = random.choice(
        [
            f"The object that we are looking for in this picture is {_article(item.category)}.",
            f"Please look for one particular {item.category} somewhere in this busy picture.",
            f"What the speaker has in mind here is one certain {item.category} among all these things.",
        ]
    )
    amount = f"There {'are' if count > 1 else 'is'} {_NUMBERS.get(count, str(count))} " + (
        f"{plural(item.category)} in view." if count > 1 else f"{item.category} in view."
    )
    closing = random.choice(
        ["Everything else around it can safely be ignored.", "Only this one fits the whole description.", ""]
    )
    text = " ".join([opening, amount, *(t for t, _ in facts), closing]).strip()
    yield text, ("and", of, *(p for _, p in facts))


_WRITERS = {"short": _short, "plus": _plus, "relational": _relational, "long": _long}


def expressions(scene: Scene, object_index: int, style: str, random: Random) -> list[Phrase]:
    """Return every phrase of one style that denotes exactly one object of a scene.

    Args:
        scene: the scene.
        object_index: index of the target in ``scene.objects``.
        style: one of `STYLES`.
        random: source of wording choices; the same state gives the same phrases.

    Returns:
        Distinct phrases, possibly none (an object that the style cannot single out). The bare noun comes first
        where it suffices.

    Raises:
        ValueError: unknown style.
    """
    if style not in _WRITERS:
        raise ValueError(f"unknown style {style!r}; expected one of {STYLES}")
    item = scene.objects[object_index]
    found: dict[str, Phrase] = {}
    for text, program in _WRITERS[style](scene, item, random):
        if text not in found and evaluate(program, scene) == {object_index}:
            found[text] = Phrase(text, style, program, object_index)
    return list(found.values())


def _listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def captions(scene: Scene, random: Random) -> list[str]:
    """Return captions that name what is in a scene (with counts and colours) and never where it is."""
    counts = Counter(o.category for o in scene.objects)
    names = list(counts)
    random.shuffle(names)
    parts = [_article(n) if counts[n] == 1 else f"{_NUMBERS.get(counts[n], counts[n])} {plural(n)}" for n in names]
    tinted = [f"{_article(f'{o.tint} {o.category}')}" for o in scene.objects if o.tint]
    result = [
        f"a picture of {_listing(parts)}",
        f"{_listing(parts)} on a {scene.background} background",
    ]
    if tinted:
        result.append(f"a picture with {_listing(sorted(set(tinted)))}")
    return result
