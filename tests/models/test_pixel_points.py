"""Pictures of every kind from a file, and the way between cells of the grid and pixels of a picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from seewhere.models.pixel_points import cells_of, cells_within, centres_of, grid_points, read_picture, spread
from seewhere.records import DataError


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK"])
def test_files_of_every_mode_are_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (7, 5), (200, 10, 10)).convert(mode).save(path)
    found = read_picture(path)
    assert (found.mode, found.size) == ("RGB", (7, 5))


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_picture(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").size == (4, 8)


@pytest.mark.parametrize("size", [(1, 1), (8000, 6000)])
def test_the_smallest_and_a_huge_picture(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("L", size, 77).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png")
    assert found.size == size and found.getpixel((0, 0)) == (77, 77, 77)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    Image.new("RGB", (60, 60), "red").save(tmp_path / "c.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:60])
    for name in ("b.png", "c.png"):
        with pytest.raises(DataError, match=r"cannot be read as a picture"):
            read_picture(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_picture(tmp_path)


def test_cells_of_a_box_are_those_whose_centres_lie_in_it() -> None:
    size, grid = (100, 50), 10
    points = grid_points(size, grid)
    box = (12.0, 7.4, 47.0, 33.0)
    inside = ((points >= box[:2]) & (points <= box[2:])).all(axis=1)
    assert cells_within(box, size, grid).tolist() == cells_of(points[inside], size, grid).tolist()
    assert len(cells_within((0, 0, *size), size)) == 64 * 64
    assert cells_within((50, 25, 50.1, 25.1), size, grid).tolist() == [[5, 5]], "a box too small for a centre"
    assert cells_within((-20, -20, 6, 6), size, grid).tolist() == [[0, 0]]
    assert cells_within((99.9, 49.9, 300, 300), size, grid).tolist() == [[9, 9]]


@pytest.mark.parametrize("box", [(np.nan, 0, 1, 1), (200, 0, 210, 10), (-9, -9, -1, -1)])
def test_boxes_without_cells(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"finite|outside"):
        cells_within(box, (100, 50))


def test_centres_are_in_their_cells_and_spreading_is_nearest() -> None:
    cells = np.array([[0, 0], [63, 63], [5, 40]])
    for size in ((300, 200), (1, 1), (30, 31)):
        assert cells_of(centres_of(cells, size), size).tolist() == cells.tolist()
    grid = np.arange(16).reshape(4, 4)
    assert (spread(grid, (8, 4))[:, ::2] == grid).all() and spread(grid, (8, 4)).shape == (4, 8)
    assert spread(grid, (1, 1)).tolist() == [[10]]
    assert spread(np.zeros((4, 4, 3)), (5, 6)).shape == (6, 5, 3)
