"""The world as it is built is a sound data set for the very readers that read the real ones."""

import json

import pytest
from seewhere.boxes import to_xyxy
from seewhere.datasets import load, load_captions, load_coco
from seewhere.datasets.check import check
from seewhere.world.export import build


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world") / "smoke", preset="smoke", workers=1, progress=False)


def test_a_build_passes_the_check(world):
    report = check(world)
    assert report.exit_code == 0 and not report.of("warn"), str(report)


@pytest.mark.parametrize("name", ["world", "world+", "worldg", "worldlong"])
def test_every_style_and_split_loads(world, name):
    for split in ("train", "val", "test", "novel"):
        dataset = load(name, split, world)
        assert dataset.expressions and not dataset.missing_images()
        assert all(region.mask for region in dataset.regions.values())
    item = dataset.expressions[0]
    assert item.image.open().size == item.image.size


def test_boxes_are_those_of_the_annotation_file(world):
    path = world / "annotations" / "instances_test.json"
    coco, content = load_coco(path), json.loads(path.read_text())
    assert len(coco.regions) == len(content["annotations"]) > 0
    for annotation in content["annotations"]:
        assert list(coco.regions[annotation["id"]].box) == to_xyxy(annotation["bbox"], "xywh")[0].tolist()
    captions = load_captions(world / "annotations" / "captions_test.json", "test")
    assert {caption.image.image_id for caption in captions} <= set(coco.images)
