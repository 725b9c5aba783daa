"""One way to train: transformers' Trainer and peft, on rows that hold many short answers.

Three things are done here that the Trainer does not do by itself:

* **The loss reads only the answers.** A prompt of two hundred tokens ends in an answer of two; computing the output
  layer (49,152 or 128,256 columns wide) at every prompt position is wasted work and memory. `answers_only` lets the
  model's own forward pass run, but hands its output layer only the positions whose next token is an answer.
* **Rows are packed.** Questions about one candidate list share it in one sequence, see `seewhere.packing`.
* **A killed training goes on.** A checkpoint counts only if its list of files and sizes, written last, is met; torn
  ones are set aside and the one before is taken.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments

from seewhere import storage
from seewhere.models.lora import LORA_TARGETS, add_lora, count_trainable, load_adapter_weights, save_adapter
from seewhere.models.output_layer import answers_only
from seewhere.packing import IGNORED, Row, Sample, additive_mask, collate, pack

__all__ = [
    "LORA_TARGETS",
    "Row",
    "Sample",
    "Trained",
    "TrainingSettings",
    "add_lora",
    "answer_loss",
    "answers_only",
    "collate",
    "count_trainable",
    "last_whole_checkpoint",
    "load_adapter_weights",
    "pack",
    "save_adapter",
    "train",
]

COMPLETE = "complete.json"
# Rows are padded to a multiple of this: processors prepare a matrix product anew for every new shape.
WIDTH_MULTIPLE = 32
SETTINGS_FILE = "training_settings.json"


# -------------------------------------------------------------------------------------------------- the loss


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (N, V) and targets (N,), summed."""
    return functional.cross_entropy(logits, targets, reduction="sum")


def answer_loss(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    answer_tokens: torch.Tensor | int | None = None,
    head: Any = None,
    loss: Loss = summed_cross_entropy,
) -> torch.Tensor:
    """Cross-entropy of the answer tokens, divided by `answer_tokens` (default: their number in `inputs`).

    Args:
        model: a causal language model, possibly wrapped.
        inputs: a batch as `collate` makes it; label i is the token at i, predicted from i - 1.
        answer_tokens: what the sum is divided by, where a step spans several batches.
        head: the model that owns the output layer, where `model` is a distributed wrapper around it.
        loss: something else in place of the cross-entropy: of logits (N, V) float32 and targets (N,) their sum.

    Raises:
        ValueError: if no label is set.
    """
    labels = inputs["labels"]
    keep = torch.zeros_like(labels, dtype=torch.bool)
    keep[:, :-1] = labels[:, 1:] != IGNORED
    targets = labels[:, 1:][keep[:, :-1]]
    if not len(targets):
        raise ValueError("the batch holds no answer token; expected a label other than -100 in it")
    with answers_only(head if head is not None else model, keep):
        others = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**others, use_cache=False).logits
    total = loss(logits.float(), targets)
    return total / (answer_tokens if answer_tokens is not None else len(targets))


# -------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What a training depends on. Defaults: LLM-wrapper's learning rate, schedule and batch."""

    learning_rate: float = 1e-5
    epochs: float = 1.0
    rows_per_step: int = 4  # rows in one forward pass; packed rows hold several samples each
    accumulate: int = 1  # forward passes per optimiser step: less memory, same result
    schedule: str = "linear"  # or "cosine", "constant_with_warmup"
    warmup: float = 0.0  # share of all steps
    weight_decay: float = 0.0
    clip: float = 1.0  # largest gradient norm
    save_every: int = 50  # optimiser steps; at most these are lost when the process is killed
    seed: int = 0
    bf16: bool = False  # mixed precision, for GPUs
    shuffle: bool = True  # False: in the given order, for rows that grow harder
    recompute: bool = False  # gradient checkpointing: ~30 % slower, far less memory


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model and its log: one row per logged step (step, epoch, loss, learning_rate, extra metrics)."""

    model: Any
    history: pd.DataFrame
    steps: int


def train(
    model: Any,
    rows: Sequence[Row],
    folder: str | Path,
    settings: TrainingSettings | None = None,
    *,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    resume: bool = True,
    progress: bool = True,
) -> Trained:
    """Train `model` in place on packed rows, going on from the newest whole checkpoint in `folder`.

    Args:
        model: a causal language model, full or with LoRA; only parameters that require gradients change.
        rows: see `pack`; shuffled by the seed.
        folder: where checkpoints, settings and ``history.csv`` go.
        settings: see `TrainingSettings`.
        evaluate: called with the model (in evaluation mode) every `evaluate_every` steps and at the end; what it
            returns stands in the history.
        resume: False starts again and removes nothing: it refuses a folder that holds checkpoints.

    Raises:
        ValueError: without rows, or if `folder` holds a training with other settings or data.
    """
    settings = settings or TrainingSettings()
    if not rows:
        raise ValueError("there are no rows to train on; expected at least one")
    folder = Path(folder)
    checkpoint = _prepare(folder, rows, settings, resume)
    if settings.recompute:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()  # a frozen embedding would otherwise cut the gradient of recomputed layers
    trainer = _AnswerTrainer(
        shuffle=settings.shuffle,
        model=model,
        args=_arguments(folder, settings, progress),
        train_dataset=_Rows(rows),
        data_collator=partial(collate, additive=additive_mask(model), multiple=WIDTH_MULTIPLE),
        callbacks=[_SealCheckpoints(), _Evaluate(evaluate, evaluate_every)],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = pd.DataFrame([entry for entry in trainer.state.log_history if "train_runtime" not in entry])
    storage.atomic_write_text(folder / "history.csv", history.to_csv(index=False))
    return Trained(model.eval(), history, trainer.state.global_step)


def _prepare(folder: Path, rows: Sequence[Row], settings: TrainingSettings, resume: bool) -> Path | None:
    """Check that the folder belongs to this training; give the checkpoint to go on from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.tokens, row.labels, row.positions)).encode())
    now = {**asdict(settings), "rows": len(rows), "data": digest.hexdigest()}
    if any(folder.glob("checkpoint-*")):
        if not resume:
            raise ValueError(f"{folder} holds checkpoints, and resume=False was asked. Choose a new folder.")
        before = storage.read_json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).is_file() else {}
        changed = [f"{k}: {before.get(k)} -> {now[k]}" for k in now if before.get(k) != now[k]]
        if changed:
            raise ValueError(f"{folder} holds a training with other settings ({'; '.join(changed)}). Choose another.")
    storage.atomic_write_json(folder / SETTINGS_FILE, now)
    return last_whole_checkpoint(folder)


def _arguments(folder: Path, settings: TrainingSettings, progress: bool) -> TrainingArguments:
    made = TrainingArguments(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.rows_per_step,
        gradient_accumulation_steps=settings.accumulate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,  # a value below 1 is a share of all steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        save_steps=settings.save_every,
        save_total_limit=2,  # the newest may be torn; the one before is then taken
        seed=settings.seed,
        bf16=settings.bf16,
        logging_steps=1,
        logging_strategy="steps",
        disable_tqdm=not progress,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # One process with several GPUs would scatter each batch over them and multiply its size: the answers' positions do
    # not scatter, and `rows_per_step` must mean what it says. Several GPUs are for `accelerate launch`.
    _ = made.device
    made._n_gpu = min(made._n_gpu, 1)
    return made


class _Rows(torch.utils.data.Dataset[Row]):
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


class _AnswerTrainer(Trainer):
    """The Trainer with the loss at answer positions, and adapters saved without the base's embeddings."""

    loss_is_scaled_for_ga = True

    def __init__(self, *, shuffle: bool = True, **settings: Any) -> None:
        self.shuffle = shuffle
        super().__init__(**settings)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.shuffle:
            return super()._get_train_sampler(train_dataset)
        return torch.utils.data.SequentialSampler(cast(Any, self.train_dataset))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = answer_loss(model, inputs, num_items_in_batch, head=self.accelerator.unwrap_model(model))
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The count is over all devices, the gradients are averaged over them.
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model: Any = self.model
        if hasattr(model, "peft_config") and self.args.should_save:
            model.save_pretrained(output_dir or self.args.output_dir, save_embedding_layers=False)
        else:
            super()._save(output_dir, state_dict)


class _Evaluate(TrainerCallback):
    def __init__(self, evaluate: Callable[[Any], dict[str, float]] | None, every: int) -> None:
        self.evaluate, self.every = evaluate, every

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if self.evaluate is None or not (last or (self.every and state.global_step % self.every == 0)):
            return
        model.eval()
        with torch.no_grad():
            values = self.evaluate(model)
        model.train()
        state.log_history.append({"step": state.global_step, "epoch": state.epoch, **values})


# ----------------------------------------------------------------------------------------------- checkpoints


class _SealCheckpoints(TrainerCallback):
    """Writes, after everything else of a checkpoint, what has to be there for it to count."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def seal(checkpoint: Path) -> None:
    """Write the list of the checkpoint's files with size and hash; done last, it marks the checkpoint as whole."""
    files = {str(p.relative_to(checkpoint)): p for p in sorted(checkpoint.rglob("*")) if p.is_file()}
    files.pop(COMPLETE, None)
    listed = {name: {"bytes": p.stat().st_size, "hash": storage.hash_file(p)} for name, p in files.items()}
    storage.atomic_write_json(checkpoint / COMPLETE, listed)


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that the checkpoint's list names is there with its size and content."""
    try:
        listed = storage.read_json(checkpoint / COMPLETE)
    except (FileNotFoundError, ValueError):
        return False
    for name, facts in listed.items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != facts["bytes"] or storage.hash_file(file) != facts["hash"]:
            return False
    return True


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; newer torn ones are renamed to ``torn-checkpoint-N`` with a warning."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.split("-")[1].isdigit()]
    for checkpoint in sorted(found, key=lambda p: -int(p.name.split("-")[1])):
        if is_whole(checkpoint):
            return checkpoint
        aside = checkpoint.with_name(f"torn-{checkpoint.name}")
        for number in range(1, 1000):
            if not aside.exists():
                break
            aside = checkpoint.with_name(f"torn-{checkpoint.name}.{number}")
        checkpoint.rename(aside)
        warnings.warn(
            f"{checkpoint} is torn (a file is missing, cut short or changed); set aside as {aside.name}", stacklevel=2
        )
    return None
