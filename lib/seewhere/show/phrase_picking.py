"""Choosing a phrase about the picture on show, or typing one: what the widgets that ask a model have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets

from seewhere.records import Region
from seewhere.show.panel import ImagePicker

if TYPE_CHECKING:
    from seewhere.datasets import ReferringDataset

YOUR_OWN = "(your own phrase)"


class PhrasePicker(ImagePicker):
    """Pictures to step through, their phrases to pick from, and a field to type one in.

    A subclass lays out `bar`, `phrase` and `typed`, says in `ask` what happens when the question has changed, and calls
    `begin` once all is there.
    """

    def __init__(self, dataset: ReferringDataset | Sequence[ReferringDataset]) -> None:
        super().__init__(dataset)
        wide = {"width": "560px"}
        self.phrase = ipywidgets.Dropdown(description="phrase", layout=wide)
        self.typed = ipywidgets.Text(
            description="or type", placeholder="a phrase, then Enter", continuous_update=False, layout=wide
        )
        self._quiet = False

    @abstractmethod
    def ask(self) -> None:
        """Put `text` about the picture on show to the model, and show the answer."""

    def begin(self) -> None:
        """Listen to the controls, and ask about the first picture."""
        self.slider.observe(self._new_image, "value")
        self.phrase.observe(self._new_phrase, "value")
        self.typed.observe(self._new_typed, "value")
        self._new_image()

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

    def _new_image(self, _: object = None) -> None:
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
