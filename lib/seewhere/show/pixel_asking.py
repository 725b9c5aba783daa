"""The pixel widget: point at a place, and see which colour is there and which colours the models say."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from seewhere.models.pixel_points import as_rgb, cells_of, cells_within, centres_of, read_picture
from seewhere.models.protocols import PixelReader
from seewhere.show import figures, style
from seewhere.show.panel import Panel, to_png
from seewhere.show.pixels import cell_errors, cells_picture

SIDE = 384
CHANNELS = ("red", "green", "blue")
BARS = {"red": "#D55E00", "green": "#009E73", "blue": "#0072B2"}


def area_average(image: Image.Image, grid: int) -> NDArray[np.uint8]:
    """The picture on a grid, (grid, grid, 3): the mean colour of every cell."""
    return np.asarray(as_rgb(image).resize((grid, grid), Image.Resampling.BOX))


class PointingCanvas(anywidget.AnyWidget):
    """A picture on which places are pointed at; sends ``{"kind": "hover" | "click" | "drag", ...}``.

    Places are shares 0..1 of width and height: ``x, y``, and for a drag ``x2, y2``. While the pointer only moves, a
    message is sent when it enters another cell of the grid, not more often than `pause` milliseconds, and not before
    the last one was answered (`answered` counts), so that none queue behind a slow model; then the place is asked for
    where the pointer is by now.
    """

    picture = traitlets.Bytes(b"").tag(sync=True)
    grid = traitlets.Int(64).tag(sync=True)
    pause = traitlets.Int(120).tag(sync=True)
    answered = traitlets.Int(0).tag(sync=True)
    mark: Any = traitlets.List([]).tag(sync=True)  # x, y, x2, y2 as shares, drawn as a frame

    _esm = """
    export default { render({ model, el }) {
      const stage = document.createElement("div");
      stage.className = "seewhere-pointing";
      stage.style.cssText = "position:relative;display:inline-block;cursor:crosshair;" +
        "touch-action:none;user-select:none";
      const image = document.createElement("img");
      image.draggable = false;
      image.style.display = "block";
      const frame = document.createElement("div");
      frame.style.cssText = "position:absolute;pointer-events:none;box-sizing:border-box;" +
        "border:2px solid #fff;outline:1px solid #000;display:none";
      stage.append(image, frame);
      el.appendChild(stage);
      let address = null;
      const show = () => {
        const bytes = model.get("picture");
        if (address) URL.revokeObjectURL(address);
        address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
        image.src = address;
      };
      const outline = (x, y, x2, y2) => {
        frame.style.display = "block";
        frame.style.left = 100 * x + "%"; frame.style.top = 100 * y + "%";
        frame.style.width = 100 * (x2 - x) + "%"; frame.style.height = 100 * (y2 - y) + "%";
      };
      const marked = () => {
        const mark = model.get("mark");
        if (mark.length === 4) outline(...mark); else frame.style.display = "none";
      };
      const place = (event) => {
        const area = image.getBoundingClientRect();
        const share = (value, start, length) => Math.min(Math.max((value - start) / length, 0), 1);
        return [share(event.clientX, area.left, area.width), share(event.clientY, area.top, area.height)];
      };
      const between = (a, b) => [0, 1].map((i) => Math.min(a[i], b[i])).concat([0, 1].map((i) => Math.max(a[i], b[i])));
      let start = null, cell = "", sent = 0, waiting = false, next = null, timer = null;
      const patience = 10000;
      const hover = () => {
        clearTimeout(timer);
        if (!next) return;
        const grid = model.get("grid");
        const now = Math.floor(next[0] * grid) + "," + Math.floor(next[1] * grid);
        const early = sent + (waiting ? patience : model.get("pause")) - performance.now();
        if (now !== cell && early > 0) { timer = setTimeout(hover, early); return; }
        const here = next;
        next = null;
        if (now === cell) return;
        cell = now; sent = performance.now(); waiting = true;
        model.send({ kind: "hover", x: here[0], y: here[1] });
      };
      model.on("change:answered", () => { waiting = false; hover(); });
      stage.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        stage.setPointerCapture(event.pointerId);
        start = place(event); next = null;
      });
      stage.addEventListener("pointermove", (event) => {
        if (start) outline(...between(start, place(event)));
        else { next = place(event); hover(); }
      });
      stage.addEventListener("pointerup", (event) => {
        if (!start) return;
        const here = place(event), box = between(start, here);
        start = null;
        if (Math.max(box[2] - box[0], box[3] - box[1]) < 1 / model.get("grid")) {
          marked();
          model.send({ kind: "click", x: here[0], y: here[1] });
        } else {
          model.send({ kind: "drag", x: box[0], y: box[1], x2: box[2], y2: box[3] });
        }
      });
      stage.addEventListener("pointercancel", () => { start = null; marked(); });
      model.on("change:picture", show);
      model.on("change:mark", marked);
      show(); marked();
    } };
    """


class Known:
    """What one model has said about one picture so far: colours and confidences of cells, and which were asked."""

    def __init__(self, grid: int) -> None:
        self.colours = np.full((grid, grid, 3), np.nan)
        self.confidence = np.full((grid, grid, 3), np.nan)
        self.asked = np.zeros((grid, grid), dtype=bool)

    def ask(self, reader: Any, image: Image.Image, cells: NDArray) -> None:
        """Put those of the cells (N, 2) to a reader that were not asked yet."""
        fresh = cells[~self.asked[cells[:, 1], cells[:, 0]]]
        if not len(fresh):
            return
        points = centres_of(fresh, image.size, len(self.asked))
        x, y = fresh[:, 0], fresh[:, 1]
        if hasattr(reader, "read_colours"):
            answers = reader.read_colours([image], [points])[0]
            self.colours[y, x], self.confidence[y, x] = answers.values, np.exp(answers.log_probabilities)
        else:
            self.colours[y, x] = reader.read_pixels([image], [points])[0]
        self.asked[y, x] = True


class PixelAsker(Panel):
    """Hover over a picture or click on it: the true colour of the place, what each model says, and how sure it is.

    Drag a rectangle to have just that reconstructed. Pictures come from a list, or from a path typed by the reader.

    Args:
        readers: name -> a model that reads pixels; `read_colours`, where it has one, gives confidences too.
        pictures: name -> picture of any mode and size.
        target: (picture, grid) -> what the colours are compared with, (grid, grid, 3).
        grid: cells along a side that can be asked for.

    Raises:
        ValueError: no readers or no pictures.
    """

    def __init__(
        self,
        readers: Mapping[str, PixelReader],
        pictures: Mapping[str, Image.Image],
        target: Callable[[Image.Image, int], NDArray] = area_average,
        grid: int = 64,
    ) -> None:
        if not readers or not pictures:
            raise ValueError(f"expected at least one model and one picture, got {len(readers)} and {len(pictures)}")
        self.readers, self.pictures, self.target_of, self.grid = dict(readers), dict(pictures), target, grid
        self._known: dict[str, dict[str, Known]] = {}
        self._targets: dict[str, NDArray] = {}  # a large picture takes a while to average
        self.cell: tuple[int, int] | None = None
        self.rectangle: tuple[float, float, float, float] | None = None
        self._make_controls()
        super().__init__()
        top = ipywidgets.HBox([self.chosen, self.path, self.whole], layout={"flex_flow": "row wrap"})
        columns = ipywidgets.HBox([self.canvas, self.report], layout={"flex_flow": "row wrap"})
        self.children = [top, self.message, columns, self.picture]
        self._show_picture()

    def _make_controls(self) -> None:
        self.chosen = ipywidgets.Dropdown(options=list(self.pictures), description="picture")
        self.path = ipywidgets.Text(
            description="or a file", placeholder="path of your own picture, then Enter", continuous_update=False,
            layout={"width": "420px"},
        )  # fmt: skip
        self.whole = ipywidgets.Button(description="reconstruct all of it", icon="th")
        self.message, self.report = ipywidgets.HTML(), ipywidgets.HTML(layout={"width": "420px"})
        self.canvas = PointingCanvas(grid=self.grid)
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "900px", "object_fit": "contain"})
        self.chosen.observe(self._show_picture, "value")
        self.path.observe(self._new_path, "value")
        self.whole.on_click(lambda _: self.ask_rectangle(0, 0, *self.image.size))
        self.canvas.on_msg(lambda _, content, buffers: self._pointed(content))

    # ------------------------------------------------------------------------------------------- what is on show

    @property
    def image(self) -> Image.Image:
        """The picture on show, as given."""
        return self.pictures[self.chosen.value]

    @property
    def target(self) -> NDArray:
        """What the picture's colours are compared with, (grid, grid, 3)."""
        name = self.chosen.value
        if name not in self._targets:
            self._targets[name] = np.asarray(self.target_of(self.image, self.grid))
        return self._targets[name]

    @property
    def known(self) -> dict[str, Known]:
        """Name of a model -> what it has said about the picture on show."""
        return self._known.setdefault(self.chosen.value, {name: Known(self.grid) for name in self.readers})

    def _new_path(self, _: object = None) -> None:
        if self.path.value.strip():
            self.add_picture(self.path.value.strip())

    def add_picture(self, path: str) -> None:
        """Add a picture of the reader's own and show it; what is wrong with the file is said on the page."""
        try:
            image = read_picture(path)
        except ValueError as error:
            self.message.value = f'<p style="color:{style.VERMILLION}">{html.escape(str(error))}</p>'
            return
        self.pictures[path] = image
        self._known.pop(path, None)
        self._targets.pop(path, None)
        self.chosen.options = list(self.pictures)
        self.chosen.value = path
        self._show_picture()

    def _show_picture(self, _: object = None) -> None:
        self.cell = self.rectangle = None
        width, height = self.image.size
        self.message.value = f"<p>{html.escape(self.chosen.value)}, {width} x {height} pixels</p>"
        self.canvas.mark = []
        self.canvas.picture = to_png(figures.enlarge(as_rgb(self.image), SIDE)[0])
        self._refresh()

    # ------------------------------------------------------------------------------------------------- questions

    def _pointed(self, content: Mapping[str, Any]) -> None:
        width, height = self.image.size
        try:
            x, y = float(content["x"]) * width, float(content["y"]) * height
            if content["kind"] == "drag":
                self.ask_rectangle(x, y, float(content["x2"]) * width, float(content["y2"]) * height)
            else:
                self.ask(x, y)
        except (KeyError, TypeError, ValueError) as error:
            self.message.value = f'<p style="color:{style.VERMILLION}">{html.escape(str(error))}</p>'
        finally:
            self.canvas.answered += 1

    def ask(self, x: float, y: float) -> dict[str, NDArray]:
        """Ask every model for the colour at x, y (pixels of the picture); name -> (3,), NaN where unusable.

        Raises:
            ValueError: a point outside of the picture.
        """
        cells = cells_of(np.array([[x, y]]), self.image.size, self.grid)
        for name, reader in self.readers.items():
            self.known[name].ask(reader, self.image, cells)
        column, row = cells[0].tolist()
        self.cell = column, row
        self._refresh()
        return {name: found.colours[row, column] for name, found in self.known.items()}

    def ask_rectangle(self, x1: float, y1: float, x2: float, y2: float) -> dict[str, NDArray]:
        """Have every model reconstruct a rectangle (pixels, xyxy); name -> (grid, grid, 3), NaN where not asked.

        Raises:
            ValueError: a rectangle outside of the picture.
        """
        cells = cells_within((x1, y1, x2, y2), self.image.size, self.grid)
        for name, reader in self.readers.items():
            self.known[name].ask(reader, self.image, cells)
        first, last = cells.min(0) / self.grid, (cells.max(0) + 1) / self.grid
        self.rectangle = (float(first[0]), float(first[1]), float(last[0]), float(last[1]))
        self.canvas.mark = list(self.rectangle)
        self._refresh()
        return {name: found.colours for name, found in self.known.items()}

    # --------------------------------------------------------------------------------------------------- answers

    def rows(self) -> list[tuple[str, NDArray, NDArray | None]]:
        """(who, colour (3,), confidence per channel (3,) or None) for the place last pointed at; truth first."""
        if self.cell is None:
            return []
        column, row = self.cell
        found: list[tuple[str, NDArray, NDArray | None]] = [("truth", self.target[row, column].astype(float), None)]
        return found + [(n, k.colours[row, column], k.confidence[row, column]) for n, k in self.known.items()]

    def _refresh(self) -> None:
        self.report.value = self._report()
        if any(found.asked.any() for found in self.known.values()):
            tiles, titles = self._tiles()
            self.picture.value = to_png(figures.contact_sheet(tiles, titles, columns=len(tiles), tile=200))
            self.picture.layout.display = ""
        else:
            self.picture.layout.display = "none"

    def _tiles(self) -> tuple[list[Image.Image], list[str]]:
        tiles, titles = [cells_picture(self.target, side=200)], ["target"]
        for name, found in self.known.items():
            tiles.append(cells_picture(found.colours, found.asked, side=200))
            errors = cell_errors(found.colours, self.target)[found.asked]
            answered = errors[~np.isnan(errors)]
            error = f"RE {answered.mean():.1f}" if len(answered) else "no answer"
            lost = len(errors) - len(answered)
            titles.append(f"{name}: {error}" + (f", {lost} unusable" if lost else ""))
        return tiles, titles

    def _report(self) -> str:
        if self.cell is None:
            return "<p>Hover over the picture, click on it, or drag a rectangle.</p>"
        lines = [f"<p>cell {self.cell[0]}, {self.cell[1]} of {self.grid} x {self.grid}</p><table>"]
        for name, colour, sure in self.rows():
            swatch = "background:" + (_hex(colour) or "repeating-linear-gradient(45deg,#fff 0 4px,#CC79A7 4px 8px)")
            cells = f'<td><div style="{swatch};width:34px;height:22px;border:1px solid #888"></div></td>'
            cells += f"<td><b>{html.escape(name)}</b></td><td>{_words(colour)}</td><td>{_confidence_bars(sure)}</td>"
            lines.append(f"<tr>{cells}</tr>")
        return "".join(lines) + "</table><p><small>bars: how sure of red, green, blue</small></p>"

    def static(self, picture: str | None = None, point: tuple[float, float] | None = None) -> Figure:
        """The same view as a figure: a point (shares of width and height), and a rectangle around it reconstructed."""
        if picture is not None:
            self.chosen.value = picture
        width, height = self.image.size
        x, y = point or (0.5, 0.5)
        low, high = np.clip([x - 0.2, y - 0.2], 0, 1), np.clip([x + 0.2, y + 0.2], 0, 1)
        self.ask_rectangle(low[0] * width, low[1] * height, high[0] * width, high[1] * height)
        self.ask(x * width, y * height)
        tiles, titles = self._tiles()
        with style.drawing():
            columns = len(tiles) + 2
            figure, axes = pyplot.subplots(
                1, columns, figsize=(2.3 * columns + 1, 2.6), width_ratios=[1, 1.25] + [1] * len(tiles)
            )
            figures.show_picture(axes[0], self._marked(), "the place, and a rectangle", width=30)
            _swatches(axes[1], self.rows())
            for place, tile, title in zip(axes[2:], tiles, titles, strict=True):
                figures.show_picture(place, tile, title, width=30)
        return style.finish(figure)

    def _marked(self) -> Image.Image:
        large = figures.enlarge(as_rgb(self.image), 256)[0]
        assert self.cell is not None and self.rectangle is not None
        frame = np.array(self.rectangle) * [*large.size, *large.size]
        centre = (np.array(self.cell) + 0.5) / self.grid * large.size
        boxes = np.array([frame, [*(centre - 5), *(centre + 5)]])
        return figures.draw_boxes(large, boxes, colors=[style.SKY, style.YELLOW], side=256, width=2)


def _hex(colour: NDArray) -> str:
    """``#rrggbb``, or "" where there is no colour."""
    return "" if np.isnan(colour).any() else "#{:02x}{:02x}{:02x}".format(*colour.round().clip(0, 255).astype(int))


def _words(colour: NDArray) -> str:
    return "no usable answer" if np.isnan(colour).any() else "[{:.0f}, {:.0f}, {:.0f}]".format(*colour)


def _confidence_bars(sure: NDArray | None) -> str:
    if sure is None or np.isnan(sure).any():
        return ""
    parts = []
    for name, value in zip(CHANNELS, sure, strict=True):
        bar = f"background:{BARS[name]};width:{90 * value:.0f}px;height:5px;display:inline-block"
        parts.append(
            f'<div style="line-height:0.9"><span style="{bar}"></span> <small>{100 * value:.0f} %</small></div>'
        )
    return "".join(parts)


def _swatches(axes: Axes, rows: list[tuple[str, NDArray, NDArray | None]]) -> None:
    """Colour, name, numbers and confidence of each answer, from top to bottom."""
    axes.set(xlim=(0, 1), ylim=(len(rows), 0))
    axes.set_axis_off()
    for place, (name, colour, sure) in enumerate(rows):
        missing = np.isnan(colour).any()
        look: dict[str, Any] = {"facecolor": "white", "hatch": "////"} if missing else {"facecolor": _hex(colour)}
        axes.add_patch(Rectangle((0, place + 0.12), 0.16, 0.66, edgecolor=style.GREY, **look))
        axes.text(0.2, place + 0.3, name, fontsize=9, va="center", fontweight="bold")
        known = sure is not None and not np.isnan(sure).any()
        tail = "" if not known else "  sure: " + " ".join(f"{100 * v:.0f}" for v in np.asarray(sure)) + " %"
        axes.text(0.2, place + 0.62, _words(colour) + tail, fontsize=7.5, va="center")
