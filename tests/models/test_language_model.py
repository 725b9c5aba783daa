"""Language models from a folder: chat text, choosing, writing, adapters."""

from pathlib import Path

import numpy as np
import pytest
import torch
from seewhere import storage, training
from seewhere.models import language_model, number_formats
from seewhere.models.adapters import check_four_bit
from seewhere.models.language_model import HubLanguageModel, PromptTooLong, load_language_model
from seewhere.models.protocols import LanguageModel
from tiny_models import tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, MixtralConfig, PreTrainedTokenizerFast

# The answer follows a space, as in the Llama-2 and Mistral families.
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}<turn>{% else %} {{ m.content }}<end>"
    "{% endif %}{% endfor %}"
)
LINES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


# As Qwen3's: a thought before every answer, an empty one where none is wanted.
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<assistant><think></think>{{ m.content }}<end>"
    "{% else %}<user>{{ m.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
# As SmolLM3's and Llama 3.2's.
DATED = "{{ strftime_now('%d %b %Y') }} " + LINES


def byte_tokenizer(template: str | None = LINES) -> PreTrainedTokenizerFast:
    """One token per byte, and the marks of the chat templates."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<end>", "<user>", "<assistant>", "<turn>", "<text-end>", "<think>", "</think>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<text-end>")
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(tied: bool = False) -> LlamaForCausalLM:
    return tiny_llama(266, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=260).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(target)
    byte_tokenizer().save_pretrained(target)
    return target


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_folder_answers_the_protocol(folder: Path) -> None:
    model = load_language_model(str(folder), device="cpu")
    assert isinstance(model, LanguageModel)
    assert model.name == folder.name


def test_choose_is_the_probability_of_the_rendered_answer(folder: Path) -> None:
    model = HubLanguageModel.load(folder, device="cpu")
    options = [str(i) for i in range(12)]
    found = model.choose([chat("which dog?"), chat("which of the cats?")], [options, options[:3]])
    logs = []
    for option in options:
        text = f"<user>which dog?<end>\n<assistant>{option}<end>"
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        scores = model.model(ids).logits[0].log_softmax(-1)
        start = ids.shape[1] - len(option) - 1
        logs.append(sum(float(scores[i - 1, ids[0, i]].detach()) for i in range(start, ids.shape[1])))
    expected = np.exp(logs) / np.exp(logs).sum()
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    assert found[1].shape == (3,)
    with pytest.raises(ValueError, match="question 1 has no options"):
        model.choose([chat("a"), chat("b")], [["0", "1"], []])


def test_greedy_generation_does_not_depend_on_the_batch(folder: Path) -> None:
    model = HubLanguageModel.load(folder, device="cpu", progress=False)
    prompts = [chat("x" * n) for n in (1, 30, 4, 12)]
    together = model.generate(prompts, max_new_tokens=6)
    assert together == [model.generate([prompt], max_new_tokens=6)[0] for prompt in prompts]
    model.batch_tokens = 40
    assert model.generate(prompts, max_new_tokens=6) == together
    assert model.generate([], 5) == []


def test_logits_of_a_batch_equal_those_of_one_prompt(folder: Path) -> None:
    model = HubLanguageModel.load(folder, device="cpu")
    prompts = [chat("x" * n) for n in (1, 30, 4)]
    together = model.logits(prompts)
    assert together.shape == (3, 266)
    for row, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(row, model.logits([prompt])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("template", "answer", "end"),
    [(LINES, "12", "<end>"), (SPACED, " 12", "<end>"), (THINKING, "12", "<end>"), (None, "12", "<text-end>")],
)
def test_answers_are_tokenised_as_the_template_writes_them(template: str | None, answer: str, end: str) -> None:
    tokenizer = byte_tokenizer(template)
    model = HubLanguageModel(tiny_model(), tokenizer, "tiny")
    assert model.answer_tokens("12") == tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert model.end_token == tokenizer.convert_tokens_to_ids(end)
    with pytest.raises(ValueError, match="no tokens"):
        HubLanguageModel(tiny_model(), byte_tokenizer(), "tiny").answer_tokens("")


def test_what_a_template_writes_before_an_answer_does_not_end_it() -> None:
    always = THINKING.replace("enable_thinking is defined and enable_thinking is false", "false")
    tokenizer = byte_tokenizer(always)
    model = HubLanguageModel(tiny_model(), tokenizer, "tiny")
    assert model.end_token == tokenizer.convert_tokens_to_ids("<end>")


def test_a_prompt_is_the_same_tomorrow() -> None:
    rendered = HubLanguageModel(tiny_model(), byte_tokenizer(DATED), "tiny").render(chat("which dog?"))
    assert rendered.startswith("26 Jul 2024 <user>which dog?")


@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_adapter_changes_nothing_but_speed(tmp_path: Path, tied: bool) -> None:
    base = tmp_path / "base"
    tiny_model(tied).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    adapted = training.add_lora(tiny_model(tied), rank=4, alpha=8, dropout=0.0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    training.save_adapter(adapted, tmp_path / "adapter", torch.float32)
    prompts = [chat("which dog?"), chat("cat")]
    reference = HubLanguageModel(adapted, byte_tokenizer(), "adapted").logits(prompts)
    loaded = load_language_model(str(base), adapter=tmp_path / "adapter", device="cpu")
    assert isinstance(loaded, HubLanguageModel)
    assert not hasattr(loaded.model, "peft_config") or type(loaded.model) is LlamaForCausalLM
    torch.testing.assert_close(loaded.logits(prompts), reference, atol=1e-4, rtol=1e-4)
    plain = HubLanguageModel.load(base, device="cpu").logits(prompts)
    assert (plain - reference).abs().max() > 0.1


def test_names_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no language model could be loaded"):
        load_language_model(str(tmp_path))
    with pytest.raises(ValueError, match="adapter cannot be put on a served model"):
        load_language_model("http://127.0.0.1:1", adapter="some")
    monkeypatch.setattr(language_model, "MICRO_FOLDER", tmp_path / "absent")
    with pytest.raises(ValueError, match="absent"):
        load_language_model("micro")


def test_device_and_number_format_come_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert number_formats.device_and_format()[2] == "cpu, float32: no GPU found"
    assert number_formats.device_and_format("cpu", "bfloat16")[1] is torch.bfloat16
    with pytest.raises(ValueError, match="number format"):
        number_formats.device_and_format(dtype="float31")


def test_four_bit_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="CUDA GPU"):
        language_model.four_bit_settings(torch.device("cpu"))


def test_experts_that_four_bits_would_leave_alone_are_refused(folder: Path, tmp_path: Path) -> None:
    check_four_bit(folder)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    MixtralConfig(**sizes, intermediate_size=64, num_key_value_heads=2, num_local_experts=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"billion weights are experts kept in one tensor.*without experts"):
        check_four_bit(tmp_path)


def test_adapters_side_by_side_answer_as_each_alone(folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        adapted = training.add_lora(tiny_model(), 4, targets=("q_proj", "down_proj"))
        torch.manual_seed(seed)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        training.save_adapter(adapted, tmp_path / str(seed))
    load = {"device": "cpu", "dtype": "bfloat16", "progress": False}
    first = load_language_model(str(folder), tmp_path / "1", **load)
    second, bare = first.beside(tmp_path / "2"), first.beside(None)
    asked = [chat("which dog?"), chat("which of the cats?")], [["0", "1", "12"]] * 2
    alone = [load_language_model(str(folder), a, **load) for a in (tmp_path / "1", tmp_path / "2", None)]
    expected = [model.choose(*asked) for model in alone]
    assert not np.allclose(expected[0], expected[1], atol=1e-3) and not np.allclose(expected[0], expected[2], atol=1e-3)
    for _ in range(2):  # in turn
        for model, own, same in zip((first, second, bare), expected, alone, strict=True):
            np.testing.assert_allclose(model.choose(*asked), own, atol=1e-6)
            assert model.generate(asked[0], 4) == same.generate(asked[0], 4)
            torch.testing.assert_close(model.logits(asked[0]), same.logits(asked[0]))
            assert model.weight_hashes() == same.weight_hashes() and model.parameters == same.parameters
    assert first.model is second.model is bare.model
    with pytest.raises(ValueError, match="no adapter apart from its weights"):
        load_language_model(str(folder), tmp_path / "1", device="cpu").beside(None)


def test_what_does_not_fit_the_context_is_told_before_and_refused(folder: Path) -> None:
    model = load_language_model(str(folder), device="cpu", progress=False)
    assert isinstance(model, HubLanguageModel) and model.context == 512
    short, long = chat("which dog?"), chat("dog " * 130)
    assert model.too_long([short, long, chat("é" * 150)]) == [False, True, False]
    near = chat("x" * (512 - 8 - len(model.prompt_tokens([chat("")])[0])))
    assert model.too_long([near], 8) == [False] and model.too_long([near], 9) == [True]
    with pytest.raises(PromptTooLong, match=r"question 1: .* \(1 of 2 questions"):
        model.choose([short, long], [["0", "1"]] * 2)
    with pytest.raises(PromptTooLong, match="answer up to 500"):
        model.generate([short], 500)


def test_a_model_tells_its_size_and_its_weights(folder: Path) -> None:
    model = HubLanguageModel.load(folder)
    assert model.parameters == sum(p.numel() for p in model.model.parameters()) > 1000
    assert model.weight_hashes() == {folder.name: storage.hash_file(folder / "model.safetensors")}
    assert HubLanguageModel(tiny_model(), byte_tokenizer(), "made").weight_hashes() == {}
    assert language_model.source_of("micro").name == "micro-lm" and language_model.source_of("a/b") == "a/b"
