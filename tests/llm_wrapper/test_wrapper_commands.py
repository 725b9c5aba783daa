"""The command that trains an adapter: what it leaves behind."""

from __future__ import annotations

import numpy as np
import pandas as pd
from seewhere.llm_wrapper.commands import thinned


def test_a_thinned_log_keeps_every_evaluation_and_means_of_the_loss() -> None:
    steps = pd.DataFrame({"step": range(1, 51), "loss": np.arange(50.0), "learning_rate": 0.1})
    looks = pd.DataFrame({"step": [20, 50], "validation_p_at_1": [0.25, 0.5]})
    log = thinned(pd.concat([steps, looks], ignore_index=True), every=20)
    assert list(log.step) == [20, 40, 50]
    assert list(log.loss) == [9.5, 29.5, 44.5]
    assert list(log.validation_p_at_1.fillna(-1)) == [0.25, -1, 0.5]
