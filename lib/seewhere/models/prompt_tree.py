"""Prompts and their options as a tree of token segments, and branches of it as single rows.

Prompts of one run begin alike, and options ("1", "12") continue their prompt: everything that has to be read is a
tree in which each beginning stands once. A branch of it can be read in one row of a forward pass: its tokens stand one
after the other, and a block mask shows each token only what stands above it in the tree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

Tokens = tuple[int, ...]
Read = tuple[int, int, int]  # next token, question, option: a log-probability to read behind a token

# Sharing a beginning costs one more row to run; fewer saved tokens than this are not worth it.
MINIMUM_SAVED_TOKENS = 16


@dataclass
class Segment:
    """A run of tokens in the tree of everything that has to be read, after the segments above it."""

    tokens: Tokens
    reads: list[Read] = field(default_factory=list)  # behind the segment's last token
    children: list[Segment] = field(default_factory=list)

    @cached_property
    def size(self) -> int:
        """Tokens of the segment and of everything below it; ask only when the tree is finished."""
        return sum(len(segment.tokens) for segment, _ in walk([self]))

    @property
    def alone(self) -> Segment:
        """The same tokens without what is below."""
        return Segment(self.tokens, self.reads)


def walk(segments: Sequence[Segment]) -> Iterator[tuple[Segment, int]]:
    """Yield segments and all below them, parents first, each with its parent's number in this order (-1: none)."""
    stack = [(segment, -1) for segment in reversed(segments)]
    number = 0
    while stack:
        segment, parent = stack.pop()
        yield segment, parent
        stack += [(child, number) for child in reversed(segment.children)]
        number += 1


class Row:
    """Branches that continue the same beginning, as one row of tokens.

    Tokens behind which something is read come last, so that a batch of rows needs few columns of the output layer.

    Attributes:
        tokens: (T,) int64.
        depths: (T,) int64, number of the row's tokens above each: positions, counted from where the row begins.
        visible: (T, T) bool, which of the row's tokens (columns) each token may see; itself included. None where
            each sees all that stand before it.
        reads: (column, next token, question, option).
        children: what is still to be run behind the row, if it is a single segment.
    """

    def __init__(self, branches: Sequence[Segment], children: Sequence[Segment] = ()) -> None:
        self.children = list(children)
        placed = list(walk(branches))
        lengths = [len(segment.tokens) for segment, _ in placed]
        ends = np.cumsum(lengths)
        tokens = np.array([token for segment, _ in placed for token in segment.tokens], dtype=np.int64)
        reading = np.zeros(len(tokens), dtype=bool)
        reading[[end - 1 for (segment, _), end in zip(placed, ends, strict=True) if segment.reads]] = True
        if len(placed) == 1:
            order = np.arange(len(tokens))
            self.depths, self.visible = order, None
        else:
            order = np.argsort(reading, kind="stable")
            visible = _visible([parent for _, parent in placed], lengths)
            self.depths = visible.sum(1)[order] - 1
            self.visible = visible[np.ix_(order, order)]
        self.tokens = tokens[order]
        column = np.empty(len(tokens), dtype=np.int64)
        column[order] = np.arange(len(tokens))
        self.reads = [
            (int(column[end - 1]), *read)
            for (segment, _), end in zip(placed, ends, strict=True)
            for read in segment.reads
        ]

    def __len__(self) -> int:
        return len(self.tokens)


def _visible(parents: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
    """Return what each token sees, segments one after the other, for the parents and lengths of the segments."""
    visible = np.zeros((sum(lengths), sum(lengths)), dtype=bool)
    ends = np.cumsum(lengths)
    for parent, length, end in zip(parents, lengths, ends, strict=True):
        start = end - length
        if parent >= 0:
            visible[start:end] = visible[ends[parent] - 1]
        visible[start:end, start:end] = np.tri(length, dtype=bool)
    return visible


def prompt_tree(prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]) -> list[Segment]:
    """Segments that hold every prompt (shared beginnings once), each prompt's options below its last segment."""
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    top = Segment(())
    # Work items: questions (in sorted order), tokens already placed, tokens known to be equal, segment above.
    work: list[tuple[list[int], int, int, Segment]] = [(order, 0, 0, top)] if order else []
    while work:
        group, placed, equal, parent = work.pop()
        if len(group) == 1:
            parent.children.append(_leaf(group[0], prompts, options, placed))
            continue
        equal = _common(prompts[group[0]], prompts[group[-1]], equal)
        # A prompt keeps at least its last token to itself: that is where its answer is read.
        equal = min(equal, min(len(prompts[i]) for i in group) - 1)
        if (equal - placed) * (len(group) - 1) >= MINIMUM_SAVED_TOKENS:
            shared = Segment(tuple(prompts[group[0]][placed:equal]))
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
) -> Segment:
    """The rest of a prompt, with the trie of its options below it (one token per segment)."""
    leaf = Segment(tuple(prompts[question][placed:]))
    nodes: dict[Tokens, Segment] = {(): leaf}
    for number, option in enumerate(options[question]):
        tokens = tuple(option)
        for depth, token in enumerate(tokens):
            above = nodes[tokens[:depth]]
            above.reads.append((token, question, number))
            path = tokens[: depth + 1]
            if len(path) < len(tokens) and path not in nodes:
                nodes[path] = Segment((token,))
                above.children.append(nodes[path])
    return leaf


def sequences(prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]) -> list[Segment]:
    """The same work without sharing: one whole sequence per question and option beginning."""
    roots: list[Segment] = []
    for question in range(len(prompts)):
        open_segments = [_leaf(question, prompts, options, 0)]
        while open_segments:
            segment = open_segments.pop()
            open_segments += [Segment(segment.tokens + c.tokens, c.reads, c.children) for c in segment.children]
            roots.append(segment.alone)
    return roots
