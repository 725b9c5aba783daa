"""The widget to draw a box with the mouse: the quickest way to feel what an IoU of 0.5 is."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
from jupyter_bbox_widget import BBoxWidget
from matplotlib.figure import Figure

from seewhere import boxes as box_tools
from seewhere.records import Expression
from seewhere.show import figures, style
from seewhere.show.panel import ImagePicker, to_png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seewhere.datasets import ReferringDataset

SIDE = 448


class BoxDrawer(ImagePicker):
    """Read a phrase, drag a box over what it means, and see the IoU with the truth. The last box drawn counts."""

    def __init__(self, dataset: ReferringDataset | Sequence[ReferringDataset]) -> None:
        super().__init__(dataset)
        self.another = ipywidgets.Button(description="another phrase", icon="refresh")
        self.reveal = ipywidgets.ToggleButton(description="show the truth", icon="eye")
        self.canvas = BBoxWidget(classes=["yours"], colors=[style.BLUE], hide_buttons=True)
        self.report = ipywidgets.HTML()
        self._number = 0
        self.children = [
            ipywidgets.HBox([self.bar, self.another, self.reveal], layout={"flex_flow": "row wrap"}),
            self.report,
            self.canvas,
            self.picture,
        ]
        self.slider.observe(self._new_image, "value")
        self.another.on_click(self._new_phrase)
        self.canvas.observe(self._refresh, "bboxes")
        self.reveal.observe(self._refresh, "value")
        self._new_image()

    @property
    def expression(self) -> Expression:
        """The expression whose region is to be drawn."""
        found = self.expressions()
        return found[self._number % len(found)]

    def _new_image(self, _: object = None) -> None:
        self._number = 0
        self.canvas.image_bytes = to_png(figures.enlarge(self.image(), SIDE)[0])
        self._clear()

    def _new_phrase(self, _: object = None) -> None:
        self._number += 1
        self._clear()

    def _clear(self) -> None:
        self.canvas.bboxes = []
        self.reveal.value = False
        self._refresh()

    def boxes(self) -> np.ndarray:
        """(N, 4) what has been drawn, pixels, xyxy, in the frame of the original image."""
        drawn = [[item["x"], item["y"], item["width"], item["height"]] for item in self.canvas.bboxes]
        array = np.asarray(drawn, dtype=np.float64).reshape(-1, 4)
        image = self.dataset.images[self.image_id]
        return box_tools.to_xyxy(array * max(image.width, image.height) / SIDE, "xywh")

    def iou(self) -> float:
        """IoU of the last box with the truth; NaN before anything is drawn."""
        drawn = self.boxes()
        if not len(drawn):
            return float("nan")
        return float(box_tools.iou(drawn[-1:], np.atleast_2d(self.expression.region.box))[0, 0])

    def _refresh(self, _: object = None) -> None:
        value = self.iou()
        score = "drag a box over it" if np.isnan(value) else f"IoU {value:.2f}: {'a hit' if value > 0.5 else 'a miss'}"
        ink = style.GREY if np.isnan(value) else style.iou_color(value)
        text = html.escape(self.expression.text)
        self.report.value = f'<p><b>“{text}”</b> <span class="seewhere-iou" style="color:{ink}">{score}</span></p>'
        self.picture.layout.display = "" if self.reveal.value else "none"
        if self.reveal.value:
            truth = self.expression.region.box
            self.picture.value = to_png(figures.draw_boxes(self.image(), [truth], ["truth"], style.TRUTH, side=SIDE))

    def static(self, index: int | None = None, shifts: Sequence[float] = (0.0, 0.15, 0.3, 0.5, 0.8)) -> Figure:
        """The largest object's box against copies of it, moved to the right by fractions of its width."""
        if index is not None:
            self.slider.value = index
        largest = max(self.expressions(), key=lambda item: box_tools.area(item.region.box)[0])
        truth = np.asarray(largest.region.box, dtype=np.float64)
        pictures, titles = [], []
        for shift in shifts:
            moved = truth + np.array([1.0, 0.0, 1.0, 0.0]) * shift * (truth[2] - truth[0])
            value = float(box_tools.iou(moved[None], truth[None])[0, 0])
            below = figures.draw_boxes(self.image(), truth, colors=style.TRUTH, side=SIDE, dashed=True)
            factor = SIDE / max(self.image().size)
            pictures.append(figures.draw_boxes(below, moved * factor, colors=style.iou_color(value), side=SIDE))
            titles.append(f"moved by {shift:.0%}: IoU {value:.2f}, {'a hit' if value > 0.5 else 'a miss'}")
        return figures.gallery(pictures, titles, columns=len(pictures), tile_inches=2.6)
