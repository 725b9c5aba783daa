"""The set-up cell prints the conditions of a run and makes its random numbers repeatable."""

from __future__ import annotations

import io
import warnings

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from seewhere.show import setup


def test_begin_prints_what_a_reader_must_know_and_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = []
    for _ in range(2):
        setup.begin("00_tour", "quick", 7, "2 minutes")
        drawn.append((np.random.random(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    text = capsys.readouterr().out
    for part in ("00_tour", "preset quick", "seed 7", "2 minutes", "device: ", f"torch {torch.__version__}"):
        assert part in text


def test_a_package_that_is_not_there_is_named_as_such() -> None:
    assert setup.versions(("no-such-package-here",))["no-such-package-here"] == "not installed"


def test_pictures_in_a_notebook_are_small_and_still_themselves() -> None:
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (100, 3), dtype=np.uint8)
    image = Image.fromarray(colours[random.integers(0, 100, (64, 64))])
    again = Image.open(io.BytesIO(setup.small_png(image)))
    assert again.mode == "P" and np.array_equal(np.asarray(again.convert("RGB")), np.asarray(image))


def test_a_notebook_shows_figures_and_pictures_once_each() -> None:
    code = "from seewhere.show import setup, figures; setup.begin('n', 'smoke', 0, 'now')\n"
    code += "from PIL import Image; image = Image.new('RGB', (20, 10), 'red')"
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(part) for part in (code, "image", "figures.gallery([image], ['red'])")]
    )
    done = NotebookClient(notebook, timeout=120).execute()
    for cell in done.cells[1:]:
        assert [sorted(output.data) for output in cell.outputs] == [["image/png", "text/plain"]]


def test_a_rare_colour_survives_among_many_frequent_ones() -> None:
    shades = np.linspace(60, 180, 400 * 400 * 3).reshape(400, 400, 3).astype(np.uint8)
    shades[200:206, 200:206] = (255, 0, 255)
    again = np.asarray(Image.open(io.BytesIO(setup.small_png(Image.fromarray(shades)))).convert("RGB")).astype(int)
    assert np.abs(again[203, 203] - (255, 0, 255)).max() < 40


def test_what_packages_tell_their_own_developers_is_not_shown_and_other_warnings_are() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        setup.quieten()
        for module in ("transformers.modeling_utils", "peft", "seewhere.boxes", "transformersish"):
            warnings.warn_explicit("soon", FutureWarning, f"{module}.py", 1, module=module)
        warnings.warn_explicit("odd", UserWarning, "t.py", 1, module="transformers")
    assert [(item.filename, item.category) for item in seen] == [
        ("seewhere.boxes.py", FutureWarning), ("transformersish.py", FutureWarning), ("t.py", UserWarning),
    ]  # fmt: skip


def test_one_thread_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for count, text in ((1, "cpu, 1 thread (no GPU found)"), (2, "cpu, 2 threads (no GPU found)")):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        assert setup.device() == text
