"""Pictures of a data set: masks are decoded to the right pixels, and the interesting image is the one chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn_data import SmallDataset
from pycocotools import mask as run_length
from seewhere.show import regions


@pytest.mark.parametrize("compressed", [True, False])
def test_masks_are_decoded_row_by_column(compressed: bool) -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 2:5] = True
    if compressed:
        code = run_length.encode(np.asfortranarray(mask.astype(np.uint8)))
    else:  # column by column, starting with the number of zeros
        code = {"size": [4, 6], "counts": [9, 1, 3, 1, 3, 1, 6]}
    assert np.array_equal(regions.decode_mask(code, (6, 4)), mask)
    with pytest.raises(ValueError, match="height"):
        regions.decode_mask(code, (4, 6))


def test_three_views_count_the_masks_there_are(dataset: SmallDataset) -> None:
    mask = np.zeros((80, 120), dtype=np.uint8, order="F")
    mask[10:20, 10:20] = 1
    first, second = dataset.by_image[0]
    figure = regions.image_boxes_masks(dataset.images[0], [replace(first, mask=run_length.encode(mask)), second])
    assert [axes.get_title(loc="left") for axes in figure.axes][2] == "1 masks"


def test_the_rich_image_has_two_of_a_kind(dataset: SmallDataset) -> None:
    dataset.by_image[2] = [replace(region, label="thing") for region in dataset.by_image[2]]
    assert regions.rich_image(dataset) == 2


def test_sayings_hold_each_style_once_shortest_first(dataset: SmallDataset) -> None:
    table = regions.sayings(dataset, 1)
    assert table["style"].tolist() == ["plus", "short"]
    assert set(table["object"]) == {"0 red thing"}
    assert table["expression"].tolist() == ["the <red thing>", "red thing at place 0"]
    with pytest.raises(ValueError, match="Nothing is said"):
        regions.sayings(dataset, 99)


def test_contact_sheet_is_repeatable(dataset: SmallDataset) -> None:
    one, two = (np.asarray(regions.contact_sheet(dataset, 2, seed=5)) for _ in range(2))
    assert np.array_equal(one, two)
