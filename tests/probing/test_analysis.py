"""Agreement, rank correlation and gaps against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from seewhere.probing import analysis, controls, verdicts
from seewhere.probing.tasks import Task

# -- Fleiss' kappa -----------------------------------------------------------------------------------------------------


def test_kappa_of_fleiss_own_example():
    """Fleiss (1971) as worked through in textbooks: 10 items, 14 raters, 5 categories; kappa 0.210."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert round(analysis.fleiss_kappa(counts), 3) == 0.210


def test_kappa_by_hand():
    # Two raters, four items: three agreements of four; both categories used half the time: (3/4 - 1/2) / (1 - 1/2).
    assert analysis.fleiss_kappa([[2, 0], [0, 2], [2, 0], [1, 1]]) == pytest.approx((0.75 - 0.53125) / (1 - 0.53125))
    assert analysis.fleiss_kappa([[2, 0], [0, 2]]) == 1.0
    assert analysis.fleiss_kappa([[3, 0], [3, 0]]) == 1.0
    assert analysis.fleiss_kappa([[1, 1], [1, 1]]) == -1.0  # two raters who never agree


def test_kappa_refuses_what_it_is_not_defined_for():
    with pytest.raises(ValueError, match=r"same two or more raters; got \[2, 3\]"):
        analysis.fleiss_kappa([[2, 0], [3, 0]])
    with pytest.raises(ValueError, match="counts"):
        analysis.fleiss_kappa([])
    with pytest.raises(ValueError, match=r"got \[1\]"):
        analysis.fleiss_kappa([[1, 0]])


def test_counts_take_items_that_all_rated_and_the_last_answer():
    answers = [
        {"annotator": a, "item": i, "category": c}
        for a, i, c in [("x", 1, "yes"), ("y", 1, "no"), ("x", 2, "yes"), ("x", 1, "no"), ("y", 3, "no")]
    ]
    counts, items = analysis.rating_counts(answers, ["yes", "no"])
    assert items == [1] and counts.tolist() == [[0, 2]]
    with pytest.raises(ValueError, match="unknown category 'maybe'"):
        analysis.rating_counts([{"annotator": "x", "item": 1, "category": "maybe"}], ["yes"])
    assert analysis.rating_counts([], ["yes"])[0].shape == (0, 1)


# -- tables ------------------------------------------------------------------------------------------------------------


def table(shares, per=20, seeds=(0,), **columns):
    """Predictions on boxes: super-category -> (share right, area, distance), every example on its own picture."""
    rows = []
    for seed in seeds:
        for place, (name, (share, area, distance)) in enumerate(shares.items()):
            for k in range(per):
                number = 1000 * place + k
                rows.append(
                    {"example_id": number, "image_id": str(number), "super_category": name, "area": area,
                     "distance": distance, "correct": k < share * per, "seed": seed, **columns}
                )  # fmt: skip
    return pd.DataFrame(rows)


SHARES = {"a": (0.1, 0.1, 0.9), "b": (0.3, 0.2, 0.7), "c": (0.5, 0.3, 0.8), "d": (0.9, 0.4, 0.1)}


def test_tau_by_hand():
    counts = {"a": 10, "b": 10, "c": 30, "d": 20}
    frame = table(SHARES)
    assert analysis.rank_correlation(frame, "area").value == 1.0
    # distances fall but for one pair (b, c): 5 pairs against the order, 1 with it.
    assert analysis.rank_correlation(frame, "distance").value == pytest.approx(-4 / 6)
    # counts: concordant ac ad bc bd, discordant cd, tie ab: tau-b = (4 - 1) / sqrt(6 * 5).
    tau = analysis.rank_correlation(frame, "train_count", counts)
    assert tau.value == pytest.approx(3 / np.sqrt(30)) and tau.groups == 4
    assert tau.low <= tau.value <= tau.high
    found = analysis.by_super_category(frame, counts)
    assert found.score.tolist() == [10, 30, 50, 90] and found.n.tolist() == [20] * 4


def test_tau_of_four_groups_is_no_proof_and_of_twelve_it_is():
    few = analysis.rank_correlation(table(SHARES), "distance")
    assert few.low < -0.9 and few.high > 0 and few.p > 0.05
    many = {chr(97 + k): (k / 12, 0.01 * k, 1 - k / 12) for k in range(12)}
    clear = analysis.rank_correlation(table(many, per=48), "area")
    assert clear.value == pytest.approx(1) and clear.low > 0.5 and clear.p < 0.001
    with pytest.raises(ValueError, match="over 2 super-categories"):
        analysis.rank_correlation(table({k: SHARES[k] for k in "ab"}), "area")
    with pytest.raises(ValueError, match="unknown property 'colour'"):
        analysis.rank_correlation(table(SHARES), "colour")


def test_gaps_pair_examples_and_pool_seeds():
    first, second = table({"a": (0.9, 1, 1)}, 40, (0, 1)), table({"a": (0.5, 1, 1)}, 40, (0, 1))
    found = analysis.gap(first, second)
    assert found.value == pytest.approx(40) and found.low > 20 and found.n == 80
    with pytest.raises(ValueError, match="different examples"):
        analysis.gap(first, second.assign(example_id=lambda t: t.example_id + 1))
    with pytest.raises(ValueError, match="same seeds"):
        analysis.gap(first, second[second.seed == 0])
    constant = second[second.seed == 0].drop(columns="seed")
    assert analysis.over_constant(first, constant).value == pytest.approx(40)


def test_accuracy_by_group_counts_each_image_once():
    one = analysis.accuracy(table(SHARES), "super_category")
    three = analysis.accuracy(table(SHARES, seeds=(0, 1, 2)), "super_category")
    assert one.value.tolist() == pytest.approx([10, 30, 50, 90]) == three.value.tolist()
    # The same predictions three times do not narrow the interval.
    assert np.allclose(one.high - one.low, three.high - three.low, atol=4)


def test_differences_between_groups():
    frame = pd.concat([table({"a": (0.9, 1, 1)}).assign(category="Topological"),
                       table({"b": (0.4, 1, 1)}).assign(category="Directional")], ignore_index=True)  # fmt: skip
    frame["image_id"] = range(len(frame))
    found = analysis.group_difference(frame, "category", "Topological", "Directional")
    assert found.value == pytest.approx(50) and 15 < found.low < 50 < found.high < 80
    with pytest.raises(ValueError, match="no rows with category = 'Orientation'"):
        analysis.group_difference(frame, "category", "Orientation", "Directional")


# -- records -----------------------------------------------------------------------------------------------------------

ORIGIN = verdicts.Origin("smoke", (0, 1), {"tiny": "abc"})


def arm(task, name, share, arm, layer="late", layers=1, seeds=(0, 1)):
    return table(
        {"a": (share, 0.1, 0.1)}, 30, seeds, task=task, resampler=name, arm=arm, layer=layer, probe_layers=layers
    )


def test_f1_has_a_gap_per_task_and_resampler():
    both = [
        arm(t, r, s, a)
        for t in ("rec", "vsr", "rcm")
        for r in ("x", "y")
        for a, s in (("frozen", 0.3), ("unfrozen", 0.8))
    ]
    found = verdicts.gaps(pd.concat([*both, arm("rec", "z", 0.5, "frozen")]), ORIGIN)
    assert [(r["setting"]["task"], r["setting"]["resampler"]) for r in found] == [
        (t, r) for t in ("rec", "vsr", "rcm") for r in ("x", "y")
    ]
    assert all(r["metric"] == "gap" and r["claim"] == "F1" and r["value"] == pytest.approx(50) for r in found)
    from seewhere import claims

    assert claims.verdict("F1", found).verdict == "reproduced"


def test_f2_to_f5_are_judged_by_their_intervals():
    from seewhere import claims

    layers = pd.concat([arm("vsr", "x", s, "frozen", n) for n, s in (("0", 0.4), ("1", 0.5), ("2", 0.9))])
    found = verdicts.earlier_layers(layers, "2", ORIGIN)
    assert len(found) == 2 and claims.verdict("F2", found).verdict == "reproduced"
    found = []
    for task in ("rec", "vsr", "rcm"):
        assert claims.verdict("F3", found).verdict != "reproduced", "it speaks of three tasks"
        bigger = pd.concat([arm(task, "x", 0.3 + n / 100, "frozen", layers=n) for n in (1, 2, 4)])
        found += verdicts.bigger_probes(bigger, arm(task, "x", 0.9, "unfrozen"), ORIGIN)
    assert [r["setting"]["probe_layers"] for r in found] == [2, 4] * 3
    assert claims.verdict("F3", found).verdict == "reproduced"
    many = {chr(97 + k): (k / 12, 0.01 * k, 1 - k / 12) for k in range(12)}
    boxes = table(many, 48, task="rec", resampler="x", arm="frozen")
    found = verdicts.correlations(boxes, {name: 3 + k for k, name in enumerate(many)}, ORIGIN)
    assert [r["metric"] for r in found] == ["area_tau", "distance_tau", "train_count_tau"]
    assert claims.verdict("F4", found).verdict == "reproduced" and found[2]["claim"] is None
    assert len(verdicts.correlations(boxes, dict.fromkeys(many, 3), ORIGIN)) == 2  # nothing to order by
    kinds = pd.concat([arm("vsr", "x", 0.9, "frozen").assign(category="Topological"),
                       arm("vsr", "x", 0.4, "frozen").assign(category="Directional", image_id="1")])  # fmt: skip
    kinds["image_id"] = np.arange(len(kinds)) % 60
    found = verdicts.relation_kinds(kinds, ORIGIN)
    assert claims.verdict("F5", found).verdict == "reproduced" and found[0]["value"] == pytest.approx(50)
    with pytest.raises(ValueError, match="no rows with layer='9'"):
        verdicts.earlier_layers(layers, "9", ORIGIN)


def test_controls_and_accuracies_become_records_too():
    probes, constant = arm("vsr", "x", 0.8, "frozen"), arm("vsr", "majority", 0.5, "control", seeds=(0,))
    (found,) = verdicts.over_controls(probes, constant, ORIGIN)
    about = {"task": "vsr", "resampler": "x", "arm": "frozen", "control": "majority", "asked": ORIGIN.asked}
    assert found["setting"] == {**about, "training": "frozen only"} and found["low"] > 0
    (found,) = verdicts.accuracies(probes, ORIGIN)
    assert found["value"] == pytest.approx(80) and found["setting"]["probe_layers"] == 1


# -- controls ----------------------------------------------------------------------------------------------------------


def test_the_constant_answers(binary_task, box_task):
    label = binary_task.targets("train").mean() >= 0.5
    frame = controls.predictions(binary_task, controls.majority(binary_task))
    assert set(frame.prediction) == {int(label)}
    assert frame.correct.mean() == (binary_task.targets("test") == label).mean()
    boxes = controls.predictions(box_task, controls.majority(box_task))
    assert boxes.prediction.nunique() == 1 and boxes.score.between(0, 1).all()
    first, second = (controls.at_random(box_task, seed=s) for s in (0, 0))
    assert np.array_equal(first, second) and not np.array_equal(first, controls.at_random(box_task, seed=1))


def test_predictions_tell_box_and_iou(box_task):
    target = box_task.targets("test")
    frame = controls.predictions(box_task, target, resampler="oracle")
    assert frame.correct.all() and np.allclose(frame.score, 1, atol=1e-4) and set(frame.resampler) == {"oracle"}
    moved = target.copy()
    moved[:, 0] += target[:, 2] / 2  # half a width aside: IoU one third
    frame = controls.predictions(box_task, moved)
    assert not frame.correct.any() and np.allclose(frame.score, 1 / 3, atol=1e-4)
    with pytest.raises(ValueError, match="expected 24 outputs, got 23"):
        controls.predictions(box_task, target[:23])


def test_text_only_never_looks(binary_task):
    examples = binary_task.splits["test"][:4]
    images = [e.picture.open() for e in examples]
    text = controls.TextOnly(width=64)
    same = text.features(images, ["a b"] * 4)["words"]
    assert same.shape == (4, 1, 64) and np.allclose(np.linalg.norm(same, axis=2), 1)
    assert not np.allclose(text.features(images, ["a b", "b a", "c", ""])["words"][0], same[1] * 0)


def test_text_only_finds_a_leak(binary_task, home):
    """Where the text tells the answer, the control says so."""
    from dataclasses import replace

    from seewhere.probing.experiments import frozen_arm
    from seewhere.probing.training import ProbeSettings

    leak = {s: [replace(e, text=f"it is {'so' if e.target[0] else 'otherwise'}") for e in examples]
            for s, examples in binary_task.splits.items()}  # fmt: skip
    task = Task("vsr", "binary", "leak", leak)
    settings = ProbeSettings(learning_rate=1e-2, epochs=20, batch=16, standardise=True)
    assert frozen_arm(task, controls.TextOnly(64), settings, progress=False).table.correct.all()


class Oracle:
    """Answers yes where the text says left."""

    name = "oracle"

    def choose(self, images, prompts, options):
        assert all(tuple(o) == ("yes", "no") for o in options)
        return [np.array([0.9, 0.1]) if "left" in p else np.array([0.2, 0.8]) for p in prompts]


class Matching:
    name = "matching"

    def match(self, images, statements):
        return np.array([0.9 if "left" in s else 0.2 for s in statements])


@pytest.mark.parametrize("model", [Oracle(), Matching()])
def test_the_whole_model_is_asked_directly(model, binary_task):
    examples = binary_task.splits["test"]
    odds = controls.asked_directly(model, examples, batch=5)
    left = np.array(["left" in e.text for e in examples])
    assert odds.shape == (24, 1)
    assert np.allclose(odds[left], np.log(9)) and np.allclose(odds[~left], np.log(0.25))
