"""Training on many questions per image in one pass, with the image as an embedded prefix.

The loss and every gradient, the image's included, are those of one pass per question: a question sees the image and
itself, and its positions start where the image ends. Within `shared_attention` attention is computed as such; without
it a block mask says the same to any model that takes one, at the cost of scores between all questions of a row.

    with shared_attention(model):
        loss = question_loss(model, image_tokens, collate_questions(questions))
        loss.backward()
"""

from __future__ import annotations

from typing import Any

import torch

from seewhere.models.caches import shortest_window
from seewhere.models.shared_attention import NAME, PackedQuestions
from seewhere.packing import IGNORED, Questions, mask_of
from seewhere.training import Loss, answer_loss, summed_cross_entropy


def question_loss(
    model: Any,
    prefix: torch.Tensor,
    questions: Questions,
    answer_tokens: torch.Tensor | int | None = None,
    loss: Loss = summed_cross_entropy,
) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens; see `training.answer_loss`.

    Args:
        model: a causal language model, possibly with LoRA.
        prefix: embeddings (B, P, D) that stand before the questions; gradients flow into them.
        questions: see `packing.collate_questions`.
        answer_tokens: what the sum is divided by, where a step spans several batches.
        loss: see `training.answer_loss`.
    """
    return answer_loss(model, question_inputs(model, prefix, questions), answer_tokens, loss=loss)


def question_inputs(model: Any, prefix: torch.Tensor, questions: Questions) -> dict[str, Any]:
    """One batch of rows (B, L) for `training.answer_loss`: prefix, shared tokens, and N blocks of W tokens.

    Raises:
        ValueError: if prefix and questions are about different numbers of images; a model whose attention does not
            reach over a whole question and its prefix.
    """
    if prefix.ndim != 3 or len(prefix) != len(questions.tokens):
        raise ValueError(f"expected a prefix ({len(questions.tokens)}, P, D), got the shape {tuple(prefix.shape)}")
    questions = questions.to(prefix.device)
    embed = model.get_input_embeddings()
    batch, count, width = questions.tokens.shape
    words = embed(torch.cat([questions.shared, questions.tokens.flatten(1)], dim=1))
    start = prefix.shape[1] + questions.shared.shape[1]
    window = shortest_window(model)
    if window is not None and window < start + width:
        raise ValueError(
            f"{type(model).__name__} sees {window} tokens back, and prefix and question have {start + width}: packed, "
            "a question would see more than alone. Use a shorter prefix, or a model without a sliding window."
        )
    places = torch.arange(width, device=prefix.device).repeat(count) + start
    places = torch.cat([torch.arange(start, device=prefix.device), places])
    nothing = questions.labels.new_full((batch, start), IGNORED)
    inputs: dict[str, Any] = {
        "inputs_embeds": torch.cat([prefix.to(words.dtype), words], dim=1),
        "position_ids": places.expand(batch, -1),
        "labels": torch.cat([nothing, questions.labels.flatten(1)], dim=1),
    }
    kind = model.config.get_text_config(decoder=True)._attn_implementation
    if kind == NAME:
        inputs["shared_prefix"] = PackedQuestions(start, count, width)
        # A mask of four dimensions is handed on as it is; this one keeps transformers from making its own.
        inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=prefix.device)
    elif kind in ("eager", "sdpa"):
        inputs["attention_mask"] = mask_of(
            _block_mask(start, count, width, prefix.device), words.dtype if kind == "eager" else None
        )
    else:
        raise ValueError(f"{kind} attention takes no block mask; load the model with attn_implementation='sdpa'")
    return inputs


def _block_mask(start: int, count: int, width: int, device: torch.device) -> torch.Tensor:
    """Which tokens see which, (1, 1, L, L) bool."""
    blocks = torch.arange(count, device=device).repeat_interleave(width)
    block = torch.cat([torch.full((start,), -1, device=device), blocks])
    return ((block[:, None] == block) | (block == -1)).tril()[None, None]
