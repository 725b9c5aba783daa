"""Training of the micro language model from scratch on lessons: a curriculum by mastery, resumable.

Lists start with at most three boxes and grow when most answers are right: the circuits that look things up form on
short lists, and long lists before that teach only the shape of an answer. What a step trains on depends on (seed,
step, stage) alone, so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import argparse
import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.models import micro_language
from seewhere.world.lessons import Lesson, make_lesson
from seewhere.world.scenes import sample_scene
from seewhere.world.sprites import SpriteSet, load_sprites

STAGES = (3, 4, 5, 6, 8, 10)
CHECKPOINT, LOG = "checkpoint.pt", "log.json"
SEEDS = 9_999_991  # prime, below the number of scenes in the train split


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of one training."""

    steps: int = 20_000
    batch: int = 12  # lessons per step
    learning_rate: float = 4e-3  # Muon scaled to AdamW's update size
    warmup: int = 100
    mastery: float = 0.8  # share of right answer tokens that opens the next stage
    window: int = 60  # steps over which mastery is measured
    seed: int = 0
    bf16: bool = False  # mixed precision: about twice as fast on processors with AVX512-BF16
    hidden: int = 192
    layers: int = 6
    vocabulary: int = 2560


def lesson_of(sprites: SpriteSet, number: int, most: int) -> Lesson:
    """Return the lesson of a training scene with two to `most` objects; scenes of other sizes are passed over."""
    while True:
        scene = sample_scene(number % SEEDS, sprites, split="train")
        if 2 <= len(scene.objects) <= most:
            return make_lesson(scene, Random(number))
        number += 1_234_567


class Training:
    """State of one run.

    Args:
        recipe: settings; a folder with a checkpoint of other settings is refused.
        folder: where ``checkpoint.pt``, ``log.json`` and, at the end, ``model/`` go.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder, self.sprites = recipe, folder, load_sprites()
        texts = micro_language.texts_of(lesson_of(self.sprites, n, STAGES[-1]) for n in range(2000))
        self.tokenizer = micro_language.build_tokenizer(texts, recipe.vocabulary)
        torch.manual_seed(recipe.seed)
        self.model = micro_language.build_model(len(self.tokenizer), recipe.hidden, recipe.layers)
        self.optimizers = micro_language.muon_and_adamw(self.model, recipe.learning_rate)
        self.step, self.stage, self.since = 0, 0, 0
        self.right: list[float] = []
        self.log: list[dict[str, float]] = []
        if (folder / CHECKPOINT).is_file():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.folder / CHECKPOINT, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(
                f"{self.folder} holds a training with other settings ({state['recipe']}); expected "
                f"{asdict(self.recipe)}. Choose another --out, or the same settings to go on."
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.stage, self.since = state["step"], state["stage"], state["since"]
        self.right, self.log = state["right"], state["log"]

    def save_checkpoint(self) -> None:
        """Write everything that going on needs, whole or not at all."""
        buffer = io.BytesIO()
        torch.save(
            {
                "recipe": asdict(self.recipe),
                "model": self.model.state_dict(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "step": self.step,
                "stage": self.stage,
                "since": self.since,
                "right": self.right,
                "log": self.log,
            },
            buffer,
        )
        storage.atomic_write_bytes(self.folder / CHECKPOINT, buffer.getvalue())
        storage.atomic_write_json(self.folder / LOG, self.log)

    def rate(self) -> float:
        """Return the learning rate of the current step: warm-up, flat to the middle, cosine to 3 %."""
        recipe, done = self.recipe, self.step / self.recipe.steps
        rate = recipe.learning_rate * min(1.0, (self.step + 1) / recipe.warmup)
        return rate if done < 0.5 else rate * (0.03 + 0.97 * (1 + math.cos(math.pi * (2 * done - 1))) / 2)

    def one_step(self) -> float:
        """Train on one batch; returns the loss."""
        recipe, first = self.recipe, 1_000_000 * (self.recipe.seed + 1) + self.step * self.recipe.batch
        lessons = [lesson_of(self.sprites, first + i, STAGES[self.stage]) for i in range(recipe.batch)]
        rows = [micro_language.lesson_rows(lesson, self.tokenizer) for lesson in lessons]
        batch = micro_language.collate(rows, int(self.tokenizer.pad_token_id or 0))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            loss, right = micro_language.weighted_loss(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self._master(float(right))
        return float(loss.detach())

    def _master(self, right: float) -> None:
        """Open the next stage once the window since the last one shows mastery."""
        self.right = [*self.right, right][-self.recipe.window :]
        ripe = self.step - self.since >= self.recipe.window and len(self.right) == self.recipe.window
        if ripe and self.stage < len(STAGES) - 1 and sum(self.right) / len(self.right) > self.recipe.mastery:
            self.stage, self.since = self.stage + 1, self.step

    def run(self, until: int | None = None, save_every: int = 200, progress: bool = True) -> None:
        """Train up to a step (default: the recipe's end), saving on the way and at the end."""
        last = min(until or self.recipe.steps, self.recipe.steps)
        with tqdm(total=last, initial=self.step, desc="micro language model", disable=not progress) as bar:
            while self.step < last:
                loss = self.one_step()
                bar.update(1)
                if self.step % 20 == 0:
                    mean = sum(self.right) / len(self.right)
                    self.log.append({"step": self.step, "loss": loss, "right": mean, "boxes": STAGES[self.stage]})
                    bar.set_postfix(loss=f"{loss:.3f}", right=f"{mean:.2f}", boxes=STAGES[self.stage])
                if self.step % save_every == 0 or self.step == last:
                    self.save_checkpoint()


def register(subparsers: Any) -> None:
    """Add ``seewhere train language``."""
    parser = subparsers.add_parser("language", help="train the micro language model on the world's lessons")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and model/")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.set_defaults(handler=main)


def main(arguments: argparse.Namespace) -> int:
    """Train and write the model; the same call again goes on where it stopped."""
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed, bf16=arguments.bf16)
    training = Training(recipe, arguments.out)
    training.run()
    target = arguments.out / "model"
    with storage.atomic_directory(target, overwrite=True) as work:
        micro_language.save(training.model, training.tokenizer, Path(work))
    print(f"step {training.step}, lists of up to {STAGES[training.stage]} boxes; the model is in {target}")
    return 0
