"""What the two studies say about the paper's claims F17 to F19 and F21, as result records with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from seewhere import metrics, results
from seewhere.pixels import arms, segmentation
from seewhere.pixels.study import Study

RECONSTRUCTION, SEGMENTATION = "05_pixel_reconstruction", "06_referring_segmentation"


class Origin(results.Origin):
    """What every record of a run of notebook 05 has in common."""

    notebook = RECONSTRUCTION


class SegmentationOrigin(results.Origin):
    """The same of notebook 06."""

    notebook = SEGMENTATION


# ------------------------------------------------------------------------------------------------- reconstruction


def ratios(study: Study, frozen: str, adapted: str, origin: Origin) -> list[results.Record]:
    """F17: mean RE frozen over mean RE adapted, one record per evaluation set."""
    return [
        origin.record(study.ratio(frozen, adapted, name), "F17", "re_ratio", data=name, systems=f"{frozen} / {adapted}")
        for name in _sets(study)
    ]


def against_baselines(study: Study, systems: Sequence[str], baseline: str, origin: Origin) -> list[results.Record]:
    """RE of each system minus that of a baseline that knows the target; below 0 is better than it."""
    return [
        origin.record(
            study.difference(system, baseline, name), None, "re_over_baseline", data=name, system=system, than=baseline
        )
        for name in _sets(study)
        for system in systems
    ]


def errors(study: Study, systems: Sequence[str], origin: Origin) -> list[results.Record]:
    """RE of each system and set, in both readings."""
    found = []
    for name, group in study.estimates().items():
        for system in (s for s in systems if s in group):
            found.append(origin.record(group[system], None, "re", data=name, system=system))
            mean = group[system].scaled(1 / 3)
            found.append(origin.record(mean, None, "re_channel_mean", data=name, system=system))
    return found


def _sets(study: Study) -> list[str]:
    return list(dict.fromkeys(item.set for item in study.shown))


def stages(study: Study, names: Mapping[str, str], origin: Origin) -> list[results.Record]:
    """F19, the part about errors: what stage 2 takes off the error, and whether stage 3 keeps that.

    Args:
        study: with the stages asked.
        names: stage ("1", "2", "3") -> its system in the study; a stage that is absent is left out.
        origin: of the records.
    """
    found = []
    for data in _sets(study):
        if {"1", "2"} <= names.keys():
            drop = study.difference(names["1"], names["2"], data)
            found.append(origin.record(drop, "F19", "second_stage_drop", data=data))
        if {"2", "3"} <= names.keys():
            kept = study.ratio(names["3"], names["2"], data)
            found.append(origin.record(kept, "F19", "third_stage_re_ratio", data=data))
    return found


def drop_of_history(history: Any, origin: Origin) -> list[results.Record]:
    """F19's first part from the snapshots taken while training, where stage 1 itself did not ship.

    The interval is over the few pictures that were watched.
    """
    last = {str(stage): place for place, stage in enumerate(history.stages)}
    ends = {name.removeprefix("stage"): place for name, place in last.items()}
    if not {"1", "2"} <= ends.keys():
        return []
    errors_then = np.asarray(history.errors, dtype=np.float64)
    drop = metrics.paired_interval(errors_then[ends["1"]], errors_then[ends["2"]])
    return [origin.record(drop, "F19", "second_stage_drop", data="pictures watched in training")]


def restored(rows: pd.DataFrame, second: str, third: str, origin: Origin) -> list[results.Record]:
    """F19, the other tasks: score after stage 3 minus score after stage 2, points, one record per task.

    Args:
        rows: one row per question: model, task, image_id, score (0..1); the same questions for each model.
        second, third: names of the two models in the rows.
        origin: of the records.
    """
    gains = _gains(rows, third, second)
    return [origin.record(gain, "F19", "third_stage_restored", task=task) for task, gain in gains.items()]


def kept(rows: pd.DataFrame, before: str, after: str, origin: Origin) -> list[results.Record]:
    """What the other tasks lose on the way: score of `after` minus that of `before`, points, one record per task."""
    gains = _gains(rows, after, before)
    return [origin.record(gain, None, "kept", task=task, systems=f"{after} - {before}") for task, gain in gains.items()]


def _gains(rows: pd.DataFrame, first: str, second: str) -> dict[str, metrics.Interval]:
    """Task -> score of `first` minus that of `second`, points, paired by question; tasks that both were asked."""
    found = {}
    for task, part in rows.groupby("task", sort=False):
        sides = {str(model): own.reset_index(drop=True) for model, own in part.groupby("model")}
        if {first, second} <= sides.keys():
            images = sides[first].image_id.to_numpy()
            gain = metrics.paired_interval(sides[first].score, sides[second].score, images)
            found[str(task)] = gain.scaled(100)
    return found


def forgetting_table(rows: pd.DataFrame, order: Sequence[str] = ()) -> pd.DataFrame:
    """Score of every task (percent, with interval) by model, one line per model, in `order`."""
    table = metrics.interval_by(rows, "score", ["model", "task"], "image_id")
    table["score"] = [f"{100 * r.value:.1f} [{100 * r.low:.1f}, {100 * r.high:.1f}]" for r in table.itertuples()]
    wide = table.pivot(index="model", columns="task", values="score")
    return wide.reindex([name for name in order if name in wide.index] or wide.index)


# --------------------------------------------------------------------------------------------------- segmentation


def arm_gains(table: pd.DataFrame, origin: SegmentationOrigin) -> list[results.Record]:
    """F18 from the table of the four arms; seeds are resampled with the images, as they trained other models.

    Each gain is over the arms that are there; none without a table.
    """
    if table.empty:
        return []
    pairs = {
        "gain_ciou": ("both", "neither"),
        "pixels_gain": ("pixels", "neither"),
        "adaptation_gain": ("adaptation", "neither"),
        "over_pixels": ("both", "pixels"),
        "over_adaptation": ("both", "adaptation"),
    }
    by_arm = {str(arm): part for arm, part in table[table.box == "found"].groupby("system")}
    origin = replace(
        origin,
        seeds=tuple(sorted(int(s) for s in table.seed.unique())),
        weights=arms.shipped_hash(),
        training=arms.origin(),
    )
    found = []
    for metric, (first, second) in pairs.items():
        if {first, second} <= by_arm.keys():
            gain = segmentation.gain(by_arm[first], by_arm[second], resample_seeds=True)
            found.append(origin.record(gain, "F18", metric, arm=first, over=second))
    given = {str(arm): part for arm, part in table[table.box == "true"].groupby("system")}
    if {"both", "neither"} <= given.keys():
        gain = segmentation.gain(given["both"], given["neither"], resample_seeds=True)
        found.append(origin.record(gain, None, "gain_ciou_true_box", arm="both", over="neither"))
    return found


def live_gains(table: pd.DataFrame, adapted: str, frozen: str, origin: SegmentationOrigin) -> list[results.Record]:
    """The shipped models asked here: cIoU and P@1 of the box, adapted minus frozen (F21), over all data and by each."""
    found = []
    sides = table[table.box == "found"]
    first, second = (sides[sides.system == name] for name in (adapted, frozen))
    if first.empty or second.empty:
        return []
    gain, systems = segmentation.gain(first, second), f"{adapted} - {frozen}"
    found.append(origin.record(gain, None, "gain_ciou_shipped", systems=systems))
    for name in ["all", *first.data.unique()]:
        parts = [t if name == "all" else t[t.data == name] for t in (first, second)]
        hits = [part.sort_values(["seed", "data", "expression_id"]) for part in parts]
        better = metrics.paired_interval(hits[0].hit, hits[1].hit, hits[0].image_id.to_numpy()).scaled(100)
        claim = "F21" if name == "all" else None
        found.append(origin.record(better, claim, "referring_gain", data=name, systems=systems))
    return found


def scores(table: pd.DataFrame, origin: SegmentationOrigin) -> list[results.Record]:
    """cIoU of every system, over all data, with the found boxes and with the true ones."""
    return [
        origin.record(segmentation.cumulative(part), None, "ciou", system=str(system), box=str(box))
        for (system, box), part in table.groupby(["system", "box"], sort=False)
    ]
