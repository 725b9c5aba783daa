"""Trained arms in few numbers: the change that training made to each matrix, held at a low rank.

A resampler trained along weighs as much as the resampler itself, eighteen times over for three tasks, two resamplers
and three seeds. What is shipped is therefore its change: each matrix' difference to where it started is cut to its
largest singular values (so it is a LoRA update found by full training), and probe and factors are trained for one
more epoch in that form. Scores are always of what is shipped; that costs the arm a little, never the frozen one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seewhere.probing import experiments
from seewhere.probing.protocols import TrainableResampler
from seewhere.probing.tasks import Task
from seewhere.probing.training import Fitted, fit


class LowRankChange(nn.Module):
    """``original + left @ right`` as a parametrisation of a matrix; the original stays as it is."""

    def __init__(self, change: Tensor, rank: int) -> None:
        super().__init__()
        left, right = factors(change, rank)
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)

    def forward(self, original: Tensor) -> Tensor:
        """Return the changed matrix."""
        return original + self.left @ self.right


def factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (rows, rank) and (rank, columns) whose product is the nearest matrix of that rank to ``change``."""
    left, sizes, right = torch.linalg.svd(change.detach().float(), full_matrices=False)
    roots = sizes[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def is_cut(shape: torch.Size, rank: int) -> bool:
    """Return whether a parameter of this shape takes less room as two factors."""
    return len(shape) == 2 and rank * sum(shape) < shape[0] * shape[1] // 2


def hold_at_rank(module: nn.Module, start: nn.Module, rank: int) -> None:
    """Replace every trained matrix of a module by its start plus a low-rank change, and freeze the start.

    Args:
        module: the trained module; changed in place.
        start: the same module before training.
        rank: of each change.
    """
    before = dict(start.named_parameters())
    for name, value in list(module.named_parameters()):
        if not value.requires_grad or not is_cut(value.shape, rank) or torch.equal(value.cpu(), before[name].cpu()):
            continue
        change = value.detach() - before[name].detach().to(value)
        owner, leaf = name.rpartition(".")[::2]
        place = module.get_submodule(owner)
        value.data.copy_(before[name])
        value.requires_grad_(False)
        parametrize.register_parametrization(place, leaf, LowRankChange(change, rank).to(value.device))


def release(module: nn.Module) -> None:
    """Turn the changed matrices of `hold_at_rank` into ordinary trained parameters again."""
    for place in list(module.modules()):
        if parametrize.is_parametrized(place):
            for leaf in list(place.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(place, leaf, leave_parametrized=True)
                getattr(place, leaf).requires_grad_(True)


def compress(
    task: Task,
    model: TrainableResampler,
    fitted: Fitted,
    rank: int,
    epochs: int = 1,
    learning_rate: float = 5e-4,
    root: Path | None = None,
    progress: bool = True,
) -> tuple[Fitted, dict[str, Any]]:
    """Cut an unfrozen arm to a rank and train it on in that form.

    Args:
        task: what it was trained on.
        model: the resampler that training began from; stays as it is.
        fitted: the trained arm; stays as it is.
        rank: of each matrix' change.
        epochs, learning_rate: of the further training.
        root: folder of the caches.
        progress: show a bar.

    Returns:
        The compressed arm (its history goes on after the given one's) and its sources (split -> tokens).
    """
    sources = experiments.unfrozen_sources(task, model, root, progress)
    module = sources["train"].module
    module.load_state_dict(fitted.module.state_dict())
    hold_at_rank(module, model.module, rank)
    settings = fitted.settings.changed(epochs=epochs, learning_rate=learning_rate, optimizer="adamw", patience=0)
    found = fit(
        sources["train"], task.targets("train"), sources["validation"], task.targets("validation"), settings,
        probe=fitted.probe, progress=progress, description=f"{task.name}, {model.name} at rank {rank}",
    )  # fmt: skip
    release(module)
    later = found.history.assign(epoch=found.history.epoch + len(fitted.history))
    history = pd.concat([fitted.history, later], ignore_index=True)
    whole = Fitted(found.probe, module, fitted.settings, len(fitted.history) + found.epoch, found.score, history)
    return whole, dict(sources)
