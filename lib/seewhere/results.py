"""The records that numbers live in: one form, checked, merged and written in one place.

A number that is shown anywhere (a README's table, a verdict, a scoreboard) is a record in ``notebooks/results.json``. A
record says what was measured, under which settings, over how many items and seeds, and from which weights, so a figure
without its conditions cannot be written down.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from seewhere import metrics, storage

Record = dict[str, Any]
FIELDS: dict[str, tuple[type, ...]] = {
    "notebook": (str,),
    "claim": (str, type(None)),
    "metric": (str,),
    "setting": (dict,),
    "value": (int, float),
    "low": (int, float, type(None)),
    "high": (int, float, type(None)),
    "n": (int,),
    "seeds": (list, tuple),
    "preset": (str,),
    "weights": (dict, list, tuple),
}


ABOUT_ALL = ("training", "asked")
"""Settings that say how a number came to be: kept with each, and told once beside a table of them."""


class RecordError(ValueError):
    """A record that lacks a field or holds a wrong one; the message says which and what was expected."""


def record(
    notebook: str,
    metric: str,
    value: float,
    *,
    claim: str | None = None,
    setting: Mapping[str, Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    n: int,
    seeds: Sequence[int],
    preset: str,
    weights: Mapping[str, str] | Sequence[str] = (),
) -> Record:
    """One checked record. `low` and `high` bound the 95 % interval; `weights` are hashes, by name or as a list.

    Raises:
        RecordError: a value of a wrong type, an interval that does not hold its value, or an unknown claim.
    """
    made = {
        "notebook": notebook,
        "claim": claim,
        "metric": metric,
        "setting": dict(setting or {}),
        "value": _number(value),
        "low": None if low is None else _number(low),
        "high": None if high is None else _number(high),
        "n": int(n),
        "seeds": [int(seed) for seed in seeds],
        "preset": preset,
        "weights": dict(weights) if isinstance(weights, Mapping) else list(weights),
    }
    return validate(made)


@dataclass(frozen=True)
class Origin:
    """What every record of a run has in common; a notebook's own class gives `notebook`.

    Attributes:
        preset, seeds, weights: as in `record`.
        training: how the weights came to be.
        asked: which prompt was put (`prompt_id`), and how boxes or places are written in it.
    """

    notebook: ClassVar[str] = ""

    preset: str
    seeds: tuple[int, ...]
    weights: Mapping[str, str]
    training: str = ""
    asked: str = ""

    def record(self, interval: metrics.Interval, claim: str | None, metric: str, **setting: Any) -> Record:
        """Return one record of an interval; training and question join the setting, where they are known."""
        common = {name: getattr(self, name) for name in ABOUT_ALL if getattr(self, name)}
        return record(
            self.notebook,
            metric,
            interval.value,
            claim=claim,
            setting={**setting, **common},
            low=interval.low,
            high=interval.high,
            n=interval.n,
            seeds=self.seeds,
            preset=self.preset,
            weights=self.weights,
        )


def prompt_id(*texts: str) -> str:
    """Return what identifies a prompt: eight hex digits of an example of it, so that a changed word changes it."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]


def _number(value: Any) -> float:
    """A plain Python number; numpy's are converted so that they can be compared and written."""
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)


def validate(entry: Mapping[str, Any], where: str = "record") -> Record:
    """The record itself if it is well formed.

    Raises:
        RecordError: what is wrong with it, `where` it stands, and what was expected.
    """
    from seewhere import claims  # claims reads records; this one look back is only for the list of names

    missing, surplus = FIELDS.keys() - entry.keys(), entry.keys() - FIELDS.keys()
    if missing or surplus:
        raise RecordError(
            f"{where}: fields missing: {', '.join(sorted(missing)) or 'none'}; "
            f"unknown: {', '.join(sorted(surplus)) or 'none'}. A record has exactly: {', '.join(FIELDS)}"
        )
    for field, types in FIELDS.items():
        if not isinstance(entry[field], types) or isinstance(entry[field], bool):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
            raise RecordError(f"{where}: {field}: expected {expected}, got {entry[field]!r}")
    if entry["claim"] is not None and entry["claim"] not in claims.CLAIMS:
        raise RecordError(f"{where}: claim: {entry['claim']!r} is not one of {', '.join(claims.CLAIMS)}")
    _check_interval(entry, where)
    return dict(entry)


def _check_interval(entry: Mapping[str, Any], where: str) -> None:
    value, low, high = entry["value"], entry["low"], entry["high"]
    if not math.isfinite(value):
        raise RecordError(f"{where}: value: expected a finite number, got {value!r}")
    if (low is None) != (high is None):
        raise RecordError(f"{where}: low and high: expected both or neither, got {low!r} and {high!r}")
    tolerance = 1e-9 * max(1.0, abs(value))
    if low is not None and not low - tolerance <= value <= high + tolerance:
        raise RecordError(f"{where}: expected low <= value <= high, got {low!r}, {value!r}, {high!r}")
    if entry["n"] < 0:
        raise RecordError(f"{where}: n: expected a count, got {entry['n']!r}")


def validate_all(entries: Any, where: str = "results") -> list[Record]:
    """All records of a list, checked.

    Raises:
        RecordError: not a list, or the first record that is not well formed.
    """
    if not isinstance(entries, (list, tuple)):
        raise RecordError(f"{where}: expected a list of records, got {type(entries).__name__}")
    return [validate(entry, f"{where}[{position}]") for position, entry in enumerate(entries)]


def read(path: Path | str) -> list[Record]:
    """Records of a results file; an absent file holds none.

    Raises:
        RecordError: a record in it is not well formed. ValueError: the file is not JSON.
    """
    target = Path(path)
    return validate_all(storage.read_json(target), str(target)) if target.exists() else []


def merge(old: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """Old records with those of the notebooks in `new` replaced as a whole, in order of notebook.

    A notebook that ran again says everything anew: keeping one of its earlier records would mix two runs.
    """
    fresh = list(new)
    rerun = {entry["notebook"] for entry in fresh}
    kept = [entry for entry in old if entry["notebook"] not in rerun]
    return sorted(kept + fresh, key=lambda entry: entry["notebook"])


def write(path: Path | str, entries: Iterable[Record]) -> Path:
    """Check all records and write them, wholly or not at all. Returns the path.

    Raises:
        RecordError: a record is not well formed; nothing is written.
    """
    return storage.atomic_write_json(path, validate_all(list(entries)))


def select(entries: Iterable[Record], claim: str | None = None, metric: str | None = None) -> list[Record]:
    """Records of one claim, one metric, or both."""
    return [
        entry
        for entry in entries
        if (claim is None or entry["claim"] == claim) and (metric is None or entry["metric"] == metric)
    ]


def digits_of(metric: str) -> int:
    """Decimals that a metric is told with: two for ratios and correlations, whose unit is one; one for points."""
    return 2 if metric.rpartition("_")[2] in ("ratio", "tau") else 1


def listing(records: Sequence[Record]) -> Any:
    """Return records as a table: what was measured, under which settings, the value and its interval."""
    import pandas as pd  # slow to import, and only notebooks show tables

    rows = []
    for record in records:
        setting = {key: value for key, value in record["setting"].items() if key not in ABOUT_ALL}
        digits = digits_of(record["metric"])
        measured = {name: round(record[name], digits) for name in ("value", "low", "high")}
        rows.append({"metric": record["metric"], **setting, **measured, "n": record["n"]})
    return pd.DataFrame(rows).fillna("")
