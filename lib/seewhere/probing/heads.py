"""Probes: one linear layer on the flattened tokens, or two or four layers with SwiGLU ("Lost in Space", section 3).

A probe must say what the tokens hold, not learn to see, so there is nothing here but matrices. Box outputs go through a
sigmoid, as in DETR, so that they are shares of the picture's sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

DEPTHS = (1, 2, 4)
"""Numbers of layers that the paper compares."""


class SwiGLU(nn.Module):
    """``silu(x W) * (x V)`` (Shazeer 2020): (N, inputs) -> (N, hidden)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(inputs, hidden), nn.Linear(inputs, hidden)

    def forward(self, values: Tensor) -> Tensor:
        """Apply the layer."""
        return functional.silu(self.gate(values)) * self.value(values)


class Probe(nn.Module):
    """A probe of `layers` layers: `layers` - 1 SwiGLU layers and a linear one.

    Args:
        tokens: (number of tokens, width) of the input.
        outputs: 4 for a box (cx, cy, w, h in 0..1), 1 for the logit of a yes.
        layers: 1 for a linear probe.
        hidden: width of the SwiGLU layers.

    Raises:
        ValueError: fewer than one layer, or neither four outputs nor one.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, tokens: Sequence[int], outputs: int, layers: int = 1, hidden: int = 256) -> None:
        super().__init__()
        if layers < 1 or outputs not in (1, 4):
            raise ValueError(f"expected layers >= 1 and outputs 1 or 4; got layers={layers}, outputs={outputs}")
        inputs = int(tokens[0]) * int(tokens[1])
        widths = [inputs, *[hidden] * (layers - 1)]
        self.body = nn.Sequential(*(SwiGLU(a, b) for a, b in pairwise(widths)))
        self.head = nn.Linear(widths[-1], outputs)
        self.box = outputs == 4
        # Fixed shift and scale of the inputs; a linear probe stays linear with them.
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Let the probe subtract `mean` and divide by `deviation`, both (tokens * width,); constants are left alone."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), torch.ones_like(deviation)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return boxes (N, 4) in 0..1, or logits (N, 1), of tokens (N, tokens, width)."""
        flat = torch.addcmul(-self.mean * self.scale, tokens.flatten(1).float(), self.scale)
        found = self.head(self.body(flat))
        return found.sigmoid() if self.box else found
