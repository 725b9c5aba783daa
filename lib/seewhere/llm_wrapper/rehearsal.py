"""Candidates without a detector: a scene's own boxes, made as imperfect as a detector's.

Asking a detector about every training image costs minutes to days (about $1,600 for RefCOCOg behind an API, by the
paper's estimate). A wrapper reads only labels and boxes, so it can rehearse on scenes that were never rendered: true
boxes, moved a little, some missing, some doubled under another label, in random order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random

import numpy as np

from seewhere import boxes
from seewhere.llm_wrapper import prompts
from seewhere.llm_wrapper.examples import SMALLEST_IOU, Example, right_candidate
from seewhere.models.candidates import Detections, make_candidates
from seewhere.models.protocols import Grounder
from seewhere.world.language import expressions
from seewhere.world.lessons import ORDERS, moved
from seewhere.world.programs import Program, mentions
from seewhere.world.render import render
from seewhere.world.scenes import Scene, SceneSettings, sample_scene
from seewhere.world.sprites import SpriteSet

# A scene, and what random choices are drawn from -> candidates, and object index -> candidate index.
CandidateList = Callable[[Scene, Random], tuple[Detections, dict[int, int]]]

JITTER, MISSED, DOUBLED = 0.02, 0.03, 0.05
# Names that a list of two detectors carries; a wrapper should not depend on one of them.
NAMES = ("micro", "micro-b", "florence-2", "grounding-dino", "gd-1.5", "a", "b")
STYLES, SHARES = ("short", "relational", "plus"), (0.45, 0.42, 0.13)
# A box list says nothing about colour or what is hidden; phrases that need them teach guessing only.
UNSEEN = ("tint", "hidden")
# (share of all scenes, drills per scene until then): drills teach to read numbers and make room for what they are for.
DRILLING = ((0.6, 3), (0.85, 1))
# (share of all scenes, most objects until then)
GROWTH = ((0.1, 4), (0.25, 7))


def imperfect_candidates(scene: Scene, random: Random) -> tuple[Detections, dict[int, int]]:
    """Return candidates (pixels, xyxy) made from a scene's boxes, and object index -> candidate index.

    Every side moves by 2 % of the box (one standard deviation); 3 % of the objects are missed; 5 % appear a second
    time with the label of some object of the scene.
    """
    found: list[tuple[int, str, list[float]]] = []
    for item in scene.objects:
        if random.random() < MISSED:
            continue
        found.append((item.index, item.category, moved(item.box, JITTER, random)))
        if random.random() < DOUBLED:
            found.append((-1, random.choice(scene.objects).category, moved(item.box, 0.12, random)))
    random.shuffle(found)
    found_boxes = np.array([box for _, _, box in found]).reshape(-1, 4)
    labels = [label for _, label, _ in found]
    positions = {index: place for place, (index, _, _) in enumerate(found) if index >= 0}
    return make_candidates(found_boxes, labels, None, detector="scene", top=-1), positions


def two_detectors(scene: Scene, random: Random) -> tuple[Detections, dict[int, int]]:
    """Return the joint list of two imperfect detectors, and object index -> candidate index (the nearer box)."""
    names = random.sample(NAMES, 2)
    parts = [imperfect_candidates(scene, random) for _ in names]
    for (candidates, _), name in zip(parts, names, strict=True):
        candidates.metadata["detector"] = name
    joined = prompts.merge_candidates(parts[0][0], parts[1][0])
    truth = np.array([item.box for item in scene.objects], dtype=float)
    overlaps = boxes.iou(joined.xyxy, truth)
    found = set(parts[0][1]) | set(parts[1][1])
    return joined, {index: int(overlaps[:, index].argmax()) for index in sorted(found)}


def detector_lists(grounder: Grounder, sprites: SpriteSet) -> CandidateList:
    """Return a function that renders a scene and asks a detector about it, the paper's own way to training data.

    An object's candidate is the one with the highest IoU, if that exceeds 0.5; the order is drawn anew for every scene.
    """

    def look(scene: Scene, random: Random) -> tuple[Detections, dict[int, int]]:
        picture, _ = render(scene, sprites)
        found = grounder.ground([picture], ["everything"])[0]
        candidates = prompts.permute(found, random.sample(range(len(found)), len(found)))
        best = {item.index: right_candidate(candidates, item.box) for item in scene.objects}
        return candidates, {index: place for index, (place, overlap) in best.items() if overlap > SMALLEST_IOU}

    return look


def scene_examples(
    scene: Scene,
    random: Random,
    most: int = 10,
    coordinates: prompts.Coordinates = "percent",
    lists: CandidateList = imperfect_candidates,
    drills: int = 0,
    wanted: Callable[[Program], bool] = lambda program: True,
    orders: Sequence[str] = tuple(sorted(ORDERS)),
) -> list[Example]:
    """Return up to `most` examples about one candidate list of a scene; objects alone in their category are rare.

    Args:
        scene: a scene of the world.
        random: draws candidates and phrases.
        most: most examples.
        coordinates: see `prompts.format_box`.
        lists: makes the candidate list.
        drills: how many `order_drill` are added.
        wanted: which phrases, by their program.
        orders: which orders drills ask for.
    """
    candidates, positions = lists(scene, random)
    if len(candidates) < 2:
        return []
    counts = Counter(item.category for item in scene.objects)
    pools: dict[str, list[tuple[str, int]]] = {style: [] for style in STYLES}
    for index, place in positions.items():
        for style in STYLES:
            for phrase in expressions(scene, index, style, random):
                alone = counts[scene.objects[index].category] == 1
                if not wanted(phrase.program) or mentions(phrase.program, UNSEEN):
                    continue
                if not (alone and random.random() > 0.06):
                    pools[style].append((phrase.text, place))
    size = (scene.width, scene.height)
    chosen = _draw(pools, most, random)
    extra = [order_drill(candidates, size, random, coordinates, orders) for _ in range(drills)] if chosen else []
    return extra + [
        Example(prompts.prompt(candidates, text, size, coordinates), str(place), {"style": style, "scene": scene.seed})
        for style, text, place in chosen
    ]


def order_drill(
    candidates: Detections,
    size: tuple[int, int],
    random: Random,
    coordinates: prompts.Coordinates,
    orders: Sequence[str] = tuple(sorted(ORDERS)),
) -> Example:
    """Return one drill: put all boxes of a list, or those of one label, in order by place or size.

    A referring question teaches through one index; an order teaches through as many as there are boxes. Boxes at equal
    places stand in the order of the list.
    """
    labels = prompts.labels_of(candidates)
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    label = random.choice(repeated) if repeated and random.random() < 0.5 else None
    chosen = [i for i, other in enumerate(labels) if label in (None, other)]
    name = random.choice(orders)
    order = sorted(chosen, key=lambda i: ORDERS[name](candidates.xyxy[i].tolist()))
    which = "all boxes" if label is None else f'the boxes labelled "{prompts.clean(label)}"'
    text = f"List {which} {name}. Answer with the indices only."
    return Example(
        prompts.context(candidates, size, coordinates) + "\n" + text, ",".join(map(str, order)), {"style": "drill"}
    )


def _draw(pools: dict[str, list[tuple[str, int]]], most: int, random: Random) -> list[tuple[str, str, int]]:
    """Draw from the styles in their shares, without repetition."""
    for pool in pools.values():
        random.shuffle(pool)
    chosen: list[tuple[str, str, int]] = []
    while len(chosen) < most and any(pools.values()):
        open_styles = [style for style in STYLES if pools[style]]
        style = random.choices(open_styles, [SHARES[STYLES.index(s)] for s in open_styles])[0]
        chosen.append((style, *pools[style].pop()))
    return chosen


def rehearse(
    sprites: SpriteSet,
    count: int,
    seed: int = 0,
    most: int = 10,
    settings: SceneSettings | None = None,
    coordinates: prompts.Coordinates = "percent",
    *,
    split: str = "train",
    two_sources: float = 0.0,
    growing: bool = False,
    drilling: bool = False,
    lists: CandidateList = imperfect_candidates,
) -> Iterator[list[Example]]:
    """Yield the examples of `count` scenes, one list a scene (all share one candidate list).

    Args:
        sprites: what scenes are made of.
        count: number of scenes.
        seed: which scenes; seeds share none.
        most: most examples of a scene.
        settings: how scenes are drawn.
        coordinates: see `prompts.format_box`.
        split: whose scenes.
        two_sources: share of lists that join two detectors; with `growing`, only once lists have grown.
        growing: start with short lists (see `GROWTH`): where a list is short a lucky guess is near, and telling boxes
            apart by their words is learnt before telling them apart by their numbers.
        drilling: add drills, fewer towards the end (see `DRILLING`).
        lists: makes the candidate lists of one detector.
    """
    made, number = 0, 1_000_000 + 100_000 * seed
    while made < count:
        number += 1
        scene = sample_scene(number, sprites, settings, split)
        most_objects = next((n for share, n in GROWTH if growing and made < share * count), None)
        if most_objects is not None and len(scene.objects) > most_objects:
            continue
        random = Random(number)
        both = most_objects is None and two_sources > 0 and random.random() < two_sources
        drills = next((n for share, n in DRILLING if drilling and made < share * count), 0)
        found = scene_examples(scene, random, most, coordinates, two_detectors if both else lists, drills)
        if found:
            made += 1
            yield found
