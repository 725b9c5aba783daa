"""Candidates and examples made from scenes: right labels, right answers, the same again for the same seed."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from seewhere import boxes
from seewhere.llm_wrapper import prompts
from seewhere.llm_wrapper.rehearsal import (
    detector_lists,
    imperfect_candidates,
    order_drill,
    rehearse,
    two_detectors,
)
from seewhere.models.candidates import make_candidates
from seewhere.models.registry import load_grounder
from seewhere.world.programs import mentions
from seewhere.world.scenes import sample_scene
from seewhere.world.sprites import SpriteSet, load_sprites


@pytest.fixture(scope="module")
def sprites() -> SpriteSet:
    return load_sprites()


def test_every_kept_object_has_a_candidate_that_is_nearly_its_box(sprites: SpriteSet) -> None:
    kept = total = 0
    for number in range(60):
        scene = sample_scene(number, sprites, split="val")
        candidates, positions = imperfect_candidates(scene, Random(number))
        total += len(scene.objects)
        kept += len(positions)
        for index, place in positions.items():
            item = scene.objects[index]
            assert candidates.data["label"][place] == item.category
            assert boxes.iou(candidates.xyxy[place : place + 1], np.array([item.box]))[0, 0] > 0.6
    assert 0.9 < kept / total < 1


def test_answers_point_at_the_right_bullet_and_phrases_need_nothing_unseen(sprites: SpriteSet) -> None:
    lists = list(rehearse(sprites, 12, seed=1))
    assert len(lists) == 12
    for examples in lists:
        contexts = {e.prompt.rsplit("\n", 1)[0] for e in examples}
        assert len(contexts) == 1, "the questions of a scene share one list"
        for example in examples:
            bullets = [line for line in example.prompt.splitlines() if line.startswith("- ")]
            assert bullets[int(example.answer)].startswith(f"- {example.answer}: ")
    assert lists == list(rehearse(sprites, 12, seed=1))
    assert lists != list(rehearse(sprites, 12, seed=2))


def test_needs_looks_inside_programs() -> None:
    inner = ("tint", "red", ("category", "dog"))
    assert mentions(("and", ("rank", "left", 1, inner), ("category", "dog")), ["tint"])
    assert not mentions(("rank", "left", 1, ("category", "tint")), ["hidden"])


def test_two_detectors_list_names_both_and_points_at_the_nearest_box(sprites: SpriteSet) -> None:
    scene = sample_scene(5, sprites, split="val")
    joined, positions = two_detectors(scene, Random(0))
    assert len(set(joined.data["source"])) == 2 and len(joined) > len(scene.objects)
    truth = np.array([item.box for item in scene.objects])
    for index, place in positions.items():
        overlaps = boxes.iou(joined.xyxy, truth[index : index + 1])[:, 0]
        assert overlaps[place] == overlaps.max() > 0.5


def test_lists_grow_and_two_detectors_come_only_to_grown_ones(sprites: SpriteSet) -> None:
    lists = list(rehearse(sprites, 40, two_sources=0.5, growing=True))
    lengths = [prompts.count_candidates(found[0].prompt) for found in lists]
    double = ["two detectors" in found[0].prompt for found in lists]
    assert max(lengths[:4]) <= 6 and max(lengths[10:]) > 8, "four objects may be doubled, not more"
    assert not any(double[:10]) and any(double[10:])


def test_a_detectors_own_boxes_become_examples(sprites: SpriteSet) -> None:
    lists = list(rehearse(sprites, 3, lists=detector_lists(load_grounder("micro"), sprites)))
    for found in lists:
        assert len({e.prompt.rsplit("\n", 1)[0] for e in found}) == 1
        assert all(int(e.answer) < prompts.count_candidates(e.prompt) for e in found)


def test_counting_candidates_needs_a_prompt_of_this_package() -> None:
    with pytest.raises(ValueError, match="The image contains N boxes"):
        prompts.count_candidates("hello")


def test_drills_put_boxes_in_the_order_they_ask_for() -> None:
    found = make_candidates([[50, 0, 60, 90], [0, 50, 9, 60], [20, 5, 30, 15]], ["dog", "cat", "dog"], None, "d", -1)
    seen = {}
    for seed in range(200):
        drill = order_drill(found, (100, 100), Random(seed), "percent")
        seen[drill.prompt.rsplit("\n", 1)[1].split(". ")[0]] = drill.answer
    assert seen["List all boxes from left to right"] == "1,2,0"
    assert seen["List all boxes from large to small"] == "0,2,1"
    assert seen['List the boxes labelled "dog" from top to bottom'] == "2,0"
    assert not any("cat" in text for text in seen), "one box has no order"


def test_drills_are_many_at_first_and_gone_at_the_end(sprites: SpriteSet) -> None:
    lists = list(rehearse(sprites, 20, drilling=True))
    drills = [sum(e.meta["style"] == "drill" for e in found) for found in lists]
    assert drills == [3] * 12 + [1] * 5 + [0] * 3
