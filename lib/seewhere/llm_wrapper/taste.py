"""Where the notebook's fine-tuned wrapper comes from: the shipped adapter, or a short training on the spot.

A number in the ledger must never come from a model that was not fine-tuned. So where no adapter ships for a language
model, one is trained live, on as many questions as the preset allows; the record says which of the two it was.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from seewhere import training
from seewhere.llm_wrapper.rehearsal import rehearse
from seewhere.llm_wrapper.training import ATTENTION_AND_MLP, LoraSettings, fine_tune
from seewhere.llm_wrapper.wrapper import LLMWrapper, shipped_adapter
from seewhere.models.language_model import HubLanguageModel, load_language_model, quick_dtype
from seewhere.presets import Preset
from seewhere.world.sprites import load_sprites

QUESTIONS_PER_SCENE = 8
SHIPPED = "shipped adapter"


@dataclass(frozen=True, slots=True)
class Tuned:
    """A fine-tuned wrapper, how it came to be, and the log of its training (empty for a shipped adapter)."""

    wrapper: LLMWrapper
    origin: str
    history: pd.DataFrame


def train_live(language_model: str, settings: Preset, seed: int = 0) -> Tuned:
    """Fine-tune a fresh copy of a language model on about ``settings.train_expressions`` questions of the world.

    Raises:
        ValueError: the model is an endpoint.
    """
    model = load_language_model(language_model, progress=False, dtype=quick_dtype())
    if not isinstance(model, HubLanguageModel):
        raise ValueError(f"{language_model}: an endpoint cannot be trained; expected a model that loads here")
    scenes = max(2, settings.train_expressions // QUESTIONS_PER_SCENE)
    lists = rehearse(load_sprites(), scenes, seed, QUESTIONS_PER_SCENE, None, settings.coordinates)
    examples = [e for found in lists for e in found]
    lora = LoraSettings(settings.lora_rank, settings.lora_alpha, settings.lora_dropout, ATTENTION_AND_MLP)
    chosen = training.TrainingSettings(
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        rows_per_step=max(1, settings.batch // QUESTIONS_PER_SCENE),
        warmup=0.1,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        tuned, trained = fine_tune(model, examples, Path(folder) / "live", lora, chosen, row_tokens=768)
    return Tuned(LLMWrapper(tuned, settings.coordinates), f"trained live on {len(examples)} questions", trained.history)


def untuned(language_model: str, settings: Preset) -> LLMWrapper:
    """Return the zero-shot wrapper: the language model as it comes."""
    return LLMWrapper.load(language_model, None, settings.coordinates, progress=False, dtype=quick_dtype())


def fine_tuned(language_model: str, settings: Preset, seed: int = 0) -> Tuned:
    """Return the wrapper with its shipped adapter, or train one live."""
    if shipped_adapter(language_model) is None:
        return train_live(language_model, settings, seed)
    return Tuned(
        LLMWrapper.load(language_model, "shipped", settings.coordinates, progress=False, dtype=quick_dtype()),
        SHIPPED,
        pd.DataFrame(),
    )
