"""Running a notebook so that its numbers can be traced: one folder a run, complete or absent.

The folder holds the executed notebook, the settings as resolved, the versions, the hashes of data and weights, and what
the notebook recorded: metrics, predictions and result records. It is built aside and renamed when it is finished, so a
folder that is there is whole, also after kill -9. papermill does the executing; plain papermill works as well and then
`record` only returns what it was given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import seewhere
from seewhere import parameters, results, storage

if TYPE_CHECKING:
    import pandas as pd

FOLDER_VARIABLE = "SEEWHERE_RUN_DIR"
DONE, FAILED = "done", "failed"
STARTS = 3
"""How often a kernel is started that dies before its first cell."""
_NEVER_STARTED = "Kernel died before replying"  # jupyter_client's words; it has no class for it


class NotebookNotFound(ValueError):
    """No notebook, or more than one, answers to a name; the message lists those that exist."""


class _EarlierRunStaysError(Exception):
    """A finished run is not to be replaced by one that failed."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder, ``done`` or ``failed``, the seconds it took, and where it failed."""

    folder: Path
    state: str
    seconds: float
    error: str = ""


def notebooks_folder() -> Path:
    """The notebooks' folder: ``$SEEWHERE_NOTEBOOKS``, ``notebooks`` here, or the one of the source checkout."""
    configured = os.environ.get("SEEWHERE_NOTEBOOKS")
    if configured:
        return Path(configured)
    here = Path.cwd() / "notebooks"
    return here if here.is_dir() else Path(seewhere.__file__).resolve().parents[2] / "notebooks"


def all_notebooks() -> list[Path]:
    """Every notebook, in the order of their numbers."""
    return sorted(notebooks_folder().glob("[0-9]*.ipynb"))


def lacking_weights(notebook: Path, preset: str) -> list[str]:
    """Return the weights that a notebook's metadata asks for and this package does not carry.

    None at ``smoke``, where untrained models stand in, and at ``paper``, which brings its own.
    """
    if preset in ("smoke", "paper"):
        return []
    about = json.loads(notebook.read_text(encoding="utf-8"))["metadata"].get("seewhere", {})
    weights = Path(seewhere.__file__).parent / "weights"
    return [name for name in about.get("weights", []) if not (weights / name).is_dir()]


def runnable_notebooks(preset: str) -> list[Path]:
    """Every notebook whose weights are here; the others are named, with what they lack."""
    chosen = []
    for path in all_notebooks():
        if lacking := lacking_weights(path, preset):
            print(f"left out  {path.stem}: it reads {', '.join(lacking)}, not in this package (seewhere train --help)")
        else:
            chosen.append(path)
    return chosen


def find_notebook(name: str) -> Path:
    """The notebook called `name`: a path, a stem (``02_llm_wrapper``) or a number (``02`` or ``2``).

    Raises:
        NotebookNotFound: none or several fit; the message lists what there is.
    """
    if name.endswith(".ipynb"):
        if Path(name).is_file():
            return Path(name)
        raise NotebookNotFound(f"no notebook at {name}")
    wanted = name.zfill(2) if name.isdigit() else name
    found = [path for path in all_notebooks() if wanted in (path.stem, path.stem.split("_")[0])]
    if len(found) != 1:
        existing = ", ".join(path.stem for path in all_notebooks()) or "none"
        raise NotebookNotFound(
            f"{len(found)} notebooks called {name!r} in {notebooks_folder()}; there: {existing}. Expected one of them, "
            "its number, or the path of an .ipynb file."
        )
    return found[0]


def key(notebook: Path, values: Mapping[str, Any]) -> str:
    """What makes two runs the same: code, parameters, the preset's settings and the package version. 12 hex digits."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    resolved = parameters.resolve(notebook, values)
    content = [code, resolved, _preset(notebook, resolved), seewhere.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _preset(notebook: Path, resolved: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings that the preset named in the parameters has for a notebook; one of the reader's own needs none."""
    from seewhere import presets

    try:
        return dict(presets.load(str(resolved.get("preset")), notebook.stem))
    except presets.PresetError:
        return None


def run_folder(notebook: Path, values: Mapping[str, Any], out: Path | None = None) -> Path:
    """Where the run of `notebook` with `values` belongs: ``out/02_llm_wrapper/preset-quick_seed-3_<key>``."""
    written = "_".join(f"{name}-{value}" for name, value in values.items()) or "defaults"
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", written).strip("-")[:80]
    return (out or storage.runs_home()) / notebook.stem / f"{label}_{key(notebook, values)}"


def execute(
    notebook: Path | str,
    values: Mapping[str, Any] | None = None,
    out: Path | None = None,
    progress: bool = True,
) -> Run:
    """Run a notebook with `values` for its parameters into a folder of its own.

    An earlier run there is replaced, unless it came to its end and this one does not: then this one's folder has the
    same name and "-failed".

    Args:
        notebook: path of the .ipynb file.
        values: parameter values; those not given keep the notebook's defaults.
        out: folder that holds the runs (default: `storage.runs_home()`).
        progress: show papermill's progress bar.

    Returns:
        The run. A cell that raised makes it ``failed``; the folder is kept, with the executed part of the notebook.

    Raises:
        parameters.ParameterError: unknown or badly typed parameters; nothing is started.
    """
    source = Path(notebook)
    checked = parameters.check(source, values or {})
    target = run_folder(source, checked, out)
    started, clock = datetime.now(UTC), time.monotonic()
    aside = target.with_name(f"{target.name}-failed")
    try:
        with storage.atomic_directory(target, overwrite=True) as folder:
            _write_settings(folder, source, checked)
            error = _papermill(source, folder, checked, progress)
            seconds = time.monotonic() - clock
            _write_hashes(folder)
            state = FAILED if error else DONE
            told = {
                "state": state,
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(seconds, 1),
                **({"error": error} if error else {}),
            }
            storage.atomic_write_json(folder / "status.json", told)
            if error and (status(target) or {}).get("state") == DONE:  # perhaps by another process, meanwhile
                with storage.atomic_directory(aside, overwrite=True) as other:
                    shutil.copytree(folder, other, dirs_exist_ok=True)
                raise _EarlierRunStaysError
    except _EarlierRunStaysError:
        target = aside
    return Run(target, state, seconds, _error_line(error))


def _write_settings(folder: Path, notebook: Path, values: Mapping[str, Any]) -> None:
    resolved = parameters.resolve(notebook, values)
    settings: dict[str, Any] = {
        "notebook": notebook.stem,
        "notebook_sha256": storage.hash_file(notebook),
        "key": key(notebook, values),
        "given": dict(values),
        "parameters": resolved,
        "preset": _preset(notebook, resolved),
    }
    storage.atomic_write_json(folder / "settings.json", settings)
    storage.atomic_write_json(folder / "versions.json", versions())


def versions() -> dict[str, str]:
    """Python, the platform and every installed package with its version."""
    packages = {item.metadata["Name"]: item.version for item in metadata.distributions() if item.metadata["Name"]}
    ordered = dict(sorted(packages.items(), key=lambda item: item[0].lower()))
    return {"python": platform.python_version(), "platform": platform.platform(), **ordered}


def _write_hashes(folder: Path) -> None:
    """Hashes of the shipped weights and of the manifests of built data, beside those that the notebook recorded."""
    package = Path(seewhere.__file__).parent
    weights = {str(path.relative_to(package)): storage.hash_file(path) for path in package.rglob("*.safetensors")}
    home = storage.data_home()
    data = {}
    for place, folders, files in os.walk(home):
        # What another process builds or removes just now has a name with a dot, and may be gone any moment.
        folders[:] = [name for name in folders if not name.startswith(".")]
        path = Path(place) / "manifest.json"
        if path.name in files:
            with suppress(FileNotFoundError):
                data[str(path.relative_to(home))] = storage.hash_file(path)
    recorded = folder / "hashes.json"
    told = storage.read_json(recorded) if recorded.exists() else {}
    hashes = {"weights": weights | told.get("weights", {}), "data": data | told.get("data", {})}
    storage.atomic_write_json(recorded, hashes)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _papermill(notebook: Path, folder: Path, values: Mapping[str, Any], progress: bool) -> dict[str, Any] | None:
    """Execute; the failing cell (its place in the file, its source, the error) or None."""
    from papermill.exceptions import PapermillExecutionError

    try:
        with _environment(FOLDER_VARIABLE, str(folder.resolve())):
            _started(notebook, folder / "notebook.ipynb", values, progress)
    except PapermillExecutionError as error:
        return {
            "cell": error.cell_index,
            "source": error.source,
            "type": error.ename,
            "message": error.evalue,
        }
    except Exception as error:  # the kernel died or the notebook is broken: a failed run like any other
        return {"cell": None, "source": "", "type": type(error).__name__, "message": str(error)}
    return None


def _started(notebook: Path, output: Path, values: Mapping[str, Any], progress: bool) -> None:
    """Execute; anew where the kernel did not come up. Two that start at once may choose the same free ports."""
    import papermill

    for attempt in range(1, STARTS + 1):
        try:
            papermill.execute_notebook(
                str(notebook), str(output), parameters=dict(values), kernel_name="python3", progress_bar=progress
            )
            return
        except RuntimeError as error:
            if _NEVER_STARTED not in str(error):
                raise
            if attempt == STARTS:
                raise RuntimeError(
                    f"{error}, {STARTS} times. Expected a python3 kernel with this environment's ipykernel: see "
                    "whether the notebook opens in JupyterLab and whether memory is left; with --jobs, try fewer."
                ) from error


def _error_line(error: Mapping[str, Any] | None) -> str:
    if not error:
        return ""
    first = next((line for line in error["source"].splitlines() if line.strip()), "")
    return f"cell {error['cell']} ({first.strip()}): {error['type']}: {error['message']}"


def record(
    metrics: Mapping[str, float] | None = None,
    predictions: pd.DataFrame | None = None,
    results: Sequence[Mapping[str, Any]] = (),  # the word that notebooks use; the module is `result_records` below
    data: Mapping[str, Path | str] | None = None,
    weights: Mapping[str, Path | str] | None = None,
) -> dict[str, Any]:
    """Keep what a notebook found, in the folder of its run. Without a run (in JupyterLab) nothing is written.

    May be called several times: metrics and hashes are merged, result records and predictions are appended.

    Args:
        metrics: name -> number; what `seewhere compare` tabulates.
        predictions: one row per question.
        results: records as `seewhere.results.record` makes them.
        data: name -> file (hashed here) or a hash.
        weights: name -> file (hashed here) or a hash.

    Returns:
        ``{"metrics": ..., "results": ..., "folder": path or None}``.

    Raises:
        RecordError: a result record that is not well formed.
    """
    checked = result_records.validate_all(list(results))
    configured = os.environ.get(FOLDER_VARIABLE)
    folder = Path(configured) if configured else None
    if folder is not None:
        hashes = {"data": _hashes(data), "weights": _hashes(weights) | _hashes_of(checked)}
        _append(folder, {k: float(v) for k, v in (metrics or {}).items()}, predictions, checked, hashes)
    return {"metrics": dict(metrics or {}), "results": checked, "folder": folder}


result_records = results  # `record` has an argument of the module's name


def _hashes(files: Mapping[str, Path | str] | None) -> dict[str, str]:
    return {
        name: storage.hash_file(value) if Path(value).is_file() else str(value) for name, value in (files or {}).items()
    }


def _hashes_of(records: Sequence[results.Record]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in records:
        if isinstance(entry["weights"], Mapping):
            found |= entry["weights"]
    return found


def _append(
    folder: Path,
    metrics: dict[str, float],
    predictions: pd.DataFrame | None,
    records: list[results.Record],
    hashes: dict[str, dict[str, str]],
) -> None:
    def earlier(name: str, empty: Any) -> Any:
        return storage.read_json(folder / name) if (folder / name).exists() else empty

    storage.atomic_write_json(folder / "metrics.json", earlier("metrics.json", {}) | metrics)
    storage.atomic_write_json(folder / "results.json", earlier("results.json", []) + records)
    known = earlier("hashes.json", {"data": {}, "weights": {}})
    storage.atomic_write_json(folder / "hashes.json", {kind: known[kind] | hashes[kind] for kind in hashes})
    if predictions is not None:
        import pandas as pd

        path = folder / "predictions.csv"
        parts = [pd.read_csv(path), predictions] if path.exists() else [predictions]
        storage.atomic_write_text(path, pd.concat(parts, ignore_index=True).to_csv(index=False))


def status(folder: Path) -> dict[str, Any] | None:
    """The status of a run's folder, or None when there is no finished run."""
    path = folder / "status.json"
    return storage.read_json(path) if path.is_file() else None


def register(subparsers: Any) -> None:
    """Add ``seewhere run``."""
    parser = subparsers.add_parser("run", help="execute a notebook (or all) with given parameters")
    parser.add_argument("notebook", help="number, name or path of a notebook, or: all")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="repeatable")
    parser.add_argument("--out", type=Path, help="folder for the runs (default: the runs folder of seewhere)")
    parser.set_defaults(handler=main)


def main(arguments: argparse.Namespace) -> int:
    """Run one notebook or all; print where to look. 1 when one failed."""
    chosen = all_notebooks() if arguments.notebook == "all" else [find_notebook(arguments.notebook)]
    if arguments.notebook == "all" and chosen:
        given = dict(assignment.partition("=")[::2] for assignment in arguments.parameter)
        chosen = runnable_notebooks(given.get("preset", "quick"))
    if not chosen:
        raise NotebookNotFound(f"no notebooks in {notebooks_folder()}")
    # All parameters are checked before the first notebook starts.
    planned = [(path, parameters.parse(path, arguments.parameter)) for path in chosen]
    finished = []
    for path, values in planned:
        print(f"{path.stem} {' '.join(arguments.parameter)}", flush=True)
        finished.append(execute(path, values, arguments.out))
    for (path, _), run in zip(planned, finished, strict=True):
        print(f"{run.state:6} {run.seconds:6.0f} s  {path.stem}  {run.folder / 'notebook.ipynb'}")
        if run.error:
            print(f"       {run.error}", file=sys.stderr)
    print("Open them with: jupyter lab   (or: make lab)")
    return int(any(run.state == FAILED for run in finished))
