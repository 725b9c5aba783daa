"""What the paper reads out of the scores: gaps, groups, rank correlations, agreement between people.

Everything here works on the predictions table (`controls.predictions`), one row per example, arm and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from seewhere import metrics


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Kendall's tau-b with its interval and p-value over `groups` groups.

    The interval comes from drawing the groups, and the images within each, anew; `p` is of the null hypothesis that the
    two orders are independent.
    """

    value: float
    low: float
    high: float
    p: float
    groups: int

    def interval(self) -> metrics.Interval:
        """The same as an interval; its n is the number of groups."""
        return metrics.Interval(self.value, self.low, self.high, self.groups)


def accuracy(table: pd.DataFrame, by: str | list[str], seed: int = 0) -> pd.DataFrame:
    """Return the share of right answers in percent per group, with intervals over images *and* seeds.

    Columns: those of `by`, value, low, high, n. Several seeds are pooled; each image is drawn for all of them at once.
    """
    keys = [by] if isinstance(by, str) else list(by)
    rows = []
    for group, part in table.groupby(keys, sort=False, observed=True):
        found = _pooled(part, seed).scaled(100)
        rows.append((*group, found.value, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "n"])


def _pooled(table: pd.DataFrame, seed: int) -> metrics.Interval:
    values, groups = {}, {}
    for number, part in _by_seed(table):
        values[number], groups[number] = part.correct.to_numpy(float), part.image_id.to_numpy()
    return metrics.pooled_interval(values, groups, seed)


def _by_seed(table: pd.DataFrame) -> list[tuple[int, pd.DataFrame]]:
    if "seed" not in table:
        return [(0, table)]
    return [(int(number), part) for number, part in table.groupby("seed")]


def gap(first: pd.DataFrame, second: pd.DataFrame, seed: int = 0) -> metrics.Interval:
    """Return the difference in right answers, `first` minus `second`, in points, on the same examples and seeds.

    The interval covers images and seeds.

    Raises:
        ValueError: the two were asked different examples, or have different seeds.
    """
    parts = [dict(_by_seed(table)) for table in (first, second)]
    if parts[0].keys() != parts[1].keys():
        raise ValueError(f"expected the same seeds on both sides; got {sorted(parts[0])} and {sorted(parts[1])}")
    values, groups = {}, {}
    for number in parts[0]:
        one, other = (part[number].sort_values("example_id") for part in parts)
        if one.example_id.tolist() != other.example_id.tolist():
            raise ValueError("the two were asked different examples; compare them on the same ones")
        values[number] = one.correct.to_numpy(float) - other.correct.to_numpy(float)
        groups[number] = one.image_id.to_numpy()
    return metrics.pooled_interval(values, groups, seed).scaled(100)


def over_constant(table: pd.DataFrame, constant: pd.DataFrame, seed: int = 0) -> metrics.Interval:
    """Return the gap between a probe with several seeds and one control without any, in points."""
    copies = [constant.assign(seed=number) for number, _ in _by_seed(table)]
    return gap(table if "seed" in table else table.assign(seed=0), pd.concat(copies, ignore_index=True), seed)


# -- groups against each other -----------------------------------------------------------------------------------------


def group_difference(table: pd.DataFrame, column: str, first: str, second: str, seed: int = 0) -> metrics.Interval:
    """Return the accuracy of the group `first` of a column minus that of `second`, in points.

    The groups are different questions, so they are not paired: images are drawn anew for both together, with seeds.

    Raises:
        ValueError: a group without rows.
    """
    for name in (first, second):
        if not (table[column] == name).any():
            raise ValueError(f"no rows with {column} = {name!r}; there are {sorted(table[column].unique())}")
    part = table[table[column].isin([first, second])]
    images = pd.factorize(part.image_id)[0]
    seeds = pd.factorize(part["seed"] if "seed" in part else pd.Series(0, part.index))[0]
    random, right = np.random.default_rng(seed), part.correct.to_numpy(float)
    count, kinds = int(images.max()) + 1, int(seeds.max()) + 1
    means = []
    weights = random.multinomial(count, np.full(count, 1 / count), size=2000)[:, images]
    weights = weights * random.multinomial(kinds, np.full(kinds, 1 / kinds), size=2000)[:, seeds]
    for name in (first, second):
        chosen = weights * (part[column] == name).to_numpy(float)
        means.append((chosen * right).sum(1) / np.maximum(chosen.sum(1), 1))
    low, high = 100 * np.quantile(means[0] - means[1], [0.025, 0.975])
    value = 100 * (right[(part[column] == first).to_numpy()].mean() - right[(part[column] == second).to_numpy()].mean())
    return metrics.Interval(value, min(float(low), value), max(float(high), value), len(part))


def by_super_category(table: pd.DataFrame, train_counts: Mapping[str, int], fewest: int = 1) -> pd.DataFrame:
    """Return one row per super-category: score (percent), train_count, area, distance (means over test examples), n.

    Args:
        table: predictions on boxes.
        train_counts: super-category -> number of training examples.
        fewest: super-categories with fewer test examples are left out.
    """
    kept = table[table.super_category != ""]
    found = kept.groupby("super_category").agg(
        score=("correct", "mean"), area=("area", "mean"), distance=("distance", "mean"), n=("example_id", "nunique")
    )
    found["score"] *= 100
    found["train_count"] = [int(train_counts.get(str(name), 0)) for name in found.index]
    return found[found.n >= fewest].reset_index()


def rank_correlation(
    table: pd.DataFrame,
    column: str,
    train_counts: Mapping[str, int] | None = None,
    seed: int = 0,
    samples: int = 500,
    fewest: int = 1,
) -> RankCorrelation:
    """Return Kendall's tau-b between the super-categories' scores and a property of theirs (paper: table 5).

    Args:
        table: predictions on boxes, of one arm; several seeds are averaged.
        column: "area", "distance" or "train_count".
        train_counts: super-category -> number of training examples; needed for "train_count".
        seed: of the bootstrap.
        samples: of the bootstrap: super-categories are drawn anew, and the images of each.
        fewest: super-categories with fewer test examples are left out.

    Raises:
        ValueError: unknown column, or fewer than three super-categories.
    """
    if column not in ("area", "distance", "train_count"):
        raise ValueError(f"unknown property {column!r}; expected area, distance or train_count")
    counts = train_counts or {}
    groups = by_super_category(table, counts, fewest)
    if len(groups) < 3:
        raise ValueError(
            f"a rank correlation over {len(groups)} super-categories says nothing; expected at least three"
        )
    tau = stats.kendalltau(groups.score, groups[column])
    parts = {str(name): _by_image(part) for name, part in table.groupby("super_category")}
    random, names = np.random.default_rng(seed), [str(name) for name in groups.super_category]
    found = []
    for _ in range(samples):
        rows = []
        for name in random.choice(names, size=len(names)):
            sums = parts[name]
            drawn = sums[random.integers(len(sums), size=len(sums))].sum(axis=0)
            third = counts.get(name, 0) if column == "train_count" else drawn[2 if column == "area" else 3] / drawn[0]
            rows.append((drawn[1] / drawn[0], third))
        value = stats.kendalltau(*zip(*rows, strict=True)).statistic
        if np.isfinite(value):
            found.append(value)
    low, high = np.quantile(found, [0.025, 0.975]) if found else (-1.0, 1.0)
    value = float(tau.statistic)
    return RankCorrelation(value, min(float(low), value), max(float(high), value), float(tau.pvalue), len(groups))


def _by_image(part: pd.DataFrame) -> NDArray[np.float64]:
    """Sums over each image of a super-category: (images, 4) = count, right, area, distance."""
    frame = part.assign(count=1.0)[["image_id", "count", "correct", "area", "distance"]].astype({"correct": float})
    return frame.groupby("image_id").sum().to_numpy(dtype=np.float64)


# -- people ------------------------------------------------------------------------------------------------------------


def fleiss_kappa(ratings: ArrayLike) -> float:
    """Return Fleiss' kappa (1971) of N items, each rated by the same number of raters into K categories.

    Args:
        ratings: (N, K) counts: how many raters put item i into category k; every row sums to the number of raters.

    Returns:
        1 for perfect agreement, 0 for what chance gives, below 0 for less. 1 also where all raters used one category
        for everything.

    Raises:
        ValueError: no items, fewer than two raters, or rows with different sums.
    """
    counts = np.asarray(ratings, dtype=np.float64)
    if counts.ndim != 2 or not len(counts):
        raise ValueError(f"expected counts (items, categories); got an array of shape {counts.shape}")
    raters = counts.sum(axis=1)
    if raters[0] < 2 or (raters != raters[0]).any():
        found = sorted({int(value) for value in raters})
        raise ValueError(f"expected every item rated by the same two or more raters; got {found} ratings per item")
    count = raters[0]
    observed = ((counts**2).sum(axis=1) - count).mean() / (count * (count - 1))
    expected = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    return 1.0 if expected == 1 else float((observed - expected) / (1 - expected))


def rating_counts(
    answers: Sequence[Mapping[str, Any]], categories: Sequence[str]
) -> tuple[NDArray[np.int64], list[Any]]:
    """Return counts (N, K) for `fleiss_kappa`, over the items that every annotator rated, and those items.

    Args:
        answers: dictionaries with annotator, item and category.
        categories: the K names, in the order of the columns.

    Raises:
        ValueError: a category that is not among them.
    """
    frame = pd.DataFrame(list(answers), columns=["annotator", "item", "category"])
    unknown = sorted(set(frame.category) - set(categories))
    if unknown:
        raise ValueError(f"unknown category {unknown[0]!r}; expected one of {', '.join(categories)}")
    frame = frame.drop_duplicates(["annotator", "item"], keep="last")
    everyone = frame.annotator.nunique()
    complete = frame.groupby("item").filter(lambda part: len(part) == everyone)
    if complete.empty:
        return np.zeros((0, len(categories)), dtype=np.int64), []
    counts = pd.crosstab(complete["item"], complete["category"]).reindex(columns=list(categories), fill_value=0)
    return counts.to_numpy(dtype=np.int64), counts.index.tolist()
