"""Unfrozen arms in few numbers: which parts of a resampler are trained along, and how its change is stored.

A resampler trained along weighs as much as the resampler itself, eighteen times over for three tasks, two resamplers
and three seeds. Two things make it small enough to ship. What only words pass through, embeddings and their own
feed-forward layers, can stay as it is; queries, attention and all that reads the picture are trained whole. And the
change that training makes is small beside the weights, so it needs few levels, evenly spaced at about the root mean
square of a row: two bits a number (one is enough for language models: Liu et al. 2024, BitDelta). Cutting the change
to a low rank instead loses most of what was learnt, because Muon's updates use every direction of a matrix.
"""

from __future__ import annotations

from torch import nn

STEPS = {"rec": 0.7, "vsr": 1.3, "rcm": 1.3}
"""Task -> distance of the levels of a stored change, as a share of its row's root mean square (`few_bits`). Yes or no
bears more than a box: rec loses two to four points at 1. Clipping the few largest entries, as a fit by least squares
does, takes most of what an arm has learnt."""


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
