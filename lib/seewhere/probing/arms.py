"""Trained arms on disk: a probe, and the resampler's weights that were trained with it, small enough to ship.

A folder holds ``model.safetensors`` and ``arm.json`` (task, settings, scores, the hash of the weights that training
began from, and that of the examples it read). The weights are the probe, and the parameters of the resampler that
training changed, in half precision; what was frozen is not repeated. In few bits, the probe is stored in seven and the
change of each matrix in a few levels, see `seewhere.probing.compact`. An arm whose training began with another arm
holds its change from that one, which lies beside it under its own name.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from seewhere import storage
from seewhere.models import few_bits
from seewhere.probing import compact
from seewhere.probing.heads import Probe
from seewhere.probing.names import ABOUT, WEIGHTS, folder_of
from seewhere.probing.protocols import Resampler, TrainableResampler
from seewhere.probing.tasks import Task, examples_hash
from seewhere.probing.training import Fitted, ProbeSettings

MOMENTS = ("mean", "scale")  # of a probe that shifts and scales its input; else they are 0 and 1


def save_arm(
    fitted: Fitted,
    folder: Path | str,
    model: Resampler,
    about: Mapping[str, Any],
    few: bool = False,
    start: Path | str | None = None,
) -> Path:
    """Write a trained arm, whole or not at all, replacing an earlier one.

    Args:
        fitted: what `training.fit` returned.
        folder: where to.
        model: the resampler that training began from; with `start`, the one that the other arm's training began from.
        about: task ("rec", "vsr", "rcm"), data, scores and whatever else a reader should know.
        few: in few bits, to ship. Rounding changes what it answers a little: score it as `load_arm` gives it back.
        start: folder of the arm whose resampler training began with, if it did; it is copied beside `folder`.
    """
    probe = {k: v for k, v in fitted.probe.state_dict().items() if k not in MOMENTS or fitted.settings.standardise}
    tensors = {f"probe.{k}": v.cpu().contiguous() for k, v in probe.items()}
    begun = model if start is None else load_arm(start, model)[1]
    base = dict(begun.module.named_parameters()) if isinstance(begun, TrainableResampler) else {}
    for name, value in fitted.module.named_parameters():
        now, before = value.detach().cpu(), base[name].detach().cpu() if name in base else None
        # Heads of the pre-training that a probe never asks are as they were, and are found in the resampler.
        if not value.requires_grad or (before is not None and torch.equal(now, before)):
            continue
        if few and before is not None and now.ndim == 2:
            tensors[f"change.{name}"] = now - before
        else:
            tensors[f"module.{name}"] = now.half().contiguous()
    content = {
        **about,
        "resampler": model.name,
        "started_from": model.weights_hash,
        **({} if start is None else {"start_arm": _bring(Path(start), Path(folder).parent)}),
        "settings": asdict(fitted.settings),
        "probe": {"outputs": fitted.probe.head.out_features, "inputs": fitted.probe.mean.numel()},
        "validation_score": fitted.score,
        "epoch": fitted.epoch,
        "history": fitted.history.round(5).to_dict("list"),
        "parameters": sum(v.numel() for v in tensors.values()),
    }
    target = Path(folder)
    with storage.atomic_directory(target, overwrite=target.exists()) as work:
        if few:
            few_bits.save_state(tensors, work / WEIGHTS, {"change.": compact.STEPS[about["task"]]})
        else:
            save_file(tensors, work / WEIGHTS)
            storage.make_readable(work / WEIGHTS)
        storage.atomic_write_json(work / ABOUT, content)
    return target


def name_of(about: Mapping[str, Any]) -> str:
    """Return the name of the folder that an arm lies in where several lie together: task, resampler, seed."""
    return folder_of(Path(), about["task"], about["resampler"], about["settings"]["seed"]).name


def _bring(start: Path, place: Path) -> dict[str, str]:
    """Copy an arm, and what it began with, below ``place`` under its own name; returns that name and its hash."""
    earlier = start_of(start)
    if earlier is not None:
        _bring(earlier, place)
    found = {"name": name_of(storage.read_json(start / ABOUT)), "sha256": storage.hash_file(start / WEIGHTS)}
    target = place / found["name"]
    if target.resolve() != start.resolve():
        with storage.atomic_directory(target, overwrite=target.exists()) as work:
            for file in (ABOUT, WEIGHTS):
                shutil.copyfile(start / file, work / file)
    return found


def facts_of(task: Task) -> dict[str, Any]:
    """Return what an arm must know of its data, for ``about`` of `save_arm`; `task` is what it was trained on."""
    return {
        "task": task.name,
        "source": task.source,
        "train_world": task.larger,
        "start_task": task.start,
        "train_examples": len(task.splits["train"]),
        "train_hash": examples_hash(task.splits["train"]),
        "validation_hash": examples_hash(task.splits["validation"]),
    }


def misfit(folder: Path | str, task: Task, model: Resampler, settings: ProbeSettings) -> str:
    """Return why a saved arm is not the one that training here would give; "" where it is.

    Compared are the weights it began from, every setting (the seed included), and the examples: those it was trained
    on, or, where the task names a larger build of the same world, that name and the validation examples.
    """
    about = storage.read_json(Path(folder) / ABOUT)
    if about["started_from"] != model.weights_hash:
        return f"it began from other weights of {about['resampler']}"
    facts = facts_of(task)
    for name in ("task", "source"):
        if about.get(name) != facts[name]:
            return f"it is of {about.get(name)}"
    if about.get("start_task", "") != task.start:
        return f"its training began with {about.get('start_task') or 'the resampler as it is'}"
    seen = "validation_hash" if task.larger else "train_hash"
    if any(about.get(name) != facts[name] for name in ("train_world", seen)):
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
        ValueError: the folder belongs to another resampler or other weights, or they do not fit, or the arm that its
            training began with is not beside it.
    """
    place = Path(folder)
    about = storage.read_json(place / ABOUT)
    if about["started_from"] != model.weights_hash:
        raise ValueError(
            f"{place} was trained from {about['resampler']} {about['started_from'][:12]}, this is {model.name} "
            f"{model.weights_hash[:12]}. Load the weights it belongs to, or train the arm again."
        )
    tensors = few_bits.load_state(place / WEIGHTS)
    settings = about["settings"]
    inputs, outputs = about["probe"]["inputs"], about["probe"]["outputs"]
    probe = Probe((1, inputs), outputs, settings["layers"], settings["hidden"])
    probe.load_state_dict(probe.state_dict() | _part(tensors, "probe"))
    trained, changes = _part(tensors, "module"), _part(tensors, "change")
    if not trained and not changes:
        return probe.eval(), model, about
    if not isinstance(model, TrainableResampler):
        raise ValueError(f"{place} holds trained weights of a resampler, and {model.name} has no module to put them in")
    start = start_of(place)
    own = copy.deepcopy(model if start is None else load_arm(start, model)[1])
    assert isinstance(own, TrainableResampler)
    base = dict(own.module.named_parameters())
    unknown_changes = changes.keys() - base.keys()
    trained |= {name: base[name].detach().cpu() + change for name, change in changes.items() if name in base}
    unknown = [*own.module.load_state_dict(trained, strict=False).unexpected_keys, *sorted(unknown_changes)]
    if unknown:
        raise ValueError(f"{place}: {model.name} has no parameter {unknown[0]!r}. Is it another version's?")
    own.module.eval()
    # Its tokens are no longer those of the weights it started from: caches must not mix them up.
    own.weights_hash = storage.hash_file(place / WEIGHTS)
    return probe.to(next(own.module.parameters()).device).eval(), own, about


def start_of(folder: Path) -> Path | None:
    """Return the folder of the arm that a saved arm's training began with; None for the resampler as it is.

    Raises:
        ValueError: it is not beside the arm, or another one is.
    """
    start = storage.read_json(folder / ABOUT).get("start_arm")
    if start is None:
        return None
    beside = folder.parent / start["name"]
    if not (beside / WEIGHTS).is_file() or storage.hash_file(beside / WEIGHTS) != start["sha256"]:
        raise ValueError(
            f"{folder} holds the change from the arm {start['name']} ({start['sha256'][:12]}), which is not in "
            f"{folder.parent}. Put that one there, or train the arm again."
        )
    return beside


def parameters_hash(module: nn.Module) -> str:
    """Return the SHA-256 of all parameters of a module: other values, another hash."""
    digest = hashlib.sha256()
    for name, value in module.named_parameters():
        digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{kind}."): v for k, v in tensors.items() if k.startswith(f"{kind}.")}
