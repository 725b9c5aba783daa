"""The two detectors that ship: their size, their cards, what they find, and that they differ."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from seewhere import boxes as frames
from seewhere.models.micro_detector import NAMES, WEIGHTS, MicroDetector, parameter_count
from seewhere.models.micro_detector_data import RECIPES
from seewhere.storage import hash_file
from seewhere.world.render import render_image
from seewhere.world.scenes import SceneSettings, sample_scene
from seewhere.world.sprites import load_sprites


@pytest.mark.parametrize("name", sorted(NAMES))
def test_shipped_weights_are_small_and_their_card_is_true(name: str) -> None:
    folder = WEIGHTS / NAMES[name]
    detector = MicroDetector.load(name)
    assert parameter_count(detector.network) <= 1_500_000
    assert (folder / "model.safetensors").stat().st_size < 1.1 * parameter_count(detector.network)  # bytes: seven bits
    config, card = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
    assert hash_file(folder / "model.safetensors") in card
    assert f"{config['scores']['mean_average_precision']:.3f}" in card
    assert config["training"]["steps"] == RECIPES[name].steps
    assert config["training"]["scenes"] == RECIPES[name].scenes


@pytest.mark.parametrize(("name", "bar"), [("micro", 0.8), ("micro-b", 0.6)])
def test_shipped_detectors_find_the_objects_of_fresh_scenes(name: str, bar: float) -> None:
    sprites = load_sprites()
    scenes = [sample_scene(9_000_000 + i, sprites, SceneSettings(), "test") for i in range(48)]
    found = MicroDetector.load(name).detect([render_image(scene, sprites) for scene in scenes])
    hits = total = 0
    for scene, candidates in zip(scenes, found, strict=True):
        assert len(candidates) <= 20
        overlap = frames.iou(np.array([o.box for o in scene.objects]), candidates.xyxy)
        same = np.array(
            [[o.category == label for label in candidates.data["label"]] for o in scene.objects], dtype=bool
        )
        hits += int(((overlap > 0.5) & same.reshape(overlap.shape)).any(axis=1).sum())
        total += len(scene.objects)
    assert hits / total > bar


@pytest.mark.parametrize("name", sorted(NAMES))
def test_shipped_detectors_see_nothing_where_there_is_nothing(name: str) -> None:
    pictures = [Image.new("RGB", (256, 192), colour) for colour in ("white", "grey", "skyblue")]
    for candidates in MicroDetector.load(name).ground(pictures, ["dog"] * 3):
        assert len(candidates) == 0 and candidates.metadata["top"] == -1


def test_the_two_shipped_detectors_differ() -> None:
    sprites = load_sprites()
    pictures = [render_image(sample_scene(9_100_000 + i, sprites, SceneSettings(), "test"), sprites) for i in range(8)]
    first, second = (MicroDetector.load(name).detect(pictures) for name in ("micro", "micro-b"))
    assert any(a.data["label"].tolist() != b.data["label"].tolist() for a, b in zip(first, second, strict=True))
