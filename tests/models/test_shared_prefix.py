"""The shared-prefix engine against one `generate` per question under the same grammar.

Weights are large, so a wrong position or mask changes most answers; everything runs in float32.
"""

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seewhere.models import choose
from seewhere.models.grammar import AnswerGrammar
from seewhere.models.shared_prefix import PrefixEngine
from seewhere.training import add_lora
from transformers import (
    BartConfig,
    BartForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from measure import PeakBytes

END, OPEN, COMMA, CLOSE, DIGIT, NUMBER = 2, 3, 4, 5, 10, 30
VOCABULARY = 96
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": END,
    "pad_token_id": 1,
}


def make(family: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    grouped = {**SMALL, "num_key_value_heads": 2, "initializer_range": 0.5}
    gemma = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 512, "attn_logit_softcapping": 5.0}
    narrow = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "initializer_range": 0.4}
    neo = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}
    model: Any = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**grouped, tie_word_embeddings=True)),
        "lora": lambda: LlamaForCausalLM(LlamaConfig(**grouped)),
        "qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**grouped)),
        "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, initializer_range=0.5)),
        "gemma": lambda: Gemma2ForCausalLM(Gemma2Config(**grouped, **gemma, attn_implementation="eager")),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**narrow, bos_token_id=0, eos_token_id=END)),
        "neo": lambda: GPTNeoForCausalLM(
            GPTNeoConfig(**neo, vocab_size=VOCABULARY, initializer_range=0.2, bos_token_id=0, eos_token_id=END)
        ),
    }[family]()
    if family == "lora":
        model = add_lora(model, rank=4, alpha=8, dropout=0.0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.to(dtype).eval()


def digits(number: int) -> tuple[int, ...]:
    return tuple(DIGIT + int(c) for c in str(number))


def digit_wise(largest: int) -> AnswerGrammar:
    """`[r,g,b]` with a token per digit, so that answers differ in length."""
    texts = [digits(n) for n in range(largest + 1)]
    first = [(OPEN, *t, COMMA) for t in texts]
    return AnswerGrammar([first, [(*t, COMMA) for t in texts], [(*t, CLOSE) for t in texts]])


def whole_numbers() -> AnswerGrammar:
    """`[r,g,b]` with a token per number."""
    texts = [(NUMBER + n,) for n in range(50)]
    first = [(OPEN, *t, COMMA) for t in texts]
    return AnswerGrammar([first, [(*t, COMMA) for t in texts], [(*t, CLOSE) for t in texts]])


def pixel_questions(side: int) -> list[list[int]]:
    """Questions of several lengths with a common beginning."""
    places = [(x, y) for x in range(0, 3 * side, 3) for y in range(0, 4 * side, 4)]
    return [[80, 81, OPEN, *digits(y), COMMA, 60 + x, 40 + y // 4] for x, y in places]


def one_by_one(
    model: Any, prefix: torch.Tensor, questions: list[list[int]], grammar: AnswerGrammar
) -> list[tuple[int, ...]]:
    """Greedy `generate` under the grammar, a question at a time."""
    answers = []
    for question in questions:
        if prefix.is_floating_point():
            words = model.get_input_embeddings()(torch.tensor([question]))
            given = {"inputs_embeds": torch.cat([prefix[None], words], dim=1)}
            skipped = 0
        else:
            given = {"input_ids": torch.cat([prefix, torch.tensor(question)])[None]}
            skipped = given["input_ids"].shape[1]
        output = model.generate(
            **given,
            attention_mask=torch.ones(1, len(prefix) + len(question), dtype=torch.long),
            prefix_allowed_tokens_fn=lambda _, ids, s=skipped: grammar.allowed_after(ids[s:].tolist(), END),
            max_new_tokens=16,
            do_sample=False,
        )
        tokens = output[0, skipped:].tolist()
        answers.append(tuple(tokens[: tokens.index(END)] if END in tokens else tokens))
    return answers


def embedded_prefix(length: int = 17, size: float = 0.5) -> torch.Tensor:
    return torch.randn(length, 32, generator=torch.Generator().manual_seed(1)) * size


@pytest.mark.parametrize("family", ["llama", "lora", "qwen", "neox", "gemma", "gpt2"])
@pytest.mark.parametrize("kind", ["digits", "numbers"])
def test_same_answers_as_generate(family: str, kind: str) -> None:
    model, prefix = make(family), embedded_prefix()
    grammar = digit_wise(255) if kind == "digits" else whole_numbers()
    questions = pixel_questions(4)[::2]
    with torch.no_grad():
        expected = one_by_one(model, prefix, questions, grammar)
    assert len(set(expected)) > 2  # answers differ, or the comparison would say little
    for attention in ("merged", "rows"):
        engine = PrefixEngine(model, attention=attention, batch_tokens=16)
        found = engine.decode(engine.read(prefix), questions, grammar)
        assert [grammar.tokens_of(row) for row in found.values] == expected, attention


def test_token_prefix_and_a_model_without_the_attention_interface() -> None:
    model, grammar, questions = make("neo"), digit_wise(255), pixel_questions(3)
    prefix = torch.tensor([7, 40, 41, 7, 90, 60, 61])
    engine = PrefixEngine(model)
    assert not engine.merged
    with torch.no_grad():
        expected = one_by_one(model, prefix, questions, grammar)
    found = engine.decode(engine.read(prefix), questions, grammar)
    assert [grammar.tokens_of(row) for row in found.values] == expected
    with pytest.raises(ValueError, match="attention='rows'"):
        PrefixEngine(model, attention="merged")


def test_half_precision_is_judged_in_single_precision() -> None:
    model = make("llama").bfloat16()
    assert PrefixEngine(model).merged
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa"
    with pytest.warns(UserWarning, match="copy of the prefix") as said:
        assert not PrefixEngine(make("neo").bfloat16()).merged
    assert len(said) == 1


def test_log_probabilities_are_those_among_the_allowed_tokens() -> None:
    model, grammar, prefix = make("llama"), digit_wise(255), embedded_prefix()
    questions = pixel_questions(2)
    engine = PrefixEngine(model)
    found = engine.decode(engine.read(prefix), questions, grammar)
    for question, values, logs in zip(questions, found.values, found.log_probabilities, strict=True):
        answer = grammar.tokens_of(values)
        words = model.get_input_embeddings()(torch.tensor([[*question, *answer]]))
        with torch.no_grad():
            logits = model(inputs_embeds=torch.cat([prefix[None], words], dim=1)).logits[0].double()
        expected, place = [0.0, 0.0, 0.0], 0
        for i, token in enumerate(answer):
            allowed = grammar.allowed_after(answer[:i])
            row = logits[len(prefix) + len(question) - 1 + i]
            expected[place] += float(row[token] - row[allowed].logsumexp(-1))
            place += token in (COMMA, CLOSE)
        np.testing.assert_allclose(logs, expected, atol=1e-4)


@pytest.mark.parametrize("attention", ["merged", "rows"])
@pytest.mark.parametrize("options", [[(8,), (9,)], [(8, 9), (8, 7), (9,), (7, 8, 9)]])
def test_scores_equal_those_of_choose(attention: Any, options: list[tuple[int, ...]]) -> None:
    model = make("llama", torch.float64)
    prefix, questions = [7, 40, 41, 7, 90, 60, 61, 50], pixel_questions(4)
    engine = PrefixEngine(model, attention=attention, batch_tokens=40)
    found = engine.score(engine.read(prefix), questions, options)
    prompts = [[*prefix, *question] for question in questions]
    expected = choose.choose(model, prompts, [options] * len(questions), END, share=False)
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)


def test_model_is_left_as_it_was() -> None:
    model = make("llama")
    head, kind = model.get_output_embeddings().weight, model.config._attn_implementation
    engine = PrefixEngine(model)
    engine.decode(engine.read(embedded_prefix()), pixel_questions(2), whole_numbers())
    assert model.get_output_embeddings().weight is head is model.get_input_embeddings().weight
    assert model.config._attn_implementation == kind


def test_a_prefix_serves_several_sets_of_questions() -> None:
    model, grammar = make("llama"), whole_numbers()
    engine = PrefixEngine(model)
    prefix, questions = engine.read(embedded_prefix()), pixel_questions(4)
    everything = engine.decode(prefix, questions, grammar)
    again = engine.decode(prefix, questions[5:], grammar)
    np.testing.assert_array_equal(everything.values[5:], again.values)
    assert prefix.length == len(embedded_prefix())


def test_an_answer_without_choice_and_no_questions() -> None:
    engine = PrefixEngine(make("llama"))
    prefix = engine.read(embedded_prefix())
    found = engine.decode(prefix, pixel_questions(2), AnswerGrammar([[(OPEN, CLOSE)]]))
    assert (found.values == 0).all() and (found.log_probabilities == 0).all()
    assert engine.decode(prefix, [], whole_numbers()).values.shape == (0, 3)
    assert engine.score(prefix, [], [(1,), (2,)]).shape == (0, 2)


@pytest.mark.parametrize("family", ["llama", "neox"])
@pytest.mark.parametrize("attention", ["merged", "rows"])
def test_memory_stays_within_the_budget(family: str, attention: Any) -> None:
    model, grammar, questions = make(family), digit_wise(255), pixel_questions(8)
    peaks = []
    for budget in (300_000, 1_500_000):
        engine = PrefixEngine(model, budget, attention, batch_tokens=1 << 30)
        prefix = engine.read(embedded_prefix(100))
        gc.collect()
        with PeakBytes() as memory:
            found = engine.decode(prefix, questions, grammar)
        peaks.append(memory.peak)
        # The prefix with the questions' common beginning, and what the questions themselves and the answers take.
        beside = 4 * (prefix.length + 8) * 3 * 2 * 32 + 24 * len(questions) + found.values.nbytes * 2
        assert memory.peak <= budget + 2 * beside
    assert peaks[0] < peaks[1]  # a larger budget is used


@pytest.mark.parametrize(("window", "shared"), [(20, False), (31, True)])
def test_a_window_that_ends_within_the_answer_is_kept(window: int, shared: bool) -> None:
    torch.manual_seed(0)
    sizes = {**SMALL, "num_key_value_heads": 2, "initializer_range": 0.4, "sliding_window": window}
    model = MistralForCausalLM(MistralConfig(**sizes)).eval()
    grammar = AnswerGrammar([[(i, j) for i in range(10, 18) for j in range(20, 28)]] * 3)
    prefix = torch.randint(5, 60, (18,)).tolist()
    questions = [torch.randint(5, 60, (6,)).tolist() for _ in range(12)]
    engine = PrefixEngine(model)
    assert engine.merged and engine._merges(engine.read(prefix), 6, 6) is shared
    rows = PrefixEngine(model, attention="rows")
    options = [(3, 4), (5,)]
    np.testing.assert_allclose(
        engine.score(engine.read(prefix), questions, options), rows.score(rows.read(prefix), questions, options),
        atol=1e-5,
    )  # fmt: skip
    for question, values in zip(questions, engine.decode(engine.read(prefix), questions, grammar).values, strict=True):
        start = len(prefix) + len(question)
        out = model.generate(
            input_ids=torch.tensor([prefix + question]),
            prefix_allowed_tokens_fn=lambda _, read, start=start: grammar.allowed_after(read[start:].tolist(), 1),
            max_new_tokens=6,
            do_sample=False,
        )
        assert tuple(out[0, start:].tolist()) == tuple(grammar.tokens_of(values))


@pytest.mark.parametrize("family", ["mpt", "bart", "window"])
def test_padding_does_not_count_as_distance(family: str) -> None:
    """Positions from the mask or the cache, and windows that end within the text: questions of unequal length."""
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "d_model": 32, "initializer_range": 0.4, "eos_token_id": END}
    model: Any = {
        "mpt": lambda: MptForCausalLM(MptConfig(**common, n_heads=4, n_layers=2, max_seq_len=256)),
        "bart": lambda: BartForCausalLM(
            BartConfig(**common, init_std=0.4, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48,
                       max_position_embeddings=256, is_decoder=True, forced_eos_token_id=None)
        ),
        "window": lambda: MistralForCausalLM(
            MistralConfig(**{**SMALL, "num_key_value_heads": 2, "initializer_range": 0.4, "sliding_window": 32})
        ),
    }[family]().eval()  # fmt: skip
    prefix = torch.randint(6, 90, (24,)).tolist()
    questions = [torch.randint(6, 90, (length,)).tolist() for length in (3, 9, 5, 12, 4)]
    engine = PrefixEngine(model, attention="rows")
    options = [(8, 9), (8, 7, 9), (9,)]
    found = engine.score(engine.read(prefix), questions, options)
    for question, row in zip(questions, found, strict=True):
        logs = []
        for option in options:
            whole = torch.tensor([[*prefix, *question, *option]])
            with torch.no_grad():
                steps = model(input_ids=whole, use_cache=False).logits[0].double().log_softmax(-1)
            logs.append(sum(steps[-len(option) - 1 + i, token] for i, token in enumerate(option)))
        np.testing.assert_allclose(row, torch.stack(logs).softmax(0), atol=1e-4)


def test_layers_of_unlike_width_are_counted_by_the_widest() -> None:
    model = make("llama")
    engine = PrefixEngine(model)
    prefix = engine.read(embedded_prefix())
    expected = engine.row_bytes(prefix, 4, 2, 8)
    # Not every configuration lets itself be changed so; Gemma 3n's does.
    model.config.__dict__["intermediate_size"] = [8, model.config.intermediate_size, 16]
    assert engine.row_bytes(prefix, 4, 2, 8) == expected


def test_what_cannot_be_asked_is_refused() -> None:
    model = make("llama")
    engine = PrefixEngine(model)
    with pytest.raises(ValueError, match="question 1 is empty"):
        engine.decode(engine.read([5, 6]), [[1], []], whole_numbers())
    with pytest.raises(ValueError, match=r"token ids \(P,\) or embeddings"):
        engine.read(torch.zeros(2, 3, 32))
    with pytest.raises(ValueError, match="two or more different options"):
        engine.score(engine.read([5, 6]), [[1]], [(3,), (3,)])
    with pytest.raises(ValueError, match="budget is 0"):
        PrefixEngine(model, budget=0)
    window = MistralConfig(**{**SMALL, "num_key_value_heads": 2}, sliding_window=20)
    with pytest.raises(ValueError, match="cannot be continued"):
        PrefixEngine(MistralForCausalLM(window).eval()).read(embedded_prefix(30))
