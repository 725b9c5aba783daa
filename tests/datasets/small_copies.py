"""Small copies of the published layouts, made here."""

import json
import pickle

from PIL import Image

SIZE = (64, 48)
CATEGORIES = [
    {"id": 17, "name": "cat", "supercategory": "animal"},
    {"id": 18, "name": "dog", "supercategory": "animal"},
]


def write_refer(folder, boxes=None, references=None, kind="unc", images=None, protocol=2):
    """Write instances.json and refs(kind).p: two images (ids 1, 2), three boxes (ids 11, 12, 21)."""
    folder.mkdir(parents=True, exist_ok=True)
    boxes = boxes or [[1.5, 2, 20, 30], [30, 10, 33, 38], [5, 5, 10.25, 12]]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for (number, image, category), box in zip([(11, 1, 17), (12, 1, 17), (21, 2, 18)], boxes, strict=True)
    ]
    annotations[0]["segmentation"] = [[2, 2, 20, 2, 20, 30, 2, 30]]
    annotations[1]["segmentation"] = {"size": [48, 64], "counts": [1000, 20, 2052]}
    if images is None:
        images = [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "width": 64, "height": 48} for n in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "instances.json").write_text(json.dumps(content))
    if references is None:
        references = [
            reference(1, 11, 1, "train", "Left  cat", "the cat at the left"),
            reference(2, 12, 1, "train", "cat on right"),
            reference(3, 21, 2, "testA", "brown dog"),
        ]
    (folder / f"refs({kind}).p").write_bytes(pickle.dumps(references, protocol=protocol))
    return folder


def reference(number, annotation, image, split, *texts):
    sentences = [
        {"sent_id": 10 * number + place, "raw": text, "sent": text.lower(), "tokens": text.lower().split()}
        for place, text in enumerate(texts)
    ]
    return {
        "ref_id": number,
        "ann_id": annotation,
        "image_id": image,
        "category_id": 17,
        "split": split,
        "file_name": "x.jpg",
        "sent_ids": [s["sent_id"] for s in sentences],
        "sentences": sentences,
    }


def write_images(folder, names=("COCO_train2014_000000000001.jpg", "COCO_train2014_000000000002.jpg"), mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.effect_noise(SIZE, 60).convert(mode).save(folder / name)
    return folder
