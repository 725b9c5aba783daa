"""Where a reconstruction goes wrong: at edges, in small objects, far from the centre?

Each cell of each picture becomes a row with the properties to group by; a group's error comes with an interval over
pictures, because the cells of one picture are no independent witnesses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from seewhere.pixels.study import Study
from seewhere.show import charts
from seewhere.show.pixels import cell_errors
from seewhere.world.render import owner_map
from seewhere.world.scenes import Scene
from seewhere.world.sprites import load_sprites

EDGES = ("flat", "slight", "clear", "sharp")
EDGE_BOUNDS = (3.0, 15.0, 45.0)
"""Bounds between them: largest step to a neighbouring cell, mean of the channels, 0..255."""
SIZES = ("background", "small object", "middling object", "large object")
SIZE_BOUNDS = (0.02, 0.06)
"""Bounds between small, middling and large: share of the picture."""
RINGS = ("centre", "near it", "towards the border", "border")


def edge_strength(target: NDArray) -> NDArray[np.float64]:
    """Largest step from each cell to one beside, above or below it, (rows, columns): mean of channels, 0..255."""
    values = np.asarray(target, dtype=np.float64)
    found = np.zeros(values.shape[:2])
    for axis in (0, 1):
        step = np.abs(np.diff(values, axis=axis)).mean(axis=2)
        none = np.zeros_like(np.take(found, [0], axis=axis))
        before, after = np.concatenate([none, step], axis=axis), np.concatenate([step, none], axis=axis)
        found = np.maximum(found, np.maximum(before, after))
    return found


def distance_from_centre(grid: int) -> NDArray[np.float64]:
    """How far each cell lies from the picture's centre, (grid, grid): 0 in it, 1 at the border (larger of x and y)."""
    apart = np.abs((np.arange(grid) + 0.5) / grid * 2 - 1)
    return np.maximum(apart[:, None], apart[None])


def object_shares(scene: Scene, grid: int) -> NDArray[np.float64]:
    """Share of the picture that the object at each cell's centre takes, (grid, grid); 0 on the background."""
    owner = owner_map(scene, load_sprites())
    at = (np.arange(grid) + 0.5) / grid
    cells = owner[(at * scene.height).astype(int)][:, (at * scene.width).astype(int)]
    shares = np.zeros(owner.max() + 2)
    for number in np.unique(owner[owner >= 0]):
        shares[number] = (owner == number).mean()
    return np.where(cells >= 0, shares[cells], 0.0)


def cells(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """One row per cell, picture and system.

    Columns: set, picture, system, error (0..300, NaN for an unusable answer), edge, "at an edge", "distance from the
    centre", and for scenes "object" (its size; else NaN).
    """
    rings = pd.cut(distance_from_centre(study.grid).ravel(), [0, 0.25, 0.5, 0.75, 1], labels=list(RINGS))
    parts = []
    for number, item in enumerate(study.shown):
        edge = edge_strength(item.target).ravel()
        about = {
            "edge": edge,
            "at an edge": pd.cut(edge, [-1, *EDGE_BOUNDS, 256], labels=list(EDGES)),
            "distance from the centre": rings,
        }
        if item.scene is not None:
            shares = object_shares(item.scene, study.grid).ravel()
            about["object"] = pd.cut(shares, [-1, 0, *SIZE_BOUNDS, 1], labels=list(SIZES))
        for system in systems:
            wrong = cell_errors(study.answers[system][number], item.target).ravel()
            named = {"set": item.set, "picture": f"{item.set} {item.name}", "system": system}
            parts.append(pd.DataFrame(about).assign(error=wrong, **named))
    return pd.concat(parts, ignore_index=True)


def chart(table: pd.DataFrame, by: str, title: str = "") -> Figure:
    """Mean error of cells by a property, a line per system, intervals over pictures; unusable answers are left out."""
    known = table.dropna(subset=[by, "error"])
    known = known.assign(**{by: known[by].cat.remove_unused_categories()})
    lines = charts.group_estimates(known, by, "error", "system", "picture")
    figure = charts.line_chart(lines, title=title, x_label=by, label="error of a cell (0 to 300)", percent=False)
    figure.axes[0].set_ylim(bottom=0)
    return figure


def correlation(table: pd.DataFrame, column: str = "edge") -> pd.Series:
    """Spearman's correlation of a cell's error with a numeric column, the mean over pictures, by system."""
    found = {
        str(system): float(
            np.nanmean([rows["error"].corr(rows[column], method="spearman") for _, rows in part.groupby("picture")])
        )
        for system, part in table.groupby("system", sort=False)
    }
    return pd.Series(found, name=f"rank correlation with {column}").round(2)
