"""Widgets without a browser: changing a control changes what is shown, and what is shown is right."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_data import ByLabel, EveryRectangle, SmallDataset
from matplotlib.figure import Figure
from seewhere.show import widgets


def test_browse_steps_through_the_images_and_goes_round(dataset: SmallDataset) -> None:
    browser = widgets.browse(dataset)
    seen = [browser.picture.value]
    for _ in range(2):
        browser.next.click()
        seen.append(browser.picture.value)
    assert len(set(seen)) == 3 and all(bytes(png[:4]) == b"\x89PNG" for png in seen)
    browser.next.click()
    assert browser.picture.value == seen[0]
    browser.previous.click()
    assert browser.picture.value == seen[2]


def test_browse_lists_the_expressions_of_the_chosen_style(dataset: SmallDataset) -> None:
    browser = widgets.browse(dataset)
    assert browser.style.options == ("every style", "plus", "short")
    assert "red thing at place 0" in browser.text.value
    browser.style.value = "plus"
    assert "at place" not in browser.text.value
    assert "the &lt;red thing&gt;" in browser.text.value, "text of a data set must not become markup"


def test_browse_refuses_an_empty_data_set(dataset: SmallDataset) -> None:
    dataset.images.clear()
    with pytest.raises(ValueError, match="no images"):
        widgets.browse(dataset)


def test_ask_shows_both_choices_and_the_prompt(dataset: SmallDataset) -> None:
    asker = widgets.ask(EveryRectangle(dataset), ByLabel(), dataset)
    asker.phrase.value = "green thing at place 1"
    assert asker.choices() == {"detector": 0, "wrapper": 1}
    assert "candidate 0, IoU 0.00, wrong" in asker.report.value
    assert "candidate 1, IoU 1.00, right" in asker.report.value
    assert "92 % 1: green thing" in asker.report.value
    assert "Which box is &lt;green thing at place 1&gt;?" in asker.prompt.value


def test_a_typed_phrase_is_asked_once_and_has_no_truth(dataset: SmallDataset) -> None:
    grounder = EveryRectangle(dataset)
    asker = widgets.ask(grounder, ByLabel(), dataset)
    before = asker.picture.value
    grounder.asked.clear()
    asker.typed.value = "my own green thing"
    assert grounder.asked == ["my own green thing"]
    assert asker.truth() is None and "IoU" not in asker.report.value
    assert asker.phrase.value == "(your own phrase)" and asker.picture.value != before
    asker.phrase.value = "red thing at place 0"
    assert asker.typed.value == "" and grounder.asked[1:] == ["red thing at place 0"]


def test_a_new_image_brings_its_own_phrases(dataset: SmallDataset) -> None:
    asker = widgets.ask(EveryRectangle(dataset), ByLabel(), dataset)
    asker.typed.value = "something"
    asker.next.click()
    assert asker.typed.value == "" and "blue thing at place 2" in asker.phrase.options
    assert asker.text in asker.phrase.options
    asker.phrase.value = "(your own phrase)"
    assert "Type a phrase" in asker.report.value


def test_drawing_the_truth_gives_an_iou_of_one(dataset: SmallDataset) -> None:
    drawer = widgets.draw(dataset)
    assert np.isnan(drawer.iou()) and "drag a box" in drawer.report.value
    left, top, right, bottom = drawer.expression.region.box
    factor = 448 / 120
    drawer.canvas.bboxes = [
        {"x": left * factor, "y": top * factor, "width": (right - left) * factor, "height": (bottom - top) * factor}
    ]
    assert drawer.iou() == pytest.approx(1.0) and "IoU 1.00: a hit" in drawer.report.value
    drawer.canvas.bboxes = [{"x": 0, "y": 0, "width": 10, "height": 10}]
    assert "a miss" in drawer.report.value
    first = drawer.expression
    drawer.another.click()
    assert drawer.expression != first and drawer.canvas.bboxes == []
    drawer.reveal.value = True
    assert bytes(drawer.picture.value[:4]) == b"\x89PNG" and drawer.picture.layout.display == ""


def test_every_widget_has_a_static_picture_and_a_plain_text_form(dataset: SmallDataset) -> None:
    asker = widgets.ask(EveryRectangle(dataset), ByLabel(), dataset)
    for widget in (widgets.browse(dataset), asker, widgets.draw(dataset)):
        assert isinstance(widget.static(1), Figure)
        assert widget.slider.value == 1
        assert "run this cell" in repr(widget)
        bundle = widget._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle and "run this cell" in bundle["text/plain"]
    figure = asker.static(2, "blue thing, please")
    assert figure.get_suptitle() == "“blue thing, please”"
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx([1 / 13, 1 / 13, 11 / 13])


def test_several_data_sets_over_the_same_images_are_shown_together(dataset: SmallDataset) -> None:
    from dataclasses import replace

    short, plus = (
        replace(dataset, name=name, expressions=[item for item in dataset.expressions if item.style == name])
        for name in ("short", "plus")
    )
    browser = widgets.browse([short, plus])
    assert browser.style.options == ("every style", "plus", "short")
    assert browser.text.value == widgets.browse(dataset).text.value
    other = replace(plus, images={0: replace(plus.images[0], path=plus.images[1].path)})
    with pytest.raises(ValueError, match="same images"):
        widgets.browse([short, other])


def test_panel_rows_ask_each_model_once_for_all_expressions(dataset: SmallDataset) -> None:
    grounder = EveryRectangle(dataset)
    chosen = dataset.expressions[2:7]
    rows = widgets.panel_rows(grounder, ByLabel(), chosen)
    assert grounder.asked == [item.text for item in chosen] == [row.phrase for row in rows]
    assert [row.choices for row in rows][:3] == [{"detector": 0, "wrapper": 1}] * 2 + [{"detector": 0, "wrapper": 0}]
    assert all(row.truth == item.region.box for row, item in zip(rows, chosen, strict=True))
