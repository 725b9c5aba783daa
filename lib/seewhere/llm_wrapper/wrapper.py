"""LLM-wrapper at work: candidates of a black box in, one chosen box out, and never an unusable answer.

`LLMWrapper.answer` scores every valid index and takes the likeliest, so an answer that is no integer or out of range
cannot occur. `LLMWrapper.answer_freely` is the released way: greedy text, the first run of digits, and the detector's
own box where that fails; its failure classes are counted. Fall-backs follow the paper: no candidate is a miss, a
single candidate is returned without asking. A list that is longer than what the model can read is left to the
detector as well, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from PIL import Image

from seewhere import storage
from seewhere.llm_wrapper import prompts
from seewhere.models.candidates import Detections
from seewhere.models.language_model import load_language_model
from seewhere.models.lora import cut_adapter
from seewhere.models.protocols import LanguageModel

NO_CANDIDATE, ONE_CANDIDATE, CHOSEN = "no candidate", "one candidate", "chosen"
NO_INTEGER, OUT_OF_RANGE = "no integer", "out of range"
TOO_LONG = "too long"
STATUSES = (CHOSEN, NO_INTEGER, OUT_OF_RANGE, TOO_LONG, ONE_CANDIDATE, NO_CANDIDATE)
ASKED = (CHOSEN, NO_INTEGER, OUT_OF_RANGE)  # the language model was asked and answered
ROOM = 8  # tokens that an index may take
RELEASED_LENGTH = 128  # tokens that the paper's code lets the model write


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the wrapper says about one phrase.

    Attributes:
        index: the chosen candidate, -1 for none.
        probabilities: (N,) one per candidate, summing to 1; uniform weight is not implied where nothing was asked.
        prompt: the user turn that the language model read, "" where it was not asked.
        status: one of `STATUSES`.
        text: what the model wrote (free answers only).
    """

    index: int
    probabilities: np.ndarray
    prompt: str
    status: str
    text: str = ""


def parse_index(text: str, count: int) -> tuple[int, str]:
    """Read a free answer: the first run of digits (paper: "answer with the index only").

    Returns:
        (index, status): index -1 with status "no integer" or "out of range" where the answer cannot be used.
    """
    found = re.search(r"\d+", text)
    if found is None:
        return -1, NO_INTEGER
    # A very long run of digits is out of range whatever it says; int() would refuse it.
    index = int(found.group()) if len(found.group()) < 10 else count
    return (index, CHOSEN) if index < count else (-1, OUT_OF_RANGE)


WEIGHTS = Path(__file__).parent.parent / "weights"
WRAPPER_FILE, HISTORY_FILE = "wrapper.json", "history.csv"


def shipped_adapter(language_model: str) -> Path | None:
    """Return the folder of the adapter that ships for a language model's name, or None."""
    folder = WEIGHTS / f"llm-wrapper-{language_model}"
    return folder if (folder / "adapter_config.json").is_file() else None


def describe_adapter(
    folder: Path,
    coordinates: prompts.Coordinates,
    scores: bool,
    trained_on: Sequence[Mapping[str, Any]],
    history: pd.DataFrame,
) -> None:
    """Write beside an adapter how it reads boxes, what it was trained on (one entry a part), and its log.

    ``wrapper.json`` comes last: where it is, the rest is.
    """
    storage.atomic_write_text(folder / HISTORY_FILE, history.to_csv(index=False))
    about = {"coordinates": coordinates, "scores": scores, "trained_on": list(trained_on)}
    storage.atomic_write_json(folder / WRAPPER_FILE, about)


def keep_rank(folder: Path, rank: int) -> None:
    """Cut a finished adapter to a rank, see `lora.cut_adapter`, and say what that keeps."""
    share = cut_adapter(folder, rank)
    print(f"cut to rank {rank}: {100 * share:.1f} % of the updates' squared singular values stay")


class LLMWrapper:
    """A language model that picks among a detector's candidates."""

    def __init__(
        self, language_model: LanguageModel, coordinates: prompts.Coordinates = "pixels", scores: bool = False
    ) -> None:
        """Wrap a language model.

        Args:
            language_model: anything that answers `choose` (and `generate` for free answers).
            coordinates: how boxes are written, see `prompts.format_box`; the writing it was fine-tuned with.
            scores: write each box's confidence into its bullet where the detector gives one (the paper does so for
                Grounding DINO).
        """
        if coordinates not in prompts.COORDINATES:
            raise ValueError(f"coordinates: expected one of {prompts.COORDINATES}, got {coordinates!r}")
        self.language_model, self.coordinates, self.scores = language_model, coordinates, scores

    @classmethod
    def load(
        cls,
        name: str,
        adapter: str | Path | None = "shipped",
        coordinates: prompts.Coordinates = "percent",
        scores: bool = False,
        **settings: Any,
    ) -> Self:
        """Load a language model with an adapter.

        Args:
            name: "smollm2", "micro", a hub id or folder, or an endpoint's address.
            adapter: a folder with a peft adapter; "shipped" for the one in the package, if there is one; None for the
                zero-shot model.
            coordinates, scores: the writing, where ``wrapper.json`` beside the adapter does not name the one it learnt.
            **settings: passed on to `seewhere.models.language_model.load_language_model`.
        """
        folder = shipped_adapter(name) if adapter == "shipped" else adapter
        if adapter == "shipped" and folder is None:
            print(
                f"{name}: no adapter ships for it, so this is the zero-shot model; `seewhere train wrapper` makes one"
            )
        about: dict[str, Any] = {}
        if folder is not None and (Path(folder) / WRAPPER_FILE).is_file():
            about = storage.read_json(Path(folder) / WRAPPER_FILE)
        model = load_language_model(name, folder, **settings)
        return cls(model, about.get("coordinates", coordinates), bool(about.get("scores", scores)))

    @property
    def name(self) -> str:
        """The language model's name, for tables."""
        return self.language_model.name

    def prompt(self, size: tuple[int, int], phrase: str, candidates: Detections) -> str:
        """The user turn for one question; size is (width, height) of the image in pixels."""
        written = self.scores and candidates.confidence is not None
        return prompts.prompt(candidates, phrase, size, self.coordinates, written)

    def answer(
        self,
        images: Sequence[Image.Image | tuple[int, int]],
        phrases: Sequence[str],
        candidates: Sequence[Detections],
    ) -> list[Answer]:
        """Choose one candidate for each phrase.

        Args:
            images: N images, or their (width, height): only the size is read.
            phrases: N referring expressions.
            candidates: N candidate lists, boxes in pixels of the original image, xyxy.

        Returns:
            N answers; status is never "out of range", and "no integer" only where a served model names no candidate.
            Then, and where a prompt is longer than the language model can read ("too long"), the answer is the
            detector's own.

        Raises:
            ValueError: lists of different lengths, or an empty phrase.
        """
        asked, answers = self._prepare(images, phrases, candidates, ROOM)
        options = [[str(j) for j in range(len(candidates[i]))] for i in asked]
        turns = [prompts.messages(answers[i].prompt) for i in asked]
        found = self.language_model.choose(turns, options) if asked else []
        for i, probabilities in zip(asked, found, strict=True):
            if np.isnan(probabilities).any():
                answers[i] = _left_to_detector(candidates[i], answers[i].prompt, NO_INTEGER)
            else:
                answers[i] = Answer(int(np.argmax(probabilities)), probabilities, answers[i].prompt, CHOSEN)
        return answers

    def answer_freely(
        self,
        images: Sequence[Image.Image | tuple[int, int]],
        phrases: Sequence[str],
        candidates: Sequence[Detections],
        max_new_tokens: int = RELEASED_LENGTH,
    ) -> list[Answer]:
        """As `answer`, by greedy free text; an unusable answer falls back to the detector's own box.

        Probabilities are one-hot on the choice: free text says nothing about the other candidates.
        """
        asked, answers = self._prepare(images, phrases, candidates, max_new_tokens)
        turns = [prompts.messages(answers[i].prompt) for i in asked]
        texts = self.language_model.generate(turns, max_new_tokens) if asked else []
        for i, text in zip(asked, texts, strict=True):
            index, status = parse_index(text, len(candidates[i]))
            if index < 0:
                answers[i] = _left_to_detector(candidates[i], answers[i].prompt, status, text)
            else:
                answers[i] = Answer(index, _one_hot(index, len(candidates[i])), answers[i].prompt, status, text)
        return answers

    def _prepare(
        self,
        images: Sequence[Image.Image | tuple[int, int]],
        phrases: Sequence[str],
        candidates: Sequence[Detections],
        room: int,
    ) -> tuple[list[int], list[Answer]]:
        """Return the positions that need the language model, and an answer for every position so far."""
        if not len(images) == len(phrases) == len(candidates):
            raise ValueError(
                f"expected as many images as phrases and candidate lists, got {len(images)}, {len(phrases)} and "
                f"{len(candidates)}"
            )
        asked: list[int] = []
        answers: list[Answer] = []
        for i, (image, phrase, boxes) in enumerate(zip(images, phrases, candidates, strict=True)):
            size = image if isinstance(image, tuple) else image.size
            prompts.question(phrase)  # an empty phrase is refused also where nothing is asked
            if len(boxes) == 0:
                answers.append(Answer(-1, np.zeros(0), "", NO_CANDIDATE))
            elif len(boxes) == 1:
                answers.append(Answer(0, np.ones(1), "", ONE_CANDIDATE))
            else:
                asked.append(i)
                answers.append(Answer(-1, np.zeros(len(boxes)), self.prompt(size, phrase, boxes), CHOSEN))
        for i in self._too_long(asked, answers, room):
            answers[i] = _left_to_detector(candidates[i], answers[i].prompt, TOO_LONG)
            asked.remove(i)
        return asked, answers

    def _too_long(self, asked: Sequence[int], answers: Sequence[Answer], room: int) -> list[int]:
        """The positions whose prompt the language model cannot read; one that does not tell its limit reads all."""
        tell = getattr(self.language_model, "too_long", None)
        if tell is None or not asked:
            return []
        verdicts = tell([prompts.messages(answers[i].prompt) for i in asked], room)
        return [i for i, long in zip(asked, verdicts, strict=True) if long]


def _left_to_detector(candidates: Detections, prompt: str, status: str, text: str = "") -> Answer:
    """The detector's own choice, where the language model made none."""
    own = int(candidates.metadata.get("top", -1))
    return Answer(own, _one_hot(own, len(candidates)), prompt, status, text)


def _one_hot(index: int, count: int) -> np.ndarray:
    result = np.zeros(count)
    if index >= 0:
        result[index] = 1.0
    return result
