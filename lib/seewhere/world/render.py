"""Scenes as pictures: the background, soft shadows, and the objects from back to front; and which pixels are whose."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seewhere.world.backgrounds import paint
from seewhere.world.scenes import Scene, SceneObject
from seewhere.world.sprites import SpriteSet


def render(scene: Scene, sprites: SpriteSet) -> tuple[Image.Image, list[NDArray[np.bool_]]]:
    """Paint a scene.

    Args:
        scene: the scene.
        sprites: the cast it was sampled from.

    Returns:
        The RGB picture, and for each object in order of index its visible mask, (height, width) bool.

    Raises:
        ValueError: the scene shows sprites that this cast does not have.
    """
    return render_image(scene, sprites), visible_masks(scene, sprites)


def render_image(scene: Scene, sprites: SpriteSet) -> Image.Image:
    """Paint a scene as an RGB picture, (width, height) = ``scene.size``."""
    _check_cast(scene, sprites)
    image = paint(scene)
    for item in sorted(scene.objects, key=lambda o: o.depth):
        art = sprites.picture(item.sprite, item.side, item.mirrored, item.tint)
        x1, y1, x2, y2 = (int(v) for v in item.full_box)
        if y2 > 0.9 * scene.horizon + 0.1 * scene.height:  # stands on the ground
            shadow = _shadow(x2 - x1)
            image.paste((30, 34, 48), (x1 - shadow.width // 2 + (x2 - x1) // 2, y2 - shadow.height // 2 - 1), shadow)
        image.paste(art, (x1, y1), art)
    return image


def visible_masks(scene: Scene, sprites: SpriteSet) -> list[NDArray[np.bool_]]:
    """Return each object's visible pixels, (height, width) bool, in order of index; shadows belong to nobody."""
    owner = owner_map(scene, sprites)
    return [owner == item.index for item in scene.objects]


def owner_map(scene: Scene, sprites: SpriteSet) -> NDArray[np.int8]:
    """Return the index of the object seen at each pixel, (height, width), -1 for the background."""
    _check_cast(scene, sprites)
    owner = np.full((scene.height, scene.width), -1, dtype=np.int8)
    for item in sorted(scene.objects, key=lambda o: o.depth):
        window, mask = _window(owner, item), sprites.mask(item.sprite, item.side, item.mirrored)
        window[mask] = item.index
    return owner


def _window(owner: NDArray[np.int8], item: SceneObject) -> NDArray[np.int8]:
    x1, y1, x2, y2 = (int(v) for v in item.full_box)
    return owner[y1:y2, x1:x2]


@lru_cache(maxsize=256)
def _shadow(width: int) -> Image.Image:
    """A flat soft ellipse (mode L) for the feet of an object `width` pixels wide."""
    height = max(5, round(width * 0.16))
    y = (np.arange(height) + 0.5) / height * 2 - 1
    x = (np.arange(width) + 0.5) / width * 2 - 1
    radius = np.hypot(y[:, None], x[None])
    return Image.fromarray((np.clip(1 - radius, 0, 1) ** 0.7 * 105).astype(np.uint8), "L")


def _check_cast(scene: Scene, sprites: SpriteSet) -> None:
    missing = sorted({o.sprite for o in scene.objects} - sprites.sprites.keys())
    if missing:
        raise ValueError(
            f"scene {scene.seed} shows sprites that this cast lacks ({', '.join(missing[:3])}); "
            "render it with the cast it was sampled from"
        )
