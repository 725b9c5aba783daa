"""What the study says about the paper's claims F6-F11, as result records with intervals.

A record names the weights that made it and no others: those of its language model with its adapter, and of its
detector. `origins` gives them for each language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from seewhere import claims, metrics, results
from seewhere.llm_wrapper import experiments
from seewhere.llm_wrapper.experiments import AS_SERVED, FINE_TUNED, ZERO_SHOT, pooled, shown
from seewhere.llm_wrapper.prompts import identity
from seewhere.llm_wrapper.study import Study
from seewhere.llm_wrapper.taste import Tuned
from seewhere.llm_wrapper.wrapper import ASKED

LONG_TEXT = 7
MANY_CANDIDATES = 6
FEW_SAME, MANY_SAME = 2, 3
NOTEBOOK = "02_llm_wrapper"


class Origin(results.Origin):
    """What the records of one language model in a run of this notebook have in common."""

    notebook = NOTEBOOK

    def record(self, interval: metrics.Interval, claim: str | None, metric: str, **setting: Any) -> results.Record:
        """As its base; claims are about fine-tuned models, so none rests on one whose training is not known."""
        return super().record(interval, None if self.training == AS_SERVED else claim, metric, **setting)


Origins = Mapping[str, Origin]


def origins(preset: str, seeds: Sequence[int], tuned: Mapping[str, Tuned]) -> dict[str, Origin]:
    """Return language model -> how its wrapper came to be and is asked, and the hashes of its weights."""
    return {
        name: Origin(
            preset, tuple(seeds), item.hashes, item.origin, identity(item.wrapper.coordinates, item.wrapper.scores)
        )
        for name, item in tuned.items()
    }


def about(origin: Origin, study: Study, *detectors: str) -> Origin:
    """Return `origin` with the hashes of some detectors' weights added."""
    found = {key: value for name in detectors for key, value in study.hashes_of(name).items()}
    return replace(origin, weights={**origin.weights, **found})


def names(studies: Sequence[Study]) -> str:
    """Return the data sets of some studies, as records write them."""
    return " ".join(dict.fromkeys(study.dataset.name for study in studies))


def gains(studies: Sequence[Study], detectors: Sequence[str], origins: Origins, claim: str | None, metric: str) -> list:
    """Return the gain over the zero-shot detector, one record per detector x language model (F6, F8, F9).

    The expressions of all `studies` count together; two data sets over the same pictures are resampled together.
    """
    if not studies:
        return []
    table, found = pooled([study.table for study in studies]), []
    for detector in detectors:
        for llm, origin in origins.items():
            interval = experiments.gain(table, experiments.system(detector, llm), experiments.system(detector))
            setting = {"detector": detector, "llm": shown(llm), "data": names(studies)}
            found.append(about(origin, studies[0], detector).record(interval, claim, metric, **setting))
    return found


def over_zero_shot(studies: Sequence[Study], detectors: Sequence[str], origins: Origins) -> list:
    """Return the gain of fine-tuning: over the same language model before it, where that was asked.

    No claim rests on it, but it tells the reader what the adapter adds where the base can read lists already.
    """
    found = []
    for detector in detectors:
        for llm, origin in origins.items():
            before, after = (experiments.system(detector, llm, training) for training in (ZERO_SHOT, FINE_TUNED))
            asked = [study for study in studies if (study.table.system == before).any()]
            if not asked:
                continue
            table = pooled([study.table for study in asked])
            both = table.expression_id.isin(table.expression_id[table.system == before])
            interval = experiments.gain(table[both], after, before)
            setting = {"detector": detector, "llm": shown(llm), "data": names(asked)}
            record = about(origin, asked[0], detector).record(interval, None, "gain_over_zero_shot_llm", **setting)
            found.append(record)
    return found


def ensembling(
    study: Study,
    detectors: Sequence[str],
    joint: str,
    origins: Origins,
    claim: str | None = "F7",
    metric: str = "ensemble_gain",
) -> list:
    """Return the gain of two detectors' candidates together over the better of the two with a wrapper (F7).

    Which of the two is better is judged on the expressions that the joint system was asked.
    """
    found = []
    for llm, origin in origins.items():
        system = experiments.system(joint, llm)
        asked = study.table.expression_id[study.table.system == system]
        table = study.table[study.table.expression_id.isin(asked)]
        means = {d: table[table.system == experiments.system(d, llm)].hit.mean() for d in detectors}
        better = max(means, key=lambda name: means[name])
        interval = experiments.gain(table, system, experiments.system(better, llm))
        setting = {"llm": shown(llm), "better": better, "data": study.dataset.name}
        found.append(about(origin, study, *detectors).record(interval, claim, metric, **setting))
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


def robustness(studies: Sequence[Study], detectors: Sequence[str], origins: Origins) -> list:
    """Return F10: the gain on long texts and among many candidates, and what candidates of one label cost.

    The last compares lists with three or more candidates of the target's label with lists of two; targets that no
    candidate covers are left out, because there nothing could have been chosen.
    """
    table, found = pooled([study.table for study in studies]), []
    for detector in detectors:
        own = experiments.system(detector)
        for llm, origin in origins.items():
            system, made = experiments.system(detector, llm), about(origin, studies[0], detector)
            setting = {"detector": detector, "llm": shown(llm), "data": names(studies)}
            for metric, rows in (
                ("long_text_gain", table.words >= LONG_TEXT),
                ("many_candidates_gain", table.candidates >= MANY_CANDIDATES),
            ):
                if (rows & (table.system == system)).any():
                    found.append(made.record(experiments.gain(table[rows], system, own), "F10", metric, **setting))
            part = table[(table.system == system) & table.reachable].reset_index(drop=True)
            gap = difference(part, part.same_label >= MANY_SAME, part.same_label == FEW_SAME)
            if gap is not None:
                found.append(made.record(gap, "F10", "same_label_gap", **setting))
    return found


def unusable(
    studies: Sequence[Study], llm: str, origin: Origin, free: bool = False, training: str = FINE_TUNED
) -> list:
    """Return F11: the rates (percent) of answers without an integer and out of range, of one language model.

    All answers about all detectors' lists count, those that the language model was asked for. Before fine-tuning the
    same rates carry no claim. Intervals are Clopper-Pearson's: none among forty is not "never", which a bootstrap would
    say. Empty where nothing was asked.
    """
    table = pooled([study.table for study in studies])
    asked = (table.llm == shown(llm)) & (table.training == training) & (table.free == free)
    part, found = table[asked & table.status.isin(ASKED)], []
    if part.empty:
        return []
    answering = "free text" if free else "choose"
    setting: dict[str, Any] = {"llm": shown(llm), "answering": answering, "data": names(studies)}
    for metric, status in (("non_integer_rate", "no integer"), ("out_of_range_rate", "out of range")):
        count = int((part.status == status).sum())
        bounds = stats.binomtest(count, len(part)).proportion_ci(method="exact")
        interval = metrics.Interval(count / len(part), bounds.low, bounds.high, len(part)).scaled(100)
        found.append(origin.record(interval, "F11" if training == FINE_TUNED else None, metric, **setting))
    return found


def beside(number: str, records: Sequence[results.Record]) -> pd.DataFrame:
    """Return the paper's printed numbers of a claim and ours, one row each, in points with our intervals."""
    claim = claims.CLAIMS[number]
    metric = claim.conditions[0].metric
    rows = [("paper", item.label, f"{item.value:+.1f}", "") for item in claim.printed if item.metric == metric]
    for record in results.select(records, claim=number, metric=metric):
        place = ", ".join(
            str(record["setting"][key]) for key in ("detector", "llm", "data") if key in record["setting"]
        )
        rows.append(("here", place, f"{record['value']:+.1f}", f"{record['low']:+.1f} to {record['high']:+.1f}"))
    return pd.DataFrame(rows, columns=["", "detector, language model, data", metric, "interval"])
