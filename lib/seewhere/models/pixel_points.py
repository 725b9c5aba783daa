"""Points of a picture and cells of the grid on which its colours are asked for; pictures of any kind as RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image


def as_rgb(image: Image.Image) -> Image.Image:
    """Any picture in RGB: 16-bit values are scaled to 8, transparent parts lie on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F" and values.size and values.max() <= 1:
            values = values * 255
        elif image.mode.startswith("I;16") or (values.size and values.max() > 255):
            values = values / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def grid_points(size: tuple[int, int], grid: int = 64) -> np.ndarray:
    """Centres of all cells of a picture of `size` (width, height), row by row: (grid * grid, 2) x, y in pixels."""
    width, height = size
    centres = (np.arange(grid) + 0.5) / grid
    x, y = np.meshgrid(centres * width, centres * height)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def cells_of(points: np.ndarray, size: tuple[int, int], grid: int = 64) -> np.ndarray:
    """Cells (N, 2) int64, column and row, in which points (N, 2) lie; x, y in pixels of a picture of `size`.

    Raises:
        ValueError: points of another shape, not finite, or outside of the picture.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"expected points (N, 2) as x, y in pixels, got the shape {points.shape}")
    inside = np.isfinite(points).all(1) & (points >= 0).all(1) & (points <= np.array(size)).all(1)
    if not inside.all():
        first = int(np.flatnonzero(~inside)[0])
        raise ValueError(
            f"{int((~inside).sum())} of {len(points)} points lie outside of the picture of {size[0]} x {size[1]} "
            f"pixels (first: number {first}, {points[first].tolist()}). Drop or clip them."
        )
    return np.minimum((points / np.array(size) * grid).astype(np.int64), grid - 1)
