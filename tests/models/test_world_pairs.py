"""What the micro vision models are trained on: true sentences that tell no place, and false ones like them."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seewhere import boxes as frames
from seewhere.models import micro_text, world_pairs
from seewhere.models.world_questions import question
from seewhere.world.language import PLACE_WORDS
from seewhere.world.render import render_image
from seewhere.world.scenes import Scene, sample_scene
from seewhere.world.sprites import load_sprites

SCENES = [sample_scene(n, load_sprites(), split="val") for n in range(60)]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text)


def test_cached_scenes_come_back_as_they_were(home: Path) -> None:
    made = world_pairs.load_pairs(3, 4, 64, "val", progress=False)
    again = world_pairs.load_pairs(3, 4, 64, "val", progress=False)
    assert made.scenes == again.scenes == SCENES[3:7]
    np.testing.assert_array_equal(made.images, again.images)
    picture = render_image(SCENES[4], load_sprites())
    expected = np.asarray(frames.squash(picture.size, (64, 64)).apply_image(picture))
    np.testing.assert_array_equal(made.images[1], expected)


def test_mirrored_pixels_are_the_mirrored_picture() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    pixels = world_pairs.pixels_of(images, np.array([False, True]))
    np.testing.assert_allclose(pixels[0].transpose(1, 2, 0), images[0] / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(pixels[1].transpose(1, 2, 0), images[1, :, ::-1] / 127.5 - 1, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(SCENES), st.integers(0, 10_000))
def test_a_twisted_sentence_differs_in_one_thing_and_tells_no_place(scene: Scene, seed: int) -> None:
    made = world_pairs.twist(scene, Random(seed))
    assert made.true != made.false
    assert not PLACE_WORDS & {*words(made.true), *words(made.false)}
    if made.kind in ("colour", "background"):
        gone = set(words(made.true)) - set(words(made.false))
        assert len(gone) <= 1
    if made.kind == "category":
        present = {o.category for o in scene.objects}
        new = [c.name for c in load_sprites().coco if c.name in made.false and c.name not in made.true]
        # A name inside a longer one (dog in hot dog) is not named itself.
        assert not present & {name for name in new if not any(name != other and name in other for other in new)}


@pytest.mark.parametrize("kind", world_pairs.TWISTS)
def test_every_twist_is_false_of_its_scene(kind: str) -> None:
    found = 0
    for number, scene in enumerate(SCENES):
        for seed in range(12):
            made = world_pairs.twist(scene, Random(f"{number} {seed}"))
            if made.kind != kind:
                continue
            found += 1
            claims = re.findall(r"\b(red|blue|green|yellow|purple) (\w+)", made.false)
            if kind == "background":
                assert f"on a {scene.background} background" not in made.false
            elif kind == "colour":
                true = {f"{o.tint} {o.category}" for o in scene.objects if o.tint}
                assert any(not any(t.startswith(f"{c} {n}") for t in true) for c, n in claims)
            elif kind == "number":
                assert sorted(words(made.true)) != sorted(words(made.false))
    assert found > 5


def test_full_captions_tell_scenes_apart() -> None:
    captions = [world_pairs.full_caption(scene, Random(0)) for scene in SCENES]
    assert len(set(captions)) == len(captions)


def test_a_step_has_its_rows_and_an_epoch_has_every_row_once() -> None:
    rows = [world_pairs.rows_of_step(10, 4, seed=1, step=s) for s in range(5)]
    assert sorted(np.concatenate(rows)[:10].tolist()) == list(range(10))
    np.testing.assert_array_equal(rows[2], world_pairs.rows_of_step(10, 4, seed=1, step=2))
    assert len(rows[2]) == 4


def test_questions_have_true_answers_and_ask_for_no_place() -> None:
    asked = 0
    for number, scene in enumerate(SCENES):
        for seed in range(10):
            text, answer = question(scene, Random(f"{number} {seed}"))
            assert not PLACE_WORDS & set(words(text))
            if text.startswith("is there"):
                name = re.sub(r"^is there an? (.*) in the picture\?$", r"\1", text)
                assert answer == ("yes" if name in {o.category for o in scene.objects} else "no")
                asked += 1
            elif text.startswith("what colour"):
                name = re.sub(r"^what colour is the (.*)\?$", r"\1", text)
                assert [o.tint for o in scene.objects if o.category == name] == [answer]
                asked += 1
            elif text == "what is the background?":
                assert answer == scene.background
    assert asked > 50


def test_the_tokenizer_knows_words_of_place_and_spells_the_rest() -> None:
    tokenizer = micro_text.world_tokenizer()
    assert tokenizer.pad_token_id == micro_text.PAD_ID
    assert tokenizer.convert_tokens_to_ids([micro_text.CLS, micro_text.SEP, micro_text.DEC]) == [
        micro_text.CLS_ID,
        micro_text.SEP_ID,
        micro_text.DEC_ID,
    ]
    for word in (*micro_text.RELATIONS, "dogs", "toothbrush", "meadow"):
        if "-" not in word:
            assert len(tokenizer.encode(word)) == 3, word
    spelled = tokenizer.encode("zqxjkvbwy 0123456789 mnoprstuacdefghil")
    assert tokenizer.unk_token_id not in spelled


def test_a_cut_text_keeps_its_end() -> None:
    ids, mask = micro_text.read_texts(micro_text.world_tokenizer(), ["a dog", "dog " * 40], 10)
    assert ids.shape == mask.shape == (2, 10)
    assert ids[1, -1] == micro_text.SEP_ID and mask[0].sum() == 4
    assert torch.equal(ids[0, 4:], torch.zeros(6, dtype=torch.long))
