"""Keys and values that several sequences continue: which models allow it, and how a row of a cache is handed on."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose state is keys and values alone."""


def can_share_prefixes(model: Any, longest: int) -> bool:
    """Whether the model's keys and values can be copied and continued for sequences of `longest` tokens.

    True for eager and sdpa attention over the whole sequence; False for sliding windows shorter than `longest`, layers
    that are no attention (recurrent, linear, convolutions), and other attention implementations (not tested with gaps
    in the mask).
    """
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "_attn_implementation", None) not in ("eager", "sdpa"):
        return False
    window = shortest_window(model)
    if window is not None and window < longest:
        return False
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds <= ATTENTION and not getattr(model, "_is_stateful", False)


def has_axes(model: Any) -> bool:
    """Whether a token's position has several axes (time, row and column of a picture), as in Qwen2-VL and later."""
    config = model.config.get_text_config(decoder=True)
    found = (getattr(config, "rope_parameters", None) or {}, getattr(config, "rope_scaling", None) or {})
    return any("mrope_section" in part or "xdrope_section" in part for part in found)


def bytes_per_token(model: Any) -> int:
    """Bytes that keys and values of one token take in all layers, as the configuration tells."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return 2 * config.num_hidden_layers * kept * width * model.dtype.itemsize


def shortest_window(model: Any) -> int | None:
    """Tokens that the layer with the shortest sliding window sees; None where every layer sees all that is before."""
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds == {"full_attention"} and not getattr(config, "use_sliding_window", True):
        return None
    windows = [getattr(config, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size")]
    return min((window for window in windows if isinstance(window, int)), default=None)


def takes_block_masks(model: Any) -> bool:
    """Whether the model takes a mask (rows, 1, queries, keys) with explicit positions.

    False where positions are counted from the mask itself (ALiBi: Bloom, MPT, some Falcons).
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    alibi = getattr(model.config.get_text_config(decoder=True), "alibi", False)
    return "position_ids" in inspect.signature(base.forward).parameters and not alibi


def select_rows(cache: Any, rows: torch.Tensor) -> DynamicCache:
    """A new cache whose row i is row `rows[i]` of `cache`; the given one is left as it is."""
    selected = DynamicCache()
    for layer in cache.layers:
        if type(layer) is not DynamicLayer:
            raise ValueError(f"cannot continue a {type(layer).__name__} for several questions; use share=False")
        twin = copy.copy(layer)
        twin.keys, twin.values = _pick(layer.keys, rows), _pick(layer.values, rows)
        selected.layers.append(twin)
    return selected


def _pick(values: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    assert values is not None, "a layer that has been run holds its keys and values"
    # One row is viewed, not copied: attention appends the new keys to it, which copies anyway.
    return values.expand(len(rows), -1, -1, -1) if values.shape[0] == 1 else values[rows]
