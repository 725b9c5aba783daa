"""Grounding DINO as a black box: the same network read in two ways, GD and GDrec.

The network gives each of its box queries one logit per text token. The two ways to score a box are those of the
LLM-wrapper paper (ICLR 2025, candidate generation):

* ``sentence`` (**GD**): a box scores the maximum over all tokens of the full sentence. Boxes above 0.2 are kept; the
  label is made of the tokens above 0.05; the detector's own answer is the highest score.
* ``groups`` (**GDrec**): a box scores the minimum over the tokens of one noun group. Kept are boxes above 0.15 for the
  subject, 0.2 for each other group and 0.3 for the full sentence, and always the best box of the subject, which is the
  detector's own answer. A box that stands for two groups is listed under both: the paper does not merge candidates.

Ours to choose, as the paper is silent: the noun groups come from :mod:`seewhere.models.phrases`; candidates keep the
order of the network's queries, the subject's first; boxes are not clipped to the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seewhere.boxes import to_xyxy
from seewhere.models.candidates import Detections, empty_candidates, make_candidates
from seewhere.models.inputs import batched, check_family, check_pairs, resolve_device
from seewhere.models.phrases import noun_groups

if TYPE_CHECKING:
    import torch
    from PIL import Image

HUB_ID = "IDEA-Research/grounding-dino-tiny"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Lowest scores of a candidate; the defaults are the paper's."""

    box: float = 0.2
    """GD: score of a box."""
    text: float = 0.05
    """GD: probability of a token that goes into a box's label."""
    subject: float = 0.15
    """GDrec: minimum over the subject's tokens."""
    group: float = 0.2
    """GDrec: minimum over another noun group's tokens."""
    sentence: float = 0.3
    """GDrec: minimum over all words."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the network says about one pair, before any threshold.

    text: the prompt. probabilities: ``(Q, T)`` per box query and token. boxes: ``(Q, 4)`` xyxy pixels of the original
    image. tokens: ids ``(T,)``. spans: character range in `text` per token, ``(T, 2)``, empty for special tokens.
    """

    text: str
    probabilities: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]

    def tokens_in(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Places of the tokens that overlap the characters start..end."""
        real = self.spans[:, 1] > self.spans[:, 0]
        return np.flatnonzero(real & (self.spans[:, 0] < end) & (self.spans[:, 1] > start))


def prompt_text(phrase: str) -> str:
    """The phrase as Grounding DINO was trained to read it: lower-case and ending in one dot.

    Raises:
        ValueError: nothing but dots and spaces.
    """
    text = phrase.lower().strip().rstrip(". \t\n")
    if not text:
        raise ValueError(f"grounding-dino: the phrase {phrase!r} holds no words.")
    return text + "."


class GroundingDino:
    """A Grounding DINO model that answers the ``Grounder`` protocol.

    Args:
        model: a ``GroundingDinoForObjectDetection``.
        processor: its ``GroundingDinoProcessor``.
        name: written into the candidates; "grounding-dino" or "gdrec" by default.
        scoring: "sentence" (GD) or "groups" (GDrec).
        thresholds: lowest scores.
        parser: how GDrec finds noun groups, see :func:`seewhere.models.phrases.noun_groups`.
        batch_size: pairs per forward pass.
        device: where to run; None takes the best found and prints why.
        progress: show a progress bar.
    """

    scores = True

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str | None = None,
        scoring: str = "sentence",
        thresholds: Thresholds | None = None,
        parser: str = "rules",
        batch_size: int = 4,
        device: str | torch.device | None = None,
        progress: bool = True,
    ) -> None:
        if scoring not in ("sentence", "groups"):
            raise ValueError(f"grounding-dino: scoring {scoring!r}; expected 'sentence' (GD) or 'groups' (GDrec).")
        self.name = name or ("grounding-dino" if scoring == "sentence" else "gdrec")
        self.scoring = scoring
        self.thresholds = thresholds or Thresholds()
        self.parser = parser
        self.batch_size = batch_size
        self.progress = progress
        self.processor = processor
        self.device = resolve_device(device, self.name)
        self.model = model.to(self.device).eval()

    @classmethod
    def load(
        cls, source: str | Path = HUB_ID, revision: str = "main", dtype: str = "float32", **options: Any
    ) -> GroundingDino:
        """Load from a hub id or a folder written by ``save_pretrained``; `options` are those of the constructor.

        Raises:
            FileNotFoundError: nothing there, or the hub cannot be reached.
            ValueError: a model of another family.
        """
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        check_family(source, "grounding-dino", revision=revision)
        # The PIL image processor gives the same pixels on every machine; the other one needs torchvision.
        processor = AutoProcessor.from_pretrained(source, revision=revision, backend="pil")
        model = GroundingDinoForObjectDetection.from_pretrained(source, revision=revision, dtype=dtype)
        return cls(model, processor, **options)

    def ground(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detections]:
        """Candidates for each (image, phrase) pair, with scores in 0..1; see the module's text for which.

        Raises:
            ValueError: an empty phrase, or lists of different lengths.
        """
        pictures = check_pairs(images, phrases, self.name)
        texts = [prompt_text(phrase) for phrase in phrases]
        answers: list[Detections] = [empty_candidates(self.name, scores=True)] * len(texts)
        for batch in batched(pictures, self.batch_size, self.name, self.progress, same_size=True):
            readings = self.read([pictures[place] for place in batch], [texts[place] for place in batch])
            for place, reading in zip(batch, readings, strict=True):
                answers[place] = self._candidates(reading)
        return answers

    def read(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Reading]:
        """One forward pass over pairs of RGB images and prompts as made by :func:`prompt_text`."""
        import torch

        # Every text ends in a dot here; the processor would merge a flat list of texts without any into one prompt.
        limit = self.model.config.max_text_len
        inputs = self.processor(
            images=list(images),
            text=list(texts),
            padding=True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        ).to(self.device)
        if len(inputs["input_ids"]) != len(texts):
            raise RuntimeError(f"{self.name}: {len(texts)} texts became {len(inputs['input_ids'])} prompts.")
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        probabilities = outputs.logits.float().sigmoid().cpu().numpy().astype(np.float64)
        unit_boxes = outputs.pred_boxes.float().cpu().numpy()
        return [
            self._reading(text, image, inputs["input_ids"][place], probabilities[place], unit_boxes[place], limit)
            for place, (image, text) in enumerate(zip(images, texts, strict=True))
        ]

    def _reading(
        self,
        text: str,
        image: Image.Image,
        padded: torch.Tensor,
        probabilities: npt.NDArray[np.float64],
        unit_boxes: npt.NDArray[np.float32],
        limit: int,
    ) -> Reading:
        tokenizer = self.processor.tokenizer
        encoded = tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
        tokens = np.asarray(encoded["input_ids"], dtype=np.int64)
        if not np.array_equal(padded[: len(tokens)].cpu().numpy(), tokens):
            raise RuntimeError(
                f"{self.name}: the processor read {text!r} as other tokens than its tokenizer does; "
                "expected a tokenizer that pads on the right."
            )
        return Reading(
            text=text,
            probabilities=probabilities[:, : len(tokens)],
            boxes=to_xyxy(unit_boxes, "cxcywh_unit", image.size),
            tokens=tokens,
            spans=np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2),
        )

    def _candidates(self, reading: Reading) -> Detections:
        found = self._by_sentence(reading) if self.scoring == "sentence" else self._by_groups(reading)
        found.metadata["text_truncated"] = bool(reading.spans[:, 1].max() < len(reading.text))
        return found

    def _by_sentence(self, reading: Reading) -> Detections:
        """GD. The maximum runs over all tokens, special ones included, as in the released post-processing."""
        scores = reading.probabilities.max(axis=1)
        kept = np.flatnonzero(scores > self.thresholds.box)
        return make_candidates(
            reading.boxes[kept],
            [self._label(reading, int(query)) for query in kept],
            scores[kept],
            self.name,
            int(scores[kept].argmax()) if len(kept) else -1,
        )

    def _label(self, reading: Reading, query: int) -> str:
        """The words whose probability passes; the whole phrase when only special tokens or the dot do."""
        words = reading.tokens_in(0, len(reading.text) - 1)
        passing = words[reading.probabilities[query, words] > self.thresholds.text]
        label = self.processor.tokenizer.decode(reading.tokens[passing]).replace(".", " ")
        return " ".join(label.split()) or reading.text[:-1]

    def _by_groups(self, reading: Reading) -> Detections:
        """GDrec. The subject always gives at least its best box."""
        sentence = reading.text[:-1]
        groups = noun_groups(sentence, self.parser)
        subject = groups.subject
        wanted = [(subject.text, subject.start, subject.end, self.thresholds.subject)]
        wanted += [(group.text, group.start, group.end, self.thresholds.group) for group in groups.others]
        if subject.text != sentence.strip():
            wanted.append((sentence, 0, len(sentence), self.thresholds.sentence))
        boxes: list[npt.NDArray[np.float64]] = []
        labels: list[str] = []
        scores: list[float] = []
        top = -1
        for place, (label, start, end, threshold) in enumerate(wanted):
            tokens = reading.tokens_in(start, end)
            if not len(tokens):  # the text was longer than the network reads, and this group was in the part cut off
                continue
            group_scores = reading.probabilities[:, tokens].min(axis=1)
            kept = np.flatnonzero(group_scores > threshold)
            if place == 0:
                kept = kept if len(kept) else group_scores.argmax()[None]
                top = int(group_scores[kept].argmax())
            boxes += list(reading.boxes[kept])
            labels += [label] * len(kept)
            scores += group_scores[kept].tolist()
        if not boxes:
            return empty_candidates(self.name, scores=True)
        return make_candidates(np.array(boxes), labels, scores, self.name, top)
