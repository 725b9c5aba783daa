"""Scenes as pictures of one size, with the place-free sentences that a vision model is trained on.

Pictures are squashed to a square, as BLIP-2's processor does, so that a box in shares of the picture's sides is the
same before and after. Composing is done once: pictures lie in the cache folder as one memory-mapped array. A sentence
is made anew at every look, from a seed. A *twisted* sentence differs in one thing (a category, a number, a colour, the
background) and is false; it is written by the same grammar about a scene that does not exist, so that nothing but the
picture tells which of the two is true.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from seewhere import boxes as frames
from seewhere.storage import atomic_directory, cache_home
from seewhere.world.language import captions
from seewhere.world.render import render_image
from seewhere.world.scenes import FAMILIES, WORLD_VERSION, Scene, SceneObject, sample_scene
from seewhere.world.sprites import TINTS, SpriteSet, load_sprites

LIST, PLACE_OF_ALL, COLOURS = 0, 1, 2
"""The three sentences of `captions`: what there is; that and the background; the tinted objects (if any)."""
TWISTS = ("category", "number", "colour", "background")


@dataclass(frozen=True, slots=True)
class WorldPairs:
    """Scenes of one split: images (N, S, S, 3) uint8, memory-mapped, and the N scenes."""

    images: np.ndarray
    scenes: list[Scene]

    def __len__(self) -> int:
        return len(self.scenes)


def square(image: Image.Image, side: int) -> np.ndarray:
    """Return a picture squashed to (side, side, 3) uint8."""
    return np.asarray(frames.squash(image.size, (side, side)).apply_image(image))


def load_pairs(first: int, count: int, side: int, split: str = "train", progress: bool = True) -> WorldPairs:
    """Compose scenes ``first`` to ``first + count - 1`` of a split, or read them from the cache folder.

    Raises:
        ValueError: unknown split, or numbers outside it.
    """
    world = f"{WORLD_VERSION}-{load_sprites().fingerprint[:8]}"
    folder = cache_home() / "world-pairs" / f"{world}-{split}-{first}-{count}-{side}"
    if not folder.exists():
        with atomic_directory(folder) as partial:
            _compose(partial, first, count, side, split, progress)
    rows = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    return WorldPairs(np.load(folder / "images.npy", mmap_mode="r"), [_scene(row) for row in rows])


def _compose(folder: Path, first: int, count: int, side: int, split: str, progress: bool) -> None:
    sprites = load_sprites()
    shape = (count, side, side, 3)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    rows = []
    for i in tqdm(range(count), desc=f"{split} scenes", mininterval=2, disable=not progress):
        scene = sample_scene(first + i, sprites, split=split)
        images[i] = square(render_image(scene, sprites), side)
        rows.append(asdict(scene))
    images.flush()
    (folder / "scenes.json").write_text(json.dumps(rows), encoding="utf-8")


def _scene(row: dict[str, Any]) -> Scene:
    """A scene from its row; JSON has no tuples."""
    items: list[dict[str, Any]] = [
        {**o, "box": tuple(o["box"]), "full_box": tuple(o["full_box"])} for o in row["objects"]
    ]
    return Scene(**{**row, "objects": tuple(SceneObject(**item) for item in items)})


def pixels_of(images: np.ndarray, mirrored: np.ndarray | None = None) -> np.ndarray:
    """Return (B, 3, S, S) float32 about -1..1 of pictures (B, S, S, 3) uint8; rows of ``mirrored`` (B,) are flipped.

    Mirroring is free for sentences that tell no place.
    """
    pixels = images.astype(np.float32) / 127.5 - 1
    if mirrored is not None:
        pixels[mirrored] = pixels[mirrored, :, ::-1]
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def full_caption(scene: Scene, random: Random) -> str:
    """Return everything that the place-free language can say of a scene, in one caption."""
    said = captions(scene, random)
    return ". ".join(said[PLACE_OF_ALL:])


def some_caption(scene: Scene, random: Random, full: float = 0.6) -> str:
    """Return a caption that names every object: with probability ``full`` the full one, else a shorter one."""
    if random.random() < full:
        return full_caption(scene, random)
    return captions(scene, random)[random.choice((LIST, PLACE_OF_ALL))]


@dataclass(frozen=True, slots=True)
class Twist:
    """A true sentence about a scene, a false one that differs in one thing, and in which (one of `TWISTS`)."""

    true: str
    false: str
    kind: str


def twist(scene: Scene, random: Random) -> Twist:
    """Return a true and a twisted sentence about a scene.

    The false one is what the grammar says about the scene with one thing changed: all objects of a category become
    another category that is at home there and absent, one object more or less of a repeated category, another colour,
    or another background.
    """
    tinted = any(o.tint for o in scene.objects)
    which = random.choice((LIST, PLACE_OF_ALL, COLOURS) if tinted else (LIST, PLACE_OF_ALL))
    kinds = ["category"]
    repeated = [c for c, n in Counter(o.category for o in scene.objects).items() if n > 1]
    if which == COLOURS:
        kinds.append("colour")
    elif repeated:
        kinds.append("number")
    if which == PLACE_OF_ALL:
        kinds.append("background")
    kind, order = random.choice(kinds), random.random()
    changed = _CHANGES[kind](scene, random, which == COLOURS)
    true, false = (captions(s, Random(order))[which] for s in (scene, changed))
    return Twist(true, false, kind)


def _other_category(scene: Scene, random: Random, tinted: bool) -> Scene:
    objects = [o for o in scene.objects if o.tint] if tinted else scene.objects
    old = random.choice(sorted({o.category for o in objects}))
    present = {o.category for o in scene.objects}
    choices = [c for c in _cast().coco if c.name not in present]
    # The world casts by background; a swap that ignored it could be told from the words alone.
    weights = [1.0 if scene.background == "plain" else 3.0 if scene.background in c.places else 0.3 for c in choices]
    weights = [w * (2.0 if c.name == "person" else 1.0) for w, c in zip(weights, choices, strict=True)]
    new = random.choices(choices, weights)[0].name
    return replace(scene, objects=tuple(replace(o, category=new) if o.category == old else o for o in scene.objects))


def _other_number(scene: Scene, random: Random, _: bool) -> Scene:
    counts = Counter(o.category for o in scene.objects)
    category = random.choice([c for c, n in counts.items() if n > 1])
    more = counts[category] == 2 or (counts[category] == 3 and random.random() < 0.5)
    last = next(o for o in reversed(scene.objects) if o.category == category)
    if more:
        return replace(scene, objects=(*scene.objects, last))
    return replace(scene, objects=tuple(o for o in scene.objects if o is not last))


def _other_colour(scene: Scene, random: Random, _: bool) -> Scene:
    item = random.choice([o for o in scene.objects if o.tint])
    used = {o.tint for o in scene.objects if o.category == item.category}
    free = [t for t in TINTS if t not in used]
    if not free:
        return _other_category(scene, random, True)
    tint = random.choice(free)
    same = (item.category, item.tint)
    return replace(
        scene, objects=tuple(replace(o, tint=tint) if (o.category, o.tint) == same else o for o in scene.objects)
    )


def _other_background(scene: Scene, random: Random, _: bool) -> Scene:
    names = [n for n in FAMILIES if n != scene.background]
    return replace(scene, background=random.choices(names, [FAMILIES[n].share for n in names])[0])


_CHANGES = {
    "category": _other_category,
    "number": _other_number,
    "colour": _other_colour,
    "background": _other_background,
}


def _cast() -> SpriteSet:
    return load_sprites()


def rows_of_step(count: int, size: int, seed: int, step: int) -> np.ndarray:
    """Return the ``size`` row numbers of a step: every epoch is another order; a function of (seed, step) alone."""
    epoch, place = divmod(step * size, count)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    if place + size <= count:
        return order[place : place + size]
    following = np.random.default_rng([seed, epoch + 1]).permutation(count)
    return np.concatenate([order[place:], following])[:size]


def single_objects(scenes: Sequence[Scene]) -> list[list[SceneObject]]:
    """Return for each scene the objects that are alone in their category, which a category's name singles out."""
    found = []
    for scene in scenes:
        counts = Counter(o.category for o in scene.objects)
        found.append([o for o in scene.objects if counts[o.category] == 1])
    return found
