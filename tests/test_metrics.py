"""P@1 at its threshold, and intervals against theory and against a bootstrap written the slow way."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seewhere import boxes as bx
from seewhere import metrics

FULL = [[0, 0, 10, 10]]


def test_rules_at_exactly_one_half():
    half = [[0, 0, 10, 5]]  # 50 / 100
    assert bx.iou(half, FULL).item() == 0.5
    assert not metrics.precision_at_1(half, FULL, "strict")[0]
    assert metrics.precision_at_1(half, FULL, "inclusive")[0]
    assert metrics.precision_at_1(half, FULL)[0] == metrics.precision_at_1(half, FULL, "strict")[0]


def test_plus_one_at_exactly_one_half():
    # x2 and y2 inclusive: a 10 x 10 box is [0, 0, 9, 9]; half of it is [0, 0, 9, 4] = 10 x 5
    assert metrics.paired_iou([[0, 0, 9, 4]], [[0, 0, 9, 9]], extra_pixel=True)[0] == 0.5
    assert metrics.precision_at_1([[0, 0, 9, 4]], [[0, 0, 9, 9]], "plus_one")[0]
    assert not metrics.precision_at_1([[0, 0, 9, 4]], [[0, 0, 9, 9]], "inclusive")[0]  # 36 / 81
    assert not metrics.precision_at_1([[0, 0, 9, 3]], [[0, 0, 9, 9]], "plus_one")[0]


def test_rules_on_either_side_of_one_half():
    for rule in metrics.RULES:
        assert metrics.precision_at_1([[0, 0, 10, 5.2]], FULL, rule)[0]
        assert not metrics.precision_at_1([[0, 0, 10, 4.2]], FULL, rule)[0]


def test_a_missing_prediction_is_a_miss():
    predicted = [[np.nan] * 4, *FULL]
    for rule in metrics.RULES:
        assert metrics.precision_at_1(predicted, FULL * 2, rule).tolist() == [False, True]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"Unknown P@1 rule 'loose'.*strict"):
        metrics.precision_at_1(FULL, FULL, "loose")
    with pytest.raises(ValueError, match="1 predictions and 2 targets"):
        metrics.precision_at_1(FULL, FULL * 2)
    with pytest.raises(ValueError, match="1 of 2 target boxes hold NaN"):
        metrics.precision_at_1(FULL * 2, [[np.nan] * 4, *FULL])


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 8), max_size=6))
def test_paired_iou_is_the_diagonal_of_iou(rows):
    numbers = np.array(rows, dtype=float).reshape(-1, 8)
    a, b = numbers[:, :4], numbers[:, 4:]
    np.testing.assert_allclose(metrics.paired_iou(a, b), np.diag(bx.iou(a, b)) if len(a) else [])


def test_interval_of_a_mean_is_about_the_normal_one():
    values = np.random.default_rng(0).random(400) < 0.3
    found = metrics.bootstrap_interval(values, samples=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.value == values.mean() and found.n == 400
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        found = metrics.bootstrap_interval(random.random(60) < 0.5, seed=trial, samples=300)
        covered += found.low <= 0.5 <= found.high
    assert 0.89 <= covered / 300 <= 0.99


def test_clusters_that_move_together_widen_the_interval():
    values = np.repeat(np.random.default_rng(2).random(50) < 0.5, 8)
    images = np.repeat(np.arange(50), 8)
    alone, clustered = metrics.bootstrap_interval(values), metrics.bootstrap_interval(values, groups=images)
    assert alone.value == clustered.value
    ratio = (clustered.high - clustered.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(8), rel=0.15)  # 8 copies say no more than one


def test_clusters_against_a_bootstrap_written_out():
    random = np.random.default_rng(3)
    groups = random.integers(0, 30, 200)
    values = random.random(200) + groups / 30
    found = metrics.bootstrap_interval(values, groups=[f"image {group}" for group in groups], samples=4000)
    by_group = [values[groups == group] for group in np.unique(groups)]
    means = []
    for _ in range(4000):
        means.append(np.concatenate([by_group[i] for i in random.integers(0, len(by_group), len(by_group))]).mean())
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, [0.025, 0.975]), atol=0.02)


def test_same_seed_same_interval():
    values = np.random.default_rng(4).random(50)
    assert metrics.bootstrap_interval(values, seed=5) == metrics.bootstrap_interval(values, seed=5)
    assert metrics.bootstrap_interval(values, seed=5) != metrics.bootstrap_interval(values, seed=6)


def test_drawing_in_chunks_changes_no_law(monkeypatch):
    values = np.random.default_rng(4).random(100)
    whole = metrics.bootstrap_interval(values, samples=3000)
    monkeypatch.setattr(metrics, "_CHUNK_NUMBERS", 1000)
    pieces = metrics.bootstrap_interval(values, samples=3000)
    assert pieces.low == pytest.approx(whole.low, abs=0.01) and pieces.high == pytest.approx(whole.high, abs=0.01)


def test_paired_interval_removes_what_both_share():
    random = np.random.default_rng(6)
    easy = random.random(500)  # an item's own difficulty, shared by both systems
    a, b = easy + 0.05 + random.normal(0, 0.02, 500), easy
    paired = metrics.paired_interval(a, b)
    assert paired.value == pytest.approx(np.mean(a - b))
    assert 0 < paired.low < 0.05 < paired.high < 0.06
    reverse = metrics.paired_interval(b, a)
    assert (reverse.low, reverse.high) == pytest.approx((-paired.high, -paired.low), abs=0.002)


def test_paired_interval_with_clusters_and_hits():
    a, b = np.tile([True, True, False, True], 20), np.tile([True, False, False, False], 20)
    found = metrics.paired_interval(a, b, groups=np.repeat(np.arange(20), 4))
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 80)  # every image gains just half


def test_pooling_averages_items_over_seeds():
    np.testing.assert_array_equal(metrics.pool_seeds({0: [0, 1, 1], 1: [0, 0, 1]}), [0, 0.5, 1])
    with pytest.raises(ValueError, match="the same items"):
        metrics.pool_seeds({0: [0, 1], 1: [1]})
    with pytest.raises(ValueError, match="the same items"):
        metrics.pool_seeds({})


def test_seeds_on_one_test_set_are_no_larger_test_set():
    values = (np.random.default_rng(7).random(200) < 0.4).astype(float)
    one = metrics.bootstrap_interval(values)
    three = metrics.pooled_interval({seed: values for seed in range(3)})
    assert three.value == pytest.approx(one.value) and three.n == 600
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.1)


def test_seeds_that_disagree_widen_the_interval():
    values = {seed: np.full(100, mean) for seed, mean in enumerate((0.2, 0.5, 0.8))}
    drawn, fixed = metrics.pooled_interval(values), metrics.pooled_interval(values, resample_seeds=False)
    assert drawn.value == fixed.value == pytest.approx(0.5)
    assert drawn.high - drawn.low > 0.3
    assert fixed.high - fixed.low == pytest.approx(0, abs=1e-9)


def test_seeds_with_their_own_items_pool_by_group():
    values = {0: [1, 1, 0], 1: [1, 0]}
    found = metrics.pooled_interval(values, {0: ["a", "a", "b"], 1: ["a", "c"]})
    assert found.value == pytest.approx(3 / 5) and found.n == 5
    with pytest.raises(ValueError, match="the same items"):
        metrics.pooled_interval(values)


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        ([], None, "at least one value"),
        ([1.0, np.nan], None, "1 of 2 values are NaN"),
        ([1, 2], [1], "2 values, 1 groups"),
        ([[1, 2]], [0], "at least one value"),
    ],
)
def test_values_that_have_no_interval(values, groups, message):
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_interval(values, groups)


def test_levels_and_lengths_are_checked():
    with pytest.raises(ValueError, match="level=95"):
        metrics.bootstrap_interval([1, 2], level=95)
    with pytest.raises(ValueError, match="equally long"):
        metrics.paired_interval([1, 2], [1])


def test_interval_in_points_and_in_words():
    found = metrics.Interval(0.5, 0.25, 0.75, 8)
    assert found.scaled(100) == metrics.Interval(50, 25, 75, 8)
    assert found.scaled(-1) == metrics.Interval(-0.5, -0.75, -0.25, 8)
    assert str(found) == "0.500 [0.250, 0.750] (n=8)"


def test_interval_by_group_columns():
    frame = pd.DataFrame({"hit": [1, 1, 0, 0], "label": ["cat", "cat", "cat", "dog"], "image": [1, 1, 2, 3]})
    table = metrics.interval_by(frame, "hit", "label", cluster="image").set_index("label")
    assert table.loc["cat", "value"] == pytest.approx(2 / 3) and table.loc["dog", "high"] == 0
    assert table["n"].tolist() == [3, 1]
    assert list(metrics.interval_by(frame, "hit", ["label", "image"]).columns) == [
        "label",
        "image",
        "value",
        "low",
        "high",
        "n",
    ]


def test_cumulative_iou_weighs_large_masks_more():
    assert metrics.cumulative_iou([10, 0], [10, 90]) == 0.1
    assert metrics.cumulative_iou([90, 0], [90, 10]) == 0.9
    with pytest.raises(ValueError, match="same masks"):
        metrics.cumulative_iou([1], [1, 2])
    with pytest.raises(ValueError, match="same masks"):
        metrics.cumulative_iou([0], [0])


def test_mask_overlap_counts_pixels():
    first, second = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    first[:2], second[1:3] = True, True
    assert metrics.mask_overlap(first, second) == (5, 15)
    assert metrics.mask_overlap(np.zeros((2, 2)), np.zeros((2, 2))) == (0, 0)
    with pytest.raises(ValueError, match="one shape"):
        metrics.mask_overlap(first, second.T)


def test_groups_of_references_are_disjoint_and_whole():
    random = np.random.default_rng(0)
    unions = random.integers(1, 100, 250)
    found = metrics.cumulative_iou_of_groups(unions * 0.5, unions)
    assert found.tolist() == [0.5, 0.5]
    parts = metrics.cumulative_iou_of_groups(random.random(250) * unions, unions, 50)
    assert len(parts) == 5 and parts.std() > 0
    assert len(metrics.cumulative_iou_of_groups([1], [2])) == 0


def test_ratio_interval_against_a_bootstrap_written_the_slow_way():
    random = np.random.default_rng(1)
    below = random.uniform(1, 5, 40)
    above, groups = below * random.uniform(0.4, 0.8, 40), np.repeat(np.arange(20), 2)
    found = metrics.ratio_interval({0: above}, {0: below}, {0: groups}, resample_seeds=False)
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in random.integers(20, size=20)])
        drawn.append(above[rows].sum() / below[rows].sum())
    assert found.value == pytest.approx(above.sum() / below.sum()) and found.n == 40
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)


def test_a_paired_gain_of_ratios_is_tighter_than_an_unpaired_one():
    random = np.random.default_rng(2)
    below = random.uniform(50, 100, 60)
    worse = below * random.uniform(0.2, 0.9, 60)
    by_seed = {seed: worse for seed in range(3)}
    unions = dict.fromkeys(by_seed, below)
    better = {seed: worse + 0.05 * below for seed in by_seed}
    gain = metrics.ratio_interval(better, unions, minus=(by_seed, unions))
    assert gain.value == pytest.approx(0.05) and gain.high - gain.low < 1e-9
    alone = metrics.ratio_interval(better, unions)
    assert alone.high - alone.low > 0.05
    with pytest.raises(ValueError, match="same items"):
        metrics.ratio_interval(better, {0: below})
    with pytest.raises(ValueError, match="above zero"):
        metrics.ratio_interval({0: [1.0]}, {0: [0.0]})
