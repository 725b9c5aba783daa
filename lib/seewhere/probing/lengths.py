"""Texts longer than a model reads.

BLIP-2's Q-Former reads 32 tokens, ViLT 40; what is longer loses its end. A caption of region cell matching names its
cell at the very end, so a long expression would make the question unanswerable without a word about it. Such captions
give up words of the expression instead, and all models of a study are asked the same captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from seewhere.probing.rcm import claim
from seewhere.probing.tasks import SPLITS, Example, Task


@runtime_checkable
class Reader(Protocol):
    """A model that cuts texts longer than ``text_length`` tokens."""

    name: str
    text_length: int

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text before any cut, special ones included."""
        ...


def readable(task: Task, models: Iterable[object]) -> Task:
    """Return the task with captions that all models read to their end; say how many texts are longer than that.

    Expressions of region cell matching lose words at their end until the caption fits, at least one word stays. Boxes
    and statements keep their texts: what stands at the end of those is mostly not what they hang on. Models that do
    not tell how they read are passed over.
    """
    readers = [model for model in models if isinstance(model, Reader)]
    splits, long = {}, 0
    for split in SPLITS:
        splits[split] = examples = list(task.splits[split])
        rows = _too_long([example.text for example in examples], readers)
        long += len(rows)
        if task.name == "rcm":
            for row, text in zip(rows, _fitting([examples[row] for row in rows], readers), strict=True):
                examples[row] = replace(examples[row], text=text)
    if not long:
        return task
    limits = ", ".join(f"{reader.name} {reader.text_length}" for reader in readers)
    total = sum(map(len, splits.values()))
    what = "their expressions lose words, so that the cell stays" if task.name == "rcm" else "their end is cut"
    print(f"{task.name}: {long:,} of {total:,} texts have more tokens than are read ({limits}): {what}")
    return replace(task, splits=splits)


def _too_long(texts: Sequence[str], readers: Sequence[Reader]) -> list[int]:
    """Return the places of texts that one of the readers would cut."""
    if not texts:
        return []
    counts = [(reader.count_tokens(texts), reader.text_length) for reader in readers]
    return [place for place in range(len(texts)) if any(found[place] > limit for found, limit in counts)]


def _fitting(examples: Sequence[Example], readers: Sequence[Reader]) -> list[str]:
    """Return captions that are read to their end, of examples whose captions are not."""
    texts = [example.text for example in examples]
    ends = [claim(example.meta["claimed"]) for example in examples]
    words = [text.removesuffix(end).split() for text, end in zip(texts, ends, strict=True)]
    left = list(range(len(texts)))
    while left:
        for place in left:
            words[place].pop()
            texts[place] = " ".join(words[place]) + ends[place]
        still = _too_long([texts[place] for place in left], readers)
        left = [left[place] for place in still if len(words[left[place]]) > 1]
    return texts
