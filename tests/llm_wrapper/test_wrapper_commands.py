"""The command that trains an adapter: what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from seewhere import storage
from seewhere.llm_wrapper.commands import joined, thinned


def test_a_thinned_log_keeps_every_evaluation_and_means_of_the_loss() -> None:
    steps = pd.DataFrame({"step": range(1, 51), "loss": np.arange(50.0), "learning_rate": 0.1})
    looks = pd.DataFrame({"step": [20, 50], "validation_p_at_1": [0.25, 0.5]})
    log = thinned(pd.concat([steps, looks], ignore_index=True), every=20)
    assert list(log.step) == [20, 40, 50]
    assert list(log.loss) == [9.5, 29.5, 44.5]
    assert list(log.validation_p_at_1.fillna(-1)) == [0.25, -1, 0.5]


def test_a_training_that_goes_on_keeps_the_stages_apart(tmp_path: Path) -> None:
    later = pd.DataFrame({"step": [20, 40], "loss": [2.0, 1.0], "stage": "micro"})
    assert joined(None, later).equals(later) and joined(tmp_path, later).equals(later)
    pd.DataFrame({"step": [20, 30], "loss": [4.0, 3.0]}).to_csv(tmp_path / "history.csv", index=False)
    storage.atomic_write_json(tmp_path / "wrapper.json", {"trained_on": [{"boxes": "scenes", "questions": 9}]})
    log = joined(tmp_path, later)
    assert list(log.step) == [20, 30, 50, 70]
    assert list(log.stage) == ["scenes", "scenes", "micro", "micro"]
