"""The shipped pixel models: they load, read what their card says they read, and are as small as they should be."""

import re

import numpy as np
import pytest
from seewhere.models import micro_vlm_weights
from seewhere.models.registry import MINIGPTS, load_minigpt
from seewhere.pixels import history, pictures, targets
from seewhere.pixels.errors import reconstruction_error
from seewhere.pixels.reader import PixelReader
from seewhere.storage import hash_file

FOLDER = micro_vlm_weights.FOLDER


def test_the_card_tells_which_weights_it_is_about() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert hash_file(FOLDER / micro_vlm_weights.PARTS) in card
    assert all(name in card for name in MINIGPTS)
    size = sum(path.stat().st_size for path in FOLDER.iterdir() if path.suffix != ".md") / 1e6
    assert size < 12 and float(re.findall(r"\| size \| ([\d.]+) MB", card)[0]) == pytest.approx(size, abs=0.1)


def test_only_the_adapted_encoders_are_shared() -> None:
    models, _ = micro_vlm_weights._stored(FOLDER)
    held = models["models"]
    assert set(held) == set(MINIGPTS)
    vision = {name: {k: v for k, v in parts.items() if k.startswith("vision.")} for name, parts in held.items()}
    assert vision["micro-pixels-stage2"] == vision["micro-pixels-stage3"] != vision["micro-pixels-frozen"]
    assert len({micro_vlm_weights.fingerprint(name) for name in MINIGPTS}) == len(MINIGPTS)


def test_an_adapted_encoder_reads_a_held_out_scene_better_than_a_frozen_one() -> None:
    (image, _), *_ = pictures.world_pictures(1, "test", seed=12)
    wanted = targets.target(image)
    cells = np.stack(np.meshgrid(np.arange(1, 64, 4), np.arange(1, 64, 4)), axis=-1).reshape(-1, 2)
    points = (cells + 0.5) / 64 * np.array(image.size)
    truth = wanted[cells[:, 1], cells[:, 0]][None]
    error = {}
    for name in ("micro-pixels-frozen", "micro-pixels-stage3"):
        (found,) = PixelReader(load_minigpt(name), progress=False).read_pixels([image], [points])
        error[name] = reconstruction_error(found[None], truth)
    known = targets.nearest_patch(wanted)[cells[:, 1], cells[:, 0]][None]
    assert error["micro-pixels-stage3"] < 0.75 * error["micro-pixels-frozen"]
    assert error["micro-pixels-stage3"] < reconstruction_error(known, truth)


def test_half_precision_does_not_cost_the_shared_attention() -> None:
    # Adapted models answer sharply, so rounding alone moves their logits by 8 %; that is no other attention.
    model = load_minigpt("micro-pixels-stage2")
    model.language.bfloat16()
    assert PixelReader(model, progress=False).engine.merged


def test_histories_end_with_each_stage() -> None:
    found = history.load_history("micro-pixels")
    stages = list(dict.fromkeys(found.whole_stages()))
    assert stages == ["1", "2", "3"]
    ends = {stage: errors.mean() for stage, errors in zip(found.whole_stages(), found.errors, strict=True)}
    assert ends["2"] < ends["1"]
    assert list(dict.fromkeys(history.load_history("micro-pixels-frozen").whole_stages())) == ["1", "frozen"]
