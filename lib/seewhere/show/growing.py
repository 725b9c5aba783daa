"""A reconstruction growing as training goes: a strip of snapshots, and a slider through them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Protocol

import ipywidgets
import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from seewhere.show import figures, style
from seewhere.show.panel import Panel, to_png
from seewhere.show.pixels import cells_picture, smaller_title


class History(Protocol):
    """Snapshots of one training: K of them, of P pictures."""

    @property
    def stages(self) -> Sequence[str]:
        """(K,) stage of each snapshot."""

    @property
    def questions(self) -> NDArray:
        """(K,) colour questions seen so far."""

    @property
    def names(self) -> Sequence[str]:
        """(P,) names of the pictures."""

    @property
    def targets(self) -> NDArray:
        """(P, rows, columns, 3)."""

    @property
    def reconstructions(self) -> NDArray:
        """(K, P, rows, columns, 3)."""

    @property
    def errors(self) -> NDArray:
        """(K, P) reconstruction error."""


class Growth(Panel):
    """Move through training and watch a picture come out, one column per training.

    Args:
        histories: name -> history; all of the same pictures. The slider moves over the numbers of questions at which
            any of them has a snapshot; each shows its own nearest one.

    Raises:
        ValueError: none, or of other pictures.
    """

    def __init__(self, histories: Mapping[str, History]) -> None:
        if not histories or len({tuple(history.names) for history in histories.values()}) > 1:
            raise ValueError("expected at least one history, and all of the same pictures")
        self.histories = dict(histories)
        self.first = next(iter(self.histories.values()))
        self.counts = sorted({int(count) for history in self.histories.values() for count in history.questions})
        last = len(self.counts) - 1
        self.snapshot = ipywidgets.IntSlider(last, 0, last, description="snapshot", layout={"width": "420px"})
        self.play = ipywidgets.Play(value=last, min=0, max=last, interval=400)
        ipywidgets.jslink((self.play, "value"), (self.snapshot, "value"))
        names = [(str(name), place) for place, name in enumerate(self.first.names)]
        self.chosen = ipywidgets.Dropdown(options=names, description="picture")
        self.caption = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "800px", "object_fit": "contain"})
        super().__init__()
        controls = ipywidgets.HBox([self.play, self.snapshot, self.chosen], layout={"flex_flow": "row wrap"})
        self.children = [controls, self.caption, self.picture]
        for control in (self.snapshot, self.chosen):
            control.observe(self._refresh, "value")
        self._refresh()

    def nearest(self, name: str, snapshot: int) -> int:
        """The snapshot of history `name` whose questions seen are nearest to the slider's at `snapshot`."""
        return _nearest(self.histories[name], self.counts[snapshot])

    def _refresh(self, _: object = None) -> None:
        place, snapshot = self.chosen.value, self.snapshot.value
        tiles, parts = [cells_picture(self.first.targets[place])], ["target"]
        for name, history in self.histories.items():
            number = self.nearest(name, snapshot)
            tiles.append(cells_picture(history.reconstructions[number][place]))
            parts.append(f"{name}, {_stage(history.stages[number])}: RE {history.errors[number][place]:.1f}")
        seen = self.counts[snapshot]
        said = " | ".join(html.escape(part) for part in parts)
        self.caption.value = f"<p>{seen:,} questions about colours seen: {said}</p>"
        self.picture.value = to_png(_beside(tiles))

    def static(self, picture: int = 0, columns: int = 12) -> Figure:
        """A strip per history, snapshots from first to last and then the target, at about the same counts of questions.

        A column's counts are those of the history with fewest snapshots; the last shows the end of each. A history
        without a snapshot of its own for a column leaves it empty.
        """
        sparse = min(self.histories.values(), key=lambda history: len(history.questions))
        counts = [float(sparse.questions[place]) for place in np.unique(_spaced(len(sparse.questions), columns))]
        shown = {
            name: [*(_nearest(history, count) for count in counts[:-1]), len(history.questions) - 1]
            for name, history in self.histories.items()
        }
        columns = len(counts)
        with style.drawing():
            size = (1.35 * (columns + 1), 1.75 * len(self.histories))
            figure, grid = pyplot.subplots(len(self.histories), columns + 1, figsize=size, squeeze=False)
            for line, (name, history) in zip(grid, self.histories.items(), strict=True):
                for axes in line:
                    axes.set_axis_off()
                for axes, number, before in zip(line, shown[name], [-1, *shown[name]], strict=False):
                    if number == before:
                        continue
                    values = history.reconstructions[number][picture]
                    title = f"{_short(history.questions[number])}, {_stage(history.stages[number])}"
                    figures.show_picture(axes, cells_picture(values), title)
                    axes.set_axis_on()
                    smaller_title(axes, 7.5)
                    axes.set_xlabel(f"RE {history.errors[number][picture]:.1f}", fontsize=7.5)
                line[0].set_ylabel(name, fontsize=9)
                line[-1].set_axis_on()
                figures.show_picture(line[-1], cells_picture(history.targets[picture]), "target")
                smaller_title(line[-1], 7.5)
        return style.finish(figure)


def _nearest(history: History, questions: float) -> int:
    return int(np.abs(np.asarray(history.questions, dtype=np.float64) - float(questions)).argmin())


def _spaced(count: int, columns: int) -> NDArray[np.int64]:
    """Numbers of at most `columns` of `count` snapshots: close together at first, where most happens."""
    if count <= columns:
        return np.arange(count)
    return np.round((np.linspace(0, 1, min(columns, count)) ** 1.6) * (count - 1)).astype(np.int64)


def _stage(name: str) -> str:
    return f"stage {name}" if str(name).isdigit() else str(name)


def _short(number: float) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k" if number >= 1e3 else f"{number:.0f}"


def _beside(tiles: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    sheet = Image.new("RGB", (sum(t.width for t in tiles) + gap * (len(tiles) - 1), tiles[0].height), "white")
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width + gap
    return sheet
