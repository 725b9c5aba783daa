"""Micro-CLIP: it can learn, it keeps positions, it is saved and taken up again as it was; and the probe for cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from seewhere.boxes import CELLS, cell_of
from seewhere.cli import main
from seewhere.models import micro_clip_training as training
from seewhere.models import position_probe
from seewhere.models.micro_clip import (
    MicroClip,
    build_model,
    contrastive_loss,
    naming_loss,
    retrieval_recall,
    shipped_folder,
    sine_cosine_positions,
    zero_shot_scores,
)
from seewhere.models.micro_text import world_tokenizer
from seewhere.models.stepwise import OPTIMIZERS, cosine_rate
from seewhere.models.world_pairs import WorldPairs, full_caption, load_pairs, pixels_of
from seewhere.world.sprites import load_sprites
from transformers import CLIPModel

TINY = training.ClipSettings(
    steps=6, batch=8, scenes=16, side=32, patch=8, width=64, layers=2, text_layers=1, learning_rate=2e-3
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorldPairs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEEWHERE_HOME", str(tmp_path_factory.mktemp("home")))
        yield load_pairs(0, 16, 32, "val", progress=False)


def tiny_clip() -> MicroClip:
    torch.manual_seed(0)
    tokenizer = world_tokenizer()
    return MicroClip(build_model(len(tokenizer), 32, 8, 64, 2, 1, 64), tokenizer)


# -- positions ---------------------------------------------------------------------------------------------------


def test_positions_are_all_different_and_neighbours_most_alike() -> None:
    positions = sine_cosine_positions(64, 8)
    assert positions.shape == (64, 64)
    torch.testing.assert_close(positions.square().mean(1), torch.ones(64))
    alike = positions @ positions.T / 64
    off = alike - 2 * torch.eye(64)
    assert off.max() < 0.999
    place = 3 * 8 + 4
    assert int(off[place].argmax()) in (place - 1, place + 1, place - 8, place + 8)


def test_row_and_column_are_linear_in_a_position() -> None:
    grid, positions = 8, sine_cosine_positions(64, 8)
    wanted = torch.stack([torch.arange(64) % grid, torch.arange(64) // grid], dim=1).float()
    known = torch.cat([positions, torch.ones(64, 1)], dim=1)
    read = known @ torch.linalg.lstsq(known, wanted, rcond=1e-4, driver="gelsd").solution
    torch.testing.assert_close(read, wanted, atol=0.2, rtol=0)


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_cosine_positions(30, 4)


def test_positions_do_not_learn(pairs: WorldPairs, tmp_path: Path) -> None:
    run = training.ClipTraining(replace(TINY, steps=2), tmp_path, pairs)
    before = run.clip.model.vision_model.embeddings.position_embedding.weight.clone()
    patches = run.clip.model.vision_model.embeddings.patch_embedding.weight.clone()
    run.run(progress=False)
    embeddings = run.clip.model.vision_model.embeddings
    assert torch.equal(before, embeddings.position_embedding.weight)
    assert not torch.equal(patches, embeddings.patch_embedding.weight)


# -- learning ----------------------------------------------------------------------------------------------------


def test_a_tiny_clip_learns_sixteen_pairs_by_heart(pairs: WorldPairs, tmp_path: Path) -> None:
    settings = replace(TINY, steps=60, batch=16, colour_jitter=0.0)
    run = training.ClipTraining(settings, tmp_path, pairs)
    captions = [full_caption(scene, Random(i)) for i, scene in enumerate(pairs.scenes)]
    assert retrieval_recall(run.clip, pairs.images, captions) < 0.4
    run.run(progress=False)
    assert retrieval_recall(run.clip, pairs.images, captions) >= 0.9


def test_contrast_is_lowest_when_each_is_nearest_to_its_own() -> None:
    images = torch.eye(4)
    scale = torch.tensor(20.0)
    assert contrastive_loss(images, images, scale) < 1e-3
    assert contrastive_loss(images, images.roll(1, 0), scale) > 10


def test_padding_and_batch_mates_do_not_change_a_text() -> None:
    clip = tiny_clip().eval()
    with torch.no_grad():
        together = clip.embed_texts(["a dog", "a picture of two cats, a bus and three red donuts"])
        torch.testing.assert_close(together[:1], clip.embed_texts(["a dog"]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(optimizer: str, pairs: WorldPairs, tmp_path: Path) -> None:
    settings = replace(TINY, optimizer=optimizer)
    whole = training.ClipTraining(settings, tmp_path / "whole", pairs)
    whole.run(progress=False, log_every=2)
    training.ClipTraining(settings, tmp_path / "parts", pairs).run(until=3, progress=False, log_every=2)
    second = training.ClipTraining(settings, tmp_path / "parts", pairs)
    assert second.step == 3
    second.run(progress=False, log_every=2)
    assert second.log == whole.log and len(whole.log) == 3
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[name]), name


def test_a_folder_with_other_settings_is_refused(pairs: WorldPairs, tmp_path: Path) -> None:
    training.ClipTraining(replace(TINY, steps=1), tmp_path, pairs).run(progress=False)
    with pytest.raises(ValueError, match="other settings"):
        training.ClipTraining(replace(TINY, steps=2), tmp_path, pairs)


def test_the_rate_rises_and_falls() -> None:
    rates = [cosine_rate(step, 100, 1.0, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[-1] < 0.02


# -- the model ---------------------------------------------------------------------------------------------------


def test_an_image_is_the_mean_of_what_its_patches_say() -> None:
    clip = tiny_clip().eval()
    pixels = clip.pixels([Image.new("RGB", (50, 40), "red")])
    with torch.no_grad():
        eye = clip.model.vision_model
        states = eye(pixel_values=pixels).last_hidden_state[:, 1:]
        tokens = clip.patch_tokens(pixels)
        said = clip.model.visual_projection(eye.post_layernorm(states)).mean(1)
        torch.testing.assert_close(clip.embed_pixels(pixels), said / said.norm(dim=1, keepdim=True))
    assert tokens.shape == (1, 16, 64)
    contents = torch.nn.functional.layer_norm(states, (64,))
    torch.testing.assert_close(clip.patch_contents(pixels), contents)
    torch.testing.assert_close(tokens - contents, sine_cosine_positions(64, 4)[None], atol=1e-5, rtol=0)


def test_naming_wants_every_picture_that_shows_a_thing_near_its_name() -> None:
    corners = torch.eye(3)
    present = torch.tensor([[True, False, False], [False, True, False], [True, False, False]])
    right = naming_loss(corners[[0, 1, 0]], corners, present, 50.0)
    wrong = naming_loss(corners[[1, 0, 1]], corners, present, 50.0)
    # The first name is true of two pictures that are equally near: the best it can do is half of the mass each.
    assert float(right) == pytest.approx(torch.log(torch.tensor(2.0)).item() / 2 / 2, abs=1e-3)
    assert float(wrong) > 20


def test_boxes_follow_the_pixels() -> None:
    clip = tiny_clip()
    image = Image.new("RGB", (64, 128))
    image.paste((255, 255, 255), (32, 64, 64, 128))
    white = clip.pixels([image])[0].mean(0) > 0
    (x1, y1, x2, y2) = clip.transform(image.size).apply_boxes(np.array([[32, 64, 64, 128]]))[0].round().astype(int)
    assert white[y1 + 1 : y2, x1 + 1 : x2].all() and not white[: y1 - 1].any() and not white[:, : x1 - 1].any()


def test_a_written_model_comes_back_and_transformers_reads_it_too(tmp_path: Path) -> None:
    clip = tiny_clip()
    clip.write(tmp_path)
    loaded = MicroClip.load(tmp_path)
    pixels = clip.pixels([Image.new("RGB", (30, 20), "blue")])
    with torch.no_grad():
        torch.testing.assert_close(loaded.embed_pixels(pixels), clip.embed_pixels(pixels), atol=0.01, rtol=0.05)
        torch.testing.assert_close(loaded.embed_texts(["a dog"]), clip.embed_texts(["a dog"]), atol=0.01, rtol=0.05)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert (loaded.side, loaded.grid, loaded.width) == (32, 4, 64)
    assert CLIPModel.from_pretrained(tmp_path, dtype=torch.float32).config.projection_dim == 64


def test_an_unknown_name_tells_what_to_do() -> None:
    with pytest.raises(FileNotFoundError, match="seewhere train clip"):
        shipped_folder("no-such-thing", "seewhere train clip --out FOLDER")


# -- scores ------------------------------------------------------------------------------------------------------


class Oracle(MicroClip):
    """Embeds a picture by its first pixel and a text by its place in a list: known answers for the scores."""

    def __init__(self, texts: list[str], width: int) -> None:
        torch.nn.Module.__init__(self)
        self.texts, self.size = texts, width

    def embed_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(((pixels[:, 0, 0, 0] + 1) * 127.5).round().long(), self.size).float()

    def embed_texts(self, texts: list[str]) -> torch.Tensor:  # type: ignore[override]
        return torch.nn.functional.one_hot(torch.tensor([self.texts.index(t) for t in texts]), self.size).float()


def test_recall_counts_the_pictures_whose_text_is_nearest() -> None:
    texts = ["a", "b", "c", "d"]
    images = np.array([0, 1, 2, 2], dtype=np.uint8).reshape(4, 1, 1, 1).repeat(3, axis=3)
    assert retrieval_recall(Oracle(texts, 4), images, texts, batch_size=3) == 0.75


def test_zero_shot_is_the_chance_to_rank_a_picture_with_above_one_without() -> None:
    asked = ["a picture of a cat", "a picture of an apple"]
    images = np.array([0, 0, 1, 1], dtype=np.uint8).reshape(4, 1, 1, 1).repeat(3, axis=3)
    found = zero_shot_scores(Oracle(asked, 2), images, [{"cat"}, {"cat"}, set(), set()], ["cat", "apple"])
    assert found == {"cat": 1.0}


@pytest.mark.parametrize("readout", position_probe.READOUTS)
def test_the_cell_probe_reads_cells_from_tokens_that_hold_them(readout: str) -> None:
    torch.manual_seed(0)
    count, grid, categories = 1200, 6, 3
    asked, cells = torch.randint(0, categories, (count,)), torch.randint(0, 9, (count,))
    tokens = 0.1 * torch.randn(count, grid * grid, 24 + 8)
    tokens[:, :, 8:] += sine_cosine_positions(24, grid)
    column, row = 2 * (cells % 3) + torch.randint(0, 2, (count,)), 2 * (cells // 3) + torch.randint(0, 2, (count,))
    shown = torch.full((count, grid * grid), categories)
    shown[torch.arange(count), row * grid + column] = asked
    tokens[torch.arange(count), row * grid + column, asked] += 3.0
    whose = torch.where(shown < categories, cells[:, None], torch.tensor(position_probe.NOBODY))
    probe = position_probe.CellProbe(32, grid * grid, categories, readout)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-2)
    for part in list(torch.arange(1000).split(100)) * 8:
        loss = probe.patch_loss(tokens[part], position_probe.PatchLabels(shown[part], whose[part]))
        logits = probe(tokens[part], torch.arange(100), asked[part])
        (loss + torch.nn.functional.cross_entropy(logits, cells[part])).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        rows, wanted = torch.arange(200), cells[1000:]
        right = probe(tokens[1000:], rows, asked[1000:]).argmax(1) == wanted
        other_category = probe(tokens[1000:], rows, (asked[1000:] + 1) % 3).argmax(1) == wanted
    assert right.float().mean() > 0.9
    assert other_category.float().mean() < 0.5


def test_pointing_weighs_each_patch_by_how_much_of_the_box_it_holds(pairs: WorldPairs) -> None:
    asked = position_probe.pointed_cells(pairs.scenes, 8)
    assert len(asked.rows) == sum(len(scene.objects) for scene in pairs.scenes)
    assert torch.allclose(asked.shares.sum(1), torch.ones(len(asked.rows)))
    middles = (torch.arange(8) + 0.5) / 8
    boxes = [(scene, item.box) for scene in pairs.scenes for item in scene.objects]
    for shares, (scene, box) in zip(asked.shares.reshape(-1, 8, 8), boxes, strict=True):
        centre = (shares.sum(0) @ middles * scene.width, shares.sum(1) @ middles * scene.height)
        assert abs(centre[0] - (box[0] + box[2]) / 2) < scene.width / 16  # within half a patch
        assert abs(centre[1] - (box[1] + box[3]) / 2) < scene.height / 16


def test_a_pointed_probe_reads_cells_only_from_tokens_that_hold_them(pairs: WorldPairs) -> None:
    class Eye:
        grid, width = 8, 16

        def __init__(self, positions: torch.Tensor) -> None:
            self.positions = positions

        def patch_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
            return 0.1 * torch.randn(len(pixels), 64, 16) + self.positions

    def accuracy(positions: torch.Tensor) -> float:
        half = len(pairs) // 2
        parts = [WorldPairs(pairs.images[part], pairs.scenes[part]) for part in (slice(0, half), slice(half, None))]
        eye = Eye(positions)
        return position_probe.pointed_accuracy(eye, *parts, epochs=60, progress=False).accuracy  # type: ignore[arg-type]

    assert accuracy(sine_cosine_positions(16, 8)) > accuracy(torch.zeros(64, 16)) + 0.2


def test_patches_are_labelled_by_what_stands_in_front(pairs: WorldPairs) -> None:
    names = [c.name for c in load_sprites().coco]
    labels = position_probe.patch_labels(pairs, names, 8)
    for row, scene in enumerate(pairs.scenes):
        front = max(scene.objects, key=lambda o: o.depth)
        x, y = (front.box[0] + front.box[2]) / 2 / scene.width, (front.box[1] + front.box[3]) / 2 / scene.height
        patch = int(y * 8) * 8 + int(x * 8)
        assert labels.categories[row, patch] == names.index(front.category)
        assert labels.cells[row, patch] == cell_of(front.box, scene.size)
        shown = set(labels.categories[row].tolist()) - {len(names)}
        assert shown <= {names.index(o.category) for o in scene.objects}
    nobody = labels.categories == len(names)
    assert nobody.any() and (labels.cells[nobody] == position_probe.NOBODY).all()
    assert (labels.cells[~nobody] >= 0).all()


def test_questions_of_some_scenes_keep_their_scene(pairs: WorldPairs) -> None:
    names = [c.name for c in load_sprites().coco]
    asked, scenes = position_probe.named_cells(pairs, names), torch.tensor([5, 0, 11])
    part = position_probe.questions_of(asked, scenes)
    expected = [
        (place, category, cell)
        for place, scene in enumerate(scenes.tolist())
        for row, category, cell in zip(asked.rows.tolist(), asked.categories, asked.cells, strict=True)
        if row == scene
    ]
    assert list(zip(part.rows.tolist(), part.categories, part.cells, strict=True)) == expected


def test_questions_name_objects_that_are_alone_in_their_category(pairs: WorldPairs) -> None:
    names = [c.name for c in load_sprites().coco]
    asked = position_probe.named_cells(pairs, names)
    for row, category in zip(asked.rows.tolist(), asked.categories.tolist(), strict=True):
        assert [o.category for o in pairs.scenes[row].objects].count(names[category]) == 1
    assert asked.cells.max() < len(CELLS) and (asked.distances >= 0).all()


def test_the_command_trains_scores_and_writes_a_card(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = home / "out"
    small = {"scenes": 8, "probe_scenes": 8, "progress": False}
    monkeypatch.setattr(training, "score", lambda clip, _score=training.score: _score(clip, **small))
    call = ["train", "clip", "--out", str(out), "--steps", "2", "--batch", "4", "--scenes", "8", "--seed", "3"]
    assert main([*call, "--side", "32", "--width", "64", "--layers", "2"]) == 0
    card = (out / "model" / "README.md").read_text()
    assert "--steps 2 --seed 3 --batch 4 --scenes 8" in card and "R@1" in card
    assert MicroClip.load(out / "model").side == 32
    assert pixels_of(load_pairs(0, 8, 32, "val", progress=False).images).shape == (8, 3, 32, 32)
