"""The prompts of LLM-wrapper: a detector's boxes written out as text, and the question about them.

One user turn, no system role of our own (a chat template may add its family's default). The order of parts and the
content of each bullet follow the paper (LLM-wrapper, ICLR 2025, "Method"); coordinates default to absolute pixels of
the original image with one decimal, as published. ``percent`` (integers 0-100) is the cheaper writing: two tokens a
number where "278.1" takes five. ``center`` (middle, width and height, two digits each) is the easiest for a small
model: what most phrases compare stands there, always at the same distance, and needs no sum of two numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from seewhere.models.candidates import Detections, make_candidates
from seewhere.results import prompt_id
from seewhere.world.lessons import ASK, COUNT, OPENING, percent_box

Coordinates = Literal["pixels", "percent", "center"]
COORDINATES: tuple[Coordinates, ...] = ("pixels", "percent", "center")

_TWO_SOURCES = "The image contains {n} boxes, found by two detectors, {detectors}:"


def clean(text: str) -> str:
    """Return a label or phrase as it stands in a prompt: lower-case, stripped, double quotes made single."""
    return " ".join(text.lower().strip().replace('"', "'").split())


def format_box(box: Sequence[float], coordinates: Coordinates, size: tuple[int, int]) -> str:
    """Write one box (pixels, xyxy, original image) as text; negatives become 0.

    Args:
        box: x1, y1, x2, y2 in pixels of the original image.
        coordinates: ``pixels`` (one decimal), ``percent`` (integers 0-100 of width and height) or ``center`` (middle
            x and y, width and height as two digits 00-99, hundredths of the image's sides).
        size: (width, height) of the image in pixels.

    Raises:
        ValueError: unknown coordinate writing.
    """
    if coordinates == "pixels":
        return "[" + ", ".join(f"{max(float(v), 0.0):.1f}" for v in box) + "]"
    if coordinates == "percent":
        return "[" + ", ".join(map(str, percent_box(box, size))) + "]"
    if coordinates == "center":
        x1, y1, x2, y2 = (100 * float(v) / s for v, s in zip(box, (*size, *size), strict=True))
        values = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        return "[" + ",".join(f"{min(max(int(v), 0), 99):02d}" for v in values) + "]"
    raise ValueError(f"coordinates: expected one of {COORDINATES}, got {coordinates!r}")


def labels_of(candidates: Detections) -> list[str]:
    """Return the candidates' labels, with a clear error if the detector gave none."""
    if "label" not in candidates.data:
        raise ValueError("candidates carry no data['label']; make them with seewhere.models.candidates.make_candidates")
    return [str(label) for label in candidates.data["label"]]


def format_candidates(
    candidates: Detections,
    size: tuple[int, int],
    coordinates: Coordinates = "pixels",
    scores: bool = False,
) -> str:
    """Write the candidate list, one bullet a box: index from 0, quoted label, box, and the score if wanted.

    Candidates of two detectors (``data["source"]`` set, see `merge_candidates`) name their detector in each bullet.

    Args:
        candidates: N boxes, pixels, xyxy, of the original image, in the detector's order.
        size: (width, height) of the image in pixels.
        coordinates: see `format_box`.
        scores: append each box's confidence with two decimals (for detectors that give one).

    Raises:
        ValueError: scores are asked of candidates without confidence.
    """
    if scores and candidates.confidence is None:
        raise ValueError("scores=True, but these candidates have no confidence: set scores=False for this detector")
    sources = candidates.data.get("source")
    lines = []
    for i, (box, label) in enumerate(zip(candidates.xyxy, labels_of(candidates), strict=True)):
        origin = f"{sources[i]}, " if sources is not None else ""
        line = f'- {i}: {origin}"{clean(label)}", {format_box(box, coordinates, size)}'
        if scores:
            assert candidates.confidence is not None
            line += f", score {candidates.confidence[i]:.2f}"
        lines.append(line)
    return "\n".join(lines)


def context(
    candidates: Detections, size: tuple[int, int], coordinates: Coordinates = "pixels", scores: bool = False
) -> str:
    """Return everything before the question: it is shared by all questions about one candidate list."""
    sources = candidates.data.get("source")
    opening = COUNT.format(n=len(candidates))
    if sources is not None:
        names = " and ".join(dict.fromkeys(str(s) for s in sources))
        opening = _TWO_SOURCES.format(n=len(candidates), detectors=names)
    return "\n".join([OPENING, opening, format_candidates(candidates, size, coordinates, scores)])


def question(phrase: str) -> str:
    """Return the closing question about one referring expression.

    Raises:
        ValueError: the phrase is empty.
    """
    if not phrase.strip():
        raise ValueError("empty phrase: expected a referring expression such as 'giraffe on left'")
    return ASK.format(clean(phrase))


def prompt(
    candidates: Detections,
    phrase: str,
    size: tuple[int, int],
    coordinates: Coordinates = "pixels",
    scores: bool = False,
) -> str:
    """Return the whole user turn for one phrase and one candidate list."""
    return context(candidates, size, coordinates, scores) + "\n" + question(phrase)


def identity(coordinates: Coordinates, scores: bool = False) -> str:
    """Return which prompt this is and how it writes boxes, as records keep it: "prompt 1f0c9a2e, boxes in pixels"."""
    example = make_candidates(np.array([[1.0, 2.0, 3.0, 4.0]]), ["label"], [0.5] if scores else None, "any", 0)
    return f"prompt {prompt_id(prompt(example, 'phrase', (10, 10), coordinates, scores))}, boxes in {coordinates}"


def count_candidates(text: str) -> int:
    """Return the number of candidates that a user turn lists.

    Raises:
        ValueError: the text is not a user turn of `prompt`.
    """
    found = re.search(r"^The image contains (\d+) boxes", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"expected a prompt with a line 'The image contains N boxes', got {text[:80]!r}")
    return int(found.group(1))


def messages(text: str) -> list[dict[str, str]]:
    """Wrap a user turn for a tokenizer's chat template."""
    return [{"role": "user", "content": text}]


def merge_candidates(first: Detections, second: Detections) -> Detections:
    """Join two detectors' candidates for ensembling: indices run on, every box keeps its detector's name.

    The first detector's own top box stays the fall-back. Confidence is kept only if both detectors give one.
    """
    names = [str(d.metadata.get("detector", f"detector {i + 1}")) for i, d in enumerate((first, second))]
    both_score = first.confidence is not None and second.confidence is not None
    return Detections(
        xyxy=np.concatenate([first.xyxy.reshape(-1, 4), second.xyxy.reshape(-1, 4)]),
        confidence=np.concatenate([first.confidence, second.confidence]) if both_score else None,
        data={
            "label": np.array(labels_of(first) + labels_of(second), dtype=object),
            "source": np.array([names[0]] * len(first) + [names[1]] * len(second), dtype=object),
        },
        metadata={"detector": "+".join(names), "top": _merged_top(first, second)},
    )


def _merged_top(first: Detections, second: Detections) -> int:
    own = int(first.metadata.get("top", -1))
    if own >= 0:
        return own
    other = int(second.metadata.get("top", -1))
    return len(first) + other if other >= 0 else -1


def permute(candidates: Detections, order: Sequence[int]) -> Detections:
    """Return the candidates in another order; the detector's own top box moves along.

    Args:
        candidates: N candidates.
        order: a permutation of range(N); position j of the result holds candidate ``order[j]``.

    Raises:
        ValueError: not a permutation.
    """
    if sorted(order) != list(range(len(candidates))):
        raise ValueError(f"order must be a permutation of 0..{len(candidates) - 1}, got {list(order)}")
    index = np.array(order, dtype=int)
    top = int(candidates.metadata.get("top", -1))
    return Detections(
        xyxy=candidates.xyxy[index],
        confidence=None if candidates.confidence is None else candidates.confidence[index],
        data={k: np.asarray(v)[index] for k, v in candidates.data.items()},
        metadata={**candidates.metadata, "top": list(order).index(top) if top >= 0 else -1},
    )
