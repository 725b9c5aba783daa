"""How pixel models are trained, read from a file: the same stages for all that are compared with one another.

A comparison of two models means what it says only if their trainings differ in nothing else. So steps, mixtures and
rates are no constants of the code and no flags to be remembered: they stand in ``presets/train_pixels.toml`` and, for
the arms of referring segmentation, in ``presets/train_segmentation.toml``.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seewhere import presets, storage
from seewhere.pixels.mixture import check_mixture

PACKAGED = presets.FOLDER / "train_pixels.toml"
OF_ARMS = presets.FOLDER / "train_segmentation.toml"
"""The recipe of the four arms of table 7: boxes and masks lead."""
REQUIRED = ("1", "2", "3", "frozen")
"""Stages of the paper: what every recipe has, and the arms of segmentation are made of."""
PARTS = ("", "-on", "-end", "-last", "-fine")
"""What the parts of a long stage have behind its name, one after the other."""
SHIPPED_STAGES = ("1", *(f"2{p}" for p in PARTS), "3", *(f"frozen{p}" for p in PARTS), "at-once")
"""What ``seewhere train pixels --stage all`` makes, in this order."""
TRAINING = "training.json"
"""What a finished stage leaves beside its model: its name, settings and pictures."""


@dataclass(frozen=True, slots=True)
class PixelSettings:
    """One stage of training.

    Attributes:
        start: name or folder of the model to go on from; empty for a new one on `clip` and `language`.
        adapt: whether the encoder is trained.
        reading: whether the wired layers that find a place and read it are trained too, or held.
        averaged: whether the mean of the weights before and after the stage is kept (Wortsman et al. 2022, "Model
            soups"), and not those after it. With LoRA the mean of what the layers do.
        steps, images: number of steps, and pictures in each.
        mixture: share of the pictures for each task (`mixture.TASKS`).
        colour_questions, mask_questions, word_questions: about one picture. Many colours of few pictures are cheap;
            few of many pictures would vary more.
        longest: tokens of a question in words with its answer; longer ones are drawn anew, their task too. All of a
            step are padded to the longest among them.
        learning_rate: of matrices (Muon), embeddings, biases and norms (AdamW).
        scenes, textures, frames: pictures of each kind to draw from; frames are of each game.
        textured: share of textures and frames among the pictures asked for colours.
        spread: colours are learnt as a bell of this deviation around the true value, 0..255: a miss by one is no
            miss by a hundred. 0 for the plain cross-entropy.
        corner_spread: the same of the corners of boxes, in hundredths of a side.
        pointing: weight of the loss that tells some heads where to look before a box is written
            (`seewhere.models.pointing`); 0 leaves it to the corners.
        quiet: how a new model's third layer is wired, see `micro_vlm_start.new_layers`; nothing to a run that goes on.
        lora_rank: of the language model's adapters, as in the paper (64 there); 0 trains all of its own layers.
        bf16: mixed precision, about twice as fast on processors with AVX512-BF16.
    """

    start: str = ""
    adapt: bool = False
    reading: bool = False
    averaged: bool = False
    steps: int = 400
    images: int = 8
    mixture: dict[str, float] = field(default_factory=lambda: {"colour": 0.5, "mask": 0.2, "refer": 0.3})
    colour_questions: int = 64
    mask_questions: int = 48
    word_questions: int = 4
    longest: int = 40
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    seed: int = 0
    bf16: bool = False
    clip: str = "micro-clip"
    language: str = "micro-lm"
    scenes: int = 12_000
    textures: int = 1_500
    frames: int = 0
    textured: float = 0.35
    spread: float = 6.0
    corner_spread: float = 0.0
    pointing: float = 0.0
    quiet: bool = False
    lora_rank: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """All stages by name, the stage that each goes on from ("" for none), and the fine-tuning of the arms."""

    stages: dict[str, PixelSettings]
    after: dict[str, str]
    tuning: PixelSettings

    def changed(self, **values: Any) -> Recipe:
        """The same with some settings of every stage, and of fine-tuning, replaced; None leaves one as it is."""
        chosen = {name: value for name, value in values.items() if value is not None}
        stages = {name: dataclasses.replace(settings, **chosen) for name, settings in self.stages.items()}
        return Recipe(stages, dict(self.after), dataclasses.replace(self.tuning, **chosen))

    def check_has(self, names: Iterable[str], where: str) -> None:
        """Refuse a recipe without some stages.

        Args:
            names: of the stages.
            where: the recipe's file, for the message.

        Raises:
            ValueError: what is missing.
        """
        names = list(names)
        if missing := [name for name in names if name not in self.stages]:
            raise ValueError(f"{where}: expected the stages {', '.join(names)}; missing: {', '.join(missing)}")

    def with_steps(self, stages: Mapping[str, int], tuning: int | None = None) -> Recipe:
        """The same with other numbers of steps."""
        changed = {n: dataclasses.replace(s, steps=stages.get(n, s.steps)) for n, s in self.stages.items()}
        steps = self.tuning.steps if tuning is None else tuning
        return Recipe(changed, dict(self.after), dataclasses.replace(self.tuning, steps=steps))


def load(path: Path | str = PACKAGED) -> Recipe:
    """Read a recipe.

    Raises:
        ValueError: a value that is unknown, missing or of another type, a mixture that cannot be drawn from, or a stage
            that follows an unknown one; the message names file and table.
    """
    path = Path(path)
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    odd = sorted(set(tables) - {"all", "stages", "tuning"}) or sorted({"all", "stages", "tuning"} - set(tables))
    if odd:
        raise ValueError(f"{path}: expected the tables [all], [stages.NAME] and [tuning]; odd: {', '.join(odd)}")
    common = tables["all"]
    stages: dict[str, PixelSettings] = {}
    after: dict[str, str] = {}
    written: dict[str, dict[str, Any]] = {}
    for name, own in tables["stages"].items():
        like = own.get("like", "")
        if like and like not in stages:
            raise ValueError(f"{path} [stages.{name}]: like = {like!r}, but no such stage stands above it")
        written[name] = {**written.get(like, {}), **{k: v for k, v in own.items() if k != "like"}}
        values = dict(written[name])
        after[name] = values.pop("after", "")
        if after[name] and after[name] not in tables["stages"]:
            raise ValueError(f"{path} [stages.{name}]: after = {after[name]!r} is no stage")
        stages[name] = _settings({**common, **values}, f"{path} [stages.{name}]")
    recipe = Recipe(stages, after, _settings({**common, **tables["tuning"]}, f"{path} [tuning]"))
    recipe.check_has(REQUIRED, str(path))
    return recipe


def _settings(values: Mapping[str, Any], where: str) -> PixelSettings:
    kinds = {f.name: type(getattr(PixelSettings(), f.name)) for f in dataclasses.fields(PixelSettings)}
    wrong, missing = sorted(set(values) - set(kinds)), sorted(set(kinds) - set(values) - {"start"})
    if wrong or missing:
        raise ValueError(
            f"{where}: unknown: {', '.join(wrong) or 'none'}; missing: {', '.join(missing) or 'none'}. "
            f"A stage has {', '.join(kinds)}"
        )
    typed: dict[str, Any] = {}
    for name, value in values.items():
        plain = float(value) if kinds[name] is float and type(value) is int else value
        if type(plain) is not kinds[name]:
            raise ValueError(f"{where}: {name}: expected {kinds[name].__name__}, got {value!r}")
        typed[name] = plain
    try:
        check_mixture(typed["mixture"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return PixelSettings(**typed)


def chain(known: Collection[str], *stages: str) -> list[str]:
    """Names of all parts of some stages, one after the other.

    Args:
        known: names of all parts that a recipe has.
        stages: names of whole stages, in the order in which they are trained.
    """
    return [f"{stage}{part}" for stage in stages for part in PARTS if f"{stage}{part}" in known]


def whole(stage: str) -> str:
    """Name of the stage that a part belongs to; a stage without parts is its own."""
    for part in PARTS[1:]:
        stage = stage.removesuffix(part)
    return stage


def apart(ours: Mapping[str, Any], theirs: Mapping[str, Any], but: Collection[str]) -> list[str]:
    """In which settings two stages differ, in words; those of `but` are not looked at."""
    return [f"{k} {ours[k]!r} against {v!r}" for k, v in theirs.items() if k not in but and ours[k] != v]


def check_only_the_encoder_differs(recipe: Recipe, where: str) -> None:
    """Refuse a recipe whose frozen baseline is not stage 2, part by part, in everything but the encoder.

    Raises:
        ValueError: in what it differs; `where` is the recipe's file, for the message.
    """
    adapted, held = chain(recipe.stages, "2"), chain(recipe.stages, "frozen")
    if [name.removeprefix("2") for name in adapted] != [name.removeprefix("frozen") for name in held]:
        raise ValueError(
            f"{where}: expected the same parts with the encoder adapted and held; parts of 2: {', '.join(adapted)}; "
            f"of frozen: {', '.join(held)}"
        )
    for second, frozen in zip(adapted, held, strict=True):
        one, other = recipe.stages[second], recipe.stages[frozen]
        if other.adapt or not one.adapt:
            raise ValueError(f"{where}: [stages.{frozen}] has to hold the encoder and [stages.{second}] to adapt it")
        if odd := apart(asdict(other), asdict(one), {"adapt"}):
            same = f"[stages.{frozen}] has to be [stages.{second}] in everything but the encoder"
            raise ValueError(f"{where}: {same}: {'; '.join(odd)}")


# ------------------------------------------------------------------------------------------ what a run was made by


def differences(made: Mapping[str, Any], wanted: PixelSettings) -> list[str]:
    """In which settings a finished run, as its `TRAINING` tells them, is not what a recipe asks for; not in `start`.

    A setting that the run does not know yet had its default.
    """
    asked = {k: v for k, v in asdict(wanted).items() if k != "start"}
    known = {**asdict(PixelSettings()), **made}
    return [f"{k} {known[k]!r} instead of {v!r}" for k, v in asked.items() if known[k] != v]


def check_made(model: str, stages: list[PixelSettings]) -> None:
    """Refuse a model that was not trained by exactly these stages, one after the other.

    Args:
        model: folder of the model after the last of them, as ``seewhere train pixels`` leaves it (RUN/model).
        stages: in order.

    Raises:
        ValueError: a stage that left no record, or was trained in another way; the message says in which.
    """
    given = model
    for wanted in reversed(stages):
        record = Path(given).parent / TRAINING
        if not given or not record.is_file():
            raise ValueError(
                f"{model!r} cannot stand for a training under this recipe: there is no {TRAINING} beside "
                f"{given or 'its start'!r}. Expected folders made by seewhere train pixels; without a start the stages "
                "are trained here."
            )
        made = storage.read_json(record)["settings"]
        odd = differences(made, wanted)
        if odd:
            raise ValueError(f"{given} was trained by another recipe: {'; '.join(odd)}")
        given = str(made["start"])
