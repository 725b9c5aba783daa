"""Pictures made of answers about pixels: reconstructions, error maps, masks, and cells for which there is no answer.

A cell without an answer is never black or white: nobody asked (plain grey) and an answer that could not be used
(striped) each have their own look. Arrays are (rows, columns, 3), colours 0..255, not-a-number where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from seewhere.models.pixel_points import as_rgb, spread
from seewhere.show import figures, style

UNASKED = (222, 222, 222)
STRIPES = ((255, 255, 255), (204, 121, 167))
WORST = 100.0
"""Error of a cell at which the map's colours end: a third of the largest possible one."""


def upscale(values: NDArray, side: int = 256) -> NDArray:
    """Each cell of (rows, columns, ...) as a block, the longer side about `side` pixels."""
    factor = max(1, round(side / max(values.shape[:2])))
    return np.asarray(values).repeat(factor, axis=0).repeat(factor, axis=1)


def stripes(shape: tuple[int, int], width: int = 3) -> NDArray[np.uint8]:
    """The pattern (rows, columns, 3) of answers that could not be used."""
    y, x = np.indices(shape)
    return np.array(STRIPES, dtype=np.uint8)[(x + y) // width % 2]


def cells_picture(values: ArrayLike, asked: ArrayLike | None = None, side: int = 256) -> Image.Image:
    """Colours of cells as a picture; unusable answers striped, and cells outside of `asked` (rows, columns) grey."""
    colours = np.asarray(values, dtype=np.float64)
    missing = np.asarray(np.isnan(colours).any(axis=2))
    unasked: NDArray = np.zeros_like(missing) if asked is None else ~np.asarray(asked, dtype=bool)
    large = upscale(np.nan_to_num(colours).round().clip(0, 255).astype(np.uint8), side)
    large = np.where(upscale(missing, side)[..., None], stripes(large.shape[:2]), large)
    large[upscale(unasked, side)] = UNASKED
    return Image.fromarray(large)


def cell_errors(values: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Error of every cell (rows, columns): 100 * sum over channels |d| / 255, 0..300; NaN without an answer."""
    return np.abs(np.asarray(values, dtype=np.float64) - np.asarray(target, dtype=np.float64)).sum(2) / 2.55


def error_picture(values: ArrayLike, target: ArrayLike, side: int = 256) -> Image.Image:
    """Error of every cell as a picture: dark is right, bright is `WORST` or more, striped is no answer."""
    errors = cell_errors(values, target)
    heat = (colormaps["inferno"](np.nan_to_num(errors) / WORST)[..., :3] * 255).round().astype(np.uint8)
    large = upscale(heat, side)
    return Image.fromarray(np.where(upscale(np.isnan(errors), side)[..., None], stripes(large.shape[:2]), large))


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """A picture, what was to be reconstructed of it, and what each system made of it.

    image: the original. target: (rows, columns, 3). answers: name -> (rows, columns, 3), NaN where none. titles: name
    -> what is written above, such as its error.
    """

    image: Image.Image
    target: NDArray
    answers: Mapping[str, NDArray]
    titles: Mapping[str, str]


def side_by_side(rows: Sequence[Reconstruction], tile_inches: float = 1.75) -> Figure:
    """Original, target, and for every system its reconstruction and its errors; one line a picture.

    Raises:
        ValueError: no rows, or other systems in one than in the first.
    """
    if not rows or any(list(row.answers) != list(rows[0].answers) for row in rows):
        raise ValueError("expected at least one picture, and the same systems for each")
    columns = 2 + 2 * len(rows[0].answers)
    with style.drawing():
        size = (tile_inches * columns, (tile_inches + 0.28) * len(rows))
        figure, grid = pyplot.subplots(len(rows), columns, figsize=size, squeeze=False)
        for line, row in zip(grid, rows, strict=True):
            drawn = [(figures.enlarge(as_rgb(row.image), 256)[0], "original")]
            drawn.append((cells_picture(row.target), f"target, {row.target.shape[1]} x {row.target.shape[0]}"))
            for name, values in row.answers.items():
                drawn += [
                    (cells_picture(values), row.titles.get(name, name)),
                    (error_picture(values, row.target), "its errors"),
                ]
            for axes, (picture, title) in zip(line, drawn, strict=True):
                figures.show_picture(axes, picture, title, width=25)
                smaller_title(axes)
    return style.finish(figure)


def smaller_title(axes: Axes, size: float = 8) -> None:
    """Write the title of axes anew in a smaller size, for many small pictures in a row."""
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=size)


# ---------------------------------------------------------------------------------------------------------- masks


def mask_outline(mask: ArrayLike) -> NDArray[np.bool_]:
    """Pixels of a (H, W) mask that have a neighbour outside of it."""
    inside = np.pad(np.asarray(mask, dtype=bool), 1)
    core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return inside[1:-1, 1:-1] & ~core


def overlay(
    image: Image.Image,
    mask: ArrayLike | None,
    truth: ArrayLike | None = None,
    box: ArrayLike | None = None,
    side: int = 360,
) -> Image.Image:
    """A picture with a predicted mask (tinted blue), the outline of the true one (green) and a box (orange).

    mask, truth: (H, W) bool in the frame of the picture. box: (4,) pixels xyxy; NaN draws none.
    """
    large, factor = figures.enlarge(as_rgb(image), side)
    pixels = np.asarray(large, dtype=np.float64)
    if mask is not None:
        inside = spread(np.asarray(mask, dtype=bool), large.size)
        grey = pixels.mean(axis=2, keepdims=True) * 0.35 + pixels * 0.35 + 70
        tint = np.array([int(style.BLUE[start : start + 2], 16) for start in (1, 3, 5)])
        pixels = np.where(inside[..., None], pixels * 0.45 + tint * 0.55, grey)
    if truth is not None:
        edge = mask_outline(spread(np.asarray(truth, dtype=bool), large.size))
        thick = edge | np.roll(edge, 1, 0) | np.roll(edge, 1, 1)
        pixels[thick] = [int(style.TRUTH[start : start + 2], 16) for start in (1, 3, 5)]
    drawn = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
    if box is None:
        return drawn
    return figures.draw_boxes(drawn, np.asarray(box) * factor, colors=style.ORANGE, side=side, width=2)


def probability_picture(image: Image.Image, probabilities: ArrayLike, side: int = 360) -> Image.Image:
    """Probabilities of cells (rows, columns) over a grey copy of the picture; NaN cells, not asked, stay grey."""
    large, _ = figures.enlarge(as_rgb(image).convert("L").convert("RGB"), side)
    values = spread(np.asarray(probabilities, dtype=np.float64), large.size)
    heat = colormaps["viridis"](np.nan_to_num(values))[..., :3] * 255
    grey = np.asarray(large, dtype=np.float64)
    drawn = np.where(np.isnan(values)[..., None], grey * 0.6 + 90, heat * 0.8 + grey * 0.2)
    return Image.fromarray(drawn.clip(0, 255).round().astype(np.uint8))
