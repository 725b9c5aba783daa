"""The set-up cell prints the conditions of a run and makes its random numbers repeatable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from seewhere.show import setup


def test_begin_prints_what_a_reader_must_know_and_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = []
    for _ in range(2):
        setup.begin("00_tour", "quick", 7, "2 minutes")
        drawn.append((np.random.random(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    text = capsys.readouterr().out
    for part in ("00_tour", "preset quick", "seed 7", "2 minutes", "device: ", f"torch {torch.__version__}"):
        assert part in text


def test_a_package_that_is_not_there_is_named_as_such() -> None:
    assert setup.versions(("no-such-package-here",))["no-such-package-here"] == "not installed"
