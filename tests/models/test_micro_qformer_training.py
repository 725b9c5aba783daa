"""Trainings of the micro resamplers: they can be stopped, begin with others, and ask what their recipe says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from seewhere.models import micro_qformer_data as data
from seewhere.models import micro_qformer_training as training
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_text import world_tokenizer
from seewhere.models.resamplers import load_blip2_module
from seewhere.models.world_pairs import load_pairs
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

TINY = training.ResamplerSettings(steps=6, batch=8, scenes=16, layers=1, width=32, queries=4, learning_rate=3e-3)


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, data.SeenScenes]]:
    """A written tiny micro-CLIP, and what it sees of 16 scenes."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    tokenizer = world_tokenizer()
    folder = home / "clip"
    MicroClip(build_model(len(tokenizer), 32, 8, 64, 2, 1, 64), tokenizer).write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEEWHERE_HOME", str(home))
        yield str(folder), data.SeenScenes(MicroClip.load(folder), 0, 16, "val", progress=False)


@pytest.mark.parametrize("kind", training.KINDS)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    kind: str, eye: tuple[str, data.SeenScenes], tmp_path: Path
) -> None:
    clip, seen = MicroClip.load(eye[0]), eye[1]
    settings = replace(TINY, kind=kind, steps=4)
    kinds = {"blip2": training.StageOneTraining}
    make = kinds.get(kind, training.LanguageTraining)
    whole = make(settings, tmp_path / "whole", clip, seen)
    whole.run(progress=False, log_every=2)
    make(settings, tmp_path / "parts", clip, seen).run(until=1, progress=False, log_every=2)
    second = make(settings, tmp_path / "parts", clip, seen)
    assert second.step == 1
    second.run(progress=False, log_every=2)
    assert second.log == whole.log and len(whole.log) == 2
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[name]), name


def test_steps_between_ask_for_matching_alone(eye: tuple[str, data.SeenScenes], tmp_path: Path) -> None:
    clip, seen = MicroClip.load(eye[0]), eye[1]
    settings = replace(TINY, steps=4, pairs=2, every=2)
    run = training.StageOneTraining(settings, tmp_path / "run", clip, seen)
    told = [run.one_step() for _ in range(4)]
    assert all({"itm", "true", "twisted"} <= parts.keys() for parts in told)
    assert [("itc" in parts, "hard" in parts, "text" in parts) for parts in told] == [(True,) * 3, (False,) * 3] * 2
    resumed = training.StageOneTraining(settings, tmp_path / "logged", clip, seen)
    resumed.run(progress=False, log_every=4)
    expected = np.mean([parts["itc"] for parts in told if "itc" in parts])
    assert resumed.log[0]["itc"] == pytest.approx(expected, abs=1e-4)  # the mean of the steps that told it


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pairs": 0}, "pairs and every"),
        ({"every": 0}, "pairs and every"),
        ({"every": 2, "matching_weights": (0.0, 1.0, 0.0, 1.0)}, "leaves steps with nothing"),
    ],
)
def test_recipes_of_stage_one_that_ask_nothing_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changed)  # type: ignore[arg-type]


def test_stage_one_goes_on_from_a_frozen_q_former(eye: tuple[str, data.SeenScenes], tmp_path: Path) -> None:
    """As `load_resampler` gives it: its parameters take part again, and begin with its values."""
    clip, seen = MicroClip.load(eye[0]), eye[1]
    first = training.StageOneTraining(TINY, tmp_path / "first", clip, seen)
    first.run(until=3, progress=False)
    start = first.blip2.eval().requires_grad_(False)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    second = training.StageOneTraining(replace(TINY, seed=1), tmp_path / "second", clip, seen, start=start)
    assert second.step == 0
    for name, value in second.blip2.state_dict().items():
        assert torch.equal(value, before[name]), name
    second.run(until=2, progress=False)
    changed = [n for n, value in second.blip2.state_dict().items() if not torch.equal(value, before[n])]
    assert len(changed) > len(before) / 2


def test_a_perceiver_has_nothing_to_start_from(eye: tuple[str, data.SeenScenes], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="begins anew"):
        training.make_training(replace(TINY, kind="perceiver", start="x", clip=eye[0]), tmp_path, load_blip2_module)


def test_tokens_of_another_eye_are_never_read(home: Path) -> None:
    tokenizer, pairs, found = world_tokenizer(), load_pairs(0, 3, 32, "val", progress=False), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        clip = MicroClip(build_model(len(tokenizer), 32, 8, 64, 2, 1, 64), tokenizer).eval()
        found.append(np.array(data.frozen_tokens(clip, pairs, 0, "val", progress=False)))
        again = data.frozen_tokens(clip, pairs, 0, "val", progress=False)
        np.testing.assert_array_equal(found[-1], again)
    assert found[0].shape == (3, 16, 64) and np.abs(found[0] - found[1]).max() > 0.1


def test_language_alone_holds_words_of_place() -> None:
    from seewhere.world.scenes import sample_scene
    from seewhere.world.sprites import load_sprites

    said = [data.mere_language(sample_scene(n, load_sprites()), Random(n)) for n in range(40)]
    assert any("part of the image" in s for s in said) and any("left" in s or "right" in s for s in said)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        training.make_training(replace(TINY, kind="other"), tmp_path, load_blip2_module)


@pytest.mark.parametrize("kind", ["instruct", "perceiver"])
def test_a_frozen_language_model_stays_and_the_resampler_learns(
    kind: str, eye: tuple[str, data.SeenScenes], tmp_path: Path
) -> None:
    language = tmp_path / "language"
    config = LlamaConfig(
        vocab_size=len(world_tokenizer()), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(language)
    world_tokenizer().save_pretrained(language)
    settings = replace(TINY, kind=kind, steps=2, language=str(language))
    run = training.LanguageTraining(settings, tmp_path / "run", MicroClip.load(eye[0]), eye[1])
    kept = {n: p.clone() for n, p in run.through.named_parameters()}
    run.run(progress=False)
    for name, value in run.through.named_parameters():
        if name.startswith("language."):
            assert torch.equal(value, kept[name]), name
    assert any(not torch.equal(p, kept[n]) for n, p in run.through.named_parameters() if "resampler" in n)
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["module"]
    assert not any(name.startswith("language.") for name in saved)
    assert AutoModelForCausalLM.from_pretrained(language).config.hidden_size == 16
