import pytest
from tiny import make_task


@pytest.fixture
def binary_task(tmp_path):
    return make_task(tmp_path / "pictures")


@pytest.fixture
def box_task(tmp_path):
    return make_task(tmp_path / "pictures", "box")
