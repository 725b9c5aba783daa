"""The commands that README and notebooks tell a reader to type: their parameters exist and take these values."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from seewhere import parameters, runs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]


def text_of(page: Path) -> str:
    if page.suffix != ".ipynb":
        return page.read_text(encoding="utf-8")
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def commands(text: str) -> Iterator[list[str]]:
    """Every ``seewhere run``, ``seewhere sweep`` and ``papermill`` with a notebook's name, as its words."""
    for line in re.findall(r"(?:seewhere (?:run|sweep)|papermill) [^\n`]+", text):
        for part in re.split(r"&&|;", line.split(" #")[0]):
            words = shlex.split(part)
            named = len(words) > 1 and re.match(r"\d\d?$|\d\d_|notebooks/", words[1 if words[0] == "papermill" else 2])
            if named:
                yield words


def assignments(words: list[str]) -> tuple[Path, list[str]]:
    """The notebook of a command and its parameters, "name=value" each; a grid gives one for every value."""
    if words[0] == "papermill":
        pairs = [f"{words[i + 1]}={words[i + 2]}" for i, word in enumerate(words) if word == "-p"]
        return ROOT / words[1], pairs
    found = []
    for flag, value in pairwise(words):
        if flag == "-p":
            found.append(value)
        elif flag == "-g":
            name, values = value.split("=", 1)
            found += [f"{name}={one}" for one in values.split(",")]
    return runs.find_notebook(words[2]), found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_parameter_that_is_named_exists_and_takes_the_value(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEWHERE_NOTEBOOKS", str(ROOT / "notebooks"))
    for words in commands(text_of(page)):
        notebook, given = assignments(words)
        parameters.parse(notebook, given)


def test_commands_are_found_where_they_stand() -> None:
    found = [assignments(words) for words in commands(text_of(ROOT / "notebooks" / "02_llm_wrapper.ipynb"))]
    assert ["seed=0", "seed=1", "seed=2", "llm=micro", "llm=smollm2"] in [given for _, given in found]
    assert ["preset=quick", "seed=3"] in [given for _, given in found], "papermill's"
    assert any("names=refcoco refcocog" in given for _, given in found)
    with pytest.raises(parameters.ParameterError, match="unknown parameter 'llms'"):
        parameters.parse(*assignments(shlex.split("seewhere sweep 02 -g llms=micro")))
