"""``seewhere train probe``: one arm of one task from the command line, on one process or on many.

On several GPUs or hosts::

    accelerate launch --multi_gpu --num_processes 8 -m seewhere.probing.commands --task rec --arm unfrozen \\
        --resampler Salesforce/blip2-itm-vit-g --preset paper --root DATA --data refcocog --out runs/rec-blip2

(with ``ACCELERATE_USE_CPU=true`` the same launches processes without a GPU).

The steps and scores are those of one process with the same global batch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from seewhere import presets, storage
from seewhere.probing.names import ABOUT, DATA, FROZEN, SCORES, UNFROZEN


def register(subparsers: Any) -> None:
    """Add ``probe`` to the things that ``seewhere train`` trains."""
    parser = subparsers.add_parser("probe", help="a probe on a frozen resampler, or together with it")
    add_arguments(parser)
    parser.set_defaults(handler=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from seewhere.models.stepwise import OPTIMIZERS
    from seewhere.probing.heads import DEPTHS
    from seewhere.world.export import PRESETS

    parser.add_argument("--task", choices=sorted(DATA), required=True)
    parser.add_argument("--resampler", default="micro-blip2", help="a name, folder or hub id (default: micro-blip2)")
    parser.add_argument("--arm", choices=(FROZEN, UNFROZEN), default=FROZEN)
    parser.add_argument("--preset", choices=presets.NAMES, default="quick", help="settings and sizes (default: quick)")
    parser.add_argument("--root", type=Path, help="folder of the data set (default: the world of the preset)")
    help_of_more = "train on this build of the world, test on the preset's (default: what the preset says for the arm)"
    parser.add_argument("--train-world", choices=sorted(PRESETS), help=help_of_more)
    help_of_start = "unfrozen only: begin with the resampler of this trained arm (a folder) instead of as it is"
    parser.add_argument("--start-arm", type=Path, help=help_of_start)
    parser.add_argument("--data", help="rec, rcm: worldg, refcocog, ...; vsr: random or zeroshot")
    parser.add_argument("--images", type=Path, help="folder of the images, if they are not in a usual place")
    parser.add_argument("--layer", help="frozen only: which layer's tokens (default: the last)")
    parser.add_argument("--layers", type=int, choices=DEPTHS, default=1, help="layers of the probe")
    parser.add_argument("--epochs", type=int, help="instead of the preset's")
    parser.add_argument("--learning-rate", type=float, help="instead of the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="instead of the preset's")
    parser.add_argument("--bf16", action="store_true", help="mixed precision in the resampler")
    parser.add_argument("--few-bits", action="store_true", help="unfrozen only: round the arm, score and store it so")
    parser.add_argument("--search", action="store_true", help="search the settings first (one process only)")
    parser.add_argument("--out", type=Path, required=True, help="folder for predictions, scores and the trained arm")


def run(arguments: argparse.Namespace) -> int:
    """Train and score the arm; the main process writes ``predictions.csv``, ``scores.json`` and ``arm/``.

    Raises:
        ValueError: options that do not go together, or what the readers and models say.
    """
    from accelerate import Accelerator

    from seewhere.probing import controls, experiments
    from seewhere.probing.adapter import load_probed
    from seewhere.probing.arms import facts_of, load_arm, save_arm
    from seewhere.probing.lengths import readable
    from seewhere.probing.protocols import TrainableResampler
    from seewhere.probing.settings import kind_of, settings_of, sizes_of, space_of
    from seewhere.probing.tasks import load_task, with_larger_train
    from seewhere.probing.training import predict
    from seewhere.world.export import build

    frozen = arguments.arm == FROZEN
    if arguments.few_bits and frozen:
        raise ValueError("--few-bits is for the unfrozen arm; the frozen one leaves the resampler as it is")
    if arguments.layer is not None and not frozen:
        raise ValueError("--layer is for the frozen arm; the unfrozen one is probed after the last layer")
    if arguments.start_arm and frozen:
        raise ValueError("--start-arm is for the unfrozen arm; a frozen resampler is probed as it is")
    accelerator = Accelerator()  # first of all: it tells each process its device
    if arguments.search and accelerator.num_processes > 1:
        raise ValueError("--search runs on one process; launch the training with the settings that it finds")
    preset = presets.load(arguments.preset, "01")
    data = arguments.data or DATA[arguments.task]
    with accelerator.main_process_first():
        progress = accelerator.is_main_process
        root = arguments.root or build(None, preset.world_preset, progress=progress)
    task = load_task(arguments.task, root, data, sizes_of(preset), images=arguments.images)
    larger = arguments.train_world or ("" if frozen or arguments.root else preset.unfrozen_world)
    if larger:
        if arguments.root:
            raise ValueError("--train-world is another build of the world; with --root its size is that folder's")
        with accelerator.main_process_first():
            task = with_larger_train(replace(task, larger=larger), preset, data, progress)
    model = load_probed(arguments.resampler, bf16=arguments.bf16)
    with redirect_stdout(sys.stderr):  # standard output is for the scores
        task = readable(task, [model])
    begun: Any = model
    if arguments.start_arm:
        _, begun, about = load_arm(arguments.start_arm, model)
        task = replace(task, start=about["task"])
    changes = {n: getattr(arguments, n) for n in ("epochs", "learning_rate", "optimizer")}
    settings = settings_of(
        preset, arguments.task, kind_of(model.name, arguments.arm), arguments.arm, layers=arguments.layers
    )
    settings = settings.changed(**{name: value for name, value in changes.items() if value is not None})
    if arguments.search:
        found = experiments.search_arm(
            task, begun, space_of(preset, arguments.task), settings, arm=arguments.arm, layer=arguments.layer,
            trials=preset.search_trials, seed=arguments.seed,
        )  # fmt: skip
        settings = found.settings
        storage.atomic_write_text(arguments.out / "trials.csv", found.trials.to_csv(index=False))
    if frozen:
        arm = experiments.frozen_arm(task, model, settings, (arguments.seed,), arguments.layer, progress=progress)
    else:
        folder = arguments.out / "state"
        arm = experiments.unfrozen_arm(task, begun, settings, (arguments.seed,), folder=folder, progress=progress)
    fitted, table = arm.fitted[arguments.seed], arm.table
    if not accelerator.is_main_process:
        return 0
    facts = {**facts_of(task), "resampler": model.name, "arm": arguments.arm, "seed": arguments.seed}
    place = save_arm(fitted, arguments.out / "arm", model, facts, arguments.few_bits, arguments.start_arm)
    if arguments.few_bits:  # scores are of what is on the disk
        probe, own, _ = load_arm(place, model)
        assert isinstance(own, TrainableResampler)
        test = experiments.tokens_of(own, task.splits["test"], progress=False)
        columns = {n: table[n].iloc[0] for n in ("resampler", "arm", "seed", "layer", "probe_layers")}
        table = controls.predictions(task, predict(probe, test), "test", **columns)
    scores = {
        **facts,
        "layer": table.layer.iloc[0],
        "validation": fitted.score,
        "test": float(table.correct.mean()),
        "test_examples": len(table),
        "epoch": fitted.epoch,
        "processes": accelerator.num_processes,
    }
    storage.atomic_write_text(arguments.out / "predictions.csv", table.to_csv(index=False))
    storage.atomic_write_json(arguments.out / SCORES, {**scores, "losses": fitted.history.loss.tolist()})
    storage.atomic_write_json(place / ABOUT, scores | storage.read_json(place / ABOUT))
    print(json.dumps(scores, indent=2))
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Entry point for ``accelerate launch -m seewhere.probing.commands``; errors as ``seewhere`` prints them."""
    parser = argparse.ArgumentParser(prog="seewhere train probe", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(words))
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"seewhere: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
