"""Training by numbered steps, which can be stopped after any of them: the loop that the micro vision models share.

What a step trains on is a function of (settings, step), so a run that was stopped and taken up again ends with the
very parameters of one that was not. Checkpoint and log are written whole or not at all.
"""

from __future__ import annotations

import argparse
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from seewhere import storage

CHECKPOINT, LOG = "checkpoint.pt", "log.json"
OPTIMIZERS = ("muon", "adamw")


def training_device() -> torch.device:
    """Return the device that a command trains on: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def optimizers_for(
    module: nn.Module, learning_rate: float, weight_decay: float, kind: str = "muon"
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a module's trainable parameters.

    Matrices decay; biases, norms, embeddings and scales do not.

    Args:
        module: what is trained.
        learning_rate, weight_decay: of both.
        kind: "adamw", or "muon": matrices other than embeddings go to Muon (Jordan et al. 2024), scaled to AdamW's
            update size. From scratch, in few steps, that is worth several times the steps.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {kind!r}; expected one of {OPTIMIZERS}")
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if p.ndim < 2 or "embedding" in n or "query_tokens" in n or "latents" in n]
    flat = {id(p) for p in plain}
    matrices = [p for _, p in named if id(p) not in flat]
    hidden = [p for p in matrices if p.ndim == 2] if kind == "muon" else []
    chosen = {id(p) for p in hidden}
    rest = [p for p in matrices if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = []
    if hidden:
        decay = weight_decay * 0.1  # Muon's larger steps need less
        found.append(torch.optim.Muon(hidden, lr=learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    groups = [{"params": rest, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    found.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=(0.9, 0.98)))
    return found


def cosine_rate(step: int, steps: int, peak: float, warmup: float = 0.05) -> float:
    """Return the learning rate of a step (from 0): linear up over the share ``warmup``, cosine down to 1 %."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


class StepwiseTraining(ABC):
    """State of one run; a subclass says what one step is.

    Args:
        settings: a dataclass with ``steps`` and ``learning_rate``; a folder with a checkpoint of other settings is
            refused.
        folder: where ``checkpoint.pt`` and ``log.json`` live.
        module: what is trained, and written into checkpoints: its trainable parameters and persistent buffers.
        optimizers: see `optimizers_for`.

    Raises:
        ValueError: the folder holds a run with other settings.
    """

    name = "training"
    warmup = 0.05

    def __init__(
        self, settings: Any, folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        self.settings, self.folder, self.module, self.optimizers = settings, folder, module, list(optimizers)
        self.step = 0
        self.log: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._told: dict[str, int] = {}  # in how many steps each of the sums was: not every step tells all
        self._count = 0
        if (folder / CHECKPOINT).is_file():
            self._resume()

    @abstractmethod
    def losses(self) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of the current step (with its graph) and what is worth logging."""

    def after_update(self) -> None:
        """Called after every update, for limits on parameters; does nothing by default."""
        return None

    def after_last(self) -> None:
        """Called by `run` when the last step is taken and saved, also when that was before; does nothing by default."""
        return None

    def extra(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides parameters, optimizers and log; plain values and tensors."""
        return {}

    def take_up(self, extra: dict[str, Any]) -> None:
        """Go on from what `extra` returned; does nothing by default."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the trained parameters are."""
        return next(self.module.parameters()).device

    def mixed(self) -> torch.autocast:
        """Mixed precision where the settings' ``bf16`` asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16)

    def described(self) -> dict[str, Any]:
        """The settings as plain values, as they are compared with a checkpoint's."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.settings).items()}

    def _state(self) -> dict[str, torch.Tensor]:
        frozen = {n for n, p in self.module.named_parameters() if not p.requires_grad}
        return {n: v for n, v in self.module.state_dict().items() if n not in frozen}

    def _resume(self) -> None:
        state = torch.load(self.folder / CHECKPOINT, weights_only=True, map_location="cpu")
        if state["settings"] != self.described():
            raise ValueError(
                f"{self.folder} holds a run with other settings ({state['settings']}); expected {self.described()}. "
                "Choose another folder, or the same settings to go on."
            )
        self.module.load_state_dict(state["module"], strict=False)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.log, self._sums, self._count = state["step"], state["log"], state["sums"], state["count"]
        self._told = state.get("told", dict.fromkeys(self._sums, self._count))
        self.take_up(state.get("extra", {}))

    def save_checkpoint(self) -> None:
        """Write all that going on needs, whole or not at all."""
        buffer = io.BytesIO()
        torch.save(
            {
                "settings": self.described(),
                "module": self._state(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "step": self.step,
                "log": self.log,
                "sums": self._sums,
                "told": self._told,
                "count": self._count,
                "extra": self.extra(),
            },
            buffer,
        )
        storage.atomic_write_bytes(self.folder / CHECKPOINT, buffer.getvalue())
        storage.atomic_write_json(self.folder / LOG, self.log)

    def one_step(self) -> dict[str, float]:
        """Take one step; returns its loss and parts.

        Raises:
            FloatingPointError: the loss is no number any more.
        """
        rate = cosine_rate(self.step, self.settings.steps, self.settings.learning_rate, self.warmup)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss, parts = self.losses()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; try a lower learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.module.parameters() if p.requires_grad], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.after_update()
        self.step += 1
        return {"loss": float(loss.detach()), **parts}

    def run(self, until: int | None = None, save_every: int = 200, log_every: int = 20, progress: bool = True) -> None:
        """Train up to a step (default: the last), with a checkpoint every ``save_every`` steps and at the end."""
        last = min(self.settings.steps if until is None else until, self.settings.steps)
        with tqdm(total=last, initial=self.step, desc=self.name, mininterval=5, disable=not progress) as bar:
            while self.step < last:
                for name, value in self.one_step().items():
                    self._sums[name] = self._sums.get(name, 0.0) + value
                    self._told[name] = self._told.get(name, 0) + 1
                self._count += 1
                bar.update()
                if self._count == log_every:
                    means = {name: round(value / self._told[name], 5) for name, value in self._sums.items()}
                    self.log.append({"step": self.step, **means})
                    self._sums, self._told, self._count = {}, {}, 0
                    bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
                if self.step % save_every == 0 or self.step == last:
                    self.save_checkpoint()
        if self.step == self.settings.steps:
            self.after_last()


def add_recipe_flags(
    parser: argparse.ArgumentParser, defaults: Any, whole_numbers: Sequence[str], optimizers: bool = True
) -> None:
    """Add the flags that every recipe has, and its settings that are whole numbers, with the recipe's own defaults.

    Args:
        parser: of the command.
        defaults: an instance of the recipe.
        whole_numbers: names of settings.
        optimizers: whether the recipe leaves the choice of one.
    """
    for name in whole_numbers:
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name), help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate, help="default: %(default)s")
    if optimizers:
        parser.add_argument("--optimizer", choices=OPTIMIZERS, default=defaults.optimizer, help="default: %(default)s")
    parser.add_argument("--bf16", action="store_true", help="mixed precision: twice as fast on recent processors")
