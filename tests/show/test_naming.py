"""Names beside points: each near its own, none over another."""

from itertools import combinations

import numpy as np
from matplotlib import pyplot
from matplotlib.text import Text
from seewhere.show import figures, naming


def drawn(x: list[float], y: list[float], names: list[str]) -> list[np.ndarray]:
    figure, axes = pyplot.subplots(figsize=(5, 4))
    axes.scatter(x, y)
    axes.margins(0.15)
    figure.canvas.draw()
    naming.name_points(axes, x, y, names)
    figure.canvas.draw()
    pyplot.close(figure)
    assert [text.get_text() for text in axes.texts] != [] and {t.get_text() for t in axes.texts} == set(names)
    frame = axes.get_window_extent()
    for text in axes.texts:
        words = Text.get_window_extent(text)  # without the line
        assert frame.x0 - 2 <= words.x0 and words.x1 <= frame.x1 + 2, text.get_text()
    return [np.array(Text.get_window_extent(text).extents) for text in axes.texts]


def test_names_of_a_crowd_do_not_cover_each_other() -> None:
    x = [310.0, 345, 360, 365, 387, 140, 510, 640, 830]
    y = [0.0, 0, 0, 1.2, 1.4, 1.0, 0.9, 1.1, 4.2]
    names = ["kitchen", "electronic", "indoor", "person", "accessory", "outdoor", "sports", "food", "vehicle"]
    for first, second in combinations(drawn(x, y, names), 2):
        assert figures.common_area(first, second) < 4, (first, second)


def test_a_point_at_the_edge_has_its_name_inside() -> None:
    left, right = drawn([0.0, 1.0], [0.0, 1.0], ["a rather long name", "another rather long name"])
    assert left[0] < right[0]


def test_far_names_have_a_line_to_their_point() -> None:
    figure, axes = pyplot.subplots(figsize=(3, 3))
    x = y = [0.5] * 12
    axes.scatter(x, y)
    figure.canvas.draw()
    naming.name_points(axes, x, y, [f"name {n}" for n in range(12)])
    pyplot.close(figure)
    assert axes.texts[0].arrow_patch is None and any(text.arrow_patch is not None for text in axes.texts)
