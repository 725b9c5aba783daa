"""Lessons: lists and answers that are true of their scene."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest
from seewhere.llm_wrapper import prompts
from seewhere.models.candidates import make_candidates
from seewhere.world import lessons
from seewhere.world.language import expressions
from seewhere.world.programs import evaluate
from seewhere.world.scenes import Scene, sample_scene
from seewhere.world.sprites import load_sprites

SPRITES = load_sprites()


def scenes(count: int, fewest: int = 2) -> list[Scene]:
    found, number = [], 0
    while len(found) < count:
        scene = sample_scene(number, SPRITES, split="val")
        number += 1
        if len(scene.objects) >= fewest:
            found.append(scene)
    return found


def test_the_usual_list_is_the_wrappers_word_for_word() -> None:
    items = [("dog", (1, 2, 30, 40)), ("potted plant", (5, 6, 70, 80))]
    boxes = [[float(v) for v in box] for _, box in items]
    candidates = make_candidates(boxes, [label for label, _ in items], None, "any", -1)
    assert lessons.write_list(items, Random(0), usual=1.0) == prompts.context(candidates, (100, 100), "percent")
    assert lessons.ASK.format("dog on left") == prompts.question("dog on left")


def test_answers_of_drills_follow_from_the_list() -> None:
    items = [("dog", (0, 10, 10, 30)), ("cat", (50, 0, 90, 90)), ("dog", (60, 40, 70, 50))]
    found: dict[str, str] = {}
    for seed in range(400):
        for drill in lessons.DRILLS.values():
            question, answer = drill(items, Random(seed))
            assert found.setdefault(question, answer) == answer
    expected = {
        "What is box 1?": "cat",
        "Where is box 0?": "0, 10, 10, 30",
        "Where is the middle of box 2?": "65, 45",
        "Which boxes show a dog?": "0, 2",
        "How many dogs are there?": "2",
        "List the dogs from right to left.": "2, 0",
        "List the dogs from small to large.": "2, 0",
        "Is box 0 to the left of box 1?": "yes",
        "Is box 1 smaller than box 2?": "no",
        "Is box 0 above box 2?": "yes",
        "Which box is farthest to the right?": "1",
        "Which box is smallest?": "2",
    }
    assert {question: found[question] for question in expected} == expected


def test_referring_questions_point_at_the_object_that_the_phrase_denotes() -> None:
    checked = Counter[str]()
    for scene in scenes(30, fewest=4):
        items, order = lessons.shuffled_items(scene, Random(1), 0.1, 0.2)
        assert len(items) == len(order)
        meanings = {
            phrase.text: phrase.target
            for index in range(len(scene.objects))
            for style in lessons.REFERRING_STYLES
            for seed in range(3)
            for phrase in expressions(scene, index, style, Random(seed))
        }
        for asked in lessons.referring_questions(scene, order, Random(2), usual=1.0):
            text = re.fullmatch(re.escape(lessons.ASK).replace(r"\{\}", "(.*)"), asked.question)[1]
            checked[asked.skill] += 1
            if text in meanings:
                assert order[int(asked.answer)] == meanings[text]
    assert set(checked) == set(lessons.REFERRING_SKILLS)


def test_skills_that_are_wanted_come_first() -> None:
    first = Counter[str]()
    for scene in scenes(40, fewest=5):
        _, order = lessons.shuffled_items(scene, Random(scene.seed))
        weights = {skill: 1e-6 for skill in lessons.REFERRING_SKILLS} | {"size": 1.0}
        asked = lessons.referring_questions(scene, order, Random(scene.seed), weights)
        if any(question.skill == "size" for question in asked):
            first[asked[0].skill] += 1
    assert first["size"] == first.total() > 10


def test_a_smaller_scene_keeps_twins_and_its_sentences_are_true() -> None:
    for scene in scenes(30, fewest=6):
        small = lessons.smaller_scene(scene, 4, Random(0))
        assert [item.index for item in small.objects] == list(range(4))
        assert {item.box for item in small.objects} <= {item.box for item in scene.objects}
        if max(Counter(item.category for item in scene.objects).values()) > 2:
            assert max(Counter(item.category for item in small.objects).values()) > 1
        for phrase in expressions(small, 0, "relational", Random(0)):
            assert evaluate(phrase.program, small) == {0}


def test_missed_and_doubled_boxes_stay_away_from_the_answers() -> None:
    scene = scenes(1, fewest=8)[0]
    items, order = lessons.shuffled_items(scene, Random(3), 0.0, 1.0)
    assert len(items) == 2 * len(scene.objects)
    assert order.count(-1) == len(scene.objects)
    assert sorted(index for index in order if index >= 0) == list(range(len(scene.objects)))
    _, fewer = lessons.shuffled_items(scene, Random(3), 0.5, 0.0)
    assert 2 <= len(fewer) < len(scene.objects)


def test_a_lesson_is_drawn_by_its_random_alone_and_needs_two_objects() -> None:
    scene = scenes(1, fewest=5)[0]
    assert lessons.make_lesson(scene, Random(5)) == lessons.make_lesson(scene, Random(5))
    assert lessons.make_lesson(scene, Random(5)) != lessons.make_lesson(scene, Random(6))
    alone = lessons.smaller_scene(scene, 1, Random(0))
    with pytest.raises(ValueError, match="at least 2"):
        lessons.make_lesson(alone, Random(0))
