"""The study's table, gains and records, on a small made data set whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seewhere import results
from seewhere.datasets import ReferringDataset
from seewhere.llm_wrapper import experiments, study, verdicts
from seewhere.llm_wrapper.wrapper import LLMWrapper
from seewhere.models.candidates import empty_candidates, make_candidates
from seewhere.records import Expression, ImageRecord, Region

ORIGIN = verdicts.Origin("smoke", (0,), {})


class Oracle:
    """A language model that answers with the index standing in the phrase."""

    name = "oracle"

    def choose(self, prompts: Sequence[list], options: Sequence[Sequence[str]]) -> list[np.ndarray]:
        phrases = [turn[0]["content"].rsplit('best matches "', 1)[1].split('"')[0] for turn in prompts]
        return [np.eye(len(o))[int(p.split()[-1])] for p, o in zip(phrases, options, strict=True)]

    def generate(self, prompts: Sequence[list], max_new_tokens: int = 16) -> list[str]:
        return ["no idea"] * len(prompts)


def made_study(count: int = 12) -> study.Study:
    image = [ImageRecord(i, Path(f"{i}.png"), 100, 100) for i in range(count)]
    boxes = np.array([[0, 0, 20, 20], [40, 40, 70, 70], [75, 0, 95, 30]], float)
    expressions = [
        Expression(i, image[i], Region(i, i, tuple(boxes[i % 3]), "dog", 18, None), f"dog number {i % 3}", "test")
        for i in range(count)
    ]
    found = [make_candidates(boxes, ["dog"] * 3, None, detector="first", top=0) for _ in range(count)]
    made = study.Study(_Data(), expressions, [0] * count, {"first": found, "second": found})  # type: ignore[arg-type]
    for name in ("first", "second"):
        made.add(experiments.zero_shot(expressions, found, name))
    return made


class _Data:
    name = "made"


def test_gain_of_an_oracle_is_what_the_detector_missed() -> None:
    made = made_study()
    made.ask(LLMWrapper(Oracle()), "first", "oracle")
    interval = experiments.gain(made.table, "first + oracle", "first")
    assert interval.value == pytest.approx(100 * 2 / 3)
    assert interval.low > 0 and interval.n == 12
    entries = verdicts.gains([made], ["first"], ["oracle"], "F6", "gain_p_at_1", ORIGIN)
    assert results.validate(entries[0])["setting"] == {"detector": "first", "llm": "oracle", "data": "made"}


def test_free_text_that_says_nothing_falls_back_and_is_counted() -> None:
    made = made_study()
    name = made.ask(LLMWrapper(Oracle()), "first", "oracle, free text", free=True)
    rates = {r["metric"]: r["value"] for r in verdicts.unusable(made.table, name, ORIGIN, answering="free text")}
    assert rates == {"non_integer_rate": 100.0, "out_of_range_rate": 0.0}
    assert experiments.gain(made.table, name, "first").value == 0
    assert experiments.failure_rates(made.table).loc[name, "no integer"] == 100


def test_joined_candidates_run_on_and_can_be_asked() -> None:
    made = made_study()
    joint = made.join("first", "second")
    assert len(made.candidates[joint][0]) == 6
    made.ask(LLMWrapper(Oracle()), joint, "oracle")
    made.ask(LLMWrapper(Oracle()), "first", "oracle")
    made.ask(LLMWrapper(Oracle()), "second", "oracle")
    record = verdicts.ensembling(made, ["first", "second"], ["oracle"], joint, ORIGIN)[0]
    assert record["value"] == 0 and record["metric"] == "ensemble_gain"


def test_a_miss_without_candidates_is_a_row_and_no_hit() -> None:
    expression = made_study(1).expressions[0]
    table = experiments.zero_shot([expression], [empty_candidates("first")], "first")
    assert not table.hit[0] and table.status[0] == "no candidate" and not table.reachable[0]


def test_systems_asked_different_things_are_not_compared() -> None:
    made = made_study()
    made.ask(LLMWrapper(Oracle()), "first", "oracle")
    with pytest.raises(ValueError, match="different expressions"):
        experiments.gain(made.table.iloc[1:], "first + oracle", "first")
    with pytest.raises(ValueError, match="no rows for"):
        experiments.gain(made.table, "third", "first")


def test_difference_of_groups_has_the_right_sign_and_width() -> None:
    random = np.random.default_rng(0)
    hit = np.concatenate([random.random(300) < 0.9, random.random(300) < 0.5])
    table = pd.DataFrame({"hit": hit, "image_id": np.arange(600)})
    first = pd.Series(np.arange(600) < 300)
    interval = verdicts.difference(table, first, ~first)
    assert interval is not None and 25 < interval.low < interval.value < interval.high < 55
    assert verdicts.difference(table, first & ~first, first) is None


def test_robustness_names_every_condition_it_has_rows_for() -> None:
    made = made_study()
    made.ask(LLMWrapper(Oracle()), "first", "oracle")
    found = verdicts.robustness([made.table.assign(words=9)], ["first"], ["oracle"], ORIGIN)
    assert {r["metric"] for r in found} == {"long_text_gain"}


def test_groups_of_the_ablations() -> None:
    made = made_study()
    grouped = experiments.with_groups(made.table)
    assert set(grouped["text length"]) == {"1-3"}
    assert set(grouped["number of candidates"]) == {"2-3"}
    assert set(grouped["same label"]) == {"3"}


def drawable(pictures: int, each: int) -> ReferringDataset:
    images = {i: ImageRecord(i, Path(f"{i}.png"), 100, 100) for i in range(pictures)}
    region = {i: Region(i, i, (0.0, 0.0, 20.0, 20.0), "dog", 18, None) for i in images}
    expressions = [
        Expression(each * i + j, images[i], region[i], f"dog {j}", "test") for i in images for j in range(each)
    ]
    return ReferringDataset("made", "test", Path("."), images, region, expressions, {18: "dog"}, "hash")


def test_seeds_draw_whole_pictures_and_never_the_same_one() -> None:
    expressions, drawn_by = study.draw_expressions(drawable(30, 4), 10, [0, 1])
    assert len(expressions) == 20 and drawn_by == [0] * 10 + [1] * 10
    assert len({e.expression_id for e in expressions}) == 20
    first = {e.image.image_id for e, seed in zip(expressions, drawn_by, strict=True) if seed == 0}
    assert len(first) == 3, "two whole pictures of four and half of a third"
    assert first.isdisjoint({e.image.image_id for e, seed in zip(expressions, drawn_by, strict=True) if seed == 1})
    again, _ = study.draw_expressions(drawable(30, 4), 10, [0, 1])
    assert [e.expression_id for e in again] == [e.expression_id for e in expressions]
    everything, _ = study.draw_expressions(drawable(3, 4), 500, [0, 1])
    assert len(everything) == 12


def test_each_seed_is_answered_by_its_own_wrapper() -> None:
    made = made_study(12)
    made.drawn_by = [0, 1] * 6

    class First(Oracle):
        def choose(self, prompts: Sequence[list], options: Sequence[Sequence[str]]) -> list[np.ndarray]:
            return [np.eye(len(o))[0] for o in options]

    made.ask({0: LLMWrapper(Oracle()), 1: LLMWrapper(First())}, "first", "two")
    rows = made.table[made.table.system == "first + two"]
    assert list(rows.expression_id) == list(range(12))
    assert list(rows["index"]) == [i % 3 if i % 2 == 0 else 0 for i in range(12)]


def test_gains_of_two_data_sets_count_together_even_with_equal_ids() -> None:
    made = [made_study(12), made_study(6)]
    for item in made:
        item.ask(LLMWrapper(Oracle()), "first", "oracle")
    record = verdicts.gains(made, ["first"], ["oracle"], "F6", "gain_p_at_1", ORIGIN)[0]
    assert record["n"] == 18 and record["setting"]["data"] == "made made"
    assert record["value"] == pytest.approx(100 * 2 / 3)
