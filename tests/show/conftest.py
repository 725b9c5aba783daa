"""Fixtures of the tests on figures and widgets."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_data import SmallDataset, make_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> SmallDataset:
    return make_dataset(tmp_path)
