"""A school for small language models: one direction first, on two boxes, and more only when that is mastered.

"Left cow" or "right cow", box 0 or box 1: the answer turns on two things at once, and neither alone tells anything. On
such questions in equal shares the loss of a small model stays at chance for thousands of samples, however the rate is
chosen (SmolLM2-135M: 2,000 questions about two boxes without a trace of learning, even with ranks in place of
coordinates). Asked about the left one only, it learns to compare two numbers from 1,000. So directions come one by
one, boxes become more, and the next grade opens when most answers of this one are right.

This makes adapters for models that cannot compare places; a model that can needs `training.fine_tune` only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import torch
from torch.nn import functional

from seewhere import training
from seewhere.llm_wrapper import prompts
from seewhere.llm_wrapper.examples import Example
from seewhere.llm_wrapper.rehearsal import rehearse, scene_examples
from seewhere.llm_wrapper.training import ATTENTION_AND_MLP, share_right, to_samples
from seewhere.llm_wrapper.wrapper import describe_adapter, keep_rank
from seewhere.models.adapters import add_adapter
from seewhere.models.language_model import HubLanguageModel, load_language_model
from seewhere.models.number_formats import quick_dtype
from seewhere.models.stepwise import StepwiseTraining, add_recipe_flags
from seewhere.packing import IGNORED, Sample, additive_mask, collate, pack
from seewhere.world.lessons import skill_of, smaller_scene
from seewhere.world.programs import Program
from seewhere.world.scenes import sample_scene
from seewhere.world.sprites import SpriteSet, load_sprites

ROW_TOKENS = 1024
FIRST_SCENE, SCENES_PER_STEP = 5_000_000, 40  # numbers set aside for each step: most scenes are left out in low grades
SCENES_PER_SEED = 200_000  # so that ten seeds of 5,000 steps share no scene
REMEMBERED = 150  # latest answers, of the grade itself, that say whether a grade is mastered

LEFT, TOP, RIGHT, BOTTOM, SMALL, LARGE = (
    "from left to right",
    "from top to bottom",
    "from right to left",
    "from bottom to top",
    "from small to large",
    "from large to small",
)
AXES = {"left": LEFT, "top": TOP, "right": RIGHT, "bottom": BOTTOM, "small": SMALL, "large": LARGE}
"""Direction of a phrase -> the ordering drill that goes with it."""


@dataclass(frozen=True, slots=True)
class Grade:
    """What is asked for: lists of at most `boxes`, first along `axes`, and other `skills` (None: all there are)."""

    boxes: int
    axes: tuple[str, ...]
    skills: tuple[str, ...] | None = ()

    def asks(self, program: Program) -> bool:
        """Whether phrases with this program belong to the grade."""
        if self.skills is None:
            return True
        if program[0] == "rank" and int(program[2]) == 1:
            return program[1] in self.axes
        return skill_of(program) in self.skills


ALL = tuple(AXES)
PLACES = ("left", "top", "right", "bottom")
GRADES = (
    Grade(2, ("left",)),
    Grade(2, ("top",)),
    Grade(3, ("left", "top")),
    Grade(2, ("right",)),
    Grade(2, ("bottom",)),
    Grade(3, PLACES),
    Grade(2, ("large",)),
    Grade(2, ("small",)),
    Grade(4, ALL, ("noun",)),
    Grade(4, ALL, ("noun", "ordinal", "relation")),
    Grade(5, ALL, None),
    Grade(7, ALL, None),
    Grade(10, ALL, None),
)
"""Every direction is met alone first. Two new ones at once, and the second is answered as if it were the first: after
1,400 steps of *left* and *top* in equal shares, SmolLM2 found 95 % of the left ones among three and 46 % of the top."""


@dataclass(frozen=True, slots=True)
class SchoolSettings:
    """A recipe.

    Attributes:
        llm: name, hub id or folder of the language model.
        steps, scenes: number of steps, and scenes in each.
        questions, drills: most referring questions about a scene, and ordering drills.
        goal, patience: share of right answers that opens the next grade, and fewest steps in one.
        repeat: share of scenes from earlier grades.
        start, grade: an adapter to go on from, "" for none, and the grade (from 0) that it has reached.
    """

    llm: str = "smollm2"
    steps: int = 4000
    scenes: int = 2
    questions: int = 10
    drills: int = 1
    rank: int = 16
    learning_rate: float = 4e-4
    goal: float = 0.84
    patience: int = 40
    repeat: float = 0.25
    coordinates: prompts.Coordinates = "center"
    seed: int = 0
    bf16: bool = False
    start: str = ""
    grade: int = 0


class School(StepwiseTraining):
    """One run.

    Args:
        settings: the recipe.
        folder: where checkpoint and log live.
        language_model: loaded from the settings when None.
        sprites: what scenes are made of; the world's own when None.
    """

    name, warmup = "school", 0.01

    def __init__(
        self,
        settings: SchoolSettings,
        folder: Path,
        language_model: HubLanguageModel | None = None,
        sprites: SpriteSet | None = None,
    ) -> None:
        self.base = language_model or _load(settings)
        self.sprites = sprites or load_sprites()
        torch.manual_seed(settings.seed)
        model = training.add_lora(self.base.model, settings.rank, 2 * settings.rank, 0.0, ATTENTION_AND_MLP)
        if settings.start:
            training.load_adapter_weights(model, settings.start)
        learnt = [p for p in model.parameters() if p.requires_grad]
        for parameter in learnt:
            parameter.data = parameter.data.float()
        self.grade, self.since, self.answers = settings.grade, 0, list[int]()
        self.asked = 0
        optimizer = torch.optim.AdamW(learnt, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
        super().__init__(settings, folder, model, [optimizer])

    def extra(self) -> dict[str, Any]:
        """What a checkpoint holds besides parameters: grade, when it began, latest answers, questions so far."""
        return {"grade": self.grade, "since": self.since, "answers": self.answers, "asked": self.asked}

    def take_up(self, extra: dict[str, Any]) -> None:
        """Go on from `extra`."""
        self.grade, self.since, self.answers = extra["grade"], extra["since"], extra["answers"]
        self.asked = extra["asked"]

    def examples_of(self, step: int) -> list[list[Example]]:
        """Return the examples of a step, a list for each scene; a function of (seed, step, grade)."""
        settings, found = self.settings, list[list[Example]]()
        random = Random(f"{settings.seed} {step}")
        number = FIRST_SCENE + SCENES_PER_SEED * (settings.seed % 10) + SCENES_PER_STEP * step
        while len(found) < settings.scenes:
            earlier = random.random() < settings.repeat
            which = random.randrange(self.grade) if earlier and self.grade else self.grade
            grade = GRADES[which]
            scene = smaller_scene(sample_scene(number, self.sprites, split="train"), grade.boxes, random)
            number += 1
            asked = scene_examples(
                scene,
                random,
                settings.questions,
                settings.coordinates,
                drills=settings.drills,
                wanted=grade.asks,
                orders=tuple(AXES[axis] for axis in grade.axes),
            )
            for example in asked:
                example.meta["grade"] = which
            if asked:
                found.append(asked)
        return found

    def losses(self) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of the answers of the current step, and the share of right ones."""
        asked = self.examples_of(self.step)
        self.asked += sum(map(len, asked))
        samples = [to_samples(self.base, examples) for examples in asked]
        rows = [row for part in samples for row in pack(part, ROW_TOKENS)]
        inputs = collate(rows, additive_mask(self.module), training.WIDTH_MULTIPLE)
        labels = inputs.pop("labels").to(self.device)
        keep = torch.zeros_like(labels, dtype=torch.bool)
        keep[:, :-1] = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][keep[:, :-1]]
        with self.mixed(), training.answers_only(self.module, keep):
            logits = self.module(**{k: v.to(self.device) for k, v in inputs.items()}, use_cache=False).logits
        logits = logits.reshape(-1, logits.shape[-1]).float()
        whole = answers_right(logits.argmax(-1) == targets, [s for part in samples for s in part])
        referring = [
            right
            for right, example in zip(whole, (e for part in asked for e in part), strict=True)
            if example.meta["style"] != "drill" and example.meta["grade"] == self.grade
        ]
        self.answers = (self.answers + referring)[-REMEMBERED:]
        share = sum(self.answers) / max(1, len(self.answers))
        return functional.cross_entropy(logits, targets), {"right": share, "grade": self.grade}

    def after_update(self) -> None:
        """Open the next grade once this one is mastered."""
        settings, full = self.settings, len(self.answers) >= REMEMBERED
        mastered = full and sum(self.answers) / REMEMBERED >= settings.goal
        if mastered and self.step - self.since >= settings.patience and self.grade < len(GRADES) - 1:
            self.grade, self.since, self.answers = self.grade + 1, self.step, []


def answers_right(right: torch.Tensor, samples: Sequence[Sample]) -> list[int]:
    """Return 1 or 0 for each sample: whether all tokens of its answer (in order, `right`) are predicted right."""
    tokens = iter(right.tolist())
    return [int(all([next(tokens) for _ in sample.answer])) for sample in samples]


def _load(settings: SchoolSettings) -> HubLanguageModel:
    model = load_language_model(settings.llm, dtype=quick_dtype() if settings.bf16 else None, progress=False)
    if not isinstance(model, HubLanguageModel):
        raise ValueError(f"--llm {settings.llm}: an endpoint cannot be trained; expected a model that loads here")
    return model


def register(subparsers: Any) -> None:
    """Add ``seewhere train school``."""
    defaults = SchoolSettings()
    parser = subparsers.add_parser(
        "school", help="teach a small language model LLM-wrapper's task from two boxes and one direction up"
    )
    parser.add_argument("--llm", default=defaults.llm, help="smollm2, micro, or a hub id or folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and adapter/")
    add_recipe_flags(
        parser, defaults, ("steps", "scenes", "questions", "drills", "rank", "seed", "grade"), optimizers=False
    )
    parser.add_argument("--goal", type=float, default=defaults.goal, help="share right that opens the next grade")
    parser.add_argument("--coordinates", choices=prompts.COORDINATES, default=defaults.coordinates)
    parser.add_argument("--start", default=defaults.start, help="an adapter to go on from; see --grade")
    parser.add_argument("--keep-rank", type=int, help="cut the finished adapter to this rank: smaller to ship")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    """Train and write the adapter; the same call again goes on where it stopped."""
    chosen = {k: v for k, v in vars(arguments).items() if k in SchoolSettings.__dataclass_fields__}
    school = School(SchoolSettings(**chosen), arguments.out)
    school.run(save_every=50)
    folder = training.save_adapter(school.module, arguments.out / "adapter")
    if arguments.keep_rank:
        keep_rank(folder, arguments.keep_rank)
    # Scored as it was written, not as it was trained.
    peft_model: Any = school.module
    answering = add_adapter(peft_model.unload(), folder).eval()
    tuned = HubLanguageModel(answering, school.base.tokenizer, school.base.name, progress=False)
    scenes = rehearse(school.sprites, 40, 0, 8, coordinates=school.settings.coordinates, split="val")
    held_out = [e for found in scenes for e in found]
    right = share_right(tuned, held_out)
    history = pd.DataFrame(school.log or [{"step": school.step}])  # shorter than the log's first line
    history.loc[history.index[-1:], "validation_p_at_1"] = round(right, 4)
    taught = {"boxes": "scenes", "questions": school.asked, "steps": school.step, "grade": school.grade}
    describe_adapter(folder, school.settings.coordinates, False, [taught], history)
    print(f"lists of up to {GRADES[school.grade].boxes} boxes mastered or being learnt; the adapter is in {folder}")
    print(f"validation P@1 on lists of any length {right:.3f} (n = {len(held_out)})")
    return 0
