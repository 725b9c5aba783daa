"""The world's spatial statements: sentences about two objects that are true or false of a picture, as in VSR.

Visual Spatial Reasoning (Liu et al., TACL 2023) is a list of captions such as "The cat is left of the car.", each with
a label. Here a statement carries its meaning as a program (relation, subject, object), so that its label is what the
program says of the scene. A model that never sees the picture must not get far, so statements are chosen such that
every relation is as often true as false, and nearly so for every relation together with its subject or its object.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from seewhere.world.programs import Program, evaluate
from seewhere.world.relations import MEANING, RELATIONS

if TYPE_CHECKING:
    from seewhere.world.scenes import Scene

STATEMENTS_VERSION = "1"
"""Raised whenever the same scenes would give other statements."""

AIM = 4
"""Statements per scene that are aimed at over a whole split; no scene has more than half as many again."""
_OFFERED = 2  # true ones and false ones of a relation that a scene offers for choice

# Relations that are not said with "is".
_VERBS = {"contains": "contains"}
CATEGORY_OF = {relation: category for category, group in RELATIONS.items() for relation in group}
"""Relation -> its meta-category."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence about one scene, the program that is its meaning, and whether it is true there.

    `subject` and `object` are noun phrases without article ("red car"); `nouns` their categories.
    """

    image_id: int
    text: str
    relation: str
    subject: str
    object: str
    program: Program
    label: bool
    nouns: tuple[str, str]

    @property
    def category(self) -> str:
        """VSR's meta-category of the relation."""
        return CATEGORY_OF[self.relation]


def holds(program: Program, scene: Scene) -> bool | None:
    """Run a statement's program ``("holds", relation, S, R)`` on a scene.

    Args:
        program: S and R are programs of `seewhere.world.programs`; each must denote exactly one object.
        scene: the scene.

    Returns:
        Whether the relation holds between the two, or None where the scene leaves it open or S or R denote none or
        several objects.

    Raises:
        ValueError: not such a program, or a relation that has no meaning here.
    """
    if len(program) != 4 or program[0] != "holds" or program[1] not in MEANING:
        raise ValueError(f"expected ('holds', relation, S, R) with a relation of {sorted(MEANING)}; got {program!r}")
    _, relation, first, second = program
    subjects, objects = evaluate(first, scene), evaluate(second, scene)
    if len(subjects) != 1 or len(objects) != 1 or subjects == objects:
        return None
    return MEANING[relation](scene.objects[min(subjects)], scene.objects[min(objects)], scene)


def sentence(relation: str, subject: str, other: str) -> str:
    """Return a statement as VSR words it: "The cat is left of the car."."""
    return f"The {subject} {_VERBS.get(relation, f'is {relation}')} the {other}."


def candidates(scene: Scene) -> list[Statement]:
    """Return statements that a scene settles, true and false ones of each relation alike where it has both.

    At most two true and two false ones of each relation, drawn by the scene's seed. Subjects and objects are the things
    that can be named without doubt: alone of their category, or alone in their colour.
    """
    random = Random(f"statements {STATEMENTS_VERSION} {scene.seed}")
    named = _nameable(scene)
    found: list[Statement] = []
    for relation, test in MEANING.items():
        pairs = [(a, b) for a in named for b in named if a != b]
        random.shuffle(pairs)
        left = {True: _OFFERED, False: _OFFERED}
        for a, b in pairs:
            label = test(scene.objects[a], scene.objects[b], scene)
            if label is None or not left[label]:
                continue
            left[label] -= 1
            (subject, first), (other, second) = named[a], named[b]
            text, nouns = sentence(relation, subject, other), (scene.objects[a].category, scene.objects[b].category)
            program: Program = ("holds", relation, first, second)
            found.append(Statement(scene.seed, text, relation, subject, other, program, label, nouns))
    return found


def _nameable(scene: Scene) -> dict[int, tuple[str, Program]]:
    """Return object index -> (noun phrase, program) for the objects that category or colour single out."""
    found: dict[int, tuple[str, Program]] = {}
    for i, item in enumerate(scene.objects):
        plain: Program = ("category", item.category)
        tinted: Program = ("tint", item.tint, plain)
        if evaluate(plain, scene) == {i}:
            found[i] = item.category, plain
        elif item.tint and evaluate(tinted, scene) == {i}:
            found[i] = f"{item.tint} {item.category}", tinted
    return found


# -- choosing --------------------------------------------------------------------------------------------------------


def balanced(offered: Iterable[Statement], scenes: int, seed: int = 0, aim: int = AIM) -> list[Statement]:
    """Choose from what the scenes of a split offer, so that little can be guessed without the picture.

    Every relation comes out exactly as often true as false; together with its subject's or its object's category the
    two differ by two at most. The seven meta-categories are of about one size as far as the scenes allow.

    Args:
        offered: of `candidates`, all scenes of the split.
        scenes: number of scenes of the split.
        seed: of the order in which they are considered.
        aim: statements per scene. Far more than `AIM` come out fewer: the rare relations are used up.

    Returns:
        The chosen ones by image id, then relation.
    """
    by_relation: dict[str, list[Statement]] = defaultdict(list)
    for item in offered:
        by_relation[item.relation].append(item)
    chooser = _Chooser(Random(f"balance {STATEMENTS_VERSION} {seed}"), aim + aim // 2)
    # The rarest first: scenes take only so many statements, and the common ones find room elsewhere.
    for relation in sorted(by_relation, key=lambda name: (len(by_relation[name]), name)):
        share = aim * scenes / len(RELATIONS) / len(RELATIONS[CATEGORY_OF[relation]])
        chooser.choose(by_relation[relation], round(share / 2))
    order = {name: place for place, name in enumerate(MEANING)}
    return sorted(chooser.chosen, key=lambda s: (s.image_id, order[s.relation], s.text))


class _Chooser:
    """Takes statements such that no noun tilts its relation one way, and no scene has too many of them."""

    def __init__(self, random: Random, most: int) -> None:
        self.random, self.most = random, most
        self.chosen: list[Statement] = []
        self.in_scene: Counter[int] = Counter()

    def choose(self, offered: Sequence[Statement], pairs: int) -> None:
        """Choose up to `pairs` true and as many false statements of one relation."""
        rest = list(offered)
        self.random.shuffle(rest)
        tilt: Counter[tuple[str, str]] = Counter()  # (role, noun) -> true minus false
        taken: dict[bool, list[Statement]] = {True: [], False: []}
        before = -1
        while before != len(rest):  # each statement that is taken makes room for its opposites, also earlier ones
            before = len(rest)
            rest = [item for item in rest if not self._take(item, taken, tilt, pairs)]
        while len(taken[True]) != len(taken[False]):
            longer = taken[len(taken[True]) > len(taken[False])]
            self._give_back(longer, tilt)
        self.chosen += taken[True] + taken[False]

    def _take(self, item: Statement, taken: Mapping[bool, list[Statement]], tilt: Counter, pairs: int) -> bool:
        sign = 1 if item.label else -1
        if len(taken[item.label]) >= pairs or self.in_scene[item.image_id] >= self.most:
            return False
        if max(sign * tilt[key] for key in _keys(item)) > 0:
            return False
        taken[item.label].append(item)
        self.in_scene[item.image_id] += 1
        for key in _keys(item):
            tilt[key] += sign
        return True

    def _give_back(self, longer: list[Statement], tilt: Counter) -> None:
        """Drop the statement of the commoner label whose nouns lean that way most."""
        sign = 1 if longer[0].label else -1
        item = max(longer, key=lambda s: sum(sign * tilt[key] for key in _keys(s)))
        longer.remove(item)
        self.in_scene[item.image_id] -= 1
        for key in _keys(item):
            tilt[key] -= sign


def _keys(item: Statement) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("subject", item.nouns[0]), ("object", item.nouns[1])


def record(item: Statement, file_name: str) -> dict[str, Any]:
    """Return a statement as a line of VSR's jsonl, with its program in a field of its own."""
    return {
        "image": file_name,
        "image_link": "",
        "caption": item.text,
        "label": int(item.label),
        "relation": item.relation,
        "subj": item.subject,
        "obj": item.object,
        "annotator_id": 0,
        "vote_true_validator_id": "[]",
        "vote_false_validator_id": "[]",
        "program": item.program,
    }
