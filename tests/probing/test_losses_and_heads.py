"""Losses against transformers' and against numbers worked out by hand; probes are what they are called."""

import numpy as np
import pytest
import torch
from seewhere.boxes import generalized_iou
from seewhere.probing import losses
from seewhere.probing.heads import Probe
from transformers.loss.loss_for_object_detection import generalized_box_iou


def random_boxes(count, seed):
    values = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    return torch.cat([values[:, :2], values[:, 2:] * 0.5 + 0.01], 1)


def test_generalised_iou_is_transformers_and_this_packages():
    first, second = losses.corners(random_boxes(200, 0)), losses.corners(random_boxes(200, 1))
    ours = losses.paired_generalized_iou(first, second)
    torch.testing.assert_close(ours, generalized_box_iou(first, second).diagonal())
    np.testing.assert_allclose(ours, generalized_iou(first.numpy(), second.numpy()).diagonal(), atol=1e-5)


def test_box_loss_by_hand():
    predicted = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0]])
    target = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 1.0]])
    # The same box costs nothing; two halves side by side have L1 0.5 and GIoU 0 (they fill their hull).
    torch.testing.assert_close(losses.box_loss(predicted, target, l1=6, giou=20), torch.tensor([0.0, 6 * 0.5 + 20.0]))


def test_binary_loss_by_hand():
    found = losses.binary_loss(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(found, torch.tensor([np.log(2), 2 + np.log1p(np.exp(-2))], dtype=torch.float32))


def test_boxes_without_area_give_finite_gradients():
    predicted = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    losses.box_loss(predicted, torch.tensor([[0.5, 0.5, 0.0, 0.0]])).sum().backward()
    assert torch.isfinite(predicted.grad).all()


def test_right_means_strictly_over_one_half():
    target = torch.tensor([[0.5, 0.5, 0.5, 0.5]] * 3)
    # Half the width inside: IoU exactly 0.5 is not over it.
    said = torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 0.26, 0.5], [0.1, 0.1, 0.1, 0.1]])
    assert losses.correct(said, target).tolist() == [False, True, False]
    assert losses.correct(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [1.0]])).tolist() == [True, False]


def test_a_linear_probe_is_linear_and_a_box_is_within_the_picture():
    torch.manual_seed(0)
    probe = Probe((3, 5), 1)
    probe.standardise(torch.randn(15), torch.rand(15) + 0.5)
    a, b = torch.randn(1, 3, 5), torch.randn(1, 3, 5)
    torch.testing.assert_close(probe(0.3 * a + 0.7 * b), 0.3 * probe(a) + 0.7 * probe(b))
    boxes = Probe((3, 5), 4)(100 * torch.randn(20, 3, 5))
    assert boxes.shape == (20, 4) and bool(((boxes >= 0) & (boxes <= 1)).all())


@pytest.mark.parametrize(("layers", "matrices"), [(1, 1), (2, 3), (4, 7)])
def test_depths(layers, matrices):
    probe = Probe((2, 6), 1, layers, hidden=8)
    assert sum(p.ndim == 2 for p in probe.parameters()) == matrices
    assert probe(torch.randn(5, 2, 6)).shape == (5, 1)


def test_constant_inputs_are_left_alone_by_standardising():
    probe = Probe((1, 2), 1)
    probe.standardise(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0]))
    assert probe.scale.tolist() == [1.0, 0.5]


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="outputs 1 or 4"):
        Probe((2, 2), 3)
    with pytest.raises(ValueError, match="layers >= 1"):
        Probe((2, 2), 1, layers=0)
