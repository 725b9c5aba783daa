"""Many questions in one training sequence.

Questions about one picture share its candidate list, most of their tokens. Such neighbours are laid out behind one
copy of what they share, and several such groups fill one row. A block mask keeps questions apart and positions
restart, so every answer sees exactly what it would see alone: the same loss, from fewer tokens and no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Sample:
    """One question in token ids: the prompt up to where the answer starts, and the answer with its end token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be learned from."""
        if not self.prompt or not self.answer:
            raise ValueError(f"expected a prompt and an answer, got {len(self.prompt)} and {len(self.answer)} tokens")

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(slots=True)
class Row:
    """Several samples in one sequence; all lists have one entry per token.

    A token attends to earlier tokens of its group that are shared (segment 0) or of its own segment.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, samples: Sequence[Sample], shared: int) -> None:
        """Append `samples`, whose first `shared` tokens are the same and are stored once."""
        group = self.groups[-1] + 1 if self.groups else 0
        self._extend(samples[0].prompt[:shared], 0, [IGNORED] * shared, group, 0)
        for segment, sample in enumerate(samples, start=1):
            own = sample.prompt[shared:]
            self._extend((*own, *sample.answer), shared, [IGNORED] * len(own) + list(sample.answer), group, segment)

    def _extend(self, tokens: Sequence[int], start: int, labels: list[int], group: int, segment: int) -> None:
        self.tokens += tokens
        self.positions += range(start, start + len(tokens))
        self.labels += labels
        self.groups += [group] * len(tokens)
        self.segments += [segment] * len(tokens)


def pack(samples: Sequence[Sample], row_tokens: int, smallest_share: int = 16) -> list[Row]:
    """Rows of at most `row_tokens` tokens that hold every sample once, in the given order.

    Neighbours whose prompts begin with at least `smallest_share` equal tokens share them: give questions about one
    candidate list one after the other.

    Raises:
        ValueError: if a sample is longer than a row.
    """
    rows: list[Row] = []
    group: list[Sample] = []
    shared = size = 0
    for number, sample in enumerate(samples):
        if len(sample) > row_tokens:
            raise ValueError(
                f"sample {number} has {len(sample)} tokens, a row at most {row_tokens}. Drop it or make rows longer."
            )
        common = _common_prompt(group[-1], sample, shared if len(group) > 1 else None) if group else 0
        # Tokens of the group with the new sample in it: each keeps what lies behind the shared beginning.
        grown = common + sum(len(s) - common for s in group) + len(sample) - common
        if group and common >= smallest_share and grown <= row_tokens and (len(group) == 1 or common >= shared):
            group.append(sample)
            shared, size = common, grown
            continue
        if group:
            _place(rows, group, shared, size, row_tokens)
        group, shared, size = [sample], 0, len(sample)
    if group:
        _place(rows, group, shared, size, row_tokens)
    return rows


def _common_prompt(first: Sample, second: Sample, limit: int | None) -> int:
    """Length of the common beginning of two prompts; each keeps at least its last token to itself."""
    longest = min(len(first.prompt), len(second.prompt)) - 1
    longest = longest if limit is None else min(longest, limit)
    for i in range(longest):
        if first.prompt[i] != second.prompt[i]:
            return i
    return longest


def _place(rows: list[Row], group: list[Sample], shared: int, size: int, row_tokens: int) -> None:
    if not rows or len(rows[-1]) + size > row_tokens:
        rows.append(Row())
    rows[-1].add(group, shared)


def collate(rows: Sequence[Row], additive: torch.dtype | None = None, multiple: int = 1) -> dict[str, torch.Tensor]:
    """A batch for the model, padded on the right.

    Args:
        rows: the rows of the batch.
        additive: None for a mask of truth values (sdpa attention); for eager attention the number format of a mask
            that is added: 0 where a token may look, the smallest number elsewhere.
        multiple: the width is padded up to a multiple of this.

    Returns:
        ``input_ids``, ``position_ids``, ``labels`` (rows, width) and ``attention_mask`` (rows, 1, width, width).
    """
    width = -(-max(map(len, rows)) // multiple) * multiple

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([getattr(row, name) + [value] * (width - len(row)) for row in rows])

    groups, segments = padded("groups", -1), padded("segments", -1)
    same_group = groups[:, :, None] == groups[:, None, :]
    visible = (segments[:, None, :] == 0) | (segments[:, :, None] == segments[:, None, :])
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return {
        "input_ids": padded("tokens", 0),
        "position_ids": padded("positions", 0),
        "labels": padded("labels", IGNORED),
        "attention_mask": mask_of((same_group & visible & causal)[:, None], additive),
    }


def mask_of(visible: torch.Tensor, additive: torch.dtype | None) -> torch.Tensor:
    """Return truth values as they are, or as numbers that are added to attention's scores (see `collate`)."""
    if additive is None:
        return visible
    zeros = torch.zeros(visible.shape, dtype=additive, device=visible.device)
    return zeros.masked_fill_(~visible, torch.finfo(additive).min)


def additive_mask(model: Any) -> torch.dtype | None:
    """Return the number format in which the model's attention wants its mask (see `collate`); None for truth values."""
    attention = model.config._attn_implementation
    if attention not in ("eager", "sdpa"):
        raise ValueError(
            f"packed rows need a block mask, which {attention} attention does not take. Load the model with "
            f"attn_implementation='sdpa'."
        )
    return model.get_input_embeddings().weight.dtype if attention == "eager" else None


# ------------------------------------------------------------------------- many questions behind an embedded prefix


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions about B prefixes (images), the same number N of places behind each.

    What all of them begin with stands once: `shared` (B, C). `tokens` and `labels` (B, N, W) are the rest of each
    question and its answer, padded at the end; labels are `IGNORED` but for answers. Missing questions are all
    padding.
    """

    shared: torch.Tensor
    tokens: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device | str) -> Questions:
        """The same on a device."""
        return Questions(self.shared.to(device), self.tokens.to(device), self.labels.to(device))


def collate_questions(questions: Sequence[Sequence[Sample]], multiple: int = 1) -> Questions:
    """Lay out the questions of several images.

    Args:
        questions: for each image its questions; prompts are what comes after the image.
        multiple: the width W is padded up to a multiple of this.

    Raises:
        ValueError: without any question.
    """
    prompts = [sample.prompt for asked in questions for sample in asked]
    if not prompts:
        raise ValueError("there are no questions; expected at least one")
    first, last = min(prompts), max(prompts)
    common, limit = 0, min(map(len, prompts)) - 1
    while common < limit and first[common] == last[common]:
        common += 1
    width = -(-max(len(sample) - common for asked in questions for sample in asked) // multiple) * multiple
    most = max(map(len, questions))
    tokens = torch.zeros(len(questions), most, width, dtype=torch.long)
    labels = torch.full_like(tokens, IGNORED)
    for image, asked in enumerate(questions):
        for place, sample in enumerate(asked):
            own = len(sample.prompt) - common
            tokens[image, place, : len(sample) - common] = torch.tensor((*sample.prompt[common:], *sample.answer))
            labels[image, place, own : own + len(sample.answer)] = torch.tensor(sample.answer)
    return Questions(torch.tensor(first[:common], dtype=torch.long).repeat(len(questions), 1), tokens, labels)
