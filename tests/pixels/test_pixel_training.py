"""Training in stages: what is asked in a step, what is trained, and that a stopped run ends where a whole one does."""

import dataclasses
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from seewhere.models import micro_vlm
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_text import world_tokenizer
from seewhere.models.minigpt import MiniGPT
from seewhere.models.world_pairs import WorldPairs, square
from seewhere.pixels import history, mixture, pictures, prompts
from seewhere.pixels.commands import train
from seewhere.pixels.pictures import textures, world_pictures
from seewhere.pixels.reader import PixelReader
from seewhere.pixels.recipe import PixelSettings, load
from seewhere.pixels.training import PixelTraining, bells, near_loss, other_pictures, recoloured
from seewhere.world.render import visible_masks
from seewhere.world.sprites import load_sprites

STAGES = load().stages
SMALL = PixelSettings(
    steps=3, images=4, colour_questions=5, mask_questions=6, word_questions=2, textures=3, learning_rate=1e-3
)


@pytest.fixture(scope="module")
def scenes() -> WorldPairs:
    made = world_pictures(9, "train", seed=3)
    return WorldPairs(np.stack([square(image, 128) for image, _ in made]), [scene for _, scene in made])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new model, on disk."""
    tokenizer = world_tokenizer()
    torch.manual_seed(0)
    clip = MicroClip(build_model(len(tokenizer), layers=1, text_layers=1), tokenizer).eval()
    model = micro_vlm.build(clip, np.stack([np.asarray(image) for image in textures(10)]))
    return model.write(tmp_path_factory.mktemp("vlm") / "model", torch.float32)


def state(training: PixelTraining) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in training.model.named_parameters()}


def test_shares_of_pictures_are_exact_over_many_steps() -> None:
    shares = {"colour": 0.6, "mask": 0.1, "refer": 0.2, "caption": 0.1}
    steps = [mixture.pictures_of_step(shares, 8, step) for step in range(50)]
    assert all(sum(step.values()) == 8 for step in steps)
    sums = {group: sum(step[group] for step in steps) for group in ("colour", "mask", "words")}
    assert sums == {"colour": 240, "mask": 40, "words": 120}
    assert mixture.pictures_of_step({"mask": 1.0}, 5, 3) == {"colour": 0, "mask": 5, "words": 0}
    assert mixture.pictures_of_step({"mask": 0.5, "colour": 0.5}, 3, 0) == {"colour": 2, "mask": 1, "words": 0}
    for percent in range(0, 101, 5):  # colours and masks may come round together: no step asks more than there are
        for images in (1, 2, 8):
            shares = {"colour": percent / 100, "mask": max(0, 70 - percent) / 100, "refer": 0.3}
            for step in range(40):
                found = mixture.pictures_of_step(shares, images, step)
                assert sum(found.values()) == images and min(found.values()) >= 0
    for wrong in ({"colours": 1.0}, {"colour": -1.0}, {"colour": 0.0}, {}):
        with pytest.raises(ValueError, match="expected shares 0 or more of colour, mask"):
            mixture.check_mixture(wrong)
    for stage in STAGES.values():
        mixture.check_mixture(stage.mixture)
        assert sum(stage.mixture.values()) == pytest.approx(1)


def test_masks_asked_for_are_those_of_the_object_that_the_phrase_names() -> None:
    for _, scene in world_pictures(4, "train", seed=5):
        asked = mixture.mask_question(scene, Random(1), 64)
        masks = visible_masks(scene, load_sprites())
        fits = [
            np.abs(np.asarray(Image.fromarray(m).resize((64, 64), Image.Resampling.NEAREST)) ^ asked.truth).mean()
            for m in masks
        ]
        assert min(fits) < 0.01 and asked.truth.any()
        assert asked.cells.shape == (64, 2) and asked.cells.min() >= 0 and asked.cells.max() <= 63
        assert 0 < asked.truth[asked.cells[:, 1], asked.cells[:, 0]].mean() < 1


def test_questions_in_words_end_and_fit(folder: Path) -> None:
    model = MiniGPT.load(folder)
    (_, scene), *_ = world_pictures(1, "train", seed=6)
    found = mixture.words_samples(model, scene, STAGES["1"].mixture, 20, Random(0), longest=30)
    assert len(found) == 20 and all(len(sample) <= 30 for sample in found)
    assert all(sample.answer[-1] == model.tokenizer.eos_token_id for sample in found)
    kinds = {model.tokenizer.decode([sample.prompt[1]]).split("]")[0] for sample in found}
    assert len(kinds) >= 3
    question, answer = mixture.words_question(scene, "refer", Random(1))
    box = prompts.parse_box(answer, scene.size)
    assert question.startswith("[refer]") and any(np.abs(box - o.box).max() < 2 for o in scene.objects)


def test_a_stopped_run_ends_where_a_whole_one_does(folder: Path, scenes: WorldPairs, tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, adapt=STAGES["2"].adapt, mixture=STAGES["2"].mixture)
    before = MiniGPT.load(folder)
    whole = PixelTraining(settings, tmp_path / "whole", scenes, model=MiniGPT.load(folder))
    whole.run(progress=False)
    PixelTraining(settings, tmp_path / "parts", scenes, model=MiniGPT.load(folder)).run(2, progress=False)
    parts = PixelTraining(settings, tmp_path / "parts", scenes, model=MiniGPT.load(folder))
    assert parts.step == 2
    parts.run(progress=False)
    for name, values in state(whole).items():
        torch.testing.assert_close(values, state(parts)[name], rtol=0, atol=0, msg=name)
    changed = {name for name, p in before.named_parameters() if not torch.equal(p, state(whole)[name])}
    assert any(name.startswith("vision.") for name in changed) and "connector.weight" in changed
    held = [f"language.model.layers.{i}." for i in range(micro_vlm.READING)]
    assert not any(name.startswith(tuple(held)) for name in changed)
    assert not any("position_embedding" in name for name in changed)


@pytest.mark.parametrize("stage", ["1", "3", "frozen"])
def test_the_encoder_stays_as_it_is_where_a_stage_freezes_it(
    stage: str, folder: Path, scenes: WorldPairs, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SMALL, adapt=STAGES[stage].adapt, mixture=STAGES[stage].mixture, steps=1)
    training = PixelTraining(settings, tmp_path, scenes, model=MiniGPT.load(folder))
    first = MiniGPT.load(folder).vision.state_dict()
    training.run(progress=False)
    for name, values in training.model.vision.state_dict().items():
        torch.testing.assert_close(values, first[name], rtol=0, atol=0, msg=name)
    assert {"step", "loss"} <= set(training.one_step() | {"step": 0})


def test_lora_trains_adapters_behind_the_wired_layers_and_is_written_merged(
    folder: Path, scenes: WorldPairs, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SMALL, lora_rank=4, mixture=STAGES["1"].mixture, learning_rate=1e-2)
    training = PixelTraining(settings, tmp_path / "run", scenes, model=MiniGPT.load(folder))
    first = state(training)
    training.run(progress=False)
    learnt = {name for name, p in state(training).items() if not torch.equal(p, first[name])}
    assert any("lora_B" in name for name in learnt) and "connector.weight" in learnt
    torch.rand(3)  # whatever was drawn before: the seed decides how adapters begin
    again = state(PixelTraining(settings, tmp_path / "again", scenes, model=MiniGPT.load(folder)))
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)
    inner = {name for name in learnt if ".layers." in name and name.startswith("language.")}
    assert all("lora_" in name for name in inner), "what LoRA adapts stays as it is"
    assert not any(f".layers.{i}." in name for name in inner for i in range(micro_vlm.READING))
    whole = MiniGPT.load(training.model.eval().write(tmp_path / "merged", torch.float32))
    ids = torch.arange(5)[None]
    given = training.model.language(ids).logits
    torch.testing.assert_close(whole.language(ids).logits, given, rtol=1e-3, atol=1e-3)
    again = PixelTraining(settings, tmp_path / "run", scenes, model=MiniGPT.load(folder))
    assert again.step == 3
    torch.testing.assert_close(state(again), state(training), rtol=0, atol=0)


def test_one_group_alone_trains_too(folder: Path, scenes: WorldPairs, tmp_path: Path) -> None:
    for number, shares in enumerate(({"mask": 1.0}, {"refer": 0.3, "mask": 0.7}, {"colour": 1.0})):
        settings = dataclasses.replace(SMALL, mixture=shares, steps=2)
        training = PixelTraining(settings, tmp_path / str(number), scenes, model=MiniGPT.load(folder))
        parts = training.one_step()
        assert set(parts) <= {"loss", "colour", "re", "mask", "mask_right", "words"} and np.isfinite(parts["loss"])


def test_looks_are_told_where_a_recipe_asks_for_it(folder: Path, scenes: WorldPairs, tmp_path: Path) -> None:
    one = WorldPairs(scenes.images[:1], scenes.scenes[:1])
    asked = dataclasses.replace(
        SMALL, mixture={"refer": 1.0}, steps=12, images=2, word_questions=6, pointing=2.0, learning_rate=3e-3
    )
    training = PixelTraining(asked, tmp_path, one, model=MiniGPT.load(folder))
    parts = [training.one_step() for _ in range(12)]
    assert parts[0]["loss"] == pytest.approx(parts[0]["words"] + parts[0]["pointing"], rel=1e-4)
    half = dataclasses.replace(asked, pointing=1.0)
    first = PixelTraining(half, tmp_path / "half", one, model=MiniGPT.load(folder)).one_step()
    assert first["pointing"] == pytest.approx(parts[0]["pointing"] / 2, rel=1e-4)
    looked = [part["pointing"] for part in parts]
    assert np.mean(looked[-3:]) < np.mean(looked[:3]) - 0.2, looked
    without = dataclasses.replace(asked, mixture={"caption": 1.0}, steps=1)
    assert "pointing" not in PixelTraining(without, tmp_path / "none", one, model=MiniGPT.load(folder)).one_step()


def test_no_question_in_words_is_longer_than_asked_for(folder: Path, scenes: WorldPairs, tmp_path: Path) -> None:
    seen: list[int] = []
    given = dataclasses.replace(SMALL, mixture={"refer": 0.5, "caption": 0.5}, longest=19, steps=1)
    training = PixelTraining(given, tmp_path, scenes, model=MiniGPT.load(folder))
    whole = mixture.words_samples

    def noted(*arguments: Any) -> Any:
        found = whole(*arguments)
        seen.extend(map(len, found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "words_samples", noted)
        training.one_step()
    assert seen and max(seen) <= 19
    short = dataclasses.replace(given, longest=4)
    with pytest.raises(ValueError, match="expected a larger `longest`"):
        PixelTraining(short, tmp_path / "short", scenes, model=MiniGPT.load(folder)).one_step()


def test_colours_learnt_on_one_picture_are_read_back(folder: Path, scenes: WorldPairs, tmp_path: Path) -> None:
    one = WorldPairs(scenes.images[:1], scenes.scenes[:1])
    settings = PixelSettings(
        adapt=True, mixture={"colour": 1.0}, steps=15, images=1, colour_questions=96, textures=0, textured=0.0
    )
    training = PixelTraining(settings, tmp_path, one, model=MiniGPT.load(folder))
    losses = [training.one_step()["colour"] for _ in range(15)]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.1


def test_a_near_corner_costs_less_than_a_far_one_and_words_cost_what_they_did() -> None:
    values = torch.tensor([3, 4, 5, 6])
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 8, 6, 4])
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(near_loss(values, bells(0.0, 4), logits, targets), plain)
    words = torch.tensor([0, 8, 2])
    same = torch.nn.functional.cross_entropy(logits[:3], words, reduction="sum")
    torch.testing.assert_close(near_loss(values, bells(1.0, 4), logits[:3], words), same)
    sure = 8 * torch.eye(9)
    costs = [float(near_loss(values, bells(1.0, 4), sure[[said]], torch.tensor([4]))) for said in (4, 5, 6, 0)]
    assert costs == sorted(costs) and len({round(cost, 3) for cost in costs}) == 4


def test_bells_and_other_colours() -> None:
    rows = bells(6.0, 256)
    torch.testing.assert_close(rows.sum(1), torch.ones(256))
    assert (rows.argmax(1) == torch.arange(256)).all() and rows[100, 106] / rows[100, 100] == pytest.approx(
        0.6065, 1e-3
    )
    assert torch.equal(bells(0.0, 256), torch.eye(256))
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    made = [recoloured(picture, np.random.default_rng(i)) for i in range(12)]
    assert all(m.shape == picture.shape and m.dtype == np.uint8 for m in made)
    assert sum(np.array_equal(m, picture) for m in made) < 8


def test_snapshots_are_kept_and_not_taken_twice(
    folder: Path, scenes: WorldPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(SMALL, mixture={"colour": 1.0}, steps=2, images=1)
    monkeypatch.setattr(history, "shown_pictures", lambda: {"a texture": textures(1)[0]})
    for _ in range(2):
        train(PixelTraining(settings, tmp_path, scenes, model=MiniGPT.load(folder)), "1", tmp_path, progress=False)
    found = history.read_history(tmp_path / history.FILE)
    assert found.steps.tolist() == sorted(set(found.steps.tolist())) and found.steps[-1] == 2
    assert found.reconstructions.shape == (len(found.steps), len(found.names), 64, 64, 3)
    assert found.questions[-1] == 2 * 5
    both = found.followed_by(found)
    assert len(both.steps) == 2 * len(found.steps)
    later = dataclasses.replace(found, stages=np.array(["2-end"] * len(found.steps)))
    thin = found.followed_by(later).without_middles(["2-end", "x"])
    assert thin.stages.tolist() == [*found.stages.tolist(), "2-end"] and len(found.steps) > 1
    assert thin.steps[-1] == found.steps[-1] and np.array_equal(thin.reconstructions[-1], found.reconstructions[-1])
    with pytest.raises(FileNotFoundError, match="no history 'x'"):
        history.load_history("x")


@pytest.mark.parametrize("lora", [0, 2])
def test_the_mean_of_before_and_after_is_kept_once(
    folder: Path, scenes: WorldPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: int
) -> None:
    settings = dataclasses.replace(SMALL, mixture={"colour": 1.0}, steps=2, images=1, lora_rank=lora, averaged=True)
    monkeypatch.setattr(history, "shown_pictures", lambda: {"a texture": textures(1)[0]})

    def weights(model: MiniGPT, place: str) -> torch.Tensor:
        language = MiniGPT.load(model.write(tmp_path / place, torch.float32)).language
        return torch.cat([p.flatten() for p in language.state_dict().values()])

    def started(averaged: bool, place: str) -> PixelTraining:
        torch.manual_seed(0)
        chosen = dataclasses.replace(settings, averaged=averaged)
        return PixelTraining(chosen, tmp_path / place, scenes, model=MiniGPT.load(folder))

    training = started(False, "plain")
    before = weights(training.model, "before")
    training.run(progress=False)
    after = weights(training.model, "after")
    assert float((after - before).abs().max()) > 1e-4
    for number in range(2):  # the second time all snapshots are there, and the checkpoint is of before the mean
        again = started(True, "run")
        train(again, "1", tmp_path / "run", progress=False)
        torch.testing.assert_close(weights(again.model, f"mean {number}"), (before + after) / 2, rtol=1e-4, atol=1e-6)
    last = history.read_history(tmp_path / "run" / history.FILE).reconstructions[-1]
    assert np.array_equal(last[0], PixelReader(again.model, progress=False).reconstruct([textures(1)[0]])[0])


def test_boxes_and_masks_lie_in_the_picture(folder: Path) -> None:
    reader = PixelReader(MiniGPT.load(folder), progress=False)
    image = Image.new("RGB", (90, 40), "teal")
    (box,) = reader.find_boxes([image], ["the dog"])
    assert (box[:2] <= box[2:]).all() and (box >= 0).all() and box[2] <= 90 and box[3] <= 40
    grid = reader.read_mask_grid(image, "the dog", (0, 0, 45, 20))
    assert grid.shape == (64, 64) and (grid[:32, :32] > 0).all() and not grid[32:].any() and not grid[:, 32:].any()
    with pytest.raises(ValueError, match="2 pictures but 1 phrases"):
        reader.find_boxes([image, image], ["dog"])


def test_games_that_are_not_there_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from seewhere.pixels import training

    def frames(game: str, count: int, seed: int, side: int) -> np.ndarray:
        if game == "CarRacing":
            raise ImportError("CarRacing is not installed")
        return np.zeros((count, side, side, 3), np.uint8)

    monkeypatch.setattr(training.sources, "kept_frames", frames)
    found = other_pictures(dataclasses.replace(SMALL, textures=2, frames=3))
    assert {name: len(images) for name, images in found.items()} == {"textures": 2, "SpaceInvaders": 3}
    assert "CarRacing: no frames among the pictures to train on" in capsys.readouterr().out
    assert list(other_pictures(SMALL)) == ["textures"]


def test_frames_are_played_once_and_then_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[str] = []

    def game_frames(game: str, count: int, seed: int) -> list[Image.Image]:
        played.append(game)
        return [Image.new("RGB", (96, 96), (10 * n, 0, 0)) for n in range(count)]

    monkeypatch.setattr(pictures, "game_frames", game_frames)
    first, again = (pictures.kept_frames("CarRacing", 3, 0, 32) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (3, 32, 32, 3) and first[2, 0, 0, 0] == 20 and played == ["CarRacing"]
