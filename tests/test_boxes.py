"""Boxes against two independent implementations, and every conversion and transform against its own inverse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from seewhere import boxes as bx
from transformers.loss.loss_for_object_detection import generalized_box_iou

PIXEL = ("xyxy", "xywh", "cxcywh")
RELATIVE = ("xyxy_unit", "cxcywh_unit", "xyxy_100")
sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
MAKERS = (bx.letterbox, bx.center_crop, bx.squash)


@st.composite
def boxes_in_image(draw, minimum=0.0):
    """An image size and 0-5 ordered boxes inside it."""
    width, height = draw(sizes)
    share = st.floats(0, 1, allow_nan=False)
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        xs, ys = sorted((draw(share), draw(share))), sorted((draw(share), draw(share)))
        rows.append([xs[0] * width, ys[0] * height, xs[1] * width, ys[1] * height])
    return (width, height), bx.as_boxes(rows)


@given(boxes_in_image(), st.sampled_from(PIXEL + RELATIVE))
def test_every_convention_comes_back(case, convention):
    size, boxes = case
    there = bx.from_xyxy(boxes, convention, size)
    assert there.shape == boxes.shape
    np.testing.assert_allclose(bx.to_xyxy(there, convention, size), boxes, atol=1e-8 * max(size))


@given(boxes_in_image())
def test_bins_come_back_within_half_a_bin_and_stay_bins(case):
    size, boxes = case
    bins = bx.from_xyxy(boxes, "xyxy_999", size)
    assert ((bins >= 0) & (bins <= 999) & (bins == np.floor(bins))).all()
    back = bx.to_xyxy(bins, "xyxy_999", size)
    assert (np.abs(back - boxes) <= np.tile(size, 2) / 2000 + 1e-9).all()
    np.testing.assert_array_equal(bx.from_xyxy(back, "xyxy_999", size), bins)


@given(boxes_in_image(), st.sampled_from(bx.CONVENTIONS))
def test_conversions_keep_order_and_bounds(case, convention):
    size, boxes = case
    back = bx.to_xyxy(bx.from_xyxy(boxes, convention, size), convention, size)
    slack = 1e-8 * max(size)
    assert (back[:, :2] <= back[:, 2:] + slack).all()
    assert (back >= -slack).all() and (back <= np.tile(size, 2) + slack).all()
    written = bx.from_xyxy(boxes, convention, size)
    top = {"xyxy_unit": 1, "cxcywh_unit": 1, "xyxy_100": 100, "xyxy_999": 999}.get(convention, max(size))
    assert (written >= -slack).all() and (written <= top + slack).all()


def test_conversions_by_hand():
    box, size = [20, 30, 60, 50], (200, 100)
    expected = {
        "xyxy": [20, 30, 60, 50],
        "xywh": [20, 30, 40, 20],
        "cxcywh": [40, 40, 40, 20],
        "xyxy_unit": [0.1, 0.3, 0.3, 0.5],
        "cxcywh_unit": [0.2, 0.4, 0.2, 0.2],
        "xyxy_100": [10, 30, 30, 50],
        "xyxy_999": [100, 300, 300, 500],
    }
    assert set(expected) == set(bx.CONVENTIONS)
    for convention, numbers in expected.items():
        np.testing.assert_allclose(bx.from_xyxy(box, convention, size), [numbers], err_msg=convention)


def test_a_location_bin_is_read_at_its_middle():
    # Florence-2's own processor maps bin 434 of a 640-pixel side to (434 + 0.5) * 0.64
    assert bx.to_xyxy([434, 0, 999, 999], "xyxy_999", (640, 640))[0, 0] == pytest.approx(278.08)


def test_inputs_are_not_changed():
    boxes = np.array([[1.0, 2.0, 3.0, 4.0]])
    for convention in bx.CONVENTIONS:
        bx.to_xyxy(boxes, convention, (10, 10))
        bx.from_xyxy(boxes, convention, (10, 10))
    np.testing.assert_array_equal(boxes, [[1, 2, 3, 4]])


def test_a_missing_box_stays_missing():
    missing = np.full((1, 4), np.nan)
    for convention in bx.CONVENTIONS:
        assert np.isnan(bx.to_xyxy(missing, convention, (10, 10))).all()
        assert np.isnan(bx.from_xyxy(missing, convention, (10, 10))).all()
    assert np.isnan(bx.iou(missing, [[0, 0, 1, 1]])).all()
    assert np.isnan(bx.generalized_iou([[0, 0, 1, 1]], missing)).all()
    assert np.isnan(bx.clip(missing, (5, 5))).all()
    assert np.isnan(bx.letterbox((9, 9), (3, 3)).invert_boxes(missing)).all()


@pytest.mark.parametrize("boxes", [[1, 2, 3], [[1, 2, 3, 4, 5]], [[[1, 2, 3, 4]]], 7])
def test_wrong_shapes_are_refused(boxes):
    with pytest.raises(ValueError, match="rows of four numbers"):
        bx.as_boxes(boxes)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"Unknown box convention 'yxyx'.*xywh"):
        bx.to_xyxy([0, 0, 1, 1], "yxyx")
    with pytest.raises(ValueError, match=r"size=\(width, height\)"):
        bx.to_xyxy([0, 0, 1, 1], "xyxy_unit")
    with pytest.raises(ValueError, match="above 0"):
        bx.from_xyxy([0, 0, 1, 1], "xyxy_100", (0, 10))


def test_empty_lists_are_boxes_too():
    for convention in bx.CONVENTIONS:
        assert bx.to_xyxy([], convention, (5, 5)).shape == (0, 4)
    assert bx.iou([], [[0, 0, 1, 1]]).shape == (0, 1)
    assert bx.generalized_iou([[0, 0, 1, 1]], []).shape == (1, 0)


@given(boxes_in_image(), boxes_in_image())
def test_iou_is_pycocotools_iou(first, second):
    a, b = (case[1][bx.area(case[1]) > 1e-3] for case in (first, second))
    ours = bx.iou(a, b)
    if len(a) and len(b):
        oracle = coco_mask.iou(bx.from_xyxy(a, "xywh"), bx.from_xyxy(b, "xywh"), [0] * len(b))
        np.testing.assert_allclose(ours, oracle, atol=1e-6)
    assert ((ours >= 0) & (ours <= 1 + 1e-9)).all()


@given(boxes_in_image(), boxes_in_image())
def test_generalized_iou_is_transformers_generalized_iou(first, second):
    a, b = (case[1][bx.area(case[1]) > 1e-3] for case in (first, second))
    ours = bx.generalized_iou(a, b)
    if len(a) and len(b):
        oracle = generalized_box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
        np.testing.assert_allclose(ours, oracle, atol=1e-6)
    assert ((ours >= -1 - 1e-9) & (ours <= 1 + 1e-9)).all()
    assert (ours <= bx.iou(a, b) + 1e-12).all()


def test_empty_boxes_have_no_overlap():
    point = [5, 5, 5, 5]
    assert bx.iou(point, point).item() == 0
    assert bx.generalized_iou(point, point).item() == 0
    assert bx.area([5, 5, 3, 9]).item() == 0  # corners swapped: empty, not negative


def test_clip_and_center():
    np.testing.assert_array_equal(bx.clip([[-5, 2, 30, 8], [20, 20, 30, 30]], (10, 6)), [[0, 2, 10, 6], [10, 6, 10, 6]])
    np.testing.assert_array_equal(bx.center([[0, 10, 20, 40]]), [[10, 25]])


def test_the_nine_cells():
    size = (300, 90)
    for row in range(3):
        for column in range(3):
            x, y = 100 * column + 50, 30 * row + 15
            assert bx.cell_of([x - 1, y - 1, x + 1, y + 1], size) == 3 * row + column
    assert [bx.CELLS[i] for i in (0, 4, 5, 8)] == ["top left", "middle", "middle right", "bottom right"]
    assert len(set(bx.CELLS)) == 9
    assert bx.cell_of([100, 30, 100, 30], size) == 4  # on the lines: right and lower
    assert bx.cell_of([300, 90, 300, 90], size) == 8
    assert bx.cell_of([-50, -50, -40, -40], size) == 0


@given(boxes_in_image())
def test_cell_is_the_one_with_the_nearest_centre(case):
    (width, height), boxes = case
    middles = np.array([[(column + 0.5) / 3, (row + 0.5) / 3] for row in range(3) for column in range(3)])
    for box in boxes:
        distance = np.hypot(*(middles - bx.center(box)[0] / [width, height]).T)
        assert distance[bx.cell_of(box, (width, height))] <= distance.min() + 1e-9


def test_cell_of_a_missing_box_is_refused():
    with pytest.raises(ValueError, match="one box"):
        bx.cell_of([np.nan] * 4, (10, 10))


@given(boxes_in_image(), sizes, st.sampled_from(MAKERS))
def test_transforms_come_back_and_keep_order(case, target, maker):
    size, boxes = case
    transform = maker(size, target)
    there = transform.apply_boxes(boxes)
    slack = 1e-6 * (max(size) + max(target) * max(1, *transform.scale))
    np.testing.assert_allclose(transform.invert_boxes(there), boxes, atol=slack / min(1, *transform.scale))
    assert (there[:, :2] <= there[:, 2:] + slack).all()


@given(boxes_in_image(), sizes)
def test_letterbox_and_squash_keep_boxes_on_the_canvas(case, target):
    size, boxes = case
    for maker in (bx.letterbox, bx.squash):
        there = maker(size, target).apply_boxes(boxes)
        assert (there >= -1e-6).all() and (there <= np.tile(target, 2) + 1e-6).all()


@given(sizes, sizes)
def test_where_the_whole_image_goes(size, target):
    whole = [0, 0, *size]
    boxed, cropped, squashed = (maker(size, target).apply_boxes(whole)[0] for maker in MAKERS)
    np.testing.assert_allclose(squashed, [0, 0, *target], atol=1e-6)
    sides = boxed[2:] - boxed[:2]
    assert (sides <= np.array(target) + 1e-6).all() and np.isclose(sides, target).any()
    covered = cropped[2:] - cropped[:2]
    assert (covered >= np.array(target) - 1e-6).all() and np.isclose(covered, target).any()
    for box in (boxed, cropped):  # centred, up to the pixel that an odd margin cannot share
        assert (np.abs(box[:2] + box[2:] - target) <= 1 + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(24, 90), st.integers(24, 90)),
    st.tuples(st.integers(24, 90), st.integers(24, 90)),
    st.sampled_from(MAKERS),
)
def test_pixels_go_where_their_boxes_go(size, target, maker):
    width, height = size
    box = (width // 3, height // 3, 2 * width // 3, 2 * height // 3)
    image = Image.new("RGB", size, (0, 0, 0))
    image.paste((255, 255, 255), box)
    transform = maker(size, target)
    result = transform.apply_image(image, fill=(0, 0, 0))
    assert result.size == target and result.mode == "RGB"
    bright = np.asarray(result)[..., 0] > 127
    rows, columns = np.nonzero(bright)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(seen, bx.clip(transform.apply_boxes(box), target)[0], atol=1.01)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"made for images of \(10, 20\); got one of \(20, 10\)"):
        bx.letterbox((10, 20), (8, 8)).apply_image(Image.new("RGB", (20, 10)))


def test_letterbox_shows_its_canvas():
    result = bx.letterbox((40, 20), (40, 40)).apply_image(Image.new("L", (40, 20), 255), fill=(1, 2, 3))
    assert result.getpixel((0, 0)) == (1, 2, 3) and result.getpixel((20, 20)) == (255, 255, 255)
