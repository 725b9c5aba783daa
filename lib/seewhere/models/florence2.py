"""Florence-2 as a black box: boxes written as text, read back without losing or inventing any.

Two questions are asked for each phrase, as in the LLM-wrapper paper (ICLR 2025, candidate generation): open-vocabulary
detection, whose first box is also the model's own zero-shot answer, and phrase grounding. Candidates are the boxes of
the first, then those of the second, in the order the model wrote them; it gives no scores.

The model writes a side as one of a thousand bins. transformers turns bins back into whole pixels; the released code
gives fractions, and so does this module: ``(n + 0.5) * side / 1000``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seewhere.boxes import to_xyxy
from seewhere.models.candidates import Detections, make_candidates
from seewhere.models.inputs import batched, check_family, check_pairs, resolve_device

if TYPE_CHECKING:
    import torch
    from PIL import Image

HUB_ID = "florence-community/Florence-2-base"
DETECTION = "<OPEN_VOCABULARY_DETECTION>"
GROUNDING = "<CAPTION_TO_PHRASE_GROUNDING>"

_BINS = 1000
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9_]*>")
# Tokens that only frame an answer and carry nothing.
_FRAME = re.compile(r"<pad>|</?(?:s|od|ground|obj|box|bbox|and|sep)>")
_PIECE = re.compile(
    r"<loc_(?P<bin>\d+)>|(?P<polygon><poly>.*?(?:</poly>|$))|(?P<broken><[^<>\s]*>?)|(?P<words>[^<]+)", re.DOTALL
)


@dataclass(slots=True)
class ParsedAnswer:
    """Boxes read from one answer.

    bins: ``(N, 4)`` bin numbers x1, y1, x2, y2 in 0..999. labels: N strings. failures: what could not be read, by kind:
    "broken token", "incomplete box", "bin out of range", "box without area", "label without box", "polygon".
    """

    bins: list[tuple[int, int, int, int]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def boxes(self, size: tuple[int, int]) -> npt.NDArray[np.float64]:
        """``(N, 4)`` xyxy in fractional pixels of an image of `size` (width, height)."""
        return to_xyxy(np.array(self.bins, dtype=np.float64).reshape(-1, 4), "xyxy_999", size)

    def keep_box(self, label: str, bins: Sequence[int]) -> None:
        """Take four bins as a box, or count why they are none."""
        x1, y1, x2, y2 = bins
        if max(bins) >= _BINS:
            self.failures["bin out of range"] += 1
        elif x2 <= x1 or y2 <= y1:
            self.failures["box without area"] += 1
        else:
            self.bins.append((x1, y1, x2, y2))
            self.labels.append(label)


def clean_query(phrase: str) -> str:
    """The phrase without anything the processor or the tokenizer would read as a task, a location or a special token.

    Raises:
        ValueError: nothing is left.
    """
    text = " ".join(_TAG.sub(" ", phrase).replace("<", " ").replace(">", " ").split())
    if not text:
        raise ValueError(f"florence-2: the phrase {phrase!r} holds no words beside task tokens.")
    return text


def parse_answer(text: str, query: str = "", banned: Collection[str] = ()) -> ParsedAnswer:
    """Read boxes and labels from what the model wrote, such as ``red dog<loc_12><loc_30><loc_200><loc_310>``.

    A label stands before its boxes, each of four location tokens. Whatever does not fit is dropped and counted, never
    replaced: a box that is cut short, out of range or without area, a label without a box, a polygon, a token torn in
    two (which also ends the reading of that label's boxes, as the rest would be out of step).

    Args:
        text: the decoded answer, special tokens included.
        query: label of boxes that stand before any words.
        banned: labels to drop with their boxes; these are no failures.
    """
    reader = _Reader(query)
    for piece in _PIECE.finditer(_FRAME.sub("", text)):
        if piece["bin"] is not None:
            reader.location(int(piece["bin"]))
        elif piece["words"] is not None:
            reader.words(piece["words"].strip())
        elif piece["polygon"] is not None:
            reader.drop_rest("polygon", lost=False)
        else:
            reader.drop_rest("broken token", lost=True)
    reader.finish_label()
    answer = reader.answer
    kept = [place for place, label in enumerate(answer.labels) if label not in banned]
    return ParsedAnswer(
        [answer.bins[place] for place in kept], [answer.labels[place] for place in kept], answer.failures
    )


class _Reader:
    """The state of :func:`parse_answer` between two pieces of the text."""

    def __init__(self, query: str) -> None:
        self.answer = ParsedAnswer()
        self.label = query
        self.bins: list[int] = []
        self.waiting = False  # the label has no box yet
        self.lost = False  # what follows is out of step until the next label

    def words(self, label: str) -> None:
        if label:
            self.finish_label()
            self.label, self.waiting, self.lost = label, True, False

    def location(self, number: int) -> None:
        self.waiting = False
        if not self.lost:
            self.bins.append(number)

    def drop_rest(self, kind: str, lost: bool) -> None:
        """Keep the boxes that are complete, count one failure for what is here."""
        del self.bins[len(self.bins) // 4 * 4 :]
        self.waiting = False
        self.finish_label()
        self.answer.failures[kind] += 1
        self.lost = lost

    def finish_label(self) -> None:
        for start in range(0, len(self.bins) - 3, 4):
            self.answer.keep_box(self.label, self.bins[start : start + 4])
        if len(self.bins) % 4:
            self.answer.failures["incomplete box"] += 1
        if self.waiting:
            self.answer.failures["label without box"] += 1
        self.bins.clear()
        self.waiting = False


class Florence2:
    """A Florence-2 model that answers the ``Grounder`` protocol; its candidates have no confidence.

    The candidates' metadata also hold ``answers`` (what the model wrote, by task) and ``parse_failures`` (how many
    pieces of it could not be read); ``failures`` on the model itself sums them up by kind over its life.

    Args:
        model: a ``Florence2ForConditionalGeneration``.
        processor: its ``Florence2Processor``.
        name: written into the candidates.
        tasks: which questions to ask, in the order of the candidates.
        beams: width of the beam search; there is no sampling.
        max_new_tokens: longest answer.
        batch_size: pairs per generation.
        device: where to run; None takes the best found and prints why.
        progress: show a progress bar.
    """

    scores = False

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str = "florence-2",
        tasks: Sequence[str] = (DETECTION, GROUNDING),
        beams: int = 3,
        max_new_tokens: int = 1024,
        batch_size: int = 4,
        device: str | torch.device | None = None,
        progress: bool = True,
    ) -> None:
        if not tasks or set(tasks) - {DETECTION, GROUNDING}:
            raise ValueError(f"{name}: tasks are {tuple(tasks)}; expected some of {(DETECTION, GROUNDING)}.")
        self.name = name
        self.tasks = tuple(tasks)
        self.beams = beams
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.progress = progress
        self.processor = processor
        self.failures: Counter[str] = Counter()
        rules = (processor.post_processor_config or {}).get("phrase_grounding", {})
        self.banned = frozenset(rules.get("banned_grounding_tokens", ()))
        self.device = resolve_device(device, name)
        self.model = model.to(self.device).eval()

    @classmethod
    def load(
        cls, source: str | Path = HUB_ID, revision: str = "main", dtype: str = "float32", **options: Any
    ) -> Florence2:
        """Load from a hub id or a folder written by ``save_pretrained``; `options` are those of the constructor.

        Raises:
            FileNotFoundError: nothing there, or the hub cannot be reached.
            ValueError: a model of another family, such as the hub's first, remote-code release of Florence-2.
        """
        from transformers import AutoProcessor, Florence2ForConditionalGeneration

        check_family(source, "florence2", revision=revision)
        # The PIL image processor gives the same pixels on every machine; the other one needs torchvision.
        processor = AutoProcessor.from_pretrained(source, revision=revision, backend="pil")
        model = Florence2ForConditionalGeneration.from_pretrained(source, revision=revision, dtype=dtype)
        return cls(model, processor, **options)

    def ground(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detections]:
        """Candidates for each (image, phrase) pair; ``top`` is the first box of detection, -1 without one.

        Raises:
            ValueError: an empty phrase, or lists of different lengths.
        """
        pictures = check_pairs(images, phrases, self.name)
        queries = [clean_query(phrase) for phrase in phrases]
        answers: list[dict[str, str]] = [{} for _ in queries]
        for batch in batched(pictures, self.batch_size, self.name, self.progress):
            for task in self.tasks:
                written = self.write(
                    [pictures[place] for place in batch], [f"{task}{queries[place]}" for place in batch]
                )
                for place, text in zip(batch, written, strict=True):
                    answers[place][task] = text
        return [
            self._candidates(answer, query, picture.size)
            for answer, query, picture in zip(answers, queries, pictures, strict=True)
        ]

    def write(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        """What the model writes for pairs of an RGB image and a prompt (task token + query), with special tokens."""
        import torch

        inputs = self.processor(images=list(images), text=list(prompts), padding=True, return_tensors="pt")
        inputs = inputs.to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs, num_beams=self.beams, do_sample=False, max_new_tokens=self.max_new_tokens
            )
        return list(self.processor.batch_decode(tokens, skip_special_tokens=False))

    def _candidates(self, answers: dict[str, str], query: str, size: tuple[int, int]) -> Detections:
        boxes = [np.zeros((0, 4))]
        labels: list[str] = []
        failures: Counter[str] = Counter()
        top = -1
        for task, text in answers.items():
            parsed = parse_answer(text, query, self.banned if task == GROUNDING else ())
            if task == DETECTION and parsed.bins:
                top = len(labels)
            boxes.append(parsed.boxes(size))
            labels += parsed.labels
            failures += parsed.failures
        self.failures += failures
        return make_candidates(
            np.concatenate(boxes), labels, None, self.name, top, answers=answers, parse_failures=failures.total()
        )
