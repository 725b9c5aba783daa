"""Backgrounds: what lies behind the objects of a scene, painted from a few shapes.

Each family draws its own sky or wall above the horizon and its own ground below it, in varying colours, so that a
model sees where up is without any object's help, and no family can be told from one pixel alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from seewhere.world.scenes import Scene

Color = tuple[int, int, int]


def paint(scene: Scene) -> Image.Image:
    """Return the background of a scene as an RGB picture of its size; a function of the scene's seed.

    Raises:
        ValueError: a family of backgrounds that has no painter.
    """
    painter = _PAINTERS.get(scene.background)
    if painter is None:
        raise ValueError(f"unknown background {scene.background!r}; expected one of {', '.join(_PAINTERS)}")
    return painter(scene, Random(f"background {scene.seed}"))


def _shifted(color: Color, random: Random, by: int = 12) -> Color:
    """A colour somewhat lighter or darker, and somewhat warmer or colder."""
    light, warm = random.uniform(-by, by), random.uniform(-by, by) / 2
    r, g, b = color
    return _clipped(r + light + warm), _clipped(g + light), _clipped(b + light - warm)


def _clipped(value: float) -> int:
    return min(max(round(value), 0), 255)


def _mixed(a: Color, b: Color, share: float) -> Color:
    r, g, c = (_clipped(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, c


def _two_part(scene: Scene, above: tuple[Color, Color], below: tuple[Color, Color]) -> Image.Image:
    """A picture of two vertical gradients, (top colour, bottom colour) each, that meet at the horizon."""
    horizon = int(scene.horizon)
    column = np.empty((scene.height, 3), dtype=np.float32)
    for rows, (top, bottom) in ((slice(0, horizon), above), (slice(horizon, None), below)):
        count = len(column[rows])
        share = np.linspace(0, 1, count, dtype=np.float32)[:, None]
        column[rows] = np.array(top, np.float32) * (1 - share) + np.array(bottom, np.float32) * share
    pixels = np.repeat(column.round().astype(np.uint8)[:, None], scene.width, axis=1)
    return Image.fromarray(pixels, "RGB")


def _clouds(draw: ImageDraw.ImageDraw, scene: Scene, random: Random, color: Color, most: int = 3) -> None:
    for _ in range(random.randint(0, most)):
        x, y = random.uniform(0, scene.width), random.uniform(0.1, 0.65) * scene.horizon
        size = random.uniform(8, 17)
        for k in range(random.randint(3, 5)):
            cx, radius = x + k * size * 0.8, size * random.uniform(0.55, 0.9)
            draw.ellipse((cx - radius, y - radius * 0.55, cx + radius, y + radius * 0.55), fill=color)


def _sun(draw: ImageDraw.ImageDraw, scene: Scene, random: Random, color: Color, radius: float) -> None:
    x, y = random.uniform(0.08, 0.92) * scene.width, random.uniform(0.15, 0.5) * scene.horizon
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _ridge(draw: ImageDraw.ImageDraw, scene: Scene, random: Random, color: Color, rise: float) -> None:
    """Rolling hills that end at the horizon and rise up to `rise` pixels above it."""
    phase, waves = random.uniform(0, 6.3), random.uniform(0.7, 2.2)
    xs = range(0, scene.width + 8, 8)
    tops = [
        (x, scene.horizon - rise * (0.5 + 0.35 * math.sin(phase + waves * 6.28 * x / scene.width)
                                    + 0.15 * math.sin(2.7 * phase + 2.3 * waves * 6.28 * x / scene.width)))
        for x in xs
    ]  # fmt: skip
    draw.polygon([(0, scene.horizon + 1), *tops, (scene.width + 8, scene.horizon + 1)], fill=color)


def _peaks(draw: ImageDraw.ImageDraw, scene: Scene, random: Random, color: Color, rise: float) -> None:
    x = -random.uniform(0, 40)
    while x < scene.width:
        width = random.uniform(50, 110)
        top = scene.horizon - rise * random.uniform(0.5, 1)
        draw.polygon([(x, scene.horizon), (x + width / 2, top), (x + width, scene.horizon)], fill=color)
        x += width * random.uniform(0.45, 0.8)


def _tufts(draw: ImageDraw.ImageDraw, scene: Scene, random: Random, color: Color, count: int) -> None:
    """Short strokes on the ground, longer in front."""
    for _ in range(count):
        near = random.random()
        x, y = random.uniform(0, scene.width), scene.horizon + (scene.height - scene.horizon) * near
        length = 1.5 + 3 * near
        draw.line((x - length / 2, y - length, x, y, x + length / 2, y - length), fill=color)


def _dots(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], random: Random, color: Color,
          count: int) -> None:  # fmt: skip
    x1, y1, x2, y2 = box
    for _ in range(count):
        x, y, r = random.uniform(x1, x2), random.uniform(y1, y2), random.choice((0.5, 0.5, 1))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=color)


def _meadow(scene: Scene, random: Random) -> Image.Image:
    sky = _shifted((146, 200, 240), random)
    grass = _shifted((158, 204, 112), random)
    image = _two_part(scene, (sky, _mixed(sky, (255, 255, 255), 0.55)), (grass, _mixed(grass, (90, 150, 60), 0.45)))
    draw = ImageDraw.Draw(image)
    if random.random() < 0.5:
        _sun(draw, scene, random, (255, 236, 150), random.uniform(7, 12))
    _clouds(draw, scene, random, (250, 252, 255))
    _ridge(draw, scene, random, _mixed(grass, (120, 170, 140), 0.6), random.uniform(10, 26))
    _tufts(draw, scene, random, _mixed(grass, (70, 130, 50), 0.5), 26)
    return image


def _beach(scene: Scene, random: Random) -> Image.Image:
    sky = _shifted((150, 212, 244), random)
    sand = _shifted((242, 222, 172), random)
    image = _two_part(scene, (sky, _mixed(sky, (255, 250, 235), 0.6)), (sand, _mixed(sand, (214, 184, 128), 0.5)))
    draw = ImageDraw.Draw(image)
    _sun(draw, scene, random, (255, 240, 170), random.uniform(8, 13))
    _clouds(draw, scene, random, (252, 253, 255), most=2)
    shore = scene.horizon + 0.3 * (scene.height - scene.horizon)
    sea = _shifted((74, 164, 206), random)
    phase = random.uniform(0, 6.3)
    edge = [(x, shore + 3 * math.sin(phase + x / 24)) for x in range(0, scene.width + 8, 8)]
    foam = [(x, y + 3) for x, y in edge]
    top = [(scene.width + 8, scene.horizon), (0, scene.horizon)]
    draw.polygon([*foam, *top], fill=(240, 248, 248))
    draw.polygon([*edge, *top], fill=sea)
    for _ in range(9):
        x, y = random.uniform(0, scene.width), random.uniform(scene.horizon + 2, shore - 4)
        draw.line((x, y, x + random.uniform(6, 18), y), fill=_mixed(sea, (255, 255, 255), 0.35))
    _dots(draw, (0, shore + 6, scene.width, scene.height), random, _mixed(sand, (170, 130, 80), 0.45), 26)
    return image


def _buildings(
    draw: ImageDraw.ImageDraw, scene: Scene, random: Random, walls: list[Color], pane: Color, lit: float
) -> None:
    x = -random.uniform(0, 25)
    while x < scene.width:
        width, rise = random.uniform(26, 54), scene.horizon * random.uniform(0.3, 0.72)
        wall = _shifted(random.choice(walls), random, 8)
        top = scene.horizon - rise
        draw.rectangle((x, top, x + width, scene.horizon), fill=wall)
        dark = _mixed(wall, (40, 50, 70), 0.25)
        for row in range(int((rise - 8) // 12)):
            for column in range(int((width - 6) // 10)):
                wx, wy = x + 5 + 10 * column, top + 6 + 12 * row
                draw.rectangle((wx, wy, wx + 4, wy + 5), fill=pane if random.random() < lit else dark)
        x += width + random.choice((0, 0, 1, 7))


def _road(draw: ImageDraw.ImageDraw, scene: Scene, walk: Color, line: Color) -> None:
    depth = scene.height - scene.horizon
    edge = scene.horizon + 0.2 * depth
    draw.rectangle((0, scene.horizon, scene.width, edge), fill=walk)
    draw.line((0, edge, scene.width, edge), fill=_mixed(walk, (60, 60, 60), 0.4), width=2)
    y = scene.horizon + 0.62 * depth
    for x in range(-10, scene.width, 44):
        draw.polygon([(x + 4, y), (x + 28, y), (x + 26, y + 4), (x, y + 4)], fill=line)


def _street(scene: Scene, random: Random) -> Image.Image:
    sky = _shifted((186, 212, 232), random)
    asphalt = _shifted((152, 155, 162), random, 8)
    image = _two_part(scene, (sky, _mixed(sky, (255, 255, 255), 0.6)), (asphalt, _mixed(asphalt, (112, 115, 124), 0.7)))
    draw = ImageDraw.Draw(image)
    _clouds(draw, scene, random, (246, 249, 252), most=2)
    walls = [(216, 188, 164), (198, 204, 206), (224, 208, 178), (190, 168, 158), (178, 192, 202)]
    _buildings(draw, scene, random, walls, (226, 238, 246), 0.55)
    _road(draw, scene, (206, 203, 196), (236, 234, 222))
    return image


def _night(scene: Scene, random: Random) -> Image.Image:
    sky = _shifted((26, 32, 68), random, 8)
    ground = _shifted((72, 78, 104), random, 8)
    image = _two_part(scene, (sky, _mixed(sky, (92, 92, 148), 0.6)), (ground, _mixed(ground, (44, 50, 74), 0.7)))
    draw = ImageDraw.Draw(image)
    _dots(draw, (0, 0, scene.width, scene.horizon * 0.8), random, (232, 234, 250), 24)
    _sun(draw, scene, random, (244, 240, 212), random.uniform(7, 11))
    _buildings(draw, scene, random, [(56, 58, 96), (66, 64, 102), (48, 54, 84)], (250, 216, 126), 0.35)
    _road(draw, scene, (94, 98, 124), (176, 176, 158))
    return image


def _snow(scene: Scene, random: Random) -> Image.Image:
    sky = _shifted((172, 204, 232), random)
    snow = _shifted((238, 243, 249), random, 5)
    image = _two_part(scene, (sky, _mixed(sky, (255, 255, 255), 0.6)), (snow, _mixed(snow, (196, 212, 234), 0.6)))
    draw = ImageDraw.Draw(image)
    _peaks(draw, scene, random, _mixed(sky, (110, 135, 170), 0.45), scene.horizon * 0.55)
    _ridge(draw, scene, random, _mixed(snow, (180, 200, 226), 0.6), random.uniform(8, 18))
    if random.random() < 0.5:
        _dots(draw, (0, 0, scene.width, scene.horizon), random, (255, 255, 255), 30)
    _dots(draw, (0, scene.horizon, scene.width, scene.height), random, _mixed(snow, (160, 184, 220), 0.6), 20)
    return image


def _room(scene: Scene, random: Random) -> Image.Image:
    walls = [(236, 224, 204), (214, 226, 220), (222, 220, 236), (240, 214, 202), (208, 222, 234)]
    wall = _shifted(random.choice(walls), random, 8)
    floor = _shifted(random.choice([(190, 150, 108), (168, 128, 92), (176, 168, 160)]), random, 8)
    image = _two_part(scene, (wall, _mixed(wall, (255, 255, 255), 0.25)), (floor, _mixed(floor, (110, 80, 60), 0.3)))
    draw = ImageDraw.Draw(image)
    stripe = _mixed(wall, (150, 140, 130), 0.12)
    if random.random() < 0.5:
        for x in range(random.randint(0, 20), scene.width, 24):
            draw.rectangle((x, 0, x + 9, scene.horizon - 1), fill=stripe)
    # Floor boards run towards a vanishing point above the picture's middle.
    seam, meeting = _mixed(floor, (70, 48, 34), 0.28), (scene.width / 2, scene.horizon - 90)
    for k in range(-14, 15):
        far = meeting[0] + k * 26
        near = meeting[0] + (far - meeting[0]) * (scene.height - meeting[1]) / (scene.horizon - meeting[1])
        draw.line((far, scene.horizon, near, scene.height), fill=seam)
    draw.rectangle((0, scene.horizon - 4, scene.width, scene.horizon), fill=_mixed(wall, (255, 255, 255), 0.7))
    if random.random() < 0.4:
        rug_x, half = random.uniform(0.2, 0.8) * scene.width, random.uniform(40, 80)
        middle = scene.horizon + 0.6 * (scene.height - scene.horizon)
        rug = _shifted(random.choice([(176, 96, 92), (104, 132, 160), (132, 148, 110)]), random)
        draw.ellipse((rug_x - half, middle - 12, rug_x + half, middle + 14), fill=rug)
    if scene.shelf is not None:
        plank = _mixed(floor, (100, 66, 40), 0.35)
        draw.rectangle((0, scene.shelf, scene.width, scene.shelf + 4), fill=plank)
        draw.line((0, scene.shelf + 5, scene.width, scene.shelf + 5), fill=_mixed(wall, (90, 80, 70), 0.35))
    return image


def _plain(scene: Scene, random: Random) -> Image.Image:
    pastels = [(232, 226, 214), (216, 228, 234), (230, 220, 232), (222, 234, 218), (238, 226, 210), (224, 224, 228)]
    color = _shifted(random.choice(pastels), random, 10)
    return _two_part(
        scene,
        (_mixed(color, (255, 255, 255), 0.5), color),
        (_mixed(color, (120, 120, 130), 0.2), _mixed(color, (255, 255, 255), 0.2)),
    )


_PAINTERS: dict[str, Callable[[Scene, Random], Image.Image]] = {
    "meadow": _meadow,
    "beach": _beach,
    "street": _street,
    "room": _room,
    "night": _night,
    "snow": _snow,
    "plain": _plain,
}
