"""`seewhere data check`: each fault is found, named and counted, and decides the exit code."""

import argparse
import json
import os
import pickle

import pytest
from PIL import Image
from seewhere.datasets import check as check_module
from seewhere.datasets import published
from seewhere.datasets.check import check
from small_copies import reference, write_images, write_refer
from test_other_readers import ROWS, write_talk2car

NAMES = ["COCO_train2014_000000000001.jpg", "COCO_train2014_000000000002.jpg"]


def texts(report, level):
    return [str(finding) for finding in report.of(level)]


def one(report, level, part):
    found = [text for text in texts(report, level) if part in text]
    assert len(found) == 1, str(report)
    return found[0]


def test_a_sound_copy(refer_root):
    report = check(refer_root)
    assert report.exit_code == 0 and not report.of("error"), str(report)
    assert "2 images, 3 objects, 2 categories" in one(report, "ok", "objects")
    assert "3 boxes inside their images" in one(report, "ok", "boxes")
    assert "2 images opened" in one(report, "ok", "opened")
    assert "train: 3 sentences, published are 120,624" in one(report, "warn", "train:")
    assert "no sentences of the split val, testB" in one(report, "warn", "no sentences")


def test_published_counts(refer_root, monkeypatch):
    monkeypatch.setitem(published.SENTENCES, "refcoco (unc)", {"train": 3, "testA": 1})
    report = check(refer_root)
    assert one(report, "ok", "train:").endswith("train: 3 sentences, as published") and not report.of("warn")


def test_published_counts_are_the_papers():
    sizes = {name: list(counts.values()) for name, counts in published.SENTENCES.items()}
    assert sizes["refcoco (unc)"] == [120624, 10834, 5657, 5095] and sizes["refcocog (umd)"] == [80512, 4896, 9602]
    assert sizes["refcoco+ (unc)"] == [120191, 10758, 5726, 4889]
    assert sizes["talk2car"] == [8348, 1163, 2447] and sizes["hc-refloco"] == [13360, 31378]


def test_images_with_faults(refer_root):
    folder = refer_root / "images" / "train2014"
    first = folder / NAMES[0]
    first.write_bytes(first.read_bytes()[:500])
    write_images(folder, NAMES[1:], mode="L")
    report = check(refer_root)
    assert report.exit_code == 1
    assert f"1 of 2 images cannot be read (cut short?): {NAMES[0]}" in one(report, "error", "cannot be read")
    assert f"1 of 2 images are not RGB: {NAMES[1]} (L)" in one(report, "warn", "not RGB")
    Image.new("CMYK", (10, 10)).save(first)
    report = check(refer_root)
    assert "2 of 2 images are not RGB" in one(report, "warn", "not RGB") and "(CMYK)" in str(report)
    assert NAMES[0] in one(report, "error", "another size than the annotations say")
    first.unlink()
    assert f"1 of 2 images are missing: {NAMES[0]}" in one(check(refer_root), "error", "missing")
    assert check(refer_root, read_images=False).exit_code == 1  # looked for, though not opened


def test_no_images_at_all_is_a_warning(tmp_path):
    write_refer(tmp_path / "refcoco")
    report = check(tmp_path)
    assert report.exit_code == 0 and "none of 2 images is on disk" in one(report, "warn", "none of")


def test_ids_that_dangle(refer_root):
    references = [reference(17, 912, 1, "val", "ghost"), reference(18, 11, 2, "val", "cat")]
    write_refer(refer_root / "refcoco", references=references)
    path = refer_root / "refcoco" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][2]["image_id"] = 77
    path.write_text(json.dumps(content))
    report = check(refer_root)
    assert "1 of 2 refs point at annotations missing" in one(report, "error", "ref 17 -> ann 912")
    assert "1 of 2 refs name another image" in one(report, "error", "first: ref 18")
    assert "1 of 3 annotations point at images" in one(report, "error", "annotation 21 -> image 77")
    assert report.exit_code == 1


def test_boxes_with_faults(refer_root):
    folder = refer_root / "refcoco"
    write_refer(folder, boxes=[[20, 20, 60, 44], [30, 10, 63, 48], [15, 5, 50, 40]])
    assert "look like xyxy" in one(check(refer_root), "error", "boxes")
    write_refer(folder, boxes=[[20, 20, 10, 5], [30, 10, 63, 5], [15, 5, 5, 40]])
    report = check(refer_root)
    assert "1 of 3 boxes reach outside their image (ids 12)" in one(report, "warn", "outside") and not report.exit_code
    write_refer(folder, boxes=[[20, 20, 10, 0], [30, 10, 3, 5], [15, 5, 5, 40]])
    assert "1 of 3 boxes are empty or not four numbers (ids 11)" in one(check(refer_root), "error", "boxes are")


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_pickle_is_one_error_and_the_rest_is_checked(refer_root):
    mark = refer_root / "owned"
    (refer_root / "refcoco" / "refs(google).p").write_bytes(pickle.dumps(Exploit(mark)))
    report = check(refer_root)
    assert "refused. It asks for" in one(report, "error", "refs(google).p") and not mark.exists()
    assert one(report, "warn", "refs(unc).p: train:") and report.exit_code == 1


def test_a_broken_file_is_one_error(refer_root):
    (refer_root / "refcoco" / "instances.json").write_text("{")
    assert "not a JSON file" in one(check(refer_root), "error", "instances.json")
    (refer_root / "refcoco" / "instances.json").write_text('{"images": [{}], "annotations": [], "categories": []}')
    assert "not in its format" in one(check(refer_root), "error", "instances.json")


def test_talk2car_and_hc_refloco(tmp_path):
    write_talk2car(tmp_path / "talk2car")
    (tmp_path / "hc").mkdir()
    (tmp_path / "hc" / "hc_refloco_val.json").write_text(json.dumps(ROWS))
    write_images(tmp_path / "hc" / "images", ["a.jpg"])
    report = check(tmp_path)
    assert "published are 1,163" in one(report, "warn", "val: 1 sentences")
    assert "published are 13,360" in one(report, "warn", "val: 3 sentences")
    assert "1 of 2 images are missing: b.jpg" in one(report, "error", "missing")


def test_nothing_there(tmp_path):
    assert "no data set found" in one(check(tmp_path), "error", "no data set")
    assert "no such folder" in one(check(tmp_path / "gone"), "error", "no such folder")


@pytest.mark.parametrize(("spoiled", "code"), [(False, 0), (True, 1)])
def test_the_command(refer_root, capsys, spoiled, code):
    if spoiled:
        (refer_root / "refcoco" / "refs(unc).p").write_bytes(b"")
    parser = argparse.ArgumentParser()
    check_module.register(parser.add_subparsers())
    arguments = parser.parse_args(["data", "check", str(refer_root)])
    assert arguments.handler(arguments) == code
    output = capsys.readouterr().out
    assert output.splitlines()[-1].endswith("ok") and ("[error]" in output) == spoiled and "[ok]" in output


def test_real_files(real_data):
    report = check(real_data)
    assert report.exit_code == 0, str(report)
    assert "val: 1,163 sentences, as published" in one(report, "ok", "val_commands.json: val")
    assert "1 of 128 images are not RGB: 000000000086.jpg (L)" in one(report, "warn", "128 images are not RGB")
