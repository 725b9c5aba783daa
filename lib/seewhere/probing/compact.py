"""Unfrozen arms in few numbers: which parts of a resampler are trained along, and how its change is stored.

A resampler trained along weighs as much as the resampler itself, eighteen times over for three tasks, two resamplers
and three seeds. Two things make it small enough to ship. What only words pass through, embeddings and their own
feed-forward layers, can stay as it is; queries, attention and all that reads the picture are trained whole. And the
change that training makes is small beside the weights, so it needs few levels: whole numbers -5..5 with a scale for
every 64 of a row are enough (one bit a number is, for language models: Liu et al. 2024, BitDelta). Cutting the change
to a low rank instead loses most of what was learnt, because Muon's updates use every direction of a matrix.
"""

from __future__ import annotations

from torch import nn

LEVELS = 5
"""Largest whole number of a stored change. Its scale is that of the largest entry: a smaller one, which clips the few
largest and is nearer to the whole, took an arm's P@1 from 0.29 to 0.1."""


def keep_words(module: nn.Module) -> None:
    """Freeze, in place, what only words pass through: embeddings, and the words' feed-forward layers of a Q-Former."""
    named = dict(module.named_parameters())
    for name, value in named.items():
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Embedding) or _of_queries(name) in named.keys() - {name}:
            value.requires_grad_(False)


def _of_queries(name: str) -> str:
    """Return the name that a feed-forward weight of a Q-Former's words has among its queries' (BLIP-2's naming)."""
    for part in ("intermediate", "output"):
        for leaf in ("dense", "LayerNorm"):
            name = name.replace(f".{part}.{leaf}.", f".{part}_query.{leaf}.")
    return name
