"""The shared-prefix engine against one plain forward pass per option.

Weights are large, so a wrong position or mask moves log-probabilities by whole units; the tolerance is the float32 of
norms and softmax inside the models.
"""

import math

import numpy as np
import pytest
import torch
from seewhere.models import choose as engine
from seewhere.models.caches import takes_block_masks
from tiny_models import tiny_llama
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

END = 2
DIGIT = 10  # token ids 10..19 stand for the digits


def tiny(attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    return tiny_llama(64, layers=3, attn_implementation=attention).to(dtype).eval()


def digits(count: int) -> list[tuple[int, ...]]:
    return [tuple(DIGIT + int(c) for c in str(number)) for number in range(count)]


def one_by_one(model: torch.nn.Module, prompt: list[int], option: tuple[int, ...]) -> float:
    """log P(option | prompt) by one full forward pass without any cache."""
    ids = torch.tensor([[*prompt, *option]])
    with torch.inference_mode():
        logs = model(ids, use_cache=False).logits[0].log_softmax(-1)
    return sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(option))


def random_prompts(seed: int, count: int, shared: bool) -> list[list[int]]:
    random = np.random.default_rng(seed)
    header = random.integers(20, 64, 20).tolist()
    lists = [random.integers(20, 64, random.integers(5, 40)).tolist() for _ in range(3)]
    prompts = []
    for i in range(count):
        tail = random.integers(20, 64, random.integers(1, 12)).tolist()
        prompts.append(header + lists[i % 3] + tail if shared else tail + lists[i % 3][: random.integers(0, 5)])
    return prompts


def expected(
    model: torch.nn.Module, prompts: list[list[int]], options: list[list[tuple[int, ...]]]
) -> list[np.ndarray]:
    logs = [np.array([one_by_one(model, p, o) for o in c]) for p, c in zip(prompts, options, strict=True)]
    return logs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 70, 4096])
def test_equals_one_forward_pass_per_option(attention: str, shared: bool, share: bool, batch_tokens: int) -> None:
    model = tiny(attention)
    prompts = random_prompts(1, 9, shared)
    options = [engine.close_options(digits(n), END) for n in (2, 3, 5, 9, 10, 11, 13, 4, 1)]
    found = engine.option_log_probabilities(model, prompts, options, share=share, batch_tokens=batch_tokens)
    for values, reference in zip(found, expected(model, prompts, options), strict=True):
        np.testing.assert_allclose(values, reference, atol=1e-4)


def test_small_cache_limit_gives_the_same_numbers() -> None:
    model = tiny()
    prompts = random_prompts(2, 12, True)
    options = [digits(7)] * 12
    whole = engine.option_log_probabilities(model, prompts, options)
    small = engine.option_log_probabilities(model, prompts, options, cache_tokens=1)
    np.testing.assert_allclose(np.array(whole), np.array(small), atol=1e-4)


def test_single_precision_is_close() -> None:
    model = tiny(dtype=torch.float32)
    prompts = random_prompts(3, 6, True)
    options = [engine.close_options(digits(12), END)] * 6
    found = engine.option_log_probabilities(model, prompts, options)
    np.testing.assert_allclose(np.array(found), np.array(expected(model, prompts, options)), atol=1e-4)


def test_three_hundred_options() -> None:
    model = tiny()
    prompt = random_prompts(4, 1, True)[0]
    probabilities = engine.choose(model, [prompt], [digits(300)], END)[0]
    assert probabilities.shape == (300,)
    assert math.isclose(probabilities.sum(), 1.0, abs_tol=1e-12)
    reference = np.array([one_by_one(model, prompt, o) for o in engine.close_options(digits(300), END)])
    reference = np.exp(reference - np.logaddexp.reduce(reference))
    np.testing.assert_allclose(probabilities, reference, atol=1e-5)


def test_prompts_that_begin_or_equal_each_other() -> None:
    model = tiny()
    base = random_prompts(5, 1, True)[0]
    prompts = [base, base[:-1], base, base[:20], base[:1], [*base, 33], [*base[:30], 21]]
    options = [digits(4)] * len(prompts)
    found = engine.option_log_probabilities(model, prompts, options, share=True)
    np.testing.assert_allclose(np.array(found), np.array(expected(model, prompts, options)), atol=1e-4)


def test_positions_are_right_for_learned_position_embeddings() -> None:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128, attn_implementation="sdpa")
    model = GPT2LMHeadModel(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prompts = random_prompts(6, 8, True)
    options = [engine.close_options(digits(11), END)] * 8
    found = engine.option_log_probabilities(model, prompts, options, share=True)
    np.testing.assert_allclose(np.array(found), np.array(expected(model, prompts, options)), atol=1e-4)


def test_short_sliding_window_is_run_on_whole_sequences() -> None:
    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.4,
        attn_implementation="sdpa",
    )
    model = MistralForCausalLM(config).double().eval()
    prompts = random_prompts(7, 5, True)
    options = [digits(5)] * 5
    assert not engine.can_share_prefixes(model, 60)
    assert engine.can_share_prefixes(model, 8)
    found = engine.option_log_probabilities(model, prompts, options)
    np.testing.assert_allclose(np.array(found), np.array(expected(model, prompts, options)), atol=1e-4)
    with pytest.raises(ValueError, match="share=True"):
        engine.option_log_probabilities(model, prompts, options, share=True)


def test_shared_beginnings_are_run_once() -> None:
    model = tiny()
    header, lists = list(range(20, 60)), [list(range(25, 60)), [*range(30, 64), 20]]
    prompts = [header + lists[i % 2] + [20 + i, 40] for i in range(20)]
    run = 0

    def count(module: torch.nn.Module, inputs: tuple, keywords: dict) -> None:
        nonlocal run
        run += int((keywords["input_ids"] != 0).sum())  # 0 is padding, no prompt has it

    model.register_forward_pre_hook(count, with_kwargs=True)
    engine.option_log_probabilities(model, prompts, [digits(5)] * 20)
    assert run == len(header) + len(lists[0]) + len(lists[1]) + 20 * 2


def test_questions_about_one_list_take_one_forward_pass() -> None:
    model = tiny()
    beginning = list(range(20, 60))
    prompts = [[*beginning, 20 + i, 40] for i in range(6)]
    passes = []
    model.register_forward_pre_hook(lambda module, inputs: passes.append(1))
    engine.option_log_probabilities(model, prompts, [engine.close_options(digits(12), END)] * 6)
    assert len(passes) == 1


@pytest.mark.parametrize("longest", [60, 100, 200])
def test_branches_longer_than_a_row_are_divided(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LONGEST_ROW", longest)
    model = tiny()
    prompts = random_prompts(11, 40, True)
    options = [engine.close_options(digits(2 + i % 11), END) for i in range(40)]
    widths = []
    hook = model.register_forward_pre_hook(lambda m, i, k: widths.append(k["input_ids"].shape[1]), with_kwargs=True)
    found = engine.option_log_probabilities(model, prompts, options)
    hook.remove()
    assert max(widths) <= longest
    for values, reference in zip(found, expected(model, prompts, options), strict=True):
        np.testing.assert_allclose(values, reference, atol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision_has_no_gaps(attention: str) -> None:
    model = tiny(attention, torch.bfloat16)
    found = engine.option_log_probabilities(model, random_prompts(12, 9, False), [digits(12)] * 9)
    assert np.isfinite(np.array(found)).all()


def test_positions_that_lie_in_the_mask() -> None:
    torch.manual_seed(3)
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, attn_implementation="eager")
    model = BloomForCausalLM(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert not takes_block_masks(model) and takes_block_masks(tiny())
    prompts = random_prompts(13, 6, True)
    options = [engine.close_options(digits(11), END)] * 6
    found = engine.option_log_probabilities(model, prompts, options, share=True)
    np.testing.assert_allclose(np.array(found), np.array(expected(model, prompts, options)), atol=1e-4)


def test_one_option_needs_no_model() -> None:
    assert engine.choose(None, [[1, 2]], [[(5,)]], END)[0].tolist() == [1.0]


def test_end_token_only_where_an_option_begins_another() -> None:
    assert engine.close_options(digits(3), END) == [(10,), (11,), (12,)]
    closed = engine.close_options(digits(11), END)
    assert closed[1] == (11, END) and closed[10] == (11, 10, END)
    assert engine.close_options([(5, 6), (5, 7)], END) == [(5, 6), (5, 7)]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1]], [[]], "no options"),
        ([[]], [[(1,)]], "prompt is empty"),
        ([[1]], [[(1,), ()]], "without tokens"),
        ([[1]], [[(1,), (1,)]], "twice"),
        ([[1], [2]], [[(1,)]], "one list of options per prompt"),
    ],
)
def test_unusable_input_is_refused(prompts: list, options: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.choose(tiny(), prompts, options, END)


def test_no_questions() -> None:
    assert engine.choose(tiny(), [], [], END) == []
