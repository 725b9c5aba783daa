from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from seewhere import boxes as frames
from seewhere.models import micro_detector_commands as commands
from seewhere.models.micro_detector import (
    DetectorNetwork,
    MicroDetector,
    NetworkSettings,
    evaluate_map,
)
from seewhere.models.micro_detector_data import RECIPES, Scenes, TrainingSettings, batch_of, distort, render_scenes
from seewhere.models.micro_detector_heatmap import boxes_from_map, decode, detection_loss, encode, suppress
from seewhere.models.micro_detector_training import Trainer, rate_at, tune_threshold
from seewhere.models.protocols import Grounder
from seewhere.storage import hash_file

SIDE = 192
TINY = NetworkSettings(input_side=64, embedding=8, widths=(8, 8, 16, 16), fusion=16)
CATEGORIES = [(1, "person"), (17, "cat"), (18, "dog")]


class FixedNetwork(torch.nn.Module):
    """A network that sees the given boxes (input pixels) and classes in whatever it is shown."""

    def __init__(self, boxes: list, classes: list[int], probability: float = 0.9, side: int = SIDE) -> None:
        super().__init__()
        self.settings = NetworkSettings(input_side=side)
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        targets = encode([np.array(boxes, dtype=float).reshape(-1, 4)], [np.array(classes, dtype=int)], 3, side)
        self.heat = torch.logit((targets.heat == 1) * probability, eps=1e-4)
        self.box = targets.box
        self.calls = 0

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += len(pixels)
        return self.heat.repeat(len(pixels), 1, 1, 1), self.box.repeat(len(pixels), 1, 1, 1)


def fixed(boxes: list, classes: list[int], **options: float) -> MicroDetector:
    return MicroDetector(FixedNetwork(boxes, classes), CATEGORIES, "fixed", **options)  # type: ignore[arg-type]


# -- coding ------------------------------------------------------------------------------------------------------


@st.composite
def scattered_boxes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of 8 to 96 px whose centres lie in cells at least three apart, so that no two compete for a cell."""
    places = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=8, unique=True))
    boxes, classes = [], []
    for column, row in places:
        x, y = ((3 * v + 0.02 + 0.96 * draw(st.floats(0, 1))) * 8 for v in (column, row))
        w, h = draw(st.floats(8, 96)), draw(st.floats(8, 96))
        boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        classes.append(draw(st.integers(0, 2)))
    return np.array(boxes).reshape(-1, 4), np.array(classes, dtype=np.int64)


@settings(max_examples=60, deadline=None)
@given(scattered_boxes())
def test_decoding_what_was_encoded_gives_the_boxes_back(case: tuple[np.ndarray, np.ndarray]) -> None:
    boxes, classes = case
    targets = encode([boxes], [classes], 3, SIDE)
    ((found, labels, scores),) = decode((targets.heat == 1).float(), targets.box, limit=20, floor=0.5)
    assert len(found) == len(boxes)
    assert (scores == 1).all()
    for box, label in zip(boxes, classes, strict=True):
        nearest = int(np.argmin(np.abs(found - box).sum(axis=1)))
        np.testing.assert_allclose(found[nearest], box, atol=1e-3)
        assert labels[nearest] == label


def test_peaks_are_found_in_soft_heatmaps_too() -> None:
    boxes, classes = np.array([[20.0, 20, 60, 90], [100, 110, 180, 150]]), np.array([0, 2])
    targets = encode([boxes], [classes], 3, SIDE)
    ((found, labels, _),) = decode(targets.heat * 0.8, targets.box, limit=20, floor=0.7)
    np.testing.assert_allclose(found[np.argsort(labels)], boxes, atol=1e-3)


def test_neighbouring_cells_tell_the_same_box() -> None:
    box = np.array([[50.0, 50, 90, 80]])
    targets = encode([box], [np.array([1])], 3, SIDE)
    around = boxes_from_map(targets.box)[0].permute(1, 2, 0)[targets.weight[0] > 0]
    assert len(around) == 9
    np.testing.assert_allclose(around.numpy(), np.repeat(box, 9, axis=0), atol=1e-3)


def test_of_two_boxes_at_one_centre_the_smaller_is_learned() -> None:
    boxes = np.array([[40.0, 40, 56, 56], [8, 8, 88, 88]])
    for order in ([0, 1], [1, 0]):
        targets = encode([boxes[order]], [np.array([0, 1])[order]], 3, SIDE)
        np.testing.assert_allclose(boxes_from_map(targets.box)[0, :, 6, 6].numpy(), boxes[0], atol=1e-3)
        assert targets.heat[0, :2, 6, 6].tolist() == [1, 1]


def test_an_image_without_objects_has_empty_targets_and_a_finite_loss() -> None:
    targets = encode([np.zeros((0, 4))], [np.zeros(0, dtype=int)], 3, SIDE)
    assert targets.heat.sum() == 0 and targets.weight.sum() == 0
    heat = torch.zeros(1, 3, 24, 24, requires_grad=True)
    loss, _ = detection_loss(heat, torch.zeros(1, 4, 24, 24, requires_grad=True), targets)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(heat.grad).all()


def test_the_loss_falls_towards_the_targets() -> None:
    targets = encode([np.array([[20.0, 20, 60, 90]])], [np.array([1])], 3, SIDE)
    right = torch.logit(targets.heat, eps=1e-3)
    losses = [float(detection_loss(right * share, targets.box * share, targets)[0]) for share in (0.0, 0.5, 1.0)]
    assert losses[0] > losses[1] > losses[2]


def test_bad_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        encode([np.zeros((0, 4))], [np.zeros(0, dtype=int)], 3, 100)
    with pytest.raises(ValueError, match=r"0\.\.2, got 5"):
        encode([np.array([[0.0, 0, 9, 9]])], [np.array([5])], 3, SIDE)


def test_suppression_is_strict_within_a_class_and_light_across() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 13], [0, 0, 10, 13], [0, 0, 10, 10.5], [50, 50, 60, 60]])
    kept = suppress(boxes, np.array([0, 0, 1, 1, 0]), same=0.55, across=0.8)
    assert kept.tolist() == [0, 2, 4]
    assert suppress(np.zeros((0, 4)), np.zeros(0), 0.5, 0.8).tolist() == []


# -- the detector ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 192), (192, 256), (224, 224), (640, 480), (100, 300), (192, 192)])
def test_boxes_come_back_in_the_pixels_of_the_original_image(size: tuple[int, int]) -> None:
    width, height = size
    box = np.array([[0.3 * width, 0.4 * height, 0.6 * width, 0.8 * height]])
    seen = frames.letterbox(size, (SIDE, SIDE)).apply_boxes(box)
    (found,) = fixed(seen.tolist(), [1]).detect([Image.new("RGB", size)])
    np.testing.assert_allclose(found.xyxy, box, atol=0.01)
    assert found.data["label"].tolist() == ["cat"]
    assert found.data["category_id"].tolist() == [17]


def test_boxes_are_clipped_and_those_on_the_margin_dropped() -> None:
    detector = fixed([[-20, 60, 40, 120], [80, 0, 110, 20]], [0, 2])
    (found,) = detector.detect([Image.new("RGB", (256, 192))])  # 24 px of margin above and below
    assert found.data["label"].tolist() == ["person"]
    assert found.xyxy[0, 0] == 0


def test_candidates_are_the_vlms_list_and_the_phrase_only_moves_the_choice() -> None:
    detector = fixed([[10, 50, 40, 80], [60, 60, 100, 100], [120, 90, 180, 150]], [0, 2, 1])
    picture = Image.new("RGB", (256, 192))
    dog, cat, nothing = detector.ground([picture] * 3, ["left dog", "the cat by the dog", "spaceship"])
    assert detector.network.calls == 1
    assert dog.data["label"][dog.metadata["top"]] == "dog"
    assert cat.data["label"][cat.metadata["top"]] == "cat"
    assert nothing.metadata["top"] == 0
    np.testing.assert_array_equal(dog.xyxy, cat.xyxy)
    assert dog.metadata["detector"] == "fixed"
    assert isinstance(detector, Grounder)


def test_scores_descend_and_the_limit_holds() -> None:
    network = FixedNetwork([[20 + 40 * i, 80, 44 + 40 * i, 110] for i in range(4)], [0, 1, 2, 0])
    network.heat = network.heat + torch.linspace(0, 1, 24)
    detector = MicroDetector(network, CATEGORIES, limit=3)  # type: ignore[arg-type]
    (found,) = detector.detect([Image.new("L", (192, 192))])
    assert len(found) == 3
    assert (np.diff(found.confidence) < 0).all()


def test_nothing_found_is_an_empty_set() -> None:
    (found,) = fixed([], []).ground([Image.new("RGB", (256, 192))], ["dog"])
    assert len(found) == 0 and found.metadata["top"] == -1
    assert found.confidence.shape == (0,)
    assert fixed([], []).detect([]) == []


def test_bad_questions_are_refused() -> None:
    picture = Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match="1 images and 2 phrases"):
        fixed([], []).ground([picture], ["a", "b"])
    with pytest.raises(ValueError, match="phrase 1 is empty"):
        fixed([], []).ground([picture, picture], ["dog", "  "])


def test_an_unknown_name_says_how_to_make_a_detector(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="seewhere train detector"):
        MicroDetector.load(tmp_path / "none")


# -- scores ------------------------------------------------------------------------------------------------------


def test_a_perfect_detector_has_full_scores(tmp_path: Path) -> None:
    boxes, classes = [[10.0, 10, 50, 60], [100, 90, 180, 150]], [0, 2]
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "0.png")
    rows = [
        {"id": k + 1, "image_id": 0, "category_id": CATEGORIES[c][0], "iscrowd": 0, "area": (x2 - x1) * (y2 - y1),
         "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for k, ((x1, y1, x2, y2), c) in enumerate(zip(boxes, classes, strict=True))
    ]  # fmt: skip
    images = [{"id": 0, "file_name": "0.png", "width": SIDE, "height": SIDE}]
    truth = {
        "info": {},
        "images": images,
        "annotations": rows,
        "categories": [{"id": i, "name": n} for i, n in CATEGORIES],
    }
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    full = evaluate_map(fixed(boxes, classes), tmp_path / "instances.json", tmp_path)
    assert full.mean_average_precision == pytest.approx(1.0)
    half = evaluate_map(fixed(boxes[:1], classes[:1]), tmp_path / "instances.json", tmp_path)
    assert half.mean_average_precision_50 == pytest.approx(0.5)
    none = evaluate_map(fixed([], []), tmp_path / "instances.json", tmp_path)
    assert none.mean_average_precision == 0 and none.images == 1
    foreign = MicroDetector(FixedNetwork(boxes, classes), [(901, "a"), (902, "b"), (903, "c")])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none of its category ids"):
        evaluate_map(foreign, tmp_path / "instances.json", tmp_path)


def test_the_threshold_is_put_where_it_separates_right_from_wrong() -> None:
    network = FixedNetwork([[20, 80, 60, 120], [120, 80, 160, 120]], [0, 1])
    network.heat[0, 1] = torch.where(network.heat[0, 1] > 0, -0.7, -9.0)  # the cat at a score of 0.33
    detector = MicroDetector(network, CATEGORIES)  # type: ignore[arg-type]
    truth = Scenes(np.zeros((3, SIDE, SIDE, 3), np.uint8), [np.array([[20.0, 80, 60, 120]])] * 3, [np.array([0])] * 3)
    threshold, measured = tune_threshold(detector, truth)
    assert 0.33 < threshold < 0.9
    assert measured == {"precision": 1.0, "recall": 1.0, "f": pytest.approx(1.0)}


# -- training ----------------------------------------------------------------------------------------------------


def drawn_scenes(count: int, side: int) -> Scenes:
    """Squares of three colours on grey: learnable in a few steps."""
    random = np.random.default_rng(0)
    images, boxes, classes = [], [], []
    for _ in range(count):
        picture = Image.new("RGB", (side, side), (120, 120, 120))
        label, (x, y) = int(random.integers(3)), random.integers(4, side - 28, 2).tolist()
        box = [x, y, x + 24, y + 24]
        ImageDraw.Draw(picture).rectangle([*box[:2], box[2] - 1, box[3] - 1], fill=("red", "lime", "blue")[label])
        images.append(np.asarray(picture))
        boxes.append(np.array([box], dtype=float))
        classes.append(np.array([label]))
    return Scenes(np.stack(images), boxes, classes)


def tiny_settings(steps: int) -> TrainingSettings:
    return TrainingSettings(network=TINY, scenes=24, steps=steps, batch_size=8, checkpoint_every=4, zoom=0.1)


def test_training_learns_and_resuming_changes_nothing(tmp_path: Path) -> None:
    scenes, recipe = drawn_scenes(24, 64), tiny_settings(40)
    straight = Trainer(recipe, CATEGORIES, scenes, tmp_path / "straight")
    straight.run()
    assert np.mean(straight.losses[-5:]) < 0.7 * np.mean(straight.losses[:5])
    Trainer(recipe, CATEGORIES, scenes, tmp_path / "parts").run(until=17)
    resumed = Trainer(recipe, CATEGORIES, scenes, tmp_path / "parts")
    resumed.resume()
    assert resumed.step == 17
    resumed.run()
    assert resumed.losses == straight.losses
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
        assert torch.equal(straight.mean[name], resumed.mean[name]), name


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    scenes = drawn_scenes(24, 64)
    Trainer(tiny_settings(4), CATEGORIES, scenes, tmp_path).run(until=1)
    with pytest.raises(ValueError, match="other settings"):
        Trainer(tiny_settings(5), CATEGORIES, scenes, tmp_path).resume()


def test_what_is_written_is_what_was_trained(tmp_path: Path) -> None:
    trainer = Trainer(tiny_settings(2), CATEGORIES, drawn_scenes(24, 64), tmp_path / "run")
    trainer.run()
    trainer.write(tmp_path / "out", {"threshold": 0.0}, "sha256 {sha256}")
    loaded = MicroDetector.load(tmp_path / "out")
    for name, value in trainer.detector().network.state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name]), name
    assert (tmp_path / "out" / "README.md").read_text() == f"sha256 {loaded.weights_hash}"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["network"]["fusion"] = 8
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit config\.json"):
        MicroDetector.load(tmp_path / "out")


@pytest.mark.parametrize("zoom", [0.0, 0.3])
def test_distortions_move_boxes_with_their_pixels(zoom: float) -> None:
    scenes, recipe = drawn_scenes(16, 96), replace(tiny_settings(1), zoom=zoom, colour_jitter=0.0)
    pixels = torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float() / 255
    moved, boxes, classes = distort(pixels, scenes.boxes, scenes.classes, recipe, np.random.default_rng(3))
    checked = 0
    for image, box, label in zip(moved, boxes, classes, strict=True):
        if not len(box):
            continue
        others = [c for c in range(3) if c != int(label[0])]
        seen = (image[int(label[0])] - image[others].max(0).values > 0.5).nonzero()
        edges = [seen[:, 1].min(), seen[:, 0].min(), seen[:, 1].max() + 1, seen[:, 0].max() + 1]
        np.testing.assert_allclose(np.array(edges, dtype=float), box[0], atol=1.01)
        checked += 1
    assert checked >= 12


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    scenes, recipe = drawn_scenes(24, 64), tiny_settings(9)
    assert torch.equal(batch_of(scenes, recipe, 5)[0], batch_of(scenes, recipe, 5)[0])
    assert not torch.equal(batch_of(scenes, recipe, 5)[0], batch_of(scenes, recipe, 6)[0])
    assert not torch.equal(batch_of(scenes, recipe, 5)[0], batch_of(scenes, replace(recipe, seed=1), 5)[0])


def test_the_learning_rate_rises_and_falls_once() -> None:
    recipe = tiny_settings(100)
    rates = np.array([rate_at(step, recipe) for step in range(100)])
    peak = int(rates.argmax())
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()
    assert rates.max() == pytest.approx(recipe.learning_rate)


def test_a_detector_without_colour_cannot_tell_colours_of_one_luminance() -> None:
    blind = DetectorNetwork(replace(TINY, colour=False), 3).eval()
    red, grey = torch.zeros(1, 3, 64, 64), torch.full((1, 3, 64, 64), 0.299)
    red[:, 0] = 1.0
    with torch.inference_mode():
        torch.testing.assert_close(blind(red)[0], blind(grey)[0], atol=1e-4, rtol=0)


def test_scenes_are_rendered_once_and_boxes_fit_the_letterbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path))
    world, patches = (render_scenes(7_000_000, 3, 64, "val", backdrop) for backdrop in ("world", "random"))
    np.testing.assert_array_equal(world.boxes[0], patches.boxes[0])
    assert not np.array_equal(world.images, patches.images)
    again = render_scenes(7_000_000, 3, 64, "val")
    np.testing.assert_array_equal(again.images, world.images)
    for boxes in world.boxes:
        assert (boxes >= 0).all() and (boxes <= 64).all()
    with pytest.raises(ValueError, match="unknown backdrop"):
        render_scenes(0, 1, 64, "val", "sea")


def test_the_training_command_makes_a_whole_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path))
    recipe = replace(RECIPES["micro-b"], network=TINY, scenes=8, steps=2, batch_size=4)
    folder = commands.train(recipe, tmp_path / "out", tmp_path / "run", tuning=4, validation=4)
    card = (folder / "README.md").read_text()
    assert "seewhere train detector --name micro-b --steps 2 --seed 1" in card
    assert hash_file(folder / "model.safetensors") in card
    assert "step 2 loss" in (tmp_path / "run" / "log.txt").read_text()
    assert MicroDetector.load(folder).name == "micro-b"
    before = hash_file(folder / "model.safetensors")
    commands.train(recipe, folder, tmp_path / "run", resume=True, tuning=4, validation=4)
    assert hash_file(folder / "model.safetensors") == before


def test_commands_share_their_groups() -> None:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    commands.command_group(subparsers, "train", "").add_parser("other")
    commands.register(subparsers)
    parsed = parser.parse_args(["train", "detector", "--name", "micro-b", "--steps", "7", "--resume"])
    assert (parsed.name, parsed.steps, parsed.resume, parsed.seed) == ("micro-b", 7, True, None)
    assert parser.parse_args(["evaluate", "detector", "--limit", "9"]).limit == 9
    parser.parse_args(["train", "other"])
