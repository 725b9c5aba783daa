"""Candidates on disk come back as they were, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from seewhere.models import kept_candidates
from seewhere.models.candidates import Detections, empty_candidates, make_candidates


def same(first: Detections, second: Detections) -> bool:
    """Value for value and type for type."""
    pairs = [(first.xyxy, second.xyxy), (first.confidence, second.confidence)]
    pairs += [(first.data[name], second.data[name]) for name in first.data]
    return (
        first.metadata == second.metadata
        and first.data.keys() == second.data.keys()
        and all((a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b)) for a, b in pairs)
    )


def some() -> list[Detections]:
    boxes = [[0.1, 1 / 3, 20, 20], [40, 40, 70, 70]]
    numbered = make_candidates(boxes, ["Hündin", "zwei Worte"], [0.7, 1 / 7], "a", 1, text_truncated=np.bool_(True))
    numbered.data["category_id"] = np.array([18, 1], dtype=np.int64)
    numbered.xyxy = numbered.xyxy.astype(np.float32)
    scoreless = make_candidates(boxes, ["dog", ""], None, "b", -1, parse_failures=2)
    return [numbered, empty_candidates("a", scores=True), scoreless, empty_candidates("b")]


def test_sets_of_every_kind_come_back(tmp_path: Path) -> None:
    place = kept_candidates.write(tmp_path / "part.npz", some())
    found = kept_candidates.read(place)
    assert found is not None and all(same(a, b) for a, b in zip(some(), found, strict=True))
    assert kept_candidates.read(kept_candidates.write(tmp_path / "none.npz", [])) == []


@given(
    boxes=arrays.arrays(np.float64, st.tuples(st.integers(0, 4), st.just(2)), elements=st.floats(0, 1e6)),
    label=st.text(st.characters(exclude_characters="\x00"), max_size=9),
)
def test_any_numbers_and_words_come_back(
    tmp_path_factory: pytest.TempPathFactory, boxes: np.ndarray, label: str
) -> None:
    made = make_candidates(np.hstack([boxes, boxes + 1]), [label] * len(boxes), boxes[:, 0], "a", len(boxes) - 1)
    place = kept_candidates.write(tmp_path_factory.mktemp("kept") / "part.npz", [made])
    (found,) = kept_candidates.read(place) or []
    assert same(made, found)


def test_what_is_missing_or_broken_is_nothing(tmp_path: Path) -> None:
    assert kept_candidates.read(tmp_path / "missing.npz") is None
    place = kept_candidates.write(tmp_path / "part.npz", some())
    whole = place.read_bytes()
    for broken in (b"", b"no zip", whole[: len(whole) // 2], whole[:200] + b"?" * 20 + whole[220:]):
        place.write_bytes(broken)
        assert kept_candidates.read(place) is None


def test_names_tell_weights_pictures_and_phrases_apart() -> None:
    asked = [(1, "a dog"), (2, "a cat")]
    others = [("a 2", asked), ("a 1", asked[::-1]), ("a 1", asked[:1]), ("a 1", [(1, "a dog"), (3, "a cat")])]
    names = {kept_candidates.part_name(*call) for call in (("a 1", asked), *others)}
    assert len(names) == 5 and kept_candidates.part_name("a 1", list(asked)) in names
