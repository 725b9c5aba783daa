"""Region cell matching by the paper's recipe, and the three tasks read from the world's own files."""

import pickle
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from seewhere.boxes import CELLS, cell_of, iou, to_xyxy
from seewhere.datasets import load
from seewhere.datasets.refer import find_folder, find_references
from seewhere.probing import rcm
from seewhere.probing.tasks import data_hash, load_task, super_categories, unit_box, with_fewer
from seewhere.records import DataError, Expression, ImageRecord, Region
from seewhere.world.export import build


def expression(number, cell, size=(90, 60), split="test"):
    """An expression about a box whose centre is in a cell."""
    x, y = (cell % 3 + 0.5) * size[0] / 3, (cell // 3 + 0.5) * size[1] / 3
    image = ImageRecord(number, Path(f"{number}.jpg"), *size)
    region = Region(number, number, (x - 4, y - 3, x + 4, y + 3), "dog", 18)
    return Expression(number, image, region, f"the dog number {number}.", split)


def expressions(counts):
    cells = [cell for cell, count in enumerate(counts) for _ in range(count)]
    return [expression(number, cell) for number, cell in enumerate(cells)]


def test_the_recipe():
    items = rcm.build(expressions([16, 30, 17, 40, 90, 18, 20, 21, 16]))
    positives = [item for item in items if item.label]
    negatives = [item for item in items if not item.label]
    assert len(positives) == len(negatives) == 9 * 16
    assert set(Counter(item.cell for item in positives).values()) == {16}
    pairs = Counter((item.cell, item.claimed) for item in negatives)
    assert len(pairs) == 9 * 8 and set(pairs.values()) == {2}  # N_i / 8 for every other cell
    assert all(cell_of(item.expression.region.box, item.expression.image.size) == item.cell for item in items)
    # An expression is once right and once wrong.
    assert Counter(item.expression.expression_id for item in positives) == Counter(
        item.expression.expression_id for item in negatives
    )


def test_what_remains_over_eight_is_trimmed_or_dealt_out():
    trimmed = rcm.build(expressions([13] * 9))
    assert len(trimmed) == 2 * 9 * 8
    dealt = rcm.build(expressions([13] * 9), exact=False)
    assert len(dealt) == 2 * 9 * 13 and sum(item.label for item in dealt) == 9 * 13
    claimed = Counter(item.claimed for item in dealt if not item.label)
    assert max(claimed.values()) - min(claimed.values()) <= 2
    few = rcm.build(expressions([3] * 9))
    assert len(few) == 2 * 9 * 3 and max(Counter((i.cell, i.claimed) for i in few if not i.label).values()) == 1


def test_captions_are_the_papers():
    assert (
        rcm.caption("A brown donut.", CELLS.index("middle")) == "A brown donut refers to the middle part of the image"
    )
    texts = {item.text.split("refers to the ")[1] for item in rcm.build(expressions([8] * 9))}
    assert texts == {f"{cell} part of the image" for cell in CELLS}


def test_the_seed_decides_and_sizes_bound():
    many = expressions([40] * 9)
    assert rcm.build(many, seed=1) == rcm.build(many, seed=1) != rcm.build(many, seed=2)
    assert len(rcm.build(many, per_cell=17)) == 2 * 9 * 16
    with pytest.raises(DataError, match="at least one positive"):
        rcm.build(many, per_cell=0)
    with pytest.raises(DataError, match=r"no expression's centre is in top right, bottom \("):
        rcm.build(expressions([9, 9, 0, 9, 9, 9, 9, 0, 9]))


def test_small_data_may_do_without_a_cell():
    with pytest.warns(UserWarning, match="over 7 cells only"):
        items = rcm.build(expressions([9, 9, 0, 9, 9, 9, 9, 0, 9]), skip_empty=True)
    assert len(items) == 2 * 7 * 6 and not {2, 7} & {i.claimed for i in items}
    assert set(Counter((i.cell, i.claimed) for i in items if not i.label).values()) == {1}
    with pytest.raises(DataError, match="larger split"):
        rcm.build(expressions([9] + [0] * 8), skip_empty=True)


def test_real_refcocog_gives_the_papers_shape_where_it_is_there(real_data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        items = load("refcocog", "all", real_data).expressions
    cells = {cell_of(e.region.box, e.image.size) for e in items}
    if len(cells) < 9:
        with pytest.raises(DataError, match="no expression's centre is in"):
            rcm.build(items)
    else:
        assert len(rcm.build(items)) >= 18


# -- tasks on the world ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world") / "smoke", "smoke", workers=1, progress=False)


@pytest.mark.parametrize(
    ("name", "data"), [("rec", "worldg"), ("vsr", "random"), ("vsr", "zeroshot"), ("rcm", "worldg")]
)
@pytest.mark.filterwarnings("ignore:no expression's centre")
def test_every_task_reads_the_world(world, name, data):
    task = load_task(name, world, data)
    for split, examples in task.splits.items():
        targets = task.targets(split)
        assert len(examples) == len(targets) > 0 and targets.shape[1] == task.outputs
        assert targets.min() >= 0 and targets.max() <= 1
        assert all(e.text and e.picture.path.is_file() for e in examples)
    if task.kind == "binary":
        assert task.targets("train").mean() == 0.5
    images = [{e.image_id for e in examples} for examples in task.splits.values()]
    assert not images[0] & images[1] and not images[0] & images[2] and not images[1] & images[2]


def test_boxes_are_shares_and_groups_are_told(world):
    task = load_task("rec", world, "worldg")
    source = {e.expression_id: e for e in load("worldg", "test", world).expressions}
    supers = super_categories("worldg", world)
    for example in task.splits["test"]:
        found = source[example.example_id]
        box = to_xyxy(example.target, "cxcywh_unit", found.image.size)
        assert iou(box, np.array([found.region.box]))[0, 0] > 0.999
        assert example.meta["super_category"] == supers[found.region.label]
        assert 0 < example.meta["area"] < 1 and 0 <= example.meta["distance"] <= 1
    assert supers["dog"] == "animal"
    assert unit_box(expression(1, 4)) == pytest.approx((0.5, 0.5, 8 / 90, 6 / 60))


@pytest.mark.filterwarnings("ignore:no expression's centre")
def test_sizes_are_drawn_by_the_seed(world):
    sizes = {"train": 20, "test": 10}
    first, second = (load_task("rec", world, "worldg", sizes, seed=s) for s in (0, 1))
    assert [len(first.splits[s]) for s in ("train", "test")] == [20, 10]
    assert data_hash(first.splits["train"]) != data_hash(second.splits["train"])
    part = with_fewer(first, 5)
    assert set(e.example_id for e in part.splits["train"]) < set(e.example_id for e in first.splits["train"])
    assert len(part.splits["train"]) == 5 and part.splits["test"] == first.splits["test"]
    cells = load_task("rcm", world, "world", {"train": 36}).splits["train"]
    assert len(cells) == 36 and sum(e.target[0] for e in cells) == 18


def test_what_is_not_there_is_said(world, tmp_path):
    with pytest.raises(DataError, match="Unknown data set 'RefCOCOg'; known ones"):
        load_task("rec", world, "RefCOCOg")
    with pytest.raises(DataError, match="unknown task 'grounding'"):
        load_task("grounding", world, "worldg")
    with pytest.raises(DataError):
        load_task("rec", tmp_path, "worldg")


@pytest.mark.parametrize("name", ["rec", "rcm"])
def test_data_with_two_halves_in_place_of_a_test_split_are_tested_on_both(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path / "home"))
    root = build(None, "smoke", workers=1, progress=False)
    whole = load_task(name, root, "worldg")
    shutil.copytree(root, tmp_path / "halves")
    path = find_references("worldg", find_folder("worldg", tmp_path / "halves"), None)
    references = pickle.loads(path.read_bytes())
    for place, item in enumerate(item for item in references if item["split"] == "test"):
        item["split"] = f"test{'AB'[place % 2]}"
    path.write_bytes(pickle.dumps(references, protocol=2))
    halves = load_task(name, tmp_path / "halves", "worldg")
    assert [e.text for e in halves.splits["test"]] == [e.text for e in whole.splits["test"]]
    for item in references:
        item["split"] = item["split"].replace("val", "dev")
    path.write_bytes(pickle.dumps(references, protocol=2))
    with pytest.raises(DataError, match="no split 'val'"):
        load_task(name, tmp_path / "halves", "worldg")
