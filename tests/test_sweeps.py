import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from joblib import register_parallel_backend
from joblib.parallel import ThreadingBackend
from seewhere import cli, parameters, runs, storage, sweeps

Maker = Callable[..., Path]
CODE = """from pathlib import Path
from seewhere import runs
with open(log, "a") as stream:
    stream.write(f"{seed}\\n")
import os, time
time.sleep(wait if seed == 2 else 0)
if Path(log).with_name("broken").exists() and seed == 1:
    raise RuntimeError("seed one is broken")
runs.record(metrics={"score": 10.0 * seed + (llm == "big")})"""


@pytest.fixture
def notebook(make_notebook: Maker, home: Path) -> Path:
    return make_notebook("04_sweep", 'seed = 0\nllm = "small"\nlog = ""\nwait = 0', (CODE,))


def test_values_split_outside_brackets_and_quotes() -> None:
    assert sweeps.split_values("0,1,2") == ["0", "1", "2"]
    assert sweeps.split_values("[0,1],[2]") == ["[0,1]", "[2]"]
    assert sweeps.split_values('"a,b",c') == ['"a,b"', "c"]


def test_the_grid_is_typed_and_checked(notebook: Path) -> None:
    points = sweeps.grid(notebook, ["seed=0,1", "llm=small,big"], ["wait=3"])
    assert points == [{"wait": 3, "seed": s, "llm": m} for s in (0, 1) for m in ("small", "big")]
    for axes, fixed, message in (
        (["sede=0"], [], "'sede' is unknown"),
        (["seed=0,x"], [], "seed: expected int"),
        (["seed="], [], "expected name=value,value"),
        (["seed=0", "seed=1"], [], "given twice"),
        (["seed=0"], ["seed=1"], "both an axis"),
    ):
        with pytest.raises(parameters.ParameterError, match=message):
            sweeps.grid(notebook, axes, fixed)


def test_finished_points_are_skipped_and_failed_ones_named_and_tried_again(
    notebook: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, broken = tmp_path / "log", tmp_path / "broken"
    broken.touch()
    call = ["sweep", "04", "-g", "seed=0,1", "-p", f"log={log}", "--jobs", "2", "--out", str(tmp_path / "out")]
    assert cli.main(call) == 1
    said = capsys.readouterr()
    assert "seed=1" in said.err and "seed one is broken" in said.err and "cell" in said.err
    assert sorted(log.read_text().split()) == ["0", "1"]
    broken.unlink()
    assert cli.main(call) == 0
    assert "1 finished earlier" in capsys.readouterr().out
    assert sorted(log.read_text().split()) == ["0", "1", "1"]
    assert cli.main(["compare", "04", "--out", str(tmp_path / "out"), "--csv", str(tmp_path / "table.csv")]) == 0
    table = pd.read_csv(tmp_path / "table.csv")
    assert table.loc[0, "mean"] == 5.0 and table.loc[0, "runs"] == 2


def test_kill_9_loses_only_the_point_in_progress(notebook: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    points = sweeps.grid(notebook, ["seed=0,2,3"], [f"log={log}", "wait=60"])
    first, second, third = (runs.run_folder(notebook, point, out) for point in points)
    words = ["sweep", str(notebook), "-g", "seed=0,2,3", "-p", f"log={log}", "-p", "wait=60", "--out", str(out)]
    program = f"from seewhere.cli import main; main({words!r})"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (log.exists() and "2" in log.read_text().split()):
            assert process.poll() is None and time.monotonic() < deadline, "the sweep never reached its second point"
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert sweeps.is_done(first) and runs.status(first)["state"] == "done"
    assert not second.exists() and not third.exists()
    # The same points without the wait are other points; the first one is still recognised as done.
    before = (first / "status.json").stat().st_mtime_ns
    assert [run.state for run in sweeps.sweep(notebook, points[:1], out)] == ["done"]
    assert (first / "status.json").stat().st_mtime_ns == before
    again = runs.execute(notebook, points[2], out, progress=False)
    assert again.state == "done" and sweeps.is_done(third)


def test_a_kernel_that_dies_is_a_failed_point(make_notebook: Maker, tmp_path: Path, home: Path) -> None:
    path = make_notebook("05_dies", "seed = 0", ("import os; os._exit(9)",))
    (run,) = sweeps.sweep(path, [{"seed": 1}], tmp_path)
    assert run.state == "failed" and run.error


def test_a_dask_cluster_takes_the_points(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dask.distributed import LocalCluster

    points = sweeps.grid(notebook, ["seed=0,2"], [f"log={tmp_path / 'log'}"])
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        found = sweeps.sweep(notebook, points, tmp_path / "out", jobs=2, backend="dask")
    assert [run.state for run in found] == ["done", "done"]
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "2"]


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray where it is installed; it is not locked, so elsewhere a backend that is like its: no results one by one."""
    try:
        import ray
    except ImportError:

        class LikeRay(ThreadingBackend):
            supports_return_generator = False

        stand_in = SimpleNamespace(register_ray=lambda: register_parallel_backend("ray", LikeRay))
        monkeypatch.setitem(sys.modules, "ray.util.joblib", stand_in)
        yield
    else:
        ray.init(num_cpus=2, include_dashboard=False)
        yield
        ray.shutdown()


def test_a_ray_cluster_takes_the_points(notebook: Path, tmp_path: Path, ray_cluster: None) -> None:
    points = sweeps.grid(notebook, ["seed=0,2"], [f"log={tmp_path / 'log'}"])
    found = sweeps.sweep(notebook, points, tmp_path / "out", jobs=2, backend="ray")
    assert [run.state for run in found] == ["done", "done"]
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "2"]


def test_an_unknown_backend_is_refused(notebook: Path) -> None:
    with pytest.raises(ValueError, match="loky, ray, dask"):
        sweeps.sweep(notebook, [], backend="threads")


def test_means_and_intervals_over_seeds() -> None:
    frame = pd.DataFrame(
        {
            "run": list("abcd"), "seed": [0, 1, 2, 0], "llm": ["x", "x", "x", "y"], "fixed": [1] * 4,
            "metric:score": [1.0, 2.0, 3.0, 5.0],
        }
    )  # fmt: skip
    table = sweeps.compare(frame)
    assert list(table.columns) == ["llm", "metric", "mean", "low", "high", "runs"]
    x, y = table.iloc[0], table.iloc[1]
    half = 4.302652729911275 * 1.0 / math.sqrt(3)  # Student's t, 2 degrees of freedom, standard deviation 1
    assert (x["mean"], x["runs"]) == (2.0, 3)
    assert x["low"] == pytest.approx(2 - half) and x["high"] == pytest.approx(2 + half)
    assert (y["mean"], y["runs"]) == (5.0, 1) and math.isnan(y["low"])


def test_unfinished_and_failed_runs_are_not_compared(notebook: Path, tmp_path: Path) -> None:
    for name, state in (("a", "done"), ("b", "failed"), (".c.partial", "done")):
        folder = tmp_path / "04_sweep" / name
        storage.atomic_write_json(folder / "status.json", {"state": state})
        storage.atomic_write_json(folder / "settings.json", {"parameters": {"seed": 0}})
        storage.atomic_write_json(folder / "metrics.json", {"score": 1})
    assert list(sweeps.collect(notebook, tmp_path).run) == ["a"]


def test_of_runs_with_the_same_parameters_the_latest_counts(
    notebook: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed cell or preset gives another folder: the runs before it are no further runs of the same thing."""
    for name, seed, day, score in (("new", 0, 3, 5.0), ("old", 0, 1, 1.0), ("other", 1, 2, 7.0)):
        folder = tmp_path / "04_sweep" / name
        storage.atomic_write_json(folder / "status.json", {"state": "done", "started": f"2026-01-0{day}T00:00:00"})
        storage.atomic_write_json(folder / "settings.json", {"parameters": {"seed": seed, "names": ["a"]}})
        storage.atomic_write_json(folder / "metrics.json", {"score": score})
    frame = sweeps.collect(notebook, tmp_path)
    assert sorted(frame.run) == ["new", "other"] and frame.attrs["older"] == 1
    assert cli.main(["compare", "04", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "left out: 1 older runs" in said and " 6 " in said  # the mean of 5 and 7


def test_compare_without_runs_says_how_to_make_some(notebook: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "04"]) == 2
    assert "seewhere run 04" in capsys.readouterr().err
