"""Records of the pixel claims: metric names, pairing, and verdicts that follow from them."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from colour_readers import Through
from matplotlib.figure import Figure
from seewhere import claims
from seewhere.models.chat_pixels import ChatPixelReader
from seewhere.pixels import arms, drawings, growth, printed, segmentation, verdicts
from seewhere.pixels import study as studies
from seewhere.pixels.history import ReconstructionHistory

ORIGIN = verdicts.Origin("quick", (0, 1), {"a": "hash"})
MASKS = verdicts.SegmentationOrigin("quick", (0, 1), {"a": "hash"})


@pytest.fixture(scope="module")
def study() -> studies.Study:
    found = studies.Study.start(studies.gather(["scenes", "textures"], {"scenes": 4, "textures": 3}, [0, 1]))
    for name, side in (("frozen", 8), ("adapted", 48), ("stage 3", 48)):
        found.ask(Through(side), name, progress=False)
    return found


def test_f17_is_one_ratio_per_evaluation_set(study: studies.Study) -> None:
    records = verdicts.ratios(study, "frozen", "adapted", ORIGIN)
    assert [(r["metric"], r["claim"], r["setting"]["data"]) for r in records] == [
        ("re_ratio", "F17", "scenes"),
        ("re_ratio", "F17", "textures"),
    ]
    assert all(r["value"] > 1.5 and r["low"] <= r["value"] <= r["high"] for r in records)
    assert all(r["notebook"] == "05_pixel_reconstruction" for r in records)
    same = verdicts.ratios(study, "adapted", "adapted", ORIGIN)
    assert claims.verdict("F17", same).verdict == claims.UNSEEN, "no effect is not the opposite of one"
    swapped = verdicts.ratios(study, "adapted", "frozen", ORIGIN)
    assert claims.verdict("F17", swapped).verdict == claims.CONTRADICTED
    assert (
        claims.measured(records[0]) == f"{records[0]['value']:.2f} [{records[0]['low']:.2f}, {records[0]['high']:.2f}]"
    )
    below = verdicts.against_baselines(study, ["adapted"], "blur 8x8", ORIGIN)
    assert all(r["high"] < 0 for r in below) and {r["claim"] for r in below} == {None}
    both = verdicts.errors(study, ["frozen"], ORIGIN)
    assert both[1]["value"] == pytest.approx(both[0]["value"] / 3)


def test_models_that_are_no_pair_judge_no_claim(study: studies.Study, capsys: pytest.CaptureFixture[str]) -> None:
    records = verdicts.ratios(study, "frozen", "adapted", ORIGIN)
    chat = object.__new__(ChatPixelReader)
    for given in (["", ""], ["mine", "mine too"]):
        assert verdicts.judged(records, given, [1, 2]) == records and not capsys.readouterr().out
    for given, models, reason in (
        (["", "mine"], [1, 2], "others the package's"),
        (["mine", "chat"], [1, chat], "asked as it is"),
    ):
        found = verdicts.judged(records, given, models)
        assert {r["claim"] for r in found} == {None} and [r["value"] for r in found] == [r["value"] for r in records]
        assert reason in capsys.readouterr().out
        assert claims.verdict("F17", found).verdict == claims.ABSENT


def test_f19_wants_drop_ratio_and_restored_tasks(study: studies.Study) -> None:
    rows = pd.DataFrame(
        [(m, t, i, float(i % 2 if m == "adapted" else 1)) for m in ("adapted", "stage 3") for t in ("refer", "caption")
         for i in range(20)], columns=["model", "task", "image_id", "score"],
    )  # fmt: skip
    records = verdicts.stages(study, {"1": "frozen", "2": "adapted", "3": "stage 3"}, ORIGIN)
    records += verdicts.restored(rows, "adapted", "stage 3", ORIGIN)
    assert {r["metric"] for r in records} == {"second_stage_drop", "third_stage_re_ratio", "third_stage_restored"}
    assert claims.verdict("F19", records).verdict == claims.REPRODUCED
    assert claims.verdict("F19", verdicts.stages(study, {"2": "adapted", "3": "stage 3"}, ORIGIN)).missing
    lost = verdicts.kept(rows, "stage 3", "adapted", ORIGIN)
    assert [round(r["value"]) for r in lost] == [-50, -50] and lost[0]["claim"] is None
    table = verdicts.forgetting_table(rows, ["stage 3", "adapted"])
    assert table.index.tolist() == ["stage 3", "adapted"] and table.refer["stage 3"] == "100.0 [100.0, 100.0]"


def history(stages: list[str], errors: list[float]) -> ReconstructionHistory:
    count = len(stages)
    seen = np.array([10 * (i + 1 - stages.index(s)) for i, s in enumerate(stages)])
    pictures = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    return ReconstructionHistory(
        np.arange(count), np.array(stages), seen, np.array(["a", "b"]), pictures,
        np.zeros((count, 2, 64, 64, 3), dtype=np.uint8), np.stack([errors, errors], axis=1),
    )  # fmt: skip


def test_the_drop_may_come_from_snapshots_taken_in_training() -> None:
    (record,) = verdicts.drop_of_history(history(["1", "1", "2", "2", "3"], [60, 40, 30, 12, 12]), ORIGIN)
    assert record["value"] == 28 and record["claim"] == "F19" and "held-out" in record["setting"]["data"]
    assert verdicts.drop_of_history(history(["frozen"], [3]), ORIGIN) == []


def test_questions_seen_are_counted_over_stages(capsys) -> None:
    found = growth.cumulative(history(["1", "1", "2", "2"], [1, 1, 1, 1]))
    assert found.questions.tolist() == [10, 20, 30, 40]
    assert growth.history_of("micro-pixels-stage2") == "micro-pixels"
    assert growth.history_of("micro-pixels-frozen") == "micro-pixels-frozen"
    assert growth.shipped({"x": "nowhere"}, ["x"]) == {}
    assert "x: no snapshots" in capsys.readouterr().out


def test_stages_end_where_their_second_parts_end() -> None:
    found = growth.ends(history(["1", "1", "2", "2-on", "3"], [60, 40, 30, 12, 11]))
    assert found.to_dict() == {"1": 40, "2": 12, "3": 11}


def test_f21_from_the_arms_asks_each_pair_that_differs_in_the_encoder_alone() -> None:
    constant = segmentation.ConstantBox.name
    lifts = {"both": 0.2, "pixels": 0.1, "adaptation": 0.08, "neither": 0.0, constant: 0.0}
    table = arm_table(lifts)
    better = table.expression_id % 2 == 0
    table["hit"] = (table.system.isin(["both", "adaptation"]) & better) | (
        (table.system == "neither") & (table.expression_id % 4 == 0)
    )
    records = [r for r in verdicts.arm_gains(table, MASKS) if r["claim"] == "F21"]
    found = {(r["metric"], r["setting"]["arm"], r["setting"]["over"]): round(r["value"]) for r in records}
    assert found == {
        ("referring_gain", "both", "pixels"): 50,
        ("referring_over_constant", "both", constant): 50,
        ("referring_gain", "adaptation", "neither"): 25,
        ("referring_over_constant", "adaptation", constant): 50,
    }
    assert claims.verdict("F21", records).verdict == claims.REPRODUCED
    assert records[0]["seeds"] == [0, 1, 2] and records[0]["n"] == 180
    others = verdicts.arm_gains(table, MASKS, boxes=None)
    assert len(others) == 9 and not any(r["claim"] == "F21" for r in others)
    with pytest.raises(ValueError, match="the same references under the same seeds"):
        segmentation.boxes_gain(table[table.system == "both"], table[(table.system == "pixels") & (table.seed < 2)])


def test_at_once_is_held_against_as_many_steps_in_stages() -> None:
    once = history(["at-once"] * 3, [90, 80, 70])  # after 0, 1 and 2 steps
    staged = replace(history(["1", "2", "2"], [60, 40, 30]), steps=np.array([1, 1, 5]))
    found = growth.at_equal_steps(once, staged)
    assert found.index.tolist() == [1, 2] and found["in stages"].tolist() == [60, 40]
    assert found["at once"].tolist() == [80, 70]


def arm_table(lifts: dict[str, float]) -> pd.DataFrame:
    random = np.random.default_rng(0)
    union = random.integers(200, 400, 60)
    base = union * random.uniform(0.3, 0.5, 60)
    return pd.DataFrame(
        [
            {"system": arm, "seed": seed, "data": "world", "box": "found", "expression_id": i, "image_id": i // 2,
             "intersection": base[i] + union[i] * (lift + 0.01 * seed), "union": union[i], "iou": 0.5, "hit": i % 3 > 0,
             "x1": 0.0, "area": 0.01 * (i % 10), "ceiling_intersection": 9, "ceiling_union": 10}
            for arm, lift in lifts.items() for seed in (0, 1, 2) for i in range(60)
        ]
    )  # fmt: skip


def test_f18_from_the_table_of_the_four_arms() -> None:
    table = arm_table({"both": 0.2, "pixels": 0.1, "adaptation": 0.08, "neither": 0.0})
    records = verdicts.arm_gains(table, MASKS)
    values = {r["metric"]: r["value"] for r in records if r["claim"] == "F18"}
    assert values == pytest.approx(
        {"gain_ciou": 20, "pixels_gain": 10, "adaptation_gain": 8, "over_pixels": 10, "over_adaptation": 12}
    )
    assert records[0]["seeds"] == [0, 1, 2] and records[0]["n"] == 180
    assert claims.verdict("F18", records).verdict == claims.REPRODUCED
    worse = verdicts.arm_gains(arm_table({"both": 0.1, "pixels": 0.1, "adaptation": 0.08, "neither": 0.0}), MASKS)
    assert claims.verdict("F18", worse).verdict != claims.REPRODUCED
    assert verdicts.arm_gains(arms.shipped("nowhere"), MASKS) == []
    assert len(drawings.arms_chart(table, arms.ARMS).axes) == 2
    constant = table[table.system == "neither"].assign(system=segmentation.ConstantBox.name)
    whole = pd.concat([table, constant])
    panels = drawings.arms_chart(pd.concat([whole, whole.assign(box="true")]), arms.ARMS).axes
    assert len(panels) == 3 and all(len(panel.patches) == 4 and panel.get_legend() for panel in panels)
    assert isinstance(drawings.hundreds_chart(table, size=50), Figure)
    assert isinstance(drawings.by_property(table, "area", [0.02, 0.06], ["small", "middling", "large"]), Figure)


def test_f21_and_the_live_comparison() -> None:
    table = arm_table({"adapted": 0.1, "frozen": 0.0})
    table.loc[table.system == "adapted", "hit"] = True
    records = verdicts.live_gains(table, "adapted", "frozen", MASKS)
    assert [r["metric"] for r in records] == ["gain_ciou_shipped", "referring_gain", "referring_gain"]
    assert records[0]["value"] == pytest.approx(10) and records[1]["value"] == pytest.approx(100 / 3)
    assert [r["claim"] for r in records] == [None, "F21", None]
    assert all(r["setting"]["training"] == "one run" for r in records)
    assert claims.verdict("F21", records).verdict == claims.UNSEEN, "more than frozen may still be next to nothing"
    table = arm_table({"adapted": 0.1, "frozen": 0.0, "constant box": 0.0})
    table.loc[table.system == "adapted", "hit"] = True
    table.loc[table.system == "constant box", "hit"] = False
    records = verdicts.live_gains(table, "adapted", "frozen", MASKS)
    over = [r for r in records if r["metric"] == "referring_over_constant"]
    assert [(r["claim"], r["value"]) for r in over] == [("F21", 100), (None, 100)]
    assert claims.verdict("F21", records).verdict == claims.REPRODUCED
    table.loc[table.system == "constant box", "hit"] = True
    assert claims.verdict("F21", verdicts.live_gains(table, "adapted", "frozen", MASKS)).verdict == claims.UNSEEN
    assert verdicts.live_gains(table, "adapted", "nobody", MASKS) == []
    longer = verdicts.live_gains(table, "adapted", "frozen", MASKS, claim=None)
    assert len(longer) == len(records) and all(r["claim"] is None for r in longer)
    assert {r["setting"]["system"] for r in verdicts.scores(table, MASKS)} == {"adapted", "frozen", "constant box"}


def test_what_boxes_and_pixels_cost_is_said_in_words() -> None:
    found = arm_table({"adapted": 0.1, "frozen": 0.0, "constant box": 0.2})
    table = pd.concat([found, found.assign(box="true")])
    told = verdicts.boxes_and_pixels_in_words(table, ["adapted"], "frozen")
    assert "true box, cIoU in percent: adapted" in told and "adapted minus frozen: +10.0" in told
    assert "does not pay yet" in told
    able = arm_table({"adapted": 0.3, "frozen": 0.0, "constant box": 0.2}).assign(box="true")
    assert "does not pay" not in verdicts.boxes_and_pixels_in_words(able, ["adapted"], "frozen")
    records = verdicts.live_gains(table, "adapted", "frozen", MASKS)
    boxes = {r["setting"]["box"]: r["value"] for r in records if r["metric"] == "gain_ciou_shipped"}
    assert boxes == pytest.approx({"found": 10, "true": 10})


def test_a_record_names_the_seeds_that_made_it() -> None:
    study = studies.Study.start(studies.gather(["scenes", "photographs"], {"scenes": 1, "photographs": 2}, [0, 1]))
    for name, side in (("frozen", 8), ("adapted", 48)):
        study.ask(Through(side), name, progress=False)
    made = [
        *verdicts.ratios(study, "frozen", "adapted", ORIGIN),
        *verdicts.errors(study, ["frozen"], ORIGIN),
        *verdicts.against_baselines(study, ["frozen"], "blur 8x8", ORIGIN),
        *verdicts.stages(study, {"1": "frozen", "2": "adapted", "3": "adapted"}, ORIGIN),
    ]
    for record in made:
        assert record["seeds"] == ([0, 1] if record["setting"]["data"] == "scenes" else [0])
        assert record["setting"]["training"] == "one run"
    assert verdicts.drop_of_history(history(["1", "2"], [60, 12]), ORIGIN)[0]["seeds"] == [0]


def test_what_was_forgotten_is_said_from_before_the_colours() -> None:
    shares = {"stage1": {"question": 0.8, "refer": 0.04, "caption": 0.5},
              "stage3": {"question": 0.5, "refer": 0.0, "caption": 0.49}}  # fmt: skip
    rows = pd.DataFrame(
        [(m, t, i, float(i < 100 * s)) for m, tasks in shares.items() for t, s in tasks.items() for i in range(100)],
        columns=["model", "task", "image_id", "score"],
    )
    records = verdicts.kept(rows, "stage1", "stage3", ORIGIN)
    assert {r["setting"]["task"]: round(r["value"]) for r in records} == {"question": -30, "refer": -4, "caption": -1}
    assert [r["setting"]["task"] for r in records if r["setting"].get("floor")] == ["refer"]
    assert all(r["seeds"] == [0] for r in records)
    told = verdicts.kept_in_words(records)
    assert "More than 3 points lost: question; beyond doubt: question" in told
    assert "Nothing to lose, as under 5 % before: refer" in told and "refer -" not in told
    assert "is not known" in verdicts.kept_in_words([])
    same = verdicts.kept_in_words(verdicts.kept(rows, "stage1", "stage1", ORIGIN))
    assert "More than 3 points lost: none." in same.replace(". Nothing", ".") and "beyond doubt" not in same


def test_records_of_the_arms_name_the_folder_they_came_from(tmp_path) -> None:
    table = arm_table({"both": 0.2, "neither": 0.0})
    table.to_csv(tmp_path / arms.TABLE, index=False)
    arms._check_same(tmp_path, {"settings": asdict(arms.ArmSettings()), "data": {}})
    records = verdicts.arm_gains(arms.shipped(tmp_path), MASKS, tmp_path)
    assert records[0]["weights"] == arms.shipped_hash(tmp_path) != arms.shipped_hash()
    assert records[0]["setting"]["training"] == arms.origin(tmp_path) != ""


def test_the_papers_tables_agree_with_themselves_and_with_the_ledger() -> None:
    seven = printed.table_7().set_index("arm")
    np.testing.assert_allclose(seven[list(printed.SPLITS)].mean(axis=1), seven["mean"], atol=0.02)
    listed = {(p.metric): p.value for p in claims.CLAIMS["F18"].printed if "RefCOCO" not in p.label}
    gains = {"gain_ciou": ("both", "neither"), "pixels_gain": ("pixels", "neither"), "over_pixels": ("both", "pixels"),
             "adaptation_gain": ("adaptation", "neither"), "over_adaptation": ("both", "adaptation")}  # fmt: skip
    for metric, (first, second) in gains.items():
        assert listed[metric] == pytest.approx(seven["mean"][first] - seven["mean"][second], abs=0.005)
    two, eight = printed.table_2().set_index("adapted encoder"), printed.table_8().set_index("stage")
    assert claims.CLAIMS["F17"].printed[0].value == pytest.approx(two.RE["no"] / two.RE["yes"], abs=0.01)
    assert claims.CLAIMS["F19"].printed[0].value == pytest.approx(eight.RE["1"] - eight.RE["2"], abs=0.005)
    assert claims.CLAIMS["F21"].printed[0].value == pytest.approx(two["average REC"].diff().iloc[1])
    assert printed.table_3().model.tolist() == ["MiniGPT-v2", "PAE-LaMM"]
    assert segmentation.HUNDRED == 100
