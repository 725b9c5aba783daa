"""Scenes: who stands where, decided from a seed alone.

A scene is a list of objects with boxes, and no pixel of it need be painted to know what is visible of each: masks
are laid over one another in a map of owners. Layout carries what a model can learn about the world: a horizon, flying
things above it, standing things on the ground, nearer (lower) things larger, furniture and kitchenware indoors.
Same-category neighbours are common, because an expression is only hard where the noun alone is not enough.

Splits draw from disjoint ranges of seeds, so they can never share a scene.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seewhere.world.sprites import TINTS, Category, Sprite, SpriteSet

WORLD_VERSION = "1"
"""Raised whenever the same seed would give another scene, picture or sentence."""

Box = tuple[float, float, float, float]
Split = Literal["train", "val", "test", "novel"]

SEEDS_PER_SPLIT = 10_000_000
SPLITS: tuple[Split, ...] = ("train", "val", "test", "novel")
_ATTEMPTS = 16  # places tried for an object before the scene does without it


@dataclass(frozen=True, slots=True)
class Family:
    """A family of backgrounds: how often it comes, and where its horizon may lie (fractions of the height)."""

    share: float
    horizon: tuple[float, float]
    indoor: bool = False


FAMILIES: dict[str, Family] = {
    "meadow": Family(0.20, (0.30, 0.52)),
    "street": Family(0.19, (0.34, 0.52)),
    "room": Family(0.25, (0.56, 0.68), indoor=True),
    "beach": Family(0.12, (0.30, 0.44)),
    "snow": Family(0.08, (0.32, 0.50)),
    "night": Family(0.08, (0.34, 0.52)),
    "plain": Family(0.08, (0.42, 0.62)),
}


@dataclass(frozen=True, slots=True)
class SceneSettings:
    """What scenes are like. Sides and margins in pixels, shares in 0..1."""

    sizes: tuple[tuple[int, int], ...] = ((256, 192), (192, 256), (224, 224), (256, 256))
    """Canvas sizes (width, height), equally likely."""
    objects: tuple[int, int] = (2, 10)
    """Fewest and most objects."""
    sides: tuple[int, int] = (24, 96)
    """Shortest and longest of the longer side of an object."""
    visible: float = 0.5
    """Every object keeps at least this share of its pixels in view."""
    repeated: float = 0.62
    """Share of scenes in which a category occurs twice or more (up to four times)."""
    tinted: tuple[float, float] = (0.72, 0.19)
    """Share of tinted objects: where the scene holds the category again, and elsewhere."""
    mirrored: float = 0.35
    """Share of mirrored objects."""
    huddled: float = 0.15
    """Share of objects placed close beside another one; the others keep apart while there is room."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene; boxes are (x1, y1, x2, y2) in pixels of the canvas.

    `box` and `area` (pixels) are of the visible part, `full_box` of the whole object. `tint` is a word of
    `sprites.TINTS` or None (original colours). `scale` is the longer side over 96 pixels. A higher `depth` is drawn
    later, in front.
    """

    index: int
    category: str
    category_id: int
    box: Box
    area: int
    tint: str | None
    mirrored: bool
    scale: float
    depth: int
    visible_fraction: float
    full_box: Box
    sprite: str = ""
    side: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene: its seed (unique over all splits), canvas in pixels, family of background, objects, and horizon (y).

    `shelf` is the height (y) of a shelf on the wall, in rooms that have one.
    """

    seed: int
    width: int
    height: int
    background: str
    objects: tuple[SceneObject, ...]
    horizon: float
    shelf: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height


@dataclass(slots=True)
class _Item:
    """An object that is still being placed."""

    category: Category
    sprite: Sprite
    tint: str | None
    mirrored: bool
    side: int = 0
    mask: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), bool))
    x: int = 0
    y: int = 0
    behind: bool = False  # flies, hangs or stands on the shelf: behind all that stands on the ground
    order: tuple[int, int, int] = (0, 0, 0)  # drawing order: (in front of the wall?, lower edge, serial number)
    pixels: int = 0
    visible: int = 0


class _Place(NamedTuple):
    x: int
    y: int
    side: int
    behind: bool


def scene_seed(split: str, number: int) -> int:
    """Return the world-wide seed of scene `number` (0-based) of a split.

    Raises:
        ValueError: unknown split, or a number outside the split's range.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if not 0 <= number < SEEDS_PER_SPLIT:
        raise ValueError(f"scene {number} of {split!r}: expected a number from 0 to {SEEDS_PER_SPLIT - 1}")
    return SPLITS.index(split) * SEEDS_PER_SPLIT + number


def sample_scene(seed: int, sprites: SpriteSet, settings: SceneSettings | None = None, split: str = "train") -> Scene:
    """Compose one scene. The same seed, cast, settings, split and `WORLD_VERSION` give the same scene.

    Args:
        seed: number of the scene within its split, from 0.
        sprites: the cast; the `novel` split shows its novel categories only, the others its COCO categories only.
        settings: how scenes are drawn; None for the defaults.
        split: "train", "val", "test" or "novel".

    Raises:
        ValueError: unknown split, seed out of range, or a cast without categories for this split.
    """
    settings = settings or SceneSettings()
    number = scene_seed(split, seed)
    random = Random(f"seewhere world {WORLD_VERSION}: {number}")
    width, height = random.choice(settings.sizes)
    background = random.choices(list(FAMILIES), [f.share for f in FAMILIES.values()])[0]
    low, high = FAMILIES[background].horizon
    horizon = round(height * random.uniform(low, high))
    shelf = round(horizon * random.uniform(0.5, 0.62)) if background == "room" and random.random() < 0.65 else None
    scene = Scene(number, width, height, background, (), float(horizon), None if shelf is None else float(shelf))
    items = _cast_scene(random, sprites, settings, background, novel=split == "novel")
    placed = _Composer(scene, settings, sprites, random).place(items)
    return Scene(number, width, height, background, placed, scene.horizon, scene.shelf)


# -- who ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _casting(sprites: SpriteSet, background: str, novel: bool) -> tuple[list[Category], list[float]]:
    """Categories of a split with cumulative weights: those at home in this background come more often."""
    categories = sprites.novel if novel else sprites.coco
    if not categories:
        kind = "novel categories (ids from 1000)" if novel else "categories with ids below 1000"
        raise ValueError(f"the cast has no {kind}; add some to its table, or use another split")
    weights = [1.0 if background == "plain" else 3.0 if background in c.places else 0.3 for c in categories]
    weights = [w * (2.0 if c.name == "person" else 1.0) for w, c in zip(weights, categories, strict=True)]
    return categories, list(itertools.accumulate(weights))


def _cast_scene(
    random: Random, sprites: SpriteSet, settings: SceneSettings, background: str, novel: bool
) -> list[_Item]:
    categories, cumulative = _casting(sprites, background, novel)
    fewest, most = settings.objects
    counts = range(fewest, most + 1)
    # Crowds are rarer than small groups, as in COCO, and pairs rarer than threes and fours.
    total = random.choices(counts, [0.7 if n == fewest else 1.0 / (1 + 0.13 * max(0, n - 4) ** 1.5) for n in counts])[0]
    repeats: list[int] = []
    if random.random() < settings.repeated and total >= 2:
        repeats.append(min(total, random.choices((2, 3, 4), (0.5, 0.32, 0.18))[0]))
        if total >= 6 and random.random() < 0.35:
            repeats.append(2)
    items: list[_Item] = []
    seen: set[int] = set()
    while len(items) < total:
        category = random.choices(categories, cum_weights=cumulative)[0]
        if category.category_id in seen:
            if len(seen) < len(categories):
                continue
            seen.clear()  # a small cast: start over rather than search for ever
        seen.add(category.category_id)
        count = min(repeats.pop(0) if repeats else 1, total - len(items))
        items += _group(random, sprites.of[category.category_id], category, count, settings)
    return items


def _group(
    random: Random, variants: tuple[Sprite, ...], category: Category, count: int, settings: SceneSettings
) -> list[_Item]:
    """Draw the members of one category. Twins (the same picture again) are as common as relatives."""
    same = random.choice(variants) if random.random() < 0.5 else None
    share = settings.tinted[0 if count > 1 else 1]
    chosen = [(same or random.choice(variants), random.random() < share) for _ in range(count)]
    # A colour that the untinted ones might be called too would make "the red car" a matter of taste.
    avoid = {word for sprite, tint in chosen if not tint for word in sprite.colors}
    items = []
    for sprite, wanted in chosen:
        free = [word for word in TINTS if word not in avoid and word not in sprite.colors]
        tint = random.choice(free) if wanted and free else None
        if tint is not None and random.random() < 0.8:
            avoid = avoid | {tint}
        items.append(_Item(category, sprite, tint, random.random() < settings.mirrored))
    natural = {word for item in items if item.tint is None for word in item.sprite.colors}
    for item in items:
        if item.tint in natural:  # an object that found no free colour stayed plain: its own paint counts as well
            item.tint = None
    return items


# -- where -------------------------------------------------------------------------------------------------------


class _Composer:
    """Places items one by one in a map of owners, refusing a place that would hide anything too much."""

    def __init__(self, scene: Scene, settings: SceneSettings, sprites: SpriteSet, random: Random) -> None:
        self.scene, self.settings, self.sprites, self.random = scene, settings, sprites, random
        self.owner = np.full((scene.height, scene.width), -1, dtype=np.int8)
        self.items: list[_Item] = []

    def place(self, items: list[_Item]) -> tuple[SceneObject, ...]:
        """Place as many items as fit (two at least) and return them as scene objects in random order."""
        crowd = 1.0 if len(items) <= 5 else 0.9 if len(items) <= 7 else 0.8
        for item in items:
            huddled = self.random.random() < self.settings.huddled
            for attempt in range(_ATTEMPTS):
                # What does not fit is tried smaller, never smaller than the shortest side; and objects stay nearly
                # clear of each other before they may hide as much as the settings allow.
                smaller = crowd * (1.0 if attempt < 8 else 0.8 if attempt < 12 else 0.6)
                limit = self.settings.visible if huddled or attempt >= 6 else max(self.settings.visible, 0.9)
                if self._try(item, self._propose(item, smaller, huddled), limit):
                    break
        order = list(range(len(self.items)))
        self.random.shuffle(order)
        depths = {k: d for d, k in enumerate(sorted(order, key=lambda k: self.items[k].order))}
        return tuple(self._finish(index, k, depths[k]) for index, k in enumerate(order))

    def _propose(self, item: _Item, crowd: float, huddled: bool) -> _Place:
        scene, random = self.scene, self.random
        width, height, horizon = scene.width, scene.height, int(scene.horizon)
        support = item.category.support
        behind = False
        if support == "sky" and random.random() < 0.85:
            nearness, behind = random.random() * 0.8, True
        elif support == "wall" and scene.background == "room" and random.random() < 0.8:
            nearness, behind = 0.3 + 0.4 * random.random(), True
        elif support in ("surface", "wall") and scene.shelf is not None and random.random() < 0.45:
            nearness, behind = 0.35, True
            side = self._side(item, crowd, nearness)
            room = int(scene.shelf) - 2
            while item.sprite.size_at(side)[1] > room and side > self.settings.sides[0]:
                side -= 4
            w, h = item.sprite.size_at(side)
            return _Place(random.randint(1, max(1, width - w - 1)), max(1, int(scene.shelf) - h), side, True)
        else:
            nearness = random.random() if support != "water" or scene.background != "beach" else random.random() * 0.3
        side = self._side(item, crowd, nearness)
        w, h = item.sprite.size_at(side)
        if behind:
            y = random.randint(1, max(1, horizon + 2 - h))
        else:
            first = min(horizon + 0.12 * (height - horizon), height - 2)
            y = round(first + nearness * (height - 2 - first)) - h
        return _Place(self._column(w, huddled), min(max(y, 1), height - h - 1), side, behind)

    def _column(self, w: int, huddled: bool) -> int:
        last = max(1, self.scene.width - w - 1)
        if self.items and huddled:
            neighbour = self.random.choice(self.items)
            middle = neighbour.x + neighbour.mask.shape[1] / 2 + self.random.choice((-1, 1)) * w * 0.55
            return min(max(round(middle - w / 2), 1), last)
        return self.random.randint(1, last)

    def _side(self, item: _Item, crowd: float, nearness: float) -> int:
        """Longer side in pixels: nearer is larger. Multiples of four, so that scaled pictures are met again."""
        low, high = self.settings.sides
        side = high * item.category.size * (0.42 + 0.5 * nearness) * self.random.uniform(0.82, 1.2) * crowd
        return max(-(-low // 4) * 4, min(round(side / 4) * 4, high // 4 * 4))

    def _try(self, item: _Item, place: _Place, limit: float) -> bool:
        mask = self.sprites.mask(item.sprite.name, place.side, item.mirrored)
        h, w = mask.shape
        if place.x < 0 or place.y < 0 or place.x + w > self.scene.width or place.y + h > self.scene.height:
            return False
        order = (0 if place.behind else 1, place.y + h, len(self.items))
        window = self.owner[place.y : place.y + h, place.x : place.x + w]
        met = np.bincount((window[mask] + 1).ravel(), minlength=len(self.items) + 1).tolist()
        covered = [k for k in range(len(self.items)) if met[k + 1] and self.items[k].order < order]
        pixels = sum(met)
        visible = met[0] + sum(met[k + 1] for k in covered)
        if visible < limit * pixels:
            return False
        if any(self.items[k].visible - met[k + 1] < limit * self.items[k].pixels for k in covered):
            return False
        for k in covered:
            self.items[k].visible -= met[k + 1]
        front = [k for k in range(len(self.items)) if met[k + 1] and k not in covered]
        mine = mask & ~np.isin(window, front) if front else mask
        window[mine] = len(self.items)
        item.side, item.mask, item.x, item.y, item.behind = place.side, mask, place.x, place.y, place.behind
        item.order, item.pixels, item.visible = order, pixels, visible
        self.items.append(item)
        return True

    def _finish(self, index: int, k: int, depth: int) -> SceneObject:
        item = self.items[k]
        h, w = item.mask.shape
        seen = item.mask if item.visible == item.pixels else self.owner[item.y : item.y + h, item.x : item.x + w] == k
        x1, y1, x2, y2 = mask_box(seen)
        return SceneObject(
            index=index,
            category=item.category.name,
            category_id=item.category.category_id,
            box=(float(item.x + x1), float(item.y + y1), float(item.x + x2), float(item.y + y2)),
            area=item.visible,
            tint=item.tint,
            mirrored=item.mirrored,
            scale=item.side / 96,
            depth=depth,
            visible_fraction=item.visible / item.pixels,
            full_box=(float(item.x), float(item.y), float(item.x + w), float(item.y + h)),
            sprite=item.sprite.name,
            side=item.side,
        )


def mask_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the box (x1, y1, x2, y2; x2 and y2 exclusive) of the true pixels of a mask (height, width).

    Raises:
        ValueError: no pixel is true.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
