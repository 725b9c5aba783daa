"""Points of a picture and cells of the grid on which its colours are asked for; pictures of any kind as RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from seewhere.records import DataError


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


def read_picture(path: str | Path) -> Image.Image:
    """Read any picture file, upright as its camera says, in RGB (see `as_rgb`).

    Raises:
        DataError: no such file, not a picture, cut short, or so large that it is taken for an attack.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise DataError(f"{place}: no such file; expected the path of a picture.")
    try:
        with Image.open(place) as image:
            image.load()
            return as_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{place}: cannot be read as a picture ({error}).") from error


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


def cells_within(box: tuple[float, float, float, float], size: tuple[int, int], grid: int = 64) -> np.ndarray:
    """Cells (N, 2) int64, row by row, whose centres lie in a box (pixels, xyxy) of a picture of `size`; at least one.

    Raises:
        ValueError: a box that is not finite, or lies wholly outside of the picture.
    """
    corners = np.asarray(box, dtype=np.float64)
    if corners.shape != (4,) or not np.isfinite(corners).all():
        raise ValueError(f"expected a box of four finite numbers, got {box}")
    if (corners[2:] < 0).any() or (corners[:2] > np.array(size)).any():
        raise ValueError(f"the box {corners.tolist()} lies outside of the picture of {size[0]} x {size[1]} pixels")
    share = corners.clip(0, np.array([*size, *size])) / np.array([*size, *size]) * grid
    first = np.minimum(np.ceil(share[:2] - 0.5), grid - 1).astype(np.int64)
    last = np.maximum(np.minimum(np.floor(share[2:] - 0.5), grid - 1), first).astype(np.int64)
    x, y = np.meshgrid(np.arange(first[0], last[0] + 1), np.arange(first[1], last[1] + 1))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def centres_of(cells: np.ndarray, size: tuple[int, int], grid: int = 64) -> np.ndarray:
    """Centres (N, 2), x and y in pixels of a picture of `size`, of cells (N, 2)."""
    return (np.asarray(cells, dtype=np.float64).reshape(-1, 2) + 0.5) / grid * np.array(size)


def spread(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values of all cells (rows, columns, ...) as those of a picture of `size` (height, width, ...), nearest."""
    (rows, columns), (width, height) = cells.shape[:2], size
    y = np.minimum(((np.arange(height) + 0.5) / height * rows).astype(np.int64), rows - 1)
    x = np.minimum(((np.arange(width) + 0.5) / width * columns).astype(np.int64), columns - 1)
    return cells[y[:, None], x[None, :]]
