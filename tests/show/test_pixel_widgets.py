"""Pixel pictures and widgets, with readers that answer by rule: what is drawn is what was said, and no more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawn_data import SmallDataset
from matplotlib.figure import Figure
from PIL import Image
from pixel_readers import AlwaysSure, Segmenting, Silent
from pycocotools import mask as run_length
from seewhere.records import DataError
from seewhere.show.growing import Growth
from seewhere.show.masking import MaskAsker, mask_at
from seewhere.show.pixel_asking import PixelAsker, area_average
from seewhere.show.pixels import (
    STRIPES,
    UNASKED,
    Reconstruction,
    cell_errors,
    cells_picture,
    error_picture,
    mask_outline,
    overlay,
    probability_picture,
    side_by_side,
)


def two_halves(width: int = 80, height: int = 60) -> Image.Image:
    image = Image.new("RGB", (width, height), (200, 0, 0))
    image.paste((0, 0, 100), (width // 2, 0, width, height))
    return image


def asker(**readers: object) -> PixelAsker:
    return PixelAsker(readers or {"sure": AlwaysSure(), "silent": Silent()}, {"halves": two_halves()})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- pictures


def test_cells_without_an_answer_are_neither_black_nor_white() -> None:
    values = np.zeros((4, 4, 3))
    values[0, 0] = np.nan
    asked = np.ones((4, 4), bool)
    asked[3, 3] = False
    drawn = np.asarray(cells_picture(values, asked, side=64))
    assert {tuple(c) for c in drawn[:16, :16].reshape(-1, 3).tolist()} == set(STRIPES)
    assert {tuple(c) for c in drawn[48:, 48:].reshape(-1, 3).tolist()} == {UNASKED}
    assert (drawn[16:32, 16:32] == 0).all(), "black is what the model said"
    errors = np.asarray(error_picture(values, np.full((4, 4, 3), 255), side=64))
    assert {tuple(c) for c in errors[:16, :16].reshape(-1, 3).tolist()} == set(STRIPES)


def test_errors_are_summed_over_channels() -> None:
    found = cell_errors(np.array([[[0, 0, 0], [255, 0, 51]]]), np.array([[[255, 255, 255], [255, 0, 0]]]))
    np.testing.assert_allclose(found, [[300, 20]])


def test_reconstructions_side_by_side_want_the_same_systems() -> None:
    target = area_average(two_halves(), 8)
    row = Reconstruction(two_halves(), target, {"a": target * 0.5, "b": np.full(target.shape, np.nan)}, {"a": "RE 3"})
    figure = side_by_side([row, row])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == 12 and titles[2] == "RE 3" and titles[4] == "b"
    with pytest.raises(ValueError, match="same systems"):
        side_by_side([row, Reconstruction(two_halves(), target, {"a": target}, {})])
    with pytest.raises(ValueError, match="at least one picture"):
        side_by_side([])


def test_an_overlay_tints_inside_and_outlines_the_truth() -> None:
    image = Image.new("L", (40, 20), 100)
    mask = np.zeros((20, 40), bool)
    mask[5:15, 10:30] = True
    drawn = np.asarray(overlay(image, mask, mask, np.array([10, 5, 30, 15]), side=80), dtype=int)
    assert drawn[20, 40, 2] > drawn[20, 40, 0] + 40, "blue inside"
    assert len(set(drawn[2, 2].tolist())) == 1, "grey outside"
    assert mask_outline(mask).sum() == 2 * 20 + 2 * 8
    assert overlay(image, None, None, np.full(4, np.nan)).size == (360, 180)


def test_cells_that_were_not_asked_stay_grey() -> None:
    values = np.full((4, 4), np.nan)
    values[0, 0] = 1.0
    drawn = np.asarray(probability_picture(Image.new("RGB", (40, 40), (90, 0, 0)), values, 40), dtype=int)
    assert len(set(drawn[30, 30].tolist())) == 1 and len(set(drawn[4, 4].tolist())) > 1


# --------------------------------------------------------------------------------------------------- pixel widget


def test_a_click_shows_truth_answers_and_confidence() -> None:
    page = asker()
    assert "Hover over the picture" in page.report.value and page.picture.layout.display == "none"
    page._pointed({"kind": "click", "x": 0.75, "y": 0.5})
    assert page.cell == (48, 32)
    truth, sure, silent = page.rows()
    assert truth[1].tolist() == [0, 0, 100] and sure[1].tolist() == [48, 32, 7]
    np.testing.assert_allclose(sure[2], [0.9, 0.5, 0.25])
    assert np.isnan(silent[1]).all()
    assert (
        "no usable answer" in page.report.value and "[48, 32, 7]" in page.report.value and "25 %" in page.report.value
    )
    assert page.picture.layout.display == ""


def test_a_rectangle_is_asked_once_and_only_where_it_is_new() -> None:
    reader = AlwaysSure()
    page = asker(sure=reader)
    page.canvas._handle_custom_msg({"kind": "drag", "x": 0.25, "y": 0.25, "x2": 0.5, "y2": 0.75}, [])
    assert reader.asked == 16 * 32 and page.rectangle == (0.25, 0.25, 0.5, 0.75)
    assert page.canvas.mark == [0.25, 0.25, 0.5, 0.75]
    page.ask_rectangle(20, 15, 60, 45)
    assert reader.asked == 32 * 32
    page._pointed({"kind": "hover", "x": 0.3, "y": 0.3})
    assert reader.asked == 32 * 32
    page.whole.click()
    assert reader.asked == 64 * 64 and page.known["sure"].asked.all()


def test_a_picture_of_ones_own_from_a_path(tmp_path: Path) -> None:
    page = asker()
    for name, image in {
        "grey.png": two_halves().convert("L"),
        "clear.png": two_halves().convert("RGBA"),
        "deep.png": Image.fromarray(np.full((5, 6), 65535, dtype=np.uint16)),
        "dot.png": Image.new("RGB", (1, 1), "green"),
        "huge.png": Image.new("L", (8000, 6000), 40),
    }.items():
        image.save(tmp_path / name)
        page.path.value = str(tmp_path / name)
        assert page.chosen.value == str(tmp_path / name) and page.image.size == image.size
        page._pointed({"kind": "click", "x": 1.0, "y": 1.0})
        assert page.cell == (63, 63) and not np.isnan(page.rows()[1][1]).any()
    page.path.value = str(tmp_path / "nothing.png")
    assert "no such file" in page.message.value and page.chosen.value == str(tmp_path / "huge.png")
    page.chosen.value = "halves"
    assert page.cell is None and "80 x 60" in page.message.value


def test_points_outside_of_the_picture_are_refused_and_said() -> None:
    page = asker()
    with pytest.raises(ValueError, match="outside of the picture"):
        page.ask(81, 10)
    page._pointed({"kind": "click", "x": 1.5, "y": 0.5})
    assert "outside of the picture" in page.message.value and page.cell is None
    page._pointed({"kind": "click"})
    page._pointed({"kind": "drag", "x": 2, "y": 2, "x2": 3, "y2": 3})
    assert "outside of the picture" in page.message.value
    assert page.canvas.answered == 3, "the page is told, or it would wait for ever"


def test_a_picture_is_averaged_once() -> None:
    averaged: list[int] = []

    def target(image: Image.Image, grid: int) -> np.ndarray:
        averaged.append(grid)
        return area_average(image, grid)

    page = PixelAsker({"sure": AlwaysSure()}, {"one": Image.new("RGB", (30, 20), "red")}, target=target, grid=4)
    page.ask(3, 3)
    page.ask(20, 10)
    assert averaged == [4]


def test_unusable_answers_are_counted() -> None:
    page = asker()
    page.ask_rectangle(0, 0, 80, 60)
    _, titles = page._tiles()
    assert titles[2] == "silent: no answer, 4096 unusable" and titles[1].startswith("sure: RE ")


def test_the_static_view_and_what_cannot_be_shown() -> None:
    assert isinstance(asker().static("halves", (0.9, 0.1)), Figure)
    assert "a widget" in repr(asker())
    with pytest.raises(ValueError, match="at least one model"):
        PixelAsker({}, {"a": two_halves()})


# --------------------------------------------------------------------------------------------------------- growth


def history(snapshots: int, scale: int = 1, names: tuple[str, ...] = ("one", "two")) -> SimpleNamespace:
    targets = np.full((len(names), 8, 8, 3), 200, dtype=np.uint8)
    steps = np.linspace(0, 1, snapshots)
    values = (targets[None] * steps[:, None, None, None, None]).astype(np.uint8)
    return SimpleNamespace(
        stages=[f"stage{1 + int(2.99 * s)}" for s in steps],
        questions=np.arange(snapshots) * scale,
        names=names,
        targets=targets,
        reconstructions=values,
        errors=np.abs(values.astype(float) - targets).mean((2, 3, 4)),
    )


def test_the_slider_moves_all_trainings_by_questions_seen() -> None:
    page = Growth({"adapted": history(9, 1000), "frozen": history(5, 2000)})
    assert "8,000 questions" in page.caption.value and "RE 0.0" in page.caption.value
    before = page.picture.value
    page.snapshot.value = 3
    assert page.nearest("frozen", 3) in (1, 2) and page.picture.value != before
    assert "frozen, stage" in page.caption.value
    page.chosen.value = 1
    assert isinstance(page.static(), Figure)


def test_columns_of_the_strip_stand_at_equal_counts() -> None:
    page = Growth({"many": history(41, 1000), "few": history(5, 9000)})
    strip = page.static()
    columns = len(strip.axes) // 2
    titles = [[axes.get_title(loc="left").split(",")[0] for axes in strip.axes[row * columns :][: columns - 1]]
              for row in (0, 1)]  # fmt: skip
    assert titles == [["0", "9 k", "18 k", "27 k", "40 k"], ["0", "9 k", "18 k", "27 k", "36 k"]]
    short = Growth({"long": history(9, 1000), "short": history(3, 100)}).static()
    first = [axes.get_title(loc="left") for axes in short.axes[:4]]
    assert first[1] == "" and first[2].startswith("8 k")  # nothing of its own at 100 questions


def test_trainings_on_other_pictures_do_not_fit() -> None:
    with pytest.raises(ValueError, match="same pictures"):
        Growth({"a": history(3), "b": history(3, names=("other", "two"))})
    with pytest.raises(ValueError, match="at least one"):
        Growth({})


# ---------------------------------------------------------------------------------------------------- mask widget


def with_masks(dataset: SmallDataset) -> SmallDataset:
    from dataclasses import replace

    for number, item in enumerate(dataset.expressions):
        mask = np.zeros((80, 120), dtype=np.uint8, order="F")
        x1, y1, x2, y2 = map(int, item.region.box)
        mask[y1:y2, x1:x2] = 1
        region = replace(item.region, mask=run_length.encode(mask))
        dataset.expressions[number] = replace(item, region=region)
    return dataset


def test_a_phrase_brings_box_mask_and_iou_and_the_threshold_moves_it(dataset: SmallDataset) -> None:
    segmenting = Segmenting(dataset)
    page = MaskAsker(segmenting, with_masks(dataset))
    assert page.iou() > 0.8 and "mask IoU" in page.report.value
    before = page.picture.value
    page.threshold.value = 0.95
    assert page.iou() == 0.0 and page.picture.value != before and len(segmenting.asked) == 1
    page.phrase.value = "the <green thing>"
    assert "&lt;green thing&gt;" in page.report.value and len(segmenting.asked) == 2
    page.next.click()
    assert len(segmenting.asked) == 3


def test_an_answer_that_fails_does_not_leave_the_last_one_standing(dataset: SmallDataset) -> None:
    segmenting = Segmenting(dataset)

    def failing(image: Image.Image, phrase: str) -> Any:
        if phrase == "blue":
            raise RuntimeError("out of memory")
        return segmenting(image, phrase)

    page = MaskAsker(failing, with_masks(dataset))
    assert page.found is not None
    with pytest.raises(RuntimeError):
        page.typed.value = "blue"
    page.threshold.value = 0.7
    assert page.found is None and "gave no answer" in page.report.value and "IoU" not in page.report.value
    page.typed.value = "the green thing"
    assert page.found is not None and "green thing" in page.report.value


def test_a_typed_phrase_has_no_truth_and_a_model_may_name_no_box(dataset: SmallDataset) -> None:
    page = MaskAsker(Segmenting(dataset), with_masks(dataset))
    page.typed.value = "blue something"
    assert page.truth() is None and np.isnan(page.iou()) and "cells in the box" in page.report.value
    page.typed.value = "nonsense"
    assert "named no box" in page.report.value and not page.mask().any()
    assert isinstance(page.static(0, "red thing at place 0"), Figure) and page.threshold.value == 0.5
    page.phrase.value = "(your own phrase)"
    assert "Type a phrase" in page.report.value
    with pytest.raises(ValueError, match="no phrase yet"):
        page.mask()


def test_a_picture_of_the_reader_s_own_is_asked_about_by_phrases_of_their_own(
    dataset: SmallDataset, tmp_path: Path
) -> None:
    Image.new("L", (60, 90), 40).save(tmp_path / "mine.png")
    seen: list[tuple[tuple[int, int], str]] = []
    segmenting = Segmenting(dataset)

    def segment(image: Image.Image, phrase: str) -> SimpleNamespace:
        seen.append((image.size, phrase))
        return segmenting(image, phrase) if image.size == (120, 80) else half_of(image)

    page = MaskAsker(segment, with_masks(dataset))
    of_the_set = page.picture.value
    page.file.value = str(tmp_path / "mine.png")
    assert "60 x 90 pixels" in page.message.value and "Type a phrase" in page.report.value
    assert page.phrase.options == ("(your own phrase)",) and page.picture.value != of_the_set
    page.typed.value = "the dark thing"
    assert seen[-1] == ((60, 90), "the dark thing")
    assert page.mask().shape == (90, 60) and page.mask()[:45].all() and not page.mask()[45:].any()
    assert page.truth() is None and np.isnan(page.iou())
    page.file.value = str(tmp_path / "none.png")  # what is wrong is said, and the picture on show stays
    assert "no such file" in page.message.value and page.size == (60, 90)
    assert isinstance(page.static(0, "red thing at place 0"), Figure)  # back to the set, where the slider stood
    assert page.own is None and page.file.value == "" and page.message.value == "" and page.iou() > 0.8
    page.file.value = str(tmp_path / "mine.png")
    page.next.click()
    assert page.own is None and page.size == (120, 80) and len(page.phrase.options) > 1
    assert isinstance(page.static(phrase="the dark thing", file=tmp_path / "mine.png"), Figure)
    assert page.text == "the dark thing" and seen[-1] == ((60, 90), "the dark thing")
    with pytest.raises(DataError, match="no such file"):
        page.static(file=tmp_path / "none.png")


def half_of(image: Image.Image) -> SimpleNamespace:
    values = np.full((64, 64), np.nan)
    values[:32] = 0.9
    return SimpleNamespace(box=np.array([0, 0, image.width, image.height / 2]), probabilities=values)


def test_one_of_several_models_is_asked(dataset: SmallDataset) -> None:
    sure, other = Segmenting(dataset), []
    page = MaskAsker({"sure": sure, "half": lambda i, p: other.append(p) or half_of(i)}, with_masks(dataset))
    before, phrase = page.picture.value, page.text
    assert len(sure.asked) == 1 and not other and page.model.layout.display == ""
    page.model.value = "half"
    assert other == [phrase] and len(sure.asked) == 1 and page.picture.value != before
    assert MaskAsker(sure, dataset).model.layout.display == "none"
    with pytest.raises(ValueError, match="at least one model"):
        MaskAsker({}, dataset)


def test_cells_not_asked_are_outside_of_every_mask() -> None:
    values = np.full((4, 4), np.nan)
    values[1, 1] = 0.4
    assert mask_at(values, 0.0, (8, 8)).sum() == 4 and mask_at(values, 0.4, (8, 8)).sum() == 0
