"""Training of the micro language model from scratch on lessons: a curriculum by mastery, resumable.

Lists start short and grow when looking things up in them works: the circuits that look things up form on short lists,
and long lists before that teach only the shape of an answer. Skills that are not yet mastered are asked for more
often. What a step trains on depends on (seed, step, stage, skills so far) alone, so a run that was stopped goes on as
if it had not been.
"""

from __future__ import annotations

import argparse
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.models import micro_language, packed_folders
from seewhere.world.lessons import DRILLS, REFERRING_SKILLS, Lesson, make_lesson, smaller_scene
from seewhere.world.scenes import sample_scene
from seewhere.world.sprites import SpriteSet, load_sprites

STAGES = (4, 5, 6, 8, 10)  # most boxes in a list
MASTERED = {"name": 0.75, "find": 0.65, "noun": 0.9, "place": 0.7, "size": 0.65}
"""Running shares of right answers that open the next stage: looking things up, and first comparisons."""
CHECKPOINT, LOG = "checkpoint.pt", "log.json"
SEEDS = 9_999_991  # prime, below the number of scenes in a split
MEMORY = 0.01  # weight of one answer in a skill's running share of right answers


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of one training."""

    steps: int = 8000
    rows: int = 6  # lessons per step
    row_tokens: int = 288  # every row is filled up to here with questions
    learning_rate: float = 3e-3  # Muon scaled to AdamW's update size; for the matrices
    embedding_rate: float = 5e-3  # AdamW; for embeddings, biases and norms
    warmup: int = 20
    falling: float = 0.5  # share of the steps, the last ones, over which the rates fall to 2 %
    mastery: float = 1.0  # what the shares that open the next stage (`MASTERED`) are multiplied by
    patience: int = 100  # fewest steps in a stage
    seed: int = 0
    bf16: bool = False  # mixed precision: about twice as fast on processors with AVX512-BF16
    hidden: int = 192
    layers: int = 5
    heads: int = 6
    vocabulary: int = 2560
    texts: int = 1500  # lessons that the tokenizer is made from


def lesson_of(
    sprites: SpriteSet,
    number: int,
    most: int,
    weights: dict[str, float] | None = None,
    split: Literal["train", "val"] = "train",
) -> Lesson:
    """Return the lesson of a scene with two to `most` objects; larger scenes give up some of theirs.

    Args:
        sprites: what scenes are made of.
        number: seed of the scene and of everything drawn about it.
        most: most objects; where that is the most that scenes have, most scenes keep all of theirs.
        weights: how much each skill is wanted.
        split: whose scenes.
    """
    random = Random(number)
    scene = sample_scene(number % SEEDS, sprites, split=split)
    while len(scene.objects) < 2:
        number += 1
        scene = sample_scene(number % SEEDS, sprites, split=split)
    last = most == STAGES[-1]
    if not last or random.random() < 0.2:
        scene = smaller_scene(scene, random.randint(3, most), random)
    return make_lesson(scene, random, drills=5, referring=16, weights=weights)


def skill_shares(
    lessons: Sequence[Lesson], batch: dict[str, torch.Tensor], right: torch.Tensor
) -> dict[str, list[int]]:
    """Return skill -> 1 or 0 per question: whether every token of its answer is predicted right.

    Args:
        lessons: the batch's lessons, a row each.
        batch: see `micro_language.collate`.
        right: per answer token, see `micro_language.answer_loss`.
    """
    found: dict[str, list[int]] = defaultdict(list)
    tokens = iter(right.tolist())
    for lesson, answers, segments in zip(lessons, batch["answers"], batch["segments"], strict=True):
        whole: dict[int, bool] = {}
        for segment in segments[answers].tolist():
            whole[segment] = next(tokens) and whole.get(segment, True)
        for segment, all_right in whole.items():
            found[lesson.questions[segment - 1].skill].append(int(all_right))
    return found


class Training:
    """State of one run.

    Args:
        recipe: settings; a folder with a checkpoint of other settings is refused. Only the number of steps may change.
        folder: where ``checkpoint.pt``, ``log.json`` and, at the end, ``model/`` go.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder, self.sprites = recipe, folder, load_sprites()
        names = [category.name for category in self.sprites.categories]
        texts = micro_language.texts_of(lesson_of(self.sprites, n, STAGES[-1]) for n in range(recipe.texts))
        self.tokenizer = micro_language.build_tokenizer(texts, recipe.vocabulary, names)
        torch.manual_seed(recipe.seed)
        self.model = micro_language.build_model(self.tokenizer, recipe.hidden, recipe.layers, recipe.heads, names)
        # With a block mask on a processor, plain matrix products are faster than torch's fused attention.
        self.model.set_attn_implementation("eager")
        self.optimizers = micro_language.muon_and_adamw(self.model, recipe.learning_rate, recipe.embedding_rate)
        self.rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.step, self.stage, self.since = 0, 0, 0
        self.skills: dict[str, float] = dict.fromkeys((*DRILLS, *REFERRING_SKILLS, "caption"), 0.0)
        self.log: list[dict[str, Any]] = []
        if (folder / CHECKPOINT).is_file():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.folder / CHECKPOINT, weights_only=True)
        if {**state["recipe"], "steps": 0} != {**asdict(self.recipe), "steps": 0}:
            raise ValueError(
                f"{self.folder} holds a training with other settings ({state['recipe']}); expected "
                f"{asdict(self.recipe)}. Choose another --out, or the same settings to go on."
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.stage, self.since = state["step"], state["stage"], state["since"]
        self.skills, self.log = state["skills"], state["log"]

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
                "skills": self.skills,
                "log": self.log,
            },
            buffer,
        )
        storage.atomic_write_bytes(self.folder / CHECKPOINT, buffer.getvalue())
        storage.atomic_write_json(self.folder / LOG, self.log)

    def rate(self) -> float:
        """Return the current step's share of the full learning rates: up, flat, and down to 2 % in a straight line."""
        left = 1 - self.step / self.recipe.steps
        return min(1.0, (self.step + 1) / self.recipe.warmup) * min(1.0, max(0.02, left / self.recipe.falling))

    def _ask(self, lessons: Sequence[Lesson]) -> tuple[torch.Tensor, dict[str, list[int]]]:
        """Return (loss, skill -> right or wrong) of the model on some lessons."""
        rows = [micro_language.lesson_row(lesson, self.tokenizer, self.recipe.row_tokens) for lesson in lessons]
        additive = torch.bfloat16 if self.recipe.bf16 else torch.float32
        batch = micro_language.collate(rows, int(self.tokenizer.pad_token_id or 0), additive, 32)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            loss, right = micro_language.answer_loss(self.model, batch)
        return loss, skill_shares(lessons, batch, right)

    def one_step(self) -> float:
        """Train on one batch; returns the loss."""
        recipe, first = self.recipe, 1_000_000 * (self.recipe.seed + 1) + self.step * self.recipe.rows
        weights = {skill: max(0.1, 1.05 - share) for skill, share in self.skills.items()}
        lessons = [lesson_of(self.sprites, first + i, STAGES[self.stage], weights) for i in range(recipe.rows)]
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, full in zip(groups, self.rates, strict=True):
            group["lr"] = full * self.rate()
        loss, shares = self._ask(lessons)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        for skill, answers in shares.items():
            for answer in answers:
                self.skills[skill] += MEMORY * (answer - self.skills[skill])
        self._open_next_stage()
        return float(loss.detach())

    def _open_next_stage(self) -> None:
        mastered = all(self.skills[skill] > share * self.recipe.mastery for skill, share in MASTERED.items())
        if mastered and self.step - self.since >= self.recipe.patience and self.stage < len(STAGES) - 1:
            self.stage, self.since = self.stage + 1, self.step

    def validate(self, scenes: int = 48) -> dict[str, float]:
        """Return each skill's share of right answers on lists of validation scenes, and of all that refer."""
        found: dict[str, list[int]] = defaultdict(list)
        with torch.no_grad():
            for start in range(0, scenes, 12):
                lessons = [lesson_of(self.sprites, start + i, STAGES[-1], None, "val") for i in range(12)]
                for skill, answers in self._ask(lessons)[1].items():
                    found[skill] += answers
        found["refer"] = [answer for skill in REFERRING_SKILLS for answer in found.get(skill, [])]
        return {skill: sum(answers) / len(answers) for skill, answers in found.items() if answers}

    def run(
        self, until: int | None = None, save_every: int = 200, validate_every: int = 400, progress: bool = True
    ) -> None:
        """Train up to a step (default: the recipe's end), saving on the way and at the end."""
        last = min(until or self.recipe.steps, self.recipe.steps)
        with tqdm(total=last, initial=self.step, desc="micro language model", disable=not progress) as bar:
            while self.step < last:
                loss = self.one_step()
                bar.update(1)
                refer = sum(self.skills[s] for s in REFERRING_SKILLS) / len(REFERRING_SKILLS)
                bar.set_postfix(loss=f"{loss:.3f}", refer=f"{refer:.2f}", boxes=STAGES[self.stage], refresh=False)
                if self.step % 20 == 0:
                    row = {"step": self.step, "loss": loss, "boxes": STAGES[self.stage], "skills": dict(self.skills)}
                    self.log.append(row)
                if self.step % validate_every == 0 or self.step == last:
                    self.log.append({"step": self.step, "validation": self.validate()})
                if self.step % save_every == 0 or self.step == last:
                    self.save_checkpoint()


def register(subparsers: Any) -> None:
    """Add ``seewhere train language``."""
    parser = subparsers.add_parser("language", help="train the micro language model on the world's lessons")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and model/")
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="may be changed when a run goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--few-bits", action="store_true", help="write packed/ too: seven bits a number, as shipped")
    parser.set_defaults(handler=main)


def main(arguments: argparse.Namespace) -> int:
    """Train and write the model; the same call again goes on where it stopped."""
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed, bf16=arguments.bf16)
    training = Training(recipe, arguments.out)
    training.run()
    target = arguments.out / "model"
    with storage.atomic_directory(target, overwrite=True) as work:
        micro_language.save(training.model, training.tokenizer, Path(work))
    if arguments.few_bits:
        packed_folders.pack(target, arguments.out / "packed")
    print(f"step {training.step}, lists of up to {STAGES[training.stage]} boxes; the model is in {target}")
    return 0
