"""What probes are trained on: DETR's box loss, and binary cross-entropy.

Box loss (Carion et al. 2020, used by "Lost in Space"): ``w1 * L1`` on (cx, cy, w, h) in shares of the picture's sides,
summed over the four numbers, plus ``w2 * (1 - GIoU)`` on the same boxes as corners; mean over examples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def corners(boxes: Tensor) -> Tensor:
    """Return boxes (N, 4) given as (cx, cy, w, h) as (x1, y1, x2, y2)."""
    middle, sides = boxes[:, :2], boxes[:, 2:]
    return torch.cat([middle - sides / 2, middle + sides / 2], dim=1)


def paired_iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU (N,) of row i of (N, 4) xyxy boxes with row i, and the unions (N,)."""
    low, high = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    union = areas[0] + areas[1] - shared
    return shared / union.clamp(min=1e-9), union


def paired_generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return generalised IoU (N,) in -1..1 of row i of (N, 4) xyxy boxes with row i (Rezatofighi et al. 2019)."""
    overlap, union = paired_iou(first, second)
    low, high = torch.minimum(first[:, :2], second[:, :2]), torch.maximum(first[:, 2:], second[:, 2:])
    hull = (high - low).clamp(min=0).prod(dim=1)
    return overlap - (hull - union) / hull.clamp(min=1e-9)


def box_loss(predicted: Tensor, target: Tensor, l1: float = 5.0, giou: float = 2.0) -> Tensor:
    """Return DETR's box loss per example, (N,), of boxes (N, 4) as (cx, cy, w, h) in 0..1."""
    distance = (predicted - target).abs().sum(dim=1)
    return l1 * distance + giou * (1 - paired_generalized_iou(corners(predicted), corners(target)))


def binary_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return binary cross-entropy per example, (N,), of logits (N, 1) and targets (N, 1) in {0, 1}."""
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").squeeze(1)


def correct(outputs: Tensor, target: Tensor) -> Tensor:
    """Return which examples are right, (N,) bool: IoU strictly over 0.5 for boxes, the side of 0 for logits."""
    if outputs.shape[1] == 4:
        return paired_iou(corners(outputs), corners(target))[0] > 0.5
    return ((outputs > 0) == (target > 0.5)).squeeze(1)
