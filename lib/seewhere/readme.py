"""The parts of the README that are made, not written: picture, notebook index, numbers and tree.

Each stands between two comments, ``<!-- name:begin -->`` and ``<!-- name:end -->``; everything else is left alone. The
numbers come from notebooks/results.json only, so the README cannot say what no notebook found.
"""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat

from seewhere import claims, results, storage

PARTS = ("picture", "notebooks", "results", "tree")
PICTURE_TAG, PICTURE_FILE = "readme-picture", "readme_picture.png"


def parts(root: Path) -> dict[str, str]:
    """The made parts of the README of the checkout at `root`: name -> Markdown."""
    entries = results.read(root / "notebooks" / "results.json")
    return {
        "picture": _picture(root),
        "notebooks": notebook_index(root / "notebooks"),
        "results": results_table(entries),
        "tree": tree(root),
    }


@dataclass(frozen=True, slots=True)
class Picture:
    """What the README shows first: a cell of a notebook, the words for those who cannot see it, and the PNG."""

    notebook: str
    cell: int
    text: str
    png: bytes


def picture(folder: Path) -> Picture | None:
    """The picture that the one cell tagged ``readme-picture`` in a folder of notebooks shows; None without such a cell.

    The cell's metadata holds the words: ``{"tags": ["readme-picture"], "seewhere": {"text": "..."}}``.

    Raises:
        ValueError: several cells with the tag, one without words, or one whose committed output is no picture.
    """
    paths = sorted(folder.glob("[0-9]*.ipynb"))
    tagged = [
        (path.stem, number, cell)
        for path in paths
        for number, cell in enumerate(nbformat.read(path, 4).cells)
        if PICTURE_TAG in cell.metadata.get("tags", [])
    ]
    if not tagged:
        return None
    places = ", ".join(f"{stem} cell {number}" for stem, number, _ in tagged)
    if len(tagged) > 1:
        raise ValueError(f"expected the tag {PICTURE_TAG!r} on one cell, got it on {places}")
    stem, number, cell = tagged[0]
    words = str(cell.metadata.get("seewhere", {}).get("text", "")).strip()
    if not words:
        raise ValueError(f"{places} has the tag {PICTURE_TAG!r} and no words: add metadata seewhere.text")
    shown = [o.data["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    if not shown:
        raise ValueError(f"{places} has the tag {PICTURE_TAG!r} and shows no picture; execute it: make refresh")
    return Picture(stem, number, words, base64.b64decode(shown[0]))


def _picture(root: Path) -> str:
    found = picture(root / "notebooks")
    return f"![{found.text}](notebooks/{PICTURE_FILE})" if found else ""


def notebook_index(folder: Path) -> str:
    """A table of the notebooks: title (its first heading), time and what there is to see (its metadata)."""
    lines = ["| notebook | minutes | what you will see |", "| --- | --- | --- |"]
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, 4)
        about = notebook.metadata.get("seewhere", {})
        title = _title(notebook) or path.stem
        lines.append(
            f"| [{path.stem}](notebooks/{path.name}) | {about.get('minutes', '')} "
            f"| {' '.join(filter(None, [f'**{title}**', about.get('shows', '')]))} |"
        )
    return "\n".join(lines)


ROOMS = (
    ("notebooks/", "the notebooks, with their outputs, and results.json: every number in one place"),
    ("data_cards/", "one card per data set: source, licence, layout, counts, traps"),
    ("tests/", "mirrors lib/; notebooks, browser and benchmarks in folders of their own"),
    ("lib/seewhere/", "the library"),
)


def tree(root: Path) -> str:
    """The layout as text: the rooms of the checkout, then modules and packages, each with its first sentence."""
    lines = [f"{name:<22}{says}" for name, says in ROOMS if (root / name).exists()]
    package = root / "lib" / "seewhere"
    for path in sorted(package.iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if path.name[0] not in "._" and source.suffix == ".py" and source.is_file():
            name = f"{path.name}/" if path.is_dir() else path.name
            lines.append(f"  {name:<20}{_first_sentence(source)}")
    return "\n".join(["```", *lines, "```"])


def _first_sentence(source: Path) -> str:
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\w)\.(?:\s|$)", docstring.split("\n\n")[0].replace("\n", " "))[0]


def _title(notebook: nbformat.NotebookNode) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE)
            if found:
                return found.group(1).strip()
    return ""


def examined_claims(entries: list[results.Record]) -> tuple[str, ...]:
    """The claims of the notebooks that have any record, in the ledger's order."""
    notebooks = {entry["notebook"] for entry in entries}
    return tuple(number for number, claim in claims.CLAIMS.items() if claim.notebook in notebooks)


def results_table(entries: list[results.Record]) -> str:
    """The claims with the paper's numbers, ours with intervals, and the verdicts, as a Markdown table.

    Each metric of a claim has a row of its own. How the weights were trained stands once, below.
    """
    lines = ["| claim | measured | the paper | here | verdict |", "| --- | --- | --- | --- | --- |"]
    for number in examined_claims(entries):
        claim = claims.CLAIMS[number]
        first = f"**{number}** {claim.text}"
        verdict = str(claims.verdict(number, entries))
        for metric in dict.fromkeys(condition.metric for condition in claim.conditions):
            printed = [f"{claims.written(p.value, p.unit)} {p.label}" for p in claim.printed if p.metric == metric]
            ours = [_ours(entry) for entry in results.select(entries, claim=number) if entry["metric"] == metric]
            words = metric.replace("p_at_1", "P@1").replace("_", " ").replace("re ratio", "error ratio")
            lines.append(f"| {first} | {words} | {'<br>'.join(printed)} | {'<br>'.join(ours)} | {verdict} |")
            first = verdict = ""
    return "\n".join([*lines, "", _footnote(entries)]).rstrip()


def _footnote(entries: list[results.Record]) -> str:
    """Presets, trainings and prompts behind the table, each named once."""
    judged = [entry for entry in entries if entry["claim"]]
    parts = [f"Preset: {', '.join(sorted({entry['preset'] for entry in judged}))}."] if judged else []
    for notebook in sorted({entry["notebook"] for entry in judged}):
        for name, word in zip(results.ABOUT_ALL, ("Trained", "Asked"), strict=True):
            said = [e["setting"].get(name) for e in judged if e["notebook"] == notebook]
            if known := list(dict.fromkeys(filter(None, said))):
                parts.append(f"{word}, in {notebook.split('_')[0]}: {'; '.join(known)}.")
    return " ".join(parts)


# Settings that may be equal to others or say little alone.
NAMED = (
    "detector",
    "llm",
    "better",
    "frozen_accuracy",
    "unfrozen_accuracy",
    "layer",
    "last",
    "probe_layers",
    "p",
    "over",
)


def _ours(entry: results.Record) -> str:
    known = {key: value for key, value in entry["setting"].items() if key not in results.ABOUT_ALL}
    setting = ", ".join(f"{key} {value}" if key in NAMED else str(value) for key, value in known.items())
    return " ".join(filter(None, [claims.measured(entry), setting, f"(n = {entry['n']})"]))


def fill(text: str, made: Mapping[str, str]) -> str:
    """`text` with each part of `made` put between its two comments.

    Raises:
        ValueError: a part whose comments are not there exactly once.
    """
    for name, content in made.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"expected the comments {begin} and {end} once each, in this order")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{content}{chr(10) if content else ''}{end}{rest.split(end)[1]}"
    return text


def update(path: Path) -> bool:
    """Make the parts of a README anew; True when it changed.

    Raises:
        ValueError: as `fill`. FileNotFoundError: no README.
    """
    before = path.read_text(encoding="utf-8")
    after = fill(before, parts(path.parent))
    if after != before:
        storage.atomic_write_text(path, after)
    return after != before
