"""``seewhere train again NAME``: a shipped model made once more, by the commands that its card tells, one by one.

The card is what people read, so it is what runs; no second list of commands can go stale beside it.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).resolve().parent / "weights"
PLACES = re.compile(r"^(FIRST|SECOND|FOLDER|RUNS)(?=/|$)")
"""Words in a card's commands that stand for folders of one's own."""


def names() -> list[str]:
    """Return the names of what ships."""
    return sorted(place.name for place in WEIGHTS.iterdir() if (place / "README.md").is_file())


def commands_of(name: str, out: Path) -> list[list[str]]:
    """Return the calls that make shipped weights again, in order, each without ``seewhere`` itself.

    Args:
        name: of a folder in ``weights/``.
        out: what comes out goes below this folder. Nothing is put into the package: ``--ship`` is left out.

    Raises:
        ValueError: no such weights, or a card without commands.
    """
    if name not in names():
        raise ValueError(f"no shipped weights {name!r}; expected one of {', '.join(names())}")
    card = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    told = [line for line in card.splitlines() if line.startswith(("| make it again", "| make them again", "Made by"))]
    found = [shlex.split(text) for line in told for text in re.findall(r"`seewhere (train [^`]+)`", line)]
    if not found:
        raise ValueError(f"the card of {name} tells no command; expected `seewhere train ...` in {WEIGHTS / name}")
    return [[PLACES.sub(rf"{out}/\1", word) for word in words if word != "--ship"] for words in found]


def register(subparsers: Any) -> None:
    """Add ``again`` to the things that ``seewhere train`` trains."""
    parser = subparsers.add_parser("again", help="shipped weights once more, by all the commands of their card")
    parser.add_argument("name", choices=names(), help="folder in the package's weights/")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs; finished ones are passed over")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the commands one after the other, and stop at the first that fails; the same call again goes on there."""
    from seewhere import cli  # it imports this module by name

    for words in commands_of(arguments.name, arguments.out.resolve()):
        print(f"seewhere {shlex.join(words)}", flush=True)
        code = 0 if arguments.dry_run else cli.main(words)
        if code:
            return code
    return 0
