"""Pictures to reconstruct: the world's scenes, textures made by formula, photographs, and frames of the two games."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from seewhere import storage
from seewhere.models.pixel_points import as_rgb
from seewhere.world.render import render_image
from seewhere.world.scenes import Scene, sample_scene
from seewhere.world.sprites import load_sprites

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
)
"""Names in `skimage.data` of photographs that come inside scikit-image's package."""
GAMES = {"CarRacing": "CarRacing-v3", "SpaceInvaders": "ALE/SpaceInvaders-v5"}


def photographs() -> dict[str, Image.Image]:
    """Return scikit-image's own photographs by name; nothing is downloaded, a missing one is left out."""
    import skimage
    from skimage import data

    folder = os.path.join(os.path.dirname(skimage.__file__), "data")
    files = {"immunohistochemistry": "ihc.png", "hubble_deep_field": "hubble_deep_field.jpg"}
    found = {}
    for name in PHOTOGRAPHS:
        if any(os.path.isfile(os.path.join(folder, f)) for f in (files.get(name, f"{name}.png"), f"{name}.jpg")):
            found[name] = as_rgb(Image.fromarray(getattr(data, name)()))
    return found


def world_pictures(count: int, split: str = "test", seed: int = 0) -> list[tuple[Image.Image, Scene]]:
    """Return scenes of the world, rendered: numbers seed * 100,000 onward of a split."""
    sprites = load_sprites()
    scenes = [sample_scene(seed * 100_000 + i, sprites, split=split) for i in range(count)]
    return [(render_image(scene, sprites), scene) for scene in scenes]


def textures(count: int, seed: int = 0, side: int = 128) -> list[Image.Image]:
    """Return pictures without things: coloured noise of several grains, stripes, slopes and flat shapes.

    Noise whose spectrum falls with a power of the frequency has the statistics of photographs more than scenes of flat
    artwork have; shapes bring edges of every direction.
    """
    return [Image.fromarray(texture(np.random.default_rng([seed, i]), side)) for i in range(count)]


def texture(random: np.random.Generator, side: int) -> np.ndarray:
    """Return one texture, (side, side, 3) uint8."""
    field = _noise(random, side) if random.random() < 0.7 else _stripes(random, side)
    middle = random.uniform(40, 215, 3)
    spread = random.uniform(10, 70) * (0.6 * np.ones((3, 3)) / 3 + 0.6 * random.normal(size=(3, 3)) * random.random())
    slope = np.linspace(-1, 1, side)
    tilt = (slope[:, None, None] * random.normal(size=3) + slope[None, :, None] * random.normal(size=3)) * 25
    values = np.clip(middle + field @ spread.T * 1.7 + tilt, 0, 255).astype(np.uint8)
    picture = Image.fromarray(values)
    draw = ImageDraw.Draw(picture)
    for _ in range(int(random.integers(0, 9))):
        corners = random.uniform(-0.1, 1.1, 2) * side + random.normal(size=(int(random.integers(3, 7)), 2)) * side * 0.2
        draw.polygon([tuple(c) for c in corners.tolist()], fill=tuple(random.integers(0, 256, 3).tolist()))
    return np.asarray(picture)


def _noise(random: np.random.Generator, side: int) -> np.ndarray:
    """Three fields of noise (side, side, 3) whose amplitude falls with a power of the frequency; deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * side
    fall = np.maximum(frequency, 1.0) ** -random.uniform(0.7, 2.0)
    fall[0, 0] = 0
    phases = np.exp(2j * np.pi * random.random((*fall.shape, 3)))
    field = np.fft.irfft2(fall[..., None] * phases, s=(side, side), axes=(0, 1))
    return np.asarray(field / field.std(axis=(0, 1)))


def _stripes(random: np.random.Generator, side: int) -> np.ndarray:
    at = np.arange(side) / side
    fields = []
    for _ in range(3):
        angle, turns = random.uniform(0, np.pi), random.uniform(1, 14)
        wave = np.sin(2 * np.pi * turns * (np.cos(angle) * at[None] + np.sin(angle) * at[:, None]) + random.random())
        fields.append(np.sign(wave) if random.random() < 0.4 else wave)
    return np.stack(fields, axis=-1)


def game_frames(game: str, count: int, seed: int = 0, every: int = 9) -> list[Image.Image]:
    """Return frames of a game played at random: every `every`-th one.

    Raises:
        ImportError: the game is not installed; the message says what to install.
        ValueError: unknown game.
    """
    if game not in GAMES:
        raise ValueError(f"unknown game {game!r}; expected one of {', '.join(GAMES)}")
    play = _player(game)
    return [as_rgb(Image.fromarray(frame)) for frame in play(count, seed, every)]


def kept_frames(game: str, count: int, seed: int, side: int) -> np.ndarray:
    """Return frames of a game squashed to (count, side, side, 3) uint8; played once, then read from the cache folder.

    Errors as `game_frames`.
    """
    path = storage.cache_home() / "game-frames" / f"{game}-{count}-{seed}-{side}.npy"
    if not path.is_file():
        frames = [np.asarray(frame.resize((side, side))) for frame in game_frames(game, count, seed)]
        buffer = io.BytesIO()
        np.save(buffer, np.stack(frames))
        storage.atomic_write_bytes(path, buffer.getvalue())
    return np.asarray(np.load(path))


def _player(game: str) -> Callable[[int, int, int], list[np.ndarray]]:
    try:
        import gymnasium

        if game == "CarRacing":
            import Box2D  # noqa: F401
        else:
            import ale_py

            gymnasium.register_envs(ale_py)
    except ImportError as error:
        raise ImportError(
            f"{game} is not installed ({error}); pip install 'gymnasium[box2d]' ale-py brings both games"
        ) from error

    def play(count: int, seed: int, every: int) -> list[np.ndarray]:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        room = gymnasium.make(GAMES[game], render_mode="rgb_array")
        room.action_space.seed(seed)
        frame, _ = room.reset(seed=seed)
        found: list[np.ndarray] = []
        step = 0
        while len(found) < count:
            frame, _, over, cut, _ = room.step(room.action_space.sample())
            step += 1
            if step % every == 0:
                found.append(np.asarray(frame))
            if over or cut:
                frame, _ = room.reset()
        room.close()
        return found

    return play
