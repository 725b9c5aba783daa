"""The ledger: what the four papers claim, what they printed, what came out here, and the verdict.

A verdict comes from intervals and nothing else. A claim names its metrics and the side of a bound on which
their whole intervals must lie. *Reproduced*: all settings are clear on the right side. *Contradicted*: one at least is
clear of no effect on the wrong side, with its interval widened for the number of settings. *Not at this scale*:
neither. *Not yet run*: there is no record.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seewhere import results
from seewhere.papers import ABSENT, CLAIMS, CONTRADICTED, REPRODUCED, UNSEEN, Claim, Condition, Printed

__all__ = [
    "ABSENT",
    "CLAIMS",
    "CONTRADICTED",
    "REPRODUCED",
    "UNSEEN",
    "Claim",
    "Condition",
    "Printed",
    "Verdict",
    "describe",
    "ledger",
    "measured",
    "register",
    "text",
    "verdict",
    "written",
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a claim stands: the verdict, in how many of its settings it is clear, and the metrics without a record."""

    claim: str
    verdict: str
    clear: int
    settings: int
    missing: tuple[str, ...]

    def __str__(self) -> str:
        if not self.settings:
            return self.verdict
        lacking = f"; no record of {', '.join(self.missing)}" if self.missing else ""
        return f"{self.verdict} ({self.clear} of {self.settings} clear{lacking})"


def verdict(number: str, records: Iterable[results.Record]) -> Verdict:
    """The verdict on claim `number` ("F6") from those of `records` that carry it.

    A claim with several metrics is reproduced only when each has at least one record, of every task that its condition
    names, and all records are clear.

    Raises:
        ValueError: no such claim.
    """
    if number not in CLAIMS:
        raise ValueError(f"no claim {number!r}; the claims are {', '.join(CLAIMS)}")
    own = results.select(records, claim=number)
    pairs = [
        (condition, entry)
        for condition in CLAIMS[number].conditions
        for entry in results.select(own, metric=condition.metric)
    ]
    judged = [condition.judge(entry, len(pairs)) for condition, entry in pairs]
    missing = tuple(lack for condition in CLAIMS[number].conditions for lack in _missing(condition, own))
    clear = judged.count(REPRODUCED)
    if not judged:
        word = ABSENT
    elif CONTRADICTED in judged:
        word = CONTRADICTED
    else:
        word = REPRODUCED if clear == len(judged) and not missing else UNSEEN
    return Verdict(number, word, clear, len(judged), missing)


def _missing(condition: Condition, records: Sequence[results.Record]) -> list[str]:
    """Return what a condition has no record of: its metric, or its metric on some tasks."""
    found = results.select(records, metric=condition.metric)
    tasks = {record["setting"].get("task") for record in found}
    lacking = [f"{condition.metric} on {task}" for task in condition.tasks if task not in tasks]
    return lacking if found else [condition.metric]


def ledger(records: Iterable[results.Record], notebook: str | None = None) -> list[dict[str, Any]]:
    """Every claim (of one notebook): printed numbers, records here and verdict, ready for JSON or a table."""
    entries = list(records)
    return [
        {
            "claim": claim.number,
            "paper": claim.paper,
            "notebook": claim.notebook,
            "text": claim.text,
            "conditions": [asdict(condition) for condition in claim.conditions],
            "printed": [asdict(number) for number in claim.printed],
            "records": results.select(entries, claim=claim.number),
            "verdict": verdict(claim.number, entries).verdict,
            "summary": str(verdict(claim.number, entries)),
        }
        for claim in CLAIMS.values()
        if notebook is None or claim.notebook == notebook or claim.notebook.split("_")[0] == notebook
    ]


def describe(record: results.Record) -> str:
    """One record as a line: metric, value with interval, n, seeds and what sets it apart from others of its run."""
    apart = {key: value for key, value in record["setting"].items() if key not in results.ABOUT_ALL}
    setting = ", ".join(f"{key}={value}" for key, value in apart.items())
    return f"{record['metric']} {measured(record)}, n={record['n']}, seeds={len(record['seeds'])}  {setting}"


def measured(record: results.Record) -> str:
    """Value and interval of a record: gains with their sign, ratios and rates without, rates with their percent."""
    kind = record["metric"].rpartition("_")[2]
    digits = results.digits_of(record["metric"])
    told = {"ratio": f"{record['value']:.2f}", "rate": f"{record['value']:.1f} %"}
    value = told.get(kind, f"{record['value']:+.{digits}f}")
    return value + ("" if record["low"] is None else f" [{record['low']:.{digits}f}, {record['high']:.{digits}f}]")


def written(value: float, unit: str) -> str:
    """A printed number as it stood: gains with their sign, shares with their percent sign, ratios without either."""
    return f"{value:g} {unit}" if unit in ("%", "times") else f"{value:+g} {unit}"


def text(entries: list[dict[str, Any]]) -> str:
    """The ledger for a terminal."""
    lines = []
    for entry in entries:
        lines.append(f"{entry['claim']:>4}  {entry['summary']}\n      {entry['text']}")
        lines += [
            f"        paper  {written(item['value'], item['unit'])}  {item['label']}" for item in entry["printed"]
        ]
        lines += [f"        here   {describe(item)}" for item in entry["records"]]
    return "\n".join(lines)


def register(subparsers: Any) -> None:
    """Add ``seewhere claims``."""
    parser = subparsers.add_parser("claims", help="the papers' claims, our numbers and the verdicts")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--notebook", help="only the claims of one notebook, such as 02")
    parser.add_argument("--results", type=Path, help="results file (default: results.json beside the notebooks)")
    parser.set_defaults(handler=main)


def main(arguments: argparse.Namespace) -> int:
    """Print the ledger."""
    from seewhere.runs import notebooks_folder

    path = arguments.results or notebooks_folder() / "results.json"
    entries = ledger(results.read(path), arguments.notebook)
    print(json.dumps(entries, indent=2, ensure_ascii=False) if arguments.json else text(entries))
    return 0
