"""The mask widget: type a phrase, see the box a model finds, its mask, and every pixel's probability."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import ipywidgets
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from seewhere import metrics
from seewhere.models.pixel_points import spread
from seewhere.show import figures, style
from seewhere.show.panel import to_png
from seewhere.show.phrase_picking import PhrasePicker
from seewhere.show.pixels import overlay, probability_picture
from seewhere.show.regions import decode_mask

if TYPE_CHECKING:
    from seewhere.datasets import ReferringDataset

SIDE = 330


class Segmented(Protocol):
    """What a model says about one phrase."""

    @property
    def box(self) -> NDArray:
        """(4,) pixels xyxy; NaN where the model named none."""

    @property
    def probabilities(self) -> NDArray:
        """(rows, columns) of cells of the picture; NaN where not asked."""


def mask_at(probabilities: NDArray, threshold: float, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (height, width) of cells whose probability is above `threshold`, for a picture of `size`."""
    return spread(np.nan_to_num(np.asarray(probabilities, dtype=np.float64), nan=-1.0) > threshold, size)


Segment = Callable[[Image.Image, str], Segmented]
"""(picture, phrase) -> what a model says about it."""


class MaskAsker(PhrasePicker):
    """Pick or type a phrase, and move the threshold: box (orange), mask (blue), truth (green outline), probabilities.

    Args:
        segment: how a model is asked; or several by name, to choose from, the first to begin with.
        dataset: one or several data sets over the same images; a file of the reader's own can be typed in.

    Raises:
        ValueError: no model, or no pictures.
    """

    def __init__(
        self, segment: Segment | Mapping[str, Segment], dataset: ReferringDataset | Sequence[ReferringDataset]
    ) -> None:
        super().__init__(dataset)
        self.segments = dict(segment) if isinstance(segment, Mapping) else {"": segment}
        if not self.segments:
            raise ValueError("expected at least one model to ask, got none")
        self.found: Segmented | None = None
        self.model = ipywidgets.Dropdown(options=list(self.segments), description="model")
        self.model.layout.display = "" if len(self.segments) > 1 else "none"
        self.threshold = ipywidgets.FloatSlider(0.5, min=0, max=1, step=0.01, description="threshold")
        self.report = ipywidgets.HTML()
        self.probabilities = ipywidgets.Image(format="png", layout={"max_width": "360px", "object_fit": "contain"})
        pictures = ipywidgets.HBox([self.picture, self.probabilities], layout={"flex_flow": "row wrap"})
        asked = ipywidgets.HBox([self.threshold, self.model], layout={"flex_flow": "row wrap"})
        self.children = [*self.controls, asked, self.report, pictures]
        self.threshold.observe(self._draw, "value")
        self.model.observe(lambda _: self.ask(), "value")
        self.begin()

    # ------------------------------------------------------------------------------------------------- questions

    def ask(self) -> None:
        """Put the phrase to the model chosen, and draw what it says."""
        self.found = None  # an old answer must not stand under a new phrase if this one fails
        if self.text:
            self.report.value = "<p>asking …</p>"
            try:
                self.found = self.segments[self.model.value](self.image(), self.text)
            finally:
                self._draw()
        else:
            self._draw()

    # --------------------------------------------------------------------------------------------------- answers

    def truth(self) -> NDArray[np.bool_] | None:
        """The mask that the phrase was written for, (H, W); None for the reader's own phrase, or without masks."""
        region = self.region()
        if region is None or region.mask is None:
            return None
        return decode_mask(region.mask, self.size)

    def mask(self) -> NDArray[np.bool_]:
        """The predicted mask, (H, W), at the threshold on show.

        Raises:
            ValueError: nothing has been asked.
        """
        if self.found is None:
            raise ValueError("there is no phrase yet; choose or type one")
        return mask_at(self.found.probabilities, self.threshold.value, self.size)

    def iou(self) -> float:
        """IoU of the mask with the truth; NaN where there is no truth."""
        truth = self.truth()
        if truth is None:
            return float("nan")
        common, either = metrics.mask_overlap(self.mask(), truth)
        return common / either if either else 0.0

    def _draw(self, _: object = None) -> None:
        image = self.image()
        if self.found is None:
            failed = (
                "The model gave no answer; the log says why. Change the phrase or the model to ask again."
                if self.text
                else "Type a phrase above."
            )
            self.report.value = f"<p>{failed}</p>"
            self.picture.value = to_png(figures.enlarge(image, SIDE)[0])
            self.probabilities.layout.display = "none"
            return
        self.probabilities.layout.display = ""
        self.picture.value = to_png(overlay(image, self.mask(), self.truth(), self.found.box, SIDE))
        self.probabilities.value = to_png(probability_picture(image, self.found.probabilities, SIDE))
        self.report.value = f"<p><b>“{html.escape(self.text)}”</b> {self._verdict()}</p>"

    def _verdict(self) -> str:
        assert self.found is not None
        if np.isnan(self.found.box).any():
            return "the model named no box, so no pixel was asked"
        inside = int(np.nansum(self.found.probabilities > self.threshold.value))
        asked = int((~np.isnan(self.found.probabilities)).sum())
        value = self.iou()
        score = "" if np.isnan(value) else f'<span class="seewhere-mask-iou">mask IoU {value:.2f}</span>, '
        return f"{score}{inside} of {asked} cells in the box are above {self.threshold.value:.2f}"

    def static(
        self,
        index: int | None = None,
        phrase: str | None = None,
        thresholds: Sequence[float] = (0.3, 0.5, 0.7),
        file: str | Path | None = None,
    ) -> Figure:
        """Probabilities and the mask at some thresholds, as a figure: slider position `index` or a `file`, a phrase.

        Raises:
            DataError: a file that is no picture.
        """
        if file is not None:
            self.open_file(file)
        elif index is not None:
            self.go_to(index)
        if phrase is not None and phrase in self.phrase.options:
            self.phrase.value = phrase
        elif phrase is not None:
            self.typed.value = phrase
        image = self.image()
        if self.found is None:
            return figures.gallery([figures.enlarge(image, SIDE)[0]], ["no phrase"])
        drawn = [probability_picture(image, self.found.probabilities, SIDE)]
        titles = [f"“{self.text}”: probability of every cell in the box"]
        for threshold in thresholds:
            self.threshold.value = threshold
            drawn.append(overlay(image, self.mask(), self.truth(), self.found.box, SIDE))
            value = self.iou()
            titles.append(f"threshold {threshold:.1f}" + ("" if np.isnan(value) else f": IoU {value:.2f}"))
        self.threshold.value = 0.5
        with style.drawing():
            return figures.gallery(drawn, titles, columns=len(drawn), tile_inches=2.7)
