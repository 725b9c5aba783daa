"""The shipped micro language model and its adapter: they load, their cards are about them, and they choose well."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from seewhere import storage
from seewhere.llm_wrapper import prompts
from seewhere.llm_wrapper.examples import Example
from seewhere.llm_wrapper.rehearsal import rehearse
from seewhere.llm_wrapper.wrapper import LLMWrapper, shipped_adapter
from seewhere.models.language_model import MICRO_FOLDER, HubLanguageModel, load_language_model
from seewhere.world.sprites import load_sprites


@cache
def questions() -> list[Example]:
    return [e for found in rehearse(load_sprites(), 40, 3, 8, split="val", drilling=False) for e in found]


def share_right(model: HubLanguageModel) -> float:
    asked = questions()
    options = [[str(i) for i in range(prompts.count_candidates(e.prompt))] for e in asked]
    chosen = model.choose([prompts.messages(e.prompt) for e in asked], options)
    return float(np.mean([int(np.argmax(p)) == int(e.answer) for p, e in zip(chosen, asked, strict=True)]))


@pytest.mark.parametrize("file", ["micro-lm/few_bits.safetensors", "llm-wrapper-micro/adapter_model.safetensors"])
def test_the_card_is_about_these_weights(file: str) -> None:
    path = MICRO_FOLDER.parent / file
    assert storage.hash_file(path) in (path.parent / "README.md").read_text()
    assert path.stat().st_size < (3_000_000 if "micro-lm" in file else 1_500_000)


def test_the_zero_shot_model_chooses_far_better_than_chance() -> None:
    model = load_language_model("micro", progress=False)
    assert share_right(model) > 0.6
    assert model.model.num_parameters() < 5_000_000


def test_the_adapter_loads_by_name_and_reads_the_writing_it_was_trained_with() -> None:
    folder = shipped_adapter("micro")
    assert folder is not None
    assert "/" not in storage.read_json(folder / "adapter_config.json")["base_model_name_or_path"]
    wrapper = LLMWrapper.load("micro", progress=False)
    assert wrapper.coordinates == "percent"
    assert share_right(wrapper.language_model) > 0.6


def test_free_answers_are_indices() -> None:
    model = load_language_model("micro", progress=False)
    asked = questions()[:20]
    texts = model.generate([prompts.messages(e.prompt) for e in asked], 4)
    assert sum(text.strip().isdigit() for text in texts) >= 19
