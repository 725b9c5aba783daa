"""The command that trains an adapter: what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seewhere import cli, storage, training
from seewhere.llm_wrapper import commands
from seewhere.llm_wrapper.commands import joined, thinned
from seewhere.llm_wrapper.training import ATTENTION_AND_MLP
from seewhere.models.language_model import MICRO_FOLDER, HubLanguageModel
from tiny_models import tiny_llama
from transformers import AutoTokenizer


def test_a_thinned_log_keeps_every_evaluation_and_means_of_the_loss() -> None:
    steps = pd.DataFrame({"step": range(1, 51), "loss": np.arange(50.0), "learning_rate": 0.1})
    looks = pd.DataFrame({"step": [20, 50], "validation_p_at_1": [0.25, 0.5]})
    log = thinned(pd.concat([steps, looks], ignore_index=True), every=20)
    assert list(log.step) == [20, 40, 50]
    assert list(log.loss) == [9.5, 29.5, 44.5]
    assert list(log.validation_p_at_1.fillna(-1)) == [0.25, -1, 0.5]


def test_a_training_that_goes_on_keeps_the_stages_apart(tmp_path: Path) -> None:
    later = pd.DataFrame({"step": [20, 40], "loss": [2.0, 1.0], "stage": "micro"})
    assert joined(None, later).equals(later) and joined(tmp_path, later).equals(later)
    pd.DataFrame({"step": [20, 30], "loss": [4.0, 3.0]}).to_csv(tmp_path / "history.csv", index=False)
    storage.atomic_write_json(tmp_path / "wrapper.json", {"trained_on": [{"boxes": "scenes", "questions": 9}]})
    log = joined(tmp_path, later)
    assert list(log.step) == [20, 30, 50, 70]
    assert list(log.stage) == ["scenes", "scenes", "micro", "micro"]


def test_an_adapter_goes_on_reading_boxes_as_it_was_taught_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MICRO_FOLDER)

    def load(*_: object, **__: object) -> HubLanguageModel:
        return HubLanguageModel(tiny_llama(len(tokenizer)), tokenizer, "tiny", progress=False)

    monkeypatch.setattr(commands, "load_language_model", load)
    seen = []
    rehearse = commands.rehearse
    monkeypatch.setattr(commands, "rehearse", lambda *a, **k: seen.append(k["coordinates"]) or rehearse(*a, **k))
    monkeypatch.setattr(commands, "VALIDATION_SCENES", 2)
    start = training.save_adapter(
        training.add_lora(load().model, rank=4, alpha=8, dropout=0.0, targets=ATTENTION_AND_MLP), tmp_path / "start"
    )
    trained_on = [{"boxes": "scenes", "questions": 5}]
    storage.atomic_write_json(start / "wrapper.json", {"coordinates": "center", "trained_on": trained_on})
    call = ["train", "wrapper", "--start", str(start), "--scenes", "2", "--questions", "3", "--rank", "4"]
    assert cli.main([*call, "--no-drills", "--keep-rank", "2", "--out", str(tmp_path / "run")]) == 0
    assert storage.read_json(tmp_path / "run" / "adapter" / "adapter_config.json")["r"] == 2
    about = storage.read_json(tmp_path / "run" / "adapter" / "wrapper.json")
    assert about["coordinates"] == "center" and set(seen) == {"center"}
    assert [part["boxes"] for part in about["trained_on"]] == ["scenes", "scenes"]
