"""The committed outputs of the notebooks and the numbers made from them, written back in one step.

``seewhere refresh`` executes every notebook, copies the outputs into the notebook files, and writes results.json and
the README's tables. Only when all notebooks came through is anything written. What a kernel leaves behind and no reader
sees (widget state, execution times, progress bars) is dropped, so that a diff of a notebook shows what changed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from seewhere import parameters, readme, results, runs, storage

WIDGET = "application/vnd.jupyter.widget-view+json"
RESULTS_FILE = "results.json"
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
TABLE_NAME = re.compile(r"\bT_[0-9a-f]{5}(?=[_\"\s#])")
NOISE = ("execution", "papermill", "ExecuteTime", "collapsed")


def clean_outputs(outputs: Sequence[Any]) -> list[Any]:
    """Outputs that a reader without a kernel can see; consecutive text of one stream becomes one output."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream":
            text = _portable(_final_lines(output.text))
            if not text.strip() or (output.name == "stderr" and "%|" in text):
                continue  # a progress bar
            if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                kept[-1].text += text
                continue
            output = nbformat.v4.new_output("stream", name=output.name, text=text)
        elif "data" in output:
            output.data.pop(WIDGET, None)
            output.metadata = nbformat.from_dict({})
            if "text/plain" in output.data:
                output.data["text/plain"] = _portable(output.data["text/plain"])
            if _only_a_description(output):
                continue
        kept.append(output)
    return kept


def _final_lines(text: str) -> str:
    """What is left on a terminal: a carriage return starts its line anew."""
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n")]
    return "\n".join(lines)


def _only_a_description(output: Any) -> bool:
    """A widget's text stands for the widget and says nothing: ``VBox(children=(...``, or a bar of ``tqdm``."""
    if not output.data:
        return True
    text = output.data.get("text/plain", "")
    is_bar = "%|" in text and "/s]" in text
    return set(output.data) == {"text/plain"} and ("(children=" in text or is_bar)


def _portable(text: str) -> str:
    """Text without this machine's folders and memory: the environment is .venv, the home folder ~, addresses go."""
    for place, name in ((sys.prefix, ".venv"), (str(Path.home()), "~")):
        text = text.replace(place, name)
    return ADDRESS.sub("", text)


def _name_tables(outputs: Sequence[Any], names: dict[str, str]) -> None:
    """Give styled tables the names T_00001, T_00002, ... in place of pandas' random ones; `names` remembers them."""
    for output in outputs:
        if "text/html" in output.get("data", {}):
            output.data["text/html"] = TABLE_NAME.sub(
                lambda match: names.setdefault(match[0], f"T_{len(names) + 1:05d}"), output.data["text/html"]
            )


def clean(notebook: Any) -> Any:
    """The same notebook without widget state, times, and outputs that only a kernel can show."""
    notebook.metadata = nbformat.from_dict(
        {name: notebook.metadata[name] for name in ("kernelspec", "seewhere") if name in notebook.metadata}
        | {"language_info": {"name": "python"}}
    )
    number, tables = 0, dict[str, str]()
    for cell in notebook.cells:
        for name in NOISE:
            cell.metadata.pop(name, None)
        cell.metadata.pop("widgets", None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = clean_outputs(cell.outputs)
            _name_tables(cell.outputs, tables)
            if cell.execution_count is not None:
                number += 1
                cell.execution_count = number
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = cell.execution_count
    return notebook


def with_outputs(source: Any, executed: Any) -> Any:
    """`source` with the outputs of `executed`, from which the cell that papermill injects is left out.

    Raises:
        ValueError: the code of the two differs: they are not the same notebook.
    """
    ran = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    ran = [cell for cell in ran if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in ran] != [cell.source for cell in source.cells]:
        raise ValueError("the executed notebook is not of this source: their cells differ. Was it edited meanwhile?")
    for cell, done in zip(source.cells, ran, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return clean(source)


def write_notebook(path: Path, notebook: Any) -> None:
    """Write a notebook, wholly or not at all."""
    storage.atomic_write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def renew_readme(root: Path) -> None:
    """Make the README's parts anew, and its picture from the committed output of the cell that has the tag.

    Raises:
        ValueError: as `readme.picture` and `readme.fill`.
    """
    found = readme.picture(root / "notebooks")
    target = root / "notebooks" / readme.PICTURE_FILE
    if found:
        storage.atomic_write_bytes(target, found.png)
    else:
        target.unlink(missing_ok=True)
    readme.update(root / "README.md")


def refresh(notebooks: Sequence[Path], assignments: Sequence[str] = ()) -> list[str]:
    """Execute `notebooks`, then write outputs, results and README. Returns the failures; with any, nothing is written.

    Raises:
        ParameterError: before anything is started.
    """
    planned = [(path, parameters.parse(path, assignments)) for path in notebooks]
    with tempfile.TemporaryDirectory() as name:
        finished = [(path, runs.execute(path, values, Path(name))) for path, values in planned]
        failures = [f"{path.stem}: {run.error}" for path, run in finished if run.state == runs.FAILED]
        if not failures:
            for path, run in finished:
                _write_back(path, run)
    if not failures and notebooks:
        renew_readme(notebooks[0].parent.parent)
    return failures


def _write_back(path: Path, run: runs.Run) -> None:
    source = with_outputs(nbformat.read(path, 4), nbformat.read(run.folder / "notebook.ipynb", 4))
    source.metadata.setdefault("seewhere", nbformat.from_dict({}))
    source.metadata.seewhere["minutes"] = max(1, round(run.seconds / 60))
    write_notebook(path, source)
    ours = results.read(run.folder / "results.json")
    target = path.parent / RESULTS_FILE
    others = [entry for entry in results.read(target) if entry["notebook"] != path.stem]
    results.write(target, results.merge(others, ours))


def register(subparsers: Any) -> None:
    """Add ``seewhere refresh``."""
    parser = subparsers.add_parser("refresh", help="execute the notebooks, write outputs and numbers back")
    parser.add_argument("notebooks", nargs="*", help="numbers, names or paths (default: all)")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="repeatable")
    parser.add_argument("--readme-only", action="store_true", help="execute nothing, make the README's tables anew")
    parser.set_defaults(handler=main)


def register_clean(subparsers: Any) -> None:
    """Add ``seewhere clean-notebooks``, which pre-commit calls."""
    parser = subparsers.add_parser("clean-notebooks", help="drop what a kernel leaves in notebooks")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.set_defaults(handler=main_clean)


def main(arguments: argparse.Namespace) -> int:
    """Refresh; 1 when a notebook failed (then nothing was written)."""
    if arguments.readme_only:
        renew_readme(runs.notebooks_folder().parent)
        return 0
    chosen = [runs.find_notebook(name) for name in arguments.notebooks] or runs.runnable_notebooks("quick")
    failures = refresh(chosen, arguments.parameter)
    for failure in failures:
        print(f"failed  {failure}")
    print("nothing was written" if failures else f"{len(chosen)} notebooks, results.json and README.md are up to date")
    return int(bool(failures))


def main_clean(arguments: argparse.Namespace) -> int:
    """Clean notebooks in place; 1 when one was changed, as pre-commit expects."""
    changed = []
    for path in arguments.notebooks:
        before = path.read_text(encoding="utf-8")
        write_notebook(path, clean(nbformat.reads(before, 4)))
        if path.read_text(encoding="utf-8") != before:
            changed.append(path)
            print(f"cleaned {path}")
    return int(bool(changed))
