"""The randomly initialised language model that tests of several folders share."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(vocabulary: int, layers: int = 2, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """A Llama 32 wide with grouped keys; its weights are large enough that answers differ clearly."""
    torch.manual_seed(seed)
    chosen: dict[str, Any] = {
        "initializer_range": 0.4,
        "max_position_embeddings": 512,
        "num_key_value_heads": 2,
    } | settings
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        **chosen,
    )
    return LlamaForCausalLM(config)
