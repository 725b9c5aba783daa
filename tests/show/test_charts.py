"""Charts draw the numbers they are given, with their intervals, and count what stands behind them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from seewhere.metrics import Interval
from seewhere.show import charts


def heights(figure: object) -> list[float]:
    return [patch.get_height() for patch in figure.axes[0].patches if patch.get_height()]  # type: ignore[attr-defined]


def test_bars_are_in_per_cent_and_labelled() -> None:
    figure = charts.bar_chart({"zero-shot": Interval(0.4, 0.35, 0.46, 500), "wrapper": Interval(0.7, 0.66, 0.75, 500)})
    assert heights(figure) == pytest.approx([40.0, 70.0])
    assert [text.get_text() for text in figure.axes[0].texts] == ["40.0", "70.0"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["zero-shot", "wrapper"]


def test_intervals_are_drawn_where_they_are() -> None:
    figure = charts.bar_chart({"only": Interval(0.4, 0.35, 0.46, 500)}, percent=False)
    segment = figure.axes[0].collections[0].get_segments()[0]
    assert sorted(segment[:, 1]) == pytest.approx([0.35, 0.46])


def test_grouped_bars_may_lack_a_series_and_have_a_legend_and_a_reference() -> None:
    one = Interval(0.5, 0.4, 0.6, 10)
    figure = charts.bar_chart({"short": {"a": one, "b": one}, "long": {"a": one}}, reference=("chance", 0.25))
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(heights(figure)) == 3 and set(legend) == {"a", "b", "chance"}
    with pytest.raises(ValueError, match="at least one"):
        charts.bar_chart({})


@pytest.fixture
def predictions() -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"boxes": random.integers(2, 5, 400), "image": random.integers(0, 60, 400)})
    frame["method"] = np.where(random.random(400) < 0.5, "detector", "wrapper")
    frame["hit"] = random.random(400) < np.where(frame["method"] == "wrapper", 0.8, 0.3)
    return frame


def test_group_estimates_are_the_means_of_the_groups(predictions: pd.DataFrame) -> None:
    found = charts.group_estimates(predictions, "boxes", series="method", cluster="image")
    means = predictions.groupby(["method", "boxes"])["hit"].agg(["mean", "size"])
    assert {(name, key) for name, line in found.items() for key in line} == set(means.index)
    for (name, key), row in means.iterrows():
        item = found[name][key]
        assert item.value == pytest.approx(row["mean"]) and item.n == row["size"] and item.low < item.value < item.high


def test_group_lines_draw_one_line_per_series_and_count_below(predictions: pd.DataFrame) -> None:
    figure = charts.group_lines(predictions, "boxes", series="method")
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert [label.split("\n")[0] for label in labels] == ["2", "3", "4"] and all("n = " in label for label in labels)
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {"detector", "wrapper"}
    with pytest.raises(ValueError, match=r"no column \['length'\]"):
        charts.group_lines(predictions, "length")


def test_each_stage_of_a_training_is_a_line_of_its_own() -> None:
    history = pd.DataFrame({"step": [1, 2, 3, 4], "loss": [4.0, 3.0, 9.0, 8.0], "stage": ["a", "a", "b", "b"]})
    axes = charts.learning_curves(history, {"loss": ["loss"]}, stage="stage").axes[0]
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == {"loss, a": [4, 3], "loss, b": [9, 8]}
    assert len({line.get_color() for line in axes.lines}) == 2
    whole = charts.learning_curves(history.assign(stage="a"), {"loss": ["loss"]}, stage="stage").axes[0]
    assert [line.get_label() for line in whole.lines] == ["loss"]
    assert len(charts.learning_curves(history, {"loss": ["loss"]}).axes[0].lines) == 1


def test_learning_curves_skip_entries_without_the_value() -> None:
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_p_at_1": 0.5}]
    figure = charts.learning_curves(history, {"loss": ["loss"], "P@1": ["eval_p_at_1"]})
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[2, 0.5]]
    assert all(tick == round(tick) for axes in figure.axes for tick in axes.get_xticks())  # no steps between steps
    with pytest.raises(ValueError, match="accuracy"):
        charts.learning_curves(history, {"x": ["accuracy"]})
