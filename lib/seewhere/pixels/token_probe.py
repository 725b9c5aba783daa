"""What can still be read off the encoder's tokens, now that they carry colours? A linear probe before and after.

A model can only put into words what its tokens hold. When an adapted model no longer names or finds things, either the
language model has forgotten the words or the encoder the things; asking the model does not tell which. So each object
is pointed at by its box, and a linear map reads from the mean of the tokens under it *what* it is (its category) and
*where* it stands (the cell of 3 x 3 of its centre). The map is ridge regression, fitted in one step on other scenes:
nothing in it can be trained too little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

from seewhere import metrics
from seewhere.models.minigpt import MiniGPT
from seewhere.models.position_probe import PointedCells, pointed_cells, under_boxes
from seewhere.pixels import pictures
from seewhere.show import charts
from seewhere.world.scenes import Scene

TASKS = {"category": "what it is (category)", "cell": "where it stands (cell of 3 x 3)"}
"""What is read -> how charts call it."""
STRENGTHS = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Ridge penalties tried, for tokens standardised as a whole; the best on a fifth of the fitted scenes is taken."""
FIRST_SEED = 90
"""Scenes are drawn as those of this seed and later ones, away from all that encoders were trained on or asked about."""


def rows(
    readers: Mapping[str, Any], scenes: int, seed: int = 0, batch: int = 50, progress: bool = True
) -> pd.DataFrame:
    """Fit a probe on the patch tokens of each model's encoder and score it on other scenes.

    Args:
        readers: name -> `PixelReader`; readers without a `MiniGPT` (chat models) are left out.
        scenes: that probes are fitted on, at least 10; a quarter as many are scored.
        seed: of the scenes.
        batch: pictures encoded at a time.
        progress: show bars.

    Returns:
        Columns model, task (`TASKS`), image_id, score (1 for right, 0 for wrong): one row per object and task, the same
        objects in the same order for every model.

    Raises:
        ValueError: fewer than ten scenes.
    """
    if scenes < 10:
        raise ValueError(f"expected at least 10 scenes to fit the probes on, got {scenes}")
    fitted = pictures.world_pictures(scenes, "train", FIRST_SEED + seed)
    held_out = pictures.world_pictures(scenes // 4, "val", FIRST_SEED + seed)
    columns = ["model", "task", "image_id", "score"]
    parts = [pd.DataFrame(columns=columns)]
    for name, reader in readers.items():
        model = getattr(reader, "model", None)
        if not isinstance(model, MiniGPT):
            continue
        known, known_at = _read(model, fitted, batch, f"{name}, tokens", progress)
        asked, asked_at = _read(model, held_out, batch, f"{name}, tokens", progress)
        answers = zip(TASKS, _answers(fitted, known_at), _answers(held_out, asked_at), strict=True)
        for task, labels, truth in answers:
            said = fit_and_read(known, labels, known_at.rows, asked)
            right = [float(a == b) for a, b in zip(said, truth, strict=True)]
            scored = {"model": name, "task": task, "image_id": asked_at.rows.numpy(), "score": right}
            parts.append(pd.DataFrame(scored))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def chart(found: pd.DataFrame, seed: int = 0) -> Figure:
    """Bars of the share of objects read right, by task and model, with intervals over scenes; from `rows`."""
    scores: dict[str, dict[str, metrics.Interval]] = {}
    for (task, model), part in found.groupby(["task", "model"], sort=False):
        interval = metrics.bootstrap_interval(part.score, part.image_id.to_numpy(), seed)
        scores.setdefault(TASKS[str(task)], {})[str(model)] = interval
    return charts.bar_chart(scores, title="What a linear probe reads off the tokens", label="objects read right (%)")


@torch.no_grad()
def _read(
    model: MiniGPT, shown: Sequence[tuple[Image.Image, Scene]], batch: int, label: str, progress: bool
) -> tuple[torch.Tensor, PointedCells]:
    """The mean token (Q, W) under every object's box, and which objects these are."""
    means = []  # and no more of a picture: the tokens of a large model's take megabytes each
    for start in tqdm(range(0, len(shown), batch), desc=label, leave=False, disable=not progress):
        part = shown[start : start + batch]
        tokens = model.patch_tokens(model.pixels([image for image, _ in part])).half().cpu()
        means.append(under_boxes(tokens, pointed_cells([scene for _, scene in part], model.grid)))
    return torch.cat(means), pointed_cells([scene for _, scene in shown], model.grid)


def _answers(shown: Sequence[tuple[Image.Image, Scene]], at: PointedCells) -> tuple[list[str], list[str]]:
    """Category and cell of every object, in the order of `pointed_cells`."""
    return [item.category for _, scene in shown for item in scene.objects], [str(int(cell)) for cell in at.cells]


def fit_and_read(known: torch.Tensor, labels: Sequence[str], scenes: torch.Tensor, asked: torch.Tensor) -> list[str]:
    """Labels that a linear probe reads off other tokens.

    Args:
        known: tokens (N, W) that it is fitted on.
        labels: (N,) what they show.
        scenes: (N,) the scene of each; the last fifth of the scenes chooses the ridge penalty.
        asked: tokens (M, W) to read.

    Returns:
        (M,) labels; one that does not occur among `labels` is never said.
    """
    names = sorted(set(labels))
    wanted = torch.eye(len(names), dtype=torch.float64)[[names.index(label) for label in labels]]
    middle, scale = known.double().mean(0), known.double().std()

    def features(tokens: torch.Tensor) -> torch.Tensor:
        standard = (tokens.double() - middle) / scale
        return torch.cat([standard, torch.ones(len(tokens), 1, dtype=torch.float64)], dim=1)

    def solve(given: torch.Tensor, targets: torch.Tensor, strength: float) -> torch.Tensor:
        system = given.T @ given + strength * torch.eye(given.shape[1], dtype=torch.float64)
        return torch.linalg.solve(system, given.T @ targets)

    given = features(known)
    choosing = scenes >= torch.quantile(scenes.double(), 0.8)

    def hits(strength: float) -> float:
        found = given[choosing] @ solve(given[~choosing], wanted[~choosing], strength)
        return float((found.argmax(1) == wanted[choosing].argmax(1)).double().mean())

    best = max(STRENGTHS, key=hits)
    return [names[k] for k in (features(asked) @ solve(given, wanted, best)).argmax(1).tolist()]
