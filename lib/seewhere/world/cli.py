"""Commands of the world: ``seewhere world build`` and ``seewhere world card``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from seewhere.world.export import PRESETS, build


def register(subparsers: Any) -> None:
    """Add ``world`` to the commands of `seewhere` (`subparsers` is what ``add_subparsers`` returned)."""
    world = subparsers.add_parser("world", help="build the embedded world, or draw its data card")
    actions = world.add_subparsers(dest="action", required=True)

    make = actions.add_parser("build", help="write the world to disk in the published formats")
    make.add_argument("--preset", choices=sorted(PRESETS), default="quick", help="how many scenes (default: quick)")
    make.add_argument("--root", type=Path, help="folder of the data set (default: the data folder's own)")
    make.add_argument("--workers", type=int, help="processes (default: one per core)")
    make.add_argument("--sprites", type=Path, help="folder of RGBA sprites with a categories.json; needs --root")
    make.set_defaults(handler=_build)

    card = actions.add_parser("card", help="count a build and draw the figures of its data card")
    card.add_argument("--preset", choices=sorted(PRESETS), default="quick", help="which build (made if it is missing)")
    card.add_argument("--root", type=Path, help="folder of the build (default: the data folder's own)")
    card.add_argument("--out", type=Path, default=Path("data_cards"), help="where the figures go (default: data_cards)")
    card.set_defaults(handler=_card)


def _build(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    try:
        root = build(arguments.root, arguments.preset, arguments.workers, sprites_folder=arguments.sprites)
    except ValueError as error:
        print(f"seewhere world build: {error}", file=sys.stderr)
        return 2
    print(f"{root} ({time.monotonic() - start:.1f} s)")
    return 0


def _card(arguments: argparse.Namespace) -> int:
    from seewhere.world.card import draw_figures, tables

    try:
        root = build(arguments.root, arguments.preset)
    except ValueError as error:
        print(f"seewhere world card: {error}", file=sys.stderr)
        return 2
    for path in draw_figures(root, arguments.out):
        print(path)
    print(tables(root))
    return 0
