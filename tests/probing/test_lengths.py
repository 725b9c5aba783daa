"""Captions longer than a model reads: the claimed cell, at their end, must be read."""

from dataclasses import replace

import pytest
from seewhere.boxes import CELLS
from seewhere.probing.adapter import load_probed
from seewhere.probing.lengths import Reader, readable
from seewhere.probing.rcm import claim
from seewhere.probing.study import Study
from seewhere.probing.tasks import Example, Task
from tiny import TinyEncoded
from tiny_blip import write_blip2, write_vilt

LONG = "the cat to the left of the bus " * 6


class Words:
    """Reads so many words."""

    def __init__(self, name="words", text_length=12):
        self.name, self.text_length = name, text_length

    def count_tokens(self, texts):
        return [len(text.split()) for text in texts]


def cells(*expressions, name="rcm"):
    made = [
        Example(n, None, str(n), text.strip() + claim(CELLS[n]), (1.0,), {"claimed": CELLS[n]})
        for n, text in enumerate(expressions)
    ]
    return Task(name, "binary", "made", {"train": made, "validation": made[:1], "test": made[1:]})


def test_a_long_expression_gives_up_words_and_the_claim_stays(capsys):
    task = cells("a dog", "one two three four five six")
    found = readable(task, [Words()])
    assert found.splits["train"][0] == task.splits["train"][0]  # 11 words
    assert found.splits["train"][1].text == "one two three four" + claim(CELLS[1]) and CELLS[1] == "top"
    assert task.splits["train"][1].text.startswith("one two three four"), "the given task must stay"
    assert found.splits["test"] == found.splits["train"][1:]
    assert capsys.readouterr().out.startswith("rcm: 2 of 4 texts have more tokens than are read (words 12): their expr")


def test_the_shortest_reader_of_all_decides():
    task = cells("a dog", "one two three four five six")
    found = readable(task, [Words(), object(), Words("few", 10)])
    assert [e.text.split(" refers")[0] for e in found.splits["train"]] == ["a", "one two"]
    assert [e.text.split(" refers")[0] for e in readable(task, [Words("none", 3)]).splits["train"]] == ["a", "one"]


def test_other_tasks_keep_their_texts_and_are_counted(capsys):
    task = cells("a dog", "one two three four five six", name="rec")
    assert readable(task, [Words()]).splits == task.splits
    assert "rec: 2 of 4 texts have more tokens than are read (words 12): their end is cut" in capsys.readouterr().out
    assert readable(task, [Words(text_length=20)]) is task and readable(task, [object()]) is task
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("write", "length"), [(write_blip2, 32), (write_vilt, 16)])
def test_real_classes_tell_how_they_read(tmp_path, write, length):
    model = load_probed(write(tmp_path / "model"))
    assert isinstance(model, Reader) and model.text_length == length
    tokenizer = getattr(model, "resampler", getattr(model, "processor", None)).tokenizer
    short, long = "a red dog", LONG
    assert model.count_tokens([short, long]) == [5, len(tokenizer.tokenize(long)) + 2]
    found = readable(cells(short, long), [model]).splits["train"][1]
    assert found.text.endswith(claim(CELLS[1])) and length - 3 <= model.count_tokens([found.text])[0] <= length


@pytest.mark.parametrize("name", ["micro-blip2", "micro-instruct", "micro-perceiver", "micro-patches"])
def test_micro_models_do_too(name):
    model = load_probed(name)
    assert isinstance(model, Reader) and model.count_tokens(["a red dog"])[0] in range(4, 7)


def test_a_study_asks_what_all_its_models_read(capsys):
    tiny = TinyEncoded()
    tiny.text_length, tiny.count_tokens = 12, Words().count_tokens
    whole = cells("a dog", "one two three four five six")
    main = Study(None, {"rcm": whole, "rec": replace(whole, name="rec")}, {"tiny": tiny}, [0])
    assert main.tasks["rcm"].splits == readable(whole, [tiny]).splits != whole.splits
    assert main.tasks["rec"].splits == whole.splits
