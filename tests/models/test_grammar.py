import random

import pytest
from seewhere.models.grammar import AnswerGrammar, number_slots
from seewhere.models.micro_language import build_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

RGB = number_slots("[", [",", ",", "]"], 255)
SPACED = number_slots("[", [", ", ", ", "]"], 255)


def digit_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, with a space put in front of a text, as Llama's tokenizer does."""
    vocabulary = {c: i for i, c in enumerate("▁0123456789[],")} | {"▁[": 14}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "[")]))
    tokenizer.normalizer = normalizers.Prepend("▁")
    tokenizer.decoder = decoders.Replace("▁", " ")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("slots", [RGB, SPACED])
def test_answers_are_written_in_the_tokenizers_own_tokens(slots: list[list[str]]) -> None:
    tokenizer = build_tokenizer(["the dog on the left", "[12, 7, 255]"], 700)
    grammar = AnswerGrammar.from_texts(tokenizer, slots)
    draw = random.Random(1)
    for _ in range(50):
        values = [draw.randrange(256) for _ in range(3)]
        text = "".join(slot[v] for slot, v in zip(slots, values, strict=True))
        assert grammar.tokens_of(values) == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_tokenizer_with_digits_and_a_space_in_front() -> None:
    tokenizer = digit_tokenizer()
    grammar = AnswerGrammar.from_texts(tokenizer, RGB)
    assert grammar.tokens_of([7, 0, 255])[0] == 14
    assert tokenizer.decode(grammar.tokens_of([7, 0, 255])).strip() == "[7,0,255]"


def test_walking_the_automaton() -> None:
    tokenizer = digit_tokenizer()
    grammar = AnswerGrammar.from_texts(tokenizer, RGB)

    def allowed(text: str, end: int | None = None) -> str:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return "".join(sorted(tokenizer.convert_ids_to_tokens(grammar.allowed_after(ids, end))))

    assert allowed("") == "▁["
    assert allowed("[") == "0123456789"
    assert allowed("[0") == ","
    assert allowed("[2") == ",0123456789"
    assert allowed("[25") == ",012345"
    assert allowed("[26") == ","
    assert allowed("[255") == ","
    assert allowed("[1,2,3") == "0123456789]"
    assert allowed("[1,2,3]") == ""
    assert grammar.allowed_after(grammar.tokens_of([1, 2, 3]), 99) == [99]
    with pytest.raises(ValueError, match="is not one of"):
        grammar.allowed_after(tokenizer("[,", add_special_tokens=False)["input_ids"])


def test_forced_tokens_form_runs() -> None:
    tables = AnswerGrammar([[(1, 2, 3), (1, 2, 4)], [(5, 6)]]).tables
    assert tables.run[0, : tables.run_length[0]].tolist() == [1, 2]
    after = int(tables.following[tables.run_end[0], tables.tokens.tolist().index(3)])
    assert tables.run[after, : tables.run_length[after]].tolist() == [5, 6]
    assert tables.run_values[after].tolist() == [-1, 0]
    assert int(tables.run_end[after]) == len(tables.allowed) - 1


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([], "at least one slot"),
        ([[(1,)], []], "at least one text"),
        ([[()]], "without tokens"),
        ([[(1,), (1, 2)]], "begin"),
        ([[(1,), (1,)]], "begin"),
    ],
)
def test_grammars_that_cannot_be_walked(slots: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerGrammar(slots)


def test_texts_that_change_each_others_tokens() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ba": 2}, merges=[("b", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    with pytest.raises(ValueError, match="change the tokens of another"):
        AnswerGrammar.from_texts(fast, [["a", "b"], ["b", "a"]])
