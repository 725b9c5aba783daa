"""Trained arms on disk: a probe, and the resampler's weights that were trained with it, small enough to ship.

A folder holds ``model.safetensors`` (the probe, and in half precision the parameters of the resampler that training
changed; what was frozen is not repeated; of an arm held at a low rank, see `seewhere.probing.compact`, the factors of
each matrix' change in eight bits) and ``arm.json`` (task, settings, scores, the hash of the weights that training
began from, and that of the examples it read).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from seewhere import storage
from seewhere.probing import compact
from seewhere.probing.heads import Probe
from seewhere.probing.protocols import Resampler, TrainableResampler
from seewhere.probing.tasks import Task, examples_hash
from seewhere.probing.training import Fitted, ProbeSettings

WEIGHTS, ABOUT = "model.safetensors", "arm.json"
SIDES = ("left", "right")


def save_arm(
    fitted: Fitted,
    folder: Path | str,
    model: Resampler,
    about: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    rank: int = 0,
) -> Path:
    """Write a trained arm, whole or not at all, replacing an earlier one.

    Args:
        fitted: what `training.fit` returned.
        folder: where to.
        model: the resampler that training began from.
        about: task, data, scores and whatever else a reader should know.
        dtype: number format of the resampler's weights.
        rank: of an arm that `compact.compress` made; 0: its weights are written whole.
    """
    tensors = {f"probe.{k}": v.cpu().contiguous() for k, v in fitted.probe.state_dict().items()}
    base = dict(model.module.named_parameters()) if isinstance(model, TrainableResampler) else {}
    for name, value in fitted.module.named_parameters():
        # Heads of the pre-training that a probe never asks are as they were, and are found in the resampler.
        if not value.requires_grad or (name in base and torch.equal(value.cpu(), base[name].cpu())):
            continue
        if rank and compact.is_cut(value.shape, rank):
            change = value.detach().cpu() - base[name].detach().cpu()
            for side, factor in zip(SIDES, compact.factors(change, rank), strict=True):
                tensors |= _in_eight_bits(f"{side}.{name}", factor, 0 if side == "left" else 1)
        else:
            tensors[f"module.{name}"] = value.detach().to("cpu", dtype).contiguous()
    probe = {"outputs": fitted.probe.head.out_features, "inputs": fitted.probe.mean.numel()}
    content = {
        **about,
        "resampler": model.name,
        "started_from": model.weights_hash,
        "settings": asdict(fitted.settings),
        "probe": probe,
        "validation_score": fitted.score,
        "epoch": fitted.epoch,
        "history": fitted.history.round(5).to_dict("list"),
        "rank": rank,
        "parameters": sum(v.numel() for v in tensors.values()),
    }
    target = Path(folder)
    with storage.atomic_directory(target, overwrite=target.exists()) as work:
        save_file(tensors, work / WEIGHTS, metadata={"format": "pt"})
        (work / WEIGHTS).chmod(0o644)
        storage.atomic_write_json(work / ABOUT, content)
    return target


def facts_of(task: Task, larger: str = "") -> dict[str, Any]:
    """Return what an arm must know of its data, for ``about`` of `save_arm`.

    Args:
        task: what it was trained on.
        larger: the preset whose build of the world gave its training examples, if not the one it is tested on.
    """
    return {
        "task": task.name,
        "source": task.source,
        "train_world": larger,
        "train_examples": len(task.splits["train"]),
        "train_hash": examples_hash(task.splits["train"]),
        "validation_hash": examples_hash(task.splits["validation"]),
    }


def misfit(folder: Path | str, task: Task, model: Resampler, settings: ProbeSettings, larger: str = "") -> str:
    """Return why a saved arm is not the one that training here would give; "" where it is.

    Compared are the weights it began from, every setting (the seed included), and the examples: those it was trained
    on, or, where it learnt from a `larger` build of the same world, the name of that build and the validation examples.
    """
    about = storage.read_json(Path(folder) / ABOUT)
    if about["started_from"] != model.weights_hash:
        return f"it began from other weights of {about['resampler']}"
    facts = facts_of(task)
    for name in ("task", "source"):
        if about.get(name) != facts[name]:
            return f"it is of {about.get(name)}"
    seen = "validation_hash" if larger else "train_hash"
    if about.get("train_world", "") != larger or about.get(seen) != facts[seen]:
        return "it was trained on other examples"
    here = asdict(settings)
    changed = [f"{name} {about['settings'].get(name)}" for name in here if about["settings"].get(name) != here[name]]
    return f"it was trained with {', '.join(changed)}" if changed else ""


def load_arm(folder: Path | str, model: Resampler) -> tuple[Probe, Resampler, dict[str, Any]]:
    """Read a trained arm.

    Args:
        folder: see `save_arm`.
        model: the resampler that it was trained from; it stays as it is.

    Returns:
        The probe, a copy of the resampler with the trained weights (the given one where it was frozen), and what
        ``arm.json`` says.

    Raises:
        ValueError: the folder belongs to another resampler or other weights, or they do not fit.
    """
    place = Path(folder)
    about = storage.read_json(place / ABOUT)
    if about["started_from"] != model.weights_hash:
        raise ValueError(
            f"{place} was trained from {about['resampler']} {about['started_from'][:12]}, this is {model.name} "
            f"{model.weights_hash[:12]}. Load the weights it belongs to, or train the arm again."
        )
    tensors = {k: v.float() for k, v in load_file(place / WEIGHTS).items()}
    settings = about["settings"]
    inputs, outputs = about["probe"]["inputs"], about["probe"]["outputs"]
    probe = Probe((1, inputs), outputs, settings["layers"], settings["hidden"])
    probe.load_state_dict({k.removeprefix("probe."): v for k, v in tensors.items() if k.startswith("probe.")})
    trained = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    changed = {k.removeprefix("left."): v for k, v in tensors.items() if k.startswith("left.")}
    if not trained and not changed:
        return probe.eval(), model, about
    if not isinstance(model, TrainableResampler):
        raise ValueError(f"{place} holds trained weights of a resampler, and {model.name} has no module to put them in")
    own = copy.deepcopy(model)
    base = dict(own.module.named_parameters())
    for name, left in changed.items():
        left = left * tensors[f"scale.left.{name}"]
        right = tensors[f"right.{name}"] * tensors[f"scale.right.{name}"]
        trained[name] = base[name].detach().cpu() + left @ right
    unknown = own.module.load_state_dict(trained, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{place}: {model.name} has no parameter {unknown[0]!r}. Is it another version's?")
    own.module.eval()
    # Its tokens are no longer those of the weights it started from: caches must not mix them up.
    own.weights_hash = storage.hash_file(place / WEIGHTS)
    return probe.eval(), own, about


def _in_eight_bits(name: str, factor: torch.Tensor, across: int) -> dict[str, torch.Tensor]:
    """Return a factor as whole numbers of -127..127 and a scale for each of its rank-one parts."""
    scale = factor.abs().amax(dim=across, keepdim=True).clamp(min=1e-12) / 127
    return {name: (factor / scale).round().to(torch.int8).contiguous(), f"scale.{name}": scale.contiguous()}
