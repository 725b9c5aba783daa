"""A scene written down as the published data sets write: COCO annotations and captions, REFER references.

REFER (Kazemzadeh et al. 2014; Mao et al. 2016; files of github.com/lichengunc/refer) keeps a pickled list of
references, each one object with its sentences, beside a COCO ``instances.json``. The four styles of the world's
language become four such data sets over the same pictures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from seewhere.world.language import Phrase, captions, expressions
from seewhere.world.scenes import Scene
from seewhere.world.sprites import Category, SpriteSet

REFER_NAMES = {"short": "refcoco", "plus": "refcoco+", "relational": "refcocog", "long": "refcoco_long"}
"""Style of the language -> folder of the data set whose habits it follows."""

MOST_SENTENCES = {"short": 3, "plus": 3, "relational": 2, "long": 1}
"""Sentences per reference; RefCOCO has 2.8 on average, RefCOCOg 1.9, HC-RefLoCo one."""

_MOST_REFERENCES = 3  # objects of one category that are referred to in one picture
_OBJECTS_PER_IMAGE = 16  # room for annotation ids: image id * 16 + index + 1

Record = dict[str, Any]


def image_record(scene: Scene, file_name: str) -> Record:
    """Return a scene's entry in the ``images`` of COCO; its id is the scene's seed."""
    return {
        "id": scene.seed,
        "file_name": file_name,
        "width": scene.width,
        "height": scene.height,
        "license": 1,
        "background": scene.background,
        "horizon": scene.horizon,
    }


def annotation_id(scene: Scene, index: int) -> int:
    """Return the annotation id of an object; unique over all scenes, whatever else is exported, and never 0."""
    return scene.seed * _OBJECTS_PER_IMAGE + index + 1


def annotation_records(scene: Scene, masks: Sequence[NDArray[np.bool_]]) -> list[Record]:
    """Return the objects of a scene as COCO annotations: box xywh in pixels and mask (compressed RLE), both visible.

    Args:
        scene: the scene, of at most 16 objects.
        masks: each object's visible mask, (height, width) bool, by index.
    """
    codes = coco_mask.encode(np.asfortranarray(np.stack(masks, axis=2).astype(np.uint8)))
    records = []
    for item, code in zip(scene.objects, codes, strict=True):
        x1, y1, x2, y2 = item.box
        records.append(
            {
                "id": annotation_id(scene, item.index),
                "image_id": scene.seed,
                "category_id": item.category_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": item.area,
                "segmentation": {"size": [scene.height, scene.width], "counts": code["counts"].decode("ascii")},
                "iscrowd": 0,
                "attributes": {
                    "tint": item.tint,
                    "mirrored": item.mirrored,
                    "depth": item.depth,
                    "visible_fraction": round(item.visible_fraction, 4),
                    "sprite": item.sprite,
                },
            }
        )
    return records


def caption_texts(scene: Scene) -> list[str]:
    """Return a scene's captions, which never tell place; the same scene gives the same ones."""
    return captions(scene, Random(f"captions {scene.seed}"))


def references(scene: Scene, style: str) -> list[tuple[int, list[Phrase]]]:
    """Return which objects of a scene are referred to in a style, each with its phrases.

    Only objects whose category occurs again are asked for, since naming the others takes no more than the noun; objects
    that the style cannot single out are left out.
    """
    random = Random(f"references {style} {scene.seed}")
    found = []
    for index in _referred(scene, random):
        phrases = expressions(scene, index, style, random)
        if phrases:
            found.append((index, random.sample(phrases, min(len(phrases), MOST_SENTENCES[style]))))
    return found


def _referred(scene: Scene, random: Random) -> list[int]:
    """Choose objects that have a twin: RefCOCO and RefCOCOg, too, took only objects whose category occurs again."""
    counts = Counter(o.category_id for o in scene.objects)
    twins = [o.index for o in scene.objects if counts[o.category_id] > 1]
    random.shuffle(twins)
    return twins[:_MOST_REFERENCES]


def sentence_record(text: str, sentence_id: int) -> Record:
    """Return a sentence as REFER stores it: ``raw`` as written, ``sent`` in lower case without punctuation, tokens."""
    sent = " ".join(re.sub(r"[^\w\s'-]", " ", text.lower()).split())
    return {"sent_id": sentence_id, "sent": sent, "raw": text, "tokens": sent.split()}


def reference_records(scenes: Iterable[Record], style: str) -> tuple[list[Record], dict[str, Any]]:
    """Number the references of all scenes and return them in REFER's layout.

    Args:
        scenes: what the exporter keeps of each scene (keys ``image``, ``split``, ``references``).
        style: which style's references.

    Returns:
        The list for the pickle (fields exactly those of the published files), and sentence id (as text) -> the
        program that is the sentence's meaning.
    """
    records: list[Record] = []
    programs: dict[str, Any] = {}
    sentence_id = 0
    for scene in scenes:
        for annotation, category_id, phrases in scene["references"][style]:
            sentences = []
            for text, program in phrases:
                sentences.append(sentence_record(text, sentence_id))
                programs[str(sentence_id)] = program
                sentence_id += 1
            stem, _, ending = scene["image"]["file_name"].rpartition(".")
            records.append(
                {
                    "ref_id": len(records),
                    "ann_id": annotation,
                    "image_id": scene["image"]["id"],
                    "category_id": category_id,
                    "split": scene["split"],
                    "file_name": f"{stem}_{annotation}.{ending}",
                    "sent_ids": [s["sent_id"] for s in sentences],
                    "sentences": sentences,
                }
            )
    return records, programs


def scene_references(scene: Scene) -> dict[str, list[Any]]:
    """Return every style's references of a scene as lists: [annotation id, category id, [[text, program], ...]]."""
    return {
        style: [
            [annotation_id(scene, index), scene.objects[index].category_id, [[p.text, p.program] for p in phrases]]
            for index, phrases in references(scene, style)
        ]
        for style in REFER_NAMES
    }


def category_records(categories: Iterable[Category]) -> list[Record]:
    """Return categories as COCO lists them."""
    return [{"id": c.category_id, "name": c.name, "supercategory": c.supercategory} for c in categories]


def header(sprites: SpriteSet, description: str) -> Record:
    """Return the ``info`` and ``licenses`` of a COCO file."""
    return {
        "info": {"description": description, "attribution": sprites.attribution},
        "licenses": [
            {"id": 1, "name": sprites.attribution, "url": "https://creativecommons.org/licenses/by/4.0/"}
            if sprites.folder is None
            else {"id": 1, "name": sprites.attribution, "url": ""}
        ],
    }
