"""Meaning of the world's referring expressions: small programs that are run on a scene.

An expression is only worth a label if it picks out exactly one object. Every phrase of the world therefore carries
a program, and the phrase is emitted only if running the program on the scene returns its target and nothing else.
Programs are nested tuples of strings and numbers, so they can be stored as JSON beside the text.

Grammar (S is a program that yields a set of object indices)::

    ("category", name)                 every object of that category
    ("tint", colour, S)                those of S tinted in that colour
    ("rank", axis, k, S)               the k-th (1-based) of S along an axis: left, right, top, bottom,
                                       large, small, front, center
    ("middle", S)                      the middle one, left to right, of an odd number >= 3
    ("relation", name, S, R)           those of S in that relation to the one object of R:
                                       left of, right of, above, below, overlaps
    ("nearest"|"farthest", S, R)       the one of S nearest to (farthest from) the one object of R
    ("between", S, R1, R2)             those of S between two single objects, left to right
    ("hidden", S)                      those of S partly covered by another object
    ("and", S, ...)                    intersection
    ("except", S, R)                   S without R

Ranks and distances compare, so they mean nothing among fewer than two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seewhere.world.scenes import Scene, SceneObject

Program = tuple[Any, ...]

# Below these margins (fractions of the canvas side, or ratios) two people would argue about who is "left" or
# "bigger", so a program that depends on such a comparison has no answer.
PLACE_MARGIN = 0.04
SIZE_RATIO = 1.25
NEAR_RATIO = 1.2
HIDDEN_BELOW, WHOLE_ABOVE = 0.85, 0.97


class AmbiguousProgram(ValueError):
    """The scene does not settle a comparison that the program makes clearly enough."""


def center(item: SceneObject) -> tuple[float, float]:
    """Return the centre (x, y) of an object's visible box in pixels."""
    x1, y1, x2, y2 = item.box
    return (x1 + x2) / 2, (y1 + y2) / 2


def box_area(item: SceneObject) -> float:
    """Return the area of an object's visible box in square pixels (what a box list lets a reader see)."""
    x1, y1, x2, y2 = item.box
    return (x2 - x1) * (y2 - y1)


def distance(a: SceneObject, b: SceneObject) -> float:
    """Return the distance between two box centres in pixels."""
    (ax, ay), (bx, by) = center(a), center(b)
    return math.hypot(ax - bx, ay - by)


def _axis(axis: str, scene: Scene) -> tuple[Callable[[SceneObject], float], Callable[[float, float], bool]]:
    """Return a sort key (first rank = smallest key) and a rule that says whether two neighbouring keys differ."""
    width, height = scene.width, scene.height
    side = {"left": width, "right": width, "top": height, "bottom": height}.get(axis, max(width, height))

    def apart(a: float, b: float) -> bool:
        return b - a > PLACE_MARGIN * side

    keys: dict[str, Callable[[SceneObject], float]] = {
        "left": lambda o: center(o)[0],
        "right": lambda o: -center(o)[0],
        "top": lambda o: center(o)[1],
        "bottom": lambda o: -center(o)[1],
        "center": lambda o: math.hypot(center(o)[0] - width / 2, center(o)[1] - height / 2),
    }
    if axis in keys:
        return keys[axis], apart
    if axis == "large":
        return (lambda o: -math.log(box_area(o))), (lambda a, b: b - a > math.log(SIZE_RATIO))
    if axis == "small":
        return (lambda o: math.log(box_area(o))), (lambda a, b: b - a > math.log(SIZE_RATIO))
    raise ValueError(f"unknown axis {axis!r}; known: {[*keys, 'large', 'small']}")


def _rank(axis: str, k: int, members: set[int], scene: Scene) -> set[int]:
    key, apart = _axis(axis, scene)
    order = sorted(members, key=lambda i: key(scene.objects[i]))
    if len(order) < 2:
        # The only dog is the leftmost one even when it stands at the right edge: true, and nothing one would say.
        raise AmbiguousProgram("nothing to compare with")
    if len(order) < k:
        return set()
    values = [key(scene.objects[i]) for i in order]
    for neighbour in (k - 2, k):
        if 0 <= neighbour < len(order):
            low, high = sorted((k - 1, neighbour))
            if not apart(values[low], values[high]):
                raise AmbiguousProgram(f"rank {k} from {axis} is not clear")
    return {order[k - 1]}


def _single(members: set[int]) -> int:
    if len(members) != 1:
        raise AmbiguousProgram(f"expected one landmark, found {len(members)}")
    return next(iter(members))


def _related(name: str, item: SceneObject, landmark: SceneObject, scene: Scene) -> bool:
    (ix, iy), (lx, ly) = center(item), center(landmark)
    if name == "overlaps":
        a, b = item.box, landmark.box
        inside = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        return min(inside) > 0
    signed = {
        "left of": (lx - ix) / scene.width,
        "right of": (ix - lx) / scene.width,
        "above": (ly - iy) / scene.height,
        "below": (iy - ly) / scene.height,
    }
    if name not in signed:
        raise ValueError(f"unknown relation {name!r}; known: {[*signed, 'overlaps']}")
    if abs(signed[name]) <= PLACE_MARGIN:
        raise AmbiguousProgram(f"{name!r} is not clear")
    return signed[name] > 0


def _by_distance(farthest: bool, members: set[int], landmark: SceneObject, scene: Scene) -> set[int]:
    order = sorted(members, key=lambda i: distance(scene.objects[i], landmark) * (-1 if farthest else 1))
    if len(order) < 2:
        raise AmbiguousProgram("nothing to compare with")
    first, second = (distance(scene.objects[i], landmark) for i in order[:2])
    if max(first, second) < NEAR_RATIO * min(first, second):
        raise AmbiguousProgram("two objects are about equally far")
    return {order[0]}


def _between(members: set[int], first: SceneObject, second: SceneObject, scene: Scene) -> set[int]:
    low, high = sorted((center(first)[0], center(second)[0]))
    margin = PLACE_MARGIN * scene.width
    found = set()
    for i in members:
        x = center(scene.objects[i])[0]
        if low + margin < x < high - margin:
            found.add(i)
        elif low - margin < x < high + margin:
            raise AmbiguousProgram("'between' is not clear")
    return found


def _hidden(members: set[int], scene: Scene) -> set[int]:
    visible = {i: scene.objects[i].visible_fraction for i in members}
    if any(HIDDEN_BELOW <= v <= WHOLE_ABOVE for v in visible.values()):
        raise AmbiguousProgram("'partly hidden' is not clear")
    return {i for i, v in visible.items() if v < HIDDEN_BELOW}


def _run(program: Program, scene: Scene) -> set[int]:
    head, *rest = program
    if head == "category":
        return {i for i, o in enumerate(scene.objects) if o.category == rest[0]}
    if head == "tint":
        return {i for i in _run(rest[1], scene) if scene.objects[i].tint == rest[0]}
    if head == "rank":
        return _rank(rest[0], int(rest[1]), _run(rest[2], scene), scene)
    if head == "hidden":
        return _hidden(_run(rest[0], scene), scene)
    if head == "and":
        return set.intersection(*(_run(part, scene) for part in rest))
    if head == "except":
        return _run(rest[0], scene) - _run(rest[1], scene)
    if head == "middle":
        members = _run(rest[0], scene)
        if len(members) < 3 or len(members) % 2 == 0:
            return set()
        return _rank("left", len(members) // 2 + 1, members, scene)
    return _run_with_landmark(head, rest, scene)


def _run_with_landmark(head: str, rest: Sequence[Any], scene: Scene) -> set[int]:
    if head == "relation":
        name, members, landmark = rest[0], _run(rest[1], scene), _single(_run(rest[2], scene))
        anchor = scene.objects[landmark]
        return {i for i in members - {landmark} if _related(name, scene.objects[i], anchor, scene)}
    if head in ("nearest", "farthest"):
        landmark = _single(_run(rest[1], scene))
        members = _run(rest[0], scene) - {landmark}
        return _by_distance(head == "farthest", members, scene.objects[landmark], scene)
    if head == "between":
        first, second = (_single(_run(part, scene)) for part in rest[1:3])
        members = _run(rest[0], scene) - {first, second}
        return _between(members, scene.objects[first], scene.objects[second], scene)
    raise ValueError(f"unknown program head {head!r}; see the grammar in this module's docstring")


def mentions(program: Any, heads: Sequence[str]) -> bool:
    """Say whether a program uses one of the grammar's heads anywhere."""
    if not isinstance(program, (tuple, list)):
        return False
    return program[0] in heads or any(mentions(part, heads) for part in program)


def evaluate(program: Program, scene: Scene) -> set[int]:
    """Run a program on a scene.

    Args:
        program: nested tuples (or lists, as read back from JSON) in the grammar of this module.
        scene: the scene; boxes are pixels, xyxy.

    Returns:
        The set of object indices that the program denotes; empty if the scene leaves the program ambiguous.

    Raises:
        ValueError: the program uses a word outside the grammar.
    """
    try:
        return _run(program, scene)
    except AmbiguousProgram:
        return set()
