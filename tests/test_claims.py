import json
from pathlib import Path
from typing import Any

import pytest
from seewhere import claims, cli, results


def gain(low: float | None, high: float | None, metric: str = "gain_p_at_1", claim: str = "F6") -> results.Record:
    value = 0.0 if low is None or high is None else (low + high) / 2
    return results.record(
        "02_llm_wrapper", metric, value, claim=claim, low=low, high=high, n=9, seeds=[0], preset="quick",
        setting={"llm": "micro"},
    )  # fmt: skip


def test_the_ledger_has_21_claims_in_order() -> None:
    assert list(claims.CLAIMS) == [f"F{number}" for number in range(1, 22)]
    assert all(claim.conditions and len(claim.text) > 20 for claim in claims.CLAIMS.values())


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], "not yet run"),
        ([(1, 5)], "reproduced"),
        ([(1, 5), (2, 8)], "reproduced"),
        ([(1, 5), (-1, 8)], "not at this scale"),
        ([(0, 5)], "not at this scale"),
        ([(None, None)], "not at this scale"),
        ([(1, 5), (-9, -2)], "contradicted"),
        ([(-9, 0)], "not at this scale"),
    ],
)
def test_verdicts_come_from_intervals(intervals: list[tuple[Any, Any]], expected: str) -> None:
    assert claims.verdict("F6", [gain(*interval) for interval in intervals]).verdict == expected


def test_one_stray_interval_among_many_refutes_nothing() -> None:
    stray = gain(-9, -0.5)
    assert claims.verdict("F6", [stray]).verdict == "contradicted"
    assert claims.verdict("F6", [stray] + 11 * [gain(1, 5)]).verdict == "not at this scale"
    assert claims.verdict("F6", [gain(-9, -5)] + 11 * [gain(1, 5)]).verdict == "contradicted"


def test_a_claim_that_points_down_is_judged_the_other_way() -> None:
    below = claims.Condition("tau", "below")
    assert below.judge(gain(-5, -1)) == "reproduced"
    assert below.judge(gain(1, 5)) == "contradicted"
    assert below.judge(gain(-5, 1)) == "not at this scale"


def test_half_the_printed_effect_is_not_its_opposite() -> None:
    threefold = claims.Condition("re_ratio", "above", 2.5, nothing=1.0)
    verdicts = [threefold.judge(gain(*around)) for around in ((2.6, 3), (1.5, 2), (0.8, 1.2), (0.5, 0.7))]
    assert verdicts == ["reproduced", "not at this scale", "not at this scale", "contradicted"]


def test_a_claim_on_several_tasks_needs_records_of_all() -> None:
    def gap(task: str) -> results.Record:
        return {**gain(20, 25, "gap", "F1"), "setting": {"task": task, "resampler": "micro-blip2"}}

    some = claims.verdict("F1", [gap("rec"), gap("vsr")])
    assert some.verdict == "not at this scale" and some.missing == ("gap on rcm",)
    assert "2 of 2 clear; no record of gap on rcm" in str(some)
    assert claims.verdict("F1", [gap(task) for task in ("rec", "vsr", "rcm")]).verdict == "reproduced"


def test_rates_may_touch_their_bound_but_not_cross_it() -> None:
    def rates(high: float) -> list[results.Record]:
        return [gain(0, high, name, "F11") for name in ("non_integer_rate", "out_of_range_rate")]

    assert claims.verdict("F11", rates(0.0)).verdict == "reproduced"
    assert claims.verdict("F11", rates(0.3)).verdict == "reproduced"
    assert claims.verdict("F11", rates(0.4)).verdict == "not at this scale"
    assert claims.verdict("F11", [gain(0.5, 2, "non_integer_rate", "F11")]).verdict == "contradicted"


def test_a_claim_with_several_metrics_needs_them_all() -> None:
    verdict = claims.verdict("F10", [gain(1, 5, "long_text_gain", "F10")])
    assert verdict.verdict == "not at this scale" and verdict.missing == ("many_candidates_gain", "same_label_gap")
    assert "no record of many_candidates_gain" in str(verdict)


def test_records_of_other_claims_and_metrics_do_not_count() -> None:
    others = [gain(1, 5, claim="F7"), gain(1, 5, metric="loss")]
    assert claims.verdict("F6", others).verdict == "not yet run"
    with pytest.raises(ValueError, match="no claim 'F0'"):
        claims.verdict("F0", [])


def test_printed_numbers_are_the_differences_of_the_printed_scores() -> None:
    printed = {(number.metric, number.label): number.value for number in claims.CLAIMS["F7"].printed}
    both = printed["ensemble_p_at_1", "both detectors, RefCOCOg val (P@1)"]
    better = printed["single_p_at_1", "Florence-2 alone, val (P@1)"]
    assert round(both - better, 2) == printed["ensemble_gain", "over the better single one, val"]
    assert max(number.value for number in claims.CLAIMS["F9"].printed) == 19.1


def test_the_command_prints_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results.write(tmp_path / "results.json", [gain(1, 5)])
    assert cli.main(["claims", "--json", "--notebook", "02", "--results", str(path)]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["claim"] for entry in entries] == ["F6", "F7", "F8", "F9", "F10", "F11"]
    assert entries[0]["verdict"] == "reproduced" and entries[0]["records"][0]["value"] == 3.0
    assert entries[1]["verdict"] == "not yet run"
    assert cli.main(["claims", "--results", str(path)]) == 0
    said = capsys.readouterr().out
    assert "reproduced (1 of 1 clear)" in said and "+18 points" in said and "+3.0 [1.0, 5.0]" in said
