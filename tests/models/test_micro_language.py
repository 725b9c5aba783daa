"""The micro language model's parts: a tokenizer that loses nothing, packed lessons that change nothing, a real save."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seewhere.llm_wrapper import prompts
from seewhere.models import micro_language, micro_language_start, micro_language_training
from seewhere.models.candidates import make_candidates
from seewhere.models.language_model import HubLanguageModel
from seewhere.world.lessons import SET_PHRASES, Lesson, make_lesson
from seewhere.world.scenes import sample_scene
from seewhere.world.sprites import load_sprites
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPRITES = load_sprites()
NAMES = [category.name for category in SPRITES.categories]


def lessons(count: int = 30) -> list[Lesson]:
    return [make_lesson(sample_scene(n, SPRITES, split="val"), Random(n), 4, 4) for n in range(count)]


TOKENIZER = micro_language.build_tokenizer(micro_language.texts_of(lessons()), 2560, NAMES)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return TOKENIZER


def small_model(hidden: int = 64, layers: int = 2, heads: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return micro_language.build_model(TOKENIZER, hidden, layers, heads, NAMES).eval()


def tokens_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_numbers_up_to_999_are_one_token() -> None:
    assert all(len(tokens_of(str(number))) == 1 for number in range(1000))


def test_every_name_of_a_category_is_one_token_where_a_list_and_a_plural_use_it() -> None:
    for name, writings in micro_language.forms(NAMES).items():
        assert name == writings[0]
        for word in writings:
            assert len(tokens_of(word)) == 1, word
    assert tokens_of(" dogs") != tokens_of("dogs")


def test_a_box_is_nine_tokens_whatever_it_holds() -> None:
    first = '- 0: "traffic light", [3, 10, 100, 97]\n'
    assert len(tokens_of(first + '- 1: "dog", [1, 2, 3, 4]\n')) - len(tokens_of(first)) == 9


def test_the_prompts_of_the_wrapper_are_short() -> None:
    candidates = make_candidates([[0.0, 0.0, 9.0, 9.0]] * 2, ["dog", "cat"], None, "any", -1)
    turn = prompts.prompt(candidates, "dog on left", (100, 100), "percent")
    for phrase in SET_PHRASES:
        assert phrase in turn, "a lesson's wording is the wrapper's"
        assert len(tokens_of(phrase)) == 1


def test_a_list_and_a_question_have_the_same_tokens_apart_and_together() -> None:
    for lesson in lessons(12):
        for asked in lesson.questions:
            message = {"role": "user", "content": f"{lesson.context}\n{asked.question}"}
            whole = TOKENIZER.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
            row = micro_language.lesson_row(Lesson(lesson.context, (asked,)), TOKENIZER)
            assert tokens_of(whole + asked.answer + micro_language.END) == row.tokens


@given(st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    decoded = TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)
    specials = (micro_language.PAD, micro_language.USER, micro_language.ASSISTANT, micro_language.END)
    if not any(special in text for special in specials):
        assert decoded == text


def test_a_packed_lesson_scores_each_answer_as_if_it_stood_alone() -> None:
    model, lesson = small_model(), lessons(3)[2]
    row = micro_language.lesson_row(lesson, TOKENIZER)
    batch = micro_language.collate([row, micro_language.lesson_row(lessons(2)[1], TOKENIZER)], 0)
    with torch.no_grad():
        packed = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=batch["attention_mask"]
        ).logits[0]
        for number in range(1, len(lesson.questions) + 1):
            own = [i for i, s in enumerate(row.segments) if s == number]
            alone = [t for t, s in zip(row.tokens, row.segments, strict=True) if s in (0, number)]
            expected = model(input_ids=torch.tensor([alone])).logits[0, -len(own) :]
            torch.testing.assert_close(packed[own], expected, atol=1e-4, rtol=1e-4)


def test_a_row_ends_at_its_limit_between_two_questions() -> None:
    lesson = lessons(1)[0]
    whole = micro_language.lesson_row(lesson, TOKENIZER)
    row = micro_language.lesson_row(lesson, TOKENIZER, limit=len(whole.tokens) - 1)
    assert len(row.tokens) < len(whole.tokens)
    assert set(row.segments) < set(whole.segments)
    end = TOKENIZER.convert_tokens_to_ids(micro_language.END)
    assert row.tokens[-1] == end and row.answers[-1]


def test_masks_to_add_open_what_masks_of_truth_values_open() -> None:
    rows = [micro_language.lesson_row(lesson, TOKENIZER) for lesson in lessons(2)]
    plain = micro_language.collate(rows, 0, None, 32)["attention_mask"]
    added = micro_language.collate(rows, 0, torch.float32, 32)["attention_mask"]
    assert plain.shape[-1] % 32 == 0
    assert torch.equal(plain, added == 0)


def test_padding_and_batch_mates_do_not_change_the_loss() -> None:
    model = small_model(layers=1)
    rows = [micro_language.lesson_row(lesson, TOKENIZER) for lesson in lessons(2)]
    with torch.no_grad():
        together, right = micro_language.answer_loss(model, micro_language.collate(rows, 0))
        parts = [micro_language.answer_loss(model, micro_language.collate([row], 0)) for row in rows]
    counts = [sum(row.answers) for row in rows]
    mean = sum(part[0] * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    assert float(together) == pytest.approx(float(mean), rel=1e-4)
    assert torch.equal(right, torch.cat([part[1] for part in parts]))


def test_a_few_steps_lower_the_loss() -> None:
    model = small_model(layers=1)
    optimizers = micro_language.muon_and_adamw(model, 6e-3, 2e-2)
    batch = micro_language.collate([micro_language.lesson_row(x, TOKENIZER) for x in lessons(3)], 0)
    losses = []
    for _ in range(15):
        loss, _ = micro_language.answer_loss(model, batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_writings_of_a_word_and_neighbouring_numbers_start_out_alike() -> None:
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(micro_language_start.first_embeddings(TOKENIZER, 192, NAMES), dim=1)

    def alike(a: str, b: str) -> float:
        (one,), (two,) = tokens_of(a), tokens_of(b)
        return float(vectors[one] @ vectors[two])

    assert alike("dog", " dog") > 0.8 and alike("cell phone", "phones") > 0.7
    assert abs(alike("dog", " cat")) < 0.5
    assert alike("40", "40, ") > 0.8
    assert alike("40", "42") > alike("40", "55") > alike("40", "95")


def test_only_names_of_categories_use_the_first_part_of_an_embedding() -> None:
    torch.manual_seed(0)
    first = micro_language_start.first_embeddings(TOKENIZER, 192, NAMES)[:, :32].abs().mean(1)
    used = {TOKENIZER.convert_ids_to_tokens(i) for i in first.gt(0.4).nonzero()[:, 0].tolist()}
    assert {"dog", "dogs", "\u0120dog", "person", "people"} <= used
    assert not {"left", "\u0120left", "40", "Which", micro_language.END} & used


def test_words_of_place_start_out_on_axes_that_all_others_leave_free() -> None:
    torch.manual_seed(0)
    axes = torch.eye(192)[40:43]
    along = micro_language_start.first_embeddings(TOKENIZER, 192, NAMES, axes) @ axes.T
    for word, expected in {" left": [-3, 0, 0], "bottom": [0, 3, 0], " largest": [0, 0, 3], " dog": [0, 0, 0]}.items():
        (token,) = tokens_of(word)
        torch.testing.assert_close(along[token], torch.tensor(expected, dtype=torch.float), atol=1e-4, rtol=0)
    assert int((along.abs() > 0.01).any(1).sum()) < 60


def attentions(model: LlamaForCausalLM, labels: list[str], boxes: list[list[float]], phrase: str) -> tuple[Any, ...]:
    """The attention from an untrained model's question: of the phrase's last word and of the answering token."""
    candidates = make_candidates(boxes, labels, None, "any", -1)
    shared = tokens_of(micro_language.USER + prompts.context(candidates, (100, 100), "percent") + "\n")
    closings = [i + 7 for i, token in enumerate(shared) if token == tokens_of(': "')[0]]
    asked = tokens_of(prompts.question(phrase) + micro_language.END + micro_language.ASSISTANT)
    with torch.no_grad():
        found = model(input_ids=torch.tensor([shared + asked]), output_attentions=True).attentions
    assert float(found[0][0, 4].diagonal(-6)[20:].mean()) > 0.7, "the fifth head looks six tokens back"
    return found[1][0, 0, len(shared) + len(asked) - 4, closings], found[3][0, :2, -1, closings].mean(0)


def test_an_untrained_model_already_looks_up_labels_and_directions() -> None:
    model = small_model(192, 5, 6)
    model.set_attn_implementation("eager")
    labels = ["dog", "traffic light", "cup", "zebra", "train"]
    boxes = [[9.0 * i, 20.0, 9.0 * i + 30, 60.0] for i in range(5)]
    for number, label in enumerate(labels):
        met, _ = attentions(model, labels, boxes, f"the {label}")
        assert int(met.argmax()) == number, "in the second layer a word meets the box of that label"
    labels = ["dog", "cat", "dog", "train", "dog"]
    boxes = [[2, 40, 20, 60], [30, 40, 50, 70], [60, 20, 80, 50], [70, 60, 99, 90], [40, 70, 60, 90]]
    right = 0
    for phrase, expected in (("left dog", 0), ("right dog", 2), ("bottom dog", 4), ("top dog", 2)):
        right += int(attentions(model, labels, boxes, phrase)[1].argmax()) == expected
    assert right >= 3, "in the fourth layer the answering token meets the dog that is asked for"


def test_a_saved_model_is_asked_like_any_other(tmp_path: Path) -> None:
    micro_language.save(small_model(layers=1), TOKENIZER, tmp_path / "micro")
    loaded = HubLanguageModel.load(tmp_path / "micro", progress=False)
    found = loaded.choose([[{"role": "user", "content": "Which box?"}]], [["0", "1", "12"]])[0]
    assert found.shape == (3,) and found.sum() == pytest.approx(1)
    assert loaded.tokenizer.decode([loaded.end_token]) == micro_language.END


def tiny(steps: int = 6) -> micro_language_training.Recipe:
    return micro_language_training.Recipe(
        steps=steps, rows=2, row_tokens=160, hidden=64, layers=1, heads=2, patience=2, mastery=-1.0, warmup=1, texts=40
    )


def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole = micro_language_training.Training(tiny(), tmp_path / "whole")
    whole.run(validate_every=4, progress=False)
    first = micro_language_training.Training(tiny(), tmp_path / "parts")
    first.run(until=3, validate_every=4, progress=False)
    second = micro_language_training.Training(tiny(), tmp_path / "parts")
    assert second.step == 3
    second.run(validate_every=4, progress=False)
    assert second.stage == whole.stage > 0, "any share of right answers opens the next stage"
    assert second.skills == whole.skills
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, second.model.state_dict()[name], msg=name)


def test_a_folder_with_other_settings_is_refused_but_the_end_may_move(tmp_path: Path) -> None:
    micro_language_training.Training(tiny(1), tmp_path).run(progress=False)
    assert micro_language_training.Training(tiny(2), tmp_path).step == 1
    with pytest.raises(ValueError, match="other settings"):
        micro_language_training.Training(dataclasses.replace(tiny(1), hidden=96), tmp_path)


def test_skill_shares_count_an_answer_only_if_all_of_it_is_right() -> None:
    chosen = lessons(2)
    batch = micro_language.collate([micro_language.lesson_row(lesson, TOKENIZER) for lesson in chosen], 0)
    everything = torch.ones(int(batch["answers"].sum()), dtype=torch.bool)
    everything[0] = False
    shares = micro_language_training.skill_shares(chosen, batch, everything)
    assert sum(map(len, shares.values())) == sum(len(lesson.questions) for lesson in chosen)
    assert [skill for skill, found in shares.items() if 0 in found] == [chosen[0].questions[0].skill]
    assert sum(found.count(0) for found in shares.values()) == 1
