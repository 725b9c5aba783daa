"""The world's language: every emitted phrase, run as a program on its scene, denotes exactly its target."""

from __future__ import annotations

import json
from random import Random

import pytest
from seewhere.world.language import PLACE_WORDS, STYLES, captions, expressions
from seewhere.world.programs import evaluate
from seewhere.world.scenes import Scene, sample_scene
from seewhere.world.sprites import load_sprites


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    sprites = load_sprites()
    return [sample_scene(number, sprites, split="val") for number in range(60)]


def phrases(scene: Scene, style: str):
    random = Random(scene.seed)
    return [p for i in range(len(scene.objects)) for p in expressions(scene, i, style, random)]


@pytest.mark.parametrize("style", STYLES)
def test_every_expression_means_exactly_its_target(scenes: list[Scene], style: str) -> None:
    found = 0
    for scene in scenes:
        for phrase in phrases(scene, style):
            program = json.loads(json.dumps(phrase.program))
            assert evaluate(program, scene) == {phrase.target}, phrase
            found += 1
    assert found > 60


def test_plus_style_and_captions_never_tell_place(scenes: list[Scene]) -> None:
    for scene in scenes:
        texts = [p.text for p in phrases(scene, "plus")] + captions(scene, Random(0))
        for text in texts:
            assert not PLACE_WORDS & set(text.replace(",", " ").split()), text


def test_long_expressions_are_long_and_the_same_text_never_names_two_objects(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert all(len(p.text.split()) >= 30 for p in phrases(scene, "long"))
        for style in STYLES:
            by_text: dict[str, set[int]] = {}
            for phrase in phrases(scene, style):
                by_text.setdefault(phrase.text, set()).add(phrase.target)
            assert all(len(targets) == 1 for targets in by_text.values())


def test_same_random_state_gives_the_same_phrases(scenes: list[Scene]) -> None:
    assert phrases(scenes[0], "relational") == phrases(scenes[0], "relational")


def test_unknown_words_are_refused(scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match="unknown style"):
        expressions(scenes[0], 0, "baroque", Random(0))
    with pytest.raises(ValueError, match="unknown program head"):
        evaluate(("colour", "red"), scenes[0])
    with pytest.raises(ValueError, match="unknown axis"):
        evaluate(("rank", "inside", 1, ("category", scenes[0].objects[0].category)), scenes[0])
