"""Attention of many short questions to one long beginning that they share, exact and without copying the beginning.

A question's token sees the whole prefix and the earlier tokens of its own question. The scores against the prefix are
one large matrix product over the tokens of *all* questions; the scores within a question are many small ones. One
softmax over both joins the two parts exactly: nothing is approximated, and neither a mask of (questions x questions)
nor a copy of the prefix per question is made.

It is one of transformers' attention implementations, so any decoder that takes them takes this one, LoRA and all. A
call is given a `SharedPrefix` (keys and values read before: answering) or a `PackedQuestions` (the prefix is in the
same row: training); without either it is transformers' own sdpa.

Compare Hydragen (Juravsky et al. 2024), which joins the parts by their log-sum-exp on a GPU. On a processor one softmax
over both parts was as fast in float32 and 1.5 times as fast in bfloat16, and it can be differentiated as it stands;
rows against a broadcast prefix took 2 to 8 times as long, one packed row with a block mask 2 to 7 times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "shared_prefix"
# Scores computed at a time on a processor: tensors much larger are mapped anew, and cleared, at every use.
SCORES = 1 << 22


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Keys and values of a prefix that was read before, for rows that each continue it.

    The queries, keys and values of the call belong to N rows; the call's attention mask (N, 1, q, S), True where a
    token may look, is about the rows' own tokens only.
    """

    keys: tuple[torch.Tensor, ...]  # per layer (1, key heads, P, head size)
    values: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class PackedQuestions:
    """Rows that hold a prefix and then `questions` blocks of `width` tokens each, padded at each block's end."""

    prefix: int
    questions: int
    width: int


@contextmanager
def shared_attention(model: Any) -> Iterator[None]:
    """Within this block `model` attends by `attend`; calls without its layouts are sdpa, as before or instead.

    A backward pass that recomputes layers (gradient checkpointing) belongs into the block too.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    shared_prefix: SharedPrefix | PackedQuestions | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a layer in transformers' form: query (N, heads, q, d) to output (N, q, heads, d).

    Raises:
        ValueError: for a model with attention sinks, or with dropout in attention.
    """
    if shared_prefix is None:
        if softcap is not None:
            raise ValueError("transformers' sdpa has no soft-capping; call this model outside of shared_attention")
        plain = {"scaling": scaling, "dropout": dropout, **others}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **plain)
    if others.get("s_aux") is not None or dropout:
        raise ValueError("attention sinks and attention dropout are not part of shared-prefix attention; use 'rows'")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(shared_prefix, SharedPrefix):
        assert attention_mask is not None, "rows that continue a prefix say which of their own tokens are visible"
        layer = module.layer_idx
        prefix = shared_prefix.keys[layer], shared_prefix.values[layer]
        output = joined(query[None], key[None], value[None], *prefix, attention_mask[None, :, 0], scale, softcap)
        return output[0].transpose(1, 2), None
    return _packed(query, key, value, shared_prefix, scale, softcap), None


def joined(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of N questions each on B prefixes.

    Args:
        query: (B, N, heads, q, d).
        key, value: the questions' own tokens, (B, N, key heads, S, d); each key head serves heads / key heads queries.
        prefix_key, prefix_value: (B, key heads, P, d), seen by every token.
        mask: (B or 1, N or 1, q, S) bool, True where a token sees one of its question's own.
        scale: of the scores.
        softcap: scores are bounded by softcap * tanh(score / softcap), where given (Gemma 2).

    Returns:
        (B, N, heads, q, d).
    """
    batch, count, heads, width, size = query.shape
    groups = key.shape[2]
    shared = heads // groups
    # Heads to the front: one product per key head over all questions, without a copy of the prefix.
    asked = (query * scale).view(batch, count, groups, shared, width, size).transpose(1, 2)
    flat = asked.reshape(batch, groups, count * shared * width, size)
    far = flat @ prefix_key.transpose(-1, -2)
    own_key, own_value = key.transpose(1, 2), value.transpose(1, 2)  # (B, key heads, N, S, d)
    near = flat.view(batch, groups, count, shared * width, size) @ own_key.transpose(-1, -2)
    if softcap is not None:
        far, near = (softcap * torch.tanh(scores / softcap) for scores in (far, near))
    visible = mask[:, None, :, None].expand(-1, 1, -1, shared, -1, -1).flatten(3, 4)  # (B or 1, 1, N or 1, gq, S)
    near = near.masked_fill(~visible, torch.finfo(near.dtype).min)
    far, near, total = _weights(far, near.view(batch, groups, flat.shape[2], -1))
    output = (near.view(batch, groups, count, shared * width, -1) @ own_value).view(flat.shape)
    output = output + far @ prefix_value
    output = output if total is None else output.div_(total)
    return output.view(batch, groups, count, shared, width, size).transpose(1, 2).reshape(query.shape)


def _weights(far: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """One softmax over two tensors of scores side by side, and what its results are still to be divided by.

    Without gradients it is done in place: fresh memory of this size costs more than the arithmetic on a processor.
    """
    if torch.is_grad_enabled():
        scores = torch.cat([far, near], dim=-1)
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
        return weights[..., : far.shape[-1]], weights[..., far.shape[-1] :], None
    largest = near.amax(-1, keepdim=True)
    if far.shape[-1]:
        largest = torch.maximum(largest, far.amax(-1, keepdim=True))
    far, near = far.sub_(largest).exp_(), near.sub_(largest).exp_()
    return far, near, far.sum(-1, keepdim=True).add_(near.sum(-1, keepdim=True))


def _packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedQuestions,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention within rows (B, heads, P + N q, d): the prefix to itself, each question to the prefix and itself."""
    start, count, width = layout.prefix, layout.questions, layout.width
    batch, heads, _, size = query.shape

    def questions(states: torch.Tensor) -> torch.Tensor:
        return states[:, :, start:].reshape(batch, states.shape[1], count, width, size).transpose(1, 2)

    causal = torch.ones(width, width, dtype=torch.bool, device=query.device).tril()[None, None]
    first_key, first_value = key[:, :, :start], value[:, :, :start]
    some = count if query.device.type != "cpu" else max(1, SCORES // (batch * heads * width * (start + width)))
    own = (questions(states).split(some, dim=1) for states in (query, key, value))
    parts = [
        joined(q, k, v, first_key, first_value, causal, scale, softcap)  # some of the questions
        for q, k, v in zip(*own, strict=True)
    ]
    answers = torch.cat(parts, dim=1)
    # The prefix is a question of its own, with nothing before it.
    alone = torch.ones(start, start, dtype=torch.bool, device=query.device).tril()[None, None]
    head = joined(
        query[:, None, :, :start],
        first_key[:, None],
        first_value[:, None],
        first_key[:, :, :0],
        first_value[:, :, :0],
        alone,
        scale,
        softcap,
    )
    tail = answers.transpose(2, 3).reshape(batch, count * width, heads, size)
    return torch.cat([head[:, 0].transpose(1, 2), tail], dim=1)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
