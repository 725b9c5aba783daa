"""The page on which people say where a described thing is: up to four cells of the 3 x 3 grid, best first.

The human baseline of region cell matching ("Lost in Space", appendix A): the picture without a grid on it, the phrase,
and nine keys. A person may rank up to four cells, or refuse a phrase that is factually wrong. Every answer is on the
disk before the next picture comes, and the page opens again where it was left.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import anywidget
import ipywidgets
from matplotlib.figure import Figure

from seewhere.boxes import CELLS
from seewhere.records import Expression
from seewhere.show import figures, style
from seewhere.show.panel import Panel, to_png

MOST_CELLS = 4
SIDE = 420
# The keys lie as the cells do, on the number block and on the left of the letters.
KEYS = dict(zip("789456123", range(9), strict=True)) | dict(zip("qweasdzxc", range(9), strict=True))
HELP = (
    "Where is it? Choose the cell, or up to four in order of fit. Keys: <b>7 8 9 / 4 5 6 / 1 2 3</b> or "
    "<b>q w e / a s d / z x c</b> for the cells, <b>0</b> or <b>f</b>: the phrase is factually wrong, "
    "<b>Backspace</b>: take back, <b>Enter</b>: save and go on, <b>←</b>: the one before."
)


class Item(Protocol):
    """What is asked about: `seewhere.probing.rcm.RegionCell` is such."""

    @property
    def item_id(self) -> int:
        """Number of the item, unique on this page."""

    @property
    def expression(self) -> Expression:
        """What the phrase says, and of which picture."""


@dataclass(frozen=True, slots=True)
class CellAnswer:
    """One person's answer: ranked cells (names of ``CELLS``), or `wrong`: the phrase fits nothing in the picture.

    `asked` is the mark of what was asked, see `mark_of`; "" where it is not known.
    """

    annotator: str
    item: int
    cells: tuple[str, ...]
    wrong: bool = False
    seconds: float = 0.0
    asked: str = ""


def mark_of(item: Item) -> str:
    """Return a short mark of an item's picture, phrase and, where it has one, claimed cell.

    Items are numbered anew by every draw, so a number alone would let answers slip to other questions.
    """
    said = item.expression
    facts = (said.image.image_id, said.expression_id, said.text, getattr(item, "claimed", None))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def check_asked(answer: CellAnswer, item: Item) -> None:
    """Refuse an answer that was given to another item of the same number.

    Raises:
        ValueError: what it is held against, and what to do.
    """
    if answer.asked and answer.asked != mark_of(item):
        raise ValueError(
            f"{answer.annotator} answered another item {answer.item} than “{item.expression.text}”: these answers are "
            f"of another data set, seed or version. Keep them in a file of their own."
        )


class AnswerFile:
    """Answers as lines of JSON, each on the disk as soon as it is given.

    A line that a crash cut short is passed over, and the next answer starts on a line of its own.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def append(self, answer: CellAnswer) -> None:
        """Write one answer and wait until the disk has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as stream:
            stream.seek(0, os.SEEK_END)
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
            stream.write(json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def __iter__(self) -> Iterator[CellAnswer]:
        if not self.path.is_file():
            return
        for line in self.path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                yield CellAnswer(
                    str(row["annotator"]),
                    int(row["item"]),
                    tuple(row["cells"]),
                    bool(row["wrong"]),
                    row["seconds"],
                    str(row.get("asked", "")),
                )
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a crash; the person is asked again

    def last(self, annotator: str | None = None) -> dict[tuple[str, int], CellAnswer]:
        """Return (annotator, item) -> the last answer given, of one annotator or of all."""
        return {(a.annotator, a.item): a for a in self if annotator in (None, a.annotator)}


class Keyboard(anywidget.AnyWidget):
    """A field that takes the keyboard while it has the focus, and sends each key as a message of its own.

    Messages, because a synchronised value would swallow keys that come faster than the kernel answers. And an input
    field, though nothing is ever typed into it, because Jupyter leaves keys to those: anywhere else on the page it
    would take "x" or "d" for commands of its own.
    """

    _esm = """
    export default { render({ model, el }) {
      const field = document.createElement("input");
      field.className = "seewhere-keys";
      field.setAttribute("aria-label", "keyboard for the cells");
      field.style.cssText = "padding:6px 10px;border:1px dashed #888;border-radius:4px;width:240px;cursor:pointer";
      const show = (on) => {
        field.style.borderStyle = on ? "solid" : "dashed";
        field.placeholder = on ? "keyboard on" : "click here to use the keyboard";
      };
      show(false);
      field.onfocus = () => show(true);
      field.onblur = () => show(false);
      field.addEventListener("keydown", (event) => {
        if (event.key === "Tab" || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        event.stopPropagation();
        model.send({ key: event.key });
      });
      el.appendChild(field);
    } };
    """


class Annotator(Panel):
    """The page; ``Annotator(items, "answers.jsonl", "anna")`` shows the first item that anna has not answered.

    Args:
        items: what is asked, in this order.
        path: file of the answers; several people may share it, or have one each.
        annotator: who answers.

    Raises:
        ValueError: no items, two with one number, no name, or a file with answers to other items.
    """

    def __init__(self, items: Sequence[Item], path: Path | str, annotator: str) -> None:
        if not items or len({item.item_id for item in items}) < len(items):
            raise ValueError("expected at least one item, each with a number of its own")
        if not annotator.strip():
            raise ValueError("expected the annotator's name or initials; agreement is counted between people")
        self.items, self.file, self.annotator = list(items), AnswerFile(path), annotator.strip()
        self.done = {item: answer for (_, item), answer in self.file.last(self.annotator).items()}
        for item in self.items:
            if item.item_id in self.done:
                check_asked(self.done[item.item_id], item)
        self.cells: list[int] = []
        self.wrong = False
        self.place = 0
        self._started = time.monotonic()
        self._make_controls()
        super().__init__()
        self.children = [self.heading, ipywidgets.HBox([self.picture, self.controls]), self.keyboard, self.help]
        self._show(self._first_open())

    def _make_controls(self) -> None:
        self.heading, self.help = ipywidgets.HTML(), ipywidgets.HTML(f"<small>{HELP}</small>")
        self.picture = ipywidgets.Image(format="png", layout={"max_width": f"{SIDE}px", "object_fit": "contain"})
        self.buttons = [
            ipywidgets.Button(description=name, layout={"width": "112px", "height": "52px"}) for name in CELLS
        ]
        for cell, button in enumerate(self.buttons):
            button.on_click(lambda _, cell=cell: self.choose(cell))
        self.refuse = ipywidgets.Button(description="factually wrong", icon="ban")
        self.undo = ipywidgets.Button(description="take back", icon="undo")
        self.back = ipywidgets.Button(description="before", icon="arrow-left")
        self.save = ipywidgets.Button(description="save and go on", icon="check", button_style="primary")
        actions = (self.refuse_item, self.take_back, self.go_back, self.submit)
        for button, action in zip((self.refuse, self.undo, self.back, self.save), actions, strict=True):
            button.on_click(lambda _, action=action: action())
        grid = ipywidgets.GridBox(self.buttons, layout={"grid_template_columns": "repeat(3, 118px)"})
        below = [ipywidgets.HBox([self.refuse, self.undo]), ipywidgets.HBox([self.back, self.save])]
        self.choice = ipywidgets.HTML()
        self.controls = ipywidgets.VBox([grid, self.choice, *below])
        self.keyboard = Keyboard()
        self.keyboard.on_msg(lambda _, content, buffers: self.press(str(content.get("key", ""))))

    # -- what a person does --------------------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Do what a key stands for; keys without a meaning do nothing."""
        actions = {"0": self.refuse_item, "f": self.refuse_item, "Backspace": self.take_back, "Enter": self.submit}
        if key.lower() in KEYS:
            self.choose(KEYS[key.lower()])
        elif key in actions or key.lower() in actions:
            actions.get(key, actions.get(key.lower(), self._refresh))()
        elif key == "ArrowLeft":
            self.go_back()

    def choose(self, cell: int) -> None:
        """Add a cell (index into ``CELLS``) to the ranking, unless it is in it or four are."""
        if not self.finished and cell not in self.cells and len(self.cells) < MOST_CELLS:
            self.cells, self.wrong = [*self.cells, cell], False
            self._refresh()

    def refuse_item(self) -> None:
        """Say that the phrase is factually wrong."""
        if not self.finished:
            self.cells, self.wrong = [], True
            self._refresh()

    def take_back(self) -> None:
        """Remove the last cell, or the refusal."""
        self.cells, self.wrong = self.cells[:-1], False
        self._refresh()

    def go_back(self) -> None:
        """Show the item before this one, with the answer given."""
        if self.place:
            self._show(self.place - 1)

    def submit(self) -> None:
        """Write the answer and show the next open item; without an answer, do nothing."""
        if self.finished or not (self.cells or self.wrong):
            return
        names = tuple(CELLS[cell] for cell in self.cells)
        taken = round(time.monotonic() - self._started, 2)
        answer = CellAnswer(self.annotator, self.item.item_id, names, self.wrong, taken, mark_of(self.item))
        self.file.append(answer)
        self.done[answer.item] = answer
        self._show(self._first_open())

    # -- what is shown -------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the page is past the last item."""
        return self.place >= len(self.items)

    @property
    def item(self) -> Item:
        """The item on show."""
        return self.items[self.place]

    def answers(self) -> list[CellAnswer]:
        """Return this annotator's last answers, in the order of the items."""
        return [self.done[item.item_id] for item in self.items if item.item_id in self.done]

    def _first_open(self) -> int:
        return next((n for n, item in enumerate(self.items) if item.item_id not in self.done), len(self.items))

    def _show(self, place: int) -> None:
        self.place, self.cells, self.wrong = place, [], False
        self._started = time.monotonic()
        if not self.finished:
            earlier = self.done.get(self.item.item_id)
            if earlier is not None:
                self.cells, self.wrong = [CELLS.index(name) for name in earlier.cells], earlier.wrong
            self.picture.value = to_png(figures.enlarge(self.item.expression.image.open(), SIDE)[0])
        self._refresh()

    def _refresh(self) -> None:
        answered = sum(item.item_id in self.done for item in self.items)
        progress = f"{answered} of {len(self.items)} answered by {html.escape(self.annotator)}"
        if self.finished:
            self.heading.value = (
                f"<h4>Thank you.</h4><p>{progress}; they are in {html.escape(str(self.file.path))}.</p>"
            )
        else:
            self.heading.value = f"<h4>“{html.escape(self.item.expression.text)}”</h4><small>{progress}</small>"
        for cell, button in enumerate(self.buttons):
            rank = self.cells.index(cell) + 1 if cell in self.cells else 0
            button.description = f"{rank}. {CELLS[cell]}" if rank else CELLS[cell]
            button.style.button_color = style.BLUE if rank == 1 else "#A6CEE3" if rank else None
            button.disabled = self.finished
        chosen = " > ".join(CELLS[cell] for cell in self.cells)
        self.choice.value = f"<p>{'factually wrong' if self.wrong else chosen or '&nbsp;'}</p>"
        self.save.disabled = self.finished or not (self.cells or self.wrong)
        self.back.disabled = not self.place

    def static(self, count: int = 3) -> Figure:
        """The first items as a figure, for readers without a kernel: pictures and phrases, as a person sees them."""
        shown = self.items[:count]
        pictures = [figures.enlarge(item.expression.image.open(), SIDE)[0] for item in shown]
        titles = [f"“{item.expression.text}”: which cell?" for item in shown]
        return figures.gallery(pictures, titles, columns=len(shown), tile_inches=3.2)


def annotate(items: Sequence[Item], path: Path | str, annotator: str) -> Annotator:
    """A widget on which `annotator` says where things are; answers go to the jsonl at `path`."""
    return Annotator(items, path, annotator)


def rows(answers: Sequence[CellAnswer]) -> list[dict[str, Any]]:
    """Return answers as dictionaries, for a table."""
    return [asdict(answer) for answer in answers]
