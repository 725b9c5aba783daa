"""Attention maps lie on the picture as the patches do."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from seewhere.show.looking import ALL, Looker, overlay, patch_grid

PICTURE = Image.new("RGB", (60, 40), "grey")


def maps(queries=3, patches=17):
    values = np.zeros((2, queries, patches))
    for query in range(queries):
        values[:, query, 1 + query] = 1  # query q looks at patch q of the first row
    return {"1": values, "2": np.roll(values, 4, axis=2)}


def test_the_class_token_is_dropped_and_rows_go_down():
    assert patch_grid(np.arange(17)).tolist() == np.arange(1, 17).reshape(4, 4).tolist()
    assert patch_grid(np.arange(16)).shape == (4, 4)
    with pytest.raises(ValueError, match="15 patches are no square grid"):
        patch_grid(np.arange(15))


def test_it_is_brightest_where_it_looks():
    weights = np.zeros(16)
    weights[3] = 1  # top right
    light = np.asarray(overlay(PICTURE, weights)).sum(axis=2)
    height, width = light.shape
    assert light[: height // 4, 3 * width // 4 :].mean() > 1.5 * light[height // 2 :, : width // 2].mean()


def test_sliders_choose_what_is_shown():
    looker = Looker([PICTURE, PICTURE], ["the <dog>", "the cat"], maps(), "one & all")
    assert "one &amp; all" in looker.caption.value
    assert "the &lt;dog&gt;" in looker.caption.value and "layer 2, mean over the queries" in looker.caption.value
    first = looker.picture.value
    looker.query.value = 2
    assert looker.weights().argmax() == 7 and looker.picture.value != first
    looker.layer.value = "1"
    assert looker.weights().argmax() == 3
    looker.example.value = 1
    assert "the cat" in looker.caption.value
    looker.query.value = ALL
    assert looker.weights()[1:4].tolist() == pytest.approx([1 / 3] * 3)


def test_a_figure_for_readers_without_a_kernel_and_mistakes():
    looker = Looker([PICTURE, PICTURE], ["a", "b"], maps())
    figure = looker.static(queries=(ALL, 0))
    assert isinstance(figure, Figure) and len(figure.axes) == 4
    with pytest.raises(ValueError, match=r"maps of 1 pictures; got \[2, 2\]"):
        Looker([PICTURE], ["a"], maps())
