"""``seewhere train probe`` on a random micro resampler on disk, in one process and in two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from seewhere.cli import main
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_qformer import MicroBlip2, QFormerSettings
from seewhere.models.micro_text import build_tokenizer
from seewhere.models.resamplers import write_micro
from seewhere.probing.adapter import load_probed
from seewhere.probing.arms import load_arm
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


def test_search_first(place, tmp_path):
    assert main(["train", "probe", *words(place, tmp_path, "frozen", "--search")]) == 0
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 2


def test_what_does_not_go_together_is_said(place, tmp_path, capsys):
    assert main(["train", "probe", *words(place, tmp_path, "unfrozen", "--layer", "0")]) == 2
    assert "--layer is for the frozen arm" in capsys.readouterr().err


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
