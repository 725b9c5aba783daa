"""Statements: true means true of the scene, and the text alone tells nothing."""

import json
from collections import Counter, defaultdict

import pytest
from seewhere import storage
from seewhere.datasets import load_vsr, vsr
from seewhere.world import export, statements_export
from seewhere.world.headings import heading_of
from seewhere.world.relations import MEANING, RELATIONS
from seewhere.world.scenes import Scene, SceneObject, sample_scene, scene_seed
from seewhere.world.sprites import load_sprites
from seewhere.world.statements import AIM, balanced, candidates, holds, sentence

SPRITES = load_sprites()


def thing(index, box, category="dog", depth=0, sprite="1f415", mirrored=False, tint=None):
    return SceneObject(
        index,
        category,
        index,
        tuple(map(float, box)),
        1,
        tint,
        mirrored,
        1.0,
        depth,
        1.0,
        tuple(map(float, box)),
        sprite,
    )


def scene(*things):
    return Scene(1, 200, 100, "plain", things, 50.0)


def says(relation, a, b):
    return MEANING[relation](a, b, scene(a, b))


FAR_LEFT, LEFT, RIGHT = (0, 40, 20, 60), (60, 40, 80, 60), (85, 40, 105, 60)
HIGH, LOW, INNER = (90, 5, 110, 25), (90, 75, 110, 95), (63, 43, 77, 57)


@pytest.mark.parametrize(
    ("relation", "a", "b", "expected"),
    [
        ("left of", LEFT, RIGHT, True),
        ("right of", LEFT, RIGHT, False),
        ("left of", LEFT, (62, 10, 82, 30), None),
        ("above", HIGH, LOW, True),
        ("below", HIGH, LOW, False),
        ("near", LEFT, RIGHT, True),
        ("near", FAR_LEFT, LEFT, None),
        ("near", FAR_LEFT, RIGHT, False),
        ("far from", LEFT, RIGHT, False),
        ("far away from", FAR_LEFT, (150, 40, 170, 60), True),
        ("touching", LEFT, INNER, True),
        ("touching", FAR_LEFT, LEFT, False),
        ("detached from", FAR_LEFT, LEFT, True),
        ("within", INNER, LEFT, True),
        ("within", LEFT, RIGHT, False),
        ("contains", LEFT, INNER, True),
        ("contains", INNER, LEFT, False),
        ("beside", LEFT, RIGHT, True),
        ("beside", HIGH, LOW, False),
        ("alongside", FAR_LEFT, RIGHT, False),
        ("at the left side of", LEFT, RIGHT, True),
        ("at the right side of", LEFT, RIGHT, False),
        ("at the left side of", FAR_LEFT, RIGHT, None),
        ("at the right side of", FAR_LEFT, RIGHT, False),
        ("across from", FAR_LEFT, (150, 40, 170, 60), True),
        ("across from", FAR_LEFT, LEFT, False),
        ("down from", LOW, LEFT, True),
        ("down from", HIGH, LOW, None),
    ],
)
def test_relations_of_boxes(relation, a, b, expected):
    assert says(relation, thing(0, a), thing(1, b)) is expected


def test_relations_of_depth():
    front, back = thing(0, LEFT, depth=3), thing(1, (65, 30, 85, 52), depth=1)
    assert says("in front of", front, back) and says("behind", back, front) and not says("behind", front, back)
    assert says("beyond", back, front) and says("beyond", front, back) is False
    assert says("in front of", thing(0, FAR_LEFT, depth=3), back) is None


def test_relations_of_headings():
    dog, mirrored, car = thing(0, LEFT), thing(0, LEFT, mirrored=True), thing(1, (100, 40, 120, 60), "car", 0, "1f697")
    assert heading_of(dog) == -1 and heading_of(mirrored) == 1
    assert heading_of(thing(0, LEFT, sprite="1f436")) is None  # a face, seen from the front
    assert says("facing", mirrored, car) and says("facing", dog, car) is False and says("facing away from", dog, car)
    assert says("facing", car, dog) is None  # cars do not face, they move
    assert says("toward", car, dog) and says("away from", car, dog) is False
    assert says("opposite to", mirrored, car) and says("opposite to", dog, car) is None
    assert says("opposite to", dog, thing(1, (100, 40, 120, 60), mirrored=True)) is False
    assert says("facing", mirrored, thing(1, (100, 90, 120, 100))) is None  # far below its line of sight


def test_relations_are_vsrs_and_in_its_categories():
    assert RELATIONS.keys() == vsr.RELATIONS.keys()
    for category, group in RELATIONS.items():
        assert group.keys() <= vsr.RELATIONS[category]
    assert sentence("left of", "cat", "red car") == "The cat is left of the red car."
    assert sentence("contains", "train", "laptop") == "The train contains the laptop."


def test_opposite_words_contradict_each_other():
    pairs = [("left of", "right of"), ("above", "below"), ("in front of", "behind"), ("touching", "detached from"),
             ("facing", "facing away from"), ("toward", "away from")]  # fmt: skip
    for number in range(30):
        found = sample_scene(number, SPRITES, split="val")
        for a in found.objects:
            for b in found.objects:
                for one, other in pairs if a != b else ():
                    first, second = MEANING[one](a, b, found), MEANING[other](a, b, found)
                    assert (first is None) == (second is None) and (first is None or first != second)


def test_a_program_needs_one_subject_and_one_object():
    found = scene(thing(0, LEFT, "dog"), thing(1, RIGHT, "cat"), thing(2, HIGH, "dog"))
    cat, dog = ("category", "cat"), ("category", "dog")
    assert holds(("holds", "left of", cat, dog), found) is None
    assert holds(("holds", "left of", cat, cat), found) is None
    with pytest.raises(ValueError, match="expected \\('holds'"):
        holds(("holds", "astride", cat, dog), found)


def test_what_scenes_offer_is_settled_and_named_without_doubt():
    for number in range(40):
        found = sample_scene(number, SPRITES, split="val")
        offered = candidates(found)
        assert offered == candidates(found)
        assert len({s.text for s in offered}) == len(offered)
        for s in offered:
            assert holds(s.program, found) is s.label


@pytest.fixture(scope="module")
def offered():
    return [s for number in range(300) for s in candidates(sample_scene(number, SPRITES, split="val"))]


@pytest.fixture(scope="module")
def chosen(offered):
    return balanced(offered, 300)


def test_every_relation_is_as_often_true_as_false_with_every_noun(chosen):
    tilt, nouns = Counter(), Counter()
    for s in chosen:
        sign = 1 if s.label else -1
        tilt[s.relation] += sign
        for role, noun in zip(("subject", "object"), s.nouns, strict=True):
            nouns[s.relation, role, noun] += sign
    assert set(tilt) == set(MEANING) and not any(tilt.values())
    assert max(abs(value) for value in nouns.values()) <= 2
    assert max(Counter(s.image_id for s in chosen).values()) <= AIM * 1.5


def test_far_more_statements_a_scene_are_balanced_too(offered, chosen):
    dense = balanced(offered, 300, aim=40)
    assert len(dense) > 4 * len(chosen)
    tilt = Counter()
    for s in dense:
        tilt[s.relation] += 1 if s.label else -1
    assert set(tilt) == set(MEANING) and not any(tilt.values())
    assert max(Counter(s.image_id for s in dense).values()) <= 60


def test_all_seven_categories_are_of_use(chosen):
    sizes = Counter(s.category for s in chosen)
    assert len(sizes) == 7 and min(sizes.values()) >= 0.4 * max(sizes.values())


def test_guessing_from_the_text_gets_nowhere(chosen):
    """The label that a text's relation and nouns had elsewhere says nothing about its label here."""
    seen = defaultdict(Counter)
    for number, s in enumerate(chosen):
        if number % 2:
            seen[s.relation, s.nouns[0]][s.label] += 1
            seen[s.relation, s.nouns[1]][s.label] += 1
    test = [s for number, s in enumerate(chosen) if not number % 2]
    votes = [(seen[s.relation, s.nouns[0]] + seen[s.relation, s.nouns[1]]) for s in test]
    right = sum((v[True] >= v[False]) == s.label for v, s in zip(votes, test, strict=True))
    assert right / len(test) < 0.56


# -- on disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return export.build(tmp_path_factory.mktemp("world") / "smoke", "smoke", workers=1, progress=False)


def test_the_reader_of_the_real_data_reads_them(smoke):
    manifest = storage.read_json(smoke / "vsr" / "manifest.json")
    for partition, sizes in manifest["counts"].items():
        for split, size in sizes.items():
            data = load_vsr(partition, split, smoke)
            assert len(data) == size > 0 and data.majority()[1] == 0.5
            assert len(data.on_disk()) == size
            assert manifest["hashes"][f"{partition}/{split}.jsonl"] == data.annotation_hash
    names = {"train": "train", "dev": "val", "test": "test"}
    for split, own in names.items():
        for s in load_vsr("random", split, smoke).statements:
            number = int(s.image.removesuffix(".jpg")) - scene_seed(own, 0)
            program = _tuples(s.meta["program"])
            assert holds(program, sample_scene(number, SPRITES, split=own)) is s.label
            assert s.category in RELATIONS


def _tuples(program):
    return tuple(_tuples(part) if isinstance(part, list) else part for part in program)


def test_zero_shot_files_share_no_category(smoke):
    groups = statements_export.concept_groups(SPRITES)
    assert sum(map(len, groups.values())) == len(SPRITES.coco) == len(set().union(*groups.values()))
    for split, group in groups.items():
        path = smoke / "vsr" / "zeroshot" / f"{statements_export.FILES[split]}.jsonl"
        programs = [json.loads(line)["program"] for line in path.read_text().splitlines()]
        nouns = {part[-1][-1] if part[0] == "tint" else part[-1] for p in programs for part in p[2:]}
        assert nouns and nouns <= group


def test_a_build_without_statements_gets_them_and_old_ones_are_replaced(smoke, tmp_path, monkeypatch):
    files = {p.name: p.read_bytes() for p in (smoke / "vsr" / "random").iterdir()}
    scenes = {"train": 60, "val": 20, "test": 30, "novel": 20}
    target = statements_export.ensure(tmp_path, scenes, SPRITES, workers=2, progress=False)
    assert {p.name: p.read_bytes() for p in (target / "random").iterdir()} == files
    before = (target / "manifest.json").stat().st_mtime_ns
    statements_export.ensure(tmp_path, scenes, SPRITES, workers=1, progress=False)
    assert (target / "manifest.json").stat().st_mtime_ns == before
    monkeypatch.setattr(statements_export, "STATEMENTS_VERSION", "0")
    statements_export.ensure(tmp_path, scenes, SPRITES, workers=1, progress=False)
    assert storage.read_json(target / "manifest.json")["version"] == "0"


def test_many_statements_about_the_train_pictures_are_written_on_demand(smoke, monkeypatch):
    monkeypatch.setattr(export, "world_root", lambda preset: smoke)
    folder = export.dense_statements("smoke", 20, workers=1, progress=False)
    dense = load_vsr("dense", "train", folder, smoke / "images")
    usual = load_vsr("random", "train", smoke)
    assert len(dense) > 2 * len(usual) and {s.path for s in usual.statements} <= {s.path for s in dense.statements}
    assert dense.majority()[1] == 0.5 and len(dense.on_disk()) == len(dense)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert export.dense_statements("smoke", 20, workers=1, progress=False) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    export.dense_statements("smoke", 8, workers=1, progress=False)
    about, fewer = storage.read_json(folder / "manifest.json"), load_vsr("dense", "train", folder, smoke / "images")
    assert about["aim"] == 8 and about["count"] == len(fewer) < len(dense)
