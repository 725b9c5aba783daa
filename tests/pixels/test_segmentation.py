"""Box first, then pixels: scores of models that answer by rule, on scenes of the world and on real pictures."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from seewhere import datasets, metrics
from seewhere.models.pixel_points import cells_of
from seewhere.pixels import segmentation as seg
from seewhere.records import DataError
from seewhere.world import export


class Knowing:
    """Knows masks and boxes by phrase; `share` of the box's cells are answered wrongly, `silent` phrases get no box."""

    name = "knowing"

    def __init__(self, references: list[seg.Reference], share: float = 0.0, silent: tuple[str, ...] = ()) -> None:
        self.known = {r.expression.text: r for r in references}
        self.share, self.silent, self.random = share, silent, np.random.default_rng(0)

    def find_boxes(self, images, phrases):
        boxes = [self.known[p].expression.region.box if p not in self.silent else [np.nan] * 4 for p in phrases]
        return np.array(boxes)

    def read_mask(self, image, phrase, points):
        cells = cells_of(points, image.size)
        truth = seg.on_grid(self.known[phrase].mask)
        inside = truth[np.minimum(points[:, 1].astype(int), image.height - 1), points[:, 0].astype(int)]
        wrong = self.random.random(len(cells)) < self.share
        return np.where(inside ^ wrong, 0.9, 0.1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.build(tmp_path_factory.mktemp("world") / "w", "smoke", workers=1, progress=False)


@pytest.fixture(scope="module")
def references(world: Path) -> list[seg.Reference]:
    data = [datasets.load(name, "test", world) for name in ("world", "worldg")]
    drawn = seg.draw_references(data, 12, [0, 1])
    assert {seed: len(found) for seed, found in drawn.items()} == {0: 24, 1: 24}
    ids = [(r.data, r.expression.expression_id) for found in drawn.values() for r in found]
    assert len(set(ids)) == 48, "no reference is drawn twice"
    texts = set()
    return [r for r in drawn[0] if not (r.expression.text in texts or texts.add(r.expression.text))]


def test_one_who_knows_the_masks_reaches_the_grids_ceiling(references: list[seg.Reference]) -> None:
    table, said = seg.predict(Knowing(references), references, "knowing", progress=False)
    assert table.hit.all() and (table.box_iou > 0.999).all() and not table.x1.isna().any()
    whole = seg.cumulative(table)
    ceiling = 100 * metrics.cumulative_iou(table.ceiling_intersection, table.ceiling_union)
    assert ceiling - 5 < whole.value <= ceiling + 1e-9 and ceiling > 85
    assert all(np.isnan(s.probabilities).sum() == 64 * 64 - c for s, c in zip(said, table.cells, strict=True))


def test_more_wrong_pixels_cost_more_and_the_gain_is_paired(references: list[seg.Reference]) -> None:
    good, _ = seg.predict(Knowing(references), references, "good", progress=False)
    bad, _ = seg.predict(Knowing(references, 0.3), references, "bad", progress=False)
    found = seg.gain(good, bad)
    assert found.value == pytest.approx(seg.cumulative(good).value - seg.cumulative(bad).value) and found.low > 5
    shuffled = bad.sample(frac=1, random_state=0)
    assert seg.gain(good, shuffled).value == pytest.approx(found.value), "rows are matched, whatever their order"
    with pytest.raises(ValueError, match="same references"):
        seg.gain(good, bad.iloc[1:])


def test_seeds_widen_the_interval_where_they_differ(references: list[seg.Reference]) -> None:

    runs = {
        s: seg.predict(Knowing(references, e), references, "x", s, progress=False)[0] for s, e in ((0, 0), (1, 0.4))
    }
    both = pd.concat(runs.values())
    fixed, drawn = seg.cumulative(both), seg.cumulative(both, resample_seeds=True)
    assert fixed.value == drawn.value and drawn.high - drawn.low > fixed.high - fixed.low


def test_no_box_means_an_empty_mask_that_is_counted(references: list[seg.Reference]) -> None:
    silent = references[0].expression.text
    model = Knowing(references, silent=(silent,))
    table, said = seg.predict(model, references, "knowing", progress=False)
    row = table.iloc[0]
    assert (
        np.isnan(row.x1) and not row.hit and row.iou == 0 and row.cells == 0 and row.union == references[0].mask.sum()
    )
    assert np.isnan(said[0].probabilities).all()
    overview = seg.summary(table)
    assert overview["no box"].sum() == 1 and len(overview) == 2
    given, _ = seg.predict(model, references[:3], "knowing", true_box=True, progress=False)
    assert (given.iou > 0.5).all() and given.box.tolist() == ["true"] * 3
    assert seg.summary(given)["P@1 of the box"].isna().all()


@pytest.mark.parametrize("box", [[np.nan] * 4, [500, 500, 600, 600], [-9, -9, -1, -1], [np.inf, 0, 1, 1]])
def test_boxes_that_lead_nowhere(box: list[float]) -> None:
    class Astray:
        name = "astray"

        def find_boxes(self, images, phrases):
            return np.array([box], dtype=float)

        def read_mask(self, image, phrase, points):
            raise AssertionError("nothing is to be asked")

    found = seg.segment(Astray(), Image.new("L", (30, 20)), "dog")
    assert np.isnan(found.box).all() and np.isnan(found.probabilities).all()


def test_groups_of_a_hundred_and_extremes(references: list[seg.Reference]) -> None:

    table, _ = seg.predict(Knowing(references, 0.2), references, "k", progress=False)
    many = pd.concat([table] * 10)
    groups = seg.hundreds(many, 100)
    assert list(groups) == [("k", data) for data in dict.fromkeys(table.data)], "a split is a data set's own hundred"
    for (_, data), values in groups.items():
        own = int((many.data == data).sum())
        assert len(values) == max(1, own // 100) and ((values >= 0) & (values <= 100)).all()
    found = seg.extremes(table, 2)
    places = [i for kind in found.values() for i in kind]
    assert len(set(places)) == 6
    assert table.iou.iloc[found["best"][0]] == table.iou.max() and table.iou.iloc[found["worst"][-1]] == table.iou.min()
    assert not any(seg.extremes(table.iloc[:2]).values())


def test_masks_on_the_grid_are_majorities() -> None:
    mask = np.zeros((128, 256), bool)
    mask[:, :130] = True
    found = seg.on_grid(mask)
    assert found.shape == mask.shape and found[:, :128].all() and not found[:, 132:].any()


def with_polygons(folder: Path, target: Path) -> Path:
    """A copy of a REFER folder whose objects get polygons: the real files at hand hold boxes only."""
    target.mkdir(parents=True)
    content = json.loads((folder / "instances.json").read_text())
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        item["segmentation"] = [[x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]]
    (target / "instances.json").write_text(json.dumps(content))
    for path in folder.glob("refs(*).p"):
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.fixture(scope="module")
def real_data() -> Path:
    folder = os.environ.get("SEEWHERE_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SEEWHERE_REAL_DATA does not point at a folder with the real files")
    return Path(folder)


@pytest.mark.parametrize(("name", "count"), [("refcoco", 20), ("refcocog", 10)])
def test_real_expressions_on_real_pictures(real_data: Path, tmp_path: Path, name: str, count: int) -> None:
    pictures = real_data / "coco128" / "images" / "train2017"
    boxes_only = datasets.load(name, "all", real_data / "refcoco", images=pictures, masks=True)
    with pytest.raises(DataError, match=rf"{count} of {count} expressions refer to objects without a mask"):
        seg.check_masks(boxes_only)
    with_polygons(real_data / "refcoco" / name, tmp_path / name)
    data = datasets.load(name, "all", tmp_path, images=pictures, masks=True)
    references = seg.draw_references([data], 100, [0])[0]
    assert len(references) == count
    for item in references:
        x1, y1, x2, y2 = item.expression.region.box
        # the diamond in a box covers half of it
        assert item.mask.sum() == pytest.approx((x2 - x1) * (y2 - y1) / 2, rel=0.1)
    table, _ = seg.predict(Knowing(references), references, "knowing", progress=False)
    assert table.hit.all() and seg.cumulative(table).value > 80


def test_a_data_set_with_boxes_only_is_refused_and_says_what_to_do(world: Path) -> None:
    from dataclasses import replace

    data = datasets.load("world", "test", world)
    data.expressions[3] = replace(data.expressions[3], region=replace(data.expressions[3].region, mask=None))
    with pytest.raises(DataError, match=r"1 of \d+ expressions .* masks=True"):
        seg.draw_references([data], 5, [0])


def test_cells_where_a_choice_was_forced_are_counted(references: list[seg.Reference]) -> None:
    class Chat(Knowing):
        forced = 0

        def read_mask(self, image, phrase, points):
            self.forced += len(points) // 2
            return super().read_mask(image, phrase, points)

    table, _ = seg.predict(Chat(references), references, "chat", progress=False)
    assert (table.forced == table.cells // 2).all() and table.forced.sum() > 0
    plain, _ = seg.predict(Knowing(references), references, "plain", progress=False)
    assert not plain.forced.any() and "forced (%)" not in seg.summary(plain)
    both = seg.summary(pd.concat([table, plain])).set_index("system")["forced (%)"]
    share = 100 * table.forced.sum() / table.cells.sum()
    assert both.groupby(level=0).mean().to_dict() == pytest.approx({"chat": share, "plain": 0.0}, abs=0.5)


def test_one_box_for_everything_stands_beside_the_models(references: list[seg.Reference]) -> None:
    baseline = seg.ConstantBox.of(references)
    found, _ = seg.predict(baseline, references, baseline.name, progress=False)
    given, said = seg.predict(baseline, references, baseline.name, true_box=True, progress=False)
    shares = found[["x1", "y1", "x2", "y2"]].to_numpy() / [[*r.expression.image.size] * 2 for r in references]
    np.testing.assert_allclose(shares, np.broadcast_to(baseline.shares, shares.shape))
    assert (baseline.shares[:2] < baseline.shares[2:]).all() and found.hit.mean() < 0.5
    assert all((s.probabilities[~np.isnan(s.probabilities)] == 1).all() for s in said)
    # A filled true box is a good mask of it, and a far better one than a box that was not looked for.
    assert seg.cumulative(given).value > 50 > seg.cumulative(found).value
    rows = seg.summary(pd.concat([found, given]))
    assert set(rows.system) == {"constant box"} and set(rows.box) == {"found", "true"}
