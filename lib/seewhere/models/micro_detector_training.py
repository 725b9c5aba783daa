"""Training of the micro detectors from scratch on the embedded world.

A step's batch and its distortions depend on (seed, step) alone, so a run that was stopped and resumed ends with the
very parameters of one that was not. The recipes and their data are in `micro_detector_data`.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from seewhere import boxes as frames
from seewhere.models import few_bits
from seewhere.models.micro_detector import DetectorNetwork, MicroDetector
from seewhere.models.micro_detector_data import Scenes, TrainingSettings, batch_of
from seewhere.models.micro_detector_heatmap import detection_loss, encode
from seewhere.storage import atomic_directory, atomic_write_bytes, atomic_write_json, hash_file


def rate_at(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step: one cycle, linear up over the first 15 %, cosine down to 1 % of the peak."""
    done, rise = step / settings.steps, 0.15
    if done < rise:
        return settings.learning_rate * (0.05 + 0.95 * done / rise)
    return settings.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * (done - rise) / (1 - rise))) / 2)


class Trainer:
    """State of one run: the network, its running mean, the optimizer and the step.

    Args:
        settings: the recipe.
        categories: (id, name) per class.
        scenes: what it trains on.
        folder: where checkpoint and log live.
    """

    def __init__(
        self, settings: TrainingSettings, categories: Sequence[tuple[int, str]], scenes: Scenes, folder: Path
    ) -> None:
        self.settings, self.categories, self.scenes, self.folder = settings, list(categories), scenes, folder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = DetectorNetwork(settings.network, len(self.categories))
        self.network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        weights = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
        self.step = 0
        self.losses: list[float] = []

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint."""
        return self.folder / "checkpoint.pt"

    def save_checkpoint(self) -> None:
        """Write everything that is needed to go on, whole or not at all."""
        buffer = io.BytesIO()
        state = {
            "settings": repr(replace(self.settings, checkpoint_every=0)),
            "network": self.network.state_dict(),
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "losses": self.losses,
        }
        torch.save(state, buffer)
        atomic_write_bytes(self.checkpoint, buffer.getvalue())

    def resume(self) -> None:
        """Go on from the checkpoint.

        Raises:
            ValueError: the checkpoint was made with other settings.
        """
        state = torch.load(self.checkpoint, weights_only=True)
        mine = repr(replace(self.settings, checkpoint_every=0))
        if state["settings"] != mine:
            raise ValueError(
                f"{self.checkpoint} was made with other settings; expected {mine}, found {state['settings']}. "
                "Use the same settings, or train without --resume to start over."
            )
        self.network.load_state_dict(state["network"])
        self.mean = state["mean"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses = state["step"], state["losses"]

    def train_step(self) -> dict[str, float]:
        """Take one step and return the parts of its loss."""
        settings = self.settings
        pixels, boxes, classes = batch_of(self.scenes, settings, self.step)
        targets = encode(boxes, classes, len(self.categories), settings.network.input_side)
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, settings)
        # bf16 is 1.4 to 1.8 times as fast on CPUs that have it, and correct everywhere.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            heat, box_map = self.network(pixels)
        loss, parts = detection_loss(heat, box_map, targets)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.step}; try a lower --learning-rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self.optimizer.step()
        self.step += 1
        self._update_mean()
        self.losses.append(loss.item())
        return parts

    def _update_mean(self) -> None:
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value.detach(), 1 - decay)
            else:
                self.mean[name].copy_(value)

    def run(self, until: int | None = None, log: Callable[[str], None] | None = None) -> None:
        """Train until step ``until`` (all steps by default), writing checkpoints and log lines on the way."""
        last, start = min(until or self.settings.steps, self.settings.steps), time.monotonic()
        with tqdm(total=self.settings.steps, initial=self.step, desc=self.settings.name, mininterval=5) as bar:
            while self.step < last:
                parts = self.train_step()
                bar.update()
                if self.step % 50 == 0 or self.step == last:
                    mean = float(np.mean(self.losses[-50:]))
                    bar.set_postfix(loss=f"{mean:.3f}")
                    if log:
                        detail = " ".join(f"{k} {v:.3f}" for k, v in parts.items())
                        log(f"step {self.step} loss {mean:.4f} {detail} seconds {time.monotonic() - start:.0f}")
                if self.step % self.settings.checkpoint_every == 0 or self.step == last:
                    self.save_checkpoint()

    def detector(self, **options: Any) -> MicroDetector:
        """Return the detector made of the running mean of the parameters, rounded as it would ship."""
        network = DetectorNetwork(self.settings.network, len(self.categories))
        network.load_state_dict(few_bits.rounded(self.mean))
        return MicroDetector(network, self.categories, self.settings.name, **options)

    def write(self, folder: Path, extra: dict[str, Any], card: str = "") -> None:
        """Write ``model.safetensors`` (seven bits), ``config.json`` and a card, replacing older ones as a whole."""
        config = {
            "name": self.settings.name,
            "network": asdict(self.settings.network),
            "categories": [list(c) for c in self.categories],
            "training": {k: v for k, v in asdict(self.settings).items() if k != "network"},
            **extra,
        }
        with atomic_directory(folder, overwrite=True) as partial:
            few_bits.save_state(self.mean, partial / "model.safetensors")
            atomic_write_json(partial / "config.json", config)
            if card:
                digest = hash_file(partial / "model.safetensors")
                size = (partial / "model.safetensors").stat().st_size / 1e6
                text = card.replace("{sha256}", digest).replace("{megabytes}", f"{size:.1f}")
                (partial / "README.md").write_text(text, encoding="utf-8")


def tune_threshold(
    detector: MicroDetector, scenes: Scenes, recall_weight: float = 1.0
) -> tuple[float, dict[str, float]]:
    """Choose the score threshold with the best F score (right label and IoU > 0.5) on validation scenes.

    Args:
        detector: the detector.
        scenes: validation scenes.
        recall_weight: beta of the F score; 2 weighs recall twice as heavily as precision.

    Returns:
        The threshold, and precision, recall and F there.
    """
    images = [Image.fromarray(np.asarray(image)) for image in scenes.images]
    scores: list[float] = []
    hits: list[bool] = []
    for found, boxes, classes in zip(
        detector.with_threshold(0.05, 50).detect(images), scenes.boxes, scenes.classes, strict=True
    ):
        names = [detector.labels[c] for c in classes]
        overlap = frames.iou(found.xyxy, boxes)
        free = np.ones(len(boxes), dtype=bool)
        for k, label in enumerate(found.data["label"]):
            fits = free & (overlap[k] > 0.5) & np.array([n == label for n in names], dtype=bool)
            hits.append(bool(fits.any()))
            if fits.any():
                free[int(np.argmax(np.where(fits, overlap[k], -1)))] = False
        scores += [float(s) for s in (found.confidence if found.confidence is not None else [])]
    return _best_threshold(
        np.array(scores), np.array(hits, dtype=bool), sum(len(b) for b in scenes.boxes), recall_weight
    )


def _best_threshold(
    scores: np.ndarray, hits: np.ndarray, wanted: int, recall_weight: float
) -> tuple[float, dict[str, float]]:
    best = (0.25, {"precision": 0.0, "recall": 0.0, "f": 0.0})
    square = recall_weight**2
    for threshold in np.arange(0.10, 0.61, 0.01):
        kept = scores >= threshold
        right = int(hits[kept].sum())
        precision, recall = right / max(int(kept.sum()), 1), right / max(wanted, 1)
        score = (1 + square) * precision * recall / max(square * precision + recall, 1e-9)
        if score > best[1]["f"]:
            best = (round(float(threshold), 2), {"precision": precision, "recall": recall, "f": score})
    return best
