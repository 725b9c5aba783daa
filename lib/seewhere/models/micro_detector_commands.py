"""The commands ``seewhere train detector`` and ``seewhere evaluate detector``, and what they write.

A trained detector is a folder: weights in seven bits, ``config.json``, and a card with the command that makes it
again, the seeds of its data, and its scores by pycocotools on the world's validation scenes.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from seewhere.models.micro_detector import (
    NAMES,
    WEIGHTS,
    DetectionScores,
    MicroDetector,
    evaluate_map,
    parameter_count,
)
from seewhere.models.micro_detector_data import RECIPES, TrainingSettings, render_scenes, world_categories
from seewhere.models.micro_detector_training import Trainer, tune_threshold
from seewhere.storage import atomic_write_json, runs_home
from seewhere.world.render import render_image
from seewhere.world.scenes import SceneSettings, sample_scene
from seewhere.world.sprites import load_sprites

TUNING_SEED = 1_000_000  # scenes of the validation split that tune the threshold; reported scores use others


def train(settings: TrainingSettings, output: Path, folder: Path, resume: bool = False, tuning: int = 300,
          validation: int = 500) -> Path:  # fmt: skip
    """Train a detector, tune its threshold, score it, and write its folder.

    Args:
        settings: the recipe.
        output: folder of the finished detector, written whole or not at all.
        folder: where the checkpoint and ``log.txt`` live.
        resume: go on from the checkpoint in ``folder`` if there is one.
        tuning, validation: number of validation scenes for the threshold, and (others) for the reported scores.
    """
    folder.mkdir(parents=True, exist_ok=True)
    side = settings.network.input_side
    scenes = render_scenes(settings.first_seed, settings.scenes, side, "train", settings.backdrop)
    trainer = Trainer(settings, world_categories(), scenes, folder)
    if resume and trainer.checkpoint.exists():
        trainer.resume()
    with (folder / "log.txt").open("a", encoding="utf-8") as stream:
        trainer.run(log=lambda line: print(line, file=stream, flush=True))
    detector = trainer.detector()
    tuning_scenes = render_scenes(TUNING_SEED, tuning, side, "val")
    threshold, at_threshold = tune_threshold(detector, tuning_scenes, settings.recall_weight)
    scores = score_on_world(detector, validation)
    measured = {**scores.as_dict(), "at_threshold": at_threshold}
    card = write_card(settings, parameter_count(detector.network), threshold, scores, at_threshold)
    trainer.write(output, {"threshold": threshold, "scores": measured}, card)
    return output


def score_on_world(detector: MicroDetector, count: int, split: str = "val") -> DetectionScores:
    """Score a detector on the first scenes of a split of the world, through a COCO file, with pycocotools."""
    with tempfile.TemporaryDirectory() as name:
        return evaluate_map(detector, export_scenes(Path(name), count, split), name)


def export_scenes(folder: Path, count: int, split: str = "val") -> Path:
    """Write the first ``count`` scenes of a split as PNG files and a COCO instances file; return the latter's path."""
    sprites = load_sprites()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(count):
        scene = sample_scene(i, sprites, SceneSettings(), split)
        render_image(scene, sprites).save(folder / f"{i}.png", compress_level=1)
        images.append({"id": i, "file_name": f"{i}.png", "width": scene.width, "height": scene.height})
        for item in scene.objects:
            x1, y1, x2, y2 = item.box
            box = [x1, y1, x2 - x1, y2 - y1]
            common = {"id": len(annotations) + 1, "image_id": i, "category_id": item.category_id, "iscrowd": 0}
            annotations.append({**common, "bbox": box, "area": item.area})
    categories = [{"id": c.category_id, "name": c.name} for c in sprites.categories]
    path = folder / "instances.json"
    atomic_write_json(path, {"info": {}, "images": images, "annotations": annotations, "categories": categories})
    return path


def write_card(
    settings: TrainingSettings, parameters: int, threshold: float, scores: DetectionScores, chosen: dict[str, float]
) -> str:
    """Return the card of a trained detector; ``{sha256}`` and ``{megabytes}`` are filled in when it is written."""
    last = settings.first_seed + settings.scenes - 1
    network = settings.network
    shape = f"ResNetBackbone, stages {network.widths}, {network.input_side} px, "
    shape += f"{'colour' if network.colour else 'luminance only'}; {parameters:,} parameters"
    data = f"{settings.scenes:,} scenes of the train split, numbers {settings.first_seed}-{last}, "
    data += f"{settings.backdrop} backgrounds; {settings.steps:,} steps of {settings.batch_size}"
    quality = f"precision {chosen['precision']:.3f}, recall {chosen['recall']:.3f}"
    command = f"seewhere train detector --name {settings.name} --steps {settings.steps} --seed {settings.seed}"
    command += " --output FOLDER"
    return f"""# {NAMES.get(settings.name, settings.name)}

A small object detector (`seewhere.models.micro_detector`), trained from scratch on the embedded world.

| | |
| --- | --- |
| make it again | `{command}` |
| network | {shape} |
| data | {data} |
| mAP@[.5:.95] | {scores.mean_average_precision:.3f} (pycocotools, first {scores.images} scenes of the val split) |
| mAP@.5 | {scores.mean_average_precision_50:.3f} |
| at the shipped threshold {threshold:.2f} | {quality} (right label, IoU > 0.5; other val scenes) |
| size | {{megabytes}} MB, seven bits a number |
| sha256 of model.safetensors | `{{sha256}}` |

It knows the world's COCO categories and no novel one. It reads words, not relations: for a phrase it answers with the
best-scored object of the kind the phrase names first. The sprites it was trained on are Twemoji (CC-BY 4.0).
"""


def register(subparsers: Any) -> None:
    """Add ``train detector`` and ``evaluate detector`` to the command line."""
    training = command_group(subparsers, "train", "train a micro model from scratch").add_parser(
        "detector", help="train a micro detector on the world"
    )
    training.add_argument("--name", default="micro", choices=sorted(RECIPES), help="recipe (default: %(default)s)")
    training.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    training.add_argument("--scenes", type=int, help="number of training scenes (default: the recipe's)")
    training.add_argument("--seed", type=int, help="seed of the parameters and of the order (default: the recipe's)")
    training.add_argument("--learning-rate", type=float, help="peak learning rate (default: the recipe's)")
    training.add_argument("--output", type=Path, help="folder of the result (default: under runs/)")
    training.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    training.set_defaults(run=_train_command)
    scoring = command_group(subparsers, "evaluate", "score a model").add_parser(
        "detector", help="mAP of a micro detector, by pycocotools"
    )
    scoring.add_argument("--name", default="micro", help="micro, micro-b or a folder (default: %(default)s)")
    scoring.add_argument("--annotations", type=Path, help="a COCO instances file (default: world scenes, made now)")
    scoring.add_argument("--images", type=Path, help="folder of its images (default: images/ beside the file)")
    scoring.add_argument("--limit", type=int, default=500, help="number of images (default: %(default)s)")
    scoring.set_defaults(run=_evaluate_command)


def command_group(subparsers: Any, name: str, help: str) -> Any:
    """Return the sub-command group ``name``, made on first use: several modules add to "train" and "evaluate"."""
    if name not in subparsers.choices:
        return subparsers.add_parser(name, help=help).add_subparsers(dest=f"{name}_what", required=True)
    actions = subparsers.choices[name]._actions  # argparse has no public way to ask for an existing group
    return next(action for action in actions if isinstance(action, argparse._SubParsersAction))


def _train_command(arguments: argparse.Namespace) -> int:
    chosen = {k: getattr(arguments, k) for k in ("steps", "scenes", "seed", "learning_rate")}
    settings = replace(RECIPES[arguments.name], **{k: v for k, v in chosen.items() if v is not None})
    folder = runs_home() / "train-detector" / f"{settings.name}-seed{settings.seed}"
    output = train(settings, arguments.output or folder / "detector", folder, arguments.resume)
    print(f"{output}\nuse it with --name {output}; shipped detectors live in {WEIGHTS}")
    return 0


def _evaluate_command(arguments: argparse.Namespace) -> int:
    detector = MicroDetector.load(arguments.name)
    if arguments.annotations is None:
        scores = score_on_world(detector, arguments.limit)
    else:
        images = arguments.images or arguments.annotations.parent / "images"
        scores = evaluate_map(detector, arguments.annotations, images, arguments.limit)
    for name, value in scores.as_dict().items():
        print(f"{name:28s} {np.round(value, 4)}")
    return 0
