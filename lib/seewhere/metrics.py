"""Scores with their conventions named and their uncertainty attached.

Two published P@1 can differ by a point because one counts IoU > 0.5, the other >= 0.5, and a third adds a pixel to
every side; so the rule is an argument with a name. And a score without an interval says little: intervals come from a
bootstrap over items, or over clusters (all expressions of an image stand or fall together) when the clusters are
given, and over seeds when there are several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from seewhere.boxes import as_boxes

Rule = Literal["strict", "inclusive", "plus_one"]
RULES: dict[str, str] = {
    "strict": "IoU > 0.5 (LLM-wrapper)",
    "inclusive": "IoU >= 0.5",
    "plus_one": "IoU >= 0.5 on boxes one pixel wider and higher (x2 and y2 inclusive)",
}
_CHUNK_NUMBERS = 4_000_000  # numbers drawn at a time: 32 MB, whatever the size of the data set


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its bootstrap interval: `value` in [`low`, `high`], over `n` values."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"

    def scaled(self, factor: float) -> Interval:
        """The same interval in other units, such as points: ``scaled(100)``."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.value * factor, low, high, self.n)


def paired_iou(predicted: ArrayLike, target: ArrayLike, extra_pixel: bool = False) -> NDArray[np.float64]:
    """IoU of row i of `predicted` with row i of `target`, both (N, 4) xyxy pixels: (N,), NaN where a box is missing.

    Args:
        predicted: (N, 4) xyxy pixels; a row of NaN is a missing prediction.
        target: (N, 4) xyxy pixels.
        extra_pixel: take x2 and y2 as the last pixel *inside* the box, so every side is one longer.

    Raises:
        ValueError: different numbers of rows.
    """
    first, second = as_boxes(predicted), as_boxes(target)
    if len(first) != len(second):
        raise ValueError(f"Expected one prediction per target; got {len(first)} predictions and {len(second)} targets.")
    extra = 1.0 if extra_pixel else 0.0
    low, high = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    intersection = np.maximum(high - low + extra, 0).prod(axis=1)
    first_area, second_area = (np.maximum(box[:, 2:] - box[:, :2] + extra, 0).prod(axis=1) for box in (first, second))
    union = first_area + second_area - intersection
    return np.divide(intersection, union, out=np.where(np.isnan(union), np.nan, 0.0), where=union > 0)


def precision_at_1(predicted: ArrayLike, target: ArrayLike, rule: str = "strict") -> NDArray[np.bool_]:
    """Which predictions hit their target; the mean is P@1.

    Args:
        predicted: (N, 4) xyxy pixels, one box per expression; a row of NaN (no answer) is a miss.
        target: (N, 4) xyxy pixels.
        rule: ``strict`` IoU > 0.5 (LLM-wrapper's); ``inclusive`` IoU >= 0.5; ``plus_one`` IoU >= 0.5 with a pixel
            added to every side (the tools that count x2 and y2 as inside).

    Returns:
        (N,) bool.

    Raises:
        ValueError: unknown rule, different numbers of rows, or a target that is missing (NaN).
    """
    if rule not in RULES:
        raise ValueError(f"Unknown P@1 rule {rule!r}; known ones: {', '.join(RULES)}.")
    overlap = paired_iou(predicted, target, extra_pixel=rule == "plus_one")
    missing = int(np.isnan(as_boxes(target)).any(axis=1).sum())
    if missing:
        raise ValueError(f"{missing} of {len(overlap)} target boxes hold NaN: a target must be a box.")
    return overlap > 0.5 if rule == "strict" else overlap >= 0.5


def bootstrap_interval(
    values: ArrayLike, groups: Sequence | NDArray | None = None, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean of `values` with a percentile bootstrap interval.

    Args:
        values: (N,) numbers or bools, one per item.
        groups: (N,) cluster of each item, such as its image id: whole clusters are drawn. None: every item for itself.
        seed: of the draws; the same seed gives the same interval.
        samples: number of bootstrap samples.
        level: share of the samples inside the interval.

    Raises:
        ValueError: no values, a NaN among them, or `groups` of another length.
    """
    by_seed = {0: values}
    return pooled_interval(by_seed, None if groups is None else {0: groups}, seed, samples, level, resample_seeds=False)


def paired_interval(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence | NDArray | None = None,
    seed: int = 0,
    samples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean of ``a - b`` over the same items in the same order, with its bootstrap interval: is `a` better, and by how
    much?

    Arguments and errors as ``bootstrap_interval``; `a` and `b` must be of one length.
    """
    return bootstrap_interval(_difference(a, b), groups, seed, samples, level)


def _difference(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"Expected two equally long lists over the same items; got shapes {first.shape} and {second.shape}."
        )
    return first - second


def pool_seeds(values_by_seed: Mapping[int, ArrayLike]) -> NDArray[np.float64]:
    """Average each item over the seeds: {seed: (N,)} over the same items in the same order -> (N,).

    Raises:
        ValueError: no seeds, or lists of different lengths.
    """
    rows = [np.asarray(values, dtype=np.float64) for values in values_by_seed.values()]
    if not rows or any(row.shape != rows[0].shape or row.ndim != 1 for row in rows):
        shapes = {seed: np.shape(values) for seed, values in values_by_seed.items()}
        raise ValueError(f"Expected for every seed one value per item, the same items; got shapes {shapes}.")
    return np.mean(rows, axis=0)


def pooled_interval(
    values_by_seed: Mapping[int, ArrayLike],
    groups_by_seed: Mapping[int, Sequence | NDArray] | None = None,
    seed: int = 0,
    samples: int = 2000,
    level: float = 0.95,
    resample_seeds: bool = True,
) -> Interval:
    """Mean over items and seeds, with an interval that covers both: each bootstrap sample draws clusters *and* seeds.

    A cluster that occurs under several seeds (the same test image) is drawn for all of them at once, so three seeds on
    one test set do not pass for a test set three times as large. For a gain over a baseline, pass the per-item
    differences.

    Args:
        values_by_seed: seed -> (N_seed,) numbers or bools, one per item.
        groups_by_seed: seed -> (N_seed,) cluster of each item. None: item i is the same item under every seed.
        seed: of the draws.
        samples: number of bootstrap samples.
        level: share of the samples inside the interval.
        resample_seeds: False takes the seeds as given, so the interval covers the items only.

    Raises:
        ValueError: no values, a NaN among them, groups of another length, or, without groups, seeds of different
        lengths.
    """
    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"Expected 0 < level < 1 and samples >= 1; got level={level}, samples={samples}.")
    sums, counts = _cluster_totals(values_by_seed, groups_by_seed)
    random = np.random.default_rng(seed)
    seeds, clusters = sums.shape
    means = []
    per_chunk = max(1, _CHUNK_NUMBERS // clusters)
    for start in range(0, samples, per_chunk):
        rows = min(per_chunk, samples - start)
        seed_weights = (
            random.multinomial(seeds, np.full(seeds, 1 / seeds), size=rows)
            if resample_seeds
            else np.ones((rows, seeds))
        )
        weights = _draw_weights(random, clusters, rows)
        above = ((weights @ sums.T) * seed_weights).sum(axis=1)
        below = ((weights @ counts.T) * seed_weights).sum(axis=1)
        means.append(np.divide(above, below, out=np.full(rows, np.nan), where=below > 0))
    tail = (1 - level) / 2
    low, high = np.nanquantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()))


def _draw_weights(random: np.random.Generator, clusters: int, rows: int) -> NDArray[np.float64]:
    """How often each cluster is drawn in each of `rows` samples with replacement: (rows, clusters)."""
    drawn = random.integers(clusters, size=(rows, clusters)) + np.arange(rows)[:, None] * clusters
    return np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def _cluster_totals(
    values_by_seed: Mapping[int, ArrayLike], groups_by_seed: Mapping[int, Sequence | NDArray] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each cluster under each seed: two (seeds, clusters) arrays."""
    if not values_by_seed:
        raise ValueError("No seeds given: there is nothing to average.")
    values = {key: np.asarray(row, dtype=np.float64) for key, row in values_by_seed.items()}
    if groups_by_seed is None:
        pool_seeds(values)  # without groups the items must be the same under every seed: it refuses others
        groups_by_seed = {key: np.arange(len(row)) for key, row in values.items()}
    for key, row in values.items():
        if row.ndim != 1 or not len(row):
            raise ValueError(f"Expected a list of at least one value; got shape {row.shape} (seed {key}).")
        if np.isnan(row).any():
            raise ValueError(
                f"{int(np.isnan(row).sum())} of {len(row)} values are NaN: decide first what a missing value counts."
            )
        if key not in groups_by_seed or len(groups_by_seed[key]) != len(row):
            found = len(groups_by_seed[key]) if key in groups_by_seed else "none"
            raise ValueError(f"Expected one group per value: {len(row)} values, {found} groups (seed {key}).")
    codes, names = pd.factorize(np.concatenate([np.asarray(groups_by_seed[key]) for key in values]))
    seeds = np.repeat(np.arange(len(values)), [len(row) for row in values.values()])
    flat = seeds * len(names) + codes
    shape = (len(values), len(names))
    sums = np.bincount(flat, weights=np.concatenate(list(values.values())), minlength=shape[0] * shape[1])
    counts = np.bincount(flat, minlength=shape[0] * shape[1]).astype(np.float64)
    return sums.astype(np.float64).reshape(shape), counts.reshape(shape)


def ratio_interval(
    above: Mapping[int, ArrayLike],
    below: Mapping[int, ArrayLike],
    groups: Mapping[int, Sequence | NDArray] | None = None,
    minus: tuple[Mapping[int, ArrayLike], Mapping[int, ArrayLike]] | None = None,
    seed: int = 0,
    samples: int = 2000,
    level: float = 0.95,
    resample_seeds: bool = True,
) -> Interval:
    """Sum of `above` over sum of `below`, with an interval that draws clusters and seeds as ``pooled_interval`` does.

    cIoU is such a ratio (intersections over unions), and so is one mean over another ("three times lower").

    Args:
        above, below: seed -> (N_seed,) numbers over the same items in the same order.
        groups: seed -> (N_seed,) cluster of each item; None: item i is the same under every seed.
        minus: above and below of a second ratio, over the same items, to be subtracted: a paired gain.
        seed, samples, level, resample_seeds: as ``pooled_interval``.

    Raises:
        ValueError: as ``pooled_interval``; columns over other items; a sum of zero below.
    """
    columns = [above, below, *(minus or ())]
    if any({k: np.shape(v) for k, v in c.items()} != {k: np.shape(v) for k, v in above.items()} for c in columns):
        raise ValueError("Expected above and below to hold the same items under the same seeds.")
    sums = np.stack([_cluster_totals(column, groups)[0] for column in columns])
    _, seeds, clusters = sums.shape
    random = np.random.default_rng(seed)
    drawn = []
    per_chunk = max(1, _CHUNK_NUMBERS // clusters)
    for start in range(0, samples, per_chunk):
        rows = min(per_chunk, samples - start)
        by_seed = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=rows) if resample_seeds else None
        totals = _draw_weights(random, clusters, rows) @ sums.transpose(0, 2, 1)
        drawn.append((totals if by_seed is None else totals * by_seed).sum(axis=2))
    whole = sums.sum(axis=(1, 2))
    if (whole[1::2] <= 0).any():
        raise ValueError("A ratio needs a sum above zero below the line; got none.")
    values = _ratios(np.concatenate(drawn, axis=1))
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    count = sum(len(np.asarray(row)) for row in above.values())
    value = float(_ratios(whole[:, None])[0])
    return Interval(value, min(float(low), value), max(float(high), value), count)


def _ratios(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """First over second row (minus third over fourth), column by column; NaN where nothing is below the line."""
    found = np.divide(sums[::2], sums[1::2], out=np.full(sums[::2].shape, np.nan), where=sums[1::2] > 0)
    return found[0] - found[1] if len(found) > 1 else found[0]


def mask_overlap(predicted: ArrayLike, target: ArrayLike) -> tuple[int, int]:
    """Pixels in both masks and in either, of two (H, W) bool masks.

    Raises:
        ValueError: masks of different shapes.
    """
    first, second = np.asarray(predicted, dtype=bool), np.asarray(target, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"Expected two masks of one shape; got {first.shape} and {second.shape} (rows, columns).")
    return int((first & second).sum()), int((first | second).sum())


def cumulative_iou(intersections: ArrayLike, unions: ArrayLike) -> float:
    """cIoU: the sum of intersections over the sum of unions, (N,) pixels each, so that large objects weigh more.

    Raises:
        ValueError: different lengths, or a sum of unions of zero.
    """
    above, below = np.asarray(intersections, dtype=np.float64), np.asarray(unions, dtype=np.float64)
    if above.shape != below.shape or not below.sum() > 0:
        raise ValueError(f"Expected intersections and unions of the same masks; got {above.shape} and {below.shape}.")
    return float(above.sum() / below.sum())


def cumulative_iou_of_groups(
    intersections: ArrayLike, unions: ArrayLike, size: int = 100, seed: int = 0
) -> NDArray[np.float64]:
    """cIoU of disjoint random groups of `size` references: how far one such figure may lie from another.

    References that are left over are in no group; with fewer than `size` there is none.
    """
    above, below = np.asarray(intersections, dtype=np.float64), np.asarray(unions, dtype=np.float64)
    if above.shape != below.shape or above.ndim != 1 or size < 1:
        raise ValueError(f"Expected two lists of one length and size >= 1; got {above.shape}, {below.shape}, {size}.")
    count = len(above) // size
    order = np.random.default_rng(seed).permutation(len(above))[: count * size].reshape(count, size)
    return np.array([cumulative_iou(above[group], below[group]) for group in order])


def interval_by(
    frame: pd.DataFrame,
    value: str,
    by: str | list[str],
    cluster: str | None = None,
    seed: int = 0,
    samples: int = 2000,
    level: float = 0.95,
) -> pd.DataFrame:
    """Mean and interval of the column `value` for every group of `by`: a frame with the group columns, value, low,
    high, n.

    `cluster` names the column whose rows stand or fall together, such as the image id.
    """
    keys = [by] if isinstance(by, str) else list(by)
    rows = []
    for key, part in frame.groupby(keys, sort=True, observed=True):
        groups = None if cluster is None else part[cluster].to_numpy()
        found = bootstrap_interval(part[value].to_numpy(dtype=np.float64), groups, seed, samples, level)
        rows.append((*key, found.value, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "n"])
