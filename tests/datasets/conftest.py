"""Small copies of the data sets, and the real files where SEEWHERE_REAL_DATA points at them."""

import os
from pathlib import Path

import pytest
from small_copies import write_images, write_refer


@pytest.fixture
def refer_root(tmp_path):
    write_refer(tmp_path / "refcoco")
    write_images(tmp_path / "images" / "train2014")
    return tmp_path


@pytest.fixture(scope="session")
def real_data():
    folder = os.environ.get("SEEWHERE_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SEEWHERE_REAL_DATA does not point at a folder with the real files")
    return Path(folder)
