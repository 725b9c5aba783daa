"""The output layer only where it is read: at some positions, and for some tokens of the vocabulary.

It is the widest layer of a language model (up to a quarter of a million columns) and most of what it computes is never
looked at. Both blocks below leave the model's own forward pass in charge, so LoRA, logit soft-capping, mixed precision
and distributed wrappers stay in force.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def answers_only(model: Any, keep: torch.Tensor) -> Iterator[None]:
    """Within this block the model's output layer sees only the positions marked in `keep` (rows, width), flattened."""
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][keep],))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def only_columns(model: Any, tokens: torch.Tensor) -> Iterator[bool]:
    """Within this block logits are computed for `tokens` (K,) only, if the output layer is a plain matrix.

    Gives whether it is: column i then belongs to `tokens[i]`. Otherwise (LoRA or quantisation on that layer) nothing
    changes. For inference: the columns are a copy.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        yield False
        return
    weight, bias = head.weight, head.bias
    head.weight = nn.Parameter(weight.detach()[tokens], requires_grad=False)
    if bias is not None:
        head.bias = nn.Parameter(bias.detach()[tokens], requires_grad=False)
    try:
        yield True
    finally:
        # The very parameters that were there: an output layer tied to the input embeddings stays tied.
        head.weight, head.bias = weight, bias
