"""The world on disk: published formats, the same bytes from any number of processes, whole or not at all."""

import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from seewhere import storage
from seewhere.world import card, export
from seewhere.world.annotations import sentence_record
from seewhere.world.language import evaluate
from seewhere.world.render import visible_masks
from seewhere.world.scenes import SPLITS, sample_scene, scene_seed
from seewhere.world.sprites import load_sprites

SPRITES = load_sprites()
TINY = export.Scale(train=6, val=2, test=3, novel=2)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return export.build(tmp_path_factory.mktemp("world") / "smoke", "smoke", workers=1, progress=False)


def _files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _references(root, name):
    return pickle.loads((root / "refer" / name / "refs(world).p").read_bytes())


def test_any_number_of_processes_writes_the_same_bytes(tmp_path, smoke):
    again = export.build(tmp_path / "again", "smoke", workers=2, progress=False)
    assert _files(again) == _files(smoke)


def test_pycocotools_loads_instances_and_masks(smoke):
    for split in SPLITS:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(smoke / "annotations" / f"instances_{split}.json")
        assert len(coco.imgs) == getattr(export.PRESETS["smoke"], split)
        for image_id in list(coco.imgs)[:8]:
            scene = sample_scene(image_id - scene_seed(split, 0), SPRITES, split=split)
            found = [coco.anns[a] for a in coco.getAnnIds(imgIds=[image_id])]
            assert len(found) == len(scene.objects)
            for a, o, mask in zip(found, scene.objects, visible_masks(scene, SPRITES), strict=True):
                decoded = coco.annToMask(a).astype(bool)
                assert np.array_equal(decoded, mask)
                x, y, w, h = a["bbox"]
                assert (x, y, x + w, y + h) == o.box
                assert a["area"] == decoded.sum() == o.area
                assert coco.cats[a["category_id"]]["name"] == o.category
            with Image.open(smoke / "images" / coco.imgs[image_id]["file_name"]) as picture:
                assert picture.size == scene.size


def test_captions_load_too(smoke):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(smoke / "annotations" / "captions_val.json")
    assert set(coco.imgToAnns) == set(coco.imgs)
    assert all(a["caption"] for a in coco.anns.values())


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog", "refcoco_long"])
def test_references_have_the_published_fields_and_mean_their_object(smoke, name):
    instances = storage.read_json(smoke / "refer" / name / "instances.json")
    annotations = {a["id"]: a for a in instances["annotations"]}
    programs = storage.read_json(smoke / "refer" / name / "programs.json")
    references = _references(smoke, name)
    assert [r["ref_id"] for r in references] == list(range(len(references)))
    for r in references:
        assert list(r) == ["ref_id", "ann_id", "image_id", "category_id", "split", "file_name", "sent_ids", "sentences"]
        a = annotations[r["ann_id"]]
        assert (a["image_id"], a["category_id"]) == (r["image_id"], r["category_id"])
        assert r["sent_ids"] == [s["sent_id"] for s in r["sentences"]]
        scene = sample_scene(r["image_id"] - scene_seed(r["split"], 0), SPRITES, split=r["split"])
        index = r["ann_id"] - r["image_id"] * 16 - 1
        for s in r["sentences"]:
            assert list(s) == ["sent_id", "sent", "raw", "tokens"]
            assert s["tokens"] == s["sent"].split()
            assert evaluate(tuple(programs[str(s["sent_id"])]), scene) == {index}
    assert {r["split"] for r in references} == set(SPLITS)
    ids = [s["sent_id"] for r in references for s in r["sentences"]]
    assert len(ids) == len(set(ids)) == len(programs)


def test_novel_categories_are_listed_and_shown_in_their_split_only(smoke):
    for split in SPLITS:
        content = storage.read_json(smoke / "annotations" / f"instances_{split}.json")
        ids = {c["id"] for c in content["categories"]}
        assert {a["category_id"] for a in content["annotations"]} <= ids
        assert all((i >= 1000) == (split == "novel") for i in ids)


def test_the_manifest_tells_versions_seeds_counts_and_hashes(smoke):
    manifest = storage.read_json(smoke / "manifest.json")
    assert manifest["version"] == export.WORLD_VERSION
    assert manifest["counts"]["train"]["images"] == 60
    assert manifest["seeds"]["val"] == [10_000_000, 10_000_019]
    # Statements have a manifest of their own: a build may get them afterwards.
    on_disk = {p for p in _files(smoke) if p.endswith((".json", ".p"))} - {"manifest.json", "vsr/manifest.json"}
    assert set(manifest["hashes"]) == on_disk
    assert all(storage.hash_file(smoke / path) == value for path, value in manifest["hashes"].items())
    assert len(_references(smoke, "refcoco")) == sum(c["refcoco references"] for c in manifest["counts"].values())


def test_a_finished_build_is_left_alone(smoke, monkeypatch):
    def never(*_):
        raise AssertionError("composed again")

    monkeypatch.setattr(export, "_compose", never)
    assert export.build(smoke, "smoke") == smoke


def test_another_builds_folder_is_refused(smoke, tmp_path):
    with pytest.raises(ValueError, match="another preset"):
        export.build(smoke, "quick")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="no build of the world"):
        export.build(tmp_path / "mine", "smoke")
    with pytest.raises(ValueError, match="unknown preset"):
        export.build(tmp_path / "x", "huge")


def test_the_default_root_is_in_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path))
    assert export.world_root("quick").parent == tmp_path / "data"
    assert export.world_root("quick") != export.world_root("full")


def test_a_failing_build_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(export, "_write_annotations", fail)
    monkeypatch.setitem(export.PRESETS, "smoke", TINY)
    with pytest.raises(OSError, match="disk full"):
        export.build(tmp_path / "world", "smoke", workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_leaves_nothing_half_written_and_can_be_made_again(tmp_path, monkeypatch):
    target = tmp_path / "world"
    code = f"from seewhere.world.export import build; build({str(target)!r}, 'full', workers=1, progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".*/images/*.jpg")):
            assert process.poll() is None, "the build ended before it could be killed"
            assert time.monotonic() < deadline, "no picture within two minutes"
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not target.exists()
    assert list(tmp_path.iterdir()) != []
    monkeypatch.setitem(export.PRESETS, "smoke", TINY)
    export.build(target, "smoke", workers=1, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["world"]
    assert len(list((target / "images").iterdir())) == 13


def test_ones_own_sprites_become_a_world(tmp_path, monkeypatch):
    cast = tmp_path / "cast"
    cast.mkdir()
    for name, color in (("a.png", "crimson"), ("b.png", "navy")):
        art = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        ImageDraw.Draw(art).ellipse((5, 5, 34, 24), fill=color)
        art.save(cast / name)
    table = [{"id": k + 1, "name": n[0], "sprites": [n]} for k, n in enumerate(("a.png", "b.png"))]
    (cast / "categories.json").write_text(json.dumps({"attribution": "me", "categories": table}))
    with pytest.raises(ValueError, match="folder of its own"):
        export.build(None, "smoke", sprites_folder=cast)
    monkeypatch.setitem(export.PRESETS, "smoke", TINY)
    root = export.build(tmp_path / "world", "smoke", workers=1, progress=False, sprites_folder=cast)
    manifest = storage.read_json(root / "manifest.json")
    assert manifest["attribution"] == "me"
    assert manifest["counts"]["novel"]["images"] == 0  # a cast without novel categories has no such split
    assert {r["split"] for r in _references(root, "refcocog")} <= {"train", "val", "test"}


def test_sentences_are_cleaned_as_refer_does():
    record = sentence_record("The Dog, left of it's tail-light.", 4)
    assert record["sent"] == "the dog left of it's tail-light"
    assert record["raw"] == "The Dog, left of it's tail-light."
    assert record["tokens"][:2] == ["the", "dog"]


def test_the_cards_numbers_and_figures_come_from_the_build(smoke, tmp_path):
    text = card.tables(smoke)
    assert "| images | 60 | 20 | 30 | 20 |" in text
    assert all(name in text for name in ("refcoco+", "refcoco_long"))
    for path in card.draw_figures(smoke, tmp_path / "figures"):
        with Image.open(path) as figure:
            assert figure.width > 600
        assert path.stat().st_size < 250_000
    with pytest.raises(FileNotFoundError):
        card.tables(tmp_path)
