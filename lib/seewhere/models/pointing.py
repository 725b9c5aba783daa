"""Where a language model looks before it writes a box, and a loss that says where it should.

From a box's corners alone a small model is slow to learn that it has to look at the object at all: the corners that are
already written tell much of the next one, and the loss falls for a long time by that. So some heads of one layer are
told directly: at the token before the first corner their weight belongs on the tokens of the image that the box covers.
What these heads fetch is then what the layers behind them make corners of.

The weights are computed anew from what goes into the layer, for these heads and tokens alone: attention that never
forms them (`seewhere.models.shared_attention`, flash attention) can be taught as well. Teaching attention by
boxes is not new: compare Liu et al. 2017 ("Attention Correctness in Neural Image Captioning").
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.llama.modeling_llama import rotate_half

from seewhere.packing import IGNORED, Questions

LAYER = -3
"""Which layer is told where to look: two more make corners of what it fetches."""
HEADS = 3
"""How many of its heads, from the first."""


@dataclass(slots=True)
class Watched:
    """What went into a layer's attention at its last call: `states` (B, L, D), `cos` and `sin` (B, L, d)."""

    module: Any
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def take(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The last call's.

        Raises:
            RuntimeError: the layer was not called.
        """
        if self.inputs is None:
            raise RuntimeError("the watched layer was not called; expected a forward pass within `watched`")
        return self.inputs


@contextmanager
def watched(body: Any, layer: int = LAYER) -> Iterator[Watched]:
    """Keep what goes into the attention of one layer of a Llama without its output layer (`body.layers`).

    Args:
        body: has `layers`.
        layer: counted from the end; the first one where there are not as many.
    """
    seen = Watched(body.layers[max(layer, -len(body.layers))].self_attn)

    def keep(_: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        states = given["hidden_states"] if "hidden_states" in given else args[0]
        cos, sin = given["position_embeddings"]
        seen.inputs = states, cos, sin

    handle = seen.module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
        seen.inputs = None  # it holds on to the pass's graph


Where = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Image, question and token, (K,) each."""


def looks(seen: Watched, start: int, width: int, where: Where, heads: int) -> torch.Tensor:
    """Logarithms of attention weights on what stands before the questions, (K, heads, start), float32.

    Under mixed precision scores are products of that precision, as the layer's own are.

    Args:
        seen: what went into the layer.
        start: tokens before the questions, the image among them; every question sees all of them.
        width: tokens of each question, padded.
        where: the K places that look.
        heads: the first so many.
    """
    states, cos, sin = seen.take()
    module, size = seen.module, seen.module.head_dim
    image, question, token = where
    batch = len(states)

    def turned(projected: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """(..., heads * d) to (..., heads, d), rotated by position."""
        split = projected.float().unflatten(-1, (-1, size))
        return split * cosines[..., None, :].float() + rotate_half(split) * sines[..., None, :].float()

    cos, sin = cos.expand(batch, -1, -1), sin.expand(batch, -1, -1)
    place = start + question * width + token
    asked = turned(module.q_proj(states[image, place]), cos[image, place], sin[image, place])[:, :heads]  # (K, h, d)
    groups = module.num_key_value_groups
    before = turned(module.k_proj(states[:, :start]), cos[:, :start], sin[:, :start])  # (B, start, kv, d)
    before = before.repeat_interleave(groups, dim=2)[:, :, :heads]
    steps = torch.arange(width, device=states.device)
    own = start + question[:, None] * width + steps  # (K, W)
    near = turned(module.k_proj(states[image[:, None], own]), cos[image[:, None], own], sin[image[:, None], own])
    near = near.repeat_interleave(groups, dim=2)[:, :, :heads]
    far_scores = torch.einsum("khd,kphd->khp", asked, before[image]).float() * module.scaling
    near_scores = torch.einsum("khd,kwhd->khw", asked, near).float() * module.scaling
    near_scores = near_scores.masked_fill((steps > token[:, None])[:, None], -torch.inf)
    return torch.cat([far_scores, near_scores], dim=-1).log_softmax(dim=-1)[..., :start]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes among the answers of packed questions.

    `where`: image, question and token, (K,) each, of the token that the first corner is predicted from. `corners`
    (K, 4): x1, y1, x2, y2 in hundredths of a side.
    """

    where: Where
    corners: torch.Tensor


def boxes_asked_for(questions: Questions, corners: torch.Tensor) -> Boxes:
    """Find the answers that are boxes.

    Args:
        questions: packed, see `collate_questions`.
        corners: token ids (101,) of the hundredths.
    """
    labels = questions.labels
    share = torch.full((int(max(labels.max(), corners.max())) + 1,), -1, device=labels.device)
    share[corners] = torch.arange(len(corners), device=labels.device)
    known = torch.where(labels == IGNORED, torch.full_like(labels, -1), share[labels.clamp(min=0)])
    is_corner = known >= 0
    first = is_corner.clone()
    first[..., 1:] &= ~is_corner[..., :-1]
    image, question, token = first.nonzero(as_tuple=True)
    whole = token + 3 < labels.shape[2]
    image, question, token = image[whole], question[whole], token[whole]
    offsets = torch.arange(4, device=labels.device)
    found = known[image[:, None], question[:, None], token[:, None] + offsets]
    whole = (found >= 0).all(dim=1) & (token > 0)
    return Boxes((image[whole], question[whole], token[whole] - 1), found[whole])


def covered(corners: torch.Tensor, grid: int) -> torch.Tensor:
    """How much of each patch a box covers, over the most that it covers of any: (K, grid * grid) in raster order.

    Args:
        corners: (K, 4) in hundredths of a side; boxes of no extent count as a hundredth.
        grid: patches a side.
    """
    low = (corners[:, :2].float() / 100 * grid).clamp(max=0.99 * grid)
    high = torch.maximum(corners[:, 2:].float() / 100 * grid, low + 0.01 * grid)
    edges = torch.arange(grid, device=corners.device)
    overlap = torch.minimum(high[..., None], edges + 1.0) - torch.maximum(low[..., None], edges.float())
    overlap = overlap.clamp(min=0)  # (K, 2, grid): x, y
    shares = (overlap[:, 1, :, None] * overlap[:, 0, None, :]).flatten(1)
    return shares / shares.amax(dim=1, keepdim=True).clamp(min=1e-9)


def pointing_loss(
    seen: Watched, questions: Questions, image_at: int, grid: int, corners: torch.Tensor, heads: int = HEADS
) -> torch.Tensor | None:
    """Mean over boxes and heads of -log(attention's weight on what the box covers); None where no box is asked for.

    The weight on a patch counts by how much of it is covered (`covered`).

    Args:
        seen: from `watched`, after the pass over the questions.
        questions: what was asked.
        image_at: tokens in front of the image's; it has grid * grid, in raster order, and what the questions share
            follows at once.
        grid: patches a side.
        corners: token ids (101,) of the hundredths of a side.
        heads: how many are told.

    Raises:
        RuntimeError: no pass was made.
    """
    boxes = boxes_asked_for(questions.to(corners.device), corners)
    if not len(boxes.corners):
        return None
    width = questions.tokens.shape[2]
    start = image_at + grid * grid + questions.shared.shape[1]
    weights = looks(seen, start, width, boxes.where, heads)
    on_image = weights[..., image_at : image_at + grid * grid]
    wanted = covered(boxes.corners, grid).clamp(min=1e-6).log()[:, None]
    return -torch.logsumexp(on_image + wanted, dim=-1).mean()
