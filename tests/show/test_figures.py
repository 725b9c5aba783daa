"""Pictures hold what they claim to: boxes where the boxes are, one panel per choice, labels that can be read."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from seewhere.models.candidates import empty_candidates, make_candidates
from seewhere.show import figures, style

GREY = Image.new("RGB", (100, 50), (128, 128, 128))


def rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[start : start + 2], 16) for start in (1, 3, 5))


def test_a_box_is_drawn_at_its_own_coordinates_in_the_enlarged_frame() -> None:
    picture = figures.draw_boxes(GREY, [[10, 5, 60, 40]], colors=style.BLUE, side=400, width=4)
    pixels = np.asarray(picture)
    assert picture.size == (400, 200)
    rows, columns = np.nonzero((pixels == rgb(style.BLUE)).all(axis=2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == pytest.approx((40, 20, 240, 160), abs=1)
    assert tuple(pixels[90, 140]) == (128, 128, 128), "the inside of a box must stay visible"


def test_a_dashed_box_has_gaps() -> None:
    box = [[10, 5, 60, 40]]
    whole, dashed = (
        (np.asarray(figures.draw_boxes(GREY, box, colors=style.BLUE, side=400, dashed=dashed)) == rgb(style.BLUE))
        .all(axis=2)
        .sum()
        for dashed in (False, True)
    )
    assert 0.3 * whole < dashed < 0.8 * whole


def test_a_missed_box_is_skipped_and_no_boxes_leave_the_picture_alone() -> None:
    plain = np.asarray(figures.enlarge(GREY)[0])
    assert np.array_equal(np.asarray(figures.draw_boxes(GREY, [[np.nan] * 4], ["nothing"])), plain)
    assert np.array_equal(np.asarray(figures.draw_boxes(GREY, [])), plain)


def test_labels_of_coinciding_boxes_do_not_cover_each_other() -> None:
    taken: list[tuple[float, ...]] = []
    for _ in range(4):
        spot = figures._place_label(np.array([100.0, 100, 200, 200]), (80.0, 20.0), (448, 448), taken)
        assert all(figures.common_area(spot, other) == 0 for other in taken)
        taken.append(spot)


@pytest.mark.parametrize("box", [[-30, -30, 10, 10], [90, 40, 130, 80], [0, 0, 100, 50]])
def test_labels_stay_on_the_canvas(box: list[float]) -> None:
    left, top, right, bottom = figures._place_label(np.array(box, dtype=float), (40.0, 12.0), (100, 50), [])
    assert 0 <= left < right <= 100 and 0 <= top < bottom <= 50


def test_counts_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="2 boxes, 1 labels"):
        figures.draw_boxes(GREY, [[0, 0, 1, 1], [0, 0, 2, 2]], ["one"])
    with pytest.raises(ValueError, match="four numbers"):
        figures.draw_boxes(GREY, [[0, 0, 1]])


def test_masks_tint_only_their_own_pixels() -> None:
    mask = np.zeros((50, 100), dtype=bool)
    mask[:, :30] = True
    pixels = np.asarray(figures.draw_masks(GREY, [mask], side=100)).astype(int)
    assert pixels[25, 10, 2] - pixels[25, 10, 0] > 50, "inside: towards blue"
    assert tuple(pixels[25, 80]) == (128, 128, 128)
    with pytest.raises(ValueError, match=r"\(10, 10\)"):
        figures.draw_masks(GREY, [np.ones((10, 10), dtype=bool)])


def test_candidate_labels_show_scores_only_where_there_are_any() -> None:
    boxes, names = [[0, 0, 9, 9], [5, 5, 20, 20]], ["dog", "cat"]
    assert figures.candidate_labels(make_candidates(boxes, names, [0.912, 0.5], "d", 0)) == [
        "0: dog 0.91",
        "1: cat 0.50",
    ]
    assert figures.candidate_labels(make_candidates(boxes, names, None, "d", 0)) == ["0: dog", "1: cat"]
    assert figures.candidate_labels(empty_candidates("d")) == []


def test_a_choice_is_coloured_by_its_iou() -> None:
    found = make_candidates([[0, 0, 20, 20], [50, 10, 90, 40]], ["dog", "cat"], None, "d", 0)
    truth = [50, 10, 90, 40]
    hit, hit_value = figures.draw_choice(GREY, found, 1, truth)
    miss, miss_value = figures.draw_choice(GREY, found, 0, truth)
    assert hit_value == pytest.approx(1.0) and miss_value == pytest.approx(0.0)
    assert (np.asarray(hit) == rgb(style.BLUE)).all(axis=2).any()
    assert (np.asarray(miss) == rgb(style.VERMILLION)).all(axis=2).any()
    assert np.isnan(figures.draw_choice(GREY, found, -1, truth)[1])
    assert np.isnan(figures.draw_choice(GREY, found, 0, None)[1])


def test_contact_sheet_keeps_every_image_whole() -> None:
    tall, wide = Image.new("RGB", (10, 40), (255, 0, 0)), Image.new("RGB", (40, 10), (0, 0, 255))
    sheet = np.asarray(figures.contact_sheet([tall, wide], columns=2, tile=64, gap=4))
    red, blue = ((sheet == colour).all(axis=2) for colour in ((255, 0, 0), (0, 0, 255)))
    assert np.ptp(np.nonzero(red)[0]) + 1 == 64 and np.ptp(np.nonzero(red)[1]) + 1 == 16
    assert np.ptp(np.nonzero(blue)[0]) + 1 == 16 and np.ptp(np.nonzero(blue)[1]) + 1 == 64
    with pytest.raises(ValueError, match="at least one"):
        figures.contact_sheet([])


def test_panels_show_candidates_each_choice_and_the_truth() -> None:
    found = make_candidates([[0, 0, 20, 20], [50, 10, 90, 40]], ["dog", "cat"], [0.9, 0.8], "d", 0)
    rows = [
        figures.PanelRow(GREY, "the cat", found, (50, 10, 90, 40), {"detector": 0, "wrapper": 1}),
        figures.PanelRow(GREY, "a bird", empty_candidates("d"), None, {"detector": -1, "wrapper": -1}),
    ]
    figure = figures.expression_panels(rows)
    titles = [axes.get_title(loc="left") for part in figure.subfigs for axes in part.axes]
    assert titles[:4] == ["candidates (2)", "detector: wrong, IoU 0.00", "wrapper: right, IoU 1.00", "truth"]
    assert titles[4:] == ["candidates (0)", "detector: none (a miss)", "wrapper: none (a miss)", "truth: unknown"]
    assert [part.get_suptitle() for part in figure.subfigs] == ["“the cat”", "“a bird”"]
    with pytest.raises(ValueError, match="choosers"):
        figures.expression_panels([rows[0], figures.PanelRow(GREY, "x", found, None, {"other": 0})])


def test_gallery_is_not_left_open_in_pyplot() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    figure = figures.gallery([GREY, GREY, GREY], ["a", "b", "c"], columns=2)
    assert isinstance(figure, Figure) and pyplot.get_fignums() == before
    assert [axes.axison for axes in figure.axes] == [True, True, True, False]


def test_text_is_readable_on_every_colour_of_the_palette() -> None:
    def luminance(color: str) -> float:
        parts = [value / 255 for value in rgb(color)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for color in style.PALETTE:  # WCAG contrast for large text
        high, low = sorted((luminance(color), luminance(style.ink_on(color))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3.0, color
