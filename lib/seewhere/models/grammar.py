"""What an answer may look like, in token ids: a small automaton that decoding walks through.

An answer is a row of slots, and each slot takes one of several texts: ``[r,g,b]`` is three slots of 256 texts each, a
mask answer one slot of two. Where the automaton leaves no choice (the bracket, the comma) a token need not be asked
for; where it does, only the tokens it allows are compared, so that no answer can fail to parse.

Tokens are those that the tokenizer itself makes of the whole answer, whatever it does with digits, commas and a
bracket in front: that is what the model was trained to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import torch

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tables:
    """The automaton as tensors, for many answers in lock-step; S states, K tokens, C slots.

    The last state is the end. A *run* is what follows a state without any choice, up to a choice or the end.
    """

    tokens: torch.Tensor  # (K,) every token that occurs in an answer
    allowed: torch.Tensor  # (S, K) bool
    following: torch.Tensor  # (S, K) state after a token
    slot: torch.Tensor  # (S, K) the slot that a token completes, or -1
    value: torch.Tensor  # (S, K) which of the slot's texts it then was
    current: torch.Tensor  # (S,) the slot that is being written
    run: torch.Tensor  # (S, R) tokens, padded with 0
    run_length: torch.Tensor  # (S,)
    run_end: torch.Tensor  # (S,) state after the run
    run_values: torch.Tensor  # (S, C) texts of the slots that the run completes, else -1

    def to(self, device: torch.device) -> Tables:
        """The same tables on a device."""
        return Tables(*(getattr(self, name).to(device) for name in self.__slots__))


class AnswerGrammar:
    """All answers that are one text of every slot, in order.

    Args:
        slots: for each slot its texts as token ids; no text of a slot may begin another one of it.

    Attributes:
        slots: the same, as tuples.
        tables: the automaton.

    Raises:
        ValueError: a slot without texts, an empty text, or one that begins another.
    """

    def __init__(self, slots: Sequence[Sequence[Sequence[int]]]) -> None:
        self.slots: tuple[tuple[Tokens, ...], ...] = tuple(tuple(tuple(text) for text in slot) for slot in slots)
        _check(self.slots)
        self._states, self._emits, current = _automaton(self.slots)
        self.end = len(self._states) - 1
        self.tables = _tables(self._states, self._emits, current, len(self.slots))

    @classmethod
    def from_texts(cls, tokenizer: Any, slots: Sequence[Sequence[str]]) -> AnswerGrammar:
        """The grammar of texts, in the tokens that `tokenizer` makes of whole answers (without special tokens).

        A separator belongs to the text that it closes: ``[["[0,", ...], ["0,", ...], ["0]", ...]]``.

        Raises:
            ValueError: if the tokens of a slot's text depend on what stands in the other slots.
        """

        def encode(answer: str) -> Tokens:
            return tuple(tokenizer(answer, add_special_tokens=False)["input_ids"])

        found: list[list[Tokens]] = []
        for place, texts in enumerate(slots):
            found.append([_cut(tokenizer, slots, place, text) for text in texts])
        draw = Random(0)
        for _ in range(64):
            chosen = [draw.randrange(len(texts)) for texts in slots]
            answer = "".join(texts[i] for texts, i in zip(slots, chosen, strict=True))
            pieces = tuple(token for texts, i in zip(found, chosen, strict=True) for token in texts[i])
            if encode(answer) != pieces:
                raise ValueError(
                    f"the tokenizer writes {answer!r} as {list(encode(answer))}, but its parts as {list(pieces)}: "
                    "texts of one slot change the tokens of another. Put a separator that is a token of its own "
                    "at the end of each slot."
                )
        return cls(found)

    def tokens_of(self, values: Sequence[int]) -> Tokens:
        """Token ids of the answer that takes text `values[i]` in slot i."""
        return tuple(token for slot, value in zip(self.slots, values, strict=True) for token in slot[value])

    def allowed_after(self, tokens: Sequence[int], end_token: int | None = None) -> list[int]:
        """Tokens that may follow the beginning of an answer, sorted; `end_token` where the answer is complete.

        The form that transformers' ``generate(prefix_allowed_tokens_fn=...)`` asks for.

        Raises:
            ValueError: if `tokens` does not begin an answer.
        """
        state = 0
        for number, token in enumerate(tokens):
            if state == self.end and token == end_token:
                break
            if token not in self._states[state]:
                raise ValueError(f"token {token} at place {number} is not one of {sorted(self._states[state])}")
            state = self._states[state][token]
        return sorted(self._states[state]) or ([] if end_token is None else [end_token])


def number_slots(opening: str, closings: Sequence[str], largest: int) -> list[list[str]]:
    """Texts of a list of whole numbers 0..`largest`: `number_slots("[", [",", ",", "]"], 255)` is ``[r,g,b]``."""
    return [
        [f"{opening if place == 0 else ''}{number}{closing}" for number in range(largest + 1)]
        for place, closing in enumerate(closings)
    ]


def _check(slots: Sequence[Sequence[Tokens]]) -> None:
    if not slots or not all(slots):
        raise ValueError("a grammar needs at least one slot, and each slot at least one text")
    for place, texts in enumerate(slots):
        ordered = sorted(texts)
        if not ordered[0]:
            raise ValueError(f"slot {place} has a text without tokens; expected at least one in each")
        for first, second in pairwise(ordered):
            if second[: len(first)] == first:
                raise ValueError(
                    f"slot {place}: the tokens {list(first)} begin {list(second)}, so it cannot be told where the "
                    "text ends. Put what closes the text (a comma, a bracket) into it."
                )


def _cut(tokenizer: Any, slots: Sequence[Sequence[str]], place: int, text: str) -> Tokens:
    """Tokens of `text` in slot `place`, cut out of a whole answer: those that start within it."""
    before = "".join(texts[0] for texts in slots[:place])
    after = "".join(texts[0] for texts in slots[place + 1 :])
    read = tokenizer(before + text + after, add_special_tokens=False, return_offsets_mapping=True)
    start, end = len(before), len(before) + len(text)
    # A token of no width (the space some tokenizers put before a text) belongs to what follows it.
    return tuple(
        token
        for token, (first, _) in zip(read["input_ids"], read["offset_mapping"], strict=True)
        if start <= first < end
    )


def _automaton(
    slots: Sequence[Sequence[Tokens]],
) -> tuple[list[dict[int, int]], dict[tuple[int, int], tuple[int, int]], list[int]]:
    """Transitions of each state, (slot, text) completed by (state, token), and the slot each state writes."""
    states: list[dict[int, int]] = []
    emits: dict[tuple[int, int], tuple[int, int]] = {}
    current: list[int] = []
    closing: list[tuple[int, int]] = []  # transitions that lead to the next slot's first state
    for place, texts in enumerate(slots):
        root = len(states)
        for state, token in closing:
            states[state][token] = root
        closing = []
        states.append({})
        current.append(place)
        for number, text in enumerate(texts):
            state = root
            for token in text[:-1]:
                if token not in states[state]:
                    states[state][token] = len(states)
                    states.append({})
                    current.append(place)
                state = states[state][token]
            states[state][text[-1]] = -1
            emits[state, text[-1]] = (place, number)
            closing.append((state, text[-1]))
    for state, token in closing:
        states[state][token] = len(states)
    states.append({})
    current.append(len(slots) - 1)
    return states, emits, current


def _tables(
    states: list[dict[int, int]], emits: dict[tuple[int, int], tuple[int, int]], current: list[int], slots: int
) -> Tables:
    tokens = sorted({token for state in states for token in state})
    column = {token: i for i, token in enumerate(tokens)}
    following, slot, value = (np.full((len(states), len(tokens)), fill) for fill in (0, -1, -1))
    allowed = np.zeros(following.shape, dtype=bool)
    for number, transitions in enumerate(states):
        for token, after in transitions.items():
            allowed[number, column[token]] = True
            following[number, column[token]] = after
            if (number, token) in emits:
                slot[number, column[token]], value[number, column[token]] = emits[number, token]
    runs, ends, filled = [], [], np.full((len(states), slots), -1)
    for number in range(len(states)):
        run, state = [], number
        while len(states[state]) == 1:
            token, after = next(iter(states[state].items()))
            if (state, token) in emits:
                place, text = emits[state, token]
                filled[number, place] = text
            run.append(token)
            state = after
        runs.append(run)
        ends.append(state)
    width = max(1, *map(len, runs))
    padded = [run + [0] * (width - len(run)) for run in runs]
    return Tables(
        tokens=torch.tensor(tokens),
        allowed=torch.from_numpy(allowed),
        following=torch.from_numpy(following),
        slot=torch.from_numpy(slot),
        value=torch.from_numpy(value),
        current=torch.tensor(current),
        run=torch.tensor(padded),
        run_length=torch.tensor([len(run) for run in runs]),
        run_end=torch.tensor(ends),
        run_values=torch.from_numpy(filled),
    )
