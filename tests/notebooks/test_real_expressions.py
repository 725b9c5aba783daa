"""Notebook 02 on real referring expressions, with the annotated boxes as candidates; where the files are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from seewhere import results, runs

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_llm_wrapper.ipynb"


@pytest.mark.notebook
def test_the_documented_line_reads_both_data_sets_and_names_the_baseline(tmp_path: Path) -> None:
    folder = os.environ.get("SEEWHERE_REAL_DATA")
    if not folder:
        pytest.skip("SEEWHERE_REAL_DATA does not point at a folder with the real files")
    given = {
        "preset": "smoke",
        "data_root": folder,
        "names": "refcoco refcocog",
        "split": "all",
        "detectors": "annotations",
        "llm": "micro",
        "test_expressions": 100,
    }
    run = runs.execute(NOTEBOOK, given, tmp_path, progress=False)
    assert run.state == runs.DONE, run.error
    table = pd.read_csv(run.folder / "predictions.csv")
    assert set(table.data) == {"refcoco", "refcocog"}
    assert {"annotations, label match", "annotations, at random", "annotations + micro-lm"} <= set(table.system)
    assert table.reachable.all(), "the target is among the annotated boxes"
    found = results.read(run.folder / "results.json")
    assert {"F6", "F11"} <= {entry["claim"] for entry in found}
    assert not [e for e in found if e["claim"] == "F8" or e["metric"] == "gain_p_at_1_already_good"]
