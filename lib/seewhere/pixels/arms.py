"""Which of the two ingredients helps segmentation: pixel questions, an adapted encoder, both, or neither (table 7)?

Four models that differ in their pre-training only, each fine-tuned for boxes and masks under several seeds, and asked
about the same references. What is left out is left out and not replaced: an arm without pixel questions is asked as
many questions of every other kind, in correspondingly fewer steps.

``seewhere train segmentation`` makes all of it and can be stopped at any time; what it has found lies in a table that
ships with the package, because twelve fine-tuned models do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from seewhere import datasets, storage
from seewhere.models.minigpt import SETTINGS_FILE, MiniGPT
from seewhere.models.registry import load_minigpt
from seewhere.pixels import segmentation
from seewhere.pixels.reader import PixelReader
from seewhere.pixels.training import STAGES, PixelSettings, PixelTraining
from seewhere.world import export

ARMS = ("both", "pixels", "adaptation", "neither")
WITH_PIXELS, ADAPTED = ("both", "pixels"), ("both", "adaptation")
TABLE, ABOUT, CARD = "predictions.csv", "arms.json", "README.md"
COMMAND = "seewhere train segmentation"
SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "micro-segmentation"
TUNING = {"refer": 0.3, "mask": 0.7}
"""Share of the pictures; the paper fine-tunes on batches of 24 boxes to 64 pixels."""
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
        stages: steps of the three stages, as the arms *with* pixel questions have them.
        starts: (arm, name or folder of a model whose stages are done); with "@3" behind it, stage 3 is still to come.
            Arms without one are trained from stage 1.
        tuning: steps of fine-tuning.
        images: pictures in a step.
        learning_rate, tuning_rate: of the stages, and of fine-tuning.
        scenes: training scenes.
        references: for each style of the world.
        styles: data sets that references are drawn from.
        world_preset: build of the world.
        bf16: mixed precision.
    """

    stages: tuple[int, int, int] = (350, 520, 90)
    starts: tuple[tuple[str, str], ...] = (("both", "micro-pixels-stage3"), ("pixels", "micro-pixels-frozen@3"))
    tuning: int = 300
    images: int = 8
    learning_rate: float = 2e-3
    tuning_rate: float = 5e-4
    scenes: int = 12_000
    references: int = 100
    styles: tuple[str, ...] = ("world", "world+", "worldg")
    world_preset: str = "quick"
    bf16: bool = False


def stage_settings(arm: str, settings: ArmSettings, seed: int = 0) -> list[PixelSettings]:
    """The recipes of an arm's three stages.

    Raises:
        ValueError: unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}; expected one of {', '.join(ARMS)}")
    found = []
    for steps, stage in zip(settings.stages, ("1", "2", "3"), strict=True):
        mixture = dict(STAGES[stage]["mixture"])
        if arm not in WITH_PIXELS:
            steps = max(1, round(steps * (1 - mixture.pop("colour") / sum(STAGES[stage]["mixture"].values()))))
        found.append(
            PixelSettings(
                adapt=bool(STAGES[stage]["adapt"]) and arm in ADAPTED,
                steps=steps,
                images=settings.images,
                mixture=mixture,
                learning_rate=settings.learning_rate,
                seed=seed,
                bf16=settings.bf16,
                scenes=settings.scenes,
                textures=PixelSettings().textures if arm in WITH_PIXELS else 0,
            )
        )
    return found


def tuning_settings(settings: ArmSettings, seed: int) -> PixelSettings:
    """The recipe of fine-tuning, the same for every arm."""
    return PixelSettings(
        adapt=False,
        steps=settings.tuning,
        images=settings.images,
        mixture=dict(TUNING),
        learning_rate=settings.tuning_rate,
        seed=seed,
        bf16=settings.bf16,
        scenes=settings.scenes,
        textures=0,
    )


def train(recipe: PixelSettings, folder: Path, model: MiniGPT | None = None, progress: bool = True) -> MiniGPT:
    """Run a recipe, or read what an earlier run of it left in `folder`/model."""
    target = folder / "model"
    if not (target / SETTINGS_FILE).is_file():
        run = PixelTraining(recipe, folder, model=model)
        run.run(progress=progress)
        run.model.write(target)
    return MiniGPT.load(target)


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
    """
    given, _, stage = dict(settings.starts).get(arm, "@1").partition("@")
    left = list(enumerate(stage_settings(arm, settings), start=1))[int(stage) - 1 if stage else 3 :]
    model = load_minigpt(given) if given else first
    for number, recipe in left:
        model = train(replace(recipe, start=given), folder / f"{arm}-stage{number}", model, progress)
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

    What is there already is not made again, so a run that was stopped goes on.
    """
    root = export.build(preset=settings.world_preset, progress=progress)
    data = [datasets.load(name, "test", root) for name in settings.styles]
    references = segmentation.draw_references(data, settings.references, [0])[0]
    about = {"settings": asdict(settings), "tuning": TUNING, "data": {d.name: d.annotation_hash for d in data}}
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
    table = pd.concat(parts, ignore_index=True)
    storage.atomic_write_text(folder / TABLE, table.to_csv(index=False, float_format="%.5g"))
    return table


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
    stored = storage.read_json(path)["settings"]
    stages = "+".join(map(str, stored["stages"]))
    return f"stages of {stages} steps with pixel questions, {stored['tuning']} steps of fine-tuning"


def ship(folder: Path, target: Path = SHIPPED) -> Path:
    """Copy the finished table with its settings and a card into the package."""
    table = shipped(folder)
    missing = sorted(set(ARMS) - set(table.system))
    if missing:
        raise ValueError(f"{folder} lacks the arms {', '.join(missing)}; expected all of {', '.join(ARMS)}")
    with storage.atomic_directory(target) as work:
        for name in (TABLE, ABOUT):
            storage.atomic_write_bytes(Path(work) / name, (folder / name).read_bytes())
        storage.atomic_write_text(Path(work) / CARD, card(table, folder))
    return target


def card(table: pd.DataFrame, folder: Path) -> str:
    """What the shipped table is, and how it is made again."""
    found = table[table.box == "found"]
    scores = {arm: segmentation.cumulative(found[found.system == arm]) for arm in ARMS}
    lines = "\n".join(f"| {arm} | {s.value:.1f} [{s.low:.1f}, {s.high:.1f}] |" for arm, s in scores.items())
    seeds = sorted(table.seed.unique().tolist())
    count = found.groupby(["system", "seed"]).size().iloc[0]
    return (
        "# micro-segmentation\n\n"
        "Predictions of the four arms of table 7 (pixel questions and an adapted encoder, each alone, neither), one "
        f"row per arm, seed, reference and kind of box (found, or given): {count} references, seeds "
        f"{', '.join(map(str, seeds))}. {origin(folder).capitalize()}. A seed changes fine-tuning; pre-training "
        "was done once per arm. The fine-tuned models themselves do not ship.\n\n"
        f"| arm | cIoU |\n| --- | --- |\n{lines}\n\n"
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
    parser.add_argument("--stages", nargs=3, type=int, default=list(defaults.stages), metavar="STEPS")
    parser.add_argument(
        "--start", action="append", default=[], metavar="ARM=MODEL", help="an arm whose stages are done; repeatable"
    )
    for name in ("tuning", "images", "scenes", "references"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name), help="default: %(default)s")
    parser.add_argument("--bf16", action="store_true", help="mixed precision: twice as fast on recent processors")
    parser.add_argument("--ship", action="store_true", help="put the finished table into the package")
    parser.set_defaults(handler=main)


def main(arguments: argparse.Namespace) -> int:
    """Make the arms and print their scores."""
    starts = dict(ArmSettings().starts) | dict(pair.split("=", 1) for pair in arguments.start)
    settings = ArmSettings(
        stages=tuple(arguments.stages),
        starts=tuple(starts.items()),
        tuning=arguments.tuning,
        images=arguments.images,
        scenes=arguments.scenes,
        references=arguments.references,
        bf16=arguments.bf16,
    )
    table = run_all(settings, arguments.out, arguments.arms, arguments.seeds)
    print(segmentation.summary(table.assign(data="all")).to_string(index=False))
    if arguments.ship:
        print(f"shipped: {ship(arguments.out)}")
    return 0
