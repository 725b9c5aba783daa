"""Rows of tokens in flight behind a shared prefix, and the walk of all of them through an answer grammar at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from seewhere.models.caches import select_rows
from seewhere.models.grammar import AnswerGrammar, Tables
from seewhere.models.output_layer import answers_only
from seewhere.models.shared_attention import SharedPrefix

# Rows whose answer is complete are dropped when they are this share of all: dropping copies the others.
DONE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Prefix:
    """A beginning that was read: its keys and values, and its length in tokens."""

    cache: DynamicCache
    length: int

    def layout(self) -> SharedPrefix:
        """What `shared_attention` is given."""
        layers: list[Any] = self.cache.layers
        return SharedPrefix(tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers))


class Rows:
    """N rows that each continue the same prefix.

    Args:
        model: the language model; within `shared_attention` if `merged`.
        prefix: what was read.
        count: number of rows.
        merged: keep the rows' own keys and values only; else a copy of the prefix stands in front of each.
    """

    def __init__(self, model: Any, prefix: Prefix, count: int, merged: bool) -> None:
        self.model, self.prefix, self.merged = model, prefix, merged
        self.device = model.get_input_embeddings().weight.device
        self.layout = prefix.layout() if merged else None
        everyone = torch.zeros(count, dtype=torch.long, device=self.device)
        self.cache = DynamicCache() if merged else select_rows(prefix.cache, everyone)
        # Which of the rows' own places hold a token; the others are padding, seen by nobody.
        self.real = torch.zeros(count, 0, dtype=torch.bool, device=self.device)

    def feed(self, tokens: torch.Tensor, real: torch.Tensor, every: bool = False) -> torch.Tensor:
        """Append `tokens` (N, q) where `real` (N, q) to the rows.

        Returns:
            Logits of each row's last appended token, (N, columns), or with `every` of all q tokens, (N * q, columns).
            Rows to which nothing was appended give numbers without a meaning.
        """
        before = self.real.sum(1, keepdim=True)
        places = (self.prefix.length + before + real.long().cumsum(1) - 1).clamp(min=0)
        self.real = torch.cat([self.real, real], dim=1)
        width, whole = tokens.shape[1], self.real.shape[1]
        if self.merged:
            causal = torch.ones(width, whole, dtype=torch.bool, device=self.device).tril(whole - width)
            mask = (self.real[:, None] & causal)[:, None]
        else:
            seen = self.real.new_ones(len(real), self.prefix.length)
            mask = torch.cat([seen, self.real], dim=1).long()
        keep = torch.ones_like(real)
        if not every:
            last = (real * torch.arange(1, width + 1, device=self.device)).argmax(1)
            keep = torch.arange(width, device=self.device) == last[:, None]
        layout = {"shared_prefix": self.layout} if self.merged else {}
        with answers_only(self.model, keep):
            output = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=places,
                past_key_values=self.cache,
                use_cache=True,
                **layout,
            )
        return output.logits

    def select(self, rows: torch.Tensor) -> None:
        """Go on with some of the rows only."""
        self.cache, self.real = select_rows(self.cache, rows), self.real[rows]

    def twin(self) -> Rows:
        """The same rows, to be continued in another way."""
        other = copy.copy(self)
        other.cache = select_rows(self.cache, torch.arange(len(self.real), device=self.device))
        return other


def padded(lines: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and which are real, (N, longest), padded on the right."""
    width = max(map(len, lines))
    tokens = torch.tensor([[*line, *[0] * (width - len(line))] for line in lines])
    real = torch.arange(width) < torch.tensor([len(line) for line in lines])[:, None]
    return tokens.to(device), real.to(device)


class Walk:
    """Greedy answers of all rows at once.

    Args:
        grammar: the answers allowed.
        tables: its tables, on the model's device.
        narrow: whether logits have one column per token of the tables, in their order.
    """

    def __init__(self, grammar: AnswerGrammar, tables: Tables, narrow: bool) -> None:
        self.grammar, self.tables, self.narrow = grammar, tables, narrow

    def run(self, rows: Rows, tails: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer the questions `tails` (token ids): texts of each slot (N, C), and their log-probabilities."""
        tables, end = self.tables, self.grammar.end
        count, slots = len(tails), len(self.grammar.slots)
        run = tables.run[0, : tables.run_length[0]].tolist()
        values = tables.run_values[0].repeat(count, 1)
        logs = torch.zeros(count, slots, dtype=torch.float64, device=rows.device)
        state = tables.run_end[0].repeat(count)
        if int(state[0]) == end:
            return values, logs  # only one answer is allowed
        place = torch.arange(count, device=rows.device)  # row of the result that each row in flight belongs to
        tokens, real = padded([[*tail, *run] for tail in tails], rows.device)
        while True:
            logits = rows.feed(tokens, real)
            column, log = self._choose(logits, state)
            open_ = state != end
            logs[place, tables.current[state]] += torch.where(open_, log, 0.0)
            slot, value = tables.slot[state, column], tables.value[state, column]
            closed = open_ & (slot >= 0)
            values[place[closed], slot[closed]] = value[closed]
            after = torch.where(open_, tables.following[state, column], end)
            forced = tables.run_values[after]
            values[place] = torch.where(forced >= 0, forced, values[place])
            state = tables.run_end[after]
            waiting = state != end
            left = int(waiting.sum())
            if not left:
                return values, logs
            length = torch.where(waiting, 1 + tables.run_length[after], 0)
            tokens = torch.cat([tables.tokens[column, None], tables.run[after]], dim=1)
            if left <= (1 - DONE_SHARE) * len(place):
                rows.select(going := waiting.nonzero()[:, 0])
                place, state, length, tokens = place[going], state[going], length[going], tokens[going]
            tokens = tokens[:, : int(length.max())]
            real = torch.arange(tokens.shape[1], device=rows.device) < length[:, None]

    def _choose(self, logits: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest allowed column of each row, and its log-probability among those allowed (float64)."""
        logits = logits if self.narrow else logits[:, self.tables.tokens]
        allowed = self.tables.allowed[state]
        scores = torch.where(allowed, logits.double(), -torch.inf)
        best = scores.argmax(-1)
        return best, scores.gather(1, best[:, None])[:, 0] - scores.logsumexp(-1)
