"""Where the notebook's fine-tuned wrapper comes from: the shipped adapter, or a training on the spot.

A number in the ledger must never come from a model that was not fine-tuned. So where no adapter ships for a language
model, or the preset says ``adapter = "train"``, one is trained for every seed, on as many questions as the preset
allows; the record says which of the two it was, and on whose boxes.

A model behind an address is asked as it is served. What it was trained on is not known here, so its figures stand in
the tables and no claim rests on them.

Such a training is kept in the runs folder under a name made of all that it depends on: it goes on where it was killed,
and whoever asks for the same again gets the adapter that is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from transformers import AutoConfig

import seewhere
from seewhere import storage, training
from seewhere.datasets import ReferringDataset
from seewhere.llm_wrapper import experiments
from seewhere.llm_wrapper.examples import Example, build_examples
from seewhere.llm_wrapper.rehearsal import rehearse
from seewhere.llm_wrapper.study import annotated_candidates, draw_expressions
from seewhere.llm_wrapper.training import ATTENTION_AND_MLP, LoraSettings, fine_tune
from seewhere.llm_wrapper.wrapper import HISTORY_FILE, WRAPPER_FILE, LLMWrapper, describe_adapter, shipped_adapter
from seewhere.models import provenance
from seewhere.models.language_model import HubLanguageModel, load_language_model, source_of
from seewhere.models.number_formats import quick_dtype
from seewhere.models.provenance import is_address
from seewhere.models.registry import load_grounder
from seewhere.presets import Preset
from seewhere.world.sprites import load_sprites

LEARNT = (  # the settings that a training here depends on
    "train_expressions",
    "epochs",
    "learning_rate",
    "warmup",
    "lora_on_output",
    "four_bit",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "batch",
    "coordinates",
    "scores",
)
QUESTIONS_PER_SCENE = 8
SCENES = "scenes"
KEPT_CANDIDATES = "candidates"  # folder of a training on a detector's boxes, until it is done


@dataclass(frozen=True, slots=True)
class Source:
    """What a training reads: the world's scenes (default), or a data set and the detector that is asked about it."""

    dataset: ReferringDataset | None = None
    detector: str = SCENES


@dataclass(frozen=True, slots=True)
class Tuned:
    """A wrapper per seed, how they came to be, and the log of the (first) training.

    Attributes:
        wrappers: seed -> wrapper; the same for all where an adapter ships.
        origin: in words, for records.
        history: one row per logged step; empty where none was kept.
        detectors: whose boxes it was trained on; any other detector is one it has never read.
        hashes: name -> what identifies the weights of the language model and of the adapters.
    """

    wrappers: Mapping[int, LLMWrapper]
    origin: str
    history: pd.DataFrame
    detectors: tuple[str, ...] = field(default=())
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def wrapper(self) -> LLMWrapper:
        """The first seed's wrapper."""
        return next(iter(self.wrappers.values()))

    @property
    def served(self) -> bool:
        """Whether it stands behind an address: how it was trained is not known, and before and after are one."""
        return self.origin == experiments.AS_SERVED

    def unread(self, detectors: Sequence[str]) -> list[str]:
        """Those of `detectors` whose boxes it never met, if training showed it any detector's boxes at all (F8).

        Annotated boxes are nobody's errors: they count on neither side.
        """
        if not any(name not in (SCENES, experiments.ANNOTATIONS) for name in self.detectors):
            return []
        return [name for name in detectors if name not in (*self.detectors, experiments.ANNOTATIONS)]

    def curves(self) -> dict[str, list[str]]:
        """Return panel title -> column for whatever the log holds two values of or more."""
        titles = {
            "loss on the answers": "loss",
            "P@1, held-out lists": "validation_p_at_1",
            "share right, newest grade": "right",
            "grade": "grade",
        }
        log = self.history
        return {title: [name] for title, name in titles.items() if name in log and log[name].notna().sum() > 1}


def examples_for(
    model: HubLanguageModel, settings: Preset, source: Source, seed: int, keep: Path | None = None
) -> list[Example]:
    """Return about ``settings.train_expressions`` training examples.

    From a data set they follow the paper's rules (`build_examples`); from scenes see `rehearse`. In the folder `keep` a
    detector's boxes stay, so that one that is killed is not asked again.
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
        candidates = experiments.detect(load_grounder(source.detector), expressions, keep)
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


def train_here(language_model: str, settings: Preset, seed: int = 0, source: Source | None = None) -> Path:
    """Fine-tune a fresh copy of a language model, or find the adapter that an equal training left.

    Returns:
        The folder of the adapter, with ``wrapper.json`` and its log.

    Raises:
        ValueError: the model is an endpoint.
    """
    if is_address(language_model):
        raise ValueError(f"{language_model}: an endpoint cannot be trained; expected a model that loads here")
    source = source or Source()
    folder = training_folder(language_model, settings, seed, source)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "adapter" / WRAPPER_FILE).is_file():
            shutil.rmtree(folder / "adapter", ignore_errors=True)  # left by one that was killed while it wrote
            _train(language_model, settings, seed, source, folder)
    return folder / "adapter"


def training_folder(language_model: str, settings: Preset, seed: int, source: Source) -> Path:
    """Return where a training is kept: another setting, seed, base, data set or detector, another folder."""
    base = source_of(language_model)
    if not Path(base).is_dir():
        # A hub model is known by its revision, which is not told before the first file of it is here.
        with suppress(OSError, ValueError):  # the loader tells what is wrong
            AutoConfig.from_pretrained(base)
    facts = {
        "settings": {name: settings[name] for name in LEARNT},
        "seed": seed,
        "base": provenance.weight_hash(base),
        "language model": language_model,
        "format": quick_dtype(),
        "boxes": source.detector,
        "data": source.dataset.annotation_hash if source.dataset else SCENES,
        "version": seewhere.__version__,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return storage.runs_home() / "wrappers" / f"{Path(language_model).name}-seed{seed}-{digest}"


def _train(language_model: str, settings: Preset, seed: int, source: Source, folder: Path) -> None:
    model = load_language_model(language_model, **_loading(language_model, settings))
    assert isinstance(model, HubLanguageModel)
    examples = examples_for(model, settings, source, seed, folder / KEPT_CANDIDATES)
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
    _, trained = fine_tune(model, examples, folder, lora, chosen, row_tokens=1100)
    trained_on = [{"boxes": source.detector, "questions": len(examples)}]
    log = trained.history.assign(stage=source.detector)
    describe_adapter(folder / "adapter", settings.coordinates, settings.scores, trained_on, log)
    shutil.rmtree(folder / KEPT_CANDIDATES, ignore_errors=True)  # what they were for is done


def _targets(settings: Preset) -> tuple[str, ...]:
    return training.LORA_TARGETS if settings.lora_on_output else ATTENTION_AND_MLP


def _loading(language_model: str, settings: Preset) -> dict[str, Any]:
    if is_address(language_model):
        return {"progress": False}
    return {"progress": False} | ({"four_bit": True} if settings.four_bit else {"dtype": quick_dtype()})


def _load(language_model: str, adapter: Path | None, settings: Preset) -> LLMWrapper:
    loading = _loading(language_model, settings)
    return LLMWrapper.load(language_model, adapter, settings.coordinates, settings.scores, **loading)


def _beside(wrapper: LLMWrapper, adapter: Path | None) -> LLMWrapper | None:
    """The same prompt to the same model with another adapter, or none, without a second copy of its weights.

    None where that cannot be.
    """
    model = wrapper.language_model
    if not isinstance(model, HubLanguageModel) or not model.can_share:
        return None
    return LLMWrapper(model.beside(adapter), wrapper.coordinates, wrapper.scores)


def _hashes(wrapper: LLMWrapper, language_model: str) -> dict[str, str]:
    tell = getattr(wrapper.language_model, "weight_hashes", None)
    return tell() if tell is not None else {language_model: provenance.weight_hash(language_model)}


def untuned(
    language_model: str, settings: Preset, seeds: Sequence[int] = (0,), like: LLMWrapper | None = None
) -> Tuned:
    """Return the zero-shot wrapper: the language model as it comes, for every seed.

    Args:
        language_model: its name.
        settings: how it is loaded.
        seeds: the seeds of the study.
        like: a fine-tuned wrapper whose prompt is asked, so that before and after read the very same text.
    """
    wrapper = _beside(like, None) if like is not None else None
    wrapper = wrapper or _load(language_model, None, settings)
    if like is not None:
        wrapper = LLMWrapper(wrapper.language_model, like.coordinates, like.scores)
    return Tuned(dict.fromkeys(seeds, wrapper), "none", pd.DataFrame(), (), _hashes(wrapper, language_model))


def fine_tuned(
    language_model: str, settings: Preset, seeds: Sequence[int] = (0,), source: Source | None = None
) -> Tuned:
    """Return the wrapper with its shipped adapter, or with one trained here for every seed (see the module).

    Of an address it is the model as it is served.
    """
    if is_address(language_model):
        wrapper = _load(language_model, None, settings)
        hashes = _hashes(wrapper, language_model)
        return Tuned(dict.fromkeys(seeds, wrapper), experiments.AS_SERVED, pd.DataFrame(), (), hashes)
    folder = shipped_adapter(language_model)
    if settings.adapter == "shipped" and folder is not None:
        wrapper = _load(language_model, folder, settings)
        return _tuned(folder, dict.fromkeys(seeds, wrapper), "shipped adapter", _hashes(wrapper, language_model))
    folders = {seed: train_here(language_model, settings, seed, source) for seed in seeds}
    wrappers: dict[int, LLMWrapper] = {}
    for seed, found in folders.items():
        first = next(iter(wrappers.values()), None)
        wrappers[seed] = (_beside(first, found) if first else None) or _load(language_model, found, settings)
    hashes = {name: code for wrapper in wrappers.values() for name, code in _hashes(wrapper, language_model).items()}
    return _tuned(folders[seeds[0]], wrappers, "trained here", hashes)


def _tuned(adapter: Path, wrappers: Mapping[int, LLMWrapper], how: str, hashes: Mapping[str, str]) -> Tuned:
    """Read what stands beside an adapter: what it was trained on, and its log."""
    about = storage.read_json(adapter / WRAPPER_FILE)["trained_on"]
    boxes = tuple(part["boxes"] for part in about)
    log = pd.read_csv(adapter / HISTORY_FILE) if (adapter / HISTORY_FILE).is_file() else pd.DataFrame()
    if len(log) and "stage" not in log and len(set(boxes)) == 1:
        log = log.assign(stage=boxes[0])
    told = ", then ".join(f"{part['questions']} questions about {part['boxes']}" for part in about)
    return Tuned(wrappers, f"{how}, {told}", log, boxes, hashes)
