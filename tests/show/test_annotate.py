"""The annotation page without a browser: keys and buttons, answers on the disk, resuming."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
from matplotlib.figure import Figure
from PIL import Image
from seewhere.boxes import CELLS
from seewhere.records import Expression, ImageRecord, Region
from seewhere.show.annotate import AnswerFile, CellAnswer, annotate, mark_of


@dataclass
class Asked:
    item_id: int
    expression: Expression


@pytest.fixture
def items(tmp_path):
    Image.new("RGB", (60, 40), "white").save(tmp_path / "x.png")
    image = ImageRecord(1, tmp_path / "x.png", 60, 40)
    region = Region(1, 1, (0, 0, 9, 9), "dog", 18)
    return [Asked(n, Expression(n, image, region, f"the <dog> number {n}", "test")) for n in (5, 6, 7)]


def press(page, *keys):
    for key in keys:
        page.keyboard._handle_custom_msg({"key": key}, [])  # as the browser sends it


def test_keys_lie_as_the_cells_do(items, tmp_path):
    page = annotate(items, tmp_path / "a.jsonl", "anna")
    for block in ("789456123", "qweasdzxc"):
        for cell, key in enumerate(block):
            page.cells = []
            press(page, key)
            assert page.cells == [cell]
    press(page, "Shift", "F5", "p")
    assert page.cells == [8]


def test_an_answer_is_on_the_disk_when_the_next_item_comes(items, tmp_path):
    page = annotate(items, tmp_path / "a.jsonl", "anna")
    assert "the &lt;dog&gt; number 5" in page.heading.value and page.save.disabled
    press(page, "5", "6")
    assert page.buttons[4].description == "1. middle" and page.buttons[5].description == "2. middle right"
    assert not (tmp_path / "a.jsonl").exists()
    press(page, "Enter")
    (row,) = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert (row["annotator"], row["item"], row["cells"], row["wrong"]) == ("anna", 5, ["middle", "middle right"], False)
    assert "number 6" in page.heading.value and page.cells == [] and "1 of 3 answered" in page.heading.value


def test_four_cells_at_most_none_twice_and_back_again(items, tmp_path):
    page = annotate(items, tmp_path / "a.jsonl", "anna")
    press(page, "1", "1", "2", "3", "4", "5")
    assert page.cells == [6, 7, 8, 3]
    press(page, "Backspace")
    assert page.cells == [6, 7, 8]
    page.refuse.click()
    assert page.wrong and page.cells == [] and "factually wrong" in page.choice.value
    press(page, "7")
    assert not page.wrong and page.cells == [0]
    press(page, "F", "Enter")
    assert page.done[5].wrong and page.done[5].cells == ()


def test_nothing_is_saved_without_an_answer(items, tmp_path):
    page = annotate(items, tmp_path / "a.jsonl", "anna")
    press(page, "Enter")
    page.save.click()
    assert page.place == 0 and not (tmp_path / "a.jsonl").exists()


def test_it_resumes_per_person_and_an_answer_can_be_changed(items, tmp_path):
    path = tmp_path / "a.jsonl"
    page = annotate(items, path, "anna")
    press(page, "1", "Enter", "2", "Enter", "ArrowLeft")
    assert page.item.item_id == 6 and page.cells == [7]
    press(page, "Backspace", "3", "Enter")
    again = annotate(items, path, "anna")
    assert again.item.item_id == 7 and [a.cells for a in again.answers()] == [("bottom left",), ("bottom right",)]
    other = annotate(items, path, "ben")
    assert other.item.item_id == 5 and other.answers() == []
    press(again, "5", "Enter")
    assert again.finished and "Thank you" in again.heading.value and again.buttons[0].disabled
    press(again, "5", "0", "Enter")
    assert len(path.read_text().splitlines()) == 4
    press(again, "ArrowLeft")
    assert again.item.item_id == 7 and again.cells == [4]


def test_a_line_that_was_cut_short_is_asked_again_and_does_not_spoil_the_next(items, tmp_path):
    path = tmp_path / "a.jsonl"
    file = AnswerFile(path)
    file.append(CellAnswer("anna", 5, ("middle",)))
    file.append(CellAnswer("anna", 6, ("top",)))
    path.write_bytes(path.read_bytes()[:-12])
    page = annotate(items, path, "anna")
    assert page.item.item_id == 6
    press(page, "8", "Enter")
    assert [a.item for a in file] == [5, 6] and annotate(items, path, "anna").item.item_id == 7


def test_a_killed_page_has_lost_nothing(tmp_path):
    code = f"""
import os, signal
from seewhere.show.annotate import AnswerFile, CellAnswer
file = AnswerFile({str(tmp_path / "a.jsonl")!r})
for n in range(5):
    file.append(CellAnswer("anna", n, ("top",)))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert [a.item for a in AnswerFile(tmp_path / "a.jsonl")] == list(range(5))


def test_mistakes_are_named_and_it_has_a_picture_for_readers_without_a_kernel(items, tmp_path):
    with pytest.raises(ValueError, match="number of its own"):
        annotate([items[0], items[0]], tmp_path / "a", "anna")
    with pytest.raises(ValueError, match="name or initials"):
        annotate(items, tmp_path / "a", " ")
    page = annotate(items, tmp_path / "a", "anna")
    assert isinstance(page.static(), Figure) and "run this cell" in repr(page)
    assert {button.description for button in page.buttons} == set(CELLS)


def test_a_file_with_answers_to_other_items_is_refused(items, tmp_path):
    path = tmp_path / "a.jsonl"
    page = annotate(items, path, "anna")
    press(page, "1", "Enter")
    assert json.loads(path.read_text())["asked"] == mark_of(items[0])
    assert annotate(items, path, "anna").item.item_id == 6
    said = items[0].expression
    changed = [Asked(5, replace(said, text="the cat")), *items[1:]]
    with pytest.raises(ValueError, match=r"another item 5 than “the cat”.*file of their own"):
        annotate(changed, path, "anna")
    assert annotate(changed, path, "ben").item.item_id == 5
