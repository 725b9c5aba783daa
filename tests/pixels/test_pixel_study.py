"""The reconstruction study on readers that answer by rule: the table, the ratio, and where errors are."""

from pathlib import Path

import numpy as np
import pytest
from colour_readers import Muttering, Through
from matplotlib.figure import Figure
from PIL import Image
from seewhere.pixels import study as studies
from seewhere.pixels import targets, where_errors
from seewhere.records import DataError


@pytest.fixture(scope="module")
def study() -> studies.Study:
    shown = studies.gather(["scenes", "photographs"], {"scenes": 3, "photographs": 2}, [0, 1])
    found = studies.Study.start(shown)
    found.ask(Through(32), "sharp", progress=False)
    found.ask(Through(8), "blurred", progress=False)
    return found


def test_sets_are_drawn_for_each_seed_and_photographs_once(study: studies.Study) -> None:
    counts = study.table[study.table.system == "sharp"].groupby(["set", "seed"]).size()
    assert counts.to_dict() == {("scenes", 0): 3, ("scenes", 1): 3, ("photographs", 0): 2}
    names = [item.name for item in study.shown]
    assert len(set(names)) == len(names)
    targets_seen = {item.target.tobytes() for item in study.shown}
    assert len(targets_seen) == len(names), "no picture is drawn twice"


def test_baselines_stand_in_the_table_and_scores_agree_with_them(study: studies.Study) -> None:
    table = study.table.set_index(["picture", "system"])
    for item in study.shown:
        assert table.re[item.name, "blurred"] == pytest.approx(table.re[item.name, "blur 8x8"])
        assert table.re[item.name, "sharp"] < table.re[item.name, "blurred"]
        assert table.re_mean[item.name, "sharp"] == pytest.approx(table.re[item.name, "sharp"] / 3)
    means = table.re.groupby("system").mean()
    assert means["sharp"] < means["blur 8x8"] < means["nearest patch"] < means["constant colour"]
    overview = study.summary()
    assert len(overview) == 2 * 5 and (overview["unusable (%)"] == 0).all()
    assert (overview.low <= overview.RE).all() and (overview.high >= overview.RE).all()


def test_the_ratio_is_of_means_and_paired(study: studies.Study) -> None:
    part = study.table[study.table.set == "scenes"]
    means = part.groupby("system").re.mean()
    found = study.ratio("blurred", "sharp", "scenes")
    assert found.value == pytest.approx(means["blurred"] / means["sharp"])
    assert 1 < found.low < found.value < found.high and found.n == 6
    same = study.ratio("blurred", "blur 8x8", "photographs")
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))
    apart = study.difference("sharp", "blur 8x8", "scenes")
    assert apart.high < 0 and apart.value == pytest.approx(means["sharp"] - means["blur 8x8"])


def test_unusable_answers_are_counted_and_cost_the_whole_range() -> None:
    found = studies.Study.start(studies.gather(["scenes"], {"scenes": 2}, [0]))
    found.ask(Muttering(), "muttering", progress=False)
    rows = found.table[found.table.system == "muttering"]
    assert rows.missing.tolist() == [0.5, 0.5] and rows.re.tolist() == pytest.approx([150, 150])
    assert found.summary().set_index("system")["unusable (%)"]["muttering"] == 50
    kept = found.rows(["muttering", "blur 8x8"])
    assert len(kept) == 2 * 2 * 256
    assert kept[kept.system == "muttering"].status.value_counts().to_dict() == {"answered": 256, "unusable": 256}
    assert kept[kept.status == "unusable"].error.isna().all()
    assert (kept[kept.system == "muttering"].error.dropna() == 0).all()
    assert isinstance(found.gallery(["muttering"]), Figure)


def test_figures(study: studies.Study) -> None:
    assert len(study.gallery(["blurred", "sharp"], each=1).axes) == 2 * 6
    assert isinstance(study.chart(["blurred", "sharp", "blur 8x8"]), Figure)


def test_own_pictures_of_every_kind_join_the_study(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    image.convert("L").save(tmp_path / "1 grey.png")
    image.convert("RGBA").save(tmp_path / "2 alpha.png")
    Image.fromarray(np.full((9, 7), 40_000, dtype=np.uint16)).save(tmp_path / "3 deep.png")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "4 dot.png")
    Image.new("L", (8000, 6000), 90).save(tmp_path / "5 huge.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    shown = studies.gather([], {}, [0], own=tmp_path)
    assert [item.name[0] for item in shown] == list("12345") and {item.set for item in shown} == {studies.OWN}
    found = studies.Study.start(shown)
    found.ask(Through(64), "all of it", progress=False)
    assert (found.table[found.table.system == "all of it"].re < 1e-9).all()
    assert [s.name for s in studies.gather([], {}, [0], own=tmp_path / "4 dot.png")] == ["4 dot.png"]
    (tmp_path / "6 broken.png").write_bytes(b"")
    with pytest.raises(DataError, match="6 broken"):
        studies.gather([], {}, [0], own=tmp_path)


def test_sets_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with pytest.raises(ValueError, match="unknown sets"):
        studies.gather(["paintings"], {"paintings": 1}, [0])
    with pytest.raises(ValueError, match="without a count"):
        studies.gather(["scenes"], {}, [0])
    with pytest.raises(ValueError, match="holds no pictures"):
        studies.gather([], {}, [0], own=tmp_path)
    with pytest.raises(ValueError, match="no pictures"):
        studies.Study.start([])

    def absent(count: int, seed: int):
        raise ImportError("CarRacing is not installed")

    monkeypatch.setitem(studies.SETS, "CarRacing", absent)
    assert studies.gather(["CarRacing", "textures"], {"CarRacing": 2, "textures": 1}, [0])[0].set == "textures"
    assert "left out (CarRacing is not installed)" in capsys.readouterr().out


def test_errors_by_edge_distance_and_object(study: studies.Study) -> None:
    table = where_errors.cells(study, ["blurred", "sharp"])
    assert len(table) == 2 * len(study.shown) * 64 * 64
    means = table[table.system == "blurred"].groupby("at an edge", observed=True).error.mean()
    assert means["flat"] < means["slight"] < means["clear"] < means["sharp"]
    objects = table[table.set == "scenes"]["object"]
    assert objects.notna().all() and set(objects.unique()) >= {"background", "small object"}
    assert table[table.set == "photographs"]["object"].isna().all()
    assert where_errors.correlation(table)["blurred"] > 0.3
    for by in ("at an edge", "object", "distance from the centre"):
        assert isinstance(where_errors.chart(table, by), Figure)


def test_edges_and_distances_by_hand() -> None:
    target = np.zeros((4, 4, 3), dtype=np.uint8)
    target[:, 2:] = (30, 60, 0)
    assert where_errors.edge_strength(target).tolist() == [[0, 30, 30, 0]] * 4
    far = where_errors.distance_from_centre(4)
    assert far[0].tolist() == [0.75, 0.75, 0.75, 0.75] and far[1, 1] == 0.25


def test_object_shares_add_up_to_what_is_covered() -> None:
    from seewhere.world.render import owner_map
    from seewhere.world.sprites import load_sprites

    item = studies.gather(["scenes"], {"scenes": 1}, [0])[0]
    assert item.scene is not None
    shares = where_errors.object_shares(item.scene, 64)
    covered = (owner_map(item.scene, load_sprites()) >= 0).mean()
    assert (shares > 0).mean() == pytest.approx(covered, abs=0.03)
    assert targets.target(item.image).shape == item.target.shape
