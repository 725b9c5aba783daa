"""Figures of the probing study: scores with intervals per task, layer, probe size and group, and boxes on pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw

from seewhere import metrics
from seewhere.boxes import to_xyxy
from seewhere.probing import analysis
from seewhere.probing.adapter import Probed
from seewhere.probing.features import open_pictures
from seewhere.probing.tasks import Example, Task
from seewhere.show import charts, figures, naming, style
from seewhere.show.looking import Looker

ARM_COLORS = {"frozen": style.color(0), "unfrozen": style.color(1)}  # as in the bar charts
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
    """Bars of both arms per value of a group column, such as "category" or "super_category"; a line where a coin is."""
    ordered = table.sort_values([column, "arm"], kind="stable")
    boxes = set(table.get("task", ())) <= {"rec"}
    reference = None if boxes else ("a coin", 0.5)
    return charts.bar_chart(estimates(ordered, column, "arm"), title=title, label="right (%)", reference=reference)


def curves(
    table: pd.DataFrame,
    axis: str,
    series: str = "resampler",
    title: str = "",
    label: str = "",
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Accuracy with intervals along "layer" or "probe_layers", a line per value of `series`.

    Args:
        table: predictions.
        axis, series: columns of it.
        title, label: of the figure and of its horizontal axis.
        lines: name -> share (0..1) to hold the curves against, drawn across.
    """
    found = analysis.accuracy(table, [series, axis])
    with style.drawing():
        figure, axes = pyplot.subplots(figsize=(8.2, 3.6))
        for number, (name, part) in enumerate(found.groupby(series, sort=False)):
            ordered = part.assign(place=part[axis].astype(float)).sort_values("place")
            ink = style.PALETTE[number % len(style.PALETTE)]
            axes.plot(ordered.place, ordered.value, marker="o", color=ink, label=str(name))
            axes.fill_between(ordered.place, ordered.low, ordered.high, color=ink, alpha=0.15, linewidth=0)
        for number, (name, share) in enumerate((lines or {}).items()):
            axes.axhline(
                100 * share, color=style.GREY, linestyle=("--", ":", "-.")[number % 3], linewidth=1, label=name
            )
        axes.set_xlabel(label or axis.replace("_", " "))
        axes.set_ylabel("right (%)")
        axes.set_xticks(sorted({float(value) for value in found[axis]}))
        axes.set_title(title)
        # Beside the axes: inside, one of the many lines would always cross it.
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
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


def task_examples(tasks: Mapping[str, Task], count: int = 3, split: str = "test", seed: int = 0) -> Figure:
    """A line of pictures per task with text and answer: boxes dashed, the nine cells for region cell matching."""
    pictures, titles = [], []
    for name, task in tasks.items():
        examples = task.splits[split]
        for place in np.random.default_rng(seed).permutation(len(examples))[:count]:
            example = examples[place]
            picture, _ = figures.enlarge(example.picture.open(), SIDE)
            if task.kind == "box":
                picture = figures.draw_boxes(
                    picture, _pixels([example.target], picture.size), colors=style.TRUTH, side=SIDE, dashed=True
                )
                answer = "a box"
            else:
                answer = "yes" if example.target[0] > 0.5 else "no"
                picture = _with_cells(picture) if "claimed" in example.meta else picture
            pictures.append(picture)
            titles.append(f"{name}: “{example.text}” → {answer}")
    return figures.gallery(pictures, titles, columns=count, tile_inches=3.2)


def _with_cells(picture: Image.Image) -> Image.Image:
    """The picture with the lines between the nine cells."""
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    for third in (1, 2):
        x, y = picture.width * third // 3, picture.height * third // 3
        for line in ((x, 0, x, picture.height), (0, y, picture.width, y)):
            pen.line(line, fill="white", width=4)
            pen.line(line, fill=style.BLACK, width=1)
    return drawn


def correlation_panels(table: pd.DataFrame, train_counts: Mapping[str, int], fewest: int = 5, seed: int = 0) -> Figure:
    """Super-categories' scores against area, distance from the centre and training examples, side by side.

    `table` holds the box predictions of one resampler and arm. Each panel tells Kendall's tau-b and p.

    Raises:
        ValueError: fewer than three super-categories with `fewest` test examples.
    """
    groups = analysis.by_super_category(table, train_counts, fewest)
    labels = {
        "area": "mean area (share of the picture)",
        "distance": "mean distance from the centre",
        "train_count": "training examples",
    }
    with style.drawing():
        figure, row = pyplot.subplots(1, len(labels), figsize=(13.8, 4.8), sharey=True)
        for axes, (column, label) in zip(row, labels.items(), strict=True):
            tau = analysis.rank_correlation(table, column, train_counts, seed, fewest=fewest)
            axes.scatter(groups[column], groups.score, s=10 + 3 * np.sqrt(groups.n.to_numpy(float)), color=style.BLUE)
            axes.set_xlabel(label)
            chance = "p < 0.001" if tau.p < 0.001 else f"p = {tau.p:.3f}"
            said = f"tau-b {tau.value:+.2f} [{tau.low:+.2f}, {tau.high:+.2f}], {chance}"
            axes.set_title(said if np.isfinite(tau.value) else "all alike: no order", fontsize=10)
            axes.margins(x=0.12, y=0.12)
        row[0].set_ylabel("P@1 (%)")
        figure.canvas.draw()  # limits and places are final from here on
        for axes, column in zip(row, labels, strict=True):
            naming.name_points(
                axes, groups[column].to_numpy(float), groups.score.to_numpy(float), groups.super_category
            )
        who = dict.fromkeys(name for column in ("resampler", "arm") for name in table.get(column, ()))
        figure.suptitle(", ".join(map(str, who)), x=0.01, ha="left")
    return style.finish(figure)


def training_curves(histories: Mapping[tuple[str, str, int], pd.DataFrame], column: str = "validation_score") -> Figure:
    """A panel per task with the validation score (percent) of every unfrozen arm by epoch, seeds in one colour.

    Args:
        histories: (task, resampler, seed) -> one row per epoch.
        column: what is drawn; scores are shown in percent.

    Raises:
        ValueError: no history.
    """
    if not histories:
        raise ValueError("no arm has been trained or loaded; nothing to draw")
    tasks = list(dict.fromkeys(task for task, _, _ in histories))
    names = list(dict.fromkeys(name for _, name, _ in histories))
    with style.drawing():
        figure, grid = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.2), squeeze=False)
        for axes, task in zip(grid[0], tasks, strict=True):
            for (own, name, _), history in histories.items():
                if own == task:
                    ink = style.color(names.index(name))
                    axes.plot(history.epoch, 100 * history[column], color=ink, marker="o", markersize=3)
            last = max(len(history) for (own, _, _), history in histories.items() if own == task)
            axes.set_xlim(0.5, last + 0.5)  # a training of one epoch is one point, and its axis has one number
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set(title=task, xlabel="epoch", ylabel="right on validation (%)" if task == tasks[0] else "")
        for number, name in enumerate(names):
            grid[0][-1].plot([], [], color=style.color(number), label=name)
        grid[0][-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return style.finish(figure)


def control_table(frozen: pd.DataFrame, control: pd.DataFrame) -> pd.DataFrame:
    """Return who (rows) scored what on which task (columns), percent with intervals: controls, then frozen probes."""
    parts = pd.concat([control, frozen[frozen.probe_layers <= 1]], ignore_index=True)
    found = analysis.accuracy(parts, ["task", "arm", "resampler"])
    found["score"] = [f"{r.value:.1f} [{r.low:.1f}, {r.high:.1f}]" for r in found.itertuples()]
    found["who"] = [
        name if arm == "control" else f"{name}, {arm}" for name, arm in zip(found.resampler, found.arm, strict=True)
    ]
    return (
        found.pivot(index="who", columns="task", values="score")
        .reindex(found.who.unique())
        .fillna("")[list(parts.task.unique())]
    )


def with_attention(models: Mapping[str, object]) -> str:
    """Return the first model whose queries' cross-attention can be shown; "" and a printed line where none has any."""
    for name, model in models.items():
        if getattr(model, "has_attention", False):
            return name
    print(f"no cross-attention from queries to patches in {', '.join(models)}: nothing to show here")
    return ""


def looker(model: Probed, examples: Sequence[Example], arm: str) -> Looker:
    """Return the widget that shows where a resampler's queries look in some examples' pictures.

    Args:
        model: has cross-attention.
        examples: whose pictures and texts are shown.
        arm: "frozen" or "unfrozen", for the titles.

    Raises:
        ValueError: a resampler without cross-attention.
    """
    opened, texts = open_pictures(examples), [example.text for example in examples]
    return Looker(opened, texts, model.attention(opened, texts), f"{model.name}, {arm}")


OTHER_SPLIT = "vsr-zeroshot"
"""Source of statements that the paper has no numbers for."""
PAPER_RELATIONS: dict[str, tuple[float, float, float, float]] = {
    "Adjacency": (61.94, 68.86, 57.44, 62.98),
    "Directional": (42.05, 75.00, 38.64, 68.18),
    "Orientation": (56.93, 67.15, 58.39, 67.88),
    "Projective": (62.87, 78.29, 54.21, 74.61),
    "Proximity": (60.15, 81.95, 40.60, 78.95),
    "Topological": (74.56, 83.94, 66.14, 83.15),
    "Unallocated": (68.42, 72.37, 52.63, 77.63),
}
"""The paper's table 2 (percent, VSR's random split): Q-Former frozen and unfrozen, InstructBLIP's the same."""


def relations_beside_the_paper(table: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy (percent) with its interval per relation category, resampler and arm, and the paper's number."""
    found = analysis.accuracy(table[table.probe_layers <= 1], ["category", "resampler", "arm"])
    other = set(table.get("source", ())) == {OTHER_SPLIT}
    paper = []
    for row in found.itertuples(index=False):
        place = 2 * ("instruct" in row.resampler) + (row.arm == "unfrozen")
        known = not other and ("instruct" in row.resampler or "blip" in row.resampler)
        paper.append(PAPER_RELATIONS[row.category][place] if known and row.category in PAPER_RELATIONS else np.nan)
    return found.assign(paper=paper).round({"value": 1, "low": 1, "high": 1}).sort_values(["resampler", "category"])


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
    ("rec", "vilt", "unfrozen"): 68.93,
    ("vsr", "vilt", "unfrozen"): 71.53,
    ("rcm", "vilt", "unfrozen"): 83.25,
}
"""Test scores of the paper's table 1 (percent): (task, resampler, arm); VSR's random split."""
PAPER_BESIDE = {
    "people": {"vsr": 95.40, "rcm": 92.29},
    "ViLT, trained as a whole": {task: PAPER_TABLE[task, "vilt", "unfrozen"] for task in ("rec", "vsr", "rcm")},
    "at random": {"vsr": 50.0, "rcm": 50.0},
}
"""Who else stands in the paper's table 1 and did the same three tasks (percent)."""


def beside_in_the_paper() -> pd.DataFrame:
    """Return what else the paper's table 1 holds: who (rows) scored what on which task (columns), percent."""
    return pd.DataFrame(PAPER_BESIDE).T[["rec", "vsr", "rcm"]]


def beside_the_paper(table: pd.DataFrame) -> pd.DataFrame:
    """Return table 1: accuracy (percent) with its interval per task, resampler and arm, and the paper's number.

    Resamplers with "instruct" in their name stand beside InstructBLIP's, the other Q-Formers beside BLIP-2's, and ViLT
    beside ViLT, which is trained as a whole; for the rest the paper has no number.
    """
    found = analysis.accuracy(table[table.probe_layers <= 1], ["task", "resampler", "arm"])
    other = set(table[table.task == "vsr"].get("source", ())) == {OTHER_SPLIT}
    paper = []
    for row in found.itertuples(index=False):
        names = {"instruct": "instruct", "blip": "qformer", "vilt": "vilt"}
        kind = next((kind for name, kind in names.items() if name in row.resampler), "")
        known = not (other and row.task == "vsr")
        paper.append(PAPER_TABLE.get((row.task, kind, row.arm), np.nan) if known else np.nan)
    return found.assign(paper=paper).round({"value": 1, "low": 1, "high": 1})
