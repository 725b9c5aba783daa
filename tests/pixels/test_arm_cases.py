"""The pictures of the arms: what is written is what was said, and it is drawn without the models."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from seewhere import metrics
from seewhere.models.pixel_points import spread
from seewhere.pixels import arm_cases, arms, drawings, segmentation
from seewhere.pixels.segmentation import Reference
from seewhere.records import Expression, ImageRecord, Region

SIZE = (96, 64)


class Says:
    """Answers every phrase with the box of its number, wider by `wide`, and a probability that falls to the right."""

    def __init__(self, references: list[Reference], wide: float) -> None:
        self.name, self.wide = f"wide {wide}", wide
        self.boxes = {item.expression.text: np.array(item.expression.region.box) for item in references}

    def find_boxes(self, images: list[Image.Image], phrases: list[str]) -> np.ndarray:
        return np.array([self.boxes[p] + [0, 0, self.wide, 0] if p != "thing 1" else np.full(4, np.nan)
                         for p in phrases])  # fmt: skip

    def read_mask(self, image: Image.Image, phrase: str, points: np.ndarray) -> np.ndarray:
        return np.linspace(1, 0.5, len(points))


@pytest.fixture
def references(tmp_path: Path) -> list[Reference]:
    found = []
    for number in range(16):
        file = tmp_path / f"picture-{number}.png"
        Image.new("RGB", SIZE, (10 * number, 40, 90)).save(file)
        box = (3.0 + number, 6.0, 43.0 + number, 38.0)
        mask = np.zeros(SIZE[::-1], dtype=bool)
        mask[6:38, 3 + number : 43 + number] = True
        picture = ImageRecord(number, file, *SIZE)
        item = Expression(100 + number, picture, Region(number, number, box, "thing", 0), f"thing {number}", "test")
        ceiling = metrics.mask_overlap(segmentation.on_grid(mask), mask)
        found.append(Reference("short" if number < 8 else "long", item, mask, ceiling))
    return found


@pytest.fixture
def written(references: list[Reference], tmp_path: Path) -> tuple[Path, pd.DataFrame, dict[str, Says]]:
    models = {"both": Says(references, 0.0), "neither": Says(references, 9.0)}
    table = pd.concat(
        [segmentation.predict(model, references, name, progress=False)[0] for name, model in models.items()],
        ignore_index=True,
    )
    arm_cases.write(tmp_path / "run", references, models, table, "both")
    return tmp_path / "run", table, models


def test_what_is_read_is_what_was_said(
    written: tuple[Path, pd.DataFrame, dict[str, Says]], references: list[Reference]
) -> None:
    folder, table, models = written
    cases = arm_cases.load(folder)
    assert cases is not None and set(cases.said) == {"both", "neither"} and cases.arm == "both"
    by_text = {item.expression.text: item for item in references}
    for number, item in enumerate(cases.references):
        same = by_text[item.expression.text]
        assert np.array_equal(item.mask, same.mask) and item.ceiling == same.ceiling and item.data == same.data
        assert item.expression.image.open().tobytes() == same.expression.image.open().tobytes()
        for name, model in models.items():
            said = segmentation.segment(model, same.expression.image.open(), same.expression.text)
            kept = cases.said[name][number]
            np.testing.assert_allclose(kept.box, said.box, atol=0.005)
            np.testing.assert_allclose(kept.probabilities, said.probabilities, atol=1 / 127)
            masks = [spread(np.nan_to_num(s.probabilities) > segmentation.THRESHOLD, SIZE) for s in (kept, said)]
            assert np.array_equal(*masks)  # also the cell at 0.5, and those a little above
            row = table[(table.system == name) & (table.expression_id == item.expression.expression_id)]
            assert drawings._mask_iou(item, kept) == pytest.approx(row.iou.item(), abs=1e-4)


def test_what_is_shown_stands_at_fixed_places_or_is_best_or_worst(
    written: tuple[Path, pd.DataFrame, dict[str, Says]],
) -> None:
    folder, table, _ = written
    cases = arm_cases.load(folder)
    assert cases is not None
    drawn = [cases.references[place].expression.text for place in cases.drawn]
    assert drawn == ["thing 2", "thing 6", "thing 10", "thing 14"]
    own = table[table.system == "both"].reset_index(drop=True)
    kinds = segmentation.extremes(own)
    for kind, places in cases.kinds.items():
        assert [cases.references[p].expression.text for p in places] == own.text[kinds[kind]].tolist(), kind
    assert np.isnan(cases.said["both"][cases.kinds["worst"][-1]].box).any()  # no box, and so no mask


def test_they_are_drawn_without_the_models(written: tuple[Path, pd.DataFrame, dict[str, Says]], tmp_path: Path) -> None:
    arm_cases.copy(written[0], tmp_path / "package")
    cases = arm_cases.load(tmp_path / "package")
    assert cases is not None
    lines = drawings.side_by_side(cases.references, cases.said, cases.drawn)
    assert isinstance(lines, Figure) and len(lines.axes) == 2 * len(cases.drawn)
    assert lines.axes[0].get_title(loc="left").startswith("both: IoU")
    assert isinstance(drawings.of_kinds(cases.kinds, cases.references, cases.said["both"]), Figure)
    assert arm_cases.load(tmp_path / "nowhere") is None
    arm_cases.copy(tmp_path / "nowhere", tmp_path / "package2")
    assert not (tmp_path / "package2").exists()


def test_rows_of_other_references_do_not_choose(
    written: tuple[Path, pd.DataFrame, dict[str, Says]], references: list[Reference]
) -> None:
    own = written[1][written[1].system == "both"]
    with pytest.raises(ValueError, match="do not belong to these 16 references"):
        arm_cases.choose(references, own.iloc[::-1])


def test_the_package_shows_what_its_table_says() -> None:
    cases, table = arm_cases.load(arms.SHIPPED), arms.shipped()
    assert cases is not None and set(cases.said) == set(arms.ARMS)
    own = table[(table.seed == 0) & (table.box == "found")].set_index(["system", "data", "expression_id"])
    for name, answers in cases.said.items():
        for item, said in zip(cases.references, answers, strict=True):
            row = own.loc[(name, item.data, item.expression.expression_id)]
            assert drawings._mask_iou(item, said) == pytest.approx(row.iou, abs=1e-4)
