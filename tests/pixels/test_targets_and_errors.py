"""What reconstructions are compared with, and how far apart they are."""

import numpy as np
import pytest
from PIL import Image
from seewhere.pixels import errors, pictures, targets


def noise(side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_a_target_is_the_mean_of_each_cell() -> None:
    picture = noise(128)
    expected = picture.reshape(64, 2, 64, 2, 3).mean((1, 3))
    found = targets.target(Image.fromarray(picture)).astype(float)
    assert np.abs(found - expected).max() <= 1  # Pillow rounds after each of its two passes
    assert targets.target(Image.new("L", (3, 500), 7)).shape == (64, 64, 3)


def test_the_error_in_both_readings() -> None:
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert errors.reconstruction_error(black, white) == pytest.approx(300)
    assert errors.reconstruction_error(black, white, "mean") == pytest.approx(100)
    half = black.copy()
    half[:32, :, 0] = 255
    assert errors.reconstruction_error(half, black) == pytest.approx(50)
    missing = black.astype(float)
    missing[0, 0, 1] = np.nan
    assert errors.reconstruction_error(missing, black) == pytest.approx(300 / 4096)
    with pytest.raises(ValueError, match="of one shape"):
        errors.reconstruction_error(black[:2], black)


def test_baselines_know_as_much_as_they_say() -> None:
    picture = targets.target(pictures.textures(1, seed=2)[0])
    found = {name: made(picture) for name, made in targets.BASELINES.items()}
    error = {name: errors.reconstruction_error(values, picture) for name, values in found.items()}
    assert len(np.unique(found["constant colour"].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(found["nearest patch"].reshape(8, 8, 8, 8, 3)[0, :, 0], axis=0)) <= 8
    assert error["blur 8x8"] < error["constant colour"] and error["nearest patch"] < error["constant colour"]
    for colour in np.random.default_rng(0).integers(0, 256, (20, 3)):
        other = np.broadcast_to(colour, picture.shape)
        assert errors.reconstruction_error(other, picture) >= error["constant colour"] - 1e-9
    with pytest.raises(ValueError, match="does not split"):
        targets.nearest_patch(picture, 7)


def test_psnr_and_ssim_of_the_same_and_of_another_picture() -> None:
    pytest.importorskip("skimage")
    picture = noise()
    assert errors.scores(picture, picture)["psnr"] == float("inf")
    assert errors.scores(picture, picture)["ssim"] == pytest.approx(1)
    near, far = picture.clip(3, 252) + 3, noise()[::-1]
    assert errors.scores(near, picture)["psnr"] > 30 > errors.scores(far, picture)["psnr"]
    assert errors.scores(near, picture)["ssim"] > errors.scores(far, picture)["ssim"]


def test_what_is_missing_is_never_black() -> None:
    pytest.importorskip("skimage")
    dark = noise() // 8
    black, missing = np.zeros_like(dark), np.full(dark.shape, np.nan)
    assert errors.scores(missing, dark)["psnr"] < 2 < 20 < errors.scores(black, dark)["psnr"]
    part = dark.astype(float)
    part[:8, :, 1] = np.nan  # one channel is enough: the cell is no answer
    darkened = dark.copy()
    darkened[:8] = 0
    for name in ("psnr", "ssim"):
        assert errors.scores(part, dark)[name] < errors.scores(darkened, dark)[name] < errors.scores(dark, dark)[name]
    light = 255 - dark
    assert errors.scores(missing, light)["psnr"] == pytest.approx(errors.scores(missing, dark)["psnr"], abs=0.2)


def test_textures_are_the_same_for_a_seed_and_differ_otherwise() -> None:
    first, again, other = (np.stack([np.asarray(t) for t in pictures.textures(6, seed)]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (6, 128, 128, 3) and (first != other).mean() > 0.8
    assert first.std(axis=(1, 2)).min() > 2


def test_photographs_come_from_the_package() -> None:
    pytest.importorskip("skimage")
    found = pictures.photographs()
    assert {"astronaut", "coffee", "chelsea"} <= set(found) and all(image.mode == "RGB" for image in found.values())


def test_a_game_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(ValueError, match="expected one of CarRacing, SpaceInvaders"):
        pictures.game_frames("Pong", 1)
    for game, needed in (("CarRacing", "Box2D"), ("SpaceInvaders", "ale_py")):
        try:
            __import__(needed)
        except ImportError:
            with pytest.raises(ImportError, match=r"pip install 'gymnasium\[box2d\]' ale-py"):
                pictures.game_frames(game, 1)
        else:
            assert pictures.game_frames(game, 2)[0].mode == "RGB"
