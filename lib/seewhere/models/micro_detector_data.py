"""What the micro detectors are trained on: two recipes, their scenes as arrays, and the distortions of a batch.

``micro`` sees the world as it is. ``micro-b`` has another seed, narrower layers, fewer scenes, no colour, and never
sees the world's backgrounds: its objects stand before random patches. The mistakes of the two differ, which is what
ensembling and transfer between detectors need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from seewhere import boxes as frames
from seewhere.models.micro_detector import NetworkSettings
from seewhere.storage import atomic_directory, cache_home
from seewhere.world.render import render_image
from seewhere.world.scenes import WORLD_VERSION, Scene, SceneSettings, sample_scene
from seewhere.world.sprites import SpriteSet, load_sprites


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """A recipe. Scenes are ``sample_scene(first_seed + i)`` of the world's train split, i < ``scenes``.

    ``first_seed`` lies far from the seeds that the world's own data sets start at, so a detector is as strange to the
    train images of the other models as to their test images.
    """

    name: str = "micro"
    network: NetworkSettings = field(default_factory=NetworkSettings)
    scenes: int = 6_000
    first_seed: int = 5_000_000
    backdrop: str = "world"  # "random" puts the objects before coloured patches instead of the world's backgrounds
    seed: int = 0
    steps: int = 4_050
    batch_size: int = 16  # many small steps learn more in a few minutes than fewer large ones
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    average: float = 0.997  # decay of the running mean of parameters, which is what ships
    zoom: float = 0.0  # zoom by up to exp(+-zoom) and shift; worth its time only when scenes are seen often
    colour_jitter: float = 0.1  # of brightness and each channel
    recall_weight: float = 1.0  # beta of the F score that sets the threshold; a weaker detector should propose more
    checkpoint_every: int = 250


RECIPES: dict[str, TrainingSettings] = {
    "micro": TrainingSettings(),
    "micro-b": TrainingSettings(
        name="micro-b",
        network=NetworkSettings(embedding=24, widths=(24, 48, 96, 160), fusion=64, colour=False),
        scenes=4_000,
        first_seed=6_000_000,
        backdrop="random",
        seed=1,
        steps=1_950,
        colour_jitter=0.3,
        recall_weight=2.0,
    ),
}


@dataclass(frozen=True, slots=True)
class Scenes:
    """Scenes as arrays: images (N, S, S, 3) uint8, and per image boxes (K, 4) xyxy input pixels and classes (K,)."""

    images: np.ndarray
    boxes: list[np.ndarray]
    classes: list[np.ndarray]


Batch = tuple[Tensor, list[np.ndarray], list[np.ndarray]]


def world_categories() -> list[tuple[int, str]]:
    """Return (id, name) of the world's COCO categories, by id; novel ones stay unseen, as in every training split."""
    return sorted((category.category_id, category.name) for category in load_sprites().coco)


def render_scenes(first_seed: int, count: int, side: int, split: str = "train", backdrop: str = "world") -> Scenes:
    """Compose ``count`` scenes and letterbox them to ``side`` x ``side``; results are kept in the cache folder.

    Raises:
        ValueError: ``backdrop`` is neither "world" nor "random".
    """
    if backdrop not in ("world", "random"):
        raise ValueError(f"unknown backdrop {backdrop!r}; expected 'world' or 'random'")
    world = f"{WORLD_VERSION}-{load_sprites().fingerprint[:8]}"
    folder = cache_home() / "micro-detector" / f"scenes-{world}-{backdrop}-{split}-{first_seed}-{count}-{side}"
    if not folder.exists():
        with atomic_directory(folder) as partial:
            _render_into(partial, first_seed, count, side, split, backdrop)
    flat, counts = np.load(folder / "objects.npy"), np.load(folder / "counts.npy")
    parts = np.split(flat, np.cumsum(counts)[:-1])
    images = np.load(folder / "images.npy", mmap_mode="r")
    return Scenes(images, [p[:, :4] for p in parts], [p[:, 4].astype(np.int64) for p in parts])


def _render_into(folder: Path, first_seed: int, count: int, side: int, split: str, backdrop: str) -> None:
    sprites, settings = load_sprites(), SceneSettings()
    index = {number: k for k, (number, _) in enumerate(world_categories())}
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(count, side, side, 3))
    rows: list[np.ndarray] = []
    for i in tqdm(range(count), desc="scenes", mininterval=2):
        scene = sample_scene(first_seed + i, sprites, settings, split)
        picture = render_image(scene, sprites) if backdrop == "world" else before_patches(scene, sprites)
        transform = frames.letterbox(picture.size, (side, side))
        images[i] = np.asarray(transform.apply_image(picture))
        boxes = transform.apply_boxes(np.array([o.box for o in scene.objects], dtype=np.float64).reshape(-1, 4))
        rows.append(np.column_stack([boxes, [index[o.category_id] for o in scene.objects]]))
    images.flush()
    np.save(folder / "objects.npy", np.concatenate(rows))
    np.save(folder / "counts.npy", np.array([len(r) for r in rows]))


def before_patches(scene: Scene, sprites: SpriteSet) -> Image.Image:
    """Paint a scene's objects before random coloured patches; the same scene gives the same picture."""
    random = np.random.default_rng(scene.seed)
    cells = int(random.integers(2, 9))
    patches = random.integers(30, 256, (3, 3)).astype(float)[random.integers(0, 3, (cells, cells))]
    patches += random.normal(0, 12, patches.shape)
    smooth = Image.Resampling.BILINEAR if random.random() < 0.5 else Image.Resampling.NEAREST
    picture = Image.fromarray(patches.clip(0, 255).astype(np.uint8)).resize(scene.size, smooth)
    for item in sorted(scene.objects, key=lambda o: o.depth):
        sprite = sprites.picture(item.sprite, item.side, item.mirrored, item.tint)
        picture.paste(sprite, (int(item.full_box[0]), int(item.full_box[1])), sprite)
    return picture


def batch_of(
    scenes: Scenes, settings: TrainingSettings, step: int
) -> tuple[Tensor, list[np.ndarray], list[np.ndarray]]:
    """Return one distorted training batch: pixels (B, 3, S, S) in 0..1, boxes and classes; a function of the step."""
    count, size = len(scenes.boxes), settings.batch_size
    epoch, place = divmod(step * size, count)
    order = np.random.default_rng([settings.seed, epoch]).permutation(count)
    picked = np.sort(order[(place + np.arange(size)) % count])
    random = np.random.default_rng([settings.seed, 7, step])
    pixels = torch.from_numpy(np.ascontiguousarray(scenes.images[picked])).permute(0, 3, 1, 2).float() / 255
    return distort(pixels, [scenes.boxes[i] for i in picked], [scenes.classes[i] for i in picked], settings, random)


def distort(
    pixels: Tensor,
    boxes: Sequence[np.ndarray],
    classes: Sequence[np.ndarray],
    settings: TrainingSettings,
    random: np.random.Generator,
) -> Batch:
    """Mirror, zoom, shift and recolour a batch; objects less than half inside the frame are dropped."""
    count, side = len(pixels), pixels.shape[-1]
    zoom = np.exp(random.uniform(-settings.zoom, settings.zoom, count))
    flip = np.where(random.random(count) < 0.5, -1.0, 1.0)
    slack = np.abs(zoom - 1)[:, None] / 2 + (0.05 if settings.zoom else 0.0)
    shift = random.uniform(-slack, slack, (count, 2)) * side  # pixels of the result
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = torch.from_numpy(flip / zoom).float(), torch.from_numpy(1 / zoom).float()
    matrix[:, 0, 2] = torch.from_numpy(-2 * shift[:, 0] / side * flip / zoom).float()
    matrix[:, 1, 2] = torch.from_numpy(-2 * shift[:, 1] / side / zoom).float()
    if settings.zoom:
        grid = functional.affine_grid(matrix, [count, 3, side, side], align_corners=False)
        pixels = functional.grid_sample(pixels - 0.5, grid, align_corners=False) + 0.5
    else:
        mirrored = torch.from_numpy(flip < 0).view(-1, 1, 1, 1)
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
    jitter = settings.colour_jitter
    gain = torch.from_numpy(np.exp(random.uniform(-jitter, jitter, (count, 3, 1, 1)))).float()
    bias = torch.from_numpy(random.uniform(-jitter / 2, jitter / 2, (count, 1, 1, 1))).float()
    pixels = ((pixels - 0.5) * gain + 0.5 + bias).clamp(0, 1)
    new_boxes, new_classes = [], []
    for i in range(count):
        moved_boxes = _move(boxes[i], float(zoom[i]), float(flip[i]), shift[i], side)
        inside = frames.clip(moved_boxes, (side, side))
        keep = frames.area(inside) >= 0.5 * frames.area(moved_boxes)
        new_boxes.append(inside[keep])
        new_classes.append(classes[i][keep])
    return pixels, new_boxes, new_classes


def _move(boxes: np.ndarray, zoom: float, flip: float, shift: np.ndarray, side: int) -> np.ndarray:
    middle = side / 2
    x = (boxes[:, [0, 2]] - middle) * zoom * flip + middle + shift[0]
    y = (boxes[:, [1, 3]] - middle) * zoom + middle + shift[1]
    return np.column_stack([x.min(axis=1, initial=np.inf), y[:, 0], x.max(axis=1, initial=-np.inf), y[:, 1]])
