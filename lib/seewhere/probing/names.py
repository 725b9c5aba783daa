"""Names that the probing rooms share, apart from what is slow to import: tasks and their data, arms, files, folders."""

from __future__ import annotations

from pathlib import Path

DATA = {"rec": "worldg", "vsr": "random", "rcm": "worldg"}
"""Task -> the part of the world that it is made of, where nothing else is asked for."""
FROZEN, UNFROZEN = "frozen", "unfrozen"
WEIGHTS, ABOUT, SCORES = "model.safetensors", "arm.json", "scores.json"
SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "probing-arms"


def folder_of(root: Path, task: str, resampler: str, *more: object) -> Path:
    """Return the folder below ``root`` of one training: task, resampler and what else sets it apart (arm, seed)."""
    return root / "-".join(map(str, (task, resampler, *more))).replace("/", "-")
