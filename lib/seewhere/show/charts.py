"""Charts of scores: every mark carries its interval and its count, because a bar without them is an opinion.

Values are anything with `value`, `low`, `high` and `n`, such as `seewhere.metrics.Interval`; scores are fractions
in 0..1 and shown in per cent.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from seewhere import metrics
from seewhere.show import style


class Estimate(Protocol):
    """A number with its uncertainty: the part of `seewhere.metrics.Interval` that charts need."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""

    @property
    def high(self) -> float:
        """Upper end of the interval."""

    @property
    def n(self) -> int:
        """How many items stand behind it."""


def _error_bars(estimates: Sequence[Estimate], scale: float) -> np.ndarray:
    """(2, N) distances below and above each value, never negative."""
    below = [max(0.0, item.value - item.low) * scale for item in estimates]
    above = [max(0.0, item.high - item.value) * scale for item in estimates]
    return np.array([below, above])


def bar_chart(
    scores: Mapping[str, Estimate] | Mapping[str, Mapping[str, Estimate]],
    *,
    title: str = "",
    label: str = "P@1 (%)",
    reference: tuple[str, float] | None = None,
    percent: bool = True,
) -> Figure:
    """Bars with their intervals.

    scores: name -> estimate, or group -> series -> estimate (groups along the axis, one colour per series; a
    series may be missing in a group). reference: a name and a value, drawn as a dashed line (chance, the paper's
    number). percent: multiply by 100.
    """
    if not scores:
        raise ValueError("A bar chart needs at least one score; got none.")
    scale = 100.0 if percent else 1.0
    first = next(iter(scores.values()))
    grouped: Mapping[str, Any] = scores if isinstance(first, Mapping) else {"": scores}
    series = list(dict.fromkeys(name for group in grouped.values() for name in group))
    places = len(grouped) * (len(series) + 1)
    with style.drawing():
        figure, axes = pyplot.subplots(figsize=(min(11.0, max(3.6, 0.85 * places)), 3.4))
        for group_index, group in enumerate(grouped.values()):
            for series_index, name in enumerate(series):
                if name in group:
                    position = group_index * (len(series) + 1) + series_index
                    _bar(axes, position, group[name], style.color(series_index), scale)
        _bar_ticks(axes, list(grouped), series)
        if reference is not None:
            axes.axhline(reference[1] * scale, color=style.BLACK, linestyle="--", linewidth=1, label=reference[0])
        if reference is not None or "" not in grouped:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axes.set(title=title, ylabel=label)
    return style.finish(figure)


def _bar(axes: Axes, position: float, estimate: Estimate, color: str, scale: float) -> None:
    height = estimate.value * scale
    axes.bar(position, height, width=0.86, color=color)
    axes.errorbar(position, height, yerr=_error_bars([estimate], scale), color="#222222", capsize=3, linewidth=1.2)
    digits = 1 if scale == 100 or abs(height) >= 10 else 2
    top = max(estimate.high * scale, height, 0.0)
    axes.annotate(
        f"{height:.{digits}f}", (position, top), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9
    )


def _bar_ticks(axes: Axes, groups: list[str], series: list[str]) -> None:
    """Names under the bars: the series when there is one group, the groups (and a legend for the series) otherwise."""
    if groups == [""]:
        axes.set_xticks(range(len(series)), [name.replace(" ", "\n", 1) for name in series])
    else:
        step = len(series) + 1
        axes.set_xticks([index * step + (len(series) - 1) / 2 for index in range(len(groups))], groups)
        for index, name in enumerate(series):
            axes.bar(0, 0, color=style.color(index), label=name)
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.12)
    axes.axhline(0, color="#222222", linewidth=0.8)


def line_chart(
    series: Mapping[str, Mapping[Any, Estimate]],
    *,
    title: str = "",
    x_label: str = "",
    label: str = "P@1 (%)",
    percent: bool = True,
    counts: bool = True,
) -> Figure:
    """Lines with intervals: series -> x value (a number or a name) -> estimate. `counts` writes n under each x value.

    Series are shifted a little sideways, so that intervals at the same x do not hide each other.
    """
    if not series or not any(series.values()):
        raise ValueError("A line chart needs at least one point; got none.")
    scale = 100.0 if percent else 1.0
    ticks = list(dict.fromkeys(x for points in series.values() for x in points))
    with style.drawing():
        figure, axes = pyplot.subplots(figsize=(max(4.6, min(10.0, 1.15 * len(ticks) + 2.4)), 3.4))
        for index, (name, points) in enumerate(series.items()):
            shift = (index - (len(series) - 1) / 2) * 0.08
            x = [ticks.index(key) + shift for key in points]
            estimates = list(points.values())
            y = [item.value * scale for item in estimates]
            axes.errorbar(
                x,
                y,
                yerr=_error_bars(estimates, scale),
                label=name,
                marker="osD^v"[index % 5],
                capsize=3,
                linewidth=1.8,
            )
        names = [str(tick) + (f"\nn = {_count(series, tick)}" if counts else "") for tick in ticks]
        axes.set_xticks(range(len(ticks)), names)
        axes.margins(x=0.06, y=0.12)
        if len(series) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axes.set(title=title, xlabel=x_label, ylabel=label)
    return style.finish(figure)


def _count(series: Mapping[str, Mapping[Any, Estimate]], tick: object) -> str:
    counts = sorted({points[tick].n for points in series.values() if tick in points})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def group_estimates(
    predictions: pd.DataFrame,
    by: str,
    value: str = "hit",
    series: str | None = None,
    cluster: str | None = None,
    seed: int = 0,
) -> dict[str, dict[Hashable, metrics.Interval]]:
    """Group-by on a predictions table: series -> group -> mean of `value` with its bootstrap interval.

    predictions: one row per question. by: the column along the axis, in its own order (sorted, or categorical
    order). series: the column that names the lines, or None for one line. cluster: the column whose rows are
    resampled together (the image).
    """
    missing = [name for name in (by, value, series, cluster) if name is not None and name not in predictions]
    if missing:
        raise ValueError(f"The predictions table has no column {missing}; it has {list(predictions.columns)}.")
    lines: dict[str, dict[Hashable, metrics.Interval]] = {}
    parts = [("all", predictions)] if series is None else list(predictions.groupby(series, observed=True, sort=False))
    for name, part in parts:
        lines[str(name)] = {}
        for key, rows in part.groupby(by, observed=True, sort=True):
            groups = None if cluster is None else rows[cluster].to_numpy()
            scores = rows[value].to_numpy(dtype=np.float64)
            lines[str(name)][key] = metrics.bootstrap_interval(scores, groups=groups, seed=seed)
    return lines


def group_lines(
    predictions: pd.DataFrame,
    by: str,
    *,
    value: str = "hit",
    series: str | None = None,
    cluster: str | None = None,
    seed: int = 0,
    title: str = "",
    x_label: str = "",
    label: str = "P@1 (%)",
) -> Figure:
    """`line_chart` of `group_estimates`: a score by length, by number of candidates, by anything that is a column."""
    lines = group_estimates(predictions, by, value, series, cluster, seed)
    return line_chart(lines, title=title, x_label=x_label or by, label=label)


def _curve(axes: Axes, frame: pd.DataFrame, step: str, column: str, stage: str | None, index: int) -> None:
    """One column as a line, or as one line for each stage."""
    staged = stage is not None and stage in frame
    parts = [(column, frame)] if not staged else list(frame.groupby(stage, sort=False))
    for place, (name, part) in enumerate(parts):
        points = part[[step, column]].dropna()
        label = f"{column}, {name}" if staged and len(parts) > 1 else column
        mark = "o" if len(points) < 25 else ""
        color = style.color(index + place * (index + 1))
        axes.plot(points[step], points[column], label=label, color=color, marker=mark, markersize=4)


def learning_curves(
    history: pd.DataFrame | Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    *,
    step: str = "step",
    title: str = "",
    stage: str | None = None,
) -> Figure:
    """Training curves side by side.

    history: the Trainer's `log_history`, or a frame; entries that lack a column are skipped for it. panels: panel
    title -> names of the columns in it, for example {"loss": ["loss", "eval_loss"], "P@1": ["eval_p_at_1"]}.
    stage: the column that names the parts of a training; each is a line of its own, because what is measured changes
    with it.
    Raises ValueError when a column has no value at all.
    """
    frame = pd.DataFrame(list(history)) if not isinstance(history, pd.DataFrame) else history
    with style.drawing():
        figure, grid = pyplot.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.1), squeeze=False)
        for axes, (name, columns) in zip(grid[0], panels.items(), strict=True):
            for index, column in enumerate(columns):
                if column not in frame or frame[column].notna().sum() == 0:
                    raise ValueError(
                        f"No {column!r} in the training history; it has {sorted(map(str, frame.columns))}."
                    )
                _curve(axes, frame, step, column, stage, index)
            axes.set(title=name, xlabel=step)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
            axes.legend()
        if title:
            figure.suptitle(title, x=0.01, ha="left")
    return style.finish(figure)
