"""Every notebook from its first cell to its last, with the smallest preset."""

import re
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from chat_server import Server
from seewhere import parameters, presets, results, runs
from seewhere.world import export
from tiny_blip import write_blip2, write_instructblip, write_vilt

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
MEGABYTE = 2**20


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_with_the_preset_smoke(path: Path, tmp_path: Path) -> None:
    run = runs.execute(path, {"preset": "smoke"}, tmp_path, progress=False)
    assert run.state == runs.DONE, run.error
    for entry in results.read(run.folder / "results.json"):
        assert entry["preset"] == "smoke" and entry["notebook"] == path.stem


@pytest.mark.notebook
def test_resamplers_of_the_real_classes_go_through_the_probing_notebook(tmp_path: Path) -> None:
    """By folder, as BLIP-2 and InstructBLIP from the hub would: same classes, tiny and random."""
    folders = [str(write_blip2(tmp_path / "tiny-blip2")), str(write_instructblip(tmp_path / "tiny-instructblip"))]
    values = {"preset": "smoke", "resamplers": " ".join(folders), "ask": folders[1]}
    run = runs.execute(FOLDER / "01_probing_resamplers.ipynb", values, tmp_path, progress=False)
    assert run.state == runs.DONE, run.error
    found = {entry["setting"].get("resampler") for entry in results.read(run.folder / "results.json")}
    assert {"blip-2 (tiny-blip2)", "instructblip (tiny-instructblip)"} <= found


@pytest.mark.notebook
def test_files_in_the_published_layouts_and_a_baseline_trained_as_a_whole_go_through_it(tmp_path: Path) -> None:
    """RefCOCOg's and VSR's files, written from the world, are read through the parameters that real ones would take."""
    world, root = export.build(preset="smoke"), tmp_path / "published"
    shutil.copytree(world / "vsr", root / "vsr")
    (root / "refcocog").mkdir()
    shutil.copy(world / "refer" / "refcocog" / "instances.json", root / "refcocog")
    shutil.copy(world / "refer" / "refcocog" / "refs(world).p", root / "refcocog" / "refs(umd).p")
    folder = write_vilt(tmp_path / "tiny-vilt")
    values = {"preset": "smoke", "resamplers": "micro-blip2", "fine_tuned": str(folder), "data_root": str(root),
              "data": "refcocog", "images": str(world / "images"), "vsr_root": str(root), "vsr": "zeroshot",
              "vsr_images": str(world / "images")}  # fmt: skip
    run = runs.execute(FOLDER / "01_probing_resamplers.ipynb", values, tmp_path, progress=False)
    assert run.state == runs.DONE, run.error
    table = pd.read_csv(run.folder / "predictions.csv")
    trained = table[(table.resampler == "vilt") & (table.arm == "unfrozen")]
    assert set(trained.task) == {"rec", "vsr", "rcm"}
    assert set(table[table.task == "rec"].source) == {"refcocog"}


@pytest.mark.notebook
def test_a_resampler_without_attention_and_one_without_weights_go_through_it_too(tmp_path: Path) -> None:
    values = {"preset": "smoke", "resamplers": "micro-patches micro-perceiver"}
    run = runs.execute(FOLDER / "01_probing_resamplers.ipynb", values, tmp_path, progress=False)
    assert run.state == runs.DONE, run.error


@pytest.mark.notebook
def test_a_served_language_model_goes_through_the_wrapper_notebook(tmp_path: Path, server: Server) -> None:
    server.text = "0"
    run = runs.execute(
        FOLDER / "02_llm_wrapper.ipynb", {"preset": "smoke", "llm": server.address}, tmp_path, progress=False
    )
    assert run.state == runs.DONE, run.error
    table = pd.read_csv(run.folder / "predictions.csv")
    assert (table.training == "as served").any() and server.requests
    assert not [entry for entry in results.read(run.folder / "results.json") if entry["claim"]]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_parameters_are_literals_with_a_preset_and_a_seed(path: Path) -> None:
    known = parameters.known_parameters(path)
    assert {"preset", "seed"} <= known.keys() and known["preset"].default == "quick"
    assert [name for name, entry in known.items() if not entry.help] == [], "every parameter has a comment"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_committed_outputs_are_small_whole_and_free_of_noise(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    assert path.stat().st_size < 1.5 * MEGABYTE
    assert "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    text = path.read_text(encoding="utf-8")
    assert "widget-view+json" not in text and "injected-parameters" not in text
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1)), "execute it from top to bottom: make refresh"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_more_prose_than_code(path: Path) -> None:
    cells = nbformat.read(path, 4).cells
    prose = sum(len(cell.source) for cell in cells if cell.cell_type == "markdown")
    code = sum(len(cell.source) for cell in cells if cell.cell_type == "code")
    assert prose > code
    assert cells[0].cell_type == "markdown" and cells[0].source.splitlines()[0].rstrip().endswith("?")


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if "settings.seeds" in path.read_text()], ids=lambda p: p.stem
)
def test_two_seeds_share_no_draw(path: Path) -> None:
    """With ``seed + number`` the seeds 0 and 1 of a sweep would have two of three draws in common."""
    assert "10 * seed + number for number in settings.seeds" in path.read_text(encoding="utf-8") or "02" in path.stem
    assert all(preset_seeds(name, path) < 10 for name in presets.NAMES)


def preset_seeds(name: str, path: Path) -> int:
    return max(presets.load(name, path.stem).seeds)


def test_the_tour_leads_to_every_notebook() -> None:
    table = nbformat.read(FOLDER / "00_tour.ipynb", 4).cells[0].source
    assert [path.name for path in NOTEBOOKS[1:] if f"]({path.name})" not in table] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_committed_outputs_are_the_same_on_any_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r" at 0x[0-9a-f]{6,}|site-packages/.*Warning", text)
