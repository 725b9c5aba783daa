"""Where heads look: weights against eager attention's own, boxes found among answers, and that looks are learnt."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seewhere.models import pointing
from seewhere.models.prefix_training import question_inputs
from seewhere.models.shared_attention import shared_attention
from seewhere.packing import Questions, Sample, collate_questions
from tiny_models import tiny_llama

GRID = 3
CORNERS = torch.arange(20, 121)  # of a vocabulary in which nothing else is that large
BRACE, CLOSE, END = 5, 6, 2


def make(key_heads: int = 4) -> Any:
    return tiny_llama(121, layers=3, num_key_value_heads=key_heads, attn_implementation="eager")


def box(*corners: int) -> tuple[int, ...]:
    return (BRACE, *(20 + c for c in corners), CLOSE, END)


def asked() -> list[list[Sample]]:
    """Questions about two images: three answers are boxes, one prompt holds a box, and one answer is in words."""
    return [
        [Sample((7, 8, 10, 11), box(0, 0, 33, 33)), Sample((7, 8, *box(1, 2, 3, 4)[:-1]), (12, END))],
        [Sample((7, 8, 13), box(50, 20, 100, 90)), Sample((7, 8, 9), (14, 15, END)), Sample((7, 8), box(5, 5, 5, 5))],
    ]


@contextmanager
def watched_pass(model: Any, prefix: torch.Tensor, questions: Questions) -> Iterator[pointing.Watched]:
    """What went into the watched layer in a packed pass."""
    with shared_attention(model), pointing.watched(model.model, -2) as seen:
        inputs = question_inputs(model, prefix, questions)
        inputs.pop("labels")
        model.model(**inputs, use_cache=False)
        yield seen


@pytest.mark.parametrize("key_heads", [4, 2])
def test_looks_are_eager_attention_s_weights(key_heads: int) -> None:
    model, samples = make(key_heads), asked()
    questions = collate_questions(samples)
    prefix = torch.randn(2, 1 + GRID * GRID, 32)
    boxes = pointing.boxes_asked_for(questions, CORNERS)
    start = prefix.shape[1] + questions.shared.shape[1]
    with watched_pass(model, prefix, questions) as seen:
        found = pointing.looks(seen, start, questions.tokens.shape[2], boxes.where, 3)
    assert found.shape == (3, 3, start)
    rows = [(image, sample) for image, asked_of in enumerate(samples) for sample in asked_of]
    rows = [(image, sample) for image, sample in rows if sample.answer[0] == BRACE]
    for weights, (image, sample) in zip(found, rows, strict=True):
        words = model.get_input_embeddings()(torch.tensor([[*sample.prompt, BRACE]]))
        whole = model.model(inputs_embeds=torch.cat([prefix[image][None], words], dim=1), output_attentions=True)
        wanted = whole.attentions[-2][0, :3, -1, :start]
        torch.testing.assert_close(weights.exp(), wanted, rtol=1e-4, atol=1e-6)


def test_boxes_are_found_where_they_are_the_answer() -> None:
    questions = collate_questions(asked())
    found = pointing.boxes_asked_for(questions, CORNERS)
    assert found.corners.tolist() == [[0, 0, 33, 33], [50, 20, 100, 90], [5, 5, 5, 5]]
    image, question, token = found.where
    assert image.tolist() == [0, 1, 1] and question.tolist() == [0, 0, 2]
    assert (questions.tokens[image, question, token] == BRACE).all()


def test_an_answer_that_breaks_off_is_no_box() -> None:
    short = [[Sample((7, 8), (BRACE, 21, 22, 23))], [Sample((7, 8), (BRACE, 21, 22, 23, CLOSE, END))]]
    assert not len(pointing.boxes_asked_for(collate_questions(short), CORNERS).corners)


def test_what_a_box_covers() -> None:
    boxes = [[0, 0, 50, 100], [25, 25, 75, 75], [60, 60, 60, 60], [100, 0, 100, 0], [0, 0, 75, 100], [40, 0, 90, 30]]
    shares = pointing.covered(torch.tensor(boxes), 2)
    wanted = [[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 0, 0], [1, 0.5, 1, 0.5], [0.25, 1, 0, 0]]
    torch.testing.assert_close(shares, torch.tensor(wanted, dtype=torch.float32))


@given(
    st.lists(st.integers(0, 100), min_size=2, max_size=2, unique=True).map(sorted),
    st.lists(st.integers(0, 100), min_size=2, max_size=2, unique=True).map(sorted),
    st.integers(1, 9),
)
def test_shares_are_of_the_overlap(xs: list[int], ys: list[int], grid: int) -> None:
    shares = pointing.covered(torch.tensor([[xs[0], ys[0], xs[1], ys[1]]]), grid).view(grid, grid)
    assert float(shares.max()) == pytest.approx(1.0) and float(shares.min()) >= 0
    for row in range(grid):
        for column in range(grid):
            apart = max(xs[0], 100 * column / grid) >= min(xs[1], 100 * (column + 1) / grid)
            apart = apart or max(ys[0], 100 * row / grid) >= min(ys[1], 100 * (row + 1) / grid)
            if apart:
                assert float(shares[row, column]) < 1e-3


def loss_of(model: Any, prefix: torch.Tensor, questions: Questions) -> torch.Tensor | None:
    with watched_pass(model, prefix, questions) as seen:
        return pointing.pointing_loss(seen, questions, 1, GRID, CORNERS, 2)


def test_looks_are_learnt_by_the_heads_that_are_told_and_by_the_image() -> None:
    model, questions = make(), collate_questions(asked())
    prefix = torch.randn(2, 1 + GRID * GRID, 32).requires_grad_()
    weights = [model.model.layers[-2].self_attn.q_proj.weight, model.model.layers[0].mlp.up_proj.weight]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    losses = []
    for _ in range(25):
        loss = loss_of(model, prefix, questions)
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0], losses
    assert prefix.grad is not None and float(prefix.grad.abs().sum()) > 0
    told = weights[0].grad
    assert told is not None and not told[16:].any() and told[:16].any(), "two heads of eight rows each are told"


def test_without_a_box_there_is_no_loss_and_without_a_pass_an_error() -> None:
    model = make()
    words = collate_questions([[Sample((7, 8), (9, END))]])
    assert loss_of(model, torch.randn(1, 1 + GRID * GRID, 32), words) is None
    with (
        pointing.watched(model.model, -2) as seen,
        pytest.raises(RuntimeError, match="expected a forward pass within `watched`"),
    ):
        pointing.pointing_loss(seen, collate_questions(asked()), 1, GRID, CORNERS)
    assert not model.model.layers[-2].self_attn._forward_pre_hooks
