"""Pictures on disk: whole ones come back as RGB, broken ones name their file."""

import dataclasses

import pytest
from PIL import Image
from seewhere.records import DataError, Expression, ImageRecord, Region, open_image


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.effect_noise((64, 48), 50).convert("RGB").save(path)
    return path


def test_an_image_opens_as_rgb(photo):
    record = ImageRecord(7, photo, 64, 48)
    assert record.size == (64, 48)
    assert record.open().mode == "RGB" and record.open().size == (64, 48)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_other_modes_are_converted(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode in ("L", "CMYK") else "image.png")
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    image = open_image(path)
    assert image.mode == "RGB" and image.getpixel((4, 4)) == (255, 255, 255)


def test_a_truncated_jpeg_names_its_file(photo):
    photo.write_bytes(photo.read_bytes()[:600])
    with pytest.raises(DataError, match=r"photo\.jpg: cannot be read as an image.*Fetch this file again"):
        ImageRecord(7, photo, 64, 48).open()


def test_a_file_that_is_no_image_names_itself(tmp_path):
    path = tmp_path / "page.jpg"
    path.write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"page\.jpg: cannot be read as an image"):
        open_image(path)


def test_a_missing_image_names_itself(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg: no such image"):
        ImageRecord(1, tmp_path / "gone.jpg", 4, 4).open()


def test_an_image_of_another_size_is_refused(photo):
    with pytest.raises(
        DataError, match=r"photo\.jpg: the annotations are for an image of 48 x 64, the file holds 64 x 48"
    ):
        ImageRecord(7, photo, 48, 64).open()


def test_records_do_not_change(photo):
    record = ImageRecord(7, photo, 64, 48)
    region = Region(1, 7, (1.0, 2.0, 3.0, 4.0), "cat", 17)
    expression = Expression(3, record, region, "The Cat ", "val")
    assert expression.meta == {} and expression.text == "The Cat " and region.mask is None and not region.is_crowd
    with pytest.raises(dataclasses.FrozenInstanceError):
        region.label = "dog"
    assert Expression(4, record, region, "x", "val").meta is not expression.meta
