"""Place words read by rule: sides, corners, sizes, counting; and what is left to word matching."""

from __future__ import annotations

import numpy as np
import pytest
from seewhere.models.label_match import best_placed_candidate
from seewhere.models.place_words import place_order

# Left to right, falling: small, middle, large.
BOXES = np.array([[0, 0, 10, 10], [40, 40, 60, 60], [70, 60, 100, 90]], float)


@pytest.mark.parametrize(
    ("phrase", "first"),
    [
        ("dog on the left", 0),
        ("rightmost dog", 2),
        ("the dog that is farthest to the right", 2),
        ("top dog", 0),
        ("bottom right dog", 2),
        ("second dog from right", 1),
        ("third dog from the left", 2),
        ("dog in the middle", 1),
        ("biggest dog", 2),
        ("the smallest of the dogs", 0),
    ],
)
def test_place_words(phrase: str, first: int) -> None:
    order = place_order(phrase, BOXES)
    assert order is not None and order[0] == first and sorted(order) == [0, 1, 2]


def test_nothing_to_read_is_no_order() -> None:
    assert place_order("brown dog", BOXES) is None
    assert place_order("fifth dog from left", BOXES) is None


def test_only_the_named_kind_competes_and_landmarks_are_left_alone() -> None:
    labels, scores = ["dog", "dog", "cat"], [0.9, 0.8, 0.7]
    assert best_placed_candidate("dog on the right", labels, scores, BOXES) == 1
    assert best_placed_candidate("cat on the left", labels, scores, BOXES) == 2
    assert best_placed_candidate("dog to the right of the cat", labels, scores, BOXES) == 0, "two kinds: the surest dog"
    assert best_placed_candidate("dog", [], [], np.zeros((0, 4))) == -1
