"""What the words of VSR's seven meta-categories mean in the world, as tests on two objects of a scene.

Visual Spatial Reasoning (Liu et al., TACL 2023) asks whether "The cat is left of the car." is true of a picture. Here
each of its relations that a flat picture can settle has a definition: true, false, or None where two people might
disagree. A relation is only used where it is settled, so the labels carry no noise; what is hard about them is seeing.

Distances between boxes are fractions of the canvas' diagonal, horizontal ones of its width, vertical ones of its
height. Boxes are the visible ones, xyxy in pixels; a higher `depth` is in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from seewhere.world.headings import heading_of, kind_of
from seewhere.world.programs import center

if TYPE_CHECKING:
    from seewhere.world.scenes import Scene, SceneObject

Relation = Callable[["SceneObject", "SceneObject", "Scene"], bool | None]

SIDE_MARGIN = 0.08  # how far apart two centres are for "left of" to be beyond doubt
NEAR, NOT_NEAR = 0.06, 0.20  # gap between boxes: surely near up to the first, surely not from the second
FAR, NOT_FAR = 0.40, 0.15
COVERS = 0.15  # share of the smaller box that lies in the other one, from which the two touch beyond doubt
APART = 0.04  # gap from which they surely do not


def _sides(a: SceneObject, b: SceneObject, scene: Scene) -> tuple[float, float]:
    """Return how far the centre of `a` lies right of and below that of `b`, in widths and heights of the canvas."""
    (ax, ay), (bx, by) = center(a), center(b)
    return (ax - bx) / scene.width, (ay - by) / scene.height


def _gaps(a: SceneObject, b: SceneObject) -> tuple[float, float]:
    """Return the horizontal and the vertical gap between two boxes in pixels; 0 where they overlap on that axis."""
    return (
        max(a.box[0] - b.box[2], b.box[0] - a.box[2], 0.0),
        max(a.box[1] - b.box[3], b.box[1] - a.box[3], 0.0),
    )


def gap(a: SceneObject, b: SceneObject, scene: Scene) -> float:
    """Return the distance between two boxes as a share of the canvas' diagonal; 0 where they overlap."""
    return math.hypot(*_gaps(a, b)) / math.hypot(scene.width, scene.height)


def _shared(a: SceneObject, b: SceneObject, axis: int) -> float:
    """Return the overlap of two boxes along an axis (0 = x, 1 = y), as a share of the shorter side."""
    low, high = max(a.box[axis], b.box[axis]), min(a.box[axis + 2], b.box[axis + 2])
    shorter = min(a.box[axis + 2] - a.box[axis], b.box[axis + 2] - b.box[axis])
    return max(high - low, 0.0) / max(shorter, 1.0)


def _inside(a: SceneObject, b: SceneObject) -> float:
    """Return the share of the box of `a` that lies in the box of `b`."""
    width = max(min(a.box[2], b.box[2]) - max(a.box[0], b.box[0]), 0.0)
    height = max(min(a.box[3], b.box[3]) - max(a.box[1], b.box[1]), 0.0)
    return width * height / max((a.box[2] - a.box[0]) * (a.box[3] - a.box[1]), 1.0)


def _beyond_doubt(value: float, margin: float) -> bool | None:
    return None if abs(value) <= margin else value > 0


def _left_of(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    return _beyond_doubt(-_sides(a, b, scene)[0], SIDE_MARGIN)


def _above(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    return _beyond_doubt(-_sides(a, b, scene)[1], SIDE_MARGIN)


def _in_front_of(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    return None if max(_inside(a, b), _inside(b, a)) < COVERS else a.depth > b.depth


def _near(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    found = gap(a, b, scene)
    return True if found <= NEAR else False if found >= NOT_NEAR else None


def _far(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    found = gap(a, b, scene)
    return True if found >= FAR else False if found <= NOT_FAR else None


def _touching(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    if max(_inside(a, b), _inside(b, a)) >= COVERS:
        return True
    return False if gap(a, b, scene) >= APART else None


def _within(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    share = _inside(a, b)
    return True if share >= 0.8 else False if share <= 0.5 else None


def _beside(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    """Side by side: at one height, hardly overlapping left to right, with little room between."""
    if _shared(a, b, 1) < 0.2 or _gaps(a, b)[0] > 0.25 * scene.width:
        return False
    level, apart = _shared(a, b, 1) >= 0.5, _shared(a, b, 0) <= 0.25
    return True if level and apart and _gaps(a, b)[0] <= 0.12 * scene.width else None


def _at_side(left: bool) -> Relation:
    """Beside it, and on that side; false only of things beside it on the other side, or clearly off to that one."""

    def test(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
        near, is_left = _beside(a, b, scene), _left_of(a, b, scene)
        if is_left is None or near is None:
            return None
        if near:
            return is_left == left
        return None if is_left == left else False  # "at its left side, but far off" would be a matter of taste

    return test


def _facing(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    """Whether `a` looks towards the side on which `b` is; settled only for things at about one height."""
    heading, (right, below) = heading_of(a), _sides(b, a, scene)
    if heading is None or abs(right) < 0.12 or abs(below) > 0.30:
        return None
    return right * heading > 0


def _animal_facing(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    return _facing(a, b, scene) if kind_of(a) == "animal" else None


def _moving_toward(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    return _facing(a, b, scene) if kind_of(a) in ("walker", "vehicle") else None


def _opposite_to(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    """Face to face; false only of two that both look elsewhere."""
    both = _facing(a, b, scene), _facing(b, a, scene)
    return both[0] if None not in both and both[0] == both[1] else None


def _across_from(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    """On the other side of the picture at about the same height."""
    (ax, ay), (bx, by) = center(a), center(b)
    x, y = ax / scene.width - 0.5, bx / scene.width - 0.5
    if abs(x) < 0.12 or abs(y) < 0.12 or abs(ay - by) > 0.2 * scene.height:
        return None
    return x * y < 0


def _down_from(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    """Lower and to one side, as a thing that came down a slope."""
    right, below = _sides(a, b, scene)
    return None if abs(below) < 0.15 or abs(right) < 0.10 else below > 0


def _beyond(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
    """Farther into the picture: its foot stands higher, and it is drawn behind; settled for things nearly in line."""
    if _shared(a, b, 0) < 0.3 or abs(a.box[3] - b.box[3]) < 0.06 * scene.height:
        return None
    return a.depth < b.depth if (a.depth < b.depth) == (a.box[3] < b.box[3]) else None


def _swap(relation: Relation) -> Relation:
    return lambda a, b, scene: relation(b, a, scene)


def _negate(relation: Relation) -> Relation:
    def negated(a: SceneObject, b: SceneObject, scene: Scene) -> bool | None:
        found = relation(a, b, scene)
        return None if found is None else not found

    return negated


RELATIONS: dict[str, dict[str, Relation]] = {
    "Adjacency": {
        "at the left side of": _at_side(left=True),
        "at the right side of": _at_side(left=False),
        "alongside": _beside,
        "adjacent to": _near,
    },
    "Directional": {
        "toward": _moving_toward,
        "away from": _negate(_moving_toward),
        "across from": _across_from,
        "down from": _down_from,
    },
    "Orientation": {"facing": _animal_facing, "facing away from": _negate(_animal_facing)},
    "Projective": {
        "left of": _left_of,
        "right of": _swap(_left_of),
        "above": _above,
        "below": _swap(_above),
        "in front of": _in_front_of,
        "behind": _swap(_in_front_of),
        "beside": _beside,
    },
    "Proximity": {"near": _near, "close to": _near, "far from": _far, "far away from": _far},
    "Topological": {
        "touching": _touching,
        "detached from": _negate(_touching),
        "within": _within,
        "contains": _swap(_within),
    },
    "Unallocated": {"next to": _near, "beyond": _beyond, "opposite to": _opposite_to},
}
"""VSR's meta-category -> relation -> its meaning: (subject, object, scene) -> true, false, or None (not settled)."""

MEANING: dict[str, Relation] = {name: test for group in RELATIONS.values() for name, test in group.items()}
"""Relation -> its meaning."""
