"""Many runs of one notebook over a grid of parameters, and the table that compares them.

Each point of the grid is a process of its own that builds its run folder aside and renames it when finished, so killing
a sweep at any moment loses at most the points in progress. The next call skips what is done and retries what failed.
joblib spreads the points over this machine, or over a Ray or Dask cluster that shares its file system.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seewhere import parameters, runs, storage

if TYPE_CHECKING:
    import pandas as pd

BACKENDS = ("loky", "ray", "dask")
Point = dict[str, Any]


def split_values(written: str) -> list[str]:
    """``"0,1,2"`` -> its parts; commas inside brackets or quotes do not split: ``"[0,1],[2]"`` are two values."""
    parts, depth, quote, current = [], 0, "", ""
    for letter in written:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "[({") - (letter in "])}") if not quote else 0
        if letter == "," and depth == 0 and not quote:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [part.strip() for part in [*parts, current] if part.strip()]


def grid(notebook: Path, axes: Iterable[str], fixed: Iterable[str] = ()) -> list[Point]:
    """All combinations of ``["seed=0,1,2", "llm=micro,smollm2"]`` with the `fixed` parameters, typed and checked.

    Raises:
        ParameterError: unknown names, values of the wrong type, an axis without values, or one given twice.
    """
    known = parameters.known_parameters(notebook)
    listing = parameters.listing(notebook, known)
    values: dict[str, list[Any]] = {}
    for axis in axes:
        name, sign, written = axis.partition("=")
        name = name.strip()
        if not sign or not split_values(written):
            raise parameters.ParameterError(f"expected name=value,value,..., got {axis!r}\n{listing}")
        if name not in known or name in values:
            problem = "given twice" if name in values else "unknown"
            raise parameters.ParameterError(f"parameter {name!r} is {problem}\n{listing}")
        values[name] = [parameters.read_value(part, known[name], listing) for part in split_values(written)]
    base = parameters.parse(notebook, fixed)
    if values.keys() & base.keys():
        shared = ", ".join(values.keys() & base.keys())
        raise parameters.ParameterError(f"both an axis (-g) and fixed (-p): {shared}")
    return [base | dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def sweep(
    notebook: Path, points: Sequence[Point], out: Path | None = None, jobs: int = 1, backend: str = "loky"
) -> list[runs.Run]:
    """Run the points that are not done yet, `jobs` at a time.

    Args:
        notebook: path of the .ipynb file.
        points: parameter values of each point.
        out: folder that holds the runs (default: `storage.runs_home()`).
        jobs: points at a time.
        backend: ``loky`` (this machine), ``ray`` or ``dask`` (a cluster; see the extra `scale`). dask's scheduler is
            that of $DASK_SCHEDULER_ADDRESS, or one of its own on this machine.

    Returns:
        One run per point, in their order; those that were skipped have 0 seconds.

    Raises:
        ValueError: unknown backend, or its package is not installed.
    """
    from joblib import Parallel, delayed, parallel_config
    from joblib.parallel import get_active_backend
    from tqdm.auto import tqdm

    _register_backend(backend)
    folders = [runs.run_folder(notebook, point, out) for point in points]
    waiting = [position for position, folder in enumerate(folders) if not is_done(folder)]
    finished = {
        position: runs.Run(folder, runs.DONE, 0.0)
        for position, folder in enumerate(folders)
        if position not in set(waiting)
    }
    calls = (delayed(run_point)(str(notebook), points[position], str(out) if out else None) for position in waiting)
    with parallel_config(backend=backend, n_jobs=jobs):
        # Some backends, ray's among them, hand all results over at the end and not one by one.
        one_by_one = get_active_backend()[0].supports_return_generator
        stream = Parallel(return_as="generator" if one_by_one else "list")(calls)
        for position, run in zip(waiting, tqdm(stream, total=len(waiting), desc="points"), strict=True):
            finished[position] = run
    return [finished[position] for position in range(len(points))]


def is_done(folder: Path) -> bool:
    """Whether a run's folder holds a run that came to its end; a failed one is not done."""
    state = runs.status(folder)
    return state is not None and state["state"] == runs.DONE


def _register_backend(backend: str) -> None:
    try:
        if backend == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        elif backend == "dask":
            from dask.distributed import Client

            _connect(Client)
        elif backend != "loky":
            raise ValueError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    except ImportError as error:
        raise ValueError(
            f"backend {backend!r} needs a package that is missing: pip install 'seewhere[scale]'"
        ) from error


def _connect(client: Any) -> None:
    """Use dask's connected client; else connect to $DASK_SCHEDULER_ADDRESS, or to a cluster on this machine."""
    try:
        client.current(allow_global=True)
    except ValueError:
        connected = client()
        print(f"dask: {connected}")


def run_point(notebook: str, point: Point, out: str | None) -> runs.Run:
    """One point in a process of its own: a kernel that takes its process down takes only this point."""
    order = json.dumps({"notebook": notebook, "values": point, "out": out})
    command = [sys.executable, "-m", "seewhere.sweeps", order]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    folder = runs.run_folder(Path(notebook), point, Path(out) if out else None)
    try:
        answer = json.loads(process.stdout.strip().splitlines()[-1])
        return runs.Run(folder, answer["state"], answer["seconds"], answer["error"])
    except (IndexError, ValueError, KeyError):
        tail = process.stderr.strip().splitlines()[-1:] or [""]
        return runs.Run(folder, runs.FAILED, 0.0, f"its process ended with code {process.returncode}: {tail[0]}")


def run_order(order: str) -> None:
    """The other end of `run_point`: execute, then print the outcome as the last line."""
    wanted = json.loads(order)
    out = Path(wanted["out"]) if wanted["out"] else None
    run = runs.execute(wanted["notebook"], wanted["values"], out, progress=False)
    print(json.dumps({"state": run.state, "seconds": run.seconds, "error": run.error}))


def collect(notebook: Path, out: Path | None = None) -> pd.DataFrame:
    """Finished runs of a notebook: one row a run, its parameters as columns and its metrics as ``metric:name``.

    Of runs with the same parameters, such as those before and after a change to the notebook or to a preset, the
    latest is taken; ``attrs["older"]`` counts the others.
    """
    import pandas as pd

    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    found = 0
    for path in sorted(((out or storage.runs_home()) / notebook.stem).glob("*/status.json")):
        folder = path.parent
        if not folder.name.startswith(".") and is_done(folder) and (folder / "metrics.json").exists():
            settings = storage.read_json(folder / "settings.json")["parameters"]
            metrics = storage.read_json(folder / "metrics.json")
            row = {name: str(value) if isinstance(value, (list, dict)) else value for name, value in settings.items()}
            row = {"run": folder.name} | row | {f"metric:{name}": value for name, value in metrics.items()}
            started, same = storage.read_json(path).get("started", ""), json.dumps(settings, sort_keys=True)
            if same not in rows or started >= rows[same][0]:
                rows[same] = (started, row)
            found += 1
    frame = pd.DataFrame([row for _, row in rows.values()])
    frame.attrs["older"] = found - len(rows)
    return frame


def compare(frame: pd.DataFrame, over: str = "seed") -> pd.DataFrame:
    """Mean of every metric over the runs that differ only in `over`, with a 95 % t-interval of that mean.

    Args:
        frame: as `collect` gives it.
        over: the parameter that is averaged over.

    Returns:
        One row per setting and metric: the parameters that vary, metric, mean, low, high (none for a single run), runs.
    """
    import pandas as pd

    metrics = [name for name in frame.columns if name.startswith("metric:")]
    settings = [name for name in frame.columns if name not in {"run", over, *metrics}]
    varying = [name for name in settings if frame[name].nunique(dropna=False) > 1]
    groups: Iterable[tuple[Any, pd.DataFrame]] = (
        frame.groupby(settings, dropna=False, sort=True) if settings else [((), frame)]
    )
    rows = []
    for values, group in groups:
        named = dict(zip(settings, values, strict=True))
        for metric in metrics:
            found = group[metric].dropna().to_numpy(dtype=float)
            if len(found):
                summary = mean_interval(found)
                rows.append({name: named[name] for name in varying} | {"metric": metric[7:]} | summary)
    return pd.DataFrame(rows)


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, 95 % t-interval of the mean, and the number of values; no interval from a single one."""
    from scipy import stats

    n, mean = len(values), float(sum(values)) / len(values)
    if n < 2:
        return {"mean": mean, "low": math.nan, "high": math.nan, "runs": n}
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * spread
    return {"mean": mean, "low": mean - half, "high": mean + half, "runs": n}


def register(subparsers: Any) -> None:
    """Add ``seewhere sweep``."""
    parser = subparsers.add_parser(
        "sweep", help="run a notebook over a grid of parameters; finished points are skipped"
    )
    parser.add_argument("notebook", help="number, name or path of a notebook")
    parser.add_argument("-g", "--grid", action="append", default=[], metavar="NAME=A,B,C", required=True)
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="the same for all")
    parser.add_argument("--jobs", type=int, default=1, help="points at a time")
    parser.add_argument("--backend", choices=BACKENDS, default="loky")
    parser.add_argument("--out", type=Path, help="folder for the runs (default: the runs folder of seewhere)")
    parser.set_defaults(handler=main)


def register_compare(subparsers: Any) -> None:
    """Add ``seewhere compare``."""
    parser = subparsers.add_parser("compare", help="runs of a notebook: metrics with means and intervals over seeds")
    parser.add_argument("notebook", help="number, name or path of a notebook")
    parser.add_argument("--over", default="seed", help="the parameter to average over")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: the runs folder of seewhere)")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    parser.set_defaults(handler=main_compare)


def main(arguments: argparse.Namespace) -> int:
    """Run the grid; report what failed, each with its cell. 1 when something failed."""
    notebook = runs.find_notebook(arguments.notebook)
    points = grid(notebook, arguments.grid, arguments.parameter)
    done = sum(is_done(runs.run_folder(notebook, point, arguments.out)) for point in points)
    print(f"{notebook.stem}: {len(points)} points, {done} finished earlier and skipped", flush=True)
    finished = sweep(notebook, points, arguments.out, arguments.jobs, arguments.backend)
    failed = [(point, run) for point, run in zip(points, finished, strict=True) if run.state == runs.FAILED]
    for point, run in failed:
        print(f"failed  {_written(point)}\n        {run.error}\n        {run.folder}", file=sys.stderr)
    print(
        f"{len(points) - len(failed)} of {len(points)} points done; compare them: seewhere compare {arguments.notebook}"
    )
    if failed:
        print(f"{len(failed)} failed and will be tried again by the same command", file=sys.stderr)
    return int(bool(failed))


def _written(point: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in point.items())


def main_compare(arguments: argparse.Namespace) -> int:
    """Print the comparison, and write it as CSV if asked."""
    notebook = runs.find_notebook(arguments.notebook)
    frame = collect(notebook, arguments.out)
    if frame.empty:
        where = (arguments.out or storage.runs_home()) / notebook.stem
        raise ValueError(f"no finished run with metrics in {where}; make some: seewhere run {arguments.notebook}")
    table = compare(frame, arguments.over)
    if frame.attrs["older"]:
        print(f"left out: {frame.attrs['older']} older runs with the parameters of later ones")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if arguments.csv:
        storage.atomic_write_text(arguments.csv, table.to_csv(index=False))
        print(f"written to {arguments.csv}")
    return 0


if __name__ == "__main__":
    run_order(sys.argv[1])
