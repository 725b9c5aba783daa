"""Answering: failure classes, fall-backs, and the limits of what a candidate list may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seewhere.llm_wrapper import examples, wrapper
from seewhere.llm_wrapper.wrapper import LLMWrapper, parse_index
from seewhere.models.candidates import empty_candidates, make_candidates
from seewhere.models.language_model import PromptTooLong, load_language_model

SIZE = (200, 100)


class Scripted:
    """A language model that prefers the last option, and writes what it is told to."""

    name = "scripted"

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.asked: list[str] = []

    def choose(self, prompts: Sequence[list], options: Sequence[Sequence[str]]) -> list[np.ndarray]:
        self.asked += [turn[0]["content"] for turn in prompts]
        return [np.arange(1, len(o) + 1) / np.arange(1, len(o) + 1).sum() for o in options]

    def generate(self, prompts: Sequence[list], max_new_tokens: int = 16) -> list[str]:
        return self.texts[: len(prompts)]


def row(count: int, top: int = 0):
    boxes = np.array([[i / 2, 0.0, i / 2 + 10, 20.0] for i in range(count)]).reshape(-1, 4)
    return make_candidates(boxes, ["dog"] * count, None, detector="d", top=top)


def test_no_one_two_and_three_hundred_candidates() -> None:
    model = Scripted()
    answers = LLMWrapper(model).answer([SIZE] * 4, ["dog"] * 4, [empty_candidates("d"), row(1), row(2), row(300)])
    assert [a.status for a in answers] == ["no candidate", "one candidate", "chosen", "chosen"]
    assert [a.index for a in answers] == [-1, 0, 1, 299]
    assert len(model.asked) == 2
    assert all(a.probabilities.sum() == pytest.approx(1) for a in answers[1:])


def test_free_answers_fall_back_on_the_detector_and_say_why() -> None:
    model = Scripted("The box is 1.", "seven", "12", "")
    answers = LLMWrapper(model).answer_freely([SIZE] * 4, ["dog"] * 4, [row(3, top=2)] * 4)
    assert [(a.index, a.status) for a in answers] == [
        (1, "chosen"),
        (2, "no integer"),
        (2, "out of range"),
        (2, "no integer"),
    ]


def test_empty_phrase_and_uneven_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="empty phrase"):
        LLMWrapper(Scripted()).answer([SIZE], [" "], [row(1)])
    with pytest.raises(ValueError, match="as many images"):
        LLMWrapper(Scripted()).answer([SIZE], ["a", "b"], [row(1)])


@given(st.text(max_size=40), st.integers(2, 12))
def test_any_text_parses_to_a_valid_index_or_a_named_failure(text: str, count: int) -> None:
    index, status = parse_index(text, count)
    assert status in wrapper.STATUSES
    assert (0 <= index < count) == (status == "chosen")


@pytest.mark.parametrize(
    ("text", "expected"), [("3", 3), ("index 2, not 3", 2), ("-1", 1), ("9" * 5000, -1), ("1.5", 1)]
)
def test_the_first_run_of_digits_counts(text: str, expected: int) -> None:
    assert parse_index(text, 5)[0] == expected


def test_examples_follow_the_papers_rules() -> None:
    candidates = make_candidates(
        np.array([[0, 0, 10, 10], [50, 0, 60, 10], [0, 0, 10, 30]], float), ["a", "b", "c"], None, detector="d", top=0
    )
    targets = [(0, 0, 10, 9), (100, 50, 120, 60), (0, 0, 10, 9)]
    found, counts = examples.build_examples([SIZE] * 3, ["x", "y", "z"], targets, [candidates, candidates, row(1)])
    assert counts == {"kept": 1, "no candidate overlaps the target": 1, "fewer than two candidates": 1}
    assert len(found) == 3
    for example in found:
        bullet = next(line for line in example.prompt.splitlines() if line.startswith(f"- {example.answer}: "))
        assert '"a"' in bullet


def test_long_prompts_are_left_out() -> None:
    found, counts = examples.build_examples([SIZE], ["x"], [(0, 0, 10, 20)], [row(2)], count_tokens=lambda text: 1025)
    assert not found
    assert counts["prompt too long"] == 1


def test_an_iou_of_exactly_half_is_no_training_example() -> None:
    _, counts = examples.build_examples([SIZE], ["x"], [(0, 0, 10, 10)], [row(2)])
    assert counts["no candidate overlaps the target"] == 1


def test_confidences_are_written_only_where_the_detector_gives_them() -> None:
    sure = make_candidates([[0, 0, 9, 9], [5, 5, 20, 20]], ["dog", "cat"], [0.9, 0.25], "sure", 0)
    silent = make_candidates([[0, 0, 9, 9], [5, 5, 20, 20]], ["dog", "cat"], None, "silent", 0)
    asked = LLMWrapper(Scripted(), "percent", scores=True)
    assert "score 0.25" in asked.prompt((20, 20), "dog", sure)
    assert "score" not in asked.prompt((20, 20), "dog", silent)


class Forgetful(Scripted):
    """A language model that reads a thousand characters at most."""

    def too_long(self, prompts: Sequence[list], room: int) -> list[bool]:
        return [len(turn[0]["content"]) + room > 1000 for turn in prompts]


def test_a_list_beyond_the_context_is_left_to_the_detector_and_counted() -> None:
    model = Forgetful("0")
    asked = [SIZE] * 2, ["dog"] * 2, [row(300, top=7), row(2)]
    for answers in (LLMWrapper(model).answer(*asked), LLMWrapper(model).answer_freely(*asked)):
        assert [a.status for a in answers] == ["too long", "chosen"]
        assert answers[0].index == 7 and answers[0].probabilities[7] == 1
    assert wrapper.TOO_LONG in wrapper.STATUSES and wrapper.TOO_LONG not in wrapper.ASKED


def test_a_served_model_that_names_no_candidate_leaves_the_choice_to_the_detector() -> None:
    class Rambling(Scripted):
        def choose(self, prompts: Sequence[list], options: Sequence[Sequence[str]]) -> list[np.ndarray]:
            return [np.full(len(listed), np.nan) for listed in options]

    (found,) = LLMWrapper(Rambling("0")).answer([SIZE], ["dog"], [row(3, top=2)])
    assert (found.status, found.index) == (wrapper.NO_INTEGER, 2) and found.probabilities.tolist() == [0, 0, 1]


def test_three_hundred_candidates_are_more_than_the_micro_language_model_reads() -> None:
    model = load_language_model("micro", progress=False)
    crowd = LLMWrapper(model, "percent")
    answers = crowd.answer([SIZE] * 2, ["dog on left"] * 2, [row(300, top=3), row(4)])
    assert [a.status for a in answers] == ["too long", "chosen"] and answers[0].index == 3
    with pytest.raises(PromptTooLong, match=r"question 0: the prompt has \d+ tokens .* reads 2048 at most"):
        model.choose([[{"role": "user", "content": answers[0].prompt}]], [["0", "1"]])
