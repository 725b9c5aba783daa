"""A few live steps of fine-tuning for the notebook: the real recipe on a handful of scenes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from seewhere import training
from seewhere.llm_wrapper.rehearsal import rehearse
from seewhere.llm_wrapper.training import ATTENTION_AND_MLP, LoraSettings, fine_tune
from seewhere.models.language_model import HubLanguageModel, load_language_model
from seewhere.presets import Preset
from seewhere.world.sprites import load_sprites

QUESTIONS_PER_SCENE = 8


def train_a_little(language_model: str, settings: Preset, seed: int = 0) -> pd.DataFrame:
    """Fine-tune a fresh copy of a language model on ``settings.train_expressions`` questions; the log, step by step.

    Raises:
        ValueError: the model is an endpoint.
    """
    model = load_language_model(language_model, progress=False)
    if not isinstance(model, HubLanguageModel):
        raise ValueError(f"{language_model}: an endpoint cannot be trained; expected a model that loads here")
    scenes = max(2, settings.train_expressions // QUESTIONS_PER_SCENE)
    examples = [e for found in rehearse(load_sprites(), scenes, seed, QUESTIONS_PER_SCENE) for e in found]
    lora = LoraSettings(settings.lora_rank, settings.lora_alpha, settings.lora_dropout, ATTENTION_AND_MLP)
    chosen = training.TrainingSettings(
        learning_rate=settings.learning_rate, epochs=settings.epochs, rows_per_step=1, seed=seed
    )
    with tempfile.TemporaryDirectory() as folder:
        _, trained = fine_tune(model, examples, Path(folder) / "taste", lora, chosen, row_tokens=768)
    return trained.history
