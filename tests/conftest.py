"""Fixtures that several folders of tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from chat_server import Server, serving

NotebookMaker = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for data, caches and runs."""
    folder = tmp_path / "home"
    monkeypatch.setenv("SEEWHERE_HOME", str(folder))
    monkeypatch.delenv("SEEWHERE_RUN_DIR", raising=False)
    return folder


@pytest.fixture
def make_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookMaker:
    """Makes tiny notebooks in a folder of their own: ``make_notebook("01_x", "seed = 0", ("print(seed)",))``."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setenv("SEEWHERE_NOTEBOOKS", str(folder))

    def make(stem: str, parameters: str = "", code: tuple[str, ...] = (), title: str = "A question?") -> Path:
        notebook = nbformat.v4.new_notebook()
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        cell = nbformat.v4.new_code_cell(parameters)
        cell.metadata["tags"] = ["parameters"]
        notebook.cells = [nbformat.v4.new_markdown_cell(f"# {title}"), cell, *map(nbformat.v4.new_code_cell, code)]
        for number, each in enumerate(notebook.cells):
            each["id"] = f"cell-{number}"
        path = folder / f"{stem}.ipynb"
        nbformat.write(notebook, path)
        return path

    return make


@pytest.fixture
def server() -> Iterator[Server]:
    """A chat server of OpenAI's interface."""
    with serving() as running:
        yield running
