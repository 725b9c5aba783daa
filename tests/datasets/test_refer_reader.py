"""REFER folders: what is read, and what is refused with which words."""

import hashlib
import json

import pytest
from seewhere.boxes import iou
from seewhere.datasets import load, load_captions, load_coco
from seewhere.records import DataError
from small_copies import reference, write_images, write_refer


def test_a_split_is_read(refer_root):
    dataset = load("refcoco", "train", refer_root)
    assert [e.text for e in dataset.expressions] == [
        "Left  cat",
        "the cat at the left",
        "cat on right",
    ]  # raw, as typed
    assert [e.expression_id for e in dataset.expressions] == [10, 11, 20] and len(dataset) == 3
    first = dataset.expressions[0]
    assert first.region.box == (1.5, 2.0, 21.5, 32.0)  # xywh in the file, xyxy here
    assert first.image.size == (64, 48) and first.image.open().size == (64, 48)
    assert (first.region.label, first.style, first.split, first.meta) == ("cat", "short", "train", {"ref_id": 1})
    assert list(dataset.images) == [1]  # the images of this split only
    assert [r.region_id for r in dataset.by_image[1]] == [11, 12] == list(dataset.regions)
    assert dataset.categories == {17: "cat", 18: "dog"}
    assert "3 expressions, 2 regions, 1 images" in repr(dataset) and dataset.missing_images() == []


def test_splits_can_be_joined(refer_root):
    assert len(load("refcoco", "all", refer_root)) == 4
    both = load("refcoco", "train+testA", refer_root)
    assert len(both) == 4 and both.expressions[-1].split == "testA"
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: no split 'testB'; it has testA, train"):
        load("refcoco", "testB", refer_root)


def test_frame_has_the_group_columns(refer_root):
    frame = load("refcoco", "all", refer_root).frame()
    assert frame["words"].tolist() == [2, 5, 3, 2] and frame["same_label"].tolist() == [2, 2, 2, 1]
    assert frame["cell"].tolist() == ["middle left", "middle left", "middle right", "top left"]
    assert frame.loc[0, "area"] == pytest.approx(20 * 30 / (64 * 48)) and frame.loc[0, "regions"] == 2
    assert frame.loc[0, ["x1", "y1", "x2", "y2"]].tolist() == [1.5, 2, 21.5, 32]


def test_hash_names_the_version(refer_root):
    before = load("refcoco", "train", refer_root).annotation_hash
    folder = refer_root / "refcoco"
    parts = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("instances.json", "refs(unc).p")]
    assert before == hashlib.sha256("".join(parts).encode()).hexdigest()
    write_refer(folder, boxes=[[1, 2, 20, 30], [30, 10, 33, 38], [5, 5, 10, 12]])
    assert load("refcoco", "train", refer_root).annotation_hash != before


def test_masks(refer_root):
    regions = load("refcoco", "train", refer_root).regions
    assert regions[11].mask is None and regions[12].mask["size"] == [48, 64]  # a polygon only when asked for
    assert load("refcoco", "train", refer_root, masks=True).regions[11].mask["size"] == [48, 64]


@pytest.mark.parametrize(
    "place", ["images/train2014", "train2014", "images", "images/mscoco/images/train2014", "coco/train2014"]
)
def test_images_are_found_in_the_usual_places(tmp_path, place):
    write_refer(tmp_path / "refcoco")
    write_images(tmp_path / place)
    for root in (tmp_path, tmp_path / "refcoco"):  # the folder of the data set does as well
        assert load("refcoco", "train", root).missing_images() == []


def test_images_are_found_under_the_names_of_2017_and_beside_the_root(tmp_path):
    write_refer(tmp_path / "data" / "refcoco")
    write_images(tmp_path / "coco128" / "images" / "train2017", ["000000000001.jpg", "000000000002.jpg"])
    assert load("refcoco", "all", tmp_path / "data").missing_images() == []


def test_images_can_be_named(tmp_path):
    write_refer(tmp_path / "refcoco")
    elsewhere = write_images(tmp_path / "a" / "b")
    assert load("refcoco", "all", tmp_path, images=elsewhere).missing_images() == []
    with pytest.raises(DataError, match="no such folder of images"):
        load("refcoco", "all", tmp_path, images=tmp_path / "c")


def test_missing_images_are_counted_and_named(tmp_path):
    write_refer(tmp_path / "refcoco")
    write_images(tmp_path / "images" / "train2014", ["COCO_train2014_000000000001.jpg"])
    with pytest.warns(UserWarning, match=r"1 of 2 images are not on disk \(first: COCO_train2014_000000000002\.jpg"):
        dataset = load("refcoco", "all", tmp_path)
    assert len(dataset) == 4  # nothing is lost
    assert [image.image_id for image in dataset.missing_images()] == [2]
    with pytest.raises(DataError, match=r"COCO_train2014_000000000002\.jpg: no such image"):
        dataset.images[2].open()


def test_the_split_file_can_be_chosen(refer_root):
    folder = refer_root / "refcoco"
    write_refer(folder, references=[reference(9, 21, 2, "val", "the dog")], kind="google")
    assert len(load("refcoco", "all", refer_root)) == 4  # unc is the default
    assert [e.text for e in load("refcoco", "val", refer_root, split_by="google").expressions] == ["the dog"]
    with pytest.raises(DataError, match=r"expected refs\(umd\)\.p; found refs\(google\)\.p, refs\(unc\)\.p"):
        load("refcoco", "val", refer_root, split_by="umd")
    with pytest.raises(DataError, match="one partition only"):
        load("talk2car", "val", refer_root, split_by="umd")


def test_the_world_is_read_like_the_rest(tmp_path):
    folders = {"world": "refcoco", "world+": "refcoco+", "worldg": "refcocog", "worldlong": "refcoco_long"}
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 64, "height": 48} for n in (1, 2)]
    write_images(tmp_path / "images", [image["file_name"] for image in images])
    for name, folder in folders.items():
        write_refer(tmp_path / "refer" / folder, kind="world", images=images)
        assert load(name, "all", tmp_path).missing_images() == []
    assert load("worldlong", "all", tmp_path).expressions[0].style == "long"


def test_dangling_references_are_counted(refer_root):
    references = [reference(17, 912, 1, "val", "ghost"), reference(18, 11, 1, "val", "cat")]
    write_refer(refer_root / "refcoco", references=references)
    message = (
        r"refs\(unc\)\.p: 1 of 2 refs point at annotations missing from instances\.json "
        r"\(first: ref 17 -> ann 912\)\. Is this another version's file\?"
    )
    with pytest.raises(DataError, match=message):
        load("refcoco", "val", refer_root)


def test_references_of_another_image_are_refused(refer_root):
    write_refer(refer_root / "refcoco", references=[reference(1, 11, 1, "val", "a"), reference(5, 11, 2, "val", "b")])
    with pytest.raises(DataError, match="ref 5 is of image 2, its annotation 11 of image 1"):
        load("refcoco", "val", refer_root)


def test_xyxy_boxes_where_xywh_are_due(refer_root):
    write_refer(refer_root / "refcoco", boxes=[[20, 20, 60, 44], [30, 10, 63, 48], [15, 5, 50, 40]])
    with pytest.raises(DataError, match=r"instances\.json: 2 of 3 boxes end outside.*look like xyxy.*Convert the file"):
        load("refcoco", "all", refer_root)


def test_fractions_where_pixels_are_due(refer_root):
    write_refer(refer_root / "refcoco", boxes=[[0.1, 0.1, 0.5, 0.5]] * 3)
    with pytest.raises(DataError, match="look like fractions of the image, not pixels"):
        load("refcoco", "all", refer_root)


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, -3, 4], [1, 2, float("nan"), 4], "1 2 3 4"])
def test_broken_boxes_name_their_annotation(refer_root, box):
    path = refer_root / "refcoco" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["bbox"] = box
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotation 12 has the box .*expected \[x, y, width, height\]"):
        load("refcoco", "all", refer_root)


def test_files_of_another_format_are_refused(refer_root, tmp_path):
    folder = refer_root / "refcoco"
    write_refer(folder, references={"a": 1})
    with pytest.raises(DataError, match="expected a list of references, found dict"):
        load("refcoco", "all", refer_root)
    write_refer(folder, references=[{"ref_id": 1}])
    with pytest.raises(DataError, match="reference number 0 lacks ann_id, image_id, split, sentences"):
        load("refcoco", "all", refer_root)
    write_refer(folder)
    (folder / "instances.json").write_text("[1, 2]")
    with pytest.raises(
        DataError, match="expected a COCO file with the lists images, annotations, categories; found list"
    ):
        load("refcoco", "all", refer_root)
    (folder / "instances.json").write_text('{"images": [')
    with pytest.raises(DataError, match="not a JSON file"):
        load("refcoco", "all", refer_root)


def test_names_and_folders_are_checked(tmp_path):
    with pytest.raises(DataError, match="Unknown data set 'refcocoplus'; known ones: refcoco, refcoco\\+"):
        load("refcocoplus", "val", tmp_path)
    with pytest.raises(DataError, match="no such folder to read refcoco from"):
        load("refcoco", "val", tmp_path / "gone")
    with pytest.raises(DataError, match=r"refcocog: no instances\.json; looked for .*refcocog.instances\.json"):
        load("refcocog", "val", tmp_path)
    with pytest.raises(DataError, match="seewhere world build"):
        load("world", "val", tmp_path)


def test_coco_files(refer_root):
    (refer_root / "annotations").mkdir()
    path = refer_root / "annotations" / "instances_train2014.json"
    path.write_bytes((refer_root / "refcoco" / "instances.json").read_bytes())
    coco = load_coco(path)
    assert set(coco.images) == {1, 2} and set(coco.regions) == {11, 12, 21} and coco.supercategories[17] == "animal"
    assert coco.images[1].open().size == (64, 48) and [r.region_id for r in coco.by_image[2]] == [21]
    captions = refer_root / "annotations" / "captions_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"] = [{"id": 5, "image_id": 2, "caption": "A dog."}]
    captions.write_text(json.dumps(content))
    assert [(c.text, c.image.image_id, c.split) for c in load_captions(captions, "train")] == [("A dog.", 2, "train")]
    content["annotations"].append({"id": 6, "image_id": 99, "caption": "?"})
    captions.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"1 of 2 captions belong to images missing from it .first: caption 6 -> image 99"
    ):
        load_captions(captions)


def test_doubled_and_dangling_ids(refer_root):
    path = refer_root / "refcoco" / "instances.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "annotations": good["annotations"] + good["annotations"][:1]}))
    with pytest.raises(DataError, match="1 annotation ids occur twice"):
        load("refcoco", "all", refer_root)
    path.write_text(json.dumps({**good, "images": good["images"] + good["images"][:1]}))
    with pytest.raises(DataError, match="the image id 1 occurs twice"):
        load("refcoco", "all", refer_root)
    path.write_text(json.dumps({**good, "categories": good["categories"][:1]}))
    with pytest.raises(DataError, match=r"1 of 3 annotations point at .*first: annotation 21 -> image 2, category 18"):
        load("refcoco", "all", refer_root)


def test_real_expressions(real_data):
    """Thirty real expressions: each box is one of COCO's, to the last digit."""
    coco = load_coco(real_data / "coco128" / "annotations" / "instances_train2017.json")
    assert (len(coco.images), len(coco.regions), len(coco.categories)) == (128, 929, 80)
    for name, count in (("refcoco", 20), ("refcocog", 10)):
        dataset = load(name, "all", real_data / "refcoco")
        assert len(dataset) == count and len(dataset.images) == count and not dataset.missing_images()
        for expression in dataset.expressions:
            assert expression.image.open().size == expression.image.size
            same = [
                r for r in coco.by_image[expression.image.image_id] if r.category_id == expression.region.category_id
            ]
            assert iou([expression.region.box], [r.box for r in same]).max() == pytest.approx(1, abs=5e-4)
    assert load("refcoco", "train", real_data).expressions[0].text == "giraffe on left"
