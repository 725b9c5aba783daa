"""The prompts, word for word: a changed word fails here before it changes a number somewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seewhere.llm_wrapper import prompts
from seewhere.models.candidates import make_candidates

BOXES = np.array([[-3.2, 10.0, 64.06, 96.0], [128.0, 48.0, 256.0, 192.0]])
SIZE = (256, 192)


def two(detector: str = "first", scores: list[float] | None = None):
    return make_candidates(BOXES, ["Dog ", 'the "big" cat'], scores, detector=detector, top=1)


def test_prompt_in_pixels_is_the_published_form() -> None:
    assert prompts.prompt(two(), " Dog on LEFT", SIZE) == (
        "You are a helpful assistant who understands spatial information.\n"
        "The image contains 2 boxes:\n"
        '- 0: "dog", [0.0, 10.0, 64.1, 96.0]\n'
        "- 1: \"the 'big' cat\", [128.0, 48.0, 256.0, 192.0]\n"
        'Which box best matches "dog on left"? Answer with the index only, without explanation.'
    )


def test_prompt_in_percent_with_scores() -> None:
    text = prompts.prompt(two(scores=[0.5, 0.256]), "cat", SIZE, "percent", scores=True)
    assert '- 0: "dog", [0, 5, 25, 50], score 0.50\n' in text
    assert "- 1: \"the 'big' cat\", [50, 25, 100, 100], score 0.26\n" in text


def test_prompt_for_two_detectors_names_them_and_runs_on() -> None:
    merged = prompts.merge_candidates(two("alpha"), two("beta"))
    text = prompts.prompt(merged, "cat", SIZE, "percent")
    assert "The image contains 4 boxes, found by two detectors, alpha and beta:\n" in text
    assert '- 0: alpha, "dog", [0, 5, 25, 50]\n' in text
    assert "- 3: beta, \"the 'big' cat\", [50, 25, 100, 100]\n" in text
    assert merged.metadata["top"] == 1


def test_scores_of_a_detector_without_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="no confidence"):
        prompts.prompt(two(), "cat", SIZE, scores=True)


def test_empty_phrase_is_refused() -> None:
    with pytest.raises(ValueError, match="empty phrase"):
        prompts.question("  ")


def test_unknown_writing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        prompts.format_box((0, 0, 1, 1), "inches", SIZE)  # type: ignore[arg-type]


def test_a_record_can_name_its_prompt() -> None:
    known = {prompts.identity(writing, scores) for writing in prompts.COORDINATES for scores in (False, True)}
    assert len(known) == 6 and prompts.identity("pixels") == "prompt a29cf7f1, boxes in pixels"


@given(st.permutations(range(5)))
def test_permuting_moves_boxes_labels_and_the_own_answer_together(order: list[int]) -> None:
    boxes = np.arange(20, dtype=float).reshape(5, 4) + np.array([0, 0, 30, 30])
    candidates = make_candidates(boxes, list("abcde"), [0.9, 0.8, 0.7, 0.6, 0.5], detector="d", top=2)
    moved = prompts.permute(candidates, order)
    assert [moved.data["label"][j] for j in range(5)] == ["abcde"[i] for i in order]
    assert moved.data["label"][moved.metadata["top"]] == "c"
    assert np.array_equal(moved.xyxy, boxes[list(order)])


def test_a_list_that_is_no_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match="permutation"):
        prompts.permute(two(), [0, 0])


def test_center_writes_middle_and_sides_in_two_digits_each() -> None:
    assert prompts.format_box((-3.2, 10.0, 64.06, 96.0), "center", SIZE) == "[11,27,26,44]"
    assert prompts.format_box((0, 0, 256, 192), "center", SIZE) == "[50,50,99,99]"
