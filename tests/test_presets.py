import re
from pathlib import Path

import pytest
from seewhere import presets

NOTEBOOKS = ("00_tour", "01_probing_resamplers", "02_llm_wrapper")


@pytest.mark.parametrize("name", presets.NAMES)
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_preset_gives_every_setting_of_every_notebook(name: str, notebook: str) -> None:
    preset = presets.load(name, notebook)
    reference = presets.load("quick", notebook)
    assert list(preset) == list(reference)
    assert all(type(preset[key]) is type(reference[key]) for key in reference)


@pytest.mark.parametrize("name", presets.NAMES)
def test_every_value_tells_its_trade_off(name: str) -> None:
    lines = (presets.FOLDER / f"{name}.toml").read_text().splitlines()
    values = [line for line in lines if re.match(r"\w+ = ", line)]
    assert len(values) > 10
    assert [line for line in values if not re.search(r"#\s\S.{5,}", line)] == []


def test_paper_values_are_the_published_ones() -> None:
    paper = presets.load("paper", "02")
    published = {
        "lora_rank": 128,
        "lora_alpha": 256,
        "lora_dropout": 0.1,
        "learning_rate": 1e-5,
        "batch": 4,
        "epochs": 1,
    }
    assert {key: paper[key] for key in published} == published
    assert paper.coordinates == "pixels"
    assert (paper.train_expressions, paper.test_expressions) == (80512, 9602)


def test_values_are_attributes_too_and_wrong_names_list_the_right_ones() -> None:
    preset = presets.load("quick")
    assert preset.epochs == preset["epochs"]
    with pytest.raises(presets.PresetError, match=r"no setting 'epoch'.*learning_rate"):
        preset["epoch"]
    with pytest.raises(AttributeError, match="learning_rate"):
        preset.epoch  # noqa: B018
    assert preset.get("world_preset") == "quick" and "epoch" not in preset
    assert preset.get("epoch", 7) == 7


def test_unknown_preset_and_unknown_notebook_say_what_exists() -> None:
    with pytest.raises(presets.PresetError, match=r"'fast'.*smoke, quick, full, paper"):
        presets.load("fast")
    with pytest.raises(presets.PresetError, match=r"'99_nothing'.*02_llm_wrapper"):
        presets.load("quick", "99_nothing")


def test_changes_are_typed() -> None:
    changed = presets.with_changes(presets.load("quick"), learning_rate=1, seeds=[3])
    assert changed.learning_rate == 1.0 and isinstance(changed.learning_rate, float)
    assert changed.seeds == [3] and presets.load("quick").seeds == [0, 1, 2]
    with pytest.raises(presets.PresetError, match=r"epochs: expected int like 1, got 'two'"):
        presets.with_changes(changed, epochs="two")
    with pytest.raises(presets.PresetError, match="no setting"):
        presets.with_changes(changed, epoch=2)


def test_a_preset_file_that_lacks_a_value_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in presets.NAMES:
        text = (presets.FOLDER / f"{name}.toml").read_text()
        (tmp_path / f"{name}.toml").write_text(re.sub(r"(?m)^batch = .*\n", "", text) if name == "smoke" else text)
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    presets._tables.cache_clear()
    try:
        with pytest.raises(presets.PresetError, match=r"smoke\.toml.*missing: batch"):
            presets.load("smoke")
    finally:
        presets._tables.cache_clear()


@pytest.mark.parametrize("name", ["smoke", "quick", "full"])
@pytest.mark.parametrize("kind", ["qformer", "instruct"])
@pytest.mark.parametrize("task", ["rec", "vsr", "rcm"])
def test_frozen_probes_are_not_stinted_against_unfrozen_ones(name: str, kind: str, task: str) -> None:
    preset = presets.load(name, "01")
    frozen, unfrozen = (preset[f"{task}_{kind}_{arm}"] for arm in ("frozen", "unfrozen"))
    assert frozen["epochs"] >= unfrozen["epochs"]
    if task == "rcm" and name != "smoke":
        assert preset.rcm_patience < frozen["epochs"]  # or it could never end a training


@pytest.mark.parametrize("name", ["quick", "full"])
@pytest.mark.parametrize("kind", ["qformer", "instruct"])
def test_what_is_said_to_be_searched_values_is(name: str, kind: str) -> None:
    preset = presets.load(name, "01")
    for task in ("rec", "vsr", "rcm"):
        start = preset[f"{task}_{kind}_frozen"]
        low, high = preset.search_learning_rates
        assert low <= start["learning_rate"] <= high
        assert start["epochs"] in preset[f"search_{task}_epochs"]
        assert {start["l1"], start["giou"]} <= set(preset.search_loss_weights) if task == "rec" else True
