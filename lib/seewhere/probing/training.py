"""Training a probe, on frozen tokens or together with the resampler that makes them.

One loop serves both arms. AdamW with weight decay 0.01, 10 % warm-up and batches of 128 are the paper's (appendix B);
the linear decay after the warm-up is ours, as it names none, and so is the choice of Muon for small resamplers. The
state with the best validation score is kept.

Under ``accelerate launch`` the same call trains on several processes: each global batch is dealt out to them, so the
steps are those of one process, and the scores too, up to the order of floating point sums.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.models.stepwise import OPTIMIZERS, optimizers_for
from seewhere.probing import compact, losses
from seewhere.probing.cores import alike, over_cores
from seewhere.probing.heads import Probe

STATE = "state.pt"
OnEpoch = Callable[[int, float], None]
"""Called with (epoch from 1, validation score) after every epoch; what it raises ends the training."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What a training depends on. `epochs` and `learning_rate` are searched for; see the presets."""

    learning_rate: float = 2e-4
    epochs: int = 20
    batch: int = 128
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    layers: int = 1  # of the probe
    hidden: int = 256  # width of its SwiGLU layers, if it has any
    l1: float = 5.0  # weight of the L1 part of the box loss
    giou: float = 2.0  # weight of its GIoU part
    patience: int = 0  # epochs without a better validation score before it stops; 0: never
    standardise: bool = False  # shift and scale the frozen tokens by the training set's mean and deviation
    clip: float = 1.0  # largest gradient norm
    optimizer: str = "adamw"  # the paper's; "muon" for the matrices of a resampler trained along: fewer steps
    words: bool = True  # of a resampler trained along, train what only words pass through, too (`compact`)
    seed: int = 0

    def changed(self, **values: Any) -> ProbeSettings:
        """Return a copy with other values."""
        return replace(self, **values)


SCORED = 128
"""Examples scored at a time."""


class Source(Protocol):
    """Where a batch of tokens comes from."""

    module: nn.Module
    """What is trained along; without parameters for frozen tokens."""

    thread_safe: bool
    """Whether several threads may read it at once."""
    lengths: NDArray[np.int64]
    """How long each example's text is, where it is still to be read; else all alike."""

    def __len__(self) -> int: ...

    def tokens(self, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        """Return the tokens of some examples, (B, tokens, width)."""
        ...


@dataclass(frozen=True)
class Fitted:
    """A trained probe with its best state: `score` is its validation score, reached after `epoch` (from 1).

    `history` has a row per epoch: epoch, loss, validation_loss, validation_score, learning_rate. `module` is the
    resampler's trained part (without parameters where it was frozen).
    """

    probe: Probe
    module: nn.Module
    settings: ProbeSettings
    epoch: int
    score: float
    history: pd.DataFrame


class _Joint(nn.Module):
    """Resampler and probe as one module, so that distributed training sees one forward pass."""

    def __init__(self, probe: Probe, module: nn.Module) -> None:
        super().__init__()
        self.probe, self.module = probe, module

    def forward(self, source: Source, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        return self.probe(source.tokens(rows, device))


def fit(
    train: Source,
    train_targets: NDArray[np.float32],
    validation: Source,
    validation_targets: NDArray[np.float32],
    settings: ProbeSettings,
    *,
    probe: Probe | None = None,
    folder: Path | None = None,
    on_epoch: OnEpoch | None = None,
    progress: bool = True,
    description: str = "probe",
) -> Fitted:
    """Train a probe (and `train.module`) and keep the epoch with the best validation score.

    Args:
        train: tokens of the training examples; `train.module` is trained along, in place.
        train_targets: (N, 4) boxes as (cx, cy, w, h) in 0..1, or (N, 1) labels 0 and 1.
        validation: tokens of the validation examples, from the same module.
        validation_targets: as `train_targets`.
        settings: see `ProbeSettings`.
        probe: a trained probe to go on from; it stays as it is. None: a new one.
        folder: where the state is saved after every epoch, to go on from there when the process was killed.
        on_epoch: called after every epoch; may raise to end the training (pruning).
        progress: show a bar over the epochs.
        description: of the bar.

    Returns:
        The probe and the module in their best state, in evaluation mode.

    Raises:
        ValueError: no examples, targets of another length, or a folder with a training of other settings.
        FloatingPointError: the loss is not a number any more.
    """
    for name, source, targets in (("train", train, train_targets), ("validation", validation, validation_targets)):
        if not len(source) or len(source) != len(targets):
            raise ValueError(f"{name}: expected one target per example; got {len(source)} and {len(targets)}")
    run = _Run(train, train_targets, validation, validation_targets, settings, folder, probe)
    run.resume()
    epochs = range(run.epoch, settings.epochs)
    hidden = not progress or not run.accelerator.is_main_process
    with tqdm(epochs, initial=run.epoch, total=settings.epochs, desc=description, disable=hidden, leave=False) as bar:
        for _ in bar:
            if run.finished():
                break
            row = run.one_epoch()
            bar.set_postfix(loss=f"{row['loss']:.3f}", score=f"{row['validation_score']:.3f}")
            if on_epoch is not None:
                on_epoch(run.epoch, row["validation_score"])
    return run.result()


class _Run:
    """The state of one training."""

    def __init__(
        self,
        train: Source,
        train_targets: NDArray[np.float32],
        validation: Source,
        validation_targets: NDArray[np.float32],
        settings: ProbeSettings,
        folder: Path | None,
        probe: Probe | None,
    ) -> None:
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(kwargs_handlers=[unused])
        self.train, self.validation, self.settings, self.folder = train, validation, settings, folder
        self.train_targets = torch.as_tensor(train_targets, dtype=torch.float32)
        self.validation_targets = torch.as_tensor(validation_targets, dtype=torch.float32)
        torch.manual_seed(settings.seed)
        device = self.accelerator.device
        shape = train.tokens(np.array([0]), device).shape[1:]
        self.probe = copy.deepcopy(probe) or Probe(shape, train_targets.shape[1], settings.layers, settings.hidden)
        if settings.standardise and probe is None:
            self.probe.standardise(*_moments(train, device))
        if not settings.words:
            compact.keep_words(train.module)
        joint = _Joint(self.probe, train.module)
        self.parameters = [p for p in joint.parameters() if p.requires_grad]
        self.joint, *self.optimizers = self.accelerator.prepare(joint.to(device), *_optimizers(joint, settings))
        self.steps = math.ceil(len(train) / settings.batch)
        self.epoch, self.history = 0, list[dict[str, float]]()
        self.best: tuple[float, float, int, dict[str, Tensor]] | None = None

    # -- one epoch -----------------------------------------------------------------------------------------------------

    def one_epoch(self) -> dict[str, float]:
        """Train for one epoch, score the validation examples, and remember the best state."""
        order = np.random.default_rng([self.settings.seed, self.epoch]).permutation(len(self.train))
        # Dropout, if the resampler has any, differs between epochs and processes and repeats after a resume.
        torch.manual_seed(hash((self.settings.seed, self.epoch, self.accelerator.process_index)) % 2**31)
        self.joint.train()
        total = 0.0
        for step in range(self.steps):
            rows = order[step * self.settings.batch : (step + 1) * self.settings.batch]
            total += self._step(rows, self.epoch * self.steps + step) * len(rows)
        loss = self._sum(total) / len(self.train)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in epoch {self.epoch + 1}; try a lower learning rate")
        outputs = self._evaluate()
        right = losses.correct(outputs, self.validation_targets).double().mean().item()
        validation_loss = self._loss(outputs, self.validation_targets).double().mean().item()
        self.epoch += 1
        row = {
            "epoch": float(self.epoch),
            "loss": loss,
            "validation_loss": validation_loss,
            "validation_score": right,
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
        }
        self.history.append(row)
        # Where no answer is right yet, or equally many are, the loss tells which state is better.
        if self.best is None or (right, -validation_loss) > self.best[:2]:
            self.best = (right, -validation_loss, self.epoch, self._state())
        self._save()
        return row

    def _step(self, rows: NDArray[np.int64], number: int) -> float:
        """One optimiser step on a global batch; returns this process' share of its mean loss."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        own = rows[rank::world]
        weight = torch.ones(max(len(own), 1), device=self.accelerator.device)
        if not len(own):  # fewer examples than processes: take part in the step without a say
            own, weight = rows[:1], weight * 0
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = self.settings.learning_rate * self._factor(number)
        target = self.train_targets[torch.as_tensor(own)].to(self.accelerator.device)
        outputs = self.joint(self.train, own, self.accelerator.device)
        # Gradients are averaged over the processes, so each one's sum is divided by its share of the global batch.
        value = (self._loss(outputs, target) * weight).sum() / len(rows)
        self.accelerator.backward(value * world)
        if self.settings.clip:
            self.accelerator.clip_grad_norm_(self.parameters, self.settings.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return float(value.detach())

    def _factor(self, step: int) -> float:
        """Share of the learning rate at a step: up in a line over the warm-up, then down in a line to 0."""
        total = self.steps * self.settings.epochs
        warm = max(round(self.settings.warmup * total), 1)
        return min((step + 1) / warm, (total - step) / max(total - warm, 1))

    def _loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        if self.probe.box:
            return losses.box_loss(outputs, target, self.settings.l1, self.settings.giou)
        return losses.binary_loss(outputs, target)

    def _evaluate(self) -> Tensor:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        rows = np.arange(len(self.validation))[rank::world]
        outputs = _outputs(self.probe, self.validation, rows, self.accelerator.device)
        pieces = gather_object([(rows.tolist(), outputs.numpy())]) if world > 1 else [(rows.tolist(), outputs.numpy())]
        found = np.zeros((len(self.validation), self.validation_targets.shape[1]), dtype=np.float32)
        for places, values in pieces:
            found[places] = values
        return torch.from_numpy(found)

    def _sum(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        return float(sum(gather_object([value])))

    def finished(self) -> bool:
        """Whether the validation score has not risen for longer than the patience."""
        return bool(self.settings.patience and self.best and self.epoch - self.best[2] >= self.settings.patience)

    # -- states --------------------------------------------------------------------------------------------------------

    def _plain(self) -> _Joint:
        return self.accelerator.unwrap_model(self.joint)

    def _state(self) -> dict[str, Tensor]:
        """Everything that training changes, on the processor: trained parameters, and buffers."""
        plain = self._plain()
        frozen = {name for name, value in plain.named_parameters() if not value.requires_grad}
        return {k: v.detach().cpu().clone() for k, v in plain.state_dict().items() if k not in frozen}

    def _facts(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.train_targets.numpy().tobytes() + self.validation_targets.numpy().tobytes())
        return {"settings": asdict(self.settings), "targets": digest.hexdigest(), "identity": _identity(self.train)}

    def _save(self) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        content = {
            "facts": self._facts(),
            "epoch": self.epoch,
            "history": self.history,
            "best": self.best,
            "state": self._state(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        storage.atomic_write_bytes(self.folder / STATE, buffer.getvalue())

    def resume(self) -> None:
        """Go on from the saved state, if there is one."""
        path = None if self.folder is None else self.folder / STATE
        if path is None or not path.is_file():
            return
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}). Remove it, and the training begins anew."
            ) from error
        if content["facts"] != self._facts():
            raise ValueError(f"{path} is of a training with other settings or data. Choose another folder.")
        self._plain().load_state_dict(content["state"], strict=False)
        for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.epoch, self.history, self.best = content["epoch"], content["history"], content["best"]

    def result(self) -> Fitted:
        """Put the best state back and return it."""
        assert self.best is not None, "at least one epoch has been trained"
        score, _, epoch, state = self.best
        plain = self._plain()
        plain.load_state_dict(state, strict=False)
        plain.eval()
        return Fitted(plain.probe, plain.module, self.settings, epoch, score, pd.DataFrame(self.history))


def _optimizers(joint: _Joint, settings: ProbeSettings) -> list[torch.optim.Optimizer]:
    """AdamW on everything, as published; or Muon on the resampler's matrices and AdamW on the rest.

    Raises:
        ValueError: unknown optimizer.
    """
    if settings.optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {settings.optimizer!r}; expected one of {OPTIMIZERS}")
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw" or not any(p.requires_grad for p in joint.module.parameters()):
        trained = [p for p in joint.parameters() if p.requires_grad]
        return [torch.optim.AdamW(trained, lr=rate, weight_decay=decay, eps=1e-8, fused=True)]
    found = optimizers_for(joint.module, rate, decay, settings.optimizer)
    found[-1].add_param_group({"params": list(joint.probe.parameters()), "weight_decay": decay})
    return found


def _identity(source: Source) -> str:
    return str(getattr(source, "identity", ""))


@torch.no_grad()
def _moments(source: Source, device: torch.device, rows: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the flattened tokens over (at most `rows` of) the training examples."""
    chosen = np.linspace(0, len(source) - 1, min(rows, len(source))).astype(np.int64)
    flat = source.tokens(chosen, device).flatten(1)
    mean = flat.mean(dim=0)
    return mean.cpu(), (flat - mean).square().mean(dim=0).sqrt().cpu()


@torch.no_grad()
def _outputs(probe: Probe, source: Source, rows: Sequence[int] | NDArray, device: torch.device) -> Tensor:
    """Boxes (cx, cy, w, h) or logits of some examples, on the processor."""
    probe.eval()
    source.module.eval()
    wanted = np.asarray(rows, dtype=np.int64)
    batches, back = alike(source.lengths[wanted], SCORED)

    def answer(batch: NDArray[np.int64]) -> Tensor:
        return probe(source.tokens(wanted[batch], device)).float().cpu()

    parts = list(over_cores(answer, batches, source.thread_safe and device.type == "cpu"))
    return torch.cat(parts)[torch.from_numpy(back)] if parts else torch.zeros(0, probe.head.out_features)


def predict(probe: Probe, source: Source) -> NDArray[np.float32]:
    """Return what a probe says of every example: boxes (N, 4) as (cx, cy, w, h) in 0..1, or logits (N, 1)."""
    device = probe.head.weight.device
    return _outputs(probe, source, np.arange(len(source)), device).numpy()
