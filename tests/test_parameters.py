from collections.abc import Callable
from pathlib import Path

import pytest
from seewhere import parameters

CELL = """preset = "quick"  # which settings
seed = 0
rate = 0.5
llms = ["micro"]
root = None  # a folder
widgets = True"""


@pytest.fixture
def notebook(make_notebook: Callable[..., Path]) -> Path:
    return make_notebook("02_test", CELL)


def test_parameters_are_read_with_defaults_and_comments(notebook: Path) -> None:
    known = parameters.known_parameters(notebook)
    assert {name: entry.default for name, entry in known.items()} == {
        "preset": "quick", "seed": 0, "rate": 0.5, "llms": ["micro"], "root": None, "widgets": True,
    }  # fmt: skip
    assert known["preset"].help == "which settings"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("seed=3", 3), ("rate=1", 1.0), ("rate=1e-3", 0.001), ("preset=smoke", "smoke"), ("preset=3", "3"),
        ("llms=micro,smollm2", ["micro", "smollm2"]), ('llms=["a,b"]', ["a,b"]), ("llms=micro", ["micro"]),
        ("root=/data", "/data"), ("root=5", 5), ("widgets=false", False), ("widgets=True", True),
    ],
)  # fmt: skip
def test_values_get_the_types_of_the_defaults(notebook: Path, written: str, expected: object) -> None:
    (value,) = parameters.parse(notebook, [written]).values()
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("sede=3", "unknown parameter 'sede'"),
        ("seed=three", "seed: expected int like 0, got 'three'"),
        ("seed=1.5", "expected int"),
        ("seed=true", "expected int like 0, got True"),
        ("widgets=1", "expected bool"),
        ("llms=[1]", "items of llms: expected str"),
        ("rate=fast", "expected float"),
        ("seed", "expected name=value"),
    ],
)
def test_wrong_parameters_are_refused_with_the_known_ones(notebook: Path, written: str, message: str) -> None:
    with pytest.raises(parameters.ParameterError, match=message) as caught:
        parameters.parse(notebook, [written])
    if "items of" not in message:
        assert "seed = 0  (int)" in str(caught.value) and "# which settings" in str(caught.value)


def test_objects_are_checked_like_written_values(notebook: Path) -> None:
    assert parameters.check(notebook, {"rate": 1, "seed": 2}) == {"rate": 1.0, "seed": 2}
    with pytest.raises(parameters.ParameterError, match="seed: expected int"):
        parameters.check(notebook, {"seed": "2"})
    assert parameters.resolve(notebook, {"seed": 2})["seed"] == 2
    assert parameters.resolve(notebook, {})["preset"] == "quick"


def test_computed_defaults_are_refused(make_notebook: Callable[..., Path]) -> None:
    with pytest.raises(parameters.ParameterError, match="only literals"):
        parameters.known_parameters(make_notebook("03_test", "seed = 1 + len('a')"))
