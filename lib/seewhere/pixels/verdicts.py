"""What the two studies say about the paper's claims F17 to F19 and F21, as result records with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seewhere import metrics, results
from seewhere.models.chat_pixels import ChatPixelReader
from seewhere.pixels import arms, segmentation
from seewhere.pixels.prompts import reconstruct, refer, segment
from seewhere.pixels.study import FIXED, Study
from seewhere.results import prompt_id

RECONSTRUCTION, SEGMENTATION = "05_pixel_reconstruction", "06_referring_segmentation"


ONE_RUN = "one run"
"""How every model behind these records was trained; seeds draw pictures and references."""
CELLS = "places as cells of a square grid, x to the right, y down, from 0"
FLOOR, ALLOWED = 5.0, 3.0
"""Percent: what scores less has nothing to forget. Points: what a task may lose by stage 3."""


@dataclass(frozen=True)
class Origin(results.Origin):
    """What every record of a run of notebook 05 has in common."""

    notebook = RECONSTRUCTION
    training: str = ONE_RUN
    asked: str = f"prompt {prompt_id(reconstruct(1, 2))}, {CELLS}; boxes in percent of the sides"

    def of_set(self, name: str) -> Origin:
        """The same for a set of pictures: one that no seed changes was asked once."""
        return replace(self, seeds=self.seeds[:1]) if name in FIXED else self


@dataclass(frozen=True)
class SegmentationOrigin(results.Origin):
    """The same of notebook 06."""

    notebook = SEGMENTATION
    training: str = ONE_RUN
    asked: str = f"prompt {prompt_id(refer('phrase'), segment('phrase', 1, 2))}, boxes in percent of the sides; {CELLS}"


def judged(records: Sequence[results.Record], given: Sequence[str], models: Sequence[object]) -> list[results.Record]:
    """The records as they may stand for claims, which are about one model before its encoder adapted and after.

    Where some of the models compared are the package's and others the user's, or one is a chat model that nobody
    trained here, they are no such pair: then the records stay as measurements, no claim has them, and a line says so.

    Args:
        records: of models compared with each other.
        given: what the user named for each of them, "" for the package's own.
        models: the models.
    """
    mixed = any(given) and not all(given)
    if not mixed and not any(isinstance(model, ChatPixelReader) for model in models):
        return list(records)
    reason = "some of these models are yours and others the package's" if mixed else "a chat model is asked as it is"
    print(f"No claim is judged here: {reason}, and a claim is about one model before its encoder adapted and after.")
    return [{**record, "claim": None} for record in records]


# ------------------------------------------------------------------------------------------------- reconstruction


def ratios(study: Study, frozen: str, adapted: str, origin: Origin) -> list[results.Record]:
    """F17: mean RE frozen over mean RE adapted, one record per evaluation set."""
    return [
        origin.of_set(name).record(
            study.ratio(frozen, adapted, name), "F17", "re_ratio", data=name, systems=f"{frozen} / {adapted}"
        )
        for name in _sets(study)
    ]


def against_baselines(study: Study, systems: Sequence[str], baseline: str, origin: Origin) -> list[results.Record]:
    """RE of each system minus that of a baseline that knows the target; below 0 is better than it."""
    return [
        origin.of_set(name).record(
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
            found.append(origin.of_set(name).record(group[system], None, "re", data=name, system=system))
            mean = group[system].scaled(1 / 3)
            found.append(origin.of_set(name).record(mean, None, "re_channel_mean", data=name, system=system))
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
            found.append(origin.of_set(data).record(drop, "F19", "second_stage_drop", data=data))
        if {"2", "3"} <= names.keys():
            kept = study.ratio(names["3"], names["2"], data)
            found.append(origin.of_set(data).record(kept, "F19", "third_stage_re_ratio", data=data))
    return found


def drop_of_history(history: Any, origin: Origin) -> list[results.Record]:
    """F19's first part from the snapshots taken while training, where stage 1 itself did not ship.

    The interval is over the few held-out pictures that were watched, always the same ones.
    """
    ends = {stage.removeprefix("stage"): place for place, stage in enumerate(history.whole_stages())}
    if not {"1", "2"} <= ends.keys():
        return []
    errors_then = np.asarray(history.errors, dtype=np.float64)
    drop = metrics.paired_interval(errors_then[ends["1"]], errors_then[ends["2"]])
    once = replace(origin, seeds=(0,))
    return [once.record(drop, "F19", "second_stage_drop", data="held-out pictures watched while training")]


def restored(rows: pd.DataFrame, second: str, third: str, origin: Origin) -> list[results.Record]:
    """F19, the other tasks: score after stage 3 minus score after stage 2, points, one record per task.

    Args:
        rows: one row per question: model, task, image_id, score (0..1); the same questions for each model.
        second, third: names of the two models in the rows.
        origin: of the records.
    """
    gains, once = _gains(rows, third, second), replace(origin, seeds=origin.seeds[:1])
    return [once.record(gain, "F19", "third_stage_restored", task=task) for task, gain in gains.items()]


def kept(rows: pd.DataFrame, before: str, after: str, origin: Origin, seed: int = 0) -> list[results.Record]:
    """What the other tasks lose on the way: score of `after` minus that of `before`, points, one record per task.

    A task in which `before` scores less than `FLOOR` percent has nothing to lose; its record says ``floor``.

    Args:
        rows: see `restored`.
        before, after: names of the two models in the rows; before is one that was not yet trained for colours.
        origin: of the records.
        seed: that the questions were drawn with.
    """
    once, found = replace(origin, seeds=(seed,)), []
    for task, gain in _gains(rows, after, before).items():
        score = 100 * rows[(rows.model == before) & (rows.task == task)].score.mean()
        floor = {"floor": True} if score < FLOOR else {}
        found.append(once.record(gain, None, "kept", task=task, systems=f"{after} - {before}", **floor))
    return found


def kept_in_words(records: Sequence[results.Record]) -> str:
    """Whether any task lost more than `ALLOWED` points, from the records of `kept`, in a sentence or two."""
    found = [record for record in records if record["metric"] == "kept"]
    if not found:
        return "What was forgotten is not known: no scores of the stages before came with the weights."
    floor = [record["setting"]["task"] for record in found if "floor" in record["setting"]]
    asked = [record for record in found if "floor" not in record["setting"]]
    lost = [record for record in asked if record["value"] < -ALLOWED]
    clear = [record for record in lost if record["high"] < -ALLOWED]
    text = f"{found[0]['setting']['systems']}, points: "
    text += ", ".join(f"{r['setting']['task']} {r['value']:+.1f} [{r['low']:+.1f}, {r['high']:+.1f}]" for r in asked)
    names = ", ".join(record["setting"]["task"] for record in lost)
    text += f". More than {ALLOWED:g} points lost: {names or 'none'}"
    if lost:
        text += f"; beyond doubt: {', '.join(record['setting']['task'] for record in clear) or 'none'}"
    if floor:
        text += f". Nothing to lose, as under {FLOOR:g} % before: {', '.join(floor)}"
    return text + "."


def read_from_tokens(rows: pd.DataFrame, frozen: str, adapted: str, origin: Origin) -> list[results.Record]:
    """What adapting an encoder does to what its tokens tell: share read right minus the frozen one's, points.

    Args:
        rows: of `token_probe.rows`; one record per task in it.
        frozen, adapted: names of the two models in the rows.
        origin: of the records.
    """
    gains, systems = _gains(rows, adapted, frozen), f"{adapted} - {frozen}"
    once = replace(origin, seeds=origin.seeds[:1], asked="no prompt: linear probes of the encoder's tokens")
    return [once.record(gain, None, "read_from_tokens", task=task, systems=systems) for task, gain in gains.items()]


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


def arm_gains(
    table: pd.DataFrame,
    origin: SegmentationOrigin,
    folder: Path | str = arms.SHIPPED,
    boxes: str | None = "F21",
) -> list[results.Record]:
    """F18 and F21 from the table of the four arms; seeds are resampled with the images, as they trained other models.

    Each gain is over the arms that are there; none without a table. F21 is asked of either pair of arms that differ in
    the encoder alone, and of the adapted one of each against one box for everything (see `live_gains`).

    Args:
        table: of predictions.
        origin: of the records, but for seeds, weights and training, which are the table's own.
        folder: where the table lies.
        boxes: claim of the records about boxes; None where other models than the package's are on trial.
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
        weights=arms.shipped_hash(folder),
        training=arms.origin(folder),
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
    constant = segmentation.ConstantBox.name
    for first, second in (("both", "pixels"), ("adaptation", "neither")):
        for metric, other in (("referring_gain", second), ("referring_over_constant", constant)):
            if {first, other} <= by_arm.keys():
                better = segmentation.boxes_gain(by_arm[first], by_arm[other])
                found.append(origin.record(better, boxes, metric, arm=first, over=other))
    return found


def live_gains(
    table: pd.DataFrame,
    adapted: str,
    frozen: str,
    origin: SegmentationOrigin,
    constant: str = segmentation.ConstantBox.name,
    claim: str | None = "F21",
) -> list[results.Record]:
    """The shipped models asked here: cIoU, and P@1 of the box (F21), over all data and by each.

    F21 is two things: that the adapted model finds more boxes than the frozen one, and that it finds more than one box
    for everything does, for else there is nothing to compare. None as `claim` for a model that was trained for longer
    than the frozen one: what it finds says nothing about the encoder.
    """
    found = []
    sides = {str(system): part for system, part in table[table.box == "found"].groupby("system")}
    if not {adapted, frozen} <= sides.keys():
        return []
    systems = f"{adapted} - {frozen}"
    for box, own in table.groupby("box", sort=False):
        pair = [own[own.system == name] for name in (adapted, frozen)]
        if not (pair[0].empty or pair[1].empty):
            gain = segmentation.gain(pair[0], pair[1])
            found.append(origin.record(gain, None, "gain_ciou_shipped", box=str(box), systems=systems))
    for metric, other in (("referring_gain", frozen), ("referring_over_constant", constant)):
        if other not in sides:
            continue
        for name in ["all", *sides[adapted].data.unique()]:
            parts = [t if name == "all" else t[t.data == name] for t in (sides[adapted], sides[other])]
            hits = [part.sort_values(["seed", "data", "expression_id"]) for part in parts]
            better = metrics.paired_interval(hits[0].hit, hits[1].hit, hits[0].image_id.to_numpy()).scaled(100)
            counts = claim if name == "all" else None
            found.append(origin.record(better, counts, metric, data=name, systems=f"{adapted} - {other}"))
    return found


def boxes_and_pixels_in_words(
    table: pd.DataFrame, adapted: Sequence[str], frozen: str, constant: str = segmentation.ConstantBox.name
) -> str:
    """What a wrong box costs and what wrong pixels cost, and whether any model beats a box that is simply filled.

    Args:
        table: predictions of the systems.
        adapted: those that are held against `frozen`.
        frozen: the baseline.
        constant: who answers every phrase with one box, filled.
    """
    lines = []
    for box, own in table.groupby("box", sort=False):
        scores = {str(name): segmentation.cumulative(part).value for name, part in own.groupby("system", sort=False)}
        said = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
        gains = {name: segmentation.gain(own[own.system == name], own[own.system == frozen]) for name in adapted}
        apart = [f"{n} minus {frozen}: {g.value:+.1f} [{g.low:+.1f}, {g.high:+.1f}]" for n, g in gains.items()]
        lines.append(f"{box} box, cIoU in percent: {said}; {'; '.join(apart)}.")
        best = max(value for name, value in scores.items() if name != constant)
        if box == "true" and constant in scores and best <= scores[constant]:
            lines.append(
                f"Filling the true box scores {scores[constant]:.1f}, the best model's cells in it {best:.1f}: "
                "whatever they know of shapes, it does not pay yet against calling every cell in the box the object's."
            )
    return "\n".join(lines)


def scores(table: pd.DataFrame, origin: SegmentationOrigin) -> list[results.Record]:
    """cIoU of every system, over all data, with the found boxes and with the true ones."""
    return [
        origin.record(segmentation.cumulative(part), None, "ciou", system=str(system), box=str(box))
        for (system, box), part in table.groupby(["system", "box"], sort=False)
    ]
