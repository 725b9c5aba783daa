from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seewhere import results


def made(**changes: Any) -> results.Record:
    fields: dict[str, Any] = {
        "notebook": "02_llm_wrapper", "metric": "gain_p_at_1", "value": 5.0, "claim": "F6", "low": 1.0, "high": 9.0,
        "n": 10, "seeds": [0], "preset": "quick", "weights": {"micro": "abc"}, "setting": {"llm": "micro"},
    }  # fmt: skip
    return results.record(**(fields | changes))


def test_a_record_is_plain_json_and_comes_back_equal(tmp_path: Path) -> None:
    entry = made(value=np.float32(5.0), low=np.float64(1.0), n=np.int64(10), seeds=np.array([0, 1]))
    results.write(tmp_path / "results.json", [entry])
    assert results.read(tmp_path / "results.json") == [entry]
    assert entry["seeds"] == [0, 1] and type(entry["value"]) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": float("nan")}, "value: expected a finite number"),
        ({"low": 6.0}, "expected low <= value <= high"),
        ({"high": None}, "both or neither"),
        ({"claim": "F99"}, "'F99' is not one of F1, F2"),
        ({"n": -1}, "n: expected a count"),
        ({"metric": 3}, "metric: expected str, got 3"),
    ],
)
def test_wrong_records_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(results.RecordError, match=message):
        made(**changes)


def test_missing_and_unknown_fields_are_named() -> None:
    entry = made()
    del entry["n"]
    with pytest.raises(results.RecordError, match=r"list\[1\]: fields missing: n; unknown: count"):
        results.validate_all([made(), entry | {"count": 3}], "list")
    with pytest.raises(results.RecordError, match="expected a list of records, got dict"):
        results.validate_all({})


def test_nothing_is_written_when_one_record_is_wrong(tmp_path: Path) -> None:
    path = results.write(tmp_path / "results.json", [made()])
    with pytest.raises(results.RecordError):
        results.write(path, [made(), made() | {"value": "5"}])
    assert results.read(path) == [made()]


def test_a_notebook_that_ran_again_replaces_all_its_records() -> None:
    old = [made(value=2.0), made(value=3.0), made(notebook="03_locvlm", claim=None)]
    new = [made(value=4.0)]
    assert [(e["notebook"], e["value"]) for e in results.merge(old, new)] == [
        ("02_llm_wrapper", 4.0), ("03_locvlm", 5.0),
    ]  # fmt: skip


def test_an_absent_file_holds_no_records(tmp_path: Path) -> None:
    assert results.read(tmp_path / "nothing.json") == []


def test_selection() -> None:
    entries = [made(), made(claim="F11", metric="non_integer_rate", value=0.0, low=0.0, high=0.1)]
    assert results.select(entries, claim="F11") == entries[1:]
    assert results.select(entries, metric="gain_p_at_1") == entries[:1]


def test_ratios_and_correlations_are_told_with_two_decimals() -> None:
    assert [results.digits_of(name) for name in ("area_tau", "re_ratio", "gap", "non_integer_rate")] == [2, 2, 1, 1]
