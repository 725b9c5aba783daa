"""Where the notebook's fine-tuned wrapper comes from: the shipped adapter, or a training on the spot.

A number in the ledger must never come from a model that was not fine-tuned. So where no adapter ships for a language
model, or the preset says ``adapter = "train"``, one is trained for every seed, on as many questions as the preset
allows; the record says which of the two it was, and on whose boxes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from seewhere import storage, training
from seewhere.datasets import ReferringDataset
from seewhere.llm_wrapper import experiments
from seewhere.llm_wrapper.examples import Example, build_examples
from seewhere.llm_wrapper.rehearsal import rehearse
from seewhere.llm_wrapper.study import annotated_candidates, draw_expressions
from seewhere.llm_wrapper.training import ATTENTION_AND_MLP, LoraSettings, fine_tune
from seewhere.llm_wrapper.wrapper import HISTORY_FILE, WRAPPER_FILE, LLMWrapper, shipped_adapter
from seewhere.models.language_model import HubLanguageModel, load_language_model, quick_dtype
from seewhere.models.registry import load_grounder
from seewhere.presets import Preset
from seewhere.world.sprites import load_sprites

QUESTIONS_PER_SCENE = 8
SCENES = "scenes"


@dataclass(frozen=True, slots=True)
class Source:
    """What a training reads: the world's scenes (default), or a data set and the detector that is asked about it."""

    dataset: ReferringDataset | None = None
    detector: str = SCENES


@dataclass(frozen=True, slots=True)
class Tuned:
    """A fine-tuned wrapper per seed, how they came to be, and the log of the (first) training.

    Attributes:
        wrappers: seed -> wrapper; the same for all where an adapter ships.
        origin: in words, for records.
        history: one row per logged step; empty where none was kept.
        detectors: whose boxes it was trained on; any other detector is one it has never read.
    """

    wrappers: Mapping[int, LLMWrapper]
    origin: str
    history: pd.DataFrame
    detectors: tuple[str, ...] = field(default=())

    @property
    def wrapper(self) -> LLMWrapper:
        """The first seed's wrapper."""
        return next(iter(self.wrappers.values()))

    @property
    def read_a_detector(self) -> bool:
        """Whether training showed it any detector's boxes, and not the scenes' own alone."""
        return any(name != SCENES for name in self.detectors)


def examples_for(model: HubLanguageModel, settings: Preset, source: Source, seed: int) -> list[Example]:
    """Return about ``settings.train_expressions`` training examples.

    From a data set they follow the paper's rules (`build_examples`); from scenes see `rehearse`.
    """
    if source.dataset is None:
        scenes = max(2, settings.train_expressions // QUESTIONS_PER_SCENE)
        lists = rehearse(
            load_sprites(),
            scenes,
            seed,
            QUESTIONS_PER_SCENE,
            None,
            settings.coordinates,
            two_sources=0.15,
            growing=True,
        )
        return [example for found in lists for example in found]
    expressions, _ = draw_expressions(source.dataset, settings.train_expressions, [seed])
    if source.detector == experiments.ANNOTATIONS:
        candidates = annotated_candidates(source.dataset, expressions)
    else:
        candidates = experiments.detect(load_grounder(source.detector), expressions)
    examples, counts = build_examples(
        [e.image.size for e in expressions],
        [e.text for e in expressions],
        [e.region.box for e in expressions],
        candidates,
        coordinates=settings.coordinates,
        scores=settings.scores and all(found.confidence is not None for found in candidates),
        seed=seed,
        count_tokens=lambda text: len(model.prompt_tokens([[{"role": "user", "content": text}]])[0]),
    )
    print(f"{source.dataset.name}, {source.detector}: {dict(counts)}")
    return examples


def train_here(language_model: str, settings: Preset, seed: int = 0, source: Source | None = None) -> Tuned:
    """Fine-tune a fresh copy of a language model.

    Raises:
        ValueError: the model is an endpoint.
    """
    source = source or Source()
    model = load_language_model(language_model, **_loading(settings))
    if not isinstance(model, HubLanguageModel):
        raise ValueError(f"{language_model}: an endpoint cannot be trained; expected a model that loads here")
    examples = examples_for(model, settings, source, seed)
    lora = LoraSettings(settings.lora_rank, settings.lora_alpha, settings.lora_dropout, _targets(settings))
    chosen = training.TrainingSettings(
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        rows_per_step=1,
        accumulate=max(1, settings.batch // QUESTIONS_PER_SCENE),
        warmup=settings.warmup,
        seed=seed,
        shuffle=source.dataset is not None,  # scenes come with growing lists
    )
    with tempfile.TemporaryDirectory() as folder:
        tuned, trained = fine_tune(model, examples, Path(folder) / "here", lora, chosen, row_tokens=1100)
    origin = f"trained here on {len(examples)} questions about the boxes of {source.detector}"
    return Tuned(
        {seed: LLMWrapper(tuned, settings.coordinates, settings.scores)}, origin, trained.history, (source.detector,)
    )


def _targets(settings: Preset) -> tuple[str, ...]:
    return training.LORA_TARGETS if settings.lora_on_output else ATTENTION_AND_MLP


def _loading(settings: Preset) -> dict[str, Any]:
    return {"progress": False} | ({"four_bit": True} if settings.four_bit else {"dtype": quick_dtype()})


def untuned(language_model: str, settings: Preset) -> LLMWrapper:
    """Return the zero-shot wrapper: the language model as it comes."""
    return LLMWrapper.load(language_model, None, settings.coordinates, settings.scores, **_loading(settings))


def fine_tuned(
    language_model: str, settings: Preset, seeds: Sequence[int] = (0,), source: Source | None = None
) -> Tuned:
    """Return the wrapper with its shipped adapter, or train one for every seed (see the module)."""
    folder = shipped_adapter(language_model)
    if settings.adapter == "shipped" and folder is not None:
        wrapper = LLMWrapper.load(
            language_model, "shipped", settings.coordinates, settings.scores, **_loading(settings)
        )
        log = folder / HISTORY_FILE
        about = storage.read_json(folder / WRAPPER_FILE)["trained_on"]
        origin = "shipped adapter, " + ", then ".join(f"{p['questions']} questions about {p['boxes']}" for p in about)
        return Tuned(
            dict.fromkeys(seeds, wrapper),
            origin,
            pd.read_csv(log) if log.is_file() else pd.DataFrame(),
            tuple(part["boxes"] for part in about),
        )
    trained = [train_here(language_model, settings, seed, source) for seed in seeds]
    wrappers = {seed: item.wrapper for seed, item in zip(seeds, trained, strict=True)}
    return Tuned(wrappers, trained[0].origin, trained[0].history, trained[0].detectors)
