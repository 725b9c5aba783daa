"""Which of the two ingredients helps segmentation: pixel questions, an adapted encoder, both, or neither (table 7)?

Four models that differ in their pre-training only, each fine-tuned for boxes and masks under several seeds, and asked
about the same references. What is left out is left out and not replaced: an arm without pixel questions is asked as
many questions of every other kind, in correspondingly fewer steps. Everything else is one recipe
(`seewhere.pixels.recipe`): the same pictures, mixtures, rates and seeds of pre-training.

``seewhere train segmentation`` makes all of it and can be stopped at any time; what it has found lies in a table that
ships with the package, because twelve fine-tuned models do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from seewhere import datasets, storage
from seewhere.models.minigpt import SETTINGS_FILE, MiniGPT
from seewhere.models.stepwise import training_device
from seewhere.pixels import arm_cases, segmentation
from seewhere.pixels.commands import add_recipe_arguments
from seewhere.pixels.reader import PixelReader
from seewhere.pixels.recipe import (
    OF_ARMS,
    PixelSettings,
    Recipe,
    chain,
    check_made,
    check_only_the_encoder_differs,
    load,
    whole,
)
from seewhere.pixels.training import PixelTraining
from seewhere.world import export

ARMS = ("both", "pixels", "adaptation", "neither")
WITH_PIXELS, ADAPTED = ("both", "pixels"), ("both", "adaptation")
TRAINED, HELD = ("1", "2", "3"), ("1", "frozen", "3")
"""The three stages of an arm whose encoder is adapted, and of one whose encoder is held."""
TABLE, ABOUT, CARD = "predictions.csv", "arms.json", "README.md"
COMMAND = "seewhere train segmentation"
SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "micro-segmentation"
KEPT = (
    "system",
    "seed",
    "data",
    "expression_id",
    "image_id",
    "words",
    "area",
    "box_iou",
    "hit",
    "intersection",
    "union",
    "iou",
    "cells",
    "x1",
    "ceiling_intersection",
    "ceiling_union",
    "box",
)


@dataclass(frozen=True, slots=True)
class ArmSettings:
    """How the arms are made.

    Attributes:
        recipe: stages and fine-tuning, the same for all arms.
        starts: (arm, folder of a model whose stages are done under this very recipe); with "@NAME" behind it, the
            stages from NAME on are still to come. Arms without one, by default all of them, are trained from stage 1.
        references: for each style of the world.
        styles: data sets that references are drawn from.
        world_preset: build of the world.
    """

    recipe: Recipe = field(default_factory=lambda: load(OF_ARMS))
    starts: tuple[tuple[str, str], ...] = ()
    references: int = 100
    styles: tuple[str, ...] = ("world", "world+", "worldg")
    world_preset: str = "quick"


def stage_settings(arm: str, settings: ArmSettings) -> dict[str, PixelSettings]:
    """The settings of an arm's three stages: name of the part -> settings, in the order in which they are trained.

    Raises:
        ValueError: unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}; expected one of {', '.join(ARMS)}")
    stages = settings.recipe.stages
    found = {name: stages[name] for name in chain(stages, *(TRAINED if arm in ADAPTED else HELD))}
    return found if arm in WITH_PIXELS else {name: _without_colours(stage) for name, stage in found.items()}


def _without_colours(stage: PixelSettings) -> PixelSettings:
    """The same questions of every other kind, and so fewer steps."""
    mixture = dict(stage.mixture)
    left = 1 - mixture.pop("colour", 0.0) / sum(stage.mixture.values())
    return replace(stage, mixture=mixture, steps=max(1, round(stage.steps * left)), textures=0, frames=0)


def tuning_settings(settings: ArmSettings, seed: int) -> PixelSettings:
    """The settings of fine-tuning, the same for every arm."""
    return replace(settings.recipe.tuning, seed=seed)


def train(recipe: PixelSettings, folder: Path, model: MiniGPT | None = None, progress: bool = True) -> MiniGPT:
    """Run a recipe, or read what an earlier run of it left in `folder`/model."""
    target = folder / "model"
    if not (target / SETTINGS_FILE).is_file():
        run = PixelTraining(recipe, folder, model=model, device=training_device())
        run.run(progress=progress)
        run.model.to("cpu").write(target)
    return MiniGPT.load(target, device=str(training_device()))


def start_of(
    arm: str, settings: ArmSettings, folder: Path, first: MiniGPT | None = None, progress: bool = True
) -> MiniGPT:
    """The arm's model before fine-tuning: a given start, or its three stages one after the other.

    Args:
        arm: see `ARMS`.
        settings: how.
        folder: where runs are kept.
        first: what stage 1 begins with, for tests; by default what `PixelTraining` begins with.
        progress: show bars.

    Raises:
        ValueError: a start that was trained under another recipe, or that lacks a stage which the arm does not have.
    """
    given, _, stage = dict(settings.starts).get(arm, "@1").partition("@")
    stages = stage_settings(arm, settings)
    names = list(stages)
    if stage and stage not in names:
        raise ValueError(f"{given}@{stage}: {arm} has the stages {', '.join(names)}; expected one of them behind the @")
    done = names.index(stage) if stage else len(names)
    if given:
        check_made(given, [stages[name] for name in names[:done]])
    model = MiniGPT.load(given) if given else first
    for name in names[done:]:
        # The first stage is the same for two arms each: it has no encoder to adapt.
        shared = "with" if arm in WITH_PIXELS else "without"
        place = folder / (f"{shared}-pixels-stage1" if name == "1" else f"{arm}-stage{name}")
        model = train(replace(stages[name], start=given), place, model, progress)
    assert model is not None, "a model is given, or stage 1 makes one"
    return model


def run_all(
    settings: ArmSettings,
    folder: Path,
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    first: MiniGPT | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Make, fine-tune and ask every arm under every seed; returns (and keeps in `folder`) the table of predictions.

    Beside the arms it has the constant box, which needs no model.

    What is there already is not made again, so a run that was stopped goes on.
    """
    root = export.build(preset=settings.world_preset, progress=progress)
    data = [datasets.load(name, "test", root) for name in settings.styles]
    references = segmentation.draw_references(data, settings.references, [0])[0]
    about = {"settings": asdict(settings), "data": {d.name: d.annotation_hash for d in data}}
    _check_same(folder, about)
    parts = []
    for arm in arms:
        start = None
        for seed in seeds:
            place = folder / f"{arm}-{seed}"
            if not (place / TABLE).is_file():
                tuned = place / "model" / SETTINGS_FILE
                start = start or (None if tuned.is_file() else start_of(arm, settings, folder, first, progress))
                model = train(tuning_settings(settings, seed), place, _copy(start), progress)
                reader = PixelReader(model, progress=False)
                ways = [
                    segmentation.predict(reader, references, arm, seed, true_box=b, progress=progress)[0]
                    for b in (False, True)
                ]
                rows = pd.concat(ways, ignore_index=True)
                storage.atomic_write_text(place / TABLE, rows[list(KEPT)].to_csv(index=False, float_format="%.5g"))
            parts.append(pd.read_csv(place / TABLE))
    table = pd.concat([*parts, _constant(references, seeds)], ignore_index=True)
    storage.atomic_write_text(folder / TABLE, table.to_csv(index=False, float_format="%.5g"))
    if set(ARMS) <= set(arms) and not arm_cases.there(folder):
        models = {arm: PixelReader(_tuned(folder, arm, seeds[0]), progress=False) for arm in ARMS}
        arm_cases.write(folder, references, models, table[table.seed == seeds[0]], ARMS[0])
    return table


def _tuned(folder: Path, arm: str, seed: int) -> MiniGPT:
    return MiniGPT.load(folder / f"{arm}-{seed}" / "model", device=str(training_device()))


def _constant(references: Sequence[segmentation.Reference], seeds: Sequence[int]) -> pd.DataFrame:
    """What needs no model, asked the same under every seed: see `segmentation.ConstantBox`."""
    constant = segmentation.ConstantBox.of(references)
    ways = [
        segmentation.predict(constant, references, constant.name, true_box=given, progress=False)[0]
        for given in (False, True)
    ]
    rows = pd.concat(ways, ignore_index=True)[list(KEPT)]
    return pd.concat([rows.assign(seed=seed) for seed in seeds], ignore_index=True)


def _copy(model: MiniGPT | None) -> MiniGPT | None:
    """Each seed tunes a start of its own."""
    import copy

    return copy.deepcopy(model)


def _check_same(folder: Path, about: dict[str, Any]) -> None:
    """Refuse to go on in a folder of other settings."""
    import json

    path = folder / ABOUT
    plain = json.loads(json.dumps(about))
    if path.is_file() and storage.read_json(path) != plain:
        raise ValueError(f"{folder} holds arms of other settings (see {path}); choose another folder")
    storage.atomic_write_json(path, plain)


# ------------------------------------------------------------------------------------------------------- shipped


def shipped(folder: Path | str = SHIPPED) -> pd.DataFrame:
    """The table of predictions that ships with the package (or lies in another folder); empty where there is none."""
    path = Path(folder) / TABLE
    return pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=list(KEPT))


def shipped_hash(folder: Path | str = SHIPPED) -> dict[str, str]:
    """Its hash, for records."""
    path = Path(folder) / TABLE
    return {"micro-segmentation": storage.hash_file(path)} if path.is_file() else {}


def origin(folder: Path | str = SHIPPED) -> str:
    """How the table was made, in words for records; "" where there is none."""
    path = Path(folder) / ABOUT
    if not path.is_file():
        return ""
    recipe = storage.read_json(path)["settings"]["recipe"]
    stages = recipe["stages"]
    steps = "+".join(str(stages[name]["steps"]) for name in chain(stages, *TRAINED))
    return f"stages of {steps} steps with pixel questions, {recipe['tuning']['steps']} steps of fine-tuning"


def _rates(folder: Path) -> str:
    """Learning rates, fine-tuning mixture and what helps boxes on, as they were, for the card."""
    recipe = storage.read_json(folder / ABOUT)["settings"]["recipe"]
    stages = recipe["stages"]
    rates = ", ".join(f"{stages[name]['learning_rate']:g}" for name in chain(stages, *TRAINED))
    shares = ", ".join(f"{task} {share:g}" for task, share in recipe["tuning"]["mixture"].items())
    tuning, told = recipe["tuning"], stages["1"].get("pointing", 0.0)
    looks = (
        f". In all arms, where to look before a box is written is a loss of its own (weight {told:g})" if told else ""
    )
    looks += ", and the layer that reads numbers was quiet" if stages["1"].get("quiet") else ""
    return f"Learning rates {rates} in the stages, {tuning['learning_rate']:g} in fine-tuning on {shares}{looks}"


def ship(folder: Path, target: Path = SHIPPED) -> Path:
    """Copy the finished table with its settings and a card into the package."""
    table = shipped(folder)
    missing = sorted(set(ARMS) - set(table.system))
    if missing:
        raise ValueError(f"{folder} lacks the arms {', '.join(missing)}; expected all of {', '.join(ARMS)}")
    about = storage.read_json(folder / ABOUT)
    starts = about["settings"]["starts"]
    # Where a start lies on this machine is nobody's affair: stage and folder say which it was.
    about["settings"]["starts"] = [[arm, "/".join(Path(place).parts[-2:])] for arm, place in starts]
    with storage.atomic_directory(target, overwrite=True) as work:
        storage.atomic_write_bytes(Path(work) / TABLE, (folder / TABLE).read_bytes())
        storage.atomic_write_json(Path(work) / ABOUT, about)
        storage.atomic_write_text(Path(work) / CARD, card(table, folder))
        arm_cases.copy(folder, Path(work))
    return target


def card(table: pd.DataFrame, folder: Path) -> str:
    """What the shipped table is, and how it is made again."""
    scores = segmentation.summary(table.assign(data="all")).set_index(["box", "system"])
    ciou = {at: f"{row.cIoU:.1f} [{row.low:.1f}, {row.high:.1f}]" for at, row in scores.iterrows()}
    hits = scores["P@1 of the box"]["found"]
    lines = "\n".join(
        f"| {name} | {hits[name]:.1f} | {ciou['found', name]} | {ciou['true', name]} |"
        for name in (*ARMS, segmentation.ConstantBox.name)
        if name in hits
    )
    seeds = sorted(table.seed.unique().tolist())
    count = table[table.box == "found"].groupby(["system", "seed"]).size().iloc[0]
    return (
        "# micro-segmentation\n\n"
        "Predictions of the four arms of table 7 (pixel questions and an adapted encoder, each alone, neither) and "
        "of the constant box, which needs no model: one box for every phrase, filled, or the true box, filled. One row "
        f"per arm, seed, reference and kind of box (found, or given): {count} references, seeds "
        f"{', '.join(map(str, seeds))}. {origin(folder).capitalize()}. A seed changes fine-tuning; pre-training "
        f"was done once per arm, by one recipe for all of them. {_rates(folder)}. The fine-tuned models themselves do "
        f"not ship; `{arm_cases.FOLDER}` holds what those of seed {seeds[0]} say of some references.\n\n"
        f"| arm | P@1 of the box | cIoU | cIoU in the true box |\n| --- | --- | --- | --- |\n{lines}\n\n"
        f"Made by `{COMMAND} --out FOLDER --ship`; `{ABOUT}` holds every setting. Licence: Apache-2.0, like the code.\n"
    )


# ------------------------------------------------------------------------------------------------------- command


def register(subparsers: Any) -> None:
    """Add ``seewhere train segmentation``."""
    defaults = ArmSettings()
    parser = subparsers.add_parser("segmentation", help="the four arms of referring segmentation (table 7)")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, models and the table; may be gone on")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--stages",
        nargs="+",
        default=[],
        metavar="NAME=STEPS",
        help="other numbers of steps than the recipe's, for all of its stages or for some",
    )
    parser.add_argument("--tuning", type=int, metavar="STEPS", help="default: the recipe's")
    parser.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="ARM=FOLDER",
        help="an arm that goes on from a model made by `seewhere train pixels --recipe FILE` of this command's recipe: "
        "FOLDER@NAME is one whose stages from NAME on are still to come, FOLDER one after the last",
    )
    add_recipe_arguments(parser, OF_ARMS)
    for name in ("images", "scenes"):
        parser.add_argument(f"--{name}", type=int, help="default: the recipe's")
    parser.add_argument("--references", type=int, default=defaults.references, help="default: %(default)s")
    parser.add_argument("--ship", action="store_true", help="put the finished table into the package")
    parser.set_defaults(handler=main)


def _steps(pairs: Sequence[str], recipe: Recipe) -> dict[str, int]:
    """Numbers of steps as they are typed, NAME=STEPS; what stage 2 gets, the arms that hold the encoder get too."""
    known = chain(recipe.stages, *TRAINED)
    steps: dict[str, int] = {}
    for pair in pairs:
        name, _, count = pair.partition("=")
        if name not in known or not count.isdigit() or int(count) == 0:
            raise ValueError(f"--stages: got {pair}; expected NAME=STEPS, a name of {', '.join(known)}, 1 or more")
        steps |= {name: int(count)}
        if whole(name) == "2":
            steps["frozen" + name.removeprefix("2")] = int(count)
    return steps


def main(arguments: argparse.Namespace) -> int:
    """Make the arms and print their scores."""
    chosen = load(arguments.recipe)
    check_only_the_encoder_differs(chosen, str(arguments.recipe))
    chosen = chosen.changed(images=arguments.images, scenes=arguments.scenes, bf16=arguments.bf16)
    settings = ArmSettings(
        recipe=chosen.with_steps(_steps(arguments.stages, chosen), arguments.tuning),
        starts=tuple((arm, place) for arm, _, place in (pair.partition("=") for pair in arguments.start)),
        references=arguments.references,
    )
    table = run_all(settings, arguments.out, arguments.arms, arguments.seeds)
    print(segmentation.summary(table.assign(data="all")).to_string(index=False))
    if arguments.ship:
        print(f"shipped: {ship(arguments.out)}")
    return 0
