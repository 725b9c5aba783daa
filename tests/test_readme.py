import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from seewhere import claims, cli, presets, readme, results, runs

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_made_parts_are_up_to_date() -> None:
    """After a change of notebooks, results or modules: seewhere refresh --readme-only."""
    assert readme.fill(TEXT, readme.parts(ROOT)) == TEXT


def test_the_picture_is_the_output_of_the_tagged_cell() -> None:
    """It makes the point of the collection, so it comes from the notebook that makes it: candidates, choices, truth."""
    found, file = readme.picture(ROOT / "notebooks"), ROOT / "notebooks" / readme.PICTURE_FILE
    assert file.exists() == (found is not None), "seewhere refresh --readme-only"
    if found is not None:
        assert found.notebook == "02_llm_wrapper" and file.read_bytes() == found.png
        source = nbformat.read(ROOT / "notebooks" / f"{found.notebook}.ipynb", 4).cells[found.cell].source
        assert "expression_panels" in source
        assert all(word in found.text for word in ("candidates", "detector", "language model", "truth"))


def test_a_claim_has_a_row_per_metric_and_trainings_stand_once() -> None:
    def entry(metric: str, training: str) -> results.Record:
        return results.record("02_llm_wrapper", metric, 5, claim="F10", low=1, high=9, n=7, seeds=[0], preset="quick",
                              setting={"llm": "micro", "training": training})  # fmt: skip

    metrics = [condition.metric for condition in claims.CLAIMS["F10"].conditions]
    table = readme.results_table([entry(metric, "ten questions") for metric in metrics])
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    own = rows[[row.startswith("| **F10**") for row in rows].index(True) :][: len(metrics)]
    assert all(row.count("+5.0 [1.0, 9.0] llm micro (n = 7)") == 1 for row in own)
    assert [row.startswith("|  |") for row in own] == [False] + [True] * (len(metrics) - 1)
    assert table.count("ten questions") == 1 and table.endswith("Trained, in 02: ten questions.")


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", TEXT)
    assert len(links) >= 6
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


def test_the_index_holds_every_notebook_with_its_title() -> None:
    index = readme.notebook_index(ROOT / "notebooks")
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert f"(notebooks/{path.name})" in index
        assert readme._title(nbformat.read(path, 4)), f"{path.name} has no heading"


def test_the_tree_names_every_module_and_each_says_why_it_exists() -> None:
    tree = readme.tree(ROOT)
    package = ROOT / "lib" / "seewhere"
    modules = [path.stem for path in package.glob("*.py") if path.stem != "__init__"]
    packages = [path.parent.name for path in package.glob("*/__init__.py")]
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in tree.splitlines() if not line.startswith("```")}
    assert {f"{name}.py" for name in modules} | {f"{name}/" for name in packages} <= lines.keys()
    assert [name for name, said in lines.items() if not said] == []


def test_commands_exist() -> None:
    shell = "\n".join(blocks("sh")) + "\n" + "\n".join(re.findall(r"`([^`\n]+)`", TEXT))
    targets = set(re.findall(r"\bmake ([a-z-]+)", shell))
    assert {"notebooks", "test", "lab"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
    commands = set(re.findall(r"\bseewhere ([a-z-]+)", shell))
    assert {"run", "sweep", "compare", "claims", "doctor"} <= commands <= cli.COMMANDS.keys()


def test_the_shown_calls_are_understood() -> None:
    calls = [line.split("#")[0].split() for line in "\n".join(blocks("sh")).splitlines() if line.startswith("seewhere")]
    assert len(calls) >= 4
    for call in calls:
        if all(map(cli.is_present, cli.COMMANDS[call[1]].modules)):
            parsed = cli.build_parser(call[1:]).parse_args(call[1:])
            assert getattr(parsed, "handler", None) or getattr(parsed, "run", None), call


def test_the_shown_detector_is_a_detector() -> None:
    from PIL import Image
    from seewhere.models.protocols import Grounder

    (code,) = [block for block in blocks("python") if "make_candidates" in block]
    scope: dict[str, type] = {}
    exec(code, scope)
    detector = scope["LeftHalf"]()
    assert isinstance(detector, Grounder)
    (found,) = detector.ground([Image.new("RGB", (20, 10))], ["a dog"])
    assert found.xyxy.tolist() == [[0, 0, 10, 10]]


def test_presets_are_named() -> None:
    assert all(f"`{name}`" in TEXT for name in presets.NAMES)


def test_every_number_of_the_table_is_a_record() -> None:
    entries = results.read(ROOT / "notebooks" / "results.json")
    table = TEXT.split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0]
    shown = [float(number) for number in re.findall(r"([+-]\d+\.\d|\d+\.\d %) ?\[", table.replace(" %", ""))]
    known = {round(entry["value"], 1) for entry in entries}
    assert set(shown) <= known
    examined = readme.examined_claims(entries)
    assert {entry["claim"] for entry in entries} - {None} <= set(examined)
    for number in examined:
        assert str(claims.verdict(number, entries)) in table


def test_results_come_from_notebooks_that_exist() -> None:
    entries = results.read(ROOT / "notebooks" / "results.json")
    stems = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {entry["notebook"] for entry in entries} <= stems
    assert {entry["claim"] for entry in entries} - {None} <= claims.CLAIMS.keys()


def test_filling_needs_the_comments_once() -> None:
    assert readme.fill("a <!-- x:begin -->old<!-- x:end --> b", {"x": "new"}) == (
        "a <!-- x:begin -->\nnew\n<!-- x:end --> b"
    )
    for wrong in ("", "<!-- x:end --><!-- x:begin -->", "<!-- x:begin --><!-- x:begin --><!-- x:end -->"):
        with pytest.raises(ValueError, match="x:begin"):
            readme.fill(wrong, {"x": "new"})


def test_notebooks_folder_of_the_checkout_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SEEWHERE_NOTEBOOKS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert runs.notebooks_folder() == ROOT / "notebooks"


def test_help_of_make_names_its_targets() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target}" in said for target in ("notebooks", "lab", "test", "test-fast", "bench", "refresh"))
