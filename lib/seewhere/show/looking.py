"""Where queries look: cross-attention drawn over the picture, layer and query chosen with sliders."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from seewhere.show import figures, style
from seewhere.show.panel import Panel, to_png

SIDE = 360
ALL = -1
"""Stands for the mean over all queries."""


def patch_grid(weights: ArrayLike) -> NDArray[np.float64]:
    """Return attention over patches (P,) as a square grid, rows from the top; a class token before them is dropped.

    Raises:
        ValueError: neither P nor P - 1 is a square number.
    """
    values = np.asarray(weights, dtype=np.float64)
    for skip in (0, 1):
        side = math.isqrt(len(values) - skip)
        if side * side == len(values) - skip:
            return values[skip:].reshape(side, side)
    raise ValueError(f"{len(values)} patches are no square grid, with or without a class token")


def overlay(picture: Image.Image, weights: ArrayLike, dark: float = 0.25, side: int = SIDE) -> Image.Image:
    """Return the picture, enlarged and darkened where attention (P,) is low: what is bright is looked at.

    Args:
        picture: as it is in the data set.
        weights: attention over patches; the brightness rises in a line with it, from its least to its largest value.
        dark: brightness left where attention is least, 0..1.
        side: longer side of the result in pixels.
    """
    large, _ = figures.enlarge(picture, side)
    grid = patch_grid(weights)
    share = (grid - grid.min()) / max(float(np.ptp(grid)), 1e-12)
    mask = Image.fromarray((255 * (dark + (1 - dark) * share)).astype(np.uint8)).resize(
        large.size, Image.Resampling.BICUBIC
    )
    return Image.composite(large, Image.new("RGB", large.size, style.BLACK), mask)


class Looker(Panel):
    """Pick an example, a layer and a query, and see where it looks.

    Args:
        pictures: N pictures.
        texts: N texts, as the resampler read them.
        maps: layer -> (N, queries, patches).
        title: who looks, such as "micro-blip2, frozen"; stands before the text.

    Raises:
        ValueError: nothing to show, or arrays of other lengths.
    """

    def __init__(
        self, pictures: Sequence[Image.Image], texts: Sequence[str], maps: Mapping[str, NDArray], title: str = ""
    ) -> None:
        if not pictures or not maps or any(len(values) != len(pictures) for values in maps.values()):
            raise ValueError(f"expected maps of {len(pictures)} pictures; got {[len(v) for v in maps.values()]}")
        self.pictures, self.texts, self.maps, self.title = list(pictures), list(texts), dict(maps), title
        queries = next(iter(self.maps.values())).shape[1]
        self.example = ipywidgets.IntSlider(0, 0, len(pictures) - 1, description="example")
        self.layer = ipywidgets.SelectionSlider(options=list(self.maps), value=list(self.maps)[-1], description="layer")
        self.query = ipywidgets.IntSlider(ALL, ALL, queries - 1, description="query")
        self.caption = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png", layout={"max_width": f"{SIDE}px", "object_fit": "contain"})
        super().__init__()
        self.children = [ipywidgets.HBox([self.example, self.layer, self.query]), self.caption, self.picture]
        for control in (self.example, self.layer, self.query):
            control.observe(self._refresh, "value")
        self._refresh()

    def weights(self) -> NDArray:
        """Attention on show, (patches,)."""
        found = self.maps[self.layer.value][self.example.value]
        return found.mean(axis=0) if self.query.value == ALL else found[self.query.value]

    def _refresh(self, _: object = None) -> None:
        which = "mean over the queries" if self.query.value == ALL else f"query {self.query.value}"
        text = html.escape(self.texts[self.example.value])
        before = f"<b>{html.escape(self.title)}</b>: " if self.title else ""
        self.caption.value = f"<p>{before}“{text}”, layer {html.escape(self.layer.value)}, {which}</p>"
        self.picture.value = to_png(overlay(self.pictures[self.example.value], self.weights()))

    def static(self, example: int = 0, queries: Sequence[int] = (ALL, 0, 1, 2)) -> Figure:
        """Every layer by some queries, for one example: the same view for readers without a kernel."""
        drawn, titles = [], []
        for layer, values in self.maps.items():
            for query in queries:
                found = values[example].mean(axis=0) if query == ALL else values[example][query]
                drawn.append(overlay(self.pictures[example], found))
                titles.append(f"layer {layer}, {'all queries' if query == ALL else f'query {query}'}")
        figure = figures.gallery(drawn, titles, columns=len(queries), tile_inches=2.3)
        before = f"{self.title}: " if self.title else ""
        figure.suptitle(f"{before}“{self.texts[example]}”", x=0.01, ha="left", fontsize=11)
        return figure
