"""The micro language model's parts: a tokenizer that loses nothing, packed lessons that change nothing, a real save."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seewhere.models import micro_language, micro_language_training
from seewhere.models.language_model import HubLanguageModel
from seewhere.world.lessons import Lesson, make_lesson
from seewhere.world.scenes import sample_scene
from seewhere.world.sprites import load_sprites
from transformers import PreTrainedTokenizerFast


def lessons(count: int = 30) -> list[Lesson]:
    sprites = load_sprites()
    return [make_lesson(sample_scene(n, sprites, split="val"), Random(n), 4, 4) for n in range(count)]


TOKENIZER = micro_language.build_tokenizer(micro_language.texts_of(lessons()), vocabulary=1600)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return TOKENIZER


def test_numbers_up_to_999_are_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for number in range(1000):
        assert len(tokenizer.encode(str(number), add_special_tokens=False)) == 1


@given(st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    decoded = TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)
    specials = (micro_language.PAD, micro_language.USER, micro_language.ASSISTANT, micro_language.END)
    if not any(special in text for special in specials):
        assert decoded == text


def test_a_packed_lesson_scores_each_answer_as_if_it_stood_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = micro_language.build_model(len(tokenizer), hidden=64, layers=2, heads=2).eval()
    lesson = lessons(3)[2]
    row = micro_language.lesson_rows(lesson, tokenizer)
    batch = micro_language.collate([row, micro_language.lesson_rows(lessons(2)[1], tokenizer)], tokenizer.pad_token_id)
    with torch.no_grad():
        packed = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=batch["attention_mask"]
        ).logits[0]
        for number in range(1, len(lesson.questions) + 1):
            own = [i for i, s in enumerate(row[1]) if s == number]
            alone = [t for t, s in zip(row[0], row[1], strict=True) if s in (0, number)]
            expected = model(input_ids=torch.tensor([alone])).logits[0, -len(own) :]
            torch.testing.assert_close(packed[own], expected, atol=1e-4, rtol=1e-4)


def test_padding_and_batch_mates_do_not_change_the_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = micro_language.build_model(len(tokenizer), hidden=64, layers=1, heads=2).eval()
    rows = [micro_language.lesson_rows(lesson, tokenizer) for lesson in lessons(2)]
    with torch.no_grad():
        together, _ = micro_language.weighted_loss(model, micro_language.collate(rows, 0))
        parts = [micro_language.weighted_loss(model, micro_language.collate([row], 0))[0] for row in rows]
    weights = [sum(row[3][1:]) for row in rows]
    mean = sum(p * w for p, w in zip(parts, weights, strict=True)) / sum(weights)
    assert float(together) == pytest.approx(float(mean), rel=0.02)


def test_a_few_steps_lower_the_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = micro_language.build_model(len(tokenizer), hidden=64, layers=1, heads=2)
    optimizers = micro_language.muon_and_adamw(model, 3e-3)
    batch = micro_language.collate([micro_language.lesson_rows(x, tokenizer) for x in lessons(4)], 0)
    losses = []
    for _ in range(12):
        loss, _ = micro_language.weighted_loss(model, batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_saved_model_is_asked_like_any_other(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = micro_language.build_model(len(tokenizer), hidden=64, layers=1, heads=2)
    micro_language.save(model, tokenizer, tmp_path / "micro")
    loaded = HubLanguageModel.load(tmp_path / "micro", progress=False)
    found = loaded.choose([[{"role": "user", "content": "Which box?"}]], [["0", "1", "12"]])[0]
    assert found.shape == (3,) and found.sum() == pytest.approx(1)
    assert loaded.tokenizer.decode([loaded.end_token]) == micro_language.END


def tiny(steps: int = 6) -> micro_language_training.Recipe:
    return micro_language_training.Recipe(steps=steps, batch=2, hidden=48, layers=1, window=2, mastery=-1.0, warmup=1)


def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole = micro_language_training.Training(tiny(), tmp_path / "whole")
    whole.run(progress=False)
    first = micro_language_training.Training(tiny(), tmp_path / "parts")
    first.run(until=3, progress=False)
    second = micro_language_training.Training(tiny(), tmp_path / "parts")
    assert second.step == 3
    second.run(progress=False)
    assert second.stage == whole.stage > 0, "any share of right answers opens the next stage"
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, second.model.state_dict()[name], msg=name)


def test_a_folder_with_other_settings_is_refused(tmp_path: Path) -> None:
    micro_language_training.Training(tiny(1), tmp_path).run(progress=False)
    with pytest.raises(ValueError, match="other settings"):
        micro_language_training.Training(tiny(2), tmp_path)
