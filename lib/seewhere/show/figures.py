"""Pictures of images, boxes and phrases: what was asked, what was proposed, what was chosen, and what was right.

Boxes are always (N, 4) float arrays in pixels, xyxy, in the frame of the *original* image. Every function
enlarges the image first and draws afterwards, so lines and letters stay sharp on the small pictures of the
embedded world. Charts live in `seewhere.show.charts`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from seewhere import boxes as box_tools
from seewhere.show import style

if TYPE_CHECKING:
    from supervision import Detections

Picture = Image.Image
_MISS = "none (a miss)"


def enlarge(image: Picture, side: int = 448) -> tuple[Picture, float]:
    """Resize to a longer side of `side` pixels; returns the RGB picture and the factor to multiply boxes with."""
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS), factor


def common_area(a: ArrayLike, b: ArrayLike) -> float:
    """The area that two boxes (4,), xyxy, have in common."""
    a, b = np.asarray(a), np.asarray(b)
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return float(max(width, 0.0) * max(height, 0.0))


def _place_label(
    box: np.ndarray, text_size: tuple[float, float], canvas: tuple[int, int], taken: list[tuple[float, ...]]
) -> tuple[float, float, float, float]:
    """The spot (xyxy, canvas pixels) that covers least of the labels already placed; first choice: above the box."""
    width, height = text_size
    left, top, right, bottom = box
    spots = [(left, top - height), (left, bottom), (right - width, top - height), (right - width, bottom)]
    spots += [(left, top), (right - width, bottom - height), (right, top), (left - width, top)]
    best, best_cost = None, float("inf")
    for order, (x, y) in enumerate(spots):
        inside_x = min(max(x, 0.0), max(canvas[0] - width, 0.0))
        inside_y = min(max(y, 0.0), max(canvas[1] - height, 0.0))
        spot = (inside_x, inside_y, inside_x + width, inside_y + height)
        moved = abs(inside_x - x) + abs(inside_y - y)
        cost = sum(common_area(spot, other) for other in taken) + moved * height * 0.2 + order
        if cost < best_cost:
            best, best_cost = spot, cost
    assert best is not None
    return best


def _outline(draw: ImageDraw.ImageDraw, box: np.ndarray, color: str, width: int, dashed: bool) -> None:
    """A rectangle with a thin contrasting rim, so that it shows on any background."""
    left, top, right, bottom = (float(value) for value in box)
    rim = style.ink_on(color)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=rim, width=width + 2)
    if not dashed:
        draw.rectangle((left, top, right, bottom), outline=color, width=width)
        return
    step = 4 * width
    for start in np.arange(left, right, 2 * step):
        stop = min(start + step, right)
        draw.line((start, top + width / 2, stop, top + width / 2), fill=color, width=width)
        draw.line((start, bottom - width / 2, stop, bottom - width / 2), fill=color, width=width)
    for start in np.arange(top, bottom, 2 * step):
        stop = min(start + step, bottom)
        draw.line((left + width / 2, start, left + width / 2, stop), fill=color, width=width)
        draw.line((right - width / 2, start, right - width / 2, stop), fill=color, width=width)


def draw_boxes(
    image: Picture,
    boxes: ArrayLike,
    labels: Sequence[str] | None = None,
    colors: Sequence[str] | str | None = None,
    *,
    side: int = 448,
    width: int = 4,
    dashed: bool = False,
) -> Picture:
    """Draw boxes and their labels on an enlarged copy of the image.

    boxes: (N, 4) float, pixels, xyxy, original image frame. labels: N texts, "" for none. colors: one for all, or
    N of them, as "#rrggbb"; without them each box takes the next colour of the palette. side: longer side of the
    result in pixels. A row with NaN (a miss) is skipped. Raises ValueError when the counts differ.
    """
    array = box_tools.as_boxes(boxes)
    texts = [""] * len(array) if labels is None else [str(label) for label in labels]
    if isinstance(colors, str):
        inks = [colors] * len(array)
    else:
        inks = [style.color(row) for row in range(len(array))] if colors is None else list(colors)
    if not len(array) == len(texts) == len(inks):
        raise ValueError(f"Got {len(array)} boxes, {len(texts)} labels and {len(inks)} colours; they must be as many.")
    picture, factor = enlarge(image, side)
    draw = ImageDraw.Draw(picture)
    kept = [row for row in range(len(array)) if np.isfinite(array[row]).all()]
    for row in kept:
        _outline(draw, array[row] * factor, inks[row], width, dashed)
    _write_labels(draw, array[kept] * factor, [texts[row] for row in kept], [inks[row] for row in kept])
    return picture


def _write_labels(draw: ImageDraw.ImageDraw, boxes: np.ndarray, texts: list[str], inks: list[str]) -> None:
    """Labels go on last, over all outlines. `boxes` are in the enlarged frame."""
    canvas = draw.im.size
    face = style.font(max(11, round(max(canvas) / 32)))
    taken: list[tuple[float, ...]] = []
    for box, text, ink in zip(boxes, texts, inks, strict=True):
        if not text:
            continue
        _, _, right, bottom = draw.textbbox((0, 0), text, font=face)
        spot = _place_label(box, (right + 6, bottom + 4), canvas, taken)
        taken.append(spot)
        draw.rectangle(spot, fill=ink)
        draw.text((spot[0] + 3, spot[1] + 1), text, font=face, fill=style.ink_on(ink))


def draw_masks(
    image: Picture, masks: Sequence[np.ndarray], opacity: float = 0.55, side: int = 448, dim: float = 0.35
) -> Picture:
    """Tint each mask (H, W) bool with its palette colour; the rest is dimmed towards grey by `dim`."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    pixels = pixels * (1 - dim) + 128 * dim
    for index, mask in enumerate(masks):
        if mask.shape != pixels.shape[:2]:
            raise ValueError(f"Mask {index} is {mask.shape}, the image is {pixels.shape[:2]} (rows, columns).")
        tint = [int(style.color(index)[start : start + 2], 16) for start in (1, 3, 5)]
        pixels[mask] = pixels[mask] * (1 - opacity) + np.array(tint) * opacity
    return enlarge(Image.fromarray(pixels.round().astype(np.uint8)), side)[0]


def candidate_labels(candidates: Detections) -> list[str]:
    """One text per candidate: its index, its label, and its score where the detector gives one."""
    names = candidates.data.get("label", [""] * len(candidates))
    scores = candidates.confidence
    tails = ["" if scores is None else f" {score:.2f}" for score in (scores if scores is not None else names)]
    return [f"{index}: {name}{tail}" for index, (name, tail) in enumerate(zip(names, tails, strict=True))]


def draw_candidates(image: Picture, candidates: Detections, side: int = 448) -> Picture:
    """Every candidate box with its index, label and score."""
    return draw_boxes(image, candidates.xyxy, candidate_labels(candidates), side=side, width=3)


def draw_choice(
    image: Picture, candidates: Detections, index: int, truth: ArrayLike | None, side: int = 448
) -> tuple[Picture, float]:
    """One chosen candidate, coloured by its IoU with the truth (dashed), and that IoU.

    The IoU is NaN when there is no truth or no choice.
    """
    if not 0 <= index < len(candidates):
        return enlarge(image, side)[0], float("nan")
    box = candidates.xyxy[index]
    if truth is None:
        return draw_boxes(image, box, [f"{index}"], style.BLUE, side=side), float("nan")
    value = float(box_tools.iou(np.atleast_2d(box), box_tools.as_boxes(truth))[0, 0])
    below = draw_boxes(image, truth, colors=style.TRUTH, side=side, width=2, dashed=True)
    factor = side / max(image.size)
    return draw_boxes(
        below, np.asarray(box) * factor, [f"{index}  IoU {value:.2f}"], style.iou_color(value), side=side
    ), value


def contact_sheet(
    images: Sequence[Picture], titles: Sequence[str] | None = None, columns: int = 8, tile: int = 128, gap: int = 6
) -> Picture:
    """Small copies of many images on one white sheet, `tile` pixels each, never cropped, with a line of title."""
    if not images:
        raise ValueError("A contact sheet needs at least one image; got none.")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"Got {len(images)} images and {len(titles)} titles; they must be as many.")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    line = 16 if titles is not None else 0
    cell_width, cell_height = tile + gap, tile + line + gap
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        x, y = gap + (index % columns) * cell_width, gap + (index // columns) * cell_height
        small = enlarge(image, tile)[0]
        sheet.paste(small, (x + (tile - small.width) // 2, y + (tile - small.height) // 2))
        if titles is not None:
            draw.text((x, y + tile + 1), _shorten(draw, titles[index], tile), font=style.font(11), fill="#222222")
    return sheet


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The text, cut with an ellipsis where it would run over `width` pixels."""
    face = style.font(11)
    if draw.textlength(text, font=face) <= width:
        return text
    while text and draw.textlength(text + "…", font=face) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def show_picture(axes: Axes, picture: Picture, title: str, color: str = "#222222", width: int = 38) -> None:
    """Put a picture on axes: no ticks, no frame, each line of the title wrapped at `width` letters."""
    axes.imshow(np.asarray(picture))
    axes.set_anchor("N")  # pictures of different heights in a row start at one line
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, width)]
    axes.set_title("\n".join(lines), fontsize=9, color=color)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)


def gallery(pictures: Sequence[Picture], titles: Sequence[str], columns: int = 4, tile_inches: float = 2.9) -> Figure:
    """Pictures side by side, each under its own (wrapped) title."""
    if not pictures or len(pictures) != len(titles):
        raise ValueError(f"Got {len(pictures)} pictures and {len(titles)} titles; expected as many, and at least one.")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height = tile_inches * max(picture.height / picture.width for picture in pictures) + 0.5
    with style.drawing():
        figure, grid = pyplot.subplots(
            rows, columns, figsize=(tile_inches * columns, min(height, tile_inches * 1.5) * rows), squeeze=False
        )
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, picture, title in zip(grid.flat, pictures, titles, strict=False):
            axes.set_axis_on()
            show_picture(axes, picture, title)
    return style.finish(figure)


@dataclass(frozen=True, slots=True)
class PanelRow:
    """One expression with what was proposed and chosen for it.

    image: the original picture. phrase: the expression. candidates: boxes in the frame of the image. truth: (4,)
    pixels, xyxy, or None when nobody knows. choices: chooser's name -> index of its candidate, -1 for no choice;
    kept in order.
    """

    image: Picture
    phrase: str
    candidates: Detections
    truth: ArrayLike | None
    choices: Mapping[str, int] = field(default_factory=dict)


def expression_panels(rows: Sequence[PanelRow], tile_inches: float = 2.9) -> Figure:
    """One line of pictures per expression: candidates, each chooser's choice coloured by its IoU, and the truth.

    The names of the choosers must be the same, in the same order, in every row.
    """
    if not rows:
        raise ValueError("Panels need at least one row; got none.")
    names = list(rows[0].choices)
    if any(list(row.choices) != names for row in rows):
        raise ValueError(f"Every row must have the choosers {names}, in this order.")
    columns = 2 + len(names)
    heights = [tile_inches * min(row.image.height / row.image.width, 1.4) + 0.75 for row in rows]
    with style.drawing():
        figure = pyplot.figure(figsize=(tile_inches * columns, sum(heights)))
        lines = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        for line, row in zip(lines, rows, strict=True):
            line.suptitle("\n".join(textwrap.wrap(f"“{row.phrase}”", 34 * columns)), fontsize=11, x=0.01, ha="left")
            _panel_row(list(np.atleast_1d(line.subplots(1, columns))), row)
    return style.finish(figure)


def _panel_row(axes: list[Axes], row: PanelRow) -> None:
    show_picture(axes[0], draw_candidates(row.image, row.candidates), f"candidates ({len(row.candidates)})")
    for place, (name, index) in zip(axes[1:-1], row.choices.items(), strict=True):
        picture, value = draw_choice(row.image, row.candidates, index, row.truth)
        if not 0 <= index < len(row.candidates):
            show_picture(place, picture, f"{name}: {_MISS}", style.VERMILLION)
        elif np.isnan(value):
            show_picture(place, picture, name)
        else:
            verdict = "right" if value > 0.5 else "wrong"
            show_picture(place, picture, f"{name}: {verdict}, IoU {value:.2f}", style.iou_color(value))
    if row.truth is None:
        show_picture(axes[-1], enlarge(row.image)[0], "truth: unknown")
    else:
        show_picture(axes[-1], draw_boxes(row.image, row.truth, ["truth"], style.TRUTH), "truth")
