"""Pictures and tables of frames: numbers are converted, not relabelled, and a crop loses what lies outside it."""

from __future__ import annotations

import pytest
from drawn_data import SmallDataset
from PIL import Image
from seewhere.show import frames


def test_conventions_are_written_as_published() -> None:
    table = frames.convention_table([20, 10, 60, 40], (200, 100)).set_index("convention")
    assert table.loc["xywh", "numbers"] == "[20.0, 10.0, 40.0, 30.0]"
    assert table.loc["cxcywh_unit", "numbers"] == "[0.200, 0.250, 0.200, 0.300]"
    assert table.loc["xyxy_100", "numbers"] == "[10.0, 10.0, 30.0, 40.0]"
    scores = table["IoU if read as xyxy"]
    assert scores["xyxy"] == 1.0 and scores["xywh"] == pytest.approx(20 * 20 / 1200, abs=0.01)
    assert scores["xyxy_unit"] == 0.0


def test_a_crop_loses_what_lies_outside_and_says_so() -> None:
    boxes, labels = [[0, 30, 20, 70], [90, 30, 110, 70], [52, 30, 72, 70]], ["far left", "middle", "left third"]
    table = frames.transform_table(boxes, labels, (200, 100), (100, 100)).set_index("object")
    assert table.loc["far left"].tolist() == ["middle left", "middle left", "(gone)", "middle left"]
    assert table.loc["middle"].tolist() == ["middle"] * 4
    assert table.loc["left third", "original"] == "middle left"
    figure = frames.transform_gallery(Image.new("RGB", (200, 100)), boxes, labels, (100, 100))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert "2 of 3" in titles[2].replace("\n", " ") and "3 of 3" in titles[1].replace("\n", " ")


def test_misread_boxes_are_shown_with_their_iou() -> None:
    titles = [
        axes.get_title(loc="left")
        for axes in frames.misread_gallery(Image.new("RGB", (200, 100)), [20, 10, 60, 40]).axes
    ]
    assert len(titles) == 4 and "IoU 0.33" in titles[1]


def test_the_image_that_loses_most_is_found(dataset: SmallDataset) -> None:
    # three rectangles side by side in images 1 and 2, two in image 0; a narrow crop keeps the middle one only
    assert frames.most_cropped(dataset, (20, 80)) == 1
    dataset.by_image.clear()
    with pytest.raises(ValueError, match="no image"):
        frames.most_cropped(dataset)
