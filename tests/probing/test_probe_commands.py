"""``seewhere train probe`` on a random micro resampler on disk, in one process and in two."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from seewhere import presets
from seewhere.cli import main
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_qformer import MicroBlip2, QFormerSettings
from seewhere.models.micro_text import build_tokenizer
from seewhere.models.resamplers import write_micro
from seewhere.probing import shipping
from seewhere.probing.adapter import load_probed
from seewhere.probing.arms import load_arm
from seewhere.probing.experiments import unfrozen_sources
from seewhere.probing.names import SHIPPED, WEIGHTS
from seewhere.probing.settings import settings_of, sizes_of
from seewhere.probing.study import shipped_arm
from seewhere.probing.tasks import load_task
from seewhere.probing.training import predict
from seewhere.storage import read_json
from seewhere.world.export import build


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A home with the smallest world, and a tiny random resampler."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEEWHERE_HOME", str(home))
        build(None, "smoke", workers=1, progress=False)
        torch.manual_seed(0)
        tokenizer = build_tokenizer(["the dog to the left of the red car refers to the top part"], 64)
        clip = MicroClip(build_model(len(tokenizer), side=32, patch=16, width=64, layers=1, text_layers=1), tokenizer)
        (home / "clip").mkdir()
        clip.write(home / "clip")
        shape = QFormerSettings(vocabulary=len(tokenizer), sees=64, width=64, layers=1, heads=2, queries=4)
        (home / "tiny").mkdir()
        write_micro(home / "tiny", "blip2", MicroBlip2(shape), MicroClip.load(home / "clip"), str(home / "clip"))
        yield home


def words(place, out, arm, *more):
    return ["--task", "vsr", "--resampler", str(place / "tiny"), "--arm", arm, "--preset", "smoke", "--epochs", "3",
            "--out", str(out), *more]  # fmt: skip


def test_both_arms_leave_predictions_scores_and_weights(place, tmp_path, capsys):
    for arm in ("frozen", "unfrozen"):
        assert main(["train", "probe", *words(place, tmp_path / arm, arm)]) == 0
        scores = read_json(tmp_path / arm / "scores.json")
        table = pd.read_csv(tmp_path / arm / "predictions.csv")
        assert scores["test"] == table.correct.mean() and len(scores["losses"]) == 3 and scores["processes"] == 1
        assert set(table.arm) == {arm} and {"relation", "category", "image_id"} <= set(table.columns)
        _, _, about = load_arm(tmp_path / arm / "arm", load_probed(place / "tiny"))
        assert about["validation_score"] == scores["validation"]
        assert json.loads(capsys.readouterr().out)["task"] == "vsr"


@pytest.fixture
def small_study(place, monkeypatch):
    """One task, one resampler and two seeds; words stay as they are."""
    settings = {**presets.load("smoke", "01")["vsr_qformer_unfrozen"], "words": False}
    changes = {"resamplers": [str(place / "tiny")], "seeds": [0, 1], "vsr_qformer_unfrozen": settings}
    preset = presets.with_changes(presets.load("smoke", "01"), **changes)
    monkeypatch.setattr(presets, "load", lambda *_: preset)
    return preset


def test_all_arms_are_trained_once_and_shipped_with_a_card(place, small_study, tmp_path, monkeypatch, capsys):
    runs, target = tmp_path / "runs", tmp_path / "shipped"
    monkeypatch.setattr(shipping.ship, "__defaults__", (shipping.TASKS, target))
    with pytest.raises(ValueError, match="--out is missing"):
        shipping.run(argparse.Namespace(preset="smoke", out=None, text_alone=False, tasks=["vsr"], resamplers=None))
    call = ["train", "arms", "--tasks", "vsr", "--preset", "smoke", "--out", str(runs), "--ship"]
    assert main(call) == 0
    assert capsys.readouterr().out.count("training ") == 3  # two seeds, and the frozen control
    assert shipping.read_texts(target).task.tolist() == ["vsr"]
    assert main(call) == 0
    assert "training " not in capsys.readouterr().out
    model, card = load_probed(place / "tiny"), (target / "README.md").read_text()
    task = load_task("vsr", build(None, "smoke", progress=False), "random", sizes_of(small_study))
    for seed in (0, 1):
        settings = settings_of(small_study, "vsr", "qformer", "unfrozen", seed=seed)
        found, why = shipped_arm(task, model, settings, target)
        assert found is not None and why == ""
        _, own, about = load_arm(found, model)
        assert own.weights_hash != model.weights_hash and f"{about['test']:.3f}" in card
    shutil.rmtree(next(runs.glob("*-unfrozen-1")))
    with pytest.raises(FileNotFoundError, match="is not finished"):
        shipping.ship(runs, small_study, ["vsr"], target)
    assert (target / "README.md").read_text() == card


def finished_run(out, task, resampler, arm, seed, test):
    """What a training leaves behind, as far as shipping looks at it."""
    place = out / f"{task}-{resampler}-{arm}-{seed}"
    (place / "arm").mkdir(parents=True)
    scores = {"task": task, "resampler": resampler, "arm": arm, "seed": seed, "train_examples": 9,
              "train_world": "full", "test": test, "test_examples": 50}  # fmt: skip
    (place / "scores.json").write_text(json.dumps(scores))
    (place / "arm" / "arm.json").write_text(json.dumps({"settings": {"epochs": 2}}))
    (place / "arm" / WEIGHTS).write_bytes(f"{resampler} {arm} {seed} {test}".encode())


def test_shipping_one_resampler_s_arms_leaves_the_others_where_they_are(small_study, tmp_path):
    target = tmp_path / "shipped"
    for name, resamplers, test in (("first", ["one", "two"], 0.25), ("second", ["two"], 0.75)):
        preset = presets.with_changes(small_study, resamplers=resamplers)
        for _, resampler, arm, seed in shipping.jobs(preset, ["vsr"]):
            finished_run(tmp_path / name, "vsr", resampler, arm, seed, test)
        shipping.ship(tmp_path / name, preset, ["vsr"], target)
    table = pd.read_csv(target / shipping.TABLE)
    assert len(table) == 6 and dict(zip(table.resampler, table.test, strict=True)) == {"one": 0.25, "two": 0.75}
    assert (target / "vsr-one-1" / WEIGHTS).read_bytes() == b"one unfrozen 1 0.25"
    assert (target / "vsr-two-1" / WEIGHTS).read_bytes() == b"two unfrozen 1 0.75"
    card = (target / "README.md").read_text()
    assert "| vsr | one |  | 9 | 2 | 0.250, 0.250 | 0.250 | 50 |" in card and "0.750, 0.750" in card
    assert "is right in: not measured" in card
    found = pd.DataFrame([("vsr", "full", 9, 0.625, 50)], columns=shipping.TEXT_COLUMNS)
    shipping.ship_text(found.assign(task="rcm", test=0.5), small_study, target)
    shipping.ship_text(found, small_study, target)
    shipping.ship(tmp_path / "second", preset, ["vsr"], target)  # what the text tells stays as it is
    assert "is right in: rcm 0.500 of 50; vsr 0.625 of 50." in (target / "README.md").read_text()
    told = shipping.same_examples({"vsr one 0": "shipped"}, target)
    assert told["text alone, the same examples"].tolist() == [62.5] and told.unfrozen.tolist() == [25.0]


def test_the_shipped_card_is_what_the_shipped_table_says():
    rows = pd.read_csv(SHIPPED / shipping.TABLE).fillna({"start_task": ""})
    size = sum(file.stat().st_size for file in SHIPPED.rglob(WEIGHTS)) / 1e6
    assert (SHIPPED / "README.md").read_text() == shipping.card(rows, size, "quick", shipping.read_texts())
    for row in rows[rows.arm == "unfrozen"].itertuples():
        about = read_json(SHIPPED / shipping.place_of(row) / "arm.json")
        assert about["test"] == pytest.approx(row.test) and about["train_examples"] == row.train_examples


def test_arms_that_begin_with_another_come_after_it(small_study, tmp_path):
    preset = presets.with_changes(small_study, unfrozen_starts={"vsr": "rcm"})
    wanted = list(shipping.jobs(preset, ["vsr"]))
    assert [task for task, *_ in wanted] == ["rcm"] * 3 + ["vsr"] * 3
    for task, resampler, arm, seed in wanted:
        line = shipping.command_of("smoke", preset, tmp_path / "run", task, resampler, arm, seed)
        begins = [word for word in line if word.startswith(str(tmp_path)) and word.endswith("arm")]
        assert len(begins) == (task == "vsr" and arm == "unfrozen")
        assert all(f"rcm-{resampler.replace('/', '-')}-unfrozen-{seed}" in Path(word).parent.name for word in begins)


def test_an_arm_may_begin_where_another_ended(place, tmp_path, capsys):
    assert main(["train", "probe", *words(place, tmp_path / "first", "unfrozen")]) == 0
    first = str(tmp_path / "first" / "arm")
    later = [*words(place, tmp_path / "later", "unfrozen", "--start-arm", first), "--task", "rcm", "--epochs", "1"]
    assert main(["train", "probe", *later]) == 0
    model = load_probed(place / "tiny")
    (_, begun, _), (_, ended, about) = (load_arm(tmp_path / name / "arm", model) for name in ("first", "later"))
    assert about["task"] == "rcm" and about["start_task"] == "vsr" and about["started_from"] == model.weights_hash

    def distance(one, other):
        pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
        return sum(float((a - b).square().sum().detach()) for a, b in pairs)

    beside = next(place for place in (tmp_path / "later").iterdir() if place.name.startswith("vsr-"))
    assert about["start_arm"]["name"] == beside.name
    assert 0 < distance(ended, begun) < distance(ended, model)
    (beside / WEIGHTS).write_bytes(b"another")
    with pytest.raises(ValueError, match="which is not in"):
        load_arm(tmp_path / "later" / "arm", model)
    capsys.readouterr()
    assert main(["train", "probe", *words(place, tmp_path / "frozen", "frozen", "--start-arm", first)]) == 2
    assert "--start-arm is for the unfrozen arm" in capsys.readouterr().err


def test_search_first(place, tmp_path):
    assert main(["train", "probe", *words(place, tmp_path, "frozen", "--search")]) == 0
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 2


@pytest.mark.parametrize(
    ("arm", "option", "said"),
    [("unfrozen", ["--layer", "0"], "--layer is for the frozen arm"),
     ("frozen", ["--few-bits"], "--few-bits is for the unfrozen arm")],
)  # fmt: skip
def test_what_does_not_go_together_is_said(place, tmp_path, capsys, arm, option, said):
    assert main(["train", "probe", *words(place, tmp_path, arm, *option)]) == 2
    assert said in capsys.readouterr().err


def test_few_bits_take_little_room_and_are_what_is_scored(place, tmp_path):
    for out, more in (("whole", []), ("few", ["--few-bits"])):
        assert main(["train", "probe", *words(place, tmp_path / out, "unfrozen", *more)]) == 0
    size = {out: (tmp_path / out / "arm" / WEIGHTS).stat().st_size for out in ("whole", "few")}
    assert size["few"] < 0.5 * size["whole"]
    probe, own, about = load_arm(tmp_path / "few" / "arm", load_probed(place / "tiny"))
    table = pd.read_csv(tmp_path / "few" / "predictions.csv")
    task = load_task("vsr", build(None, "smoke", progress=False), "random", sizes_of(presets.load("smoke", "01")))
    outputs = predict(probe, unfrozen_sources(task, own, progress=False)["test"])
    np.testing.assert_allclose(outputs[:, 0], table.score, atol=1e-4)
    assert about["test"] == read_json(tmp_path / "few" / "scores.json")["test"] == table.correct.mean()
    whole = pd.read_csv(tmp_path / "whole" / "predictions.csv")
    assert np.corrcoef(whole.score, table.score)[0, 1] > 0.9  # rounding is not what decides


@pytest.mark.parametrize("arm", ["frozen", "unfrozen"])
def test_two_processes_give_the_scores_of_one(place, tmp_path, arm):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
              "-m", "seewhere.probing.commands"]  # fmt: skip
    assert main(["train", "probe", *words(place, tmp_path / "1", arm)]) == 0
    call = [*launch, *words(place, tmp_path / "2", arm)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    found = {n: (read_json(tmp_path / n / "scores.json"), pd.read_csv(tmp_path / n / "predictions.csv")) for n in "12"}
    (one, first), (two, second) = found["1"], found["2"]
    assert (one["processes"], two["processes"]) == (1, 2)
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=1e-4)
    np.testing.assert_allclose(first.score, second.score, atol=2e-3)
    assert (one["validation"], one["test"], one["epoch"]) == (two["validation"], two["test"], two["epoch"])
