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
phrases are asked about one picture. Prompts and options are laid out as a tree of token segments (`prompt_tree`). A
branch of at most a few hundred tokens, say a candidate list with all its phrases and their options, is one row of one
forward pass, in which a block mask keeps apart what is not above each other; of a longer branch the first segment is
run, and its keys and values are handed to the rows that continue it. Position ids are explicit, so the result equals
that of one full forward pass per option.

Models whose positions lie in the attention mask (ALiBi) take no block mask: every segment is a row of its own. Models
whose attention cannot be continued (sliding windows shorter than the prompt, recurrent layers, flash attention) are
run on whole sequences in plain batches. Same numbers, less sharing.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import DynamicCache

from seewhere.models.caches import can_share_prefixes, select_rows, takes_block_masks
from seewhere.models.prompt_tree import Row, Segment, Tokens, prompt_tree, sequences
from seewhere.packing import additive_mask, mask_of

# Longest row that a branch of the tree is read in. Attention costs its square, most of it masked: at this length it
# is a fifth of the work of a model of a hundred million parameters, and less in larger ones.
LONGEST_ROW = 512


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
    roots = prompt_tree(prompts, options) if share else sequences(prompts, options)
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
        branches = keep_cache and takes_block_masks(model)
        self.longest_row = min(batch_tokens, LONGEST_ROW) if branches else 0
        self.additive = additive_mask(model) if branches else None
        self.device = model.get_input_embeddings().weight.device
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.some_only = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.seen: set[int] = set()

    def run(self, segments: list[Segment], state: _State | None, above: list[int] | None = None) -> None:
        """Run `segments`, each continuing row `above[i]` of `state`, and everything below them."""
        rows, above = self._rows(segments, above if above is not None else [0] * len(segments), state is not None)
        for chunk in self._chunks(rows, 0 if state is None else state.mask.shape[1]):
            chosen = [rows[i] for i in chunk]
            keep = bool(chosen[0].children)
            places = _places(chosen)
            after, logits = self._forward(chosen, state, [above[i] for i in chunk], places, keep)
            self._read(chosen, places, logits)
            below = [(child, number) for number, row in enumerate(chosen) for child in row.children]
            if below:
                self.run([child for child, _ in below], after, [number for _, number in below])

    def _rows(self, segments: list[Segment], above: list[int], continued: bool) -> tuple[list[Row], list[int]]:
        """Whole branches as rows where they are short enough, single segments otherwise; and what each continues.

        Branches that continue the same row are put into one, which saves copies of its keys and values.
        """
        rows: list[tuple[Row, int]] = []
        short: dict[int, list[Segment]] = defaultdict(list)
        for segment, number in zip(segments, above, strict=True):
            if segment.size <= self.longest_row:
                short[number].append(segment)
            else:
                rows.append((Row([segment.alone], segment.children), number))
        for number, branches in short.items():
            group: list[Segment] = []
            for branch in sorted(branches, key=lambda b: -b.size):
                if group and (not continued or sum(b.size for b in group) + branch.size > self.longest_row):
                    rows.append((Row(group), number))
                    group = []
                group.append(branch)
            rows.append((Row(group), number))
        return [row for row, _ in rows], [number for _, number in rows]

    def _chunks(self, rows: list[Row], past: int) -> Iterator[list[int]]:
        """Indices of rows of similar length, within both token limits; at least one per chunk."""
        order = sorted(range(len(rows)), key=lambda i: (bool(rows[i].children), -len(rows[i])))
        chunk: list[int] = []
        width, has_children = 0, False
        for i in order:
            wider = max(width, len(rows[i]))
            count = len(chunk) + 1
            full = count * wider > self.batch_tokens or count * (past + wider) > self.cache_tokens
            if chunk and (full or bool(rows[i].children) != has_children):
                yield chunk
                chunk, wider = [], len(rows[i])
            chunk.append(i)
            width, has_children = wider, bool(rows[i].children)
        if chunk:
            yield chunk

    def _forward(
        self, rows: list[Row], state: _State | None, above: list[int], places: list[tuple[int, int]], keep: bool
    ) -> tuple[_State | None, torch.Tensor]:
        """One forward pass; gives the state after it, if `keep`, and the logits (places, vocabulary)."""
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        depths, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        # Padding goes to the left, so that answers are read at the last columns; but where nothing stands before it,
        # it would have nothing to attend to (not-a-number in half precision), so there to the right.
        starts = [0 if state is None else width - len(row) for row in rows]
        for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
            ids[number, start : start + len(row)] = torch.from_numpy(row.tokens)
            depths[number, start : start + len(row)] = torch.from_numpy(row.depths)
            mask[number, start : start + len(row)] = 1
        mask = mask.to(self.device)
        before = torch.zeros(len(rows), 1, dtype=torch.long, device=self.device)
        cache, whole = DynamicCache() if keep else None, mask
        if state is not None:
            picked = torch.tensor(above, device=self.device)
            cache, before = select_rows(state.cache, picked), state.lengths[picked, None]
            whole = torch.cat([state.mask[picked], mask], dim=1)
        seen = whole if all(row.visible is None for row in rows) else self._block_mask(rows, starts, whole, width)
        columns = torch.tensor([starts[number] + column for number, column in places] or [width - 1])
        kept, columns = columns.unique(return_inverse=True)
        keywords: dict[str, Any] = {"logits_to_keep": kept.to(self.device)} if self.some_only else {}
        output = self.model(
            input_ids=ids.to(self.device),
            attention_mask=seen,
            position_ids=before + depths.to(self.device),
            past_key_values=cache,
            use_cache=cache is not None,
            **keywords,
        )
        after = _State(output.past_key_values, whole, whole.sum(1)) if keep else None
        owners = torch.tensor([number for number, _ in places] or [0])
        return after, output.logits[owners, columns if self.some_only else kept[columns]]

    def _block_mask(self, rows: list[Row], starts: list[int], whole: torch.Tensor, width: int) -> torch.Tensor:
        """Mask (rows, 1, width, positions): all real tokens of the past, and of a row what lies above each token."""
        visible = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: never nothing
        for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
            inner = np.tri(len(row), dtype=bool) if row.visible is None else row.visible
            visible[number, start : start + len(row), start : start + len(row)] = torch.from_numpy(inner)
        past = whole[:, None, :-width].bool().expand(-1, width, -1)
        return mask_of(torch.cat([past, visible.to(self.device)], dim=2)[:, None], self.additive)

    def _read(self, rows: list[Row], places: list[tuple[int, int]], logits: torch.Tensor) -> None:
        number_of = {place: i for i, place in enumerate(places)}
        reads = [(number_of[i, column], *read) for i, row in enumerate(rows) for column, *read in row.reads]
        if not reads:
            return
        numbers, tokens, questions, options = (list(column) for column in zip(*reads, strict=True))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        values = (logits[numbers, tokens] - logits.logsumexp(-1)[numbers]).double().cpu().numpy()
        for question, option, value in zip(questions, options, values, strict=True):
            self.scores[question][option] += value
        fresh = set(questions) - self.seen
        self.seen |= fresh
        self.bar.update(len(fresh))


def _places(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(number of the row, column) behind which something is read, each once."""
    return list(dict.fromkeys((number, read[0]) for number, row in enumerate(rows) for read in row.reads))
