"""Names beside the points of a scatter plot, where they can be read: apart from each other and from other points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from seewhere.show import figures, style

FONT = 7.5  # points, as all lengths here
NEAR, FAR = 7.0, 17.0
"""How far from its point a name stands; from `FAR` a thin line leads back."""
DOT = 4.0
SPOTS = [(side, up, away) for away, up, side in product((NEAR, FAR), (0, 1, -1), (1, -1, 0)) if side or up]


def name_points(axes: Axes, x: ArrayLike, y: ArrayLike, names: Sequence[str]) -> None:
    """Write names around points, each where it covers least of what is there already.

    Args:
        axes: where the points are; its limits and its place in the figure have to be final.
        x, y: (N,) the points, in data coordinates.
        names: N of them.
    """
    scale = 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    data = np.column_stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)])
    points = axes.transData.transform(data) * scale
    low, high = axes.bbox.x0 * scale, axes.bbox.x1 * scale
    taken = [np.array([*(point - DOT), *(point + DOT)]) for point in points]
    for number in np.argsort(points[:, 1], kind="stable"):
        name = str(names[number])
        boxes = [_box(points[number], spot, name) for spot in SPOTS]
        costs = [
            sum(figures.common_area(box, other) for place, other in enumerate(taken) if place != number)
            + 20 * (max(0.0, low - box[0]) + max(0.0, box[2] - high))
            + (0.1 if spot[2] == NEAR else 3.0)
            for box, spot in zip(boxes, SPOTS, strict=True)
        ]
        best = int(np.argmin(costs))
        side, up, away = SPOTS[best]
        taken.append(boxes[best])
        line = {"arrowstyle": "-", "color": style.GREY, "linewidth": 0.6, "shrinkA": 1, "shrinkB": DOT}
        axes.annotate(
            name, tuple(data[number]), xytext=(side * away, up * away), textcoords="offset points", fontsize=FONT,
            va="center", ha={1: "left", -1: "right", 0: "center"}[side], arrowprops=line if away == FAR else None,
        )  # fmt: skip


def _box(point: NDArray, spot: tuple[int, int, float], name: str) -> NDArray:
    """Where a name would stand, xyxy."""
    side, up, away = spot
    width, height = 0.58 * FONT * len(name), 1.3 * FONT
    left = point[0] + side * away - (1 - side) * width / 2
    low = point[1] + up * away - height / 2
    return np.array([left, low, left + width, low + height])
