"""Training of the micro resamplers on the frozen micro-CLIP.

``blip2`` is stage 1 of BLIP-2 (`micro_qformer.stage_one_losses`) with a share of text alone. ``instruct`` takes that
Q-Former and ``perceiver`` a new resampler through a causal language model (`micro_resamplers.ThroughLanguage`): a
given one stays frozen, a new small Llama learns along. None of them is ever told where a thing is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from seewhere.models import micro_qformer_data as data
from seewhere.models.micro_clip import NAME as CLIP_NAME
from seewhere.models.micro_clip import MicroClip
from seewhere.models.micro_clip_training import FIRST_SCENE
from seewhere.models.micro_qformer import (
    MATCHING_WEIGHTS,
    MatchingWeights,
    MicroBlip2,
    QFormerSettings,
    language_loss,
    matching_loss,
    stage_one_losses,
    statements,
)
from seewhere.models.micro_resamplers import MicroInstruct, MicroPerceiver, ThroughLanguage
from seewhere.models.stepwise import StepwiseTraining, optimizers_for, training_device
from seewhere.models.world_pairs import rows_of_step

KINDS = ("blip2", "instruct", "perceiver")


@dataclass(frozen=True, slots=True)
class ResamplerSettings:
    """A recipe.

    Attributes:
        kind: one of `KINDS`.
        clip: name or folder of the micro-CLIP whose tokens are read.
        start: name or folder of the ``blip2`` to start from; "" for ``instruct`` is the shipped one, for ``blip2`` a
            new one.
        language: ``instruct`` and ``perceiver``: folder or hub id of a causal language model, kept frozen; "" for a
            new small Llama that learns along.
        batch: images in a step; ``blip2`` compares each with the texts of all others.
        scenes, first: how many scenes, and the number of the first: others than the start had teach more than more
            looks at the same.
        language_share: ``blip2`` only: sentences of text alone per image.
        matching_weights: ``blip2`` only: see `MatchingWeights`.
        pairs: ``blip2`` only: true and twisted statements about each image of a step.
        every: ``blip2`` only: contrast, generation, hard negatives and text alone join matching in every so manieth
            step, 1 for all. Matching is learnt last and slowest of the three.
        bf16: mixed precision, about twice as fast on processors with AVX512-BF16.
    """

    kind: str = "blip2"
    clip: str = CLIP_NAME
    start: str = ""
    language: str = ""
    steps: int = 8000
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    optimizer: str = "muon"
    scenes: int = 40_000
    first: int = FIRST_SCENE
    language_share: float = 0.25
    matching_weights: tuple[float, ...] = tuple(MATCHING_WEIGHTS)  # a plain tuple: checkpoints hold no classes
    pairs: int = 1
    every: int = 1
    seed: int = 0
    bf16: bool = False
    layers: int = 4
    width: int = 192
    queries: int = 16
    cross_attention_frequency: int = 1

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.every < 1:
            raise ValueError(f"pairs and every: expected 1 or more, got {self.pairs} and {self.every}")
        weights = MatchingWeights(*self.matching_weights)
        if self.every > 1 and not weights.true + weights.twisted:
            raise ValueError(
                f"every={self.every} leaves steps with nothing but true and twisted statements, and the matching "
                f"weights {tuple(weights)} leave those out; give either a weight, or ask for all in every step"
            )


def shape_of(settings: ResamplerSettings, clip: MicroClip) -> QFormerSettings:
    """Return the shape of a resampler on a micro-CLIP."""
    return QFormerSettings(
        vocabulary=len(clip.tokenizer),
        sees=clip.width,
        width=settings.width,
        layers=settings.layers,
        heads=max(1, settings.width // 32),
        queries=settings.queries,
        cross_attention_frequency=settings.cross_attention_frequency,
    )


class StageOneTraining(StepwiseTraining):
    """BLIP-2's stage 1.

    Args:
        settings: the recipe.
        folder: where checkpoint and log live.
        clip: the frozen eye.
        seen: what it trains on.
        device: where it trains.
        start: what to go on from, with a new schedule; trained in place.
    """

    name = "micro-blip2"

    def __init__(
        self,
        settings: ResamplerSettings,
        folder: Path,
        clip: MicroClip,
        seen: data.SeenScenes,
        device: str | torch.device = "cpu",
        start: MicroBlip2 | None = None,
    ) -> None:
        self.clip, self.seen = clip, seen
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.blip2 = (start or MicroBlip2(shape_of(settings, clip))).to(device).requires_grad_(True)
        optimizers = optimizers_for(self.blip2, settings.learning_rate, settings.weight_decay, settings.optimizer)
        super().__init__(settings, folder, self.blip2, optimizers)

    def losses(self) -> tuple[Tensor, dict[str, float]]:
        """Return ITC + ITM + ITG and the loss on text alone of the current step, or ITM alone (see ``every``)."""
        settings = self.settings
        rows = np.sort(rows_of_step(len(self.seen), settings.batch, settings.seed, self.step))
        random = Random(f"{settings.seed} {self.step}")
        scenes = [self.seen.scenes[i] for i in rows]
        read = data.stage_one_texts(self.clip.tokenizer, scenes, random, settings.pairs)
        captions, true, false = (texts.to(self.device) for texts in read)
        tokens = self.seen.image_tokens(rows).to(self.device)
        weights = MatchingWeights(*settings.matching_weights)
        if self.step % settings.every:
            with self.mixed():
                loss, right = matching_loss(self.blip2, tokens, statements(true, false, len(tokens)), weights)
            parts = {"itm": loss, **right}
            return loss, {name: float(value.detach()) for name, value in parts.items()}
        alone = [data.mere_language(s, random) for s in scenes[: math.ceil(settings.language_share * len(scenes))]]
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)
        with self.mixed():
            loss, parts = stage_one_losses(self.blip2, tokens, captions, true, false, generator, weights)
            if alone:
                parts["text"] = language_loss(self.blip2, data.read(self.clip.tokenizer, alone).to(self.device))
                loss = loss + settings.language_share * parts["text"]
        return loss, {name: float(value.detach()) for name, value in parts.items()}

    def after_update(self) -> None:
        """Keep the temperature of contrast within CLIP's limits."""
        with torch.no_grad():
            self.blip2.logit_scale.clamp_(0, math.log(100))


class LanguageTraining(StepwiseTraining):
    """A resampler through a language model; arguments as for `StageOneTraining`, and the Q-Former to start from."""

    name = "micro-instruct"

    def __init__(
        self,
        settings: ResamplerSettings,
        folder: Path,
        clip: MicroClip,
        seen: data.SeenScenes,
        blip2: MicroBlip2 | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.clip, self.seen, self.name = clip, seen, f"micro-{settings.kind}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            language, self.reader = language_of(settings, clip)
            resampler: MicroInstruct | MicroPerceiver
            if settings.kind == "instruct":
                resampler = MicroInstruct(shape_of(settings, clip) if blip2 is None else blip2.settings)
                if blip2 is not None:
                    resampler.start_from(blip2)
            else:
                resampler = MicroPerceiver(shape_of(settings, clip))
            self.through = ThroughLanguage(resampler, language, frozen=bool(settings.language)).to(device)
        optimizers = optimizers_for(self.through, settings.learning_rate, settings.weight_decay, settings.optimizer)
        super().__init__(settings, folder, self.through, optimizers)

    def losses(self) -> tuple[Tensor, dict[str, float]]:
        """Return the mean loss per answer word of the current step."""
        settings = self.settings
        rows = np.sort(rows_of_step(len(self.seen), settings.batch, settings.seed, self.step))
        asked = data.questions_about([self.seen.scenes[i] for i in rows], Random(f"{settings.seed} {self.step}"))
        texts = data.read(self.clip.tokenizer, [instruction for instruction, _ in asked]).to(self.device)
        answers, tokens = self.reader.batch(asked).to(self.device), self.seen.image_tokens(rows).to(self.device)
        with self.mixed():
            losses, right = self.through.answer_losses(tokens, texts.ids, texts.mask, answers)
        short = torch.tensor([len(answer.split()) == 1 for _, answer in asked], device=self.device)
        words = (answers.labels != -100).sum()
        return losses.sum() / words, {"right": float(right[short].float().mean()) if short.any() else 0.0}


def language_of(settings: ResamplerSettings, clip: MicroClip) -> tuple[PreTrainedModel, data.LanguageReader]:
    """Return the language model to train through, and how it reads: the given one, or a new small Llama."""
    if settings.language:
        model = AutoModelForCausalLM.from_pretrained(
            settings.language, dtype=torch.float32, attn_implementation="eager"
        )
        return model, data.LanguageReader(AutoTokenizer.from_pretrained(settings.language))
    config = LlamaConfig(
        vocab_size=len(clip.tokenizer),
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_hidden_layers=2,
        num_attention_heads=max(1, settings.width // 32),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=3,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="eager"), data.LanguageReader(clip.tokenizer)


def make_training(
    settings: ResamplerSettings, folder: Path, load_blip2: Callable[[str], MicroBlip2], progress: bool = True
) -> StageOneTraining | LanguageTraining:
    """Return the training that the settings describe, taken up where its folder's checkpoint stands.

    Args:
        settings: the recipe.
        folder: where checkpoint and log live.
        load_blip2: loads the Q-Former that ``instruct`` starts from, by name or folder.
        progress: show bars.

    Raises:
        ValueError: unknown kind.
        FileNotFoundError: no such micro-CLIP, Q-Former or language model.
    """
    if settings.kind not in KINDS:
        raise ValueError(f"unknown kind {settings.kind!r}; expected one of {KINDS}")
    clip = MicroClip.load(settings.clip)
    start = settings.start or ("micro-blip2" if settings.kind == "instruct" else "")
    if start and settings.kind == "perceiver":
        raise ValueError(f"start: a perceiver begins anew, got {start!r}")
    blip2 = load_blip2(start) if start else None
    seen = data.SeenScenes(clip, settings.first, settings.scenes, "train", progress)
    if settings.kind == "blip2":
        return StageOneTraining(settings, folder, clip, seen, training_device(), blip2)
    return LanguageTraining(settings, folder, clip, seen, blip2, training_device())
