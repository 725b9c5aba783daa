"""The four arms on a tiny model: what each is asked, that a stopped run goes on, and what ships."""

from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from seewhere import storage
from seewhere.pixels import arm_cases, arms, readers, segmentation
from seewhere.pixels.arms import ARMS, ArmSettings
from seewhere.pixels.recipe import OF_ARMS, TRAINING, load, whole


def test_what_is_left_out_is_not_replaced() -> None:
    settings = ArmSettings(recipe=load(OF_ARMS))
    recipes = {arm: arms.stage_settings(arm, settings) for arm in ARMS}
    stages = settings.recipe.stages
    assert list(recipes["both"]) == ["1", "2", "2-on", "3"]
    assert list(recipes["neither"]) == ["1", "frozen", "frozen-on", "3"]
    assert all(recipes[arm] == {name: stages[name] for name in recipes[arm]} for arm in ("both", "pixels"))
    assert settings.starts == ()
    # Nothing else tells the arms apart.
    apart = {"adapt", "steps", "mixture", "textures", "frames"}
    for name, full in recipes["both"].items():
        own = [recipes[arm][name if name in recipes[arm] else name.replace("2", "frozen")] for arm in ARMS]
        for arm, recipe in zip(ARMS, own, strict=True):
            assert recipe.adapt == (whole(name) == "2" and arm in ("both", "adaptation"))
            assert ("colour" in recipe.mixture) == (arm in ("both", "pixels"))
            for task in recipe.mixture:
                asked = recipe.steps * recipe.mixture[task] / sum(recipe.mixture.values())
                wanted = full.steps * full.mixture[task] / sum(full.mixture.values())
                assert asked == pytest.approx(wanted, rel=0.01), (arm, name, task)
        kept = [{k: v for k, v in asdict(recipe).items() if k not in apart} for recipe in own]
        assert all(values == kept[0] for values in kept)
    with pytest.raises(ValueError, match="unknown arm"):
        arms.stage_settings("most", settings)


def test_steps_are_typed_by_name() -> None:
    recipe = load(OF_ARMS)
    assert arms._steps(["1=5", "2-on=7"], recipe) == {"1": 5, "2-on": 7, "frozen-on": 7}
    assert arms._steps([], recipe) == {}
    for odd in ("5", "4=5", "frozen=5", "1=0", "1=many"):
        with pytest.raises(ValueError, match="expected NAME=STEPS, a name of 1, 2, 2-on, 3"):
            arms._steps([odd], recipe)


@pytest.fixture
def settings() -> ArmSettings:
    small = load(OF_ARMS).changed(images=2, scenes=6, textures=2, frames=0, colour_questions=4, bf16=False)
    steps = small.with_steps(dict.fromkeys(small.stages, 1), tuning=1)
    return ArmSettings(recipe=steps, references=3, styles=("world",), world_preset="smoke")


def test_arms_are_made_asked_and_gone_on_with(
    settings: ArmSettings, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = readers.tiny_reader().model
    table = arms.run_all(settings, tmp_path / "runs", ("both", "neither"), (0, 1), first, progress=False)
    constant = segmentation.ConstantBox.name
    assert table.groupby(["system", "seed"]).size().to_dict() == {
        (a, s): 6 for a in ("both", "neither", constant) for s in (0, 1)
    }
    filled = table[(table.system == constant) & (table.seed == 0)]
    assert filled[filled.box == "true"].hit.all() and not filled[filled.box == "found"].hit.all()
    same = table[(table.system == constant) & (table.seed == 1)]
    assert filled.intersection.tolist() == same.intersection.tolist()
    found = table[table.box == "found"]
    assert segmentation.gain(*(found[found.system == arm] for arm in ("both", "neither"))).n == 6
    with pytest.raises(ValueError, match="lacks the arms adaptation, pixels"):
        arms.ship(tmp_path / "runs", tmp_path / "package")
    assert arm_cases.load(tmp_path / "runs") is None  # only all four are shown

    def again(*_: object, **__: object) -> None:
        raise AssertionError("nothing that is there is made again")

    monkeypatch.setattr(arms, "train", again)
    same = arms.run_all(settings, tmp_path / "runs", ("both", "neither"), (0, 1), first, progress=False)
    pd.testing.assert_frame_equal(same, table)
    other = replace(settings, recipe=settings.recipe.with_steps({}, tuning=2))
    with pytest.raises(ValueError, match="other settings"):
        arms.run_all(other, tmp_path / "runs", ("both",), (0,), first, progress=False)


def test_finished_arms_leave_pictures_that_ship_with_the_table(
    settings: ArmSettings, home: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    table = arms.run_all(settings, runs, ARMS, (0,), readers.tiny_reader().model, progress=False)
    cases = arm_cases.load(arms.ship(runs, tmp_path / "package"))
    assert cases is not None and list(cases.said) == list(ARMS) and cases.arm == "both"
    own = table[(table.system == "both") & (table.box == "found")].set_index("expression_id")
    for item, said in zip(cases.references, cases.said["both"], strict=True):
        assert (~pd.isna(said.probabilities)).sum() == own.cells[item.expression.expression_id]
    assert "`cases` holds what those of seed 0 say" in (tmp_path / "package" / arms.CARD).read_text()


def test_only_adapted_arms_change_the_encoder(settings: ArmSettings, home: Path, tmp_path: Path) -> None:
    for arm in ("adaptation", "pixels"):
        first = readers.tiny_reader().model
        before = first.vision.embeddings.patch_embedding.weight.detach().clone().half()
        made = arms.start_of(arm, settings, tmp_path, first, progress=False)
        after = made.vision.embeddings.patch_embedding.weight.half()
        assert torch.equal(before, after) == (arm == "pixels")


def test_the_shipped_table_and_its_card(tmp_path: Path) -> None:
    rows = [
        {"system": a, "seed": s, "data": "world", "expression_id": e, "image_id": e,
         "intersection": 5 + 2 * (a == "both"),
         "union": 10, "iou": 0.5, "hit": True, "box_iou": 0.9, "words": 3, "area": 0.1, "cells": 9, "x1": 0.0,
         "ceiling_intersection": 10, "ceiling_union": 10, "box": box}
        for a in ARMS for s in (0, 1, 2) for e in range(4) for box in ("found", "true")
    ]  # fmt: skip
    folder = tmp_path / "runs"
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / arms.TABLE, index=False)
    given = ArmSettings(starts=(("both", str(tmp_path / "stage3" / "model")),))
    arms._check_same(folder, {"settings": asdict(given), "data": {}})
    target = arms.ship(folder, tmp_path / "package")
    found = arms.shipped(target)
    assert list(found.columns) >= ["system"] and len(found) == 96
    text = (target / arms.CARD).read_text()
    assert "| both | 100.0 | 70.0 [70.0, 70.0] | 70.0 [70.0, 70.0] |" in text and "a loss of its own" in text
    assert "4 references, seeds 0, 1, 2" in text
    steps = "+".join(str(given.recipe.stages[stage].steps) for stage in ("1", "2", "2-on", "3"))
    rates = ", ".join(f"{given.recipe.stages[stage].learning_rate:g}" for stage in ("1", "2", "2-on", "3"))
    assert f"stages of {steps} steps" in arms.origin(target) and f"Learning rates {rates} in the stages" in text
    assert arms.shipped_hash(target) and str(tmp_path) not in (target / arms.ABOUT).read_text()
    assert arms.shipped(tmp_path).empty and arms.origin(tmp_path) == "" and arms.shipped_hash(tmp_path) == {}


def test_a_given_start_has_to_come_from_the_same_recipe(settings: ArmSettings, home: Path, tmp_path: Path) -> None:
    given = tmp_path / "run" / "model"
    readers.tiny_reader().model.write(given)
    elsewhere = replace(settings, starts=(("pixels", f"{given}@frozen"),))
    with pytest.raises(ValueError, match="cannot stand for a training under this recipe"):
        arms.start_of("pixels", elsewhere, tmp_path / "arms", progress=False)
    first = asdict(settings.recipe.stages["1"])
    for rate, fits in ((1.0, False), (first["learning_rate"], True)):
        storage.atomic_write_json(tmp_path / "run" / TRAINING, {"settings": {**first, "learning_rate": rate}})
        if fits:
            made = arms.start_of("pixels", elsewhere, tmp_path / "arms", progress=False)
            assert made.name and not (tmp_path / "arms" / "with-pixels-stage1").exists()
        else:
            with pytest.raises(ValueError, match=r"trained by another recipe: learning_rate 1.0 instead of"):
                arms.start_of("pixels", elsewhere, tmp_path / "arms", progress=False)
    nowhere = replace(settings, starts=(("pixels", f"{given}@2"),))
    with pytest.raises(ValueError, match="pixels has the stages 1, frozen, frozen-on, 3; expected one of them"):
        arms.start_of("pixels", nowhere, tmp_path / "arms", progress=False)
