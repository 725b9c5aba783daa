"""Exact probabilities over a closed list of answers, for many questions at once.

Generating an answer and parsing it can fail: the model may ramble, or name an index that does not exist. Asking
instead *how probable each valid answer is* cannot, and it is cheaper: one forward pass over the prompt usually scores
every answer, where generation needs one pass per token. This module does that for token ids; text is turned into
tokens in `language_model`.

**What is scored.** The probability of an option is the product of the probabilities of its tokens after the prompt.
When one option's tokens begin another's ("1" and "12" with a tokenizer that splits digits), the bare products are not
comparable: "1" would collect the mass of everything that starts with "1". `close_options` therefore appends the end
token to *every* option of such a question, so that each score is the probability of answering exactly that and
stopping. Where no option begins another, nothing is appended and one forward pass answers.

**How it is computed.** Prompts of one run share long beginnings: the chat header, and the candidate list when several
phrases are asked about one picture. The prompts are laid out as a tree of token segments; a beginning worth sharing
is run once, its keys and values are copied to the rows that continue it, and those rows are run in batches. Options
are one more level of the same tree: their first tokens are read off the last position of the prompt, and only those
with further tokens are run further. Padding is masked and position ids are explicit, so the result equals that of one
full forward pass per option.

Models whose attention cannot be continued this way (sliding windows shorter than the prompt, recurrent layers, flash
attention) are run on whole sequences in plain batches: same numbers, no sharing.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import DynamicCache

from seewhere.models.caches import can_share_prefixes, select_rows

Tokens = tuple[int, ...]

# Sharing a beginning costs one more row to run; fewer saved tokens than this are not worth it.
MINIMUM_SAVED_TOKENS = 16


@dataclass(slots=True)
class _Segment:
    """A run of tokens in the tree of everything that has to be read, after the segments above it."""

    tokens: Tokens
    # (next token, question, option): log-probabilities to read off this segment's last position.
    reads: list[tuple[int, int, int]] = field(default_factory=list)
    children: list[_Segment] = field(default_factory=list)


def close_options(options: Sequence[Sequence[int]], end_token: int) -> list[Tokens]:
    """Options (token ids) with `end_token` appended to all of them if one of them begins another.

    Raises:
        ValueError: if two options have the same tokens.
    """
    given = sorted(tuple(option) for option in options)
    for first, second in pairwise(given):
        if first == second:
            raise ValueError(f"expected distinct options, but the tokens {list(first)} occur twice")
    # In sorted order a prefix stands directly before one of the options it begins.
    nested = any(second[: len(first)] == first for first, second in pairwise(given))
    return [tuple(option) + ((end_token,) if nested else ()) for option in options]


def option_log_probabilities(
    model: Any,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    share: bool | None = None,
    batch_tokens: int | None = None,
    cache_tokens: int | None = None,
    progress: bool = False,
) -> list[np.ndarray]:
    """Log-probability of each option after its prompt, not normalised over the options.

    Args:
        model: a causal language model of transformers (or a peft model around one), in evaluation mode.
        prompts: token ids, one non-empty sequence per question.
        options: for each question its options as token ids, each non-empty and all different.
        share: reuse common beginnings; None decides by the model's attention (`can_share_prefixes`).
        batch_tokens: most new tokens (rows x width) in one forward pass: the working memory. By default 512 on a CPU,
            where larger batches only add padding, and 16384 on a GPU.
        cache_tokens: most tokens (rows x length) whose keys and values are kept per level of the tree; by default
            8192 on a CPU and 65536 on a GPU.
        progress: show a progress bar over the questions.

    Returns:
        For each question a float64 array (number of options,). Natural logarithm.

    Raises:
        ValueError: for an empty prompt, a question without options, an empty or a repeated option.
    """
    _check(prompts, options)
    if not prompts:
        return []
    longest = max((len(p) + max(map(len, o)) for p, o in zip(prompts, options, strict=True)))
    if share is None:
        share = can_share_prefixes(model, longest)
    elif share and not can_share_prefixes(model, longest):
        raise ValueError(
            "share=True needs eager or sdpa attention over the whole sequence, which this model does not have. "
            "Leave share=None to let the model decide."
        )
    on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    batch_tokens = batch_tokens or (512 if on_cpu else 16384)
    cache_tokens = cache_tokens or (8192 if on_cpu else 65536)
    scores = [np.zeros(len(choices)) for choices in options]
    roots = _tree(prompts, options) if share else _sequences(prompts, options)
    with torch.inference_mode(), tqdm(total=len(prompts), disable=not progress, unit="question") as bar:
        runner = _Runner(model, scores, batch_tokens, cache_tokens, bar, keep_cache=share)
        runner.run(roots, None)
    return scores


def choose(
    model: Any,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    end_token: int,
    **settings: Any,
) -> list[np.ndarray]:
    """Probabilities over each question's options, summing to 1; `settings` as in `option_log_probabilities`.

    A question with one option gets probability 1 without the model being asked.
    """
    _check(prompts, options)
    asked = [i for i, choices in enumerate(options) if len(choices) > 1]
    closed = [close_options(options[i], end_token) for i in asked]
    scores = option_log_probabilities(model, [prompts[i] for i in asked], closed, **settings)
    probabilities = [np.ones(1) for _ in options]
    for i, values in zip(asked, scores, strict=True):
        weights = np.exp(values - values.max())
        probabilities[i] = weights / weights.sum()
    return probabilities


def _check(prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]) -> None:
    if len(prompts) != len(options):
        raise ValueError(f"expected one list of options per prompt, got {len(prompts)} prompts and {len(options)}")
    for i, (prompt, choices) in enumerate(zip(prompts, options, strict=True)):
        if not len(prompt):
            raise ValueError(f"question {i}: the prompt is empty; expected at least one token")
        if not len(choices):
            raise ValueError(
                f"question {i} has no options to choose from. Answer questions without candidates before asking."
            )
        if not all(len(option) for option in choices):
            raise ValueError(f"question {i} has an option without tokens; expected at least one in each")
        if len({tuple(option) for option in choices}) < len(choices):
            raise ValueError(f"question {i} has the same option twice; expected distinct options")


# ---------------------------------------------------------------------------------------------------- the tree


def _tree(prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]) -> list[_Segment]:
    """Segments that hold every prompt (shared beginnings once), each prompt's options below its last segment."""
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    top = _Segment(())
    # Work items: questions (in sorted order), tokens already placed, tokens known to be equal, segment above.
    work: list[tuple[list[int], int, int, _Segment]] = [(order, 0, 0, top)] if order else []
    while work:
        group, placed, equal, parent = work.pop()
        if len(group) == 1:
            parent.children.append(_leaf(group[0], prompts, options, placed))
            continue
        equal = _common(prompts[group[0]], prompts[group[-1]], equal)
        # A prompt keeps at least its last token to itself: that is where its answer is read.
        equal = min(equal, min(len(prompts[i]) for i in group) - 1)
        if (equal - placed) * (len(group) - 1) >= MINIMUM_SAVED_TOKENS:
            shared = _Segment(tuple(prompts[group[0]][placed:equal]))
            parent.children.append(shared)
            parent, placed = shared, equal
        branches: dict[int, list[int]] = defaultdict(list)
        for i in group:
            if len(prompts[i]) == equal + 1:
                parent.children.append(_leaf(i, prompts, options, placed))
            else:
                branches[prompts[i][equal]].append(i)
        work += [(branch, placed, equal, parent) for branch in branches.values()]
    return top.children


def _common(first: Sequence[int], second: Sequence[int], start: int) -> int:
    length = min(len(first), len(second))
    while start < length and first[start] == second[start]:
        start += 1
    return start


def _leaf(
    question: int, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]], placed: int
) -> _Segment:
    """The rest of a prompt, with the trie of its options below it (one token per segment)."""
    leaf = _Segment(tuple(prompts[question][placed:]))
    nodes: dict[Tokens, _Segment] = {(): leaf}
    for number, option in enumerate(options[question]):
        tokens = tuple(option)
        for depth, token in enumerate(tokens):
            above = nodes[tokens[:depth]]
            above.reads.append((token, question, number))
            path = tokens[: depth + 1]
            if len(path) < len(tokens) and path not in nodes:
                nodes[path] = _Segment((token,))
                above.children.append(nodes[path])
    return leaf


def _sequences(prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]) -> list[_Segment]:
    """The same work without sharing: one whole sequence per question and option beginning."""
    roots: list[_Segment] = []
    for question in range(len(prompts)):
        open_segments = [_leaf(question, prompts, options, 0)]
        while open_segments:
            segment = open_segments.pop()
            open_segments += [_Segment(segment.tokens + c.tokens, c.reads, c.children) for c in segment.children]
            roots.append(_Segment(segment.tokens, segment.reads))
    return roots


# ------------------------------------------------------------------------------------------------ running it


@dataclass(slots=True)
class _State:
    """Keys and values of a batch of rows, which of their positions are real, and how many are."""

    cache: Any
    mask: torch.Tensor  # (rows, positions) int64: 1 = a token, 0 = padding
    lengths: torch.Tensor  # (rows,) number of tokens


class _Runner:
    """Walks the tree depth first in chunks of rows, so memory stays bounded, and fills in the scores."""

    def __init__(
        self, model: Any, scores: list[np.ndarray], batch_tokens: int, cache_tokens: int, bar: Any, keep_cache: bool
    ) -> None:
        self.model, self.scores, self.bar, self.keep_cache = model, scores, bar, keep_cache
        self.batch_tokens, self.cache_tokens = batch_tokens, cache_tokens
        self.device = model.get_input_embeddings().weight.device
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.last_only = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.seen: set[int] = set()

    def run(self, segments: list[_Segment], state: _State | None, rows: list[int] | None = None) -> None:
        """Run `segments`, each continuing row `rows[i]` of `state`, and everything below them."""
        rows = rows if rows is not None else [0] * len(segments)
        for chunk in self._chunks(segments, 0 if state is None else state.mask.shape[1]):
            chosen = [segments[i] for i in chunk]
            after, logits = self._forward(chosen, state, [rows[i] for i in chunk])
            self._read(chosen, logits)
            below = [(child, row) for row, segment in enumerate(chosen) for child in segment.children]
            if below:
                self.run([child for child, _ in below], after, [row for _, row in below])

    def _chunks(self, segments: list[_Segment], past: int) -> Iterator[list[int]]:
        """Indices of segments of similar length, within both token limits; at least one per chunk."""
        order = sorted(range(len(segments)), key=lambda i: (bool(segments[i].children), -len(segments[i].tokens)))
        chunk: list[int] = []
        width, has_children = 0, False
        for i in order:
            wider = max(width, len(segments[i].tokens))
            count = len(chunk) + 1
            full = count * wider > self.batch_tokens or count * (past + wider) > self.cache_tokens
            if chunk and (full or bool(segments[i].children) != has_children):
                yield chunk
                chunk, wider = [], len(segments[i].tokens)
            chunk.append(i)
            width, has_children = wider, bool(segments[i].children)
        if chunk:
            yield chunk

    def _forward(
        self, segments: list[_Segment], state: _State | None, rows: list[int]
    ) -> tuple[_State | None, torch.Tensor]:
        """One forward pass; gives the state after it and the logits (rows, vocabulary) of the last position."""
        width = max(len(segment.tokens) for segment in segments)
        ids = torch.zeros(len(segments), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, segment in enumerate(segments):
            # Padding goes to the left, so that every answer is read at the last position; but where nothing stands
            # before it, it would have nothing to attend to (not-a-number in half precision), so there to the right.
            start = 0 if state is None else width - len(segment.tokens)
            ids[row, start : start + len(segment.tokens)] = torch.tensor(segment.tokens)
            mask[row, start : start + len(segment.tokens)] = 1
        last = torch.tensor([len(s.tokens) - 1 if state is None else width - 1 for s in segments])
        ids, mask = ids.to(self.device), mask.to(self.device)
        before = torch.zeros(len(segments), 1, dtype=torch.long, device=self.device)
        cache = DynamicCache() if self.keep_cache else None
        whole = mask
        if state is not None:
            picked = torch.tensor(rows, device=self.device)
            cache = select_rows(state.cache, picked)
            before = state.lengths[picked, None]
            whole = torch.cat([state.mask[picked], mask], dim=1)
        positions = (before + mask.cumsum(1) - 1).clamp(min=0)
        keywords: dict[str, Any] = {"use_cache": self.keep_cache, "past_key_values": cache}
        if self.last_only:
            kept, last = last.unique(return_inverse=True)
            keywords["logits_to_keep"] = 1 if state is not None else kept.to(self.device)
        output = self.model(input_ids=ids, attention_mask=whole, position_ids=positions, **keywords)
        after = _State(output.past_key_values, whole, whole.sum(1)) if self.keep_cache else None
        return after, output.logits[torch.arange(len(segments)), last]

    def _read(self, segments: list[_Segment], logits: torch.Tensor) -> None:
        wanted = [(row, *read) for row, segment in enumerate(segments) for read in segment.reads]
        if not wanted:
            return
        row, token, question, option = (list(column) for column in zip(*wanted, strict=True))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        values = (logits[row, token] - logits.logsumexp(-1)[row]).double().cpu().numpy()
        for q, o, value in zip(question, option, values, strict=True):
            self.scores[q][o] += value
        fresh = set(question) - self.seen
        self.seen |= fresh
        self.bar.update(len(fresh))
