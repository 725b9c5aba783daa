"""``seewhere train pixels``: one stage of training or all, with snapshots of a few pictures on the way."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from seewhere import storage
from seewhere.models.minigpt import SETTINGS_FILE
from seewhere.models.stepwise import training_device
from seewhere.pixels import history, recipe
from seewhere.pixels.reader import PixelReader
from seewhere.pixels.recipe import SHIPPED_STAGES, PixelSettings, Recipe
from seewhere.pixels.training import PixelTraining

SNAPSHOTS = (0.1, 0.4, 1.0)
"""Shares of a stage's steps after which the fixed pictures are read."""
ALL = "all"


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
    # At its end already, but not yet behind it where an earlier call took all snapshots: what comes last is done here.
    training.run(progress=progress)


def train_stage(settings: PixelSettings, stage: str, folder: Path, progress: bool = True) -> Path:
    """Train a stage and write its model with what it was made by; returns the model's folder.

    The same call again goes on where it stopped; a stage that is finished is not trained again.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    target, about = folder / "model", folder / recipe.TRAINING
    if about.is_file() and (target / SETTINGS_FILE).is_file():
        made = storage.read_json(about)["settings"]
        odd = recipe.differences(made, settings) + ["start"] * (made["start"] != settings.start)
        if odd:
            raise ValueError(f"{folder} holds a finished stage of other settings ({'; '.join(odd)}); choose another")
        print(f"stage {stage} is done: {target}")
        return target
    training = PixelTraining(settings, folder, device=training_device())
    train(training, stage, folder, progress)
    training.model.to("cpu").eval()
    training.model.write(target)
    described = {"stage": stage, "settings": training.described(), "pictures": training.pictures}
    storage.atomic_write_json(about, described)
    print(f"the model is in {target}")
    return target


def train_all(chosen: Recipe, folder: Path, progress: bool = True) -> None:
    """Train stages 1 to 3 and the frozen baseline, each in a folder of its own (`place_of`)."""
    for stage in SHIPPED_STAGES:
        before = chosen.after[stage]
        start = str(place_of(before, folder) / "model") if before else ""
        train_stage(replace(chosen.stages[stage], start=start), stage, place_of(stage, folder), progress)


def place_of(stage: str, folder: Path) -> Path:
    """Where `train_all` keeps a stage."""
    return folder / (f"stage{stage}" if stage[0].isdigit() else stage)


_NUMBERS = ("steps", "images", "scenes", "textures", "frames", "seed")
_QUESTIONS = ("colour_questions", "mask_questions", "word_questions", "lora_rank")


def register(subparsers: Any) -> None:
    """Add ``seewhere train pixels``."""
    known = recipe.load()
    parser = subparsers.add_parser("pixels", help="train the micro vision-language model to read pixels, in stages")
    parser.add_argument(
        "--stage",
        required=True,
        help=f"a stage of the recipe (the default one's: {', '.join(known.stages)}), or {ALL}",
    )
    parser.add_argument("--start", default="", help="name or folder of the model to go on from (default: a new one)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log, history and model/")
    add_recipe_arguments(parser)
    for name in (*_NUMBERS, *_QUESTIONS):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="default: the recipe's")
    parser.add_argument("--learning-rate", type=float, help="default: the recipe's")
    parser.add_argument("--clip", help=f"name or folder of the micro-CLIP (default: {known.stages['1'].clip})")
    parser.add_argument("--ship", action="store_true", help="with --stage all: put the models into the package")
    parser.set_defaults(handler=main)


def add_recipe_arguments(parser: argparse.ArgumentParser, packaged: Path = recipe.PACKAGED) -> None:
    """Add the flags that every command on a recipe has; `packaged` is its own."""
    parser.add_argument(
        "--recipe", type=Path, default=packaged, help="file of stages, mixtures and rates (default: %(default)s)"
    )
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="mixed precision, for recent processors; the recipe's"
    )


def main(arguments: argparse.Namespace) -> int:
    """Train a stage, or all, by the recipe and what the flags change of it."""
    known = PixelSettings.__dataclass_fields__
    flags = {name: value for name, value in vars(arguments).items() if name in known and name != "start"}
    chosen = recipe.load(arguments.recipe).changed(**flags)
    if arguments.stage == ALL:
        if arguments.start:
            raise ValueError("--stage all begins with stage 1; expected no --start")
        chosen.check_has(SHIPPED_STAGES, str(arguments.recipe))
        train_all(chosen, arguments.out)
        if arguments.ship:
            from seewhere.pixels.shipping import ship  # it asks the models, which training alone does not need

            print(f"shipped: {ship(arguments.out)}")
        return 0
    if arguments.ship:
        raise ValueError("--ship takes all stages; expected --stage all with it")
    if arguments.stage not in chosen.stages:
        raise ValueError(f"{arguments.recipe} has no stage {arguments.stage!r}; it has {', '.join(chosen.stages)}")
    if chosen.after[arguments.stage] and not arguments.start:
        before = chosen.after[arguments.stage]
        raise ValueError(f"stage {arguments.stage} goes on from stage {before}: give its model with --start FOLDER")
    train_stage(replace(chosen.stages[arguments.stage], start=arguments.start), arguments.stage, arguments.out)
    return 0
