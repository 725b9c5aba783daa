"""One long beginning, thousands of short questions: read once, answered in lock-step.

Asking a picture for every pixel is 4096 questions that share some 260 tokens and differ in a dozen. Here

* **the prefix is read once**, and what all questions have in common in front ("[reconstruct] loc: [") joins it;
* **questions run against it together**, by `shared_attention` where the model takes it, else in rows that continue a
  broadcast copy of the prefix (decided when the engine is made, by comparing logits on a few tokens);
* **answers follow a grammar**: only its tokens are compared, and a token that it forces is appended unasked, so
  ``[r,g,b]`` takes three passes in place of seven where a number is one token;
* **memory stays within a budget**: questions are taken in chunks, whose size follows from the budget.

Answers are those of one greedy `generate` per question under the same grammar.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import DynamicCache

from seewhere.models.caches import can_share_prefixes, select_rows, shortest_window, takes_block_masks
from seewhere.models.grammar import AnswerGrammar
from seewhere.models.lockstep import Prefix, Rows, Walk, padded
from seewhere.models.output_layer import answers_only, only_columns
from seewhere.models.shared_attention import shared_attention

BUDGET = 1 << 30
WIDENED = 1 << 31
"""Bytes that a model of half precision may take in single precision, once, to see if two ways of attention agree."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of N questions under a grammar of C slots.

    `values` (N, C) int64: which text of each slot. `log_probabilities` (N, C) float64: of that text among the texts
    the grammar allows, given the slots before; natural logarithm.
    """

    values: np.ndarray
    log_probabilities: np.ndarray


class PrefixEngine:
    """Many short questions about one prefix, to any decoder of transformers.

    Args:
        model: a causal language model (or a peft model around one), in evaluation mode while it is asked.
        budget: most bytes that the questions in flight may take, beside the model and the prefix. At least one
            question is always in flight.
        attention: "merged" (`shared_attention`), "rows" (a copy of the prefix in front of every row), or None: merged
            where the model gives the same logits with it.
        batch_tokens: most new tokens in a pass, whatever the budget. By default 1024 on a processor, where more leaves
            its caches, and no limit elsewhere.
        progress: show a progress bar over the questions.

    Raises:
        ValueError: a budget below 1, an unknown attention, or "merged" for a model that cannot.
    """

    def __init__(
        self,
        model: Any,
        budget: int = BUDGET,
        attention: Literal["merged", "rows"] | None = None,
        batch_tokens: int | None = None,
        progress: bool = False,
    ) -> None:
        if budget < 1:
            raise ValueError(f"the budget is {budget} bytes; expected at least 1")
        if attention not in ("merged", "rows", None):
            raise ValueError(f"unknown attention {attention!r}; expected 'merged', 'rows' or None")
        self.model, self.budget, self.progress = model, budget, progress
        weight = model.get_input_embeddings().weight
        self.device, self.dtype = weight.device, weight.dtype
        self.batch_tokens = batch_tokens or (1024 if self.device.type == "cpu" else 1 << 30)
        works = attention != "rows" and self._merged_agrees()
        if attention == "merged" and not works:
            raise ValueError(
                f"{type(model).__name__} does not give the same logits with shared-prefix attention (windows shorter "
                "than the text, sinks, or an attention of its own). Use attention='rows' or None."
            )
        if attention is None and not works:
            warnings.warn(
                f"{type(model).__name__} ({self.dtype}) does not give the same logits with shared-prefix attention, so "
                "every question gets a copy of the prefix: slower, and more memory. With attention='rows' this is not "
                "told again.",
                stacklevel=2,
            )
        self.merged = works

    # ------------------------------------------------------------------------------------------------ the prefix

    @torch.inference_mode()
    def read(self, prefix: torch.Tensor | Sequence[int], after: Prefix | None = None) -> Prefix:
        """Read a prefix, or what comes after one already read (which stays as it is).

        Args:
            prefix: token ids (P,), or embeddings (P, D) or (1, P, D) in the place of tokens: an image.
            after: what stands before it.

        Raises:
            ValueError: an empty prefix, or one of another shape; a model whose cache cannot be shared.
        """
        given = torch.as_tensor(prefix, device=self.device)
        embedded = given.is_floating_point()
        given = given[None] if given.ndim == (2 if embedded else 1) else given
        if given.ndim != (3 if embedded else 2) or given.shape[0] != 1 or not given.shape[1]:
            raise ValueError(f"expected token ids (P,) or embeddings (P, D), got the shape {tuple(given.shape)}")
        start = after.length if after else 0
        length = start + given.shape[1]
        if not can_share_prefixes(self.model, length + 1):
            raise ValueError(
                f"the keys and values of {length} tokens of {type(self.model).__name__} cannot be continued by several "
                "questions: expected eager or sdpa attention over the whole text. Load it with "
                "attn_implementation='sdpa'."
            )
        cache = select_rows(after.cache, torch.zeros(1, dtype=torch.long)) if after else DynamicCache()
        places = torch.arange(start, length, device=self.device)[None]
        words = {"inputs_embeds": given.to(self.dtype)} if embedded else {"input_ids": given}
        with answers_only(self.model, torch.zeros(given.shape[:2], dtype=torch.bool, device=self.device)):
            self.model(**words, position_ids=places, past_key_values=cache, use_cache=True)
        return Prefix(cache, length)

    def _shared(self, prefix: Prefix, questions: Sequence[Sequence[int]]) -> tuple[Prefix, list[list[int]]]:
        """The prefix with what all questions begin with, and the rest of each (at least one token)."""
        for number, question in enumerate(questions):
            if not len(question):
                raise ValueError(f"question {number} is empty; expected at least one token")
        tails = [list(question) for question in questions]
        first, last = min(tails), max(tails)
        common, limit = 0, min(map(len, tails)) - 1
        while common < limit and first[common] == last[common]:
            common += 1
        if not common or len(tails) == 1:
            return prefix, tails
        return self.read(torch.tensor(first[:common]), prefix), [tail[common:] for tail in tails]

    # --------------------------------------------------------------------------------------------------- answers

    @torch.inference_mode()
    def decode(self, prefix: Prefix, questions: Sequence[Sequence[int]], grammar: AnswerGrammar) -> Answers:
        """Greedy answers under a grammar.

        Args:
            prefix: see `read`.
            questions: token ids of each question, up to where its answer starts; none empty.
            grammar: what an answer may be.

        Raises:
            ValueError: an empty question.
        """
        shape = len(questions), len(grammar.slots)
        answers = Answers(np.zeros(shape, dtype=np.int64), np.zeros(shape))
        if not len(questions):
            return answers
        prefix, tails = self._shared(prefix, questions)
        tables = grammar.tables.to(self.device)
        longest = sum(max(map(len, texts)) for texts in grammar.slots)
        merged = self._merges(prefix, max(map(len, tails)), longest)
        with self._attention(merged), only_columns(self.model, tables.tokens) as narrow:
            walk = Walk(grammar, tables, narrow)
            columns = len(tables.tokens) if narrow else self._columns()
            for chunk in self._chunks(tails, prefix, longest, columns):
                rows = Rows(self.model, prefix, len(chunk), merged)
                values, logs = walk.run(rows, [tails[i] for i in chunk])
                answers.values[chunk], answers.log_probabilities[chunk] = values.cpu(), logs.cpu()
        return answers

    @torch.inference_mode()
    def score(self, prefix: Prefix, questions: Sequence[Sequence[int]], options: Sequence[Sequence[int]]) -> np.ndarray:
        """Probabilities of the same few options after every question, (N, options) float64, rows summing to 1.

        As in `choose`: each option's probability is the product of its tokens' over the whole vocabulary, and these
        are normalised over the options. Close options that begin one another first (`choose.close_options`).

        Args:
            prefix, questions: as for `decode`.
            options: token ids of each option.

        Raises:
            ValueError: an empty question; fewer than two options, or an empty or repeated one.
        """
        if len(options) < 2 or len({tuple(o) for o in options}) < len(options) or not all(map(len, options)):
            raise ValueError(f"expected two or more different options with a token or more each, got {list(options)}")
        found = np.zeros((len(questions), len(options)))
        if not len(questions):
            return found
        prefix, tails = self._shared(prefix, questions)
        firsts = torch.tensor([option[0] for option in options], device=self.device)
        longest = max(map(len, options))
        # A softmax over the vocabulary is needed only where options differ in more than one token.
        narrowing = only_columns(self.model, firsts) if longest == 1 else nullcontext(False)
        merged = self._merges(prefix, max(map(len, tails)), longest)
        with self._attention(merged), narrowing as narrow:
            columns = len(options) if narrow else self._columns() * longest
            for chunk in self._chunks(tails, prefix, longest, columns):
                rows = Rows(self.model, prefix, len(chunk), merged)
                logits = rows.feed(*padded([tails[i] for i in chunk], self.device)).double()
                logs = logits if narrow else logits.log_softmax(-1)[:, firsts]
                for number, option in enumerate(options):
                    if len(option) > 1:
                        logs[:, number] += _continued(rows.twin(), option)
                found[chunk] = logs.softmax(-1).cpu()
        return found

    # ---------------------------------------------------------------------------------------------------- chunks

    def row_bytes(self, prefix: Prefix, width: int, longest: int, columns: int) -> int:
        """Estimated working memory of one question, from above.

        Args:
            prefix: what the question continues.
            width: tokens of the question behind it.
            longest: most tokens of an answer.
            columns: columns of the logits.
        """
        config = self.model.config.get_text_config(decoder=True)
        layers, heads, hidden = config.num_hidden_layers, config.num_attention_heads, config.hidden_size
        inner = getattr(config, "intermediate_size", None) or 4 * hidden
        inner = max(inner) if isinstance(inner, (list, tuple)) else inner  # Gemma 3n names one for each layer
        size = self.dtype.itemsize
        # What is not full precision is widened inside norms and softmax.
        wide = 4 if size < 4 else 0
        own, whole = width + longest, prefix.length + width + longest
        merged = self._merges(prefix, width, longest)
        token = sum(2 * keys.shape[1] * keys.shape[3] * size for keys in prefix.layout().keys)
        kept = token * (own if merged else whole)
        appended = 4 * token // layers * (own if merged else whole)
        scores = heads * width * whole * (4 * size + wide)
        states = width * (10 * hidden + 4 * inner) * (size + wide)
        return kept + appended + max(scores, states) + columns * (size + 3 * 8)

    def _chunks(
        self, tails: Sequence[Sequence[int]], prefix: Prefix, longest: int, columns: int
    ) -> Iterator[list[int]]:
        """Places of questions of about one length, longest first, as many as fit."""
        order = sorted(range(len(tails)), key=lambda i: -len(tails[i]))
        with tqdm(total=len(tails), unit="question", disable=not self.progress) as bar:
            start = 0
            while start < len(order):
                width = len(tails[order[start]])
                fitting = self.budget // self.row_bytes(prefix, width, longest, columns)
                alone = self._alone(prefix, width, longest)
                count = 1 if alone else max(1, min(fitting, self.batch_tokens // width))
                yield order[start : start + count]
                start += count
                bar.update(min(count, len(order) - start + count))

    def _columns(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    # ------------------------------------------------------------------------------------------------- attention

    def _merges(self, prefix: Prefix, width: int, longest: int) -> bool:
        """Whether shared-prefix attention is right here: it sees all that is before, so no window may be shorter."""
        window = shortest_window(self.model)
        return self.merged and (window is None or prefix.length + width + longest <= window)

    def _alone(self, prefix: Prefix, width: int, longest: int) -> bool:
        """Whether a question must not be padded: a model may count padding as distance.

        So do models that take positions from the cache or the mask, and windows that end within the text.
        """
        if self._merges(prefix, width, longest):
            return False
        window = shortest_window(self.model)
        within = window is not None and window < prefix.length + width + longest
        return within or not takes_block_masks(self.model)

    @contextmanager
    def _attention(self, merged: bool) -> Iterator[None]:
        with shared_attention(self.model) if merged else nullcontext():
            yield

    @torch.inference_mode()
    def _merged_agrees(self) -> bool:
        """Whether three tokens continued in two ways give the logits of whole texts."""
        if not can_share_prefixes(self.model, 8):
            return False
        if self.dtype.itemsize < 4 and _widenable(self.model):
            # Two right ways differ by several per cent in half precision: too near to what a wrong one may give.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the outcome is told once, by the engine that asked
                return PrefixEngine(copy.deepcopy(self.model).float()).merged
        start, tails = [1, 2, 3], [[4, 5], [6, 7]]
        try:
            whole = torch.tensor([start + tail for tail in tails], device=self.device)
            expected = self.model(input_ids=whole, use_cache=False).logits[:, -1].float()
            prefix = self.read(start)
            with shared_attention(self.model):
                found = Rows(self.model, prefix, 2, merged=True).feed(*padded(tails, self.device)).float()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False
        tolerance = 1e-3 if self.dtype.itemsize >= 4 else 5e-2
        return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1.0))


def _widenable(model: Any) -> bool:
    """Whether a copy of the model in single precision is small enough to be made in passing."""
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return not getattr(model, "is_quantized", False) and 4 * numbers <= WIDENED


def _continued(rows: Rows, option: Sequence[int]) -> torch.Tensor:
    """Log-probability of an option's tokens after its first, for each row, (N,)."""
    count, width = len(rows.real), len(option) - 1
    tokens = torch.tensor(option, device=rows.device)
    before = tokens[None, :-1].expand(count, -1)
    logs = rows.feed(before, torch.ones_like(before, dtype=torch.bool), every=True).double().log_softmax(-1)
    return logs.view(count, width, -1).gather(2, tokens[1:].expand(count, -1)[..., None]).sum((1, 2))
