from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seewhere.models.label_match import best_candidate, match_labels, surface_forms, words_of
from seewhere.world.language import SYNONYMS

LABELS = ["dog", "cat", "hot dog", "person", "tv", "wine glass", "orange", "bus", "sheep"]


def _named(phrase: str, labels: list[str]) -> str:
    return labels[int(np.argmax(match_labels(phrase, labels)))]


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("left dog", "dog"),
        ("the dog to the left of the cat", "dog"),
        ("a cat near the dog", "cat"),
        ("hot dog on the right", "hot dog"),
        ("the largest of the dogs", "dog"),
        ("guy in blue", "person"),
        ("woman on left", "person"),
        ("people in the back", "person"),
        ("big television", "tv"),
        ("Screen, top left", "tv"),
        ("second glass from left", "wine glass"),
        ("the buses", "bus"),
        ("the sheep that is highest up", "sheep"),
        ("orange cat", "cat"),
        ("second orange from left", "orange"),
        ("the dog's bowl", "dog"),
    ],
)
def test_phrases_go_to_the_label_they_name(phrase: str, expected: str) -> None:
    assert _named(phrase, LABELS) == expected


def test_longer_names_claim_their_words() -> None:
    assert match_labels("hot dog", ["dog", "hot dog"]).tolist() == [0.0, 1.0]
    assert match_labels("teddy bear", ["bear"], vocabulary=["teddy bear"]).tolist() == [0.0]
    assert match_labels("teddy bear", ["bear"]).tolist() == [1.0]


def test_a_shared_last_word_is_a_weak_match() -> None:
    weak, none = match_labels("the dog on the left", ["hot dog", "cat"])
    assert 0 < weak < 1
    assert none == 0


def test_later_mentions_count_less() -> None:
    first, second, third = match_labels("the dog between the cat and the bus", ["dog", "cat", "bus"])
    assert first > second > third > 0


def test_every_world_synonym_matches_its_category_in_singular_and_plural() -> None:
    for name, synonyms in SYNONYMS.items():
        for word in (name, *synonyms):
            assert tuple(words_of(word)) in surface_forms(name)
            assert match_labels(f"the small {word} on the left", [name]).tolist() == [1.0]


def test_best_candidate_breaks_ties_by_score_then_order() -> None:
    labels = ["cat", "dog", "dog", "dog"]
    assert best_candidate("dog", labels, [0.99, 0.4, 0.8, 0.8]) == 2
    assert best_candidate("spaceship", labels, [0.3, 0.4, 0.9, 0.8]) == 2
    assert best_candidate("dog", [], []) == -1


def test_place_words_do_not_change_the_answer() -> None:
    labels, scores = ["dog", "dog"], [0.6, 0.7]
    answers = {best_candidate(f"{where} dog", labels, scores) for where in ("left", "right", "top", "biggest")}
    assert answers == {1}


def test_mismatched_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels and 1 scores"):
        best_candidate("dog", ["dog", "cat"], [0.5])


@given(st.text(max_size=80), st.lists(st.sampled_from(LABELS), max_size=6))
def test_any_text_gives_scores_in_range(phrase: str, labels: list[str]) -> None:
    scores = match_labels(phrase, labels)
    assert scores.shape == (len(labels),)
    assert ((scores >= 0) & (scores <= 1)).all()
