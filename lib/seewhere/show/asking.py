"""The widget that puts a phrase to a detector and to a wrapper, and shows why each chose as it did."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from seewhere import boxes as box_tools
from seewhere.records import Expression
from seewhere.show import figures, style
from seewhere.show.panel import to_png
from seewhere.show.phrase_picking import PhrasePicker

if TYPE_CHECKING:
    from seewhere.datasets import ReferringDataset
    from seewhere.models.candidates import Detections
    from seewhere.models.protocols import Grounder

INKS = {"detector": style.ORANGE, "wrapper": style.BLUE}


class Answer(Protocol):
    """What a wrapper says about one phrase."""

    @property
    def index(self) -> int:
        """The chosen candidate, -1 for none."""

    @property
    def probabilities(self) -> np.ndarray:
        """(N,) one probability per candidate."""

    @property
    def prompt(self) -> str:
        """The text the language model read."""

    @property
    def status(self) -> str:
        """How the answer came about."""


class Wrapper(Protocol):
    """Anything that picks one candidate for a phrase."""

    def answer(
        self, images: Sequence[Image.Image], phrases: Sequence[str], candidates: list[Detections]
    ) -> Sequence[Any]:
        """One `Answer` per (image, phrase, candidates)."""


class Asker(PhrasePicker):
    """Pick or type a phrase; see the candidates, both choices, how sure the wrapper was, and what it read.

    `candidates` (Detections) and `answer` hold the last result, for a closer look in the next cell.
    """

    def __init__(
        self, grounder: Grounder, wrapper: Wrapper, dataset: ReferringDataset | Sequence[ReferringDataset]
    ) -> None:
        super().__init__(dataset)
        self.grounder, self.wrapper = grounder, wrapper
        self.candidates: Detections | None = None
        self.answer: Any = None
        self.report = ipywidgets.HTML(layout={"width": "460px"})
        self.prompt = ipywidgets.HTML()
        reading = ipywidgets.Accordion(children=[self.prompt], titles=("the prompt it read",))
        columns = ipywidgets.HBox([self.picture, self.report], layout={"flex_flow": "row wrap"})
        self.children = [*self.controls, columns, reading]
        self.begin()

    def truth(self) -> tuple[float, float, float, float] | None:
        """Box of the region that the phrase was written for; None for a phrase of the reader's own."""
        region = self.region()
        return None if region is None else region.box

    def choices(self) -> dict[str, int]:
        """Chooser -> index of the candidate it picked, -1 for none."""
        assert self.candidates is not None
        top = int(self.candidates.metadata.get("top", -1))
        return {"detector": top, "wrapper": int(self.answer.index)}

    def ask(self) -> None:
        """Put the phrase to detector and wrapper, and show what both say."""
        if not self.text:
            self.report.value, self.prompt.value = "<p>Type a phrase above.</p>", ""
            self.picture.value = to_png(figures.enlarge(self.image())[0])
            return
        image = self.image()
        self.candidates = self.grounder.ground([image], [self.text])[0]
        self.answer = self.wrapper.answer([image], [self.text], [self.candidates])[0]
        self.picture.value = to_png(self._draw(image))
        self.report.value = self._report()
        self.prompt.value = (
            f'<pre style="white-space:pre-wrap">{html.escape(self.answer.prompt or "(it was not asked)")}</pre>'
        )

    def _draw(self, image: Image.Image) -> Image.Image:
        """Candidates grey; the two choices in the colours of the report, one around the other; the truth dashed."""
        assert self.candidates is not None
        found, chosen = self.candidates, self.choices()
        inks = [style.GREY] * len(found)
        for name in ("detector", "wrapper"):
            if chosen[name] >= 0:
                inks[chosen[name]] = INKS[name]
        picture, factor = figures.enlarge(image)
        side, truth, grow = max(picture.size), self.truth(), np.array([-5.0, -5.0, 5.0, 5.0])
        if truth is not None:
            outer = np.asarray(truth) * factor + grow
            picture = figures.draw_boxes(picture, outer, colors=style.TRUTH, side=side, width=2, dashed=True)
        boxes = np.asarray(found.xyxy, dtype=np.float64) * factor
        picture = figures.draw_boxes(picture, boxes, figures.candidate_labels(found), inks, side=side, width=3)
        if chosen["detector"] == chosen["wrapper"] >= 0:
            inner = boxes[chosen["detector"]] - grow
            picture = figures.draw_boxes(picture, inner, colors=INKS["detector"], side=side, width=3)
        return picture

    def _verdict(self, index: int) -> str:
        truth = self.truth()
        if index < 0 or self.candidates is None:
            return "no candidate"
        if truth is None:
            return f"candidate {index}"
        value = float(box_tools.iou(np.atleast_2d(self.candidates.xyxy[index]), np.atleast_2d(truth))[0, 0])
        return f"candidate {index}, IoU {value:.2f}, {'right' if value > 0.5 else 'wrong'}"

    def _bars(self) -> list[tuple[str, float]]:
        """(candidate, the wrapper's probability) in the order of the candidates; empty where it was not asked."""
        assert self.candidates is not None
        names = figures.candidate_labels(self.candidates)
        values = np.asarray(self.answer.probabilities, dtype=np.float64).reshape(-1)
        return list(zip(names, values.tolist(), strict=False)) if len(values) == len(names) else []

    def _report(self) -> str:
        chosen = self.choices()
        lines = [f"<p><b>“{html.escape(self.text)}”</b></p>"]
        for name, ink in INKS.items():
            lines.append(f'<div><b style="color:{ink}">■ {name}</b>: {self._verdict(chosen[name])}</div>')
        if self.truth() is not None:
            lines.append(f'<div><b style="color:{style.TRUTH}">■ truth</b> (dashed)</div>')
        lines.append(f"<p>status: {html.escape(str(self.answer.status))}; the wrapper's probabilities:</p>")
        for row, (name, value) in enumerate(self._bars()):
            ink = style.BLUE if row == chosen["wrapper"] else "#B8B8B8"
            bar = f'<div style="background:{ink};width:{200 * value:.0f}px;height:12px;display:inline-block"></div>'
            lines.append(f'<div style="line-height:1.3">{bar} {100 * value:.0f} % {html.escape(name)}</div>')
        return "".join(lines)

    def static(self, index: int | None = None, phrase: str | None = None) -> Figure:
        """The same view as a figure, for slider position `index` and a phrase (default: what is on show)."""
        if index is not None:
            self.go_to(index)
        if phrase is not None:
            self.typed.value = phrase
        with style.drawing():
            figure, axes = pyplot.subplots(1, 3, figsize=(12.5, 4.4), width_ratios=(1.15, 0.75, 1.2))
            figure.suptitle(
                "\n".join(textwrap.wrap(f"“{self.text}”", 110)),
                x=0.01,
                ha="left",
                fontsize=12 if len(self.text) < 150 else 9,
            )
            chosen = self.choices()
            verdicts = [self._verdict(chosen[name]) for name in ("detector", "wrapper")]
            title = f"detector (orange): {verdicts[0]}\nwrapper (blue): {verdicts[1]}"
            figures.show_picture(axes[0], self._draw(self.image()), "", width=60)
            axes[0].set_title(title, fontsize=9)
            _probability_bars(axes[1], self._bars(), chosen["wrapper"])
            axes[2].set_axis_off()
            lines = [part for line in self.answer.prompt.splitlines() for part in textwrap.wrap(line, 62) or [""]]
            shown = lines[:27] + ([f"… {len(lines) - 27} more lines"] if len(lines) > 27 else [])
            axes[2].set_title("the prompt it read", fontsize=9)
            axes[2].text(
                0, 0.99, "\n".join(shown), fontsize=7.5, family="monospace", va="top", transform=axes[2].transAxes
            )
        return style.finish(figure)


def _probability_bars(axes: Axes, bars: Sequence[tuple[str, float]], chosen: int, most: int = 14) -> None:
    """Horizontal bars, first candidate on top; with many candidates only the likeliest ones."""
    kept = sorted(sorted(range(len(bars)), key=lambda row: -bars[row][1])[:most])
    axes.set_title("the wrapper's probabilities" + (f" ({most} likeliest)" if len(bars) > most else ""), fontsize=9)
    values = [bars[row][1] for row in kept]
    axes.barh(range(len(kept)), values, color=[style.BLUE if row == chosen else "#B8B8B8" for row in kept])
    axes.set_yticks(range(len(kept)), [bars[row][0] for row in kept], fontsize=8)
    for place, value in enumerate(values):
        axes.text(value + 0.02, place, f"{value:.2f}", va="center", fontsize=8)
    axes.set_xlim(0, 1.18)
    axes.set_xticks([0, 0.5, 1])
    axes.invert_yaxis()
    axes.grid(False)
    if not kept:
        axes.text(0.05, 0.5, "not asked:\nfewer than two candidates", fontsize=9)


def panel_rows(grounder: Grounder, wrapper: Wrapper, expressions: Sequence[Expression]) -> list[figures.PanelRow]:
    """Put expressions to a detector and a wrapper, one batch each, and lay the answers out for `expression_panels`."""
    images = [item.image.open() for item in expressions]
    phrases = [item.text for item in expressions]
    candidates = grounder.ground(images, phrases)
    answers = wrapper.answer(images, phrases, candidates)
    return [
        figures.PanelRow(
            image,
            item.text,
            found,
            item.region.box,
            {"detector": int(found.metadata.get("top", -1)), "wrapper": int(answer.index)},
        )
        for image, item, found, answer in zip(images, expressions, candidates, answers, strict=True)
    ]
