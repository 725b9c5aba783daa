"""Figures of the probing study: scores with intervals per task, layer, probe size and group, and boxes on pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.figure import Figure

from seewhere import metrics
from seewhere.boxes import to_xyxy
from seewhere.probing import analysis
from seewhere.probing.tasks import Task
from seewhere.show import charts, figures, style

ARM_COLORS = {"frozen": style.SKY, "unfrozen": style.VERMILLION}
SIDE = 360


def estimates(table: pd.DataFrame, group: str, series: str) -> dict[str, dict[str, metrics.Interval]]:
    """Return group -> series -> accuracy (0..1) with its interval over images and seeds."""
    found: dict[str, dict[str, metrics.Interval]] = {}
    for row in analysis.accuracy(table, [group, series]).itertuples(index=False):
        interval = metrics.Interval(row.value, row.low, row.high, row.n).scaled(0.01)
        found.setdefault(str(row[0]), {})[str(row[1])] = interval
    return found


def arms_chart(table: pd.DataFrame, task: str, chance: float | None = None) -> Figure:
    """Bars of both arms (and whatever else `table` holds) per resampler, for one task; `chance` in 0..1."""
    part = table[(table.task == task) & (table.probe_layers <= 1)]
    reference = None if chance is None else ("majority", chance)
    label = "P@1 (%)" if task == "rec" else "accuracy (%)"
    return charts.bar_chart(estimates(part, "resampler", "arm"), title=task, label=label, reference=reference)


def groups_chart(table: pd.DataFrame, column: str, title: str = "") -> Figure:
    """Bars of both arms per value of a group column, such as "category" or "super_category"."""
    return charts.bar_chart(estimates(table, column, "arm"), title=title, label="right (%)")


def curves(table: pd.DataFrame, axis: str, series: str = "resampler", title: str = "", label: str = "") -> Figure:
    """Accuracy with intervals along "layer" or "probe_layers", a line per value of `series`."""
    found = analysis.accuracy(table, [series, axis])
    with style.drawing():
        figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
        for number, (name, part) in enumerate(found.groupby(series, sort=False)):
            ordered = part.assign(place=part[axis].astype(float)).sort_values("place")
            ink = style.PALETTE[number % len(style.PALETTE)]
            axes.plot(ordered.place, ordered.value, marker="o", color=ink, label=str(name))
            axes.fill_between(ordered.place, ordered.low, ordered.high, color=ink, alpha=0.15, linewidth=0)
        axes.set_xlabel(label or axis.replace("_", " "))
        axes.set_ylabel("right (%)")
        axes.set_xticks(sorted({float(value) for value in found[axis]}))
        axes.set_title(title)
        axes.legend()
    return style.finish(figure)


def correlation_chart(groups: pd.DataFrame, column: str, tau: analysis.RankCorrelation, label: str = "") -> Figure:
    """Super-categories' scores (see `analysis.by_super_category`) against a property, with Kendall's tau-b and p."""
    with style.drawing():
        figure, axes = pyplot.subplots(figsize=(5.2, 3.6))
        axes.scatter(groups[column], groups.score, s=10 + 3 * np.sqrt(groups.n.to_numpy(float)), color=style.BLUE)
        for row in groups.itertuples():
            axes.annotate(f" {row.super_category}", (getattr(row, column), row.score), fontsize=8)
        axes.set_xlabel(label or column.replace("_", " "))
        axes.set_ylabel("P@1 (%)")
        axes.set_title(
            f"tau-b {tau.value:+.2f} [{tau.low:+.2f}, {tau.high:+.2f}], p = {tau.p:.3f}, {tau.groups} groups",
            fontsize=10,
        )
    return style.finish(figure)


def box_gallery(
    task: Task, tables: Mapping[str, pd.DataFrame], split: str = "test", count: int = 6, seed: int = 0
) -> Figure:
    """Pictures with the truth (dashed) and what each arm's probe said, for examples drawn by the seed.

    Args:
        task: a box task.
        tables: arm -> its predictions of that split, one seed.
        split: which split they are of.
        count: number of pictures.
        seed: of the draw.

    Raises:
        ValueError: not a box task, or no example that all tables hold.
    """
    if task.kind != "box":
        raise ValueError(f"{task!r} has no boxes to draw; expected a box task")
    said = {arm: table.drop_duplicates("example_id").set_index("example_id") for arm, table in tables.items()}
    shared = [e for e in task.splits[split] if all(e.example_id in table.index for table in said.values())]
    if not shared:
        raise ValueError("no example that all tables hold; are they of this task and split?")
    order = np.random.default_rng(seed).permutation(len(shared))[:count]
    pictures, titles = [], []
    for example in (shared[place] for place in order):
        picture, _ = figures.enlarge(example.picture.open(), SIDE)
        boxes = _pixels([example.target], picture.size)
        picture = figures.draw_boxes(picture, boxes, colors=style.TRUTH, side=SIDE, dashed=True)
        title = f"“{example.text}”"
        for arm, table in said.items():
            row = table.loc[example.example_id]
            ink = ARM_COLORS.get(arm, style.GREY)
            picture = figures.draw_boxes(picture, _pixels([row.prediction], picture.size), colors=ink, side=SIDE)
            title += f"\n{arm}: IoU {row.score:.2f}, {'a hit' if row.correct else 'a miss'}"
        pictures.append(picture)
        titles.append(title)
    return figures.gallery(pictures, titles, columns=min(3, len(pictures)), tile_inches=3.4)


def _pixels(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    return to_xyxy(np.asarray(boxes, dtype=np.float64), "cxcywh_unit", size)


PAPER_TABLE: dict[tuple[str, str, str], float] = {
    ("rec", "qformer", "frozen"): 30.26,
    ("rec", "qformer", "unfrozen"): 71.72,
    ("rec", "instruct", "frozen"): 19.92,
    ("rec", "instruct", "unfrozen"): 69.34,
    ("vsr", "qformer", "frozen"): 64.97,
    ("vsr", "qformer", "unfrozen"): 80.50,
    ("vsr", "instruct", "frozen"): 55.72,
    ("vsr", "instruct", "unfrozen"): 76.99,
    ("rcm", "qformer", "frozen"): 69.49,
    ("rcm", "qformer", "unfrozen"): 81.35,
    ("rcm", "instruct", "frozen"): 63.08,
    ("rcm", "instruct", "unfrozen"): 80.86,
}
"""Test scores of the paper's table 1 (percent): (task, resampler, arm)."""


def beside_the_paper(table: pd.DataFrame) -> pd.DataFrame:
    """Return table 1: accuracy (percent) with its interval per task, resampler and arm, and the paper's number.

    Resamplers with "instruct" in their name stand beside InstructBLIP's, the other Q-Formers beside BLIP-2's; for the
    rest the paper has no number.
    """
    found = analysis.accuracy(table[table.probe_layers <= 1], ["task", "resampler", "arm"])
    paper = []
    for row in found.itertuples(index=False):
        kind = "instruct" if "instruct" in row.resampler else "qformer" if "blip" in row.resampler else ""
        paper.append(PAPER_TABLE.get((row.task, kind, row.arm), float("nan")))
    return found.assign(paper=paper).round({"value": 1, "low": 1, "high": 1})
