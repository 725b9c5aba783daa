"""The cast: the curated table, its artwork, tints, and folders of one's own sprites."""

import colorsys
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from seewhere.world.sprites import NOVEL_FROM, TINTS, SpriteError, load_sprites, read_table, tinted

# A sample of the published table of COCO 2017 (ids have gaps: 12, 26, 29, 30, ... are unused).
COCO_IDS = {
    "person": 1, "bicycle": 2, "car": 3, "airplane": 5, "bus": 6, "train": 7, "truck": 8, "boat": 9,
    "traffic light": 10, "stop sign": 13, "bird": 16, "cat": 17, "dog": 18, "horse": 19, "sheep": 20, "cow": 21,
    "elephant": 22, "bear": 23, "zebra": 24, "giraffe": 25, "backpack": 27, "umbrella": 28, "handbag": 31, "tie": 32,
    "suitcase": 33, "frisbee": 34, "skis": 35, "sports ball": 37, "kite": 38, "skateboard": 41, "bottle": 44,
    "wine glass": 46, "cup": 47, "knife": 49, "spoon": 50, "bowl": 51, "banana": 52, "apple": 53, "sandwich": 54,
    "orange": 55, "broccoli": 56, "carrot": 57, "hot dog": 58, "pizza": 59, "donut": 60, "cake": 61, "chair": 62,
    "couch": 63, "potted plant": 64, "bed": 65, "toilet": 70, "tv": 72, "laptop": 73, "mouse": 74, "keyboard": 76,
    "cell phone": 77, "book": 84, "clock": 85, "vase": 86, "scissors": 87, "teddy bear": 88, "toothbrush": 90,
    "motorcycle": 4,
}  # fmt: skip
SUPERCATEGORIES = {"person": "person", "car": "vehicle", "stop sign": "outdoor", "dog": "animal", "tie": "accessory",
                   "kite": "sports", "cup": "kitchen", "pizza": "food", "couch": "furniture", "tv": "electronic",
                   "book": "indoor"}  # fmt: skip


def test_the_table_is_as_large_as_promised_and_disjoint():
    table = [category for category, _ in read_table()]
    coco, novel = [c for c in table if not c.novel], [c for c in table if c.novel]
    assert len(coco) >= 60
    assert len(novel) >= 30
    assert not {c.name for c in coco} & {c.name for c in novel}
    assert len({c.category_id for c in table}) == len(table) == len({c.name for c in table})
    assert all(c.category_id < NOVEL_FROM for c in coco)


def test_coco_categories_carry_cocos_ids_and_supercategories():
    found = {c.name: c for c, _ in read_table() if not c.novel}
    assert {name: c.category_id for name, c in found.items()} == COCO_IDS
    assert {name: found[name].supercategory for name in SUPERCATEGORIES} == SUPERCATEGORIES


def test_every_code_point_has_artwork_used_once():
    sprites = load_sprites()
    stems = [stem for _, artwork in read_table() for stem in artwork]
    assert len(stems) == len(set(stems)) == len(sprites.sprites)
    assert all(s.path.is_file() and min(s.width, s.height) > 8 for s in sprites.sprites.values())
    assert "CC-BY 4.0" in sprites.attribution


@pytest.mark.parametrize("side", [24, 52, 96])
def test_masks_and_pictures_agree_and_mirror(side):
    sprites = load_sprites()
    for name in list(sprites.sprites)[::20]:
        mask, mirror = sprites.mask(name, side), sprites.mask(name, side, mirrored=True)
        assert mask.shape == sprites.sprites[name].size_at(side)[::-1]
        assert max(mask.shape) == side
        assert np.array_equal(mask[:, ::-1], mirror)
        assert np.array_equal(np.asarray(sprites.picture(name, side))[..., 3] >= 128, mask)


@pytest.mark.parametrize("word", sorted(TINTS))
def test_tints_show_and_keep_the_outline(word):
    sprites = load_sprites()
    for name in ("1f408-200d-2b1b", "1f411", "1f697", "1f34c"):  # black, white, red and yellow artwork
        art = sprites.picture(name, 72)
        painted = np.asarray(tinted(art, TINTS[word])).astype(float)
        assert np.array_equal(painted[..., 3], np.asarray(art)[..., 3])
        hue, saturation, _ = colorsys.rgb_to_hsv(*painted[painted[..., 3] > 200][:, :3].mean(axis=0) / 255)
        turns = {other: abs(hue - colorsys.rgb_to_hsv(*(v / 255 for v in c))[0]) for other, c in TINTS.items()}
        assert min(turns, key=lambda other: min(turns[other], 1 - turns[other])) == word
        assert saturation > 0.3


def _folder(path, **changes):
    art = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    ImageDraw.Draw(art).ellipse((5, 5, 34, 24), fill=(200, 30, 30, 255))
    for name in ("a.png", "b.png"):
        art.save(path / name)
    Image.new("RGBA", (9, 9)).save(path / "empty.png")
    (path / "broken.png").write_bytes(b"\x89PNG no picture")
    first = {"id": 1, "name": "pebble", "sprites": ["a.png"], **changes}
    content = {"attribution": "me", "categories": [first, {"id": 1001, "name": "marble", "sprites": ["b.png"]}]}
    (path / "categories.json").write_text(json.dumps(content))
    return path


def test_a_folder_of_ones_own_sprites(tmp_path):
    sprites = load_sprites(str(_folder(tmp_path, supercategory="stone", size=0.6)))
    assert [c.name for c in sprites.coco] == ["pebble"]
    assert [c.name for c in sprites.novel] == ["marble"]
    assert sprites.by_id[1].supercategory == "stone"
    assert (sprites.sprites["a.png"].width, sprites.sprites["a.png"].height) == (30, 20)  # cut to what is opaque
    assert sprites.attribution == "me"
    assert sprites.fingerprint != load_sprites().fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sprites": ["gone.png"]}, "gone.png"),
        ({"sprites": ["empty.png"]}, "transparent"),
        ({"sprites": ["broken.png"]}, "broken.png"),
        ({"sprites": []}, "without any sprite"),
        ({"sprites": ["b.png"]}, "listed twice"),
        ({"id": 1001}, "twice"),
        ({"support": "ceiling"}, "support"),
        ({"size": 9}, "size"),
        ({"id": "x"}, "expected"),
    ],
)
def test_a_bad_folder_is_refused_with_the_reason(tmp_path, changes, message):
    with pytest.raises(SpriteError, match=message):
        load_sprites(str(_folder(tmp_path, **changes)))


def test_a_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(SpriteError, match=r"categories\.json"):
        load_sprites(str(tmp_path))
