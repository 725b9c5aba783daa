"""``seewhere train pixels``: one stage of training, with snapshots of a few pictures on the way, and its scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from seewhere import storage
from seewhere.models.stepwise import training_device
from seewhere.pixels import history
from seewhere.pixels.reader import PixelReader
from seewhere.pixels.training import STAGES, PixelSettings, PixelTraining

SNAPSHOTS = (0.1, 0.4, 1.0)
"""Shares of a stage's steps after which the fixed pictures are read."""


def snapshot(training: PixelTraining, record: history.ReconstructionHistory, stage: str) -> Any:
    """The record with the pictures as the model sees them now."""
    settings = training.settings
    share = settings.mixture.get("colour", 0.0) / sum(settings.mixture.values())
    questions = round(training.step * settings.images * share) * settings.colour_questions
    reader = PixelReader(training.model, progress=False)
    found = np.stack(reader.reconstruct(list(history.shown_pictures().values())))
    return record.with_snapshot(training.step, stage, questions, found)


def train(training: PixelTraining, stage: str, folder: Path, progress: bool = True) -> None:
    """Train to the end with snapshots; what was done before is not done again."""
    path = folder / history.FILE
    record = history.read_history(path) if path.is_file() else history.empty_history(history.shown_pictures())
    for share in SNAPSHOTS:
        until = round(share * training.settings.steps)
        if len(record.steps) and until <= record.steps[-1]:
            continue
        training.run(until, progress=progress)
        record = snapshot(training, record, stage)
        record.write(path)
        print(f"step {training.step}: RE {np.round(record.errors[-1], 1).tolist()} of {', '.join(record.names)}")


def register(subparsers: Any) -> None:
    """Add ``seewhere train pixels``."""
    defaults = PixelSettings()
    parser = subparsers.add_parser("pixels", help="train the micro vision-language model to read pixels, a stage")
    parser.add_argument("--stage", choices=list(STAGES), required=True, help="what is trained, on which mixture")
    parser.add_argument("--start", default="", help="name or folder of the model to go on from (default: a new one)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log, history and model/")
    for name in ("steps", "images", "scenes", "textures", "frames", "seed", "colour_questions"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(defaults, name), help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate, help="default: %(default)s")
    parser.add_argument("--clip", default=defaults.clip, help="name or folder of the micro-CLIP (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="mixed precision: twice as fast on recent processors")
    parser.set_defaults(handler=main)


def main(arguments: argparse.Namespace) -> int:
    """Train a stage and write the model; the same call again goes on where it stopped."""
    chosen = {k: v for k, v in vars(arguments).items() if k in PixelSettings.__dataclass_fields__}
    settings = PixelSettings(**chosen, **STAGES[arguments.stage])
    training = PixelTraining(settings, arguments.out, device=training_device())
    train(training, arguments.stage, arguments.out)
    training.model.to("cpu").eval()
    training.model.write(arguments.out / "model")
    described = {"stage": arguments.stage, "settings": training.described()}
    storage.atomic_write_json(arguments.out / "training.json", described)
    print(f"the model is in {arguments.out / 'model'}")
    return 0
