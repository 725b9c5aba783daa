"""What a reconstruction is compared with: the picture on its grid of cells, and what needs no model to make."""

from __future__ import annotations

import numpy as np
from PIL import Image

from seewhere.models.pixel_points import as_rgb

GRID = 64


def target(image: Image.Image, grid: int = GRID) -> np.ndarray:
    """Mean colour of every cell of a picture of any size and mode, (grid, grid, 3) uint8.

    The paper's target is the picture down-sampled to 64 x 64 (section 4.1); the mean over the cell's area is the
    down-sampling that favours no pixel of it.
    """
    return np.asarray(as_rgb(image).resize((grid, grid), Image.Resampling.BOX))


def constant(wanted: np.ndarray) -> np.ndarray:
    """The single colour with the least absolute error (each channel's median) as a picture like `wanted`."""
    colour = np.median(wanted.reshape(-1, 3), axis=0).round().astype(np.uint8)
    return np.broadcast_to(colour, wanted.shape).copy()


def nearest_patch(wanted: np.ndarray, side: int = 8) -> np.ndarray:
    """Every cell in the mean colour of its patch, of `side` x `side` patches: what one colour a token can tell.

    Raises:
        ValueError: the grid does not split into `side` patches a side.
    """
    if wanted.shape[0] % side or wanted.shape[1] % side:
        raise ValueError(f"a grid of {wanted.shape[:2]} does not split into {side} x {side} patches")
    return _through(wanted, side, Image.Resampling.NEAREST)


def blur(wanted: np.ndarray, side: int = 8) -> np.ndarray:
    """The picture down-sampled to `side` x `side` and smoothly up again (bicubic)."""
    return _through(wanted, side, Image.Resampling.BICUBIC)


def _through(wanted: np.ndarray, side: int, up: Image.Resampling) -> np.ndarray:
    small = Image.fromarray(wanted.astype(np.uint8)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize((wanted.shape[1], wanted.shape[0]), up))


BASELINES = {"constant colour": constant, "blur 8x8": blur, "nearest patch": nearest_patch}
"""Reconstructions that know the target: what an error has to be compared with."""
