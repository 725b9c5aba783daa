"""Packed questions behind an embedded prefix against one plain pass per question, in float64."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from seewhere.models import shared_attention as shared_attention_module
from seewhere.models.prefix_training import question_inputs, question_loss
from seewhere.models.shared_attention import shared_attention
from seewhere.packing import Sample, collate_questions
from seewhere.training import add_lora
from torch.nn import functional
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

SMALL = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def make(family: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    small = {**SMALL, "num_attention_heads": 4, "max_position_embeddings": 128, "attn_implementation": attention}
    if family == "neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**small, initializer_range=0.2)).double()
    config = LlamaConfig(**small, num_key_value_heads=2, initializer_range=0.3)
    model = LlamaForCausalLM(config).double()
    return add_lora(model, rank=4, alpha=8, dropout=0.0).double() if family == "lora" else model


def questions(seed: int = 0) -> list[list[Sample]]:
    """Questions about two images: one asks five, the other three, all beginning alike."""
    random = np.random.default_rng(seed)

    def some(least: int, most: int) -> list[int]:
        return random.integers(3, 48, random.integers(least, most)).tolist()

    return [[Sample((7, 8, 9, *some(1, 5)), (*some(1, 4), 2)) for _ in range(n)] for n in (5, 3)]


def one_by_one(model: Any, prefix: torch.Tensor, asked: list[list[Sample]]) -> torch.Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image, samples in zip(prefix, asked, strict=True):
        for sample in samples:
            words = model.get_input_embeddings()(torch.tensor([[*sample.prompt, *sample.answer]]))
            logits = model(inputs_embeds=torch.cat([image[None], words], dim=1)).logits[0]
            logits = logits[len(image) + len(sample.prompt) - 1 : -1]
            total = total + functional.cross_entropy(logits, torch.tensor(sample.answer), reduction="sum")
            count += len(sample.answer)
    return total / count


def gradients(model: Any, prefix: torch.Tensor, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    prefix.grad = None
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**found, "the prefix": prefix.grad.clone()}


@pytest.mark.parametrize(
    ("family", "attention", "merged", "recompute"),
    [
        ("llama", "sdpa", True, False),
        ("llama", "sdpa", True, True),
        ("llama", "sdpa", False, False),
        ("llama", "eager", False, False),
        ("lora", "sdpa", True, False),
        ("neox", "sdpa", True, False),
    ],
)
def test_loss_and_gradients_equal_those_of_single_questions(
    family: str, attention: str, merged: bool, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if recompute:
        monkeypatch.setattr(shared_attention_module, "SCORES", 2000)  # attention in several parts
    model, asked = make(family, attention).train(), questions()
    prefix = (torch.randn(2, 9, 32, dtype=torch.float64) * 0.5).requires_grad_()
    expected = one_by_one(model, prefix, asked)
    wanted = gradients(model, prefix, expected)
    if recompute:
        model.gradient_checkpointing_enable()
    with shared_attention(model) if merged else nullcontext():
        loss = question_loss(model, prefix, collate_questions(asked, multiple=4))
        found = gradients(model, prefix, loss)
    # Norms and eager softmax of the models are float32 inside, and sums are taken in another order.
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0 or "k_proj.bias" in name or "lora_A" in name
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_what_questions_share_is_stored_once() -> None:
    asked = questions()
    batch = collate_questions(asked, multiple=4)
    assert batch.shared.tolist() == [[7, 8, 9]] * 2
    assert batch.tokens.shape[:2] == (2, 5) and batch.tokens.shape[2] % 4 == 0
    for image, samples in enumerate(asked):
        for place, sample in enumerate(samples):
            labels = batch.labels[image, place]
            assert labels[labels != -100].tolist() == list(sample.answer)
            line = batch.tokens[image, place, : len(sample) - 3].tolist()
            assert line == [*sample.prompt[3:], *sample.answer]
    assert (batch.labels[1, 3:] == -100).all()


def test_a_single_question_keeps_a_token_of_its_prompt() -> None:
    batch = collate_questions([[Sample((5, 6, 7), (8, 2))]])
    assert batch.shared.tolist() == [[5, 6]] and batch.tokens.tolist() == [[[7, 8, 2]]]


def test_prefix_and_questions_must_fit() -> None:
    with pytest.raises(ValueError, match=r"expected a prefix \(2, P, D\)"):
        question_inputs(make("llama"), torch.zeros(1, 4, 32), collate_questions(questions()))
    with pytest.raises(ValueError, match="no questions"):
        collate_questions([[], []])


@pytest.mark.parametrize("packed", [False, True])
def test_a_window_shorter_than_question_and_prefix_is_refused(packed: bool) -> None:
    sizes = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=12)).double()
    batch = collate_questions([[Sample((7, 8, 9), (4, 2)), Sample((7, 8, 5), (6, 2))]])
    width = batch.shared.shape[1] + batch.tokens.shape[2]
    with shared_attention(model) if packed else nullcontext():
        assert question_loss(model, torch.zeros(1, 12 - width, 32, dtype=torch.float64), batch) > 0
        with pytest.raises(ValueError, match="sees 12 tokens back"):
            question_loss(model, torch.zeros(1, 13 - width, 32, dtype=torch.float64), batch)
