"""Boxes as heatmaps and back: the coding and the loss of the micro detector.

Follows "Objects as Points" (Zhou et al. 2019, sections 3-4): an object is a peak in the heatmap of its category, and
at that peak the network also tells the offset of the centre and the size of the box. Everything here is in the
network's own frame (a square input of ``side`` pixels); mapping to the original image happens in `micro_detector`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

STRIDE = 8  # input pixels per heatmap cell
SIZE_UNIT = 32.0  # pixels; sizes are coded as log(side / SIZE_UNIT)
NEIGHBOURHOOD = 1  # boxes are also learned this many cells around a centre, so a peak one cell off still fits


@dataclass(frozen=True, slots=True)
class Targets:
    """What the network should say for a batch of B images, C categories and G x G cells.

    heat: (B, C, G, G) in 0..1, exactly 1 at centres. box: (B, 4, G, G) as (dx, dy in cells; log w, log h in
    `SIZE_UNIT`). weight: (B, G, G), how much the box at a cell counts (0 = no object there).
    """

    heat: Tensor
    box: Tensor
    weight: Tensor


def encode(boxes: list[np.ndarray], classes: list[np.ndarray], class_count: int, side: int) -> Targets:
    """Draw the heatmaps and box maps of a batch.

    Args:
        boxes: per image (N, 4) xyxy pixels of the network's input.
        classes: per image (N,) class indices.
        class_count: C.
        side: input side in pixels, a multiple of `STRIDE`.

    Raises:
        ValueError: a class index outside 0..C-1 or an input side that is no multiple of `STRIDE`.
    """
    if side % STRIDE:
        raise ValueError(f"expected an input side that is a multiple of {STRIDE}, got {side}")
    grid, count = side // STRIDE, len(boxes)
    index = torch.as_tensor(np.repeat(np.arange(count), [len(b) for b in boxes]), dtype=torch.long)
    box = torch.as_tensor(np.concatenate([*boxes, np.zeros((0, 4))]), dtype=torch.float32).reshape(-1, 4)
    label = torch.as_tensor(np.concatenate([*classes, np.zeros(0, dtype=np.int64)]), dtype=torch.long)
    if len(label) and not (int(label.min()) >= 0 and int(label.max()) < class_count):
        raise ValueError(f"expected class indices in 0..{class_count - 1}, got {label.min()}..{label.max()}")
    extent = (box[:, 2:] - box[:, :2]).clamp(min=1.0)
    center = (box[:, :2] + box[:, 2:]) / 2 / STRIDE
    cell = center.floor().clamp(0, grid - 1)
    axis = torch.arange(grid, dtype=torch.float32)
    away_x, away_y = axis[None] - cell[:, :1], axis[None] - cell[:, 1:]
    spread = (extent / STRIDE / 7).clamp(min=0.45)
    bell_x = torch.exp(-(away_x**2) / (2 * spread[:, :1] ** 2))
    bell_y = torch.exp(-(away_y**2) / (2 * spread[:, 1:] ** 2))
    bell = bell_y[:, :, None] * bell_x[:, None, :]
    heat = torch.zeros(count * class_count, grid, grid)
    np.maximum.at(heat.numpy(), (index * class_count + label).numpy(), bell.numpy())
    box_map, weight = _box_maps(index, center, extent, away_x, away_y, count, grid)
    return Targets(heat.reshape(count, class_count, grid, grid), box_map, weight)


def _box_maps(
    index: Tensor, center: Tensor, extent: Tensor, away_x: Tensor, away_y: Tensor, count: int, grid: int
) -> tuple[Tensor, Tensor]:
    """Write each box around its centre; where two compete, the nearer centre wins, then the smaller box."""
    box_map, weight = torch.zeros(count, 4, grid, grid), torch.zeros(count, grid, grid)
    near = (away_y.abs()[:, :, None] <= NEIGHBOURHOOD) & (away_x.abs()[:, None, :] <= NEIGHBOURHOOD)
    which, row, column = near.nonzero(as_tuple=True)
    ring = torch.maximum(away_y[which, row].abs(), away_x[which, column].abs())
    area = extent.prod(dim=1)[which]
    order = torch.as_tensor(np.lexsort((-area.numpy(), -ring.numpy())))
    who, y, x, ring = which[order], row[order], column[order], ring[order]
    shift = center[who] - (torch.stack([x, y], dim=1) + 0.5)
    values = torch.cat([shift, torch.log(extent[who] / SIZE_UNIT)], dim=1)
    share = torch.where(ring == 0, 1.0, 0.3)
    # NumPy writes because it promises that of repeated indices the last one stays; torch promises nothing.
    box_map.permute(0, 2, 3, 1).numpy()[index[who], y, x] = values
    weight.numpy()[index[who], y, x] = share
    return box_map, weight


def boxes_from_map(box_map: Tensor) -> Tensor:
    """Turn coded maps (B, 4, G, G) into boxes (B, 4, G, G), xyxy pixels of the network's input."""
    grid = torch.arange(box_map.shape[-1], dtype=box_map.dtype, device=box_map.device) + 0.5
    center_x = (box_map[:, 0] + grid[None, None, :]) * STRIDE
    center_y = (box_map[:, 1] + grid[None, :, None]) * STRIDE
    half = box_map[:, 2:].clamp(-4, 3).exp() * (SIZE_UNIT / 2)
    return torch.stack([center_x - half[:, 0], center_y - half[:, 1], center_x + half[:, 0], center_y + half[:, 1]], 1)


def decode(heat: Tensor, box_map: Tensor, limit: int, floor: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Read the peaks of heatmaps: local 3 x 3 maxima of at least ``floor``, the ``limit`` highest of each image.

    Args:
        heat: (B, C, G, G) probabilities.
        box_map: (B, 4, G, G) coded boxes.
        limit: peaks kept per image.
        floor: lowest probability kept.

    Returns:
        Per image: boxes (N, 4) xyxy pixels of the input, class indices (N,), scores (N,) descending.
    """
    peak = functional.max_pool2d(heat, 3, stride=1, padding=1) == heat
    scores = (heat * peak).flatten(1)
    top, where = scores.topk(min(limit, scores.shape[1]))
    cells = heat.shape[-1] * heat.shape[-2]
    every = boxes_from_map(box_map).flatten(2).transpose(1, 2)
    result = []
    for image in range(len(heat)):
        keep = top[image] >= floor
        at = where[image][keep]
        found = every[image][at % cells].double().numpy()
        result.append((found, (at // cells).numpy(), top[image][keep].double().numpy()))
    return result


def suppress(boxes: np.ndarray, classes: np.ndarray, same: float, across: float) -> np.ndarray:
    """Greedy non-maximum suppression; boxes must come with scores descending.

    Args:
        boxes: (N, 4) xyxy.
        classes: (N,).
        same: a box is dropped if its IoU with a kept box of its class exceeds this.
        across: the same for a kept box of any class (lighter: two things may well overlap, but one thing seen
            under two names should be listed once).

    Returns:
        Indices of the kept boxes, in order.
    """
    from seewhere.boxes import iou

    if not len(boxes):
        return np.zeros(0, dtype=np.int64)
    overlap = iou(boxes, boxes)
    limit = np.where(classes[:, None] == classes[None, :], min(same, across), across)
    kept: list[int] = []
    for i in range(len(boxes)):
        if all(overlap[i, j] <= limit[i, j] for j in kept):
            kept.append(i)
    return np.array(kept, dtype=np.int64)


def detection_loss(heat_logits: Tensor, box_map: Tensor, targets: Targets) -> tuple[Tensor, dict[str, float]]:
    """Return the training loss (a scalar) and its parts: heatmap focal loss + box GIoU and L1 losses.

    The heatmap term is the penalty-reduced focal loss of "Objects as Points", eq. 1 (alpha 2, beta 4), divided by the
    number of objects. Boxes are learned with 1 - GIoU, which treats small and large boxes alike, plus an L1 term on
    the code, which still has a gradient when boxes do not meet.
    """
    logits = heat_logits.float()
    probability = logits.sigmoid()
    centers = targets.heat == 1
    count = centers.sum().clamp(min=1)
    hit = functional.logsigmoid(logits[centers]) * (1 - probability[centers]) ** 2
    quiet = functional.logsigmoid(-logits) * probability**2 * (1 - targets.heat) ** 4
    heat_loss = -(hit.sum() + quiet.sum()) / count
    rows = targets.weight.nonzero(as_tuple=True)
    weight = targets.weight[rows]
    coded, wanted = box_map.float()[rows[0], :, rows[1], rows[2]], targets.box[rows[0], :, rows[1], rows[2]]
    total = weight.sum().clamp(min=1)
    code_loss = ((coded - wanted).abs().sum(1) * weight).sum() / total
    overlap = _generalized_iou(_corners(coded), _corners(wanted))
    overlap_loss = ((1 - overlap) * weight).sum() / total
    loss = heat_loss + overlap_loss + 0.3 * code_loss
    parts = {"heat": heat_loss.item(), "giou": overlap_loss.item(), "code": code_loss.item()}
    return loss, parts


def _corners(code: Tensor) -> Tensor:
    """Boxes of codes (N, 4), relative to their cells' centres; GIoU does not change when both boxes are moved."""
    half = code[:, 2:].clamp(-4, 3).exp() * (SIZE_UNIT / 2)
    center = code[:, :2] * STRIDE
    return torch.cat([center - half, center + half], dim=1)


def _generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise GIoU (Rezatofighi et al. 2019) of two (N, 4) xyxy tensors, differentiable."""
    inside = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    outside = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inside
    return inside / union.clamp(min=1e-6) - (outside - union) / outside.clamp(min=1e-6)
