import base64
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from seewhere import cli, readme, refresh, results

Maker = Callable[..., Path]
PIXEL = base64.b64encode(b"\x89PNG picture").decode()
RECORDING = """from seewhere import runs, results
runs.record(results=[results.record("02_llm_wrapper", "gain_p_at_1", 5 + seed, claim="F6", low=1, high=99, n=2,
                                    seeds=[seed], preset=preset)])
print("seed", seed)"""
README = "".join(f"<!-- {part}:begin -->\n<!-- {part}:end -->\n" for part in readme.PARTS)


def output(kind: str, **data: str) -> nbformat.NotebookNode:
    names = {"widget": refresh.WIDGET, "text": "text/plain", "png": "image/png", "html": "text/html"}
    return nbformat.v4.new_output(kind, data={names[name]: value for name, value in data.items()})


def stream(text: str, name: str = "stdout") -> nbformat.NotebookNode:
    return nbformat.v4.new_output("stream", name=name, text=text)


def test_what_a_reader_cannot_see_is_dropped_and_the_rest_kept() -> None:
    kept = refresh.clean_outputs(
        [
            output("display_data", widget="{}", text="VBox(children=(IntSlider(value=0),))"),
            output("display_data", widget="{}", text="  0%|          | 0/10 [00:00<?, ?it/s]"),
            output("display_data", widget="{}", text="picture", png=PIXEL),
            stream("step 1\rstep 2\n"),
            stream("done\n"),
            stream(" 50%|#####     | 5/10 [00:01<00:01]", "stderr"),
            stream("a warning\n", "stderr"),
            output("display_data", text="0.5"),
        ]
    )
    assert [o.output_type for o in kept] == ["display_data", "stream", "stream", "display_data"]
    assert "image/png" in kept[0].data and refresh.WIDGET not in kept[0].data
    assert kept[1].text == "step 2\ndone\n" and kept[2].text == "a warning\n"


def test_cleaning_is_idempotent_and_keeps_the_parameters_tag(make_notebook: Maker) -> None:
    path = make_notebook("01_x", "seed = 0", ("1",))
    notebook = nbformat.read(path, 4)
    notebook.metadata["widgets"] = {"state": {}}
    notebook.cells[1].metadata["execution"] = {"started": "now"}
    notebook.cells[2].execution_count = 17
    nbformat.write(notebook, path)
    assert cli.main(["clean-notebooks", str(path)]) == 1
    cleaned = nbformat.read(path, 4)
    assert "widgets" not in cleaned.metadata and cleaned.cells[1].metadata == {"tags": ["parameters"]}
    assert cleaned.cells[2].execution_count == 1
    assert cli.main(["clean-notebooks", str(path)]) == 0


def test_outputs_numbers_and_readme_are_written_back(make_notebook: Maker, home: Path) -> None:
    path = make_notebook("02_llm_wrapper", 'seed = 0\npreset = "quick"', (RECORDING,), title="Better?")
    root = path.parent.parent
    (root / "README.md").write_text(README)
    (root / "lib" / "seewhere").mkdir(parents=True)
    assert cli.main(["refresh", "-p", "seed=4"]) == 0
    notebook = nbformat.read(path, 4)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code"]
    assert notebook.cells[1].source.startswith("seed = 0")
    assert notebook.cells[2].outputs[0].text == "seed 4\n"
    assert [entry["value"] for entry in results.read(path.parent / "results.json")] == [9]
    said = (root / "README.md").read_text()
    assert "[02_llm_wrapper](notebooks/02_llm_wrapper.ipynb)" in said and "**Better?**" in said
    assert "+9.0 [1.0, 99.0]" in said and "reproduced (1 of 1 clear)" in said
    assert cli.main(["refresh", "-p", "seed=5"]) == 0
    assert [entry["value"] for entry in results.read(path.parent / "results.json")] == [10]


def test_nothing_is_written_when_a_notebook_fails(
    make_notebook: Maker, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_notebook("01_good", "seed = 0", ("print('hello')",))
    make_notebook("02_bad", "seed = 0", ("undefined_name",))
    before = good.read_bytes()
    assert cli.main(["refresh"]) == 1
    assert good.read_bytes() == before and "undefined_name" in capsys.readouterr().out


def test_outputs_of_another_notebook_are_refused(make_notebook: Maker) -> None:
    one = nbformat.read(make_notebook("01_x", "seed = 0", ("1",)), 4)
    two = nbformat.read(make_notebook("02_y", "seed = 0", ("2",)), 4)
    with pytest.raises(ValueError, match="cells differ"):
        refresh.with_outputs(one, two)


def tag(path: Path, text: str = "two boxes", shown: bool = True) -> None:
    notebook = nbformat.read(path, 4)
    notebook.cells[2].metadata.update({"tags": ["readme-picture"], "seewhere": {"text": text}})
    notebook.cells[2].outputs = [output("display_data", png=PIXEL)] if shown else []
    nbformat.write(notebook, path)


def test_the_one_tagged_cell_gives_the_picture_and_its_words(make_notebook: Maker, home: Path) -> None:
    paths = [make_notebook(stem, "seed = 0", ("1",)) for stem in ("01_x", "02_y")]
    folder = paths[0].parent
    (folder.parent / "lib" / "seewhere").mkdir(parents=True)
    page, picture = folder.parent / "README.md", folder / readme.PICTURE_FILE
    page.write_text(README)
    picture.write_bytes(b"of an earlier cell")
    assert readme.picture(folder) is None
    assert cli.main(["refresh", "--readme-only"]) == 0
    assert not picture.exists() and "![" not in page.read_text()
    tag(paths[1])
    assert cli.main(["refresh", "--readme-only"]) == 0
    assert picture.read_bytes() == b"\x89PNG picture"
    assert f"![two boxes](notebooks/{readme.PICTURE_FILE})" in page.read_text()
    found = readme.picture(folder)
    assert found is not None and (found.notebook, found.cell) == ("02_y", 2)
    cli.main(["clean-notebooks", str(paths[1])])
    assert readme.picture(folder) == found


def test_a_tag_that_cannot_be_followed_is_refused(make_notebook: Maker) -> None:
    first, second = (make_notebook(stem, "seed = 0", ("1",)) for stem in ("01_x", "02_y"))
    tag(first)
    tag(second)
    with pytest.raises(ValueError, match="01_x cell 2, 02_y cell 2"):
        readme.picture(first.parent)
    tag(first, "")
    second.unlink()
    with pytest.raises(ValueError, match="no words"):
        readme.picture(first.parent)
    tag(first, shown=False)
    with pytest.raises(ValueError, match="shows no picture"):
        readme.picture(first.parent)


def test_outputs_name_no_address_and_tables_have_steady_names() -> None:
    html = '<style>#T_0a1b2_row0 {}</style><table id="T_0a1b2"><td id="T_0a1b2_row0_col0"></td></table>'
    other = html.replace("0a1b2", "99999")
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("t", outputs=[output("display_data", text="<Styler at 0x7f84f93a>", html=page)])
            for page in (html, other)
        ]
    )
    once = refresh.clean(notebook)
    shown = [cell.outputs[0].data for cell in once.cells]
    assert [data["text/plain"] for data in shown] == ["<Styler>", "<Styler>"]
    assert [data["text/html"] for data in shown] == [html.replace("0a1b2", name) for name in ("00001", "00002")]
    again = refresh.clean(nbformat.from_dict(once))
    assert [cell.outputs[0].data for cell in again.cells] == shown


def test_outputs_name_no_folder_of_the_machine_and_no_progress_bar() -> None:
    outputs = [
        nbformat.v4.new_output(
            "stream", name="stdout", text=f"cache at {Path.home()}/cache, python in {sys.prefix}/bin\n"
        ),
        nbformat.v4.new_output("display_data", {"text/plain": "  0%|          | 0/24 [00:00<?, ?question/s]"}),
    ]
    (kept,) = refresh.clean_outputs(outputs)
    assert str(Path.home()) not in kept.text and sys.prefix not in kept.text
    assert "~/cache" in kept.text and ".venv/bin" in kept.text
