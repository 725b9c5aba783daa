"""Scenes: determinism, disjoint splits, limits, layout; and their pictures and masks."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from seewhere.world import backgrounds
from seewhere.world.render import owner_map, render, visible_masks
from seewhere.world.scenes import (
    FAMILIES,
    SEEDS_PER_SPLIT,
    SPLITS,
    SceneSettings,
    mask_box,
    sample_scene,
    scene_seed,
)
from seewhere.world.sprites import TINTS, load_sprites

SPRITES = load_sprites()
SCENES = [sample_scene(n, SPRITES, split=split) for split in ("train", "test", "novel") for n in range(250)]


def test_the_same_seed_gives_the_same_scene_and_picture():
    for n in (0, 7, 123):
        first, again = sample_scene(n, SPRITES), sample_scene(n, SPRITES)
        assert first == again
        assert render(first, SPRITES)[0].tobytes() == render(again, SPRITES)[0].tobytes()
    assert len({render(s, SPRITES)[0].tobytes() for s in SCENES[:40]}) == 40


def test_splits_share_no_seed():
    ends = [(scene_seed(s, 0), scene_seed(s, SEEDS_PER_SPLIT - 1)) for s in SPLITS]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))
    assert len({s.seed for s in SCENES}) == len(SCENES)
    assert sample_scene(3, SPRITES, split="train").objects != sample_scene(3, SPRITES, split="test").objects
    for number in (-1, SEEDS_PER_SPLIT):
        with pytest.raises(ValueError, match="expected a number"):
            sample_scene(number, SPRITES)
    with pytest.raises(ValueError, match="unknown split"):
        sample_scene(0, SPRITES, split="testing")


def test_novel_categories_stay_in_their_split():
    for scene in SCENES:
        novel = scene.seed >= scene_seed("novel", 0)
        assert all((o.category_id >= 1000) == novel for o in scene.objects)


def test_limits_hold():
    for scene in SCENES:
        assert 2 <= len(scene.objects) <= 10
        assert scene.size in {(256, 192), (192, 256), (224, 224), (256, 256)}
        assert [o.index for o in scene.objects] == list(range(len(scene.objects)))
        assert sorted(o.depth for o in scene.objects) == list(range(len(scene.objects)))
        for o in scene.objects:
            assert 0.5 <= o.visible_fraction <= 1
            x1, y1, x2, y2 = o.full_box
            assert 0 <= x1 < x2 <= scene.width
            assert 0 <= y1 < y2 <= scene.height
            assert 24 <= max(x2 - x1, y2 - y1) == o.side <= 96
            assert o.tint is None or o.tint in TINTS


def test_boxes_areas_and_fractions_agree_with_the_masks():
    for scene in SCENES[::5]:
        masks = visible_masks(scene, SPRITES)
        assert np.sum(masks, axis=0).max() <= 1  # a pixel belongs to one object at most
        for o, mask in zip(scene.objects, masks, strict=True):
            assert mask.shape == (scene.height, scene.width)
            assert mask_box(mask) == o.box
            assert mask.sum() == o.area
            whole = SPRITES.mask(o.sprite, o.side, o.mirrored).sum()
            assert o.area / whole == pytest.approx(o.visible_fraction)


def test_the_front_object_owns_the_shared_pixels():
    shared = 0
    for scene in SCENES[::5]:
        owner = owner_map(scene, SPRITES)
        front = max(scene.objects, key=lambda o: o.depth)
        x1, y1, x2, y2 = (int(v) for v in front.full_box)
        mask = SPRITES.mask(front.sprite, front.side, front.mirrored)
        assert (owner[y1:y2, x1:x2][mask] == front.index).all()
        shared += any(o.visible_fraction < 1 for o in scene.objects)
    assert shared > 10


def test_pictures_show_objects_where_the_masks_say():
    for scene in SCENES[:20]:
        picture, masks = render(scene, SPRITES)
        assert picture.mode == "RGB"
        assert picture.size == scene.size
        changed = np.abs(np.asarray(picture).astype(int) - np.asarray(backgrounds.paint(scene)).astype(int)).sum(axis=2)
        covered = np.any(masks, axis=0)
        assert (changed[covered] > 0).mean() > 0.9
        x1, y1 = np.min([o.full_box[:2] for o in scene.objects], axis=0).astype(int)
        assert not changed[: max(y1 - 1, 0)].any()
        assert not changed[:, : max(x1 - 1, 0)].any()


def test_scenes_are_as_varied_as_the_card_says():
    assert set(FAMILIES) == {s.background for s in SCENES}
    repeats = [max(Counter(o.category for o in s.objects).values()) for s in SCENES]
    assert 0.52 < np.mean([r > 1 for r in repeats]) < 0.72
    assert max(repeats) == 4
    objects = [o for s in SCENES for o in s.objects]
    assert 0.28 < np.mean([o.tint is not None for o in objects]) < 0.45
    assert 0.25 < np.mean([o.mirrored for o in objects]) < 0.45


def test_layout_tells_where_things_belong():
    rows = {"sky": [], "floor": []}
    for scene in SCENES:
        for o in scene.objects:
            support = SPRITES.by_id[o.category_id].support
            if support in rows:
                rows[support].append((o.box[1] + o.box[3]) / 2 / scene.height)
    assert np.median(rows["sky"]) < 0.35
    assert min(rows["floor"]) > 0.2
    assert np.median(rows["floor"]) > 0.55


def test_a_tint_is_never_another_ones_natural_colour():
    for scene in SCENES:
        for o in scene.objects:
            if o.tint:
                twins = [p for p in scene.objects if p.category == o.category and p.tint is None]
                assert not any(o.tint in SPRITES.sprites[p.sprite].colors for p in twins)


def test_settings_are_obeyed():
    settings = SceneSettings(
        sizes=((128, 128),), objects=(3, 3), sides=(24, 40), tinted=(0, 0), mirrored=0, visible=0.9
    )
    for n in range(60):
        scene = sample_scene(n, SPRITES, settings)
        assert scene.size == (128, 128)
        assert len(scene.objects) <= 3
        assert all(o.tint is None and not o.mirrored and o.side <= 40 for o in scene.objects)
        assert all(o.visible_fraction >= 0.9 for o in scene.objects)


def test_a_scene_of_another_cast_is_refused():
    scene = SCENES[0]
    stranger = replace(scene, objects=(replace(scene.objects[0], sprite="nobody"),))
    with pytest.raises(ValueError, match="nobody"):
        render(stranger, SPRITES)
    with pytest.raises(ValueError, match="unknown background"):
        backgrounds.paint(replace(scene, background="moon"))


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        mask_box(np.zeros((4, 4), bool))
