"""What the study says about the paper's claims F6-F11, as result records with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from seewhere import metrics, results
from seewhere.llm_wrapper import experiments
from seewhere.llm_wrapper.study import Study

SHORT_TEXT, LONG_TEXT = 4, 7
MANY_CANDIDATES = 6
MANY_SAME = 3
NOTEBOOK = "02_llm_wrapper"


class Origin(results.Origin):
    """What every record of a run of this notebook has in common."""

    notebook = NOTEBOOK


def gains(
    studies: Sequence[Study],
    detectors: Sequence[str],
    llms: Sequence[str],
    claim: str | None,
    metric: str,
    origin: Origin,
) -> list:
    """Return the gain over the zero-shot detector, one record per detector x language model (F6, F8, F9).

    The expressions of all `studies` count together; two data sets over the same pictures are resampled together.
    """
    if not studies:
        return []
    table = pooled([study.table for study in studies])
    about = {"data": " ".join(study.dataset.name for study in studies)}
    return [
        origin.record(
            experiments.gain(table, f"{detector} + {llm}", detector), claim, metric, detector=detector, llm=llm, **about
        )
        for detector in detectors
        for llm in llms
    ]


def pooled(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of several data sets as one table; expression ids are made distinct."""
    named = [
        table.assign(expression_id=str(i) + "/" + table.expression_id.astype(str)) for i, table in enumerate(tables)
    ]
    return pd.concat(named, ignore_index=True)


def ensembling(study: Study, detectors: Sequence[str], llms: Sequence[str], joint: str, origin: Origin) -> list:
    """Return the gain of two detectors' candidates together over the better of the two with a wrapper (F7)."""
    found = []
    for llm in llms:
        means = {d: study.table[study.table.system == f"{d} + {llm}"].hit.mean() for d in detectors}
        better = max(means, key=lambda name: means[name])
        interval = experiments.gain(study.table, f"{joint} + {llm}", f"{better} + {llm}")
        found.append(origin.record(interval, "F7", "ensemble_gain", llm=llm, better=better, data=study.dataset.name))
    return found


def difference(table: pd.DataFrame, first: pd.Series, second: pd.Series, seed: int = 0) -> metrics.Interval | None:
    """Return P@1 (points) of the rows `first` minus that of `second`, resampled by image; None if one is empty.

    The two groups are different questions, so they are not paired; images are drawn anew, both groups with them.
    """
    if not first.any() or not second.any():
        return None
    hits, images = table.hit.to_numpy(float), pd.factorize(table.image_id)[0]
    random, count = np.random.default_rng(seed), int(images.max()) + 1
    weights = random.multinomial(count, np.full(count, 1 / count), size=2000)[:, images]

    def mean(rows: pd.Series) -> np.ndarray:
        chosen = weights * rows.to_numpy(float)
        return (chosen * hits).sum(1) / np.maximum(chosen.sum(1), 1)

    low, high = np.percentile(100 * (mean(first) - mean(second)), [2.5, 97.5])
    value = 100 * (table.hit[first].mean() - table.hit[second].mean())
    return metrics.Interval(
        float(value), float(min(low, value)), float(max(high, value)), int(first.sum() + second.sum())
    )


def robustness(tables: Sequence[pd.DataFrame], detectors: Sequence[str], llms: Sequence[str], origin: Origin) -> list:
    """Return F10: the gain on long texts and among many candidates, and what candidates of one label cost."""
    table, found = pooled(tables), []
    for detector in detectors:
        for llm in llms:
            system = f"{detector} + {llm}"
            about = {"detector": detector, "llm": llm}
            for metric, rows in (
                ("long_text_gain", table.words >= LONG_TEXT),
                ("many_candidates_gain", table.candidates >= MANY_CANDIDATES),
            ):
                if (rows & (table.system == system)).any():
                    found.append(origin.record(experiments.gain(table[rows], system, detector), "F10", metric, **about))
            part = table[table.system == system].reset_index(drop=True)
            gap = difference(part, part.same_label >= MANY_SAME, part.same_label == 1)
            if gap is not None:
                found.append(origin.record(gap, "F10", "same_label_gap", **about))
    return found


def unusable(table: pd.DataFrame, system: str, origin: Origin, **setting: Any) -> list:
    """Return F11: the rates (percent) of answers without an integer and out of range, of one system.

    Intervals are Clopper-Pearson's: none among forty is not "never", which a bootstrap would say.
    """
    part, found = table[table.system == system], []
    for metric, status in (("non_integer_rate", "no integer"), ("out_of_range_rate", "out of range")):
        count = int((part.status == status).sum())
        bounds = stats.binomtest(count, len(part)).proportion_ci(method="exact")
        interval = metrics.Interval(count / len(part), bounds.low, bounds.high, len(part)).scaled(100)
        found.append(origin.record(interval, "F11", metric, **setting))
    return found
