"""Talk2Car, HC-RefLoCo and hub copies."""

import json

import datasets
import pandas as pd
import pytest
from seewhere.datasets import load, load_hub
from seewhere.records import DataError
from small_copies import SIZE, write_images

ROWS = [
    {"id": "0", "file_name": "a.jpg", "width": 64, "height": 48, "bbox": [10, 5, 20, 30], "caption": "A very long one.",
     "labels": [{"category": "Action"}], "source_dataset": "coco2017"},
    {"id": "1", "file_name": "a.jpg", "width": 64, "height": 48, "bbox": [10, 5, 20, 30], "caption": "Another one.",
     "labels": [], "source_dataset": "coco2017"},
    {"id": "2", "file_name": "b.jpg", "width": 64, "height": 48, "bbox": [1, 2, 3, 4], "caption": "Third.",
     "labels": [], "source_dataset": "laion"},
]  # fmt: skip


def write_talk2car(root, box=(260, 479, 191, 82)):
    root.mkdir(exist_ok=True)
    command = {"command": "park there", "2d_box": list(box), "t2c_img": "img_val_0.jpg", "obj_name": "vehicle.car"}
    content = {"scene_tokens": [], "commands": [{**command, "command_token": "t0"}]}
    (root / "val_commands.json").write_text(json.dumps(content))


def test_talk2car_boxes_are_xywh(tmp_path):
    write_talk2car(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 1 images are not on disk \(first: img_val_0\.jpg"):
        dataset = load("talk2car", "val", tmp_path)
    (expression,) = dataset.expressions
    assert expression.region.box == (260, 479, 451, 561) and expression.image.size == (1600, 900)
    assert (expression.text, expression.region.label) == ("park there", "vehicle.car")
    assert expression.meta == {"command_token": "t0"} and dataset.categories[17] == "vehicle.car"


def test_talk2car_refuses_other_files(tmp_path):
    write_talk2car(tmp_path, box=(700, 500, 1500, 880))
    with pytest.raises(DataError, match=r"val_commands\.json: 1 of 1 boxes end outside.*look like xyxy"):
        load("talk2car", "val", tmp_path)
    with pytest.raises(DataError, match=r"no train_commands\.json for Talk2Car; found val_commands\.json"):
        load("talk2car", "train", tmp_path)
    (tmp_path / "test_commands.json").write_text(json.dumps({"commands": [{"command": "go", "t2c_img": "x"}]}))
    with pytest.raises(DataError, match=r"1 of 1 commands have no '2d_box' .*withholds the answers"):
        load("talk2car", "test", tmp_path)
    (tmp_path / "test_commands.json").write_text("[]")
    with pytest.raises(DataError, match="the list 'commands'"):
        load("talk2car", "test", tmp_path)


@pytest.mark.filterwarnings("ignore:talk2car")
def test_real_talk2car(real_data):
    dataset = load("talk2car", "val", real_data)
    assert len(dataset) == 1163  # as published
    frame = dataset.frame()
    assert (frame["x2"] <= 1600).all() and (frame["y2"] <= 900).all() and (frame["area"] > 0).all()
    assert dataset.expressions[0].text == "once the light turns green, turn left behind the silver car"
    assert len(dataset.categories) == 23  # nuScenes' own, none unknown
    assert (len(dataset.images), len(dataset.regions)) == (878, 999)  # of 1,163 commands


@pytest.mark.filterwarnings("ignore:talk2car")
def test_commands_about_one_frame_share_its_image(tmp_path):
    write_talk2car(tmp_path)
    content = json.loads((tmp_path / "val_commands.json").read_text())
    (first,) = content["commands"]
    tokens = [("s1", "b1"), ("s1", "b1"), ("s1", "b2"), ("s2", "b1")]
    content["commands"] = [
        {**first, "t2c_img": f"img_val_{n}.jpg", "sample_token": s, "box_token": b, "command": f"number {n}"}
        for n, (s, b) in enumerate(tokens)
    ]
    (tmp_path / "val_commands.json").write_text(json.dumps(content))
    dataset = load("talk2car", "val", tmp_path)
    assert [e.image.image_id for e in dataset.expressions] == [0, 0, 0, 3]
    assert [e.region.region_id for e in dataset.expressions] == [0, 0, 2, 3] and len(dataset.regions) == 3
    assert [e.image.path.name for e in dataset.expressions] == ["img_val_0.jpg"] * 3 + ["img_val_3.jpg"]
    assert [e.text for e in dataset.expressions] == [f"number {n}" for n in range(4)]


@pytest.mark.parametrize("layout", ["parquet", "parquet in data", "json", "json of all splits"])
def test_hc_refloco_layouts(tmp_path, layout):
    write_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    if layout.startswith("parquet"):
        folder = tmp_path / "data" if "data" in layout else tmp_path
        folder.mkdir(exist_ok=True)
        pd.DataFrame(ROWS).to_parquet(folder / "val-00000-of-00001.parquet")
    elif layout == "json":
        (tmp_path / "hc_refloco_val.json").write_text(json.dumps(ROWS))
    else:
        rows = [{**row, "split": "val"} for row in ROWS] + [{**ROWS[0], "split": "test", "caption": "not this one"}]
        (tmp_path / "hc_refloco.json").write_text(json.dumps(rows))
    dataset = load("hc-refloco", "val", tmp_path)
    assert [e.text for e in dataset.expressions] == ["A very long one.", "Another one.", "Third."]
    assert [e.region.region_id for e in dataset.expressions] == [0, 0, 1]  # two captions of one person
    assert dataset.expressions[0].region.box == (10, 5, 30, 35)
    assert {r.label for r in dataset.regions.values()} == {"person"} and dataset.expressions[0].style == "long"
    assert dataset.expressions[2].meta["source_dataset"] == "laion" and not dataset.missing_images()


def test_hc_refloco_refuses_other_files(tmp_path):
    with pytest.raises(DataError, match="no HC-RefLoCo annotations for 'val'"):
        load("hc-refloco", "val", tmp_path)
    (tmp_path / "hc_refloco.json").write_text(json.dumps([{**ROWS[0], "split": "val"}]))
    with pytest.raises(DataError, match="no row of the split 'test'; it has val"):
        load("hc-refloco", "test", tmp_path)
    (tmp_path / "val.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match=r"val\.parquet: cannot be read"):
        load("hc-refloco", "val", tmp_path)


def picture_table(tmp_path, **columns):
    write_images(tmp_path, ["a.png", "b.png"])
    table = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png"), str(tmp_path / "b.png")], **columns})
    return table.cast_column("image", datasets.Image())


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub cache")
    return tmp_path


def test_a_hub_copy_with_pictures_inside(caches):
    table = picture_table(caches, bbox=[[1, 2, 10, 20], [5, 5, 6, 7]], answer=[["left one", "the left"], ["right one"]])
    datasets.DatasetDict({"val": table}).save_to_disk(caches / "copy")
    for name in ("a.png", "b.png"):
        (caches / name).unlink()  # the copy holds the pictures
    dataset = load_hub(caches / "copy", "val", name="refcoco copy")
    assert [e.text for e in dataset.expressions] == ["left one", "the left", "right one"]
    assert dataset.expressions[0].region.box == (1, 2, 11, 22) and dataset.name == "refcoco copy"
    assert dataset.images[0].open().size == SIZE and len(dataset.images) == 2
    with pytest.raises(DataError, match="no split 'test'; it has val"):
        load_hub(caches / "copy", "test")


def test_a_hub_copy_with_one_row_per_image(caches):
    samples = [
        [{"bbox": [1, 2, 3, 4], "sentences": ["x", "y"], "category": "cat"}],
        [{"bbox": [5, 6, 7, 8], "sentences": ["z"], "category": "dog"}],
    ]
    picture_table(caches, samples=samples).save_to_disk(caches / "copy")
    dataset = load_hub(caches / "copy", "validation")
    assert [(e.text, e.region.label) for e in dataset.expressions] == [("x", "cat"), ("y", "cat"), ("z", "dog")]


def test_a_hub_copy_in_another_convention(caches):
    boxes = [[20, 20, 60, 44], [30, 10, 63, 48]]
    picture_table(caches, bbox=boxes, caption=["a", "b"]).save_to_disk(caches / "copy")
    with pytest.raises(DataError, match="look like xyxy; if they are, pass box='xyxy'"):
        load_hub(caches / "copy", "val")
    assert load_hub(caches / "copy", "val", box="xyxy").expressions[0].region.box == (20, 20, 60, 44)


def test_a_hub_copy_of_files_with_its_own_columns(caches):
    folder = caches / "copy"
    folder.mkdir()
    rows = [{"query": "a man", "where": [1, 2, 3, 4], "file_name": "a.jpg"}]
    (folder / "val.json").write_text(json.dumps(rows))
    images = write_images(caches / "pictures", ["a.jpg"])
    with pytest.raises(DataError, match=r"is known to hold the text\. Pass columns="):
        load_hub(folder, "validation")
    columns = {"text": "query", "box": "where"}
    with pytest.raises(DataError, match=r"row 0 holds no picture\. Pass images=FOLDER"):
        load_hub(folder, "validation", columns=columns)
    found = load_hub(folder, "validation", columns=columns, images=images)
    assert found.expressions[0].text == "a man" and found.images[0].size == SIZE
