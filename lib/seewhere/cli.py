"""The command ``seewhere``: a table of commands and of the modules that define them.

A module defines its commands in ``register(subparsers)``: it adds its parsers, each with the default ``handler`` (or
``run``), a function of the parsed arguments that returns an exit code. Several modules may add to one group ("train").
Only the modules of the command that was called are imported, so ``seewhere --help`` does not wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import seewhere


@dataclass(frozen=True, slots=True)
class Command:
    """A command or group of commands: the line of help, and the modules that define it.

    Modules in `inner` define parts of a group: their ``register`` is given the group's own subparsers.
    """

    help: str
    modules: tuple[str, ...]
    register: str = "register"
    inner: tuple[str, ...] = ()


COMMANDS: dict[str, Command] = {
    "doctor": Command("check this machine: what is there, what is missing, what to do", ("seewhere.doctor",)),
    "run": Command("execute a notebook (or all) with given parameters", ("seewhere.runs",)),
    "sweep": Command("run a notebook over a grid of parameters", ("seewhere.sweeps",)),
    "compare": Command("metrics of a notebook's runs, over seeds", ("seewhere.sweeps",), "register_compare"),
    "claims": Command("the papers' claims, our numbers and the verdicts", ("seewhere.claims",)),
    "world": Command("build and inspect the embedded world", ("seewhere.world.cli",)),
    "data": Command("check a data set on disk", ("seewhere.datasets.check",)),
    "train": Command(
        "train a micro model, an adapter or a probe",
        ("seewhere.models.micro_detector_commands",),
        inner=(
            "seewhere.models.micro_language_training",
            "seewhere.models.micro_clip_training",
            "seewhere.models.micro_qformer_commands",
            "seewhere.pixels.commands",
            "seewhere.pixels.arms",
            "seewhere.probing.commands",
            "seewhere.probing.shipping",
            "seewhere.llm_wrapper.commands",
            "seewhere.llm_wrapper.school",
            "seewhere.again",
        ),
    ),
    "evaluate": Command("score a model", ("seewhere.models.micro_detector_commands",)),
    "refresh": Command("execute the notebooks, write outputs and numbers back", ("seewhere.refresh",)),
    "clean-notebooks": Command("drop what a kernel leaves in notebooks", ("seewhere.refresh",), "register_clean"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. 0 when all went well, 1 on a failure, 2 on a wrong call."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser(words)
    parsed = parser.parse_args(words)
    handler: Callable[[argparse.Namespace], int | None] | None = getattr(parsed, "handler", None) or getattr(
        parsed, "run", None
    )
    if handler is None:
        parser.print_help()
        return 2
    try:
        return int(handler(parsed) or 0)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"seewhere: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("seewhere: stopped", file=sys.stderr)
        return 130


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for a call that begins with `words`: the called command in full, the others by name and help."""
    parser = argparse.ArgumentParser(prog="seewhere", description=seewhere.__doc__)
    parser.add_argument("--version", action="version", version=f"seewhere {seewhere.__version__}")
    subparsers = parser.add_subparsers(metavar="command", title="commands")
    called = next((word for word in words if not word.startswith("-")), "")
    if called in COMMANDS:
        command = COMMANDS[called]
        for name in filter(is_present, command.modules):
            getattr(importlib.import_module(name), command.register)(subparsers)
        for name in filter(is_present, command.inner):
            importlib.import_module(name).register(_group(subparsers, called, command.help))
    for name, command in COMMANDS.items():
        if name not in subparsers.choices:
            subparsers.add_parser(name, help=command.help)
    return parser


def _group(subparsers: Any, name: str, help: str) -> Any:
    """The subparsers of the group `name`, made on first use."""
    if name not in subparsers.choices:
        return subparsers.add_parser(name, help=help).add_subparsers(required=True)
    actions = subparsers.choices[name]._actions  # argparse has no public way to ask for an existing group
    return next(action for action in actions if isinstance(action, argparse._SubParsersAction))


def is_present(module: str) -> bool:
    """Whether a module is part of this installation; a trimmed one loses its commands and nothing else."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
