import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
import pytest
import seewhere
from seewhere import cli, parameters, results, runs, storage

Maker = Callable[..., Path]
RECORDING = """import pandas as pd
from seewhere import runs, results
entry = results.record("01_tiny", "gain_p_at_1", 5 + seed, claim="F6", low=1, high=99, n=2, seeds=[seed],
                       preset=preset, weights={"model": "abc"})
kept = runs.record(metrics={"hits": 0.5 + seed}, predictions=pd.DataFrame({"phrase": ["a", "b"], "hit": [True, False]}),
                   results=[entry], data={"annotations": "def"})"""


@pytest.fixture
def tiny(make_notebook: Maker, home: Path) -> Path:
    return make_notebook("01_tiny", 'seed = 0\npreset = "quick"', (RECORDING, "print('seed', seed)"))


@pytest.mark.parametrize(("failures", "state"), [(2, "done"), (3, "failed")])
def test_a_kernel_that_does_not_come_up_is_started_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, state: str
) -> None:
    starts = []
    real = papermill.execute_notebook

    def ports_are_taken(*given: object, **named: object) -> object:
        starts.append(1)
        if len(starts) <= failures:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return real(*given, **named)

    monkeypatch.setattr(papermill, "execute_notebook", ports_are_taken)
    run = runs.execute(tiny, {}, tmp_path / "out", progress=False)
    assert run.state == state and len(starts) == 3
    assert ("Kernel died" in run.error) == (state == "failed")


def test_a_run_keeps_everything_that_its_numbers_depend_on(tiny: Path, tmp_path: Path) -> None:
    run = runs.execute(tiny, {"seed": 3}, tmp_path / "out", progress=False)
    assert run.state == "done" and run.folder.parent == tmp_path / "out" / "01_tiny"
    settings = storage.read_json(run.folder / "settings.json")
    assert settings["parameters"] == {"seed": 3, "preset": "quick"} and settings["given"] == {"seed": 3}
    assert settings["notebook_sha256"] == storage.hash_file(tiny)
    assert storage.read_json(run.folder / "versions.json")["numpy"]
    hashes = storage.read_json(run.folder / "hashes.json")
    assert hashes["data"]["annotations"] == "def" and hashes["weights"]["model"] == "abc"
    assert storage.read_json(run.folder / "metrics.json") == {"hits": 3.5}
    assert list(pd.read_csv(run.folder / "predictions.csv").hit) == [True, False]
    assert results.read(run.folder / "results.json")[0]["value"] == 8
    executed = nbformat.read(run.folder / "notebook.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "seed 3\n"
    assert runs.status(run.folder)["state"] == "done"


def test_a_failing_cell_is_named_and_what_ran_before_it_is_kept(make_notebook: Maker, home: Path) -> None:
    path = make_notebook("01_bad", "seed = 0", ("print('before')", "1 / seed"))
    run = runs.execute(path, progress=False)
    assert run.state == "failed" and "1 / seed" in run.error and "ZeroDivisionError" in run.error
    status = runs.status(run.folder)
    assert status["error"]["type"] == "ZeroDivisionError"
    assert "before" in (run.folder / "notebook.ipynb").read_text()
    assert runs.execute(path, {"seed": 1}, progress=False).state == "done"


def test_a_failed_rerun_does_not_replace_a_finished_run(make_notebook: Maker, home: Path, tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    path = make_notebook("01_bad", "seed = 0", ("from pathlib import Path", f"assert not Path({str(flag)!r}).exists()"))
    first = runs.execute(path, progress=False)
    flag.touch()
    second = runs.execute(path, progress=False)
    assert first.state == "done" and second.state == "failed"
    assert runs.status(first.folder)["state"] == "done"  # as it was
    assert second.folder.name == f"{first.folder.name}-failed" and "AssertionError" in second.error
    assert runs.status(second.folder)["error"]["type"] == "AssertionError"
    assert (second.folder / "notebook.ipynb").is_file()
    flag.unlink()
    assert runs.execute(path, progress=False).folder == first.folder


def test_a_run_that_another_process_finished_meanwhile_stays(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    papermill, running, nested = runs._papermill, [], []

    def slow(*arguments: Any) -> Any:
        if running:
            return papermill(*arguments)
        running.append(True)
        nested.append(runs.execute(tiny, progress=False))
        return {"cell": 1, "source": "", "type": "RuntimeError", "message": "out of memory"}

    monkeypatch.setattr(runs, "_papermill", slow)
    failed = runs.execute(tiny, progress=False)
    assert (failed.state, nested[0].state) == ("failed", "done") and failed.folder != nested[0].folder
    assert runs.status(nested[0].folder)["state"] == "done"


def test_folders_that_others_are_building_are_not_hashed(tmp_path: Path, home: Path) -> None:
    for name in ("world", ".world.partial-host-1-x"):
        (storage.data_home() / name).mkdir(parents=True)
        (storage.data_home() / name / "manifest.json").write_text("{}")
    (storage.data_home() / "gone").mkdir()
    (storage.data_home() / "gone" / "manifest.json").symlink_to(tmp_path / "nowhere")
    runs._write_hashes(tmp_path)
    assert list(storage.read_json(tmp_path / "hashes.json")["data"]) == [os.path.join("world", "manifest.json")]


def test_unknown_parameters_start_nothing(tiny: Path, home: Path) -> None:
    with pytest.raises(parameters.ParameterError, match="unknown parameter 'sede'"):
        runs.execute(tiny, {"sede": 3})
    assert not storage.runs_home().exists()


def test_the_key_follows_code_parameters_and_version(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = runs.key(tiny, {"seed": 1})
    assert key == runs.key(tiny, {"seed": 1, "preset": "quick"}) != runs.key(tiny, {"seed": 2})
    monkeypatch.setattr(seewhere, "__version__", "9.9.9")
    assert runs.key(tiny, {"seed": 1}) != key
    monkeypatch.undo()
    notebook = json.loads(tiny.read_text())
    notebook["cells"][0]["source"] = "# Another title"
    tiny.write_text(json.dumps(notebook))
    assert runs.key(tiny, {"seed": 1}) == key
    notebook["cells"][-1]["source"] = "print('other')"
    tiny.write_text(json.dumps(notebook))
    assert runs.key(tiny, {"seed": 1}) != key


def test_notebooks_are_found_by_number_name_and_path(make_notebook: Maker) -> None:
    path = make_notebook("02_wrapper")
    assert [runs.find_notebook(name) for name in ("2", "02", "02_wrapper", str(path))] == [path] * 4
    with pytest.raises(runs.NotebookNotFound, match=r"'07'.*02_wrapper"):
        runs.find_notebook("07")
    with pytest.raises(runs.NotebookNotFound, match="no notebook at"):
        runs.find_notebook("nowhere.ipynb")


def test_recording_outside_a_run_writes_nothing(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert runs.record(metrics={"hits": 1.0}) == {"metrics": {"hits": 1.0}, "results": [], "folder": None}
    assert sorted(tmp_path.rglob("*")) == before


def test_recording_twice_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEWHERE_RUN_DIR", str(tmp_path))
    weights = tmp_path / "w.bin"
    weights.write_bytes(b"abc")
    runs.record(metrics={"a": 1}, predictions=pd.DataFrame({"x": [1]}), weights={"w": weights})
    runs.record(metrics={"b": 2}, predictions=pd.DataFrame({"x": [2]}), data={"d": "hash"})
    assert storage.read_json(tmp_path / "metrics.json") == {"a": 1, "b": 2}
    assert list(pd.read_csv(tmp_path / "predictions.csv").x) == [1, 2]
    assert storage.read_json(tmp_path / "hashes.json") == {
        "data": {"d": "hash"}, "weights": {"w": storage.hash_file(weights)},
    }  # fmt: skip


def test_the_command_runs_all_and_fails_when_one_does(
    tiny: Path, make_notebook: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert cli.main(["run", "all", "-p", "seed=2", "--out", out]) == 0
    assert "01_tiny" in capsys.readouterr().out
    make_notebook("02_bad", "seed = 0", ("undefined_name",))
    assert cli.main(["run", "all", "-p", "seed=2", "--out", out]) == 1
    said = capsys.readouterr()
    assert "undefined_name" in said.err and "failed" in said.out


def test_all_leaves_out_what_lacks_its_weights_and_says_so(
    make_notebook: Maker, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_notebook("01_hungry", 'preset = "quick"', ("1 + 1",))
    notebook = nbformat.read(path, 4)
    notebook.metadata["seewhere"] = {"weights": ["micro-lm", "no-such-weights"]}
    nbformat.write(notebook, path)
    make_notebook("02_frugal", 'preset = "quick"', ("1 + 1",))
    assert cli.main(["run", "all"]) == 0
    said = capsys.readouterr().out
    assert "left out  01_hungry: it reads no-such-weights" in said and "02_frugal" in said
    assert [p.name for p in storage.runs_home().iterdir()] == ["02_frugal"]
    assert cli.main(["run", "all", "-p", "preset=smoke"]) == 0
    assert "left out" not in capsys.readouterr().out


def test_the_command_refuses_an_unknown_parameter_with_the_known_ones(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "01", "-p", "sede=2"]) == 2
    said = capsys.readouterr().err
    assert "unknown parameter 'sede'" in said and "seed = 0  (int)" in said and "preset = 'quick'" in said
