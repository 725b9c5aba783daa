"""How far a reconstruction is from its target: the paper's error in both readings, PSNR and SSIM."""

from __future__ import annotations

from typing import Literal

import numpy as np


def reconstruction_error(predicted: np.ndarray, wanted: np.ndarray, channels: Literal["sum", "mean"] = "sum") -> float:
    """Return the reconstruction error RE of the paper (section 4.1), in per cent.

    The paper's formula leaves open what becomes of the three channels. Its numbers only make sense with their *sum*:
    0..300. The *mean* is a third of it: 0..100.

    Args:
        predicted: (H, W, 3), 0..255; cells with a missing channel count as wrong by the whole range in all three.
        wanted: (H, W, 3), 0..255.
        channels: which reading.

    Raises:
        ValueError: shapes that differ.
    """
    if predicted.shape != wanted.shape or predicted.ndim != 3 or predicted.shape[2] != 3:
        raise ValueError(f"expected two pictures (H, W, 3) of one shape, got {predicted.shape} and {wanted.shape}")
    apart = np.abs(predicted.astype(np.float64) - wanted.astype(np.float64)) / 255
    apart[np.isnan(apart).any(axis=2)] = 1.0
    total = 100 * apart.sum() / (wanted.shape[0] * wanted.shape[1])
    return float(total if channels == "sum" else total / 3)


def scores(predicted: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Return re, re_mean, psnr (dB) and ssim (scikit-image, windows of 7) of a picture (H, W, 3), 0..255.

    A cell with a missing channel is as far from the truth as a cell can be, channel by channel, to PSNR and SSIM too:
    black would be half right where the picture is dark. A perfect picture has an infinite PSNR.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # slow to import

    lost = np.isnan(predicted.astype(np.float64)).any(axis=2, keepdims=True)
    whole = np.where(lost, np.where(wanted < 128, 255.0, 0.0), predicted)
    exact = bool((whole == wanted).all())
    return {
        "re": reconstruction_error(predicted, wanted),
        "re_mean": reconstruction_error(predicted, wanted, "mean"),
        "psnr": float("inf")
        if exact
        else float(peak_signal_noise_ratio(wanted.astype(np.float64), whole, data_range=255)),
        "ssim": float(structural_similarity(wanted.astype(np.float64), whole, channel_axis=2, data_range=255)),
    }
