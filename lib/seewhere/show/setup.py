"""The set-up cell of every notebook: what runs here, on what, with which settings, and how long it will take."""

from __future__ import annotations

import io
import platform
import random
import warnings
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

PACKAGES = ("seewhere", "torch", "transformers", "peft", "numpy", "supervision")
MANY_COLOURS = 2**15
"""Pictures with more are rounded to 64 shades a channel before 256 colours are chosen."""


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed version of each package, and Python's; "not installed" where there is none."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def device() -> str:
    """The device models will run on, with the reason for it."""
    import torch  # here and not above: a reader who only wants versions should not wait for it

    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name()})"
    if torch.backends.mps.is_available():
        return "mps (Apple GPU found, no CUDA)"
    threads = torch.get_num_threads()
    return f"cpu, {threads} {'thread' if threads == 1 else 'threads'} (no GPU found)"


def set_seed(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators; the library itself takes seeds as arguments."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def small_png(picture: Figure | Image.Image) -> bytes:
    """The picture as a PNG of at most 256 colours: a third of the size, so that executed notebooks stay small."""
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", bbox_inches="tight", facecolor="white")
        picture = Image.open(buffer)
    buffer = io.BytesIO()
    picture = picture.convert("RGB")
    if picture.getcolors(MANY_COLOURS) is None:  # soft overlays; choosing among so many would take half a minute
        picture = picture.point([value if value in (0, 255) else (value & 0xFC) | 2 for value in range(256)] * 3)
    # Maximum coverage, because the median cut sacrifices rare colours: a small white sheep would turn grey.
    flat = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    flat.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _use_inline_figures() -> None:
    """Make a figure or picture that is the value of a cell show itself, small; does nothing outside a notebook."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is not None and hasattr(shell, "kernel") and shell.display_formatter is not None:
        shell.run_line_magic("matplotlib", "inline")
        shell.display_formatter.mimebundle_formatter.for_type(
            Image.Image, lambda _, **__: None
        )  # Pillow's own: PNG + JPEG
        formatters = shell.display_formatter.formatters
        formatters["image/jpeg"].for_type(Image.Image, lambda _: None)
        for kind in (Figure, Image.Image):
            formatters["image/png"].for_type(kind, small_png)


def quieten() -> None:
    """Hide what the packages below announce to their own developers: names that will change in a later version."""
    for package in ("transformers", "peft", "accelerate", "torch"):
        for kind in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=kind, module=rf"{package}(\.|$)")


def begin(notebook: str, preset: str, seed: int, expected: str) -> None:
    """Seed everything and print the conditions of this run.

    notebook: its name, such as "00_tour". preset: name of the preset. expected: how long all cells take, in words.
    """
    _use_inline_figures()
    pd.set_option("display.max_colwidth", 120)  # how an arm came to be is told whole
    quieten()
    set_seed(seed)
    print(f"{notebook}: preset {preset}, seed {seed}; expected time {expected}")
    print(f"device: {device()}")
    print("versions: " + ", ".join(f"{name} {number}" for name, number in versions().items()))
