"""What the text alone can tell when its words may be held against each other: the strict control of yes/no tasks.

A linear probe on counts of words cannot know that *left* in an expression speaks for *left* in the claim behind it; a
resampler that is trained along can. So whatever such an arm gains has to be held against a reader that never sees a
picture, and may ask for any two words of the text together: logistic regression on words and on all pairs of words, in
order. What it reaches is no seeing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from seewhere.probing.tasks import Example, Task

NAME = "text only, words crossed"
PLACES = 2**17  # of the table that terms are hashed into; a task has tens of thousands of them


def terms_of(text: str) -> Tensor:
    """Return the places (n,) of a text's words and pairs of words, each once."""
    words = re.findall(r"\w+", text.lower())
    terms = sorted({*words, *(f"{first} {second}" for first, second in combinations(words, 2))})
    hashes = (hashlib.blake2b(term.encode(), digest_size=8).digest() for term in terms)
    return torch.tensor([int.from_bytes(value, "big") % PLACES for value in hashes], dtype=torch.long)


class CrossedWords(nn.Module):
    """Logistic regression on the terms of texts; begins at zero, so terms never met say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.EmbeddingBag(PLACES, 1, mode="sum")
        nn.init.zeros_(self.weights.weight)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, terms: Sequence[Tensor]) -> Tensor:
        """Return logits (N,) of N texts given by `terms_of`."""
        offsets = torch.tensor([0, *np.cumsum([len(t) for t in terms])[:-1]], dtype=torch.long)
        return self.weights(torch.cat(list(terms)), offsets)[:, 0] + self.bias


def crossed_text(
    task: Task, seed: int = 0, epochs: int = 8, learning_rate: float = 3e-3, batch: int = 128
) -> NDArray[np.float32]:
    """Train on the texts of the training split, and return the outputs (N, 1) for the test split.

    The epoch with the best validation accuracy counts, as for probes.

    Args:
        task: a yes/no task.
        seed: of the order of the examples.
        epochs, learning_rate, batch: of AdamW (weight decay 0.01).

    Raises:
        ValueError: a task whose targets are boxes.
    """
    if task.kind != "binary":
        raise ValueError(f"{task!r} is no yes/no task; words are crossed for those only")
    read = {split: _read(task.splits[split]) for split in ("train", "validation", "test")}
    terms, labels = read["train"]
    model, generator = CrossedWords(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    best, outputs = -1.0, np.zeros((len(read["test"][0]), 1), dtype=np.float32)
    for _ in range(epochs):
        for rows in torch.randperm(len(terms), generator=generator).split(batch):
            loss = functional.binary_cross_entropy_with_logits(model([terms[i] for i in rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = ((model(read["validation"][0]) > 0) == (read["validation"][1] > 0.5)).float().mean().item()
            if right > best:
                best, outputs = right, model(read["test"][0])[:, None].numpy()
    return outputs


def _read(examples: Sequence[Example]) -> tuple[list[Tensor], Tensor]:
    return [terms_of(e.text) for e in examples], torch.tensor([e.target[0] for e in examples])
