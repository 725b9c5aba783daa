"""Choosing a phrase about the picture on show, or typing one: what the widgets that ask a model have in common.

The picture is one of a data set, or a file of the reader's own; that has no phrases to pick from and no truth.
"""

from __future__ import annotations

import html
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets
from PIL import Image

from seewhere.models.pixel_points import read_picture
from seewhere.records import DataError, Expression, Region
from seewhere.show import style
from seewhere.show.panel import EVERY_STYLE, ImagePicker

if TYPE_CHECKING:
    from seewhere.datasets import ReferringDataset

YOUR_OWN = "(your own phrase)"


class PhrasePicker(ImagePicker):
    """Pictures to step through, their phrases to pick from, a field to type one in, and one for a file of one's own.

    A subclass lays out `controls`, says in `ask` what happens when the question has changed, and calls `begin` once all
    is there.

    Attributes:
        own: the picture of the file that was typed, RGB; None while one of the data set is on show.
    """

    def __init__(self, dataset: ReferringDataset | Sequence[ReferringDataset]) -> None:
        super().__init__(dataset)
        wide = {"width": "560px"}
        self.phrase = ipywidgets.Dropdown(description="phrase", layout=wide)
        self.typed = ipywidgets.Text(
            description="or type", placeholder="a phrase, then Enter", continuous_update=False, layout=wide
        )
        self.file = ipywidgets.Text(
            description="or a file", placeholder="path of your own picture, then Enter", continuous_update=False,
            layout={"width": "360px"},
        )  # fmt: skip
        self.message = ipywidgets.HTML()
        pictures = ipywidgets.HBox([self.bar, self.file], layout={"flex_flow": "row wrap"})
        self.controls = [pictures, self.message, self.phrase, self.typed]
        self.own: Image.Image | None = None
        self._quiet = False

    @abstractmethod
    def ask(self) -> None:
        """Put `text` about the picture on show to the model, and show the answer."""

    def begin(self) -> None:
        """Listen to the controls, and ask about the first picture."""
        self.slider.observe(self._new_place, "value")
        self.file.observe(self._new_file, "value")
        self.phrase.observe(self._new_phrase, "value")
        self.typed.observe(self._new_typed, "value")
        self._new_image()

    # ------------------------------------------------------------------------------------------- what is on show

    def image(self) -> Image.Image:
        """The picture on show, RGB, original size."""
        return super().image() if self.own is None else self.own

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture on show, pixels."""
        return self.dataset.images[self.image_id].size if self.own is None else self.own.size

    def expressions(self, wanted: str = EVERY_STYLE) -> list[Expression]:
        """Expressions of the picture on show; none of a picture of the reader's own."""
        return super().expressions(wanted) if self.own is None else []

    def open_file(self, path: str | Path) -> None:
        """Show a picture of the reader's own.

        Raises:
            DataError: a file that is no picture, see `read_picture`; what is on show stays.
        """
        self.own = read_picture(path)
        width, height = self.own.size
        self.message.value = f"<p>{html.escape(str(path))}, {width} x {height} pixels: type a phrase about it</p>"
        self._new_image()

    def go_to(self, index: int) -> None:
        """Show the picture at a position of the slider, also where it stands there and a file is on show."""
        if self.slider.value == index and self.own is not None:
            self._new_place()
        self.slider.value = index

    @property
    def text(self) -> str:
        """The phrase in question."""
        return self.typed.value.strip() if self.phrase.value == YOUR_OWN else self.phrase.value

    def region(self) -> Region | None:
        """The region that the phrase was written for; None for a phrase of the reader's own."""
        return next((item.region for item in self.expressions() if item.text == self.text), None)

    def _set(self, phrase: str, typed: str) -> None:
        """Put values into the two fields without asking twice."""
        self._quiet = True
        self.phrase.value, self.typed.value = phrase, typed
        self._quiet = False

    def _new_place(self, _: object = None) -> None:
        self.own, self.message.value = None, ""
        self._quiet = True
        self.file.value = ""
        self._quiet = False
        self._new_image()

    def _new_file(self, _: object = None) -> None:
        if self._quiet or not self.file.value.strip():
            return
        try:
            self.open_file(self.file.value.strip())
        except DataError as error:
            self.message.value = f'<p style="color:{style.VERMILLION}">{html.escape(str(error))}</p>'

    def _new_image(self) -> None:
        texts = list(dict.fromkeys(item.text for item in self.expressions()))
        self._quiet = True
        self.phrase.options = [*texts, YOUR_OWN]
        self._quiet = False
        self._set(texts[0] if texts else YOUR_OWN, "")
        self.ask()

    def _new_phrase(self, _: object = None) -> None:
        if not self._quiet:
            if self.phrase.value != YOUR_OWN:
                self._set(self.phrase.value, "")
            self.ask()

    def _new_typed(self, _: object = None) -> None:
        if not self._quiet and self.typed.value.strip():
            self._set(YOUR_OWN, self.typed.value)
            self.ask()
