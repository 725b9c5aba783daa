"""Snapshots that were taken while the shipped models were trained, ready to be laid side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from seewhere.pixels.history import ReconstructionHistory, load_history


def cumulative(history: ReconstructionHistory) -> ReconstructionHistory:
    """The same with `questions` counted over all stages so far, and all parts of a stage under one name.

    In a history as it is written each part counts its own from zero.
    """
    seen = np.asarray(history.questions, dtype=np.int64)
    begins = np.flatnonzero(np.asarray(history.stages)[1:] != np.asarray(history.stages)[:-1]) + 1
    found = seen.copy()
    for begin in begins:
        found[begin:] += seen[begin - 1]
    return replace(history, questions=found, stages=np.array(history.whole_stages()))


def ends(history: ReconstructionHistory) -> pd.Series:
    """RE after each stage, mean of the watched pictures: stage -> RE."""
    return pd.Series(np.asarray(history.errors).mean(axis=1)).groupby(history.whole_stages(), sort=False).last()


def at_equal_steps(at_once: ReconstructionHistory, staged: ReconstructionHistory) -> pd.DataFrame:
    """RE of the watched pictures after as many steps at once as in stages, where both have a snapshot.

    Returns:
        A row for each number of steps in all: mean RE "at once" and "in stages".
    """
    before, rows = 0, []
    stages, steps = np.asarray(staged.stages), np.asarray(staged.steps)
    for place, step in enumerate(steps):
        if place and stages[place] != stages[place - 1]:
            before += int(steps[place - 1])
        same = np.flatnonzero(np.asarray(at_once.steps) == before + int(step))
        if len(same):
            rows.append((before + int(step), at_once.errors[same[0]].mean(), staged.errors[place].mean()))
    return pd.DataFrame(rows, columns=["steps", "at once", "in stages"]).set_index("steps")


def shipped(sources: Mapping[str, str], names: Sequence[str]) -> dict[str, ReconstructionHistory]:
    """Name -> history of those of the models that come with one; the others are left out and named.

    Args:
        sources: name -> model, as `readers.load` takes it.
        names: which of them.
    """
    found = {}
    for name in names:
        try:
            found[name] = cumulative(load_history(history_of(sources[name])))
        except FileNotFoundError as error:
            print(f"{name}: no snapshots of its training ({error})")
    return found


def history_of(source: str) -> str:
    """The history that a shipped model is part of: stages 1 to 3 are one, and the frozen baseline has its own."""
    return "micro-pixels" if source.startswith("micro-pixels-stage") else source
