"""What the probes say about the paper's claims F1-F5, as result records with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from seewhere import metrics, results
from seewhere.probing import analysis

NOTEBOOK = "01_probing_resamplers"


@dataclass(frozen=True)
class Origin(results.Origin):
    """What every record of a run of this notebook has in common."""

    notebook = NOTEBOOK
    asked: str = "text as it stands, no prompt; boxes as middle, width and height in shares of the squashed picture"


def _rows(table: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """Rows of a predictions table with these values; ValueError where there are none."""
    kept = table
    for name, value in columns.items():
        kept = kept[kept[name] == value]
    if kept.empty:
        wanted = ", ".join(f"{name}={value!r}" for name, value in columns.items())
        raise ValueError(f"no rows with {wanted}; run that arm first")
    return kept


def gaps(table: pd.DataFrame, origin: Origin) -> list[results.Record]:
    """Return F1: unfrozen minus frozen linear probe (points), one record per task x resampler with both arms.

    Args:
        table: test predictions of both arms, last layer, linear probes; several tasks, resamplers and seeds.
        origin: of the run.
    """
    found = []
    pairs = table[table.arm.isin(["frozen", "unfrozen"])][["task", "resampler"]].drop_duplicates()
    for task, resampler in pairs.itertuples(index=False):
        arms = {arm: table[_mask(table, task, resampler, arm)] for arm in ("unfrozen", "frozen")}
        if not all(map(len, arms.values())):
            continue
        first, second = same_seeds(arms["unfrozen"], arms["frozen"])
        interval = analysis.gap(first, second)
        shares = {
            f"{arm}_accuracy": round(100 * float(part.correct.mean()), 2)
            for arm, part in (("unfrozen", first), ("frozen", second))
        }
        about = {"task": task, "resampler": resampler, **shares}
        found.append(under(origin, first).record(interval, claim_of("F1", first), "gap", **about))
    return found


def claim_of(claim: str, unfrozen: pd.DataFrame) -> str | None:
    """Return the claim that a comparison with these unfrozen predictions speaks to: none, where an arm is a taste.

    A training of a few epochs shows how the curve begins. It neither confirms nor contradicts anything.
    """
    return None if "taste" in unfrozen and unfrozen.taste.eq(True).any() else claim


def same_seeds(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both tables with the seeds that both have: a dear arm may have been trained under fewer.

    Raises:
        ValueError: they have no seed in common.
    """
    shared = set(first.seed) & set(second.seed)
    if not shared:
        raise ValueError(f"no seed in common: {sorted(set(first.seed))} and {sorted(set(second.seed))}")
    return first[first.seed.isin(shared)], second[second.seed.isin(shared)]


def under(origin: Origin, table: pd.DataFrame) -> Origin:
    """Return the origin with the seeds of a table, and how the arms in it came to be (its column ``made``)."""
    made = sorted(set(table.made.dropna())) if "made" in table else []
    told = f"unfrozen: {'; '.join(made)}" if made else "frozen only"
    training = f"{origin.training}; {told}" if origin.training else told
    return replace(origin, seeds=tuple(sorted(int(seed) for seed in set(table.seed))), training=training)


def _mask(table: pd.DataFrame, task: str, resampler: str, arm: str) -> pd.Series:
    return (table.task == task) & (table.resampler == resampler) & (table.arm == arm) & (table.probe_layers == 1)


def earlier_layers(table: pd.DataFrame, last: str, origin: Origin) -> list[results.Record]:
    """Return F2: each earlier layer minus the last (points), frozen linear probes of one task and resampler."""
    found = []
    task, resampler = _only(table, "task"), _only(table, "resampler")
    end = _rows(table, layer=last)
    for layer in table.layer.unique():
        if layer != last:
            first, second = same_seeds(_rows(table, layer=layer), end)
            about = {"task": task, "resampler": resampler, "layer": str(layer), "last": last}
            interval = analysis.gap(first, second)
            found.append(under(origin, first).record(interval, "F2", "earlier_layer_gain", **about))
    return found


def bigger_probes(frozen: pd.DataFrame, unfrozen: pd.DataFrame, origin: Origin) -> list[results.Record]:
    """Return F3: frozen tokens under a larger probe minus the unfrozen linear probe (points), per number of layers.

    Where there is no unfrozen arm of this task and resampler there is no record.
    """
    found: list[results.Record] = []
    task, resampler = _only(frozen, "task"), _only(frozen, "resampler")
    if unfrozen[(unfrozen.resampler == resampler) & (unfrozen.task == task)].empty:
        return found
    linear = _rows(unfrozen, task=task, resampler=resampler, probe_layers=1)
    for layers in sorted(frozen.probe_layers.unique()):
        if layers > 1:
            first, second = same_seeds(_rows(frozen, probe_layers=layers), linear)
            about = {"task": task, "resampler": resampler, "probe_layers": int(layers)}
            interval = analysis.gap(first, second)
            record = under(origin, second).record(interval, claim_of("F3", second), "bigger_probe_gap", **about)
            found.append(record)
    return found


def correlations(
    table: pd.DataFrame, train_counts: Mapping[str, int], origin: Origin, fewest: int = 5, claim: str | None = "F4"
) -> list[results.Record]:
    """Return F4: Kendall's tau-b of super-category scores with area and distance, and (no claim) training examples.

    `table` holds the box predictions of one resampler and arm, or of a control, whose correlations speak for no claim
    (`claim` None); the p-value stands in the setting.
    """
    found = []
    about = {name: _only(table, name) for name in ("task", "resampler", "arm")}
    for column, metric, spoken in (
        ("area", "area_tau", claim),
        ("distance", "distance_tau", claim),
        ("train_count", "train_count_tau", None),
    ):
        tau = analysis.rank_correlation(table, column, train_counts, fewest=fewest)
        if not math.isfinite(tau.value):  # all super-categories alike: there is no order to compare
            continue
        setting = {**about, "p": round(tau.p, 4)}
        found.append(under(origin, table).record(tau.interval(), spoken, metric, **setting))
    return found


def relation_kinds(table: pd.DataFrame, origin: Origin) -> list[results.Record]:
    """Return F5: accuracy on topological minus directional statements (points), frozen, per resampler.

    A test set without statements of both kinds gives no record.
    """
    found = []
    for resampler in table.resampler.unique():
        part = _rows(table, task="vsr", resampler=resampler, arm="frozen")
        if not {"Topological", "Directional"} <= set(part.category):
            continue
        interval = analysis.group_difference(part, "category", "Topological", "Directional")
        about = {"task": "vsr", "resampler": str(resampler)}
        found.append(under(origin, part).record(interval, "F5", "topological_over_directional", **about))
    return found


def over_controls(table: pd.DataFrame, controls: pd.DataFrame, origin: Origin) -> list[results.Record]:
    """Return, without a claim, each linear probe minus each control (points), per task x resampler x arm."""
    found = []
    linear = table[table.probe_layers == 1]
    for (task, resampler, arm), part in linear.groupby(["task", "resampler", "arm"], sort=False):
        for control in controls[controls.task == task].resampler.unique():
            interval = analysis.over_constant(part, _rows(controls, task=task, resampler=control))
            about = {"task": str(task), "resampler": str(resampler), "arm": str(arm), "control": str(control)}
            found.append(under(origin, part).record(interval, None, "over_control", **about))
    return found


def accuracies(table: pd.DataFrame, origin: Origin) -> list[results.Record]:
    """Return, without a claim, the accuracy (percent) of every task x resampler x arm x probe size in a table."""
    keys = ["task", "resampler", "arm", "layer", "probe_layers"]
    found = []
    for _, part in table.groupby(keys, sort=False, observed=True):
        (row,) = analysis.accuracy(part, keys).itertuples(index=False)
        about: dict[str, Any] = {key: getattr(row, key) for key in keys}
        about["probe_layers"] = int(about["probe_layers"])
        interval = metrics.Interval(row.value, row.low, row.high, row.n)
        found.append(under(origin, part).record(interval, None, "accuracy", **about))
    return found


def _only(table: pd.DataFrame, column: str) -> str:
    values: Sequence[Any] = table[column].unique().tolist()
    if len(values) != 1:
        raise ValueError(f"expected predictions of one {column}; got {values}")
    return str(values[0])
