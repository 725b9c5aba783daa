"""VSR's jsonl: what is read, what is refused, and that the real files hold what their paper counts."""

import json
import warnings

import pytest
from PIL import Image
from seewhere.datasets import load_vsr, vsr
from seewhere.datasets.check import check
from seewhere.datasets.vsr import RELATIONS, UNLISTED, category_of, counts
from seewhere.records import DataError

ROW = {
    "image": "000000000007.jpg",
    "image_link": "http://images.cocodataset.org/train2017/000000000007.jpg",
    "caption": "The cat is inside the refrigerator.",
    "label": 0,
    "relation": "inside",
    "annotator_id": 27,
    "vote_true_validator_id": "[]",
    "vote_false_validator_id": "[1, 2, 20]",
}


def write(folder, rows, split="test", partition="random"):
    place = folder / partition
    place.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (place / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_a_line_becomes_a_statement(tmp_path):
    root = write(tmp_path / "vsr", [ROW, {**ROW, "label": 1, "relation": "congruent", "subj": "cat", "obj": None}])
    with pytest.warns(UserWarning, match=r"1 of 1 images are not on disk.*000000000007"):
        data = load_vsr("random", "test", root)
    first, second = data.statements
    assert (first.text, first.label, first.category) == (ROW["caption"], False, "Topological")
    assert first.votes == ((), (1, 2, 20)) and first.subject == "" and first.meta["annotator_id"] == 27
    assert (second.label, second.category, second.subject, second.object) == (True, UNLISTED, "cat", "")
    assert data.majority() == (True, 0.5) and len(data.frame()) == 2
    assert len(data.on_disk()) == 0


@pytest.mark.parametrize("place", ["", "vsr", "splits", "data/splits"])
def test_partitions_are_found_in_the_usual_places_and_images_too(tmp_path, place):
    write(tmp_path / place, [ROW], split="dev")
    pictures = tmp_path / "train2017"
    pictures.mkdir()
    Image.new("L", (8, 6)).save(pictures / ROW["image"])
    data = load_vsr("random", "val", tmp_path)
    assert data.statements[0].open().mode == "RGB"
    assert len(data.on_disk()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not JSON"),
        ("[1]", r"line 2: no image, caption, label, relation"),
        ({**ROW, "label": "true"}, r"line 2: label 'true'; expected 0"),
        ({**ROW, "caption": " "}, r"line 2: an empty caption"),
        ({**ROW, "vote_true_validator_id": "[1"}, r"line 2: votes '\[1'"),
        ({k: v for k, v in ROW.items() if k != "relation"}, r"line 2: no relation; it has"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        load_vsr("random", "test", write(tmp_path, [ROW, line]))


def test_what_is_not_there_is_said(tmp_path, quiet):
    with pytest.raises(DataError, match="no partition 'rando'"):
        load_vsr("rando", "test", tmp_path)
    with pytest.raises(DataError, match=r"no such file; looked for .*vsr\.md"):
        load_vsr("random", "test", tmp_path)
    with pytest.raises(DataError, match=r"no split 'tset'.* it has test"):
        load_vsr("random", "tset", write(tmp_path, [ROW]))
    with pytest.raises(DataError, match="no lines"):
        load_vsr("zeroshot", "test", write(tmp_path, [""], partition="zeroshot"))


def test_a_relation_has_one_category():
    names = [name for relations in RELATIONS.values() for name in relations]
    assert len(names) == len(set(names))
    assert category_of(" Left of ") == "Projective" and category_of("congruent") == UNLISTED


def test_the_check_counts_and_names_faults(tmp_path):
    rows = [ROW, {**ROW, "label": 1}, {**ROW, "relation": "congruent", "caption": "The cat is congruent to the dog."}]
    write(tmp_path, rows)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ROW["image"]).write_bytes(b"\xff\xd8 cut short")
    text = str(report := check(tmp_path))
    assert "3 statements, 33.3% of them true; published are 2,195" in text
    assert "none of the seven categories: congruent" in text and "as true and as false" in text
    assert "1 of 1 images cannot be read" in text and report.exit_code == 1
    write(tmp_path, ["{"])
    assert "line 1: not JSON" in str(check(tmp_path))


# -- the real files ----------------------------------------------------------------------------------------------------


def test_published_counts_categories_and_majority(real_data, quiet):
    for partition, sizes in vsr.STATEMENTS.items():
        for split, size in sizes.items():
            assert len(load_vsr(partition, split, real_data)) == size
    test = load_vsr("random", "test", real_data)
    assert counts(test.statements) == {
        "Projective": 843, "Topological": 629, "Adjacency": 289, "Orientation": 137, "Proximity": 133,
        "Directional": 88, "Unallocated": 76,
    }  # fmt: skip
    label, share = test.majority()
    assert label and round(100 * share, 1) == 53.8
    unlisted = [s.relation for s in load_vsr("random", "dev", real_data).statements if s.category == UNLISTED]
    assert unlisted == ["congruent"]


def test_categories_are_those_of_the_published_list(real_data):
    published = {}
    for line in (real_data / "vsr" / "relation_categories.txt").read_text().splitlines():
        category, names = line.split(":", 1)
        for name in names.split(","):
            published.setdefault(name.strip(), category)
    assert {name: category for category, names in RELATIONS.items() for name in names} == published


def test_zero_shot_concepts_are_disjoint_and_images_open(real_data, quiet):
    zero = {split: load_vsr("zeroshot", split, real_data) for split in vsr.SPLITS}
    assert all(s.subject and s.object for data in zero.values() for s in data.statements)
    there = load_vsr("random", "train", real_data).on_disk()
    assert there.statements and there.statements[0].open().mode == "RGB"
    report = check(real_data / "vsr")
    assert report.exit_code == 0 and "7,680 statements" in str(report)
