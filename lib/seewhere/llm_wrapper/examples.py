"""Training examples of LLM-wrapper: a detector's candidates, an expression, and the index of the right box.

The rules are the paper's: the label is the candidate with the highest IoU; a sample is kept only if that IoU exceeds
0.5, it has at least two candidates and its prompt has at most 1024 tokens; every sample is repeated with its candidates
permuted, so that the index carries no shortcut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from seewhere import boxes
from seewhere.llm_wrapper import prompts
from seewhere.models.candidates import Detections

SMALLEST_IOU = 0.5
LONGEST_PROMPT = 1024
FEWEST_COPIES, MOST_COPIES = 2, 5


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its answer: the user turn, the index of the right candidate as text, and where it is from."""

    prompt: str
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


def right_candidate(candidates: Detections, target: Sequence[float]) -> tuple[int, float]:
    """Return (index, IoU) of the candidate that overlaps the target (pixels, xyxy) most; (-1, 0) without candidates."""
    if len(candidates) == 0:
        return -1, 0.0
    overlaps = boxes.iou(candidates.xyxy, np.asarray(target, dtype=float).reshape(1, 4))[:, 0]
    best = int(np.argmax(overlaps))
    return best, float(overlaps[best])


def copies_for(count: int) -> int:
    """Return how many permuted copies a sample with `count` candidates gets: 2 to 5 (the exact rule is ours)."""
    return min(max(count, FEWEST_COPIES), MOST_COPIES)


def build_examples(
    sizes: Sequence[tuple[int, int]],
    phrases: Sequence[str],
    targets: Sequence[Sequence[float]],
    candidates: Sequence[Detections],
    *,
    coordinates: prompts.Coordinates = "pixels",
    scores: bool = False,
    copies: int | None = None,
    seed: int = 0,
    count_tokens: Any = None,
) -> tuple[list[Example], Counter[str]]:
    """Turn referring data and a detector's candidates into training examples.

    Args:
        sizes: N (width, height) of the images in pixels.
        phrases: N referring expressions.
        targets: N boxes, pixels, xyxy, of the original image.
        candidates: N candidate lists in the same frame.
        coordinates: see `prompts.format_box`.
        scores: write confidences into the bullets.
        copies: permuted copies per sample; None for the paper's 2 to 5.
        seed: of the permutations.
        count_tokens: text -> number of tokens; where given, prompts over 1024 tokens are left out.

    Returns:
        (examples, counts): counts say how many samples were kept and why the others were not.

    Raises:
        ValueError: arguments of different lengths.
    """
    lengths = {len(sizes), len(phrases), len(targets), len(candidates)}
    if len(lengths) != 1:
        raise ValueError(
            f"expected lists of one length, got {[len(sizes), len(phrases), len(targets), len(candidates)]}"
        )
    random, counts, found = Random(seed), Counter[str](), []
    for number, (size, phrase, target, found_boxes) in enumerate(zip(sizes, phrases, targets, candidates, strict=True)):
        right, overlap = right_candidate(found_boxes, target)
        if len(found_boxes) < 2:
            counts["fewer than two candidates"] += 1
            continue
        if overlap <= SMALLEST_IOU:
            counts["no candidate overlaps the target"] += 1
            continue
        made = []
        for _ in range(copies or copies_for(len(found_boxes))):
            order = random.sample(range(len(found_boxes)), len(found_boxes))
            text = prompts.prompt(prompts.permute(found_boxes, order), phrase, size, coordinates, scores)
            made.append(Example(text, str(order.index(right)), {"sample": number, "iou": overlap}))
        if count_tokens is not None and count_tokens(made[0].prompt) > LONGEST_PROMPT:
            counts["prompt too long"] += 1
            continue
        counts["kept"] += 1
        found += made
    return found, counts
