"""Figures of the segmentation study: cases from best to worst, systems side by side, scores of the arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from seewhere import metrics
from seewhere.pixels import segmentation
from seewhere.pixels.segmentation import Reference, Segmentation
from seewhere.show import charts, figures, style
from seewhere.show.masking import mask_at
from seewhere.show.pixels import overlay, probability_picture


def cases(table: pd.DataFrame, references: Sequence[Reference], said: Sequence[Segmentation], each: int = 2) -> Figure:
    """Best, median and worst cases of one system: box (orange), mask (blue), true outline (green)."""
    return of_kinds(segmentation.extremes(table, each), references, said)


def of_kinds(
    kinds: Mapping[str, Sequence[int]], references: Sequence[Reference], said: Sequence[Segmentation]
) -> Figure:
    """References of some kinds (kind -> positions), as `cases` draws them.

    Raises:
        ValueError: no references.
    """
    drawn, titles = [], []
    for kind, places in kinds.items():
        for place in places:
            item = references[place]
            drawn.append(_masked(item, said[place]))
            titles.append(f"{kind}, IoU {_mask_iou(item, said[place]):.2f}: “{item.expression.text}”")
    if not drawn:
        raise ValueError("expected at least 3 references to tell best, median and worst, got fewer")
    return figures.gallery(drawn, titles, columns=max(1, len(drawn) // 3 if len(drawn) > 6 else len(drawn)))


def _mask_iou(item: Reference, said: Segmentation) -> float:
    mask = mask_at(said.probabilities, segmentation.THRESHOLD, item.expression.image.size)
    common, either = metrics.mask_overlap(mask, item.mask)
    return common / either if either else 0.0


def _masked(item: Reference, said: Segmentation) -> figures.Picture:
    image = item.expression.image.open()
    mask = mask_at(said.probabilities, segmentation.THRESHOLD, image.size)
    return overlay(image, mask, item.mask, said.box, 300)


def side_by_side(
    references: Sequence[Reference], said: Mapping[str, Sequence[Segmentation]], places: Sequence[int]
) -> Figure:
    """One line a reference: each system's box (orange), mask (blue) and the true outline (green), its phrase above."""
    names, wanted = list(said), [references[place] for place in places]
    sizes = [item.expression.image.size for item in wanted]
    heights = [2.3 * min(height / width, 1.4) + 0.55 for width, height in sizes]
    with style.drawing():
        figure = pyplot.figure(figsize=(2.3 * len(names), sum(heights)))
        lines = figure.subfigures(len(wanted), 1, squeeze=False, height_ratios=heights)[:, 0]
        for line, item, place in zip(lines, wanted, places, strict=True):
            line.suptitle(f"“{item.expression.text}”", x=0.01, ha="left", fontsize=10)
            for axes, name in zip(np.atleast_1d(line.subplots(1, len(names))), names, strict=True):
                found = said[name][place]
                figures.show_picture(axes, _masked(item, found), f"{name}: IoU {_mask_iou(item, found):.2f}")
    return style.finish(figure)


def compare(
    references: Sequence[Reference], said: Mapping[str, Sequence[Segmentation]], places: Sequence[int]
) -> Figure:
    """One line a reference: the truth, then each system's probabilities and its mask; below, what colours mean."""
    names = list(said)
    columns = 1 + 2 * len(names)
    with style.drawing():
        sizes = [references[place].expression.image.size for place in places]
        heights = [2.25 * min(height / width, 1.4) + 0.65 for width, height in sizes]
        bar = 0.7
        figure = pyplot.figure(figsize=(2.25 * columns, sum(heights) + bar))
        *lines, last = figure.subfigures(len(places) + 1, 1, squeeze=False, height_ratios=[*heights, bar])[:, 0]
        scale = last.add_axes((0.3, 0.6, 0.4, 0.2))
        last.colorbar(ScalarMappable(Normalize(0, 1), "viridis"), cax=scale, orientation="horizontal")
        scale.set_xlabel("probability that the cell belongs to what the phrase names; the mask is above one half")
        for line, place in zip(lines, places, strict=True):
            item = references[place]
            image = item.expression.image.open()
            line.suptitle(f"“{item.expression.text}”", x=0.01, ha="left", fontsize=10)
            axes = np.atleast_1d(line.subplots(1, columns))
            figures.show_picture(axes[0], overlay(image, item.mask, None, item.expression.region.box, 260), "truth")
            for number, name in enumerate(names):
                found = said[name][place]
                pair = axes[1 + 2 * number : 3 + 2 * number]
                figures.show_picture(
                    pair[0], probability_picture(image, found.probabilities, 260), f"{name}: probability"
                )
                title = f"{name}: IoU {_mask_iou(item, found):.2f}"
                figures.show_picture(pair[1], _masked(item, found), title)
    return style.finish(figure)


def arms_chart(table: pd.DataFrame, order: Sequence[str]) -> Figure:
    """Boxes found, masks in the found box and masks in the true box by arm, a panel each.

    Bars have intervals over images and seeds, and a dot for every seed; a dashed line is what the constant box scores:
    one box for everything, filled, and in the third panel the true box, filled.

    Args:
        table: predictions of arms under some seeds, of the constant box too where a line is wanted.
        order: of the bars; arms that are not in the table are left out.
    """
    known = [arm for arm in order if (table.system == arm).any()]
    panels = [("boxes found: P@1 (%)", "found", _hits), ("masks in the found box: cIoU (%)", "found", _overlap)]
    if (table.box == "true").any():
        panels.append(("masks in the true box: cIoU (%)", "true", _overlap))
    with style.drawing():
        figure, axes = pyplot.subplots(1, len(panels), figsize=(3.7 * len(panels), 3.2), squeeze=False)
        for panel, (title, box, score) in zip(axes[0], panels, strict=True):
            own = table[table.box == box]
            for place, arm in enumerate(known):
                _arm_bar(panel, place, own[own.system == arm], score)
            constant = own[own.system == segmentation.ConstantBox.name]
            if len(constant):
                panel.axhline(
                    score(constant).value, color="#777777", linestyle="--", linewidth=1, label=constant.system.iloc[0]
                )
                panel.legend(frameon=False, fontsize=8, loc="upper right")
            panel.set_xticks(range(len(known)), known)
            panel.set_title(title, fontsize=9.5)
            panel.margins(y=0.25)
            panel.set_ylim(bottom=0)
    return style.finish(figure)


def _arm_bar(axes: Axes, place: int, part: pd.DataFrame, score: Callable[[pd.DataFrame], metrics.Interval]) -> None:
    whole = score(part)
    spread = [[whole.value - whole.low], [whole.high - whole.value]]
    axes.bar(place, whole.value, color=style.color(place), width=0.7)
    axes.errorbar(place, whole.value, yerr=spread, color="#222222", capsize=3)
    for number, (_, own) in enumerate(part.groupby("seed")):
        axes.plot(place + 0.2 + 0.05 * number, score(own).value, "o", color=style.BLACK, markersize=3.5)
    axes.annotate(f"{whole.value:.1f}", (place, whole.high), xytext=(0, 3), textcoords="offset points", ha="center")


def _hits(part: pd.DataFrame) -> metrics.Interval:
    return metrics.pooled_interval(segmentation.by_seed(part, "hit"), segmentation.clusters(part)).scaled(100)


def _overlap(part: pd.DataFrame) -> metrics.Interval:
    return segmentation.cumulative(part, resample_seeds=True)


def hundreds_chart(table: pd.DataFrame, seed: int = 0, size: int = segmentation.HUNDRED) -> Figure:
    """cIoU of groups of 100 references of a data set, a dot each, and of all of them, a line: the luck in a hundred."""
    found = segmentation.hundreds(table, size, seed)
    with style.drawing():
        figure, axes = pyplot.subplots(figsize=(6.4, 0.42 * len(found) + 1.3))
        systems = list(dict.fromkeys(system for system, _ in found))
        for place, ((name, data), values) in enumerate(found.items()):
            own = table[(table.system == name) & (table.data == data)]
            whole = 100 * metrics.cumulative_iou(own.intersection, own.union)
            color = style.color(systems.index(name))
            axes.plot(values, np.full(len(values), place), "o", color=color, alpha=0.6)
            axes.plot([whole, whole], [place - 0.3, place + 0.3], color=style.BLACK, linewidth=2)
        axes.set_yticks(range(len(found)), [f"{name}, {data}" for name, data in found])
        axes.set(xlabel=f"cIoU (%) of {size} references (dots) and of all (line)", ylim=(len(found) - 0.5, -0.5))
        axes.set_xlim(left=0)
        axes.set_title("How far a hundred references wander")
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
    return style.finish(figure)


def by_property(
    table: pd.DataFrame, column: str, bounds: Sequence[float], labels: Sequence[str], title: str = "", label: str = ""
) -> Figure:
    """Mean mask IoU of each system by a numeric property of the reference, cut at `bounds`; `label` says what it is."""
    groups = pd.cut(table[column], [-np.inf, *bounds, np.inf], labels=list(labels))
    part = table.assign(**{column: groups.cat.remove_unused_categories()})
    return charts.group_lines(
        part, column, value="iou", series="system", cluster="image_id", title=title, x_label=label or column,
        label="mean mask IoU (%)",
    )  # fmt: skip
