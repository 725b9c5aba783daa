"""The widget to look through a data set."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from seewhere.records import Region
from seewhere.show import figures, style
from seewhere.show.panel import EVERY_STYLE, ImagePicker, to_png

if TYPE_CHECKING:
    from seewhere.datasets import ReferringDataset


class Browser(ImagePicker):
    """Look through a data set: the boxes of an image with their labels, and what is said about each of them."""

    def __init__(self, dataset: ReferringDataset | Sequence[ReferringDataset]) -> None:
        super().__init__(dataset)
        styles = sorted({expression.style for expression in self.dataset.expressions if expression.style})
        self.style = ipywidgets.Dropdown(options=[EVERY_STYLE, *styles], description="style")
        self.text = ipywidgets.HTML(layout={"width": "460px"})
        self.slider.observe(self._refresh, "value")
        self.style.observe(self._refresh, "value")
        columns = ipywidgets.HBox([self.picture, self.text], layout={"flex_flow": "row wrap"})
        self.children = [ipywidgets.HBox([self.bar, self.style], layout={"flex_flow": "row wrap"}), columns]
        self._refresh()

    def _regions(self, wanted: str) -> list[Region]:
        if wanted == EVERY_STYLE:
            return list(self.dataset.by_image.get(self.image_id, []))
        return list({item.region.region_id: item.region for item in self.expressions(wanted)}.values())

    def _draw(self) -> Image.Image:
        regions = self._regions(self.style.value)
        labels = [f"{index} {region.label}" for index, region in enumerate(regions)]
        return figures.draw_boxes(self.image(), [region.box for region in regions], labels)

    def _sentences(self) -> list[tuple[int, str, str]]:
        """(number of the box, style, text) of every expression on show."""
        order = {region.region_id: index for index, region in enumerate(self._regions(self.style.value))}
        said = [
            (order.get(item.region.region_id, -1), item.style, item.text) for item in self.expressions(self.style.value)
        ]
        return sorted(said, key=lambda entry: (entry[0], len(entry[2])))

    def _refresh(self, _: object = None) -> None:
        self.picture.value = to_png(self._draw())
        rows = "".join(
            f'<li><b style="color:{style.color(number)}">■ {number}</b> '
            f"<i>{html.escape(kind)}</i> {html.escape(text)}</li>"
            for number, kind, text in self._sentences()
        )
        title = f"image {self.image_id} ({self.slider.value + 1} of {len(self.image_ids)})"
        self.text.value = f'<p>{title}</p><ul style="list-style:none;padding-left:0;line-height:1.4">{rows}</ul>'

    def static(self, index: int | None = None) -> Figure:
        """The same view as a figure; `index` is the position of the slider (default: where it stands)."""
        if index is not None:
            self.slider.value = index
        with style.drawing():
            figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.4), width_ratios=(1, 1.35))
            figures.show_picture(
                left, self._draw(), f"image {self.image_id} of {self.dataset.name}, {self.dataset.split}", width=60
            )
            right.set_axis_off()
            _write_lines(right, [(style.color(number), f"{number}  {text}") for number, _, text in self._sentences()])
        return style.finish(figure)


def _write_lines(axes: Axes, lines: Sequence[tuple[str, str]], width: int = 78, room: int = 24) -> None:
    """Wrapped text, a coloured square before each entry; what does not fit is counted, not dropped silently."""
    row = 0
    for number, (ink, text) in enumerate(lines):
        wrapped = textwrap.wrap(text, width, subsequent_indent="   ", max_lines=2, placeholder=" …")
        if row + len(wrapped) > room and number < len(lines) - 1:
            axes.text(0.03, 1 - row / room, f"… and {len(lines) - number} more", fontsize=9, va="top", color=style.GREY)
            return
        axes.text(0.0, 1 - row / room, "■", color=ink, fontsize=9, va="top", transform=axes.transAxes)
        axes.text(0.03, 1 - row / room, "\n".join(wrapped), fontsize=9, va="top", transform=axes.transAxes)
        row += len(wrapped)
