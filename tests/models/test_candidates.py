import subprocess
import sys

import numpy as np
import pytest
from seewhere.models.candidates import Detections, empty_candidates, make_candidates, select_candidates, top_box

BOXES = [[0, 0, 10, 10], [5, 6, 20, 30], [1, 2, 3, 4]]


def test_parts_keep_their_order_and_types():
    candidates = make_candidates(BOXES, ["cat", "dog", "cat"], [0.5, 0.9, 0.1], "micro", 1, parse_failures=2)
    assert isinstance(candidates, Detections)
    np.testing.assert_array_equal(candidates.xyxy, np.array(BOXES, float))
    np.testing.assert_array_equal(candidates.confidence, [0.5, 0.9, 0.1])
    assert candidates.data["label"].tolist() == ["cat", "dog", "cat"]
    assert candidates.metadata == {"detector": "micro", "top": 1, "parse_failures": 2}
    np.testing.assert_array_equal(top_box(candidates), [5, 6, 20, 30])


def test_no_scores_stay_none():
    assert make_candidates(BOXES, ["a"] * 3, None, "florence-2", 0).confidence is None


def test_empty_set():
    candidates = empty_candidates("micro")
    assert candidates.xyxy.shape == (0, 4)
    assert candidates.confidence is None
    assert len(candidates) == 0
    assert candidates.data["label"].shape == (0,)
    assert candidates.metadata == {"detector": "micro", "top": -1}
    assert np.isnan(top_box(candidates)).all()
    assert empty_candidates("micro", scores=True).confidence.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a", "b"]}, "3 boxes but 2 labels"),
        ({"scores": [0.1]}, "3 boxes but 1 scores"),
        ({"scores": [0.1, float("nan"), 0.2]}, "finite"),
        ({"top": 3}, "top answer 3 of 3"),
        ({"top": -2}, "top answer -2"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, float("inf"), 1], [0, 0, 1, 1]]}, "box 1 is"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, 1, 1], [9, 0, 1, 1]]}, "x1 <= x2"),
    ],
)
def test_disagreeing_parts_are_refused(change, message):
    arguments = {"boxes": BOXES, "labels": ["a", "b", "c"], "scores": [0.1, 0.2, 0.3], "detector": "d", "top": 0}
    with pytest.raises(ValueError, match=message):
        make_candidates(**(arguments | change))


def test_selection_carries_labels_scores_and_top():
    candidates = make_candidates(BOXES, ["a", "b", "c"], [0.5, 0.9, 0.1], "micro", 1, note="kept")
    reordered = select_candidates(candidates, [2, 1])
    assert reordered.data["label"].tolist() == ["c", "b"]
    assert reordered.confidence.tolist() == [0.1, 0.9]
    assert reordered.metadata == {"detector": "micro", "top": 1, "note": "kept"}
    np.testing.assert_array_equal(top_box(reordered), BOXES[1])
    masked = select_candidates(candidates, candidates.confidence < 0.6)
    assert masked.data["label"].tolist() == ["a", "c"]
    assert masked.metadata["top"] == -1


def test_selecting_nothing():
    candidates = make_candidates(BOXES, ["a", "b", "c"], None, "micro", 0)
    assert len(select_candidates(candidates, [])) == 0


def test_import_is_silent():
    code = "import seewhere.models.candidates"
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "OpenCV" not in done.stderr
