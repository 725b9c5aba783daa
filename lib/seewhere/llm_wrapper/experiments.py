"""The paper's experiments as one table: ask every detector and every wrapper, then group.

Each function returns or reads the **predictions table**: one row per (expression, system) with the image, the phrase,
the target, the chosen box, its IoU, whether it hits (P@1, IoU strictly over 0.5), the status of the answer, and the
columns that the ablations group by: number of words, number of candidates, candidates that share the target's label.

A **system** is a detector alone, or a detector with a language model that reads its boxes; `system` gives its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from seewhere import metrics
from seewhere.llm_wrapper import prompts
from seewhere.llm_wrapper.examples import SMALLEST_IOU, right_candidate
from seewhere.llm_wrapper.wrapper import STATUSES, Answer, LLMWrapper
from seewhere.models import kept_candidates
from seewhere.models.candidates import Detections
from seewhere.models.protocols import Grounder
from seewhere.models.provenance import grounder_hash, is_address
from seewhere.records import Expression

ANNOTATIONS = "annotations"  # stands for a data set's own boxes in place of a detector
OWN, LABEL_MATCH, AT_RANDOM = "the detector's own choice", "label match", "at random"
FINE_TUNED, ZERO_SHOT, AS_SERVED = "fine-tuned", "zero-shot", "as served"
OPENED = 512  # expressions whose pictures are in memory together
SHOWN = {"micro": "micro-lm"}  # "micro" alone is a detector
WORD_BINS = [0, 3, 6, 10, 1000]
WORD_NAMES = ["1-3", "4-6", "7-10", "11+"]
CANDIDATE_BINS = [0, 1, 3, 5, 7, 1000]
CANDIDATE_NAMES = ["0-1", "2-3", "4-5", "6-7", "8+"]


def shown(llm: str) -> str:
    """Return a language model's name as tables and records write it."""
    return SHOWN.get(llm, llm)


def system(detector: str, llm: str = "", training: str = FINE_TUNED, free: bool = False) -> str:
    """Return the name of a system; without a language model it is the detector's own choice.

    Annotated boxes choose nothing, so their "own" answer is that of matching the phrase's words with the labels.
    """
    if not llm:
        return f"{detector}, {LABEL_MATCH}" if detector == ANNOTATIONS else detector
    untrained = "" if training == FINE_TUNED else f", {training}"
    return f"{detector} + {shown(llm)}{untrained}{', free text' if free else ''}"


def detect(grounder: Grounder, expressions: Sequence[Expression], keep: Path | None = None) -> list[Detections]:
    """Return the grounder's candidates for each expression.

    Pictures are opened for `OPENED` expressions at a time, each once: those of a training split would fill the memory.

    Args:
        grounder: a detector.
        expressions: what it is asked.
        keep: folder where the answers to so many expressions are kept as they come, and found again.
    """
    found: list[Detections] = []
    parts = range(0, len(expressions), OPENED)
    for start in tqdm(parts, desc="asking the detector", unit="part", disable=len(parts) < 2, leave=False):
        part = expressions[start : start + OPENED]
        place = keep / _part_name(grounder, part) if keep else None
        known = kept_candidates.read(place) if place else None
        if known is None:
            pictures = {e.image.image_id: e.image for e in part}
            opened = {number: image.open() for number, image in pictures.items()}
            known = grounder.ground([opened[e.image.image_id] for e in part], [e.text for e in part])
            if place:
                kept_candidates.write(place, known)
        found += known
    return found


def _part_name(grounder: Grounder, part: Sequence[Expression]) -> str:
    asked = f"{grounder.name} {grounder_hash(grounder)}"
    return kept_candidates.part_name(asked, [(e.image.image_id, e.text) for e in part])


def _row(expression: Expression, candidates: Detections, index: int, system: str, status: str) -> dict[str, Any]:
    box = candidates.xyxy[index] if index >= 0 else np.full(4, np.nan)
    labels = prompts.labels_of(candidates) if len(candidates) else []
    right, overlap = right_candidate(candidates, expression.region.box)
    return {
        "expression_id": expression.expression_id,
        "image_id": expression.image.image_id,
        "style": expression.style,
        "phrase": expression.text,
        "system": system,
        "index": index,
        "box": tuple(round(float(v), 2) for v in box),
        "target": expression.region.box,
        "hit": bool(metrics.precision_at_1(box[None], np.array([expression.region.box]))[0]),
        "reachable": overlap > SMALLEST_IOU,
        "status": status,
        "words": len(expression.text.split()),
        "candidates": len(candidates),
        # Of a target that no candidate covers nothing is known here: the nearest box may be anything.
        "same_label": labels.count(labels[right]) if overlap > SMALLEST_IOU else 0,
    }


def zero_shot(
    expressions: Sequence[Expression], candidates: Sequence[Detections], detector: str, how: str = ""
) -> pd.DataFrame:
    """Score the detector's own top boxes; `how` says what else they are, "at random"."""
    name = f"{detector}, {how}" if how else system(detector)
    own = LABEL_MATCH if detector == ANNOTATIONS else OWN
    rows = []
    for expression, found in zip(expressions, candidates, strict=True):
        top = int(found.metadata.get("top", -1))
        rows.append(_row(expression, found, top, name, "detector" if top >= 0 else "no candidate"))
    return pd.DataFrame(rows).assign(detector=detector, llm="", training=how or own, free=False)


def wrapped(
    wrapper: LLMWrapper,
    expressions: Sequence[Expression],
    candidates: Sequence[Detections],
    detector: str,
    llm: str,
    training: str = FINE_TUNED,
    free: bool = False,
) -> pd.DataFrame:
    """Score the wrapper's choices; with `free` by greedy text and the paper's parser."""
    name = system(detector, llm, training, free)
    ask = wrapper.answer_freely if free else wrapper.answer
    answers: list[Answer] = ask([e.image.size for e in expressions], [e.text for e in expressions], list(candidates))
    rows = []
    for expression, found, answer in zip(expressions, candidates, answers, strict=True):
        row = _row(expression, found, answer.index, name, answer.status)
        row["probability"] = float(answer.probabilities[answer.index]) if answer.index >= 0 else np.nan
        rows.append(row)
    known = AS_SERVED if is_address(llm) and training == FINE_TUNED else training
    return pd.DataFrame(rows).assign(detector=detector, llm=shown(llm), training=known, free=free)


def pooled(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of several data sets as one table; expression ids are made distinct."""
    named = [
        table.assign(expression_id=str(i) + "/" + table.expression_id.astype(str)) for i, table in enumerate(tables)
    ]
    return pd.concat(named, ignore_index=True)


def predictions(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return all rows of several data sets (name -> table) for keeping, with the data set's name and the groups."""
    return with_groups(pd.concat([table.assign(data=name) for name, table in tables.items()], ignore_index=True))


def gain(table: pd.DataFrame, system: str, baseline: str, seed: int = 0) -> metrics.Interval:
    """Return the difference in P@1 (points) of two systems, resampled by image.

    Both count on the expressions that `system` was asked: a large language model is asked about a part of them only.

    Raises:
        ValueError: a system is not in the table, or the baseline lacks an expression that the other was asked.
    """
    both = []
    for name in (system, baseline):
        part = table[table.system == name].sort_values("expression_id")
        if part.empty:
            raise ValueError(f"no rows for {name!r}; the table has {sorted(table.system.unique())}")
        both.append(part)
    first, second = both
    second = second[second.expression_id.isin(first.expression_id)]
    if list(first.expression_id) != list(second.expression_id):
        raise ValueError(f"{system!r} and {baseline!r} were asked different expressions; compare them on the same ones")
    return metrics.paired_interval(
        first.hit.to_numpy(float), second.hit.to_numpy(float), groups=first.image_id.to_numpy(), seed=seed
    ).scaled(100)


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return P@1 in percent with its interval, and the share of reachable targets, one row per system."""
    rows = []
    for _, part in table.groupby("system", sort=False):
        interval = metrics.bootstrap_interval(
            part.hit.to_numpy(float), groups=part.image_id.to_numpy(), seed=seed
        ).scaled(100)
        about = part.iloc[0]
        rows.append(
            {
                "detector": about.detector,
                "language model": about.llm or "-",
                "training": about.training + (", free text" if about.free else ""),
                "P@1": round(interval.value, 1),
                "low": round(interval.low, 1),
                "high": round(interval.high, 1),
                "n": len(part),
                "reachable": round(100 * part.reachable.mean(), 1),
            }
        )
    return pd.DataFrame(rows)


def with_groups(table: pd.DataFrame) -> pd.DataFrame:
    """Add the ablations' columns: text length, number of candidates, candidates that share the target's label.

    The last is empty where no candidate covers the target.
    """
    result = table.copy()
    result["text length"] = pd.cut(result.words, WORD_BINS, labels=WORD_NAMES)
    result["number of candidates"] = pd.cut(result.candidates, CANDIDATE_BINS, labels=CANDIDATE_NAMES)
    result["same label"] = result.same_label.clip(upper=4).map({1: "1", 2: "2", 3: "3", 4: "4+"})
    return result


def failure_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the share (percent) of each answer status, one row per system with a language model.

    Every status has its column, also those that never occurred.
    """
    return (
        table[(table.llm != "") & table.status.isin(STATUSES)]
        .groupby("system", sort=False)
        .status.value_counts(normalize=True)
        .mul(100)
        .round(2)
        .unstack(fill_value=0.0)
        .reindex(columns=list(STATUSES), fill_value=0.0)
    )
