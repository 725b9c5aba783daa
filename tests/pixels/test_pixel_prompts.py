"""The prompts of the pixel tasks, word for word: a changed word fails here before it changes a number somewhere."""

import numpy as np
import pytest
from seewhere.pixels import prompts


def test_questions_are_the_published_ones() -> None:
    assert prompts.with_image(prompts.reconstruct(5, 63)) == ("<Img><ImageHere></Img> [reconstruct] loc: [5,63] rgb:")
    assert prompts.with_image(prompts.segment(" The  Dog", 0, 7)) == (
        "<Img><ImageHere></Img> [segmentation] the dog loc: [0,7] mask:"
    )
    assert prompts.refer("Dog on left") == "[refer] give me the location of dog on left"
    assert prompts.identify((0, 24, 32, 48), (64, 48)) == "[identify] what is this {<0><50><50><100>}"
    assert prompts.caption() == "[caption] briefly describe this image"
    assert prompts.question(" how many dogs? ") == "[vqa] how many dogs?"
    assert prompts.instruction("x") == "[INST] x [/INST]"


def test_answers_and_reading_them_back() -> None:
    assert prompts.rgb_answer((0, 17, 255)) == "[0,17,255]"
    np.testing.assert_array_equal(prompts.parse_rgb("it is [0, 17,255]."), [0, 17, 255])
    assert [slot[9] for slot in prompts.RGB_TEXTS] == ["[9,", "9,", "9]"]
    assert [len(slot) for slot in prompts.RGB_TEXTS] == [256] * 3
    assert prompts.box_answer((16, 12, 64, 48), (64, 48)) == "{<25><25><100><100>}"
    np.testing.assert_allclose(prompts.parse_box("{<25><25><100><100>}", (64, 48)), [16, 12, 64, 48])


@pytest.mark.parametrize("text", ["", "red", "[1,2]", "[1,2,256]", "[-1,2,3]", "[1.5,2,3]", "[1000,2,3]"])
def test_an_unusable_colour_is_missing_not_black(text: str) -> None:
    assert np.isnan(prompts.parse_rgb(text)).all()


@pytest.mark.parametrize("text", ["", "left", "{<1><2><3>}", "{<1><2><3><101>}"])
def test_an_unusable_box_is_missing(text: str) -> None:
    assert np.isnan(prompts.parse_box(text, (64, 48))).all()


def test_what_cannot_be_written_is_refused() -> None:
    for rgb in ((1, 2), (0, 0, 256), (-1, 0, 0)):
        with pytest.raises(ValueError, match="three whole numbers"):
            prompts.rgb_answer(rgb)
    with pytest.raises(ValueError, match="is empty"):
        prompts.segment("  ", 1, 2)
