import os
from pathlib import Path

import pytest
from tiny import make_task


@pytest.fixture
def binary_task(tmp_path):
    return make_task(tmp_path / "pictures")


@pytest.fixture
def box_task(tmp_path):
    return make_task(tmp_path / "pictures", "box")


@pytest.fixture(scope="session")
def real_data():
    folder = os.environ.get("SEEWHERE_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SEEWHERE_REAL_DATA does not point at a folder with the real files")
    return Path(folder)
