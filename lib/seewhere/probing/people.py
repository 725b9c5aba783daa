"""The human baseline of region cell matching: how often people are right, and how far they agree.

"Lost in Space" (appendix A) showed people the claim and asked yes or no. Here each person sees the expression alone
and says where the thing is, and that decides whether the claim matches: one answer tells the cell as well, and nobody
is led by what is claimed. So the shares are comparable, not the same measure. Answers with several cells, and refusals
(factually wrong), are left out of the accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from seewhere import metrics
from seewhere.boxes import CELLS
from seewhere.datasets import load
from seewhere.probing import analysis, rcm
from seewhere.probing.rcm import RegionCell
from seewhere.probing.tasks import on_disk
from seewhere.show.annotate import CellAnswer, check_asked

WRONG = "factually wrong"
MATCH, NO_MATCH = "matches", "does not match"


@dataclass(frozen=True)
class HumanBaseline:
    """What people scored.

    `table` has a row per answer. `accuracy` (0..1) is over the answers with one cell: does the first cell, held against
    the claimed one, give the right yes or no? `cell_accuracy`: is it the true cell? Both None without such answers.
    `kappa` is Fleiss' over yes/no, `cell_kappa` over the nine cells and refusals, each None with fewer than two people;
    `shared` is the number of items that all of them answered.
    """

    table: pd.DataFrame
    accuracy: metrics.Interval | None
    cell_accuracy: metrics.Interval | None
    kappa: float | None
    cell_kappa: float | None
    shared: int


def human_baseline(items: Sequence[RegionCell], answers: Iterable[CellAnswer], seed: int = 0) -> HumanBaseline:
    """Score people's answers.

    Args:
        items: what was asked.
        answers: of all annotators; of several to one item by one person the last counts.
        seed: of the intervals, which draw the items anew.

    Raises:
        ValueError: an answer to an item that is not among `items` or was another one, or that names no cell.
    """
    known = {item.item_id: item for item in items}
    rows = {}
    for answer in answers:
        if answer.item not in known:
            raise ValueError(
                f"{answer.annotator} answered item {answer.item}, which is not among the {len(known)} asked"
            )
        check_asked(answer, known[answer.item])
        if any(cell not in CELLS for cell in answer.cells) or not (answer.cells or answer.wrong):
            raise ValueError(f"{answer.annotator}, item {answer.item}: cells {answer.cells}; expected names of cells")
        rows[answer.annotator, answer.item] = _row(known[answer.item], answer)
    columns = ["annotator", "item", "first", "cells", "single", "says", "right", "cell_right", "seconds"]
    table = pd.DataFrame(list(rows.values()), columns=columns)
    single = table[table.single]
    scores = [
        metrics.bootstrap_interval(single[name].to_numpy(float), single["item"].to_numpy(), seed)
        if len(single)
        else None
        for name in ("right", "cell_right")
    ]
    kappa, shared = _kappa(table, "says", (MATCH, NO_MATCH, WRONG))
    cell_kappa, _ = _kappa(table, "first", (*CELLS, WRONG))
    return HumanBaseline(table, scores[0], scores[1], kappa, cell_kappa, shared)


def describe(found: HumanBaseline) -> str:
    """Return a baseline as text, beside the paper's."""
    paper = "the paper's five people: 92.3 % right, kappa 0.81 over 100 items each"
    if found.table.empty:
        return f"no answers yet ({paper})"
    people, answers = found.table.annotator.nunique(), len(found.table)
    parts = [f"{people} {'person' if people == 1 else 'people'}, {answers} answers"]
    for name, score in (("right", found.accuracy), ("true cell", found.cell_accuracy)):
        if score is not None:
            parts.append(f"{name} {100 * score.value:.1f} % [{100 * score.low:.1f}, {100 * score.high:.1f}]")
    for name, kappa in (("kappa", found.kappa), ("kappa over cells", found.cell_kappa)):
        if kappa is not None:
            parts.append(f"{name} {kappa:.2f} on {found.shared} shared items")
    return f"{'; '.join(parts)} ({paper})"


def _row(item: RegionCell, answer: CellAnswer) -> dict[str, object]:
    first = WRONG if answer.wrong else answer.cells[0]
    says = WRONG if answer.wrong else MATCH if first == CELLS[item.claimed] else NO_MATCH
    return {
        "annotator": answer.annotator,
        "item": answer.item,
        "first": first,
        "cells": len(answer.cells),
        "single": not answer.wrong and len(answer.cells) == 1,
        "says": says,
        "right": (says == MATCH) == item.label,
        "cell_right": first == CELLS[item.cell],
        "seconds": answer.seconds,
    }


def _kappa(table: pd.DataFrame, column: str, categories: Sequence[str]) -> tuple[float | None, int]:
    """Fleiss' kappa of one column over the items that everybody answered, and their number.

    Somebody who stopped before half of what the busiest answered is no annotator yet: the others' agreement would hang
    on the few items that all have seen.
    """
    counted = table.groupby("annotator").item.nunique()
    table = table[table.annotator.isin(counted.index[counted >= counted.max() / 2])]
    ratings = table[["annotator", "item", column]].rename(columns={column: "category"}).to_dict("records")
    counts, items = analysis.rating_counts(ratings, categories)
    if not len(items) or counts[0].sum() < 2:
        return None, len(items)
    return analysis.fleiss_kappa(counts), len(items)


def annotation_items(
    root: Path | str,
    data: str,
    split: str = "test",
    count: int = 100,
    seed: int = 0,
    images: Path | str | None = None,
) -> list[RegionCell]:
    """Return items for people from a data set of referring expressions, its pictures in `images` if not in a usual
    place; see `draw_items`. Expressions whose pictures are missing are passed over."""
    expressions = on_disk(load(data, split, root, images=images or None)).expressions
    return draw_items(rcm.build(expressions, seed, skip_empty=True), count, seed)


def draw_items(items: Sequence[RegionCell], count: int = 100, seed: int = 0) -> list[RegionCell]:
    """Draw items for people, half of them true (the paper: 50 and 50), no expression twice, in random order."""
    frame = pd.DataFrame({"item": range(len(items)), "label": [item.label for item in items]})
    frame["expression"] = [item.expression.expression_id for item in items]
    shuffled = frame.sample(frac=1, random_state=seed).drop_duplicates("expression")
    parts = [part.head(count // 2) for _, part in shuffled.groupby("label")]
    chosen = pd.concat(parts).sample(frac=1, random_state=seed + 1)
    return [items[row] for row in chosen["item"]]
