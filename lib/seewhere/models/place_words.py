"""Place words read by rule: what a black box that already refers well does with "second dog from left".

Word matching finds the right kind of object and stops there. The rules here go one step further, over the candidates
of that kind: sides, corners, the middle, sizes and counting from a side. Phrases that lean on another object ("left
of the cat") are not understood and answered as before. With them the micro detector becomes a black box that is
already good at terse phrases and no better at sentences, which is the case of the paper's fine-tuned detectors
(LLM-wrapper, "VLMs already fine-tuned for REC").
"""

from __future__ import annotations

import re

import numpy as np

_SIDES = {
    "left": (r"left(most)?|left-?hand", 0, -1),
    "right": (r"right(most)?|right-?hand", 0, 1),
    "top": (r"top(most)?|upper|highest|higher", 1, -1),
    "bottom": (r"bottom(most)?|lower|lowest", 1, 1),
}
_MIDDLE = re.compile(r"\b(middle|cent(er|re)|central)\b")
_LARGE = re.compile(r"\b(big(gest)?|large(st)?|huge|tallest)\b")
_SMALL = re.compile(r"\b(small(est)?|little|tiny|tiniest)\b")
_COUNT = re.compile(
    r"\b(first|second|third|fourth|fifth|1st|2nd|3rd|4th|5th)\b.*\bfrom (the )?(left|right|top|bottom)\b"
)
_NUMBERS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4} | {
    f"{i + 1}{ending}": i for i, ending in enumerate(("st", "nd", "rd", "th", "th"))
}


def place_order(phrase: str, boxes: np.ndarray) -> np.ndarray | None:
    """Order boxes by how well they fit the place words of a phrase, best first.

    Args:
        phrase: a referring expression about one object, without landmark.
        boxes: (N, 4) pixels, xyxy: the objects of the kind that is meant.

    Returns:
        (N,) indices, or None where the phrase has no place word that is understood.
    """
    text = phrase.lower()
    centers = np.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], axis=1) / 2
    if counted := _COUNT.search(text):
        _, axis, sign = _SIDES[counted.group(3)]
        order = np.argsort(-sign * centers[:, axis], kind="stable")
        return np.roll(order, -_NUMBERS[counted.group(1)]) if len(order) > _NUMBERS[counted.group(1)] else None
    goals = [(axis, sign) for pattern, axis, sign in _SIDES.values() if re.search(rf"\b({pattern})\b", text)]
    if goals:
        spread = np.maximum(np.ptp(centers, axis=0), 1e-9)
        fit = sum(sign * centers[:, axis] / spread[axis] for axis, sign in goals)
    elif _MIDDLE.search(text):
        fit = -np.abs(centers - centers.mean(axis=0)).sum(axis=1)
    elif _LARGE.search(text) or _SMALL.search(text):
        sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        fit = sizes if _LARGE.search(text) else -sizes
    else:
        return None
    return np.argsort(-np.asarray(fit), kind="stable")
