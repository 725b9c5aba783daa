"""Figures of the study say what the tables say."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from seewhere.probing import controls, pictures
from test_analysis import SHARES, arm, table


def test_every_chart_draws():
    both = pd.concat([arm(t, r, s, a) for t in ("rec", "vsr") for r in ("micro-blip2", "micro-instruct")
                      for a, s in (("frozen", 0.3), ("unfrozen", 0.8))])  # fmt: skip
    layers = pd.concat([arm("vsr", "x", s, "frozen", n) for n, s in (("0", 0), ("10", 1), ("2", 0.5))])
    groups = table(SHARES, arm="frozen")
    drawn = [
        pictures.arms_chart(both, "rec", 0.1),
        pictures.groups_chart(groups, "super_category"),
        pictures.curves(layers, "layer", lines={"majority": 0.2}),
        pictures.correlation_panels(groups, {}, fewest=1),
    ]
    assert all(isinstance(figure, Figure) for figure in drawn)
    line = drawn[2].axes[0].lines[0]
    assert line.get_xdata().tolist() == [0, 2, 10] and np.allclose(line.get_ydata(), [0, 50, 100])
    assert "tau-b +1.00" in drawn[3].axes[0].get_title(loc="left")
    assert "all alike" in drawn[3].axes[2].get_title(loc="left")  # nobody counted the training examples


def test_the_papers_numbers_stand_beside_ours():
    both = pd.concat([arm("rec", r, 0.5, "frozen") for r in ("micro-blip2", "micro-instruct", "vilt")])
    shown = pictures.beside_the_paper(both).set_index("resampler")
    assert shown.paper["micro-blip2"] == 30.26 and shown.paper["micro-instruct"] == 19.92
    assert np.isnan(shown.paper["vilt"]) and shown.value.tolist() == [50, 50, 50]


def test_statements_of_another_split_have_no_number_beside_them():
    usual, other = (arm("vsr", "micro-blip2", 0.5, "frozen").assign(source=s) for s in ("vsr-random", "vsr-zeroshot"))
    assert pictures.beside_the_paper(usual).paper.tolist() == [64.97]
    assert pictures.beside_the_paper(other).paper.isna().all()
    assert pictures.relations_beside_the_paper(usual.assign(category="Adjacency")).paper.tolist() == [61.94]
    assert pictures.relations_beside_the_paper(other.assign(category="Adjacency")).paper.isna().all()
    assert pictures.beside_in_the_paper().loc["people", "rcm"] == 92.29


def test_the_gallery_shows_what_each_arm_said(box_task, binary_task):
    right = controls.predictions(box_task, box_task.targets("test"))
    wrong = controls.predictions(box_task, controls.at_random(box_task))
    figure = pictures.box_gallery(box_task, {"frozen": wrong, "unfrozen": right}, count=4)
    titles = [axes.get_title(loc=side) for axes in figure.axes for side in ("left", "center")]
    titles = [title for title in titles if title]
    assert len(titles) == 4 and all("unfrozen: IoU 1.00, a hit" in title for title in titles)
    with pytest.raises(ValueError, match="no boxes"):
        pictures.box_gallery(binary_task, {})
    with pytest.raises(ValueError, match="no example"):
        pictures.box_gallery(box_task, {"frozen": right.assign(example_id=-1)})


def test_the_first_model_with_attention_is_shown_and_its_lack_told(capsys):
    class Model:
        def __init__(self, has_attention):
            self.has_attention = has_attention

    assert pictures.with_attention({"patches": Model(False), "vilt": object(), "blip2": Model(True)}) == "blip2"
    assert capsys.readouterr().out == ""
    assert pictures.with_attention({"patches": Model(False)}) == ""
    assert "no cross-attention from queries to patches in patches" in capsys.readouterr().out
