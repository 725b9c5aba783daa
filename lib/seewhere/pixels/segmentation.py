"""Referring segmentation as the paper does it: a box for the phrase first, then every pixel inside the box.

"Pixel" is a cell of the grid on which a model can be asked (64 x 64). A mask is compared at the picture's own
resolution, so the grid sets a ceiling; it is reported beside every score (`Reference.ceiling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from seewhere import boxes, metrics
from seewhere.datasets import ReferringDataset
from seewhere.models.pixel_points import cells_within, centres_of, spread
from seewhere.records import DataError, Expression
from seewhere.show.masking import mask_at
from seewhere.show.regions import decode_mask

GRID = 64
THRESHOLD = 0.5
HUNDRED = 100
"""References per split in the paper."""


class Segmenter(Protocol):
    """A model that finds boxes and says which points belong to what a phrase names."""

    name: str

    def find_boxes(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> NDArray:
        """(N, 4) pixels xyxy of each picture; not-a-number where an answer held no box."""

    def read_mask(self, image: Image.Image, phrase: str, points: NDArray) -> NDArray:
        """(N,) probability of each point (N, 2), pixels."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """What a model says about a phrase: `box` (4,) pixels xyxy, NaN for none; `probabilities` (grid, grid), NaN where
    not asked.
    """

    box: NDArray
    probabilities: NDArray


def segment(
    model: Segmenter, image: Image.Image, phrase: str, box: NDArray | None = None, grid: int = GRID
) -> Segmentation:
    """Find the box (unless one is given), then ask every cell inside it."""
    found = np.asarray(model.find_boxes([image], [phrase])[0] if box is None else box, dtype=np.float64)
    values = np.full((grid, grid), np.nan)
    try:
        cells = cells_within(tuple(found), image.size, grid)
    except ValueError:  # no box, or one outside of the picture: there is nothing to ask
        return Segmentation(np.full(4, np.nan), values)
    values[cells[:, 1], cells[:, 0]] = model.read_mask(image, phrase, centres_of(cells, image.size, grid))
    return Segmentation(found, values)


class ConstantBox:
    """A baseline without a model: one box for every phrase, and every cell of a box belongs to what is meant.

    Given the true box it shows what filling a box is worth.

    Args:
        shares: (4,) x1, y1, x2, y2 in shares of the picture's sides.
    """

    name = "constant box"

    def __init__(self, shares: NDArray) -> None:
        self.shares = np.asarray(shares, dtype=np.float64)

    @classmethod
    def of(cls, references: Sequence[Reference]) -> ConstantBox:
        """The median box of the very references that are asked: a baseline that knows as much as a constant can."""
        sizes = [item.expression.image.size for item in references]
        found = [np.array(item.expression.region.box) for item in references]
        return cls(np.median([box / [*size, *size] for box, size in zip(found, sizes, strict=True)], axis=0))

    def find_boxes(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> NDArray:
        """The same box for every picture, in its pixels."""
        return np.array([self.shares * [*image.size, *image.size] for image in images])

    def read_mask(self, image: Image.Image, phrase: str, points: NDArray) -> NDArray:
        """Certainty everywhere."""
        return np.ones(len(points))


# ----------------------------------------------------------------------------------------------------- references


@dataclass(frozen=True, slots=True)
class Reference:
    """An expression with its true mask (H, W) and the best IoU that a mask of grid cells can have with it."""

    data: str
    expression: Expression
    mask: NDArray
    ceiling: tuple[int, int]


def draw_references(
    datasets: Sequence[ReferringDataset], count: int, seeds: Sequence[int], grid: int = GRID
) -> dict[int, list[Reference]]:
    """`count` references of each data set for each seed, drawn at random, none twice; fewer where the data end.

    Raises:
        DataError: a data set whose expressions have no masks.
    """
    found: dict[int, list[Reference]] = {seed: [] for seed in seeds}
    for dataset in datasets:
        check_masks(dataset)
        left = list(dataset.expressions)
        for seed in seeds:
            Random(seed).shuffle(left)
            chosen, left = left[:count], sorted(left[count:], key=lambda e: e.expression_id)
            found[seed] += [_reference(dataset.name, expression, grid) for expression in chosen]
    return found


def check_masks(dataset: ReferringDataset) -> None:
    """Refuse a data set in which some expressions have no mask.

    Raises:
        DataError: how many, and what to do.
    """
    without = [item for item in dataset.expressions if item.region.mask is None]
    if without:
        first = without[0]
        raise DataError(
            f"{dataset.name} {dataset.split}: {len(without)} of {len(dataset.expressions)} expressions refer to objects"
            f" without a mask (first: expression {first.expression_id} -> annotation {first.region.region_id}). "
            "Expected polygons or run-length codes under 'segmentation' in instances.json, read with masks=True; boxes "
            "alone will not do."
        )


def _reference(data: str, expression: Expression, grid: int) -> Reference:
    assert expression.region.mask is not None, "checked before"
    mask = decode_mask(expression.region.mask, expression.image.size)
    return Reference(data, expression, mask, metrics.mask_overlap(on_grid(mask, grid), mask))


def on_grid(mask: NDArray, grid: int = GRID) -> NDArray[np.bool_]:
    """The mask (H, W) as cells can say it: a cell is in where more than half of it is."""
    share = Image.fromarray(np.asarray(mask, dtype=np.float32)).resize((grid, grid), Image.Resampling.BOX)
    return spread(np.asarray(share) > 0.5, (mask.shape[1], mask.shape[0]))


# ---------------------------------------------------------------------------------------------------- predictions


def predict(
    model: Segmenter,
    references: Sequence[Reference],
    system: str,
    seed: int = 0,
    threshold: float = THRESHOLD,
    true_box: bool = False,
    progress: bool = True,
) -> tuple[pd.DataFrame, list[Segmentation]]:
    """Segment references; one row each, and what was said.

    Args:
        model: who is asked.
        references: what about.
        system, seed: written into the rows; the seed under which the references were drawn or the model was trained.
        threshold: probability above which a cell is in.
        true_box: ask inside the true box instead of the found one, to tell a wrong box from wrong pixels.
        progress: show a bar.

    Returns:
        Columns: system, seed, data, box ("found" or "true"), expression_id, image_id, text, label, words, area (share
        of the image), x1, y1, x2, y2 (NaN: no box), box_iou (NaN: no box), hit (IoU > 0.5), intersection, union, iou,
        ceiling_intersection, ceiling_union, cells (asked), forced (of these: where a chat model would by itself have
        said neither 0 nor 1).
    """
    found: list[Segmentation] = []
    forced: list[int] = []
    bar = tqdm(references, desc=system, unit="reference", disable=not progress or len(references) < 2, leave=False)
    for item in bar:
        given = np.array(item.expression.region.box) if true_box else None
        before = getattr(model, "forced", 0)
        found.append(segment(model, item.expression.image.open(), item.expression.text, given))
        forced.append(getattr(model, "forced", 0) - before)
    rows = [_row(item, said, threshold) for item, said in zip(references, found, strict=True)]
    about = {"system": system, "seed": seed, "box": "true" if true_box else "found"}
    return pd.DataFrame(rows).assign(forced=forced, **about), found


def _row(item: Reference, said: Segmentation, threshold: float) -> dict[str, Any]:
    expression, size = item.expression, item.expression.image.size
    common, either = metrics.mask_overlap(mask_at(said.probabilities, threshold, size), item.mask)
    overlap = float(metrics.paired_iou(said.box[None], np.array([expression.region.box]))[0])
    return {
        "data": item.data,
        "expression_id": expression.expression_id,
        "image_id": expression.image.image_id,
        "text": expression.text,
        "label": expression.region.label,
        "words": len(expression.text.split()),
        "area": float(boxes.area([expression.region.box])[0]) / (size[0] * size[1]),
        **dict(zip(("x1", "y1", "x2", "y2"), said.box.tolist(), strict=True)),
        "box_iou": overlap,
        "hit": bool(overlap > 0.5),
        "intersection": common,
        "union": either,
        "iou": common / either if either else 0.0,
        "ceiling_intersection": item.ceiling[0],
        "ceiling_union": item.ceiling[1],
        "cells": int((~np.isnan(said.probabilities)).sum()),
    }


# --------------------------------------------------------------------------------------------------------- scores

Columns = dict[int, NDArray]


def by_seed(table: pd.DataFrame, column: str) -> Columns:
    """Seed -> the column's values, ordered by data set and expression so that two systems' rows match."""
    ordered = table.sort_values(["data", "expression_id"])
    return {int(str(seed)): part[column].to_numpy() for seed, part in ordered.groupby("seed")}


def clusters(table: pd.DataFrame) -> Columns:
    """Seed -> image of each row; the styles of the world share their pictures, real data sets their COCO ids."""
    return by_seed(table, "image_id")


def cumulative(table: pd.DataFrame, seed: int = 0, resample_seeds: bool = False) -> metrics.Interval:
    """cIoU in percent with its interval over images (and, with `resample_seeds`, over seeds)."""
    return metrics.ratio_interval(
        by_seed(table, "intersection"),
        by_seed(table, "union"),
        clusters(table),
        seed=seed,
        resample_seeds=resample_seeds,
    ).scaled(100)


def gain(first: pd.DataFrame, second: pd.DataFrame, seed: int = 0, resample_seeds: bool = False) -> metrics.Interval:
    """cIoU of `first` minus that of `second`, points, paired by reference and seed.

    Raises:
        ValueError: tables over other references or seeds.
    """
    _check_paired(first, second)
    other = by_seed(second, "intersection"), by_seed(second, "union")
    return metrics.ratio_interval(
        by_seed(first, "intersection"),
        by_seed(first, "union"),
        clusters(first),
        minus=other,
        seed=seed,
        resample_seeds=resample_seeds,
    ).scaled(100)


def _check_paired(first: pd.DataFrame, second: pd.DataFrame) -> None:
    asked = [t.sort_values(["seed", "data", "expression_id"]) for t in (first, second)]
    keys = [list(zip(t.seed, t.data, t.expression_id, strict=True)) for t in asked]
    if keys[0] != keys[1]:
        raise ValueError(
            f"cannot pair {len(first)} rows with {len(second)}: expected the same references under the same seeds"
        )


def boxes_gain(first: pd.DataFrame, second: pd.DataFrame) -> metrics.Interval:
    """P@1 of the box of `first` minus that of `second`, points, paired by reference and seed.

    Images and seeds are resampled.

    Raises:
        ValueError: tables over other references or seeds.
    """
    _check_paired(first, second)
    hits, others = by_seed(first, "hit"), by_seed(second, "hit")
    better = {number: own.astype(float) - others[number].astype(float) for number, own in hits.items()}
    return metrics.pooled_interval(better, clusters(first)).scaled(100)


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One row per system, data set and kind of box: cIoU, mean IoU, P@1 of the box, in percent; n; answers lost.

    Where a chat model was asked, "forced (%)" says in how many of the cells it would have said neither 0 nor 1.
    """
    rows: list[dict[str, Any]] = []
    for (system, data, box), part in table.groupby(["system", "data", "box"], sort=False):
        whole = cumulative(part, seed)
        ceiling = 100 * metrics.cumulative_iou(part.ceiling_intersection, part.ceiling_union)
        rows.append(
            {
                "system": system,
                "data": data,
                "box": box,
                "cIoU": whole.value,
                "low": whole.low,
                "high": whole.high,
                "mean IoU": 100 * part.iou.mean(),
                "P@1 of the box": 100 * part.hit.mean() if box == "found" else np.nan,
                "grid's ceiling": ceiling,
                "no box": int(part.x1.isna().sum()),
                "n": len(part),
            }
        )
        if "forced" in table and table.forced.any():
            rows[-1]["forced (%)"] = 100 * part.forced.sum() / max(part.cells.sum(), 1)
    return pd.DataFrame(rows).round(1)


def hundreds(table: pd.DataFrame, size: int = HUNDRED, seed: int = 0) -> dict[tuple[str, str], NDArray]:
    """(system, data set) -> cIoU (percent) of disjoint groups of `size` references: how far a split's figure wanders
    by luck. A data set with fewer references than that is one group.
    """
    return {
        (str(system), str(data)): 100
        * metrics.cumulative_iou_of_groups(part.intersection, part.union, min(size, len(part)), seed)
        for (system, data), part in table.groupby(["system", "data"], sort=False)
    }


def extremes(table: pd.DataFrame, each: int = 2) -> dict[str, list[int]]:
    """Positions of the best, median and worst rows by mask IoU, `each` of every kind, no row twice."""
    order = np.argsort(-table.iou.to_numpy(), kind="stable")
    each = min(each, len(order) // 3)
    start = len(order) // 2 - each // 2
    return {
        "best": order[:each].tolist(),
        "median": order[start : start + each].tolist(),
        "worst": order[len(order) - each :].tolist(),
    }
