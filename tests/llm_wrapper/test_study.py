"""The study's table, gains and records, on a small made data set whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seewhere import results
from seewhere.datasets import ReferringDataset
from seewhere.llm_wrapper import experiments, study, verdicts
from seewhere.llm_wrapper.wrapper import STATUSES, LLMWrapper
from seewhere.models.candidates import empty_candidates, make_candidates
from seewhere.records import Expression, ImageRecord, Region

ORIGIN = verdicts.Origin("smoke", (0,), {"oracle": "0ab1"}, "trained on nothing", "prompt 1, boxes in pixels")
ORIGINS = {"oracle": ORIGIN}


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
    made.hashes = {"first": "1", "second": "2"}
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
    entry = verdicts.gains([made], ["first"], ORIGINS, "F6", "gain_p_at_1")[0]
    told = {"detector": "first", "llm": "oracle", "data": "made", "training": "trained on nothing"}
    assert results.validate(entry)["setting"] == told | {"asked": "prompt 1, boxes in pixels"}
    assert entry["weights"] == {"oracle": "0ab1", "detector first": "1"}


def test_free_text_that_says_nothing_falls_back_and_is_counted() -> None:
    made = made_study()
    name = made.ask(LLMWrapper(Oracle()), "first", "oracle", free=True)
    assert name == "first + oracle, free text"
    found = verdicts.unusable([made], "oracle", ORIGIN, free=True)
    rates = {r["metric"]: r["value"] for r in found}
    assert {r["claim"] for r in found} == {"F11"} and {r["n"] for r in found} == {12}
    assert rates == {"non_integer_rate": 100.0, "out_of_range_rate": 0.0}
    assert experiments.gain(made.table, name, "first").value == 0
    rates = experiments.failure_rates(made.table)
    assert list(rates.index) == [name], "detectors alone give no answers"
    assert list(rates.columns) == list(STATUSES), "also those that never occurred"
    assert rates.loc[name, "no integer"] == 100 and rates.loc[name, "out of range"] == 0


def test_unusable_answers_are_counted_over_all_lists_that_were_asked_about() -> None:
    made = made_study()
    for detector in ("first", "second"):
        made.ask(LLMWrapper(Oracle()), detector, "oracle")
        made.ask(LLMWrapper(Oracle()), detector, "oracle", experiments.ZERO_SHOT, free=True)
    single = made_study(3)
    single.candidates["first"] = [found[np.array([0])] for found in single.candidates["first"]]
    single.ask(LLMWrapper(Oracle()), "first", "oracle")
    assert {r["n"] for r in verdicts.unusable([made, single], "oracle", ORIGIN)} == {24}, "no one asked about one box"
    before = verdicts.unusable([made], "oracle", ORIGIN, free=True, training=experiments.ZERO_SHOT)
    assert [(r["claim"], r["value"]) for r in before] == [(None, 100.0), (None, 0.0)]
    assert verdicts.unusable([made], "another", ORIGIN) == []


def test_joined_candidates_run_on_and_can_be_asked() -> None:
    made = made_study()
    joint = made.join("first", "second")
    assert len(made.candidates[joint][0]) == 6
    made.ask(LLMWrapper(Oracle()), joint, "oracle")
    made.ask(LLMWrapper(Oracle()), "first", "oracle")
    made.ask(LLMWrapper(Oracle()), "second", "oracle")
    record = verdicts.ensembling(made, ["first", "second"], joint, ORIGINS)[0]
    assert record["value"] == 0 and record["metric"] == "ensemble_gain"
    assert {"detector first", "detector second"} < record["weights"].keys()


class Sure(Oracle):
    """The oracle, with as much confidence as it is told; where it is not sure it errs."""

    def __init__(self, sure: Sequence[bool]) -> None:
        self.sure = list(sure)

    def choose(self, prompts: Sequence[list], options: Sequence[Sequence[str]]) -> list[np.ndarray]:
        right = super().choose(prompts, options)
        return [0.9 * p + 0.05 if sure else 0.4 * np.roll(p, 1) + 0.3 for p, sure in zip(right, self.sure, strict=True)]


def test_of_two_answers_the_surer_one_counts() -> None:
    made = made_study(6)
    made.ask(LLMWrapper(Sure([True, True, False, False, True, False])), "first", "oracle")
    made.ask(LLMWrapper(Sure([True, False, True, False, False])), "second", "oracle", most=5)
    name = made.surer("first", "second", "oracle")
    rows = made.table[made.table.system == experiments.system(name, "oracle")]
    assert {r["n"] for r in verdicts.unusable([made], "oracle", ORIGIN)} == {11}, "given once, not twice"
    assert list(experiments.failure_rates(made.table).index) == ["first + oracle", "second + oracle"]
    assert name == "first | second" and list(rows.expression_id) == [0, 1, 2, 3, 4]
    assert list(rows.hit) == [True, True, True, False, True]
    record = verdicts.ensembling(made, ["first", "second"], name, ORIGINS, None, "ensemble_gain_apart")[0]
    assert record["n"] == 5 and record["setting"]["better"] == "first" and record["claim"] is None
    assert record["value"] == pytest.approx(20)
    assert {"detector first", "detector second"} < record["weights"].keys()


def test_a_single_box_that_no_one_was_asked_about_is_not_sure() -> None:
    made = made_study(3)
    made.candidates["first"] = [found[np.array([2])] for found in made.candidates["first"]]
    for detector in ("first", "second"):
        made.ask(LLMWrapper(Oracle()), detector, "oracle")
    name = made.surer("first", "second", "oracle")
    assert made.table[made.table.detector == name].hit.all(), "the second list was asked about and is right"


def test_a_miss_without_candidates_is_a_row_and_no_hit() -> None:
    expression = made_study(1).expressions[0]
    table = experiments.zero_shot([expression], [empty_candidates("first")], "first")
    assert not table.hit[0] and table.status[0] == "no candidate" and not table.reachable[0]


def test_systems_asked_different_things_are_not_compared() -> None:
    made = made_study()
    made.ask(LLMWrapper(Oracle()), "first", "oracle")
    with pytest.raises(ValueError, match="different expressions"):
        experiments.gain(made.table.iloc[1:], "first + oracle", "first")  # the detector lacks one
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
    made.table = made.table.assign(words=9)
    found = verdicts.robustness([made], ["first"], ORIGINS)
    assert {r["metric"] for r in found} == {"long_text_gain"}
    assert found[0]["setting"]["data"] == "made"


def test_a_target_that_no_candidate_covers_counts_in_no_group_of_labels() -> None:
    made = made_study()
    first = made.expressions[0]
    missed = replace(first, region=replace(first.region, box=(22.0, 22.0, 38.0, 38.0)))
    row = experiments.zero_shot([missed], made.candidates["first"][:1], "first").iloc[0]
    assert not row.reachable and row.same_label == 0
    made.expressions[0] = missed
    made.ask(LLMWrapper(Oracle()), "first", "oracle")
    part = experiments.with_groups(made.table[made.table.system == "first + oracle"])
    assert part["same label"].isna().sum() == 1 and set(part["same label"].dropna()) == {"3"}
    # Two boxes of the label in the first six questions, three in the rest: the miss must not enter either side.
    made.table.loc[(made.table.expression_id < 6) & (made.table.same_label > 0), "same_label"] = 2
    gap = verdicts.robustness([made], ["first"], ORIGINS)
    assert [(r["metric"], r["n"], r["value"]) for r in gap] == [("same_label_gap", 11, 0.0)]


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
    record = verdicts.gains(made, ["first"], ORIGINS, "F6", "gain_p_at_1")[0]
    assert record["n"] == 18 and record["setting"]["data"] == "made"
    assert record["value"] == pytest.approx(100 * 2 / 3)


def test_a_model_asked_about_a_part_is_compared_on_that_part() -> None:
    made = made_study(12)
    made.drawn_by = [0] * 6 + [1] * 6
    made.ask(LLMWrapper(Oracle()), "first", "oracle", most=4)
    asked = made.table[made.table.system == "first + oracle"]
    assert list(asked.expression_id) == [0, 1, 2, 3, 6, 7, 8, 9], "the first of each seed"
    interval = experiments.gain(made.table, "first + oracle", "first")
    assert interval.n == 8 and interval.value == pytest.approx(100 * 4 / 8)


def test_the_gain_of_fine_tuning_is_over_the_same_model_before_it() -> None:
    class First(Oracle):
        def choose(self, prompts: Sequence[list], options: Sequence[Sequence[str]]) -> list[np.ndarray]:
            return [np.eye(len(o))[0] for o in options]

    made, other = made_study(12), made_study(12)
    for item in (made, other):
        item.ask(LLMWrapper(Oracle()), "first", "oracle")
    assert verdicts.over_zero_shot([made, other], ["first", "second"], ORIGINS) == []
    made.ask(LLMWrapper(First()), "first", "oracle", experiments.ZERO_SHOT, most=6)
    record = verdicts.over_zero_shot([made, other], ["first", "second"], ORIGINS)[0]
    assert (record["claim"], record["metric"], record["n"]) == (None, "gain_over_zero_shot_llm", 6)
    assert record["value"] == pytest.approx(100 * 2 / 3)


def test_a_table_names_detector_language_model_and_training() -> None:
    made = made_study()
    made.candidates["annotations"] = made.candidates["first"]
    made.add(experiments.zero_shot(made.expressions, made.candidates["annotations"], "annotations"))
    made.add(made.at_random("first", 0))
    made.ask(LLMWrapper(Oracle()), "first", "micro")
    made.ask(LLMWrapper(Oracle()), "first", "micro", experiments.ZERO_SHOT, free=True)
    shown = experiments.summary(made.table)
    assert list(map(tuple, shown.iloc[2:, :3].to_numpy())) == [
        ("annotations", "-", "label match"),
        ("first", "-", "at random"),
        ("first", "micro-lm", "fine-tuned"),
        ("first", "micro-lm", "zero-shot, free text"),
    ]
    assert set(made.estimates(detector="annotations")) == {"annotations, label match"}


def test_ours_stand_beside_the_papers_numbers() -> None:
    made = made_study()
    made.ask(LLMWrapper(Oracle()), "first", "oracle")
    table = verdicts.beside("F6", verdicts.gains([made], ["first"], ORIGINS, "F6", "gain_p_at_1"))
    printed = table[table[""] == "paper"]
    assert "+18.0" in set(printed.gain_p_at_1) and "+23.0" in set(printed.gain_p_at_1)
    assert list(table.iloc[-1])[:3] == ["here", "first, oracle, made", "+66.7"]


class Counting:
    """A detector that counts what it is asked, and dies at a call of one's choice."""

    name, endpoint = "counting", ""

    def __init__(self, weights: str, dies_at: int = 0) -> None:
        self.weights_hash, self.dies_at, self.calls, self.asked = weights, dies_at, 0, 0

    def ground(self, images: Sequence, phrases: Sequence[str]) -> list:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.asked += len(phrases)
        return [make_candidates([[0, 0, 9, len(p)]], [p], [0.5], self.name, 0) for p in phrases]


def test_a_detector_that_is_killed_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr(experiments, "OPENED", 4)
    data = drawable(5, 2)
    expressions = [
        replace(e, image=replace(e.image, path=tmp_path / f"{e.image.image_id}.png")) for e in data.expressions
    ]
    for expression in expressions:
        Image.new("RGB", (100, 100)).save(expression.image.path)
    keep = tmp_path / "kept"
    killed = Counting("w", dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        experiments.detect(killed, expressions, keep)
    again = Counting("w")
    found = experiments.detect(again, expressions, keep)
    assert (killed.asked, again.asked) == (4, 6), "the first four were kept"
    fresh = experiments.detect(Counting("w"), expressions)
    assert [d.data["label"].tolist() for d in found] == [d.data["label"].tolist() for d in fresh]
    assert all(np.array_equal(a.xyxy, b.xyxy) and a.metadata == b.metadata for a, b in zip(found, fresh, strict=True))
    third = Counting("w")
    experiments.detect(third, expressions, keep)
    other = Counting("other weights")
    experiments.detect(other, expressions, keep)
    assert (third.asked, other.asked) == (0, 10)
