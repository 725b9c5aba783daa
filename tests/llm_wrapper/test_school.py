"""The school: what a grade asks for, when the next one opens, and that a stopped run goes on as if it had not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from seewhere import cli
from seewhere.llm_wrapper import prompts, school
from seewhere.llm_wrapper.school import AXES, GRADES, REMEMBERED, School, SchoolSettings, answers_right
from seewhere.llm_wrapper.wrapper import shipped_adapter
from seewhere.models.language_model import MICRO_FOLDER, HubLanguageModel
from seewhere.packing import Sample
from seewhere.storage import hash_file
from seewhere.world.sprites import SpriteSet, load_sprites
from tiny_models import tiny_llama
from transformers import AutoTokenizer

TINY = SchoolSettings(steps=4, rank=4, questions=6)


@pytest.fixture(scope="module")
def sprites() -> SpriteSet:
    return load_sprites()


def tiny_school(folder: Path, sprites: SpriteSet, settings: SchoolSettings = TINY) -> School:
    tokenizer = AutoTokenizer.from_pretrained(MICRO_FOLDER)
    model = tiny_llama(len(tokenizer))
    model.set_attn_implementation("eager")
    return School(settings, folder, HubLanguageModel(model, tokenizer, "tiny", progress=False), sprites)


def test_grades_ask_for_more_and_more() -> None:
    left, right = ("rank", "left", 1, ("category", "dog")), ("rank", "right", 1, ("category", "dog"))
    second = ("rank", "left", 2, ("category", "dog"))
    assert [GRADES[0].asks(p) for p in (left, right, second)] == [True, False, False]
    assert [GRADES[5].asks(p) for p in (left, right, second)] == [True, True, False]
    assert GRADES[9].asks(second) and GRADES[-1].asks(("nearest", ("category", "dog"), ("category", "cat")))
    met: set[str] = set()
    for grade in GRADES:
        assert len(set(grade.axes) - met) <= 1, "one new direction at a time"
        met |= set(grade.axes)
    assert met == set(AXES)


def test_the_first_grade_asks_about_the_left_of_two_boxes(sprites: SpriteSet, tmp_path: Path) -> None:
    school = tiny_school(tmp_path, sprites)
    for step in range(4):
        for example in (e for part in school.examples_of(step) for e in part):
            assert prompts.count_candidates(example.prompt) <= 3  # two objects, one of them perhaps seen twice
            question = example.prompt.rsplit("\n", 1)[1]
            assert re.search(r"left", question) and not re.search(r"from (right|top|bottom)|second", question), question
    other = tiny_school(tmp_path, sprites, replace(TINY, seed=12))
    assert other.examples_of(3) != school.examples_of(3)
    again = tiny_school(tmp_path, sprites)
    assert again.examples_of(3) == school.examples_of(3)


def test_a_grade_that_is_mastered_opens_the_next(sprites: SpriteSet, tmp_path: Path) -> None:
    school = tiny_school(tmp_path, sprites, replace(TINY, patience=2))
    school.answers = [1] * REMEMBERED
    school.after_update()
    assert school.grade == 0, "not before its time"
    school.step = 2
    school.answers = [1, 0] * (REMEMBERED // 2)
    school.after_update()
    assert school.grade == 0, "half is not mastered"
    school.answers = [1] * REMEMBERED
    school.after_update()
    assert (school.grade, school.since, school.answers) == (1, 2, [])
    assert any("top" in e.prompt.rsplit("\n", 1)[1] for step in range(8) for p in school.examples_of(step) for e in p)


def test_answers_count_as_right_only_as_a_whole() -> None:
    samples = [Sample((1,), (5, 2)), Sample((1,), (6,)), Sample((1,), (7, 8, 2))]
    assert answers_right(torch.tensor([True, False, True, True, True, True]), samples) == [0, 1, 1]


def test_a_run_that_was_stopped_ends_like_one_that_was_not(sprites: SpriteSet, tmp_path: Path) -> None:
    whole = tiny_school(tmp_path / "whole", sprites)
    whole.run(progress=False, log_every=2)
    tiny_school(tmp_path / "parts", sprites).run(until=2, progress=False, log_every=2)
    second = tiny_school(tmp_path / "parts", sprites)
    assert second.step == 2 and len(second.answers) > 0
    second.run(progress=False, log_every=2)
    assert second.answers == whole.answers and second.log == whole.log and second.asked == whole.asked > 0
    trained = {n: p for n, p in whole.module.named_parameters() if p.requires_grad}
    assert any(float(p.detach().abs().sum()) > 0 for n, p in trained.items() if "lora_B" in n)
    for name, value in second.module.named_parameters():
        if name in trained:
            assert torch.equal(value, trained[name]), name


def test_the_command_writes_an_adapter_at_the_rank_asked_for(
    sprites: SpriteSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(school, "School", lambda settings, folder: tiny_school(folder, sprites, settings))
    call = ["train", "school", "--steps", "2", "--rank", "4", "--questions", "6", "--keep-rank", "2"]
    assert cli.main([*call, "--out", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "adapter" / "wrapper.json").read_text())
    assert about["coordinates"] == "center" and about["trained_on"][0]["questions"] > 0
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 2
    history = pd.read_csv(tmp_path / "adapter" / "history.csv")
    assert 0 <= history.validation_p_at_1.iloc[-1] <= 1


def test_the_shipped_adapter_says_what_it_was_taught() -> None:
    folder = shipped_adapter("smollm2")
    assert folder is not None
    card, about = (folder / "README.md").read_text(), json.loads((folder / "wrapper.json").read_text())
    assert hash_file(folder / "adapter_model.safetensors") in card
    assert f"{about['trained_on'][0]['questions']:,}" in card
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert names and all("lora_" in name for name in names)
        assert all(torch.isfinite(weights.get_tensor(name)).all() for name in names)
