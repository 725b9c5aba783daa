"""The recipe: one file for all stages and arms, refused where it is not whole, and held against finished runs."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest
from seewhere.models.minigpt import SETTINGS_FILE
from seewhere.pixels import commands, recipe


def test_the_baseline_differs_from_stage_2_in_its_encoder_alone() -> None:
    known = recipe.load()
    second, frozen, at_once = (known.stages[name] for name in ("2", "frozen", "at-once"))
    assert second.adapt and not frozen.adapt
    assert dataclasses.replace(frozen, adapt=True) == second == dataclasses.replace(at_once, steps=second.steps)
    for part in recipe.PARTS[1:]:
        assert dataclasses.replace(known.stages[f"frozen{part}"], adapt=True) == known.stages[f"2{part}"] != second
    adapted = {"2": "1", "2-on": "2", "2-end": "2-on", "2-last": "2-end", "2-fine": "2-last", "3": "2-fine"}
    baseline = {"frozen": "1", "frozen-on": "frozen", "frozen-end": "frozen-on", "frozen-last": "frozen-end"}
    baseline |= {"frozen-fine": "frozen-last"}
    assert known.after == {"1": "", **adapted, **baseline, "at-once": ""}
    assert {recipe.whole(name) for name in known.stages} == {"1", "2", "3", "frozen", "at-once"}
    own = {"adapt", "steps", "mixture", "seed", "corner_spread", "reading", "learning_rate", "averaged", "images"}
    same = {f.name for f in dataclasses.fields(second)} - own
    late = {f"{stage}{part}" for stage in ("2", "frozen") for part in recipe.PARTS[-2:]}
    assert {name for name, stage in known.stages.items() if stage.reading} == late
    assert {name for name, stage in known.stages.items() if stage.averaged} == {"2-fine", "frozen-fine"}
    for stage in known.stages.values():
        assert all(getattr(stage, name) == getattr(second, name) for name in same)
    assert known.stages["3"].mixture["colour"] < second.mixture["colour"]
    assert second.frames > 0 and second.textures > 0 and second.clip == "micro-clip"
    assert set(known.tuning.mixture) == {"refer", "mask"}


def test_values_are_changed_for_all_stages_alike() -> None:
    changed = recipe.load().changed(images=3, scenes=None, bf16=False)
    assert {s.images for s in (*changed.stages.values(), changed.tuning)} == {3}
    assert changed.stages["2"].scenes == recipe.load().stages["2"].scenes and not changed.tuning.bf16
    fewer = changed.with_steps({"1": 5}, 7)
    assert (fewer.stages["1"].steps, fewer.tuning.steps) == (5, 7)
    assert fewer.stages["2"].steps == changed.stages["2"].steps


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 2000", 'steps = "many"', r"\[stages.2\]: steps: expected int, got 'many'"),
        ("steps = 2000", "stepz = 2000", r"unknown: stepz; missing: steps"),
        ("refer = 0.2,", "refers = 0.2,", r"\[stages.2\]: expected shares 0 or more of colour"),
        ('after = "2"', 'after = "5"', r"after = '5' is no stage"),
        ("[stages.3]", "[stages.4]", r"missing: 3"),
        ("[tuning]", "[tune]", r"odd: tune"),
        ('like = "2"', 'like = "7"', r"like = '7', but no such stage"),
    ],
)
def test_a_recipe_that_is_not_whole_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = recipe.PACKAGED.read_text()
    assert old in text
    path = tmp_path / "own.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        recipe.load(path)


def test_the_arms_have_a_recipe_of_their_own_in_which_only_the_encoder_differs() -> None:
    found = recipe.load(recipe.OF_ARMS)
    assert recipe.chain(found.stages, "1", "2", "3") == ["1", "2", "2-on", "3"]
    recipe.check_only_the_encoder_differs(found, "packaged")
    expected = {"1": "", "2": "1", "2-on": "2", "3": "2-on", "frozen": "1", "frozen-on": "frozen"}
    assert found.after == expected
    # Later parts ask other questions about other scenes.
    assert len({found.stages[name].seed for name in ("2", "2-on", "3")}) == 3
    assert all(stage.quiet and stage.pointing > 0 for stage in (*found.stages.values(), found.tuning))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frozen-on": {"steps": 7}}, r"\[stages.frozen-on\] has to be \[stages.2-on\] .*: steps 7 against 1200"),
        ({"frozen": {"adapt": True}}, r"\[stages.frozen\] has to hold the encoder and \[stages.2\] to adapt it"),
        ({"frozen-on": None}, r"parts of 2: 2, 2-on; of frozen: frozen"),
    ],
)
def test_a_recipe_whose_arms_differ_in_more_than_the_encoder_is_refused(
    changed: dict[str, dict[str, object] | None], message: str
) -> None:
    found = recipe.load(recipe.OF_ARMS)
    for name, values in changed.items():
        if values is None:
            del found.stages[name]
        else:
            found.stages[name] = dataclasses.replace(found.stages[name], **values)
    with pytest.raises(ValueError, match=message):
        recipe.check_only_the_encoder_differs(found, "own.toml")


def finished(place: Path, settings: recipe.PixelSettings, start: str = "") -> str:
    """A folder as a finished stage leaves it, but for the weights."""
    (place / "model").mkdir(parents=True)
    made = dataclasses.asdict(dataclasses.replace(settings, start=start))
    (place / recipe.TRAINING).write_text(json.dumps({"settings": made}))
    (place / "model" / SETTINGS_FILE).write_text("{}")
    return str(place / "model")


def test_a_model_stands_for_a_training_only_if_every_stage_was_this_one(tmp_path: Path) -> None:
    stages = [recipe.load().stages[name] for name in ("1", "2", "3")]
    first = finished(tmp_path / "a", stages[0])
    second = finished(tmp_path / "b", stages[1], first)
    third = finished(tmp_path / "c", stages[2], second)
    recipe.check_made(third, stages)
    recipe.check_made(second, stages[:2])
    with pytest.raises(ValueError, match=r"trained by another recipe: .*adapt True instead of False"):
        recipe.check_made(third, [stages[0], recipe.load().stages["frozen"], stages[2]])
    slower = dataclasses.replace(stages[0], learning_rate=1e-4)
    with pytest.raises(ValueError, match=r"learning_rate 0.0015 instead of 0.0001"):
        recipe.check_made(third, [slower, *stages[1:]])
    with pytest.raises(ValueError, match="cannot stand for a training"):
        recipe.check_made("micro-pixels-stage3", stages)


class _Training:
    """Stands in for a run: it writes down what it was asked for."""

    made: list[recipe.PixelSettings] = []  # noqa: RUF012

    def __init__(self, settings: recipe.PixelSettings, folder: Path, device: object = None) -> None:
        self.settings, self.folder, self.pictures = settings, folder, {"scenes": 1}
        self.model = self
        _Training.made.append(settings)

    def described(self) -> dict[str, object]:
        return dataclasses.asdict(self.settings)

    def to(self, _: str) -> "_Training":
        return self

    def eval(self) -> "_Training":
        return self

    def write(self, target: Path) -> None:
        target.mkdir(parents=True)
        (target / SETTINGS_FILE).write_text("{}")


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    arguments = parser.parse_args(["pixels", *words])
    return int(arguments.handler(arguments))


def test_one_call_makes_all_stages_each_from_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "PixelTraining", _Training)
    monkeypatch.setattr(commands, "train", lambda *_: None)
    _Training.made.clear()
    assert call("--stage", "all", "--out", str(tmp_path), "--scenes", "50") == 0
    one, two, two_on, _, _, _, _, frozen, frozen_on, _, _, _, at_once = _Training.made
    starts = [Path(stage.start).parent.name for stage in _Training.made]
    assert one.start == "" and two_on.start == str(tmp_path / "stage2" / "model")
    adapted = ["stage1", "stage2", "stage2-on", "stage2-end", "stage2-last", "stage2-fine"]
    assert starts == ["", *adapted, "stage1", "frozen", "frozen-on", "frozen-end", "frozen-last", ""]
    assert at_once.adapt and not one.adapt
    assert {stage.scenes for stage in _Training.made} == {50}
    assert dataclasses.replace(frozen, adapt=True) == two
    assert dataclasses.replace(frozen_on, adapt=True, start=two_on.start) == two_on != two
    changed = recipe.load().changed(scenes=50)
    chain = ("1", "2", "2-on", "2-end", "2-last", "2-fine", "3")
    recipe.check_made(str(tmp_path / "stage3" / "model"), [changed.stages[name] for name in chain])
    call("--stage", "all", "--out", str(tmp_path), "--scenes", "50")
    assert len(_Training.made) == 13 and "stage frozen is done" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"finished stage of other settings .*scenes 50 instead of 60"):
        call("--stage", "1", "--out", str(tmp_path / "stage1"), "--scenes", "60")
    with pytest.raises(ValueError, match="goes on from stage 1: give its model with --start"):
        call("--stage", "2", "--out", str(tmp_path / "x"))
    with pytest.raises(ValueError, match="expected no --start"):
        call("--stage", "all", "--start", "y", "--out", str(tmp_path))


def test_a_recipe_of_the_papers_stages_serves_the_arms_and_not_all(tmp_path: Path) -> None:
    text = recipe.PACKAGED.read_text()
    kept = [part for part in text.split("\n[") if not part.startswith(("stages.2-", "stages.frozen-", "stages.at"))]
    path = tmp_path / "own.toml"
    path.write_text("\n[".join(kept).replace('after = "2-fine"', 'after = "2"'))
    assert tuple(recipe.load(path).stages) == recipe.REQUIRED
    missing = "2-on, 2-end, 2-last, 2-fine, frozen-on, frozen-end, frozen-last, frozen-fine, at-once"
    with pytest.raises(ValueError, match=rf"own.toml: expected the stages .*missing: {missing}"):
        call("--stage", "all", "--recipe", str(path), "--out", str(tmp_path))


def test_a_stage_of_a_recipe_of_ones_own_is_trained_and_an_unknown_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.toml"
    own = '[stages.2-more]\nlike = "2"\nafter = "2"\nsteps = 7\n\n'
    path.write_text(recipe.PACKAGED.read_text().replace("[stages.3]", f"{own}[stages.3]"))
    monkeypatch.setattr(commands, "PixelTraining", _Training)
    monkeypatch.setattr(commands, "train", lambda *_: None)
    _Training.made.clear()
    flags = ("--stage", "2-more", "--start", "two", "--out", str(tmp_path / "more"))
    assert call(*flags, "--recipe", str(path)) == 0
    assert [(made.steps, made.start, made.adapt) for made in _Training.made] == [(7, "two", True)]
    with pytest.raises(ValueError, match=r"has no stage '2-more'; it has 1, 2, 2-on"):
        call(*flags)
