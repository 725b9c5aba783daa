"""The currency in which grounders pay: a set of candidate boxes for one phrase on one image.

It is ``supervision.Detections``, so that everything made for it (drawing, filtering, merging) works on candidates too,
with four conventions on top:

* ``xyxy``: ``(N, 4)`` float, absolute pixels of the original image;
* ``confidence``: ``(N,)`` float, or ``None`` for a model that gives no scores;
* ``data["label"]``: ``(N,)`` array of str, the model's own words for each box;
* ``metadata``: ``{"detector": name, "top": index}``: ``top`` is the box the model itself would answer with, -1 if none.

Import supervision only from here: without OpenCV (which nothing here needs) its import warns on every start.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*OpenCV.*")
    import supervision
    from supervision import Detections

__all__ = ["Detections", "empty_candidates", "make_candidates", "select_candidates", "supervision", "top_box"]


def make_candidates(
    boxes: npt.ArrayLike,
    labels: Sequence[str],
    scores: npt.ArrayLike | None,
    detector: str,
    top: int,
    **metadata: Any,
) -> Detections:
    """Build a candidate set and check that its parts agree.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2 in absolute pixels of the original image.
        labels: N strings, the model's words for each box.
        scores: ``(N,)`` or None for a model that gives none.
        detector: name of the model, kept in the metadata.
        top: index of the model's own answer, -1 if it has none.
        metadata: anything more to keep beside the set (for example ``parse_failures=1``).

    Raises:
        ValueError: when lengths differ, a number is not finite, a box is inverted, or ``top`` is out of range.
    """
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    count = len(array)
    if len(labels) != count:
        raise ValueError(f"{detector}: {count} boxes but {len(labels)} labels; filter labels together with boxes.")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(f"{detector}: box {row} is {array[row].tolist()}; expected finite pixel coordinates.")
    inverted = (array[:, 2] < array[:, 0]) | (array[:, 3] < array[:, 1])
    if inverted.any():
        row = int(np.flatnonzero(inverted)[0])
        raise ValueError(f"{detector}: box {row} is {array[row].tolist()}; expected x1 <= x2 and y1 <= y2 (xyxy).")
    confidence = None
    if scores is not None:
        confidence = np.asarray(scores, dtype=np.float64).reshape(-1)
        if len(confidence) != count:
            raise ValueError(f"{detector}: {count} boxes but {len(confidence)} scores.")
        if not np.isfinite(confidence).all():
            raise ValueError(f"{detector}: scores must be finite, got {confidence.tolist()}.")
    if not -1 <= top < count:
        raise ValueError(f"{detector}: top answer {top} of {count} boxes; expected -1 (none) to {count - 1}.")
    return Detections(
        xyxy=array,
        confidence=confidence,
        data={"label": np.array([str(label) for label in labels], dtype=str)},
        metadata={"detector": detector, "top": int(top), **metadata},
    )


def empty_candidates(detector: str, scores: bool = False, **metadata: Any) -> Detections:
    """The answer of a model that found nothing: N = 0, ``top`` = -1. ``scores`` keeps an empty confidence array."""
    return make_candidates(np.zeros((0, 4)), [], np.zeros(0) if scores else None, detector, -1, **metadata)


def select_candidates(candidates: Detections, keep: npt.ArrayLike) -> Detections:
    """Keep some candidates, in the given order, and make ``top`` point at the same box as before (-1 if it went).

    Args:
        candidates: a set of N.
        keep: boolean mask ``(N,)`` or integer indices.
    """
    array = np.asarray(keep)
    indices = np.flatnonzero(array) if array.dtype == bool else array.astype(int).reshape(-1)
    places = np.flatnonzero(indices == candidates.metadata["top"])
    extra = {key: value for key, value in candidates.metadata.items() if key not in ("detector", "top")}
    return make_candidates(
        candidates.xyxy[indices],
        [str(label) for label in candidates.data["label"][indices]],
        None if candidates.confidence is None else candidates.confidence[indices],
        candidates.metadata["detector"],
        int(places[0]) if len(places) else -1,
        **extra,
    )


def top_box(candidates: Detections) -> npt.NDArray[np.float64]:
    """The model's own answer ``(4,)`` x1, y1, x2, y2 in pixels; four NaN, which metrics count as a miss, if none."""
    top = int(candidates.metadata["top"])
    if top < 0:
        return np.full(4, np.nan)
    return np.asarray(candidates.xyxy[top], dtype=np.float64)
