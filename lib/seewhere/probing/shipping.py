"""``seewhere train arms``: every unfrozen arm of notebook 01 at full length, and from there into the package.

Eighteen trainings (three tasks, two resamplers, three seeds) that can be stopped and gone on with, and for each task
and resampler one frozen probe on the very same examples, so that what an arm gains is not the larger world that it
reads. For each yes/no task the same texts without any picture are read too (`seewhere.probing.crossed_text`). The card
is written from what the runs left behind.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from seewhere import presets, storage
from seewhere.probing.names import ABOUT, DATA, FROZEN, SCORES, SHIPPED, UNFROZEN, WEIGHTS, folder_of

TASKS = tuple(DATA)
TABLE, TEXT_TABLE = "arms.csv", "text_alone.csv"
COLUMNS = ["task", "resampler", "arm", "seed", "start_task", "train_world", "train_examples", "epochs", "test",
           "test_examples"]  # fmt: skip
TEXT_COLUMNS = ["task", "train_world", "train_examples", "test", "test_examples"]


def register(subparsers: Any) -> None:
    """Add ``arms`` to the things that ``seewhere train`` trains."""
    parser = subparsers.add_parser("arms", help="all unfrozen arms of notebook 01, one after the other")
    parser.add_argument("--preset", choices=presets.NAMES, default="quick", help="settings and sizes (default: quick)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="which (default: all three)")
    parser.add_argument("--resamplers", nargs="+", help="which (default: those of the preset)")
    parser.add_argument("--out", type=Path, help="folder of the runs; finished ones are passed over")
    parser.add_argument("--ship", action="store_true", help="put them into the package, replacing those of the same "
                        "tasks and resamplers")  # fmt: skip
    parser.add_argument("--text-alone", action="store_true", help="train no arm: only read the same texts without any "
                        "picture, and renew that part of the shipped table")  # fmt: skip
    parser.set_defaults(handler=run)


def jobs(preset: presets.Preset, tasks: Sequence[str] = TASKS) -> Iterator[tuple[str, str, str, int]]:
    """Yield (task, resampler, arm, seed) of every training: the unfrozen arms, and one frozen control for each."""
    starts = preset.unfrozen_starts  # what begins with an arm of another task comes after it
    wanted = dict.fromkeys([*tasks, *(starts[task] for task in tasks if task in starts)])
    for task, resampler in product(sorted(wanted, key=lambda name: name in starts), preset.resamplers):
        yield from ((task, resampler, UNFROZEN, seed) for seed in preset.seeds)
        yield task, resampler, FROZEN, preset.seeds[0]


def run(arguments: argparse.Namespace) -> int:
    """Train what is missing, one command line after the other, and ship.

    Raises:
        ValueError: no folder for the runs, or what `seewhere.probing.commands.run` says.
    """
    from seewhere.probing import commands  # it imports torch

    parser = argparse.ArgumentParser()
    commands.add_arguments(parser)
    preset = presets.load(arguments.preset, "01")
    if arguments.text_alone:
        print(f"shipped: {ship_text(text_alone(preset, arguments.tasks), preset)}")
        return 0
    if arguments.out is None:
        raise ValueError("--out is missing: the folder that the runs are kept in, to be gone on with")
    if arguments.resamplers:
        preset = presets.with_changes(preset, resamplers=arguments.resamplers)
    for job in jobs(preset, arguments.tasks):
        place = folder_of(arguments.out, *job)
        if not (place / SCORES).is_file():
            print(f"training {place.name}", flush=True)
            commands.run(parser.parse_args(command_of(arguments.preset, preset, place, *job)))
    if arguments.ship:
        place = ship(arguments.out, preset, arguments.tasks)
        print(f"shipped: {ship_text(text_alone(preset, arguments.tasks), preset, place)}")
    return 0


def command_of(
    name: str, preset: presets.Preset, place: Path, task: str, resampler: str, arm: str, seed: int
) -> list[str]:
    """Return the words after ``seewhere train probe`` that make one training."""
    words = ["--task", task, "--resampler", resampler, "--arm", arm, "--seed", str(seed), "--preset", name]
    start = preset.unfrozen_starts.get(task, "") if arm == UNFROZEN else ""
    begin = ["--start-arm", str(folder_of(place.parent, start, resampler, arm, seed) / "arm")] if start else []
    larger = ["--train-world", preset.unfrozen_world] if preset.unfrozen_world else []
    flags = [name for name, on in (("--bf16", preset.bf16), ("--few-bits", arm == UNFROZEN)) if on]
    return [*words, *begin, *larger, *flags, "--out", str(place)]


def ship(out: Path, preset: presets.Preset, tasks: Sequence[str] = TASKS, target: Path = SHIPPED) -> Path:
    """Copy the unfrozen arms of finished runs to ``target`` with table and card; those of others there stay.

    Raises:
        FileNotFoundError: a run that is not finished.
        ValueError: a training began with another arm than the one that would ship beside it.
    """
    from seewhere.probing.arms import start_of  # it imports torch

    made = read_runs(out, list(jobs(preset, tasks)))
    staying = staying_beside(made, target)
    sources = {place_of(row): Path(row.run) / "arm" for row in made[made.arm == UNFROZEN].itertuples()}
    sources |= {place_of(row): target / place_of(row) for row in staying[staying.arm == UNFROZEN].itertuples()}
    rows = pd.concat([made[COLUMNS], staying]).fillna({"start_task": ""})
    rows = rows.sort_values(["task", "resampler", "arm", "seed"], ignore_index=True)
    with storage.atomic_directory(target, overwrite=target.exists()) as work:
        for place, source in sources.items():
            shutil.copytree(source, work / place)
        for about in work.rglob(ABOUT):
            start_of(about.parent)
        size = sum(file.stat().st_size for file in work.rglob(WEIGHTS)) / 1e6
        texts = read_texts(target)
        storage.atomic_write_text(work / TABLE, rows.to_csv(index=False))
        storage.atomic_write_text(work / TEXT_TABLE, texts.to_csv(index=False))
        storage.atomic_write_text(work / "README.md", card(rows, size, preset.world_preset, texts))
    return target


def text_alone(preset: presets.Preset, tasks: Sequence[str] = TASKS) -> pd.DataFrame:
    """Return what the texts that arms read tell without any picture: a row per yes/no task, with `TEXT_COLUMNS`.

    `test` is the share (0..1) of test examples that `seewhere.probing.crossed_text` gets right.
    """
    from seewhere.probing import controls, crossed_text  # they import torch
    from seewhere.probing.settings import sizes_of
    from seewhere.probing.tasks import TASKS as KINDS
    from seewhere.probing.tasks import load_task, with_larger_train
    from seewhere.world.export import build

    rows, world = [], build(None, preset.world_preset)
    for name in (name for name in tasks if KINDS[name] == "binary"):
        task = load_task(name, world, DATA[name], sizes_of(preset))
        if preset.unfrozen_world:
            task = with_larger_train(replace(task, larger=preset.unfrozen_world), preset, DATA[name])
        right = controls.predictions(task, crossed_text.crossed_text(task)).correct
        sizes = (len(task.splits["train"]), float(right.mean()), len(right))
        rows.append((name, preset.unfrozen_world or preset.world_preset, *sizes))
    return pd.DataFrame(rows, columns=TEXT_COLUMNS)


def read_texts(folder: Path = SHIPPED) -> pd.DataFrame:
    """Return the shipped table of `text_alone`, without rows where there is none."""
    there = (folder / TEXT_TABLE).is_file()
    return pd.read_csv(folder / TEXT_TABLE) if there else pd.DataFrame(columns=TEXT_COLUMNS)


def ship_text(found: pd.DataFrame, preset: presets.Preset, target: Path = SHIPPED) -> Path:
    """Put the rows of `text_alone` beside the shipped arms, in place of those of the same tasks, and renew the card."""
    staying = read_texts(target)
    texts = pd.concat([found, staying[~staying.task.isin(found.task)]]).sort_values("task", ignore_index=True)
    rows = pd.read_csv(target / TABLE, dtype={"start_task": str}).fillna({"start_task": ""})
    size = sum(file.stat().st_size for file in target.rglob(WEIGHTS)) / 1e6
    storage.atomic_write_text(target / TEXT_TABLE, texts.to_csv(index=False))
    storage.atomic_write_text(target / "README.md", card(rows, size, preset.world_preset, texts))
    return target


def place_of(row: Any) -> Path:
    """Return where an arm ships, below the folder of all, by its row of the table."""
    return folder_of(Path(), row.task, row.resampler, row.seed)


def staying_beside(made: pd.DataFrame, target: Path) -> pd.DataFrame:
    """Return the rows of the shipped table whose task and resampler are not among the new ones."""
    if not (target / TABLE).is_file():
        return pd.DataFrame(columns=COLUMNS)
    there = pd.read_csv(target / TABLE)
    pairs = set(zip(made.task, made.resampler, strict=True))
    return there[[pair not in pairs for pair in zip(there.task, there.resampler, strict=True)]]


def read_runs(out: Path, wanted: Sequence[tuple[str, str, str, int]]) -> pd.DataFrame:
    """Return one row per run: task, resampler, arm, seed, train_examples, epochs, validation and test, run.

    Raises:
        FileNotFoundError: a run that is not finished.
    """
    rows = []
    for job in wanted:
        place = folder_of(out, *job)
        if not (place / SCORES).is_file():
            raise FileNotFoundError(
                f"{place} is not finished: {SCORES} is missing. Go on with `seewhere train arms --out {out}`"
            )
        scores, settings = storage.read_json(place / SCORES), storage.read_json(place / "arm" / ABOUT)["settings"]
        rows.append({"start_task": "", "train_world": "", **scores, "run": str(place), "epochs": settings["epochs"]})
    return pd.DataFrame(rows)


def same_examples(origins: Mapping[str, str], folder: Path = SHIPPED) -> pd.DataFrame:
    """Return both arms and the text alone on the very same training examples, percent right.

    One row per task and resampler that ship. Of boxes the text alone is not told.

    Args:
        origins: how arms came to be, as `Study.origins` says; those that are not shipped ones are passed over.
        folder: with the shipped table.
    """
    rows = []
    there = pd.read_csv(folder / TABLE) if (folder / TABLE).is_file() else pd.DataFrame(columns=COLUMNS)
    texts = 100 * read_texts(folder).set_index("task").test
    for (task, resampler), part in there.groupby(["task", "resampler"], sort=False):
        if any(name.startswith(f"{task} {resampler} ") and how.startswith("shipped") for name, how in origins.items()):
            trained, frozen = part[part.arm == UNFROZEN], part[part.arm == FROZEN]
            scores = [round(100 * float(scored.test.mean()), 1) for scored in (trained, frozen)]
            scores.append(round(float(texts.get(task, float("nan"))), 1))
            rows.append((task, resampler, trained.train_examples.iloc[0], *scores, trained.test_examples.iloc[0]))
    columns = ["task", "resampler", "training examples", "unfrozen", "frozen, the same examples",
               "text alone, the same examples", "tested on"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def card(rows: pd.DataFrame, megabytes: float, tested: str, texts: pd.DataFrame) -> str:
    """Return what the arms are, how they were made and what they can do, as Markdown.

    Args:
        rows: with `COLUMNS`.
        megabytes: of all weights.
        tested: the build of the world whose test split the scores are of.
        texts: what the text alone tells, with `TEXT_COLUMNS`.
    """
    lines, tasks, read = [], " ".join(rows.task.unique()), rows.train_world.iloc[0]
    for (task, resampler), part in rows.groupby(["task", "resampler"], sort=False):
        trained, frozen = part[part.arm == UNFROZEN], part[part.arm == FROZEN]
        first = trained.iloc[0]
        scores = ", ".join(f"{value:.3f}" for value in trained.test)
        lines.append(
            f"| {task} | {resampler} | {first.start_task} | {first.train_examples:,} | {first.epochs} | {scores} "
            f"| {frozen.test.iloc[0]:.3f} | {first.test_examples:,} |"
        )
    table = "\n".join(lines)
    alone = "; ".join(f"{r.task} {r.test:.3f} of {r.test_examples:,}" for r in texts.itertuples()) or "not measured"
    return f"""# Unfrozen arms of notebook 01

Resamplers that were trained along with a linear probe, for the claims F1 and F3: a folder for each task, resampler and
seed, with the probe and the change that training made to the resampler.

| | |
| --- | --- |
| make them again | `seewhere train arms --tasks {tasks} --out FOLDER --ship` |
| data | the train split of the world's `{read}` build; scores are of the `{tested}` one's test split |
| form | the change of each matrix (from what training began with) in two to three bits a number, the rest in more |
| size | {megabytes:.1f} MB |

Shares of the test examples that are right (rec: IoU > 0.5; chance is near 0. vsr, rcm: true or false, chance is 0.5),
of the weights as they are stored. *frozen* is a linear probe on the frozen resampler that read the very same examples
for the epochs of its own preset, first seed. *after* names the task whose arm of the same seed a training began with;
none: the resampler as it is. A frozen probe always begins with the resampler as it is, so where *after* names a task
its arm had that task's examples besides.

| task | resampler | after | train examples | epochs | unfrozen, by seed | frozen | test examples |
| --- | --- | --- | --- | --- | --- | --- | --- |
{table}

**What needs no picture.** A reader of the very same texts that sees none, but may hold any two words of a text against
each other (`seewhere.probing.crossed_text`), is right in: {alone}.
An arm sees only as far as it is better than that.

Every `arm.json` holds the whole course of its training. What only words pass through (embeddings and their own
feed-forward layers) was not trained along, so that arms are small. The sprites of the scenes are Twemoji
(CC-BY 4.0).
"""
