"""What a probe's score has to be held against: constants, chance, the text alone, and the whole model asked directly.

A probe that beats chance without seeing the picture has found a leak in the task, not place in the tokens; so the
text-only control is trained exactly like the probe, from the same texts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from seewhere.probing import losses
from seewhere.probing.features import cached_encodings, open_pictures
from seewhere.probing.protocols import EncodedMatcher, Matcher, VisualChooser
from seewhere.probing.tasks import Example, Task

YES_NO = ("yes", "no")


class TextOnly:
    """A "resampler" that never looks: counts of the text's words and word pairs, hashed into `width` places.

    It is as much of the text as a linear probe could ask for, so what it reaches can be had without the picture.
    """

    layers: tuple[str, ...] = ("words",)
    sees_pictures = False

    def __init__(self, width: int = 2048) -> None:
        self.width, self.name, self.weights_hash = width, "text only", f"hashed words {width}"

    def features(
        self, images: Sequence[Image.Image], texts: Sequence[str], layers: Sequence[str] | None = None
    ) -> dict[str, NDArray]:
        """Return ``{"words": (N, 1, width)}`` float32, each row of length 1; the pictures are not looked at."""
        found = np.zeros((len(texts), 1, self.width), dtype=np.float32)
        for row, text in enumerate(texts):
            words = re.findall(r"\w+", text.lower())
            for term in [*words, *(f"{a} {b}" for a, b in pairwise(words))]:
                place = int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "big")
                found[row, 0, place % self.width] += 1
        lengths = np.linalg.norm(found, axis=2, keepdims=True)
        return {"words": found / np.maximum(lengths, 1e-9)}


def majority(task: Task, split: str = "test") -> NDArray[np.float32]:
    """Return the outputs of a constant answer: the training split's commoner label, or its median box, (N, outputs)."""
    targets = task.targets("train")
    constant = np.median(targets, axis=0)
    if task.kind == "binary":
        constant = np.array([1.0 if targets.mean() >= 0.5 else -1.0])
    return np.repeat(constant[None], len(task.splits[split]), axis=0).astype(np.float32)


def at_random(task: Task, split: str = "test", seed: int = 0) -> NDArray[np.float32]:
    """Return outputs that are drawn: a coin's side, or the box of a random training example, (N, outputs)."""
    random = np.random.default_rng(seed)
    count = len(task.splits[split])
    if task.kind == "binary":
        return random.choice([-1.0, 1.0], size=(count, 1)).astype(np.float32)
    return task.targets("train")[random.integers(len(task.splits["train"]), size=count)]


def asked_directly(
    model: VisualChooser | Matcher,
    examples: Sequence[Example],
    question: str = "{} Is that true?",
    batch: int = 16,
) -> NDArray[np.float32]:
    """Ask a whole vision-language model yes or no about each example's text.

    Args:
        model: ranks "yes" and "no" (``choose``), or gives the probability that a statement is true (``match``).
        examples: of a yes/no task.
        question: what ``choose`` is asked, with the example's text in place of ``{}``. ("Lost in Space" used
            InstructBLIP's own prompts and ranked the logits.)
        batch: questions at a time.

    Returns:
        (N, 1) log odds of "yes".
    """
    found: list[float] = []
    encoded = cached_encodings(model, examples) if isinstance(model, EncodedMatcher) else None
    starts = range(0, len(examples), batch)
    for start in tqdm(starts, desc=f"{model.name} asked directly", leave=False, disable=len(starts) < 2):
        part = examples[start : start + batch]
        if isinstance(model, VisualChooser):
            prompts = [question.format(e.text) for e in part]
            pairs = model.choose(open_pictures(part), prompts, [YES_NO] * len(part))
        else:
            texts = [e.text for e in part]
            if encoded is not None and isinstance(model, EncodedMatcher):
                given = model.match_encoded(encoded[range(start, start + len(part))], texts)
            else:
                given = model.match(open_pictures(part), texts)
            pairs = [np.array([p, 1 - p]) for p in given]
        found += [np.log(max(yes, 1e-12)) - np.log(max(no, 1e-12)) for yes, no in pairs]
    return np.array(found, dtype=np.float32).reshape(-1, 1)


def can_answer(model: Any) -> bool:
    """Return whether a model can be asked directly if a statement is true."""
    return hasattr(model, "choose") or hasattr(getattr(model, "resampler", None), "match")


def asked_table(task: Task, model: Any, question: str) -> pd.DataFrame:
    """Return the test predictions of a whole model that is asked (see `asked_directly`), as those of a control."""
    outputs = asked_directly(model, task.splits["test"], question, batch=64)
    name = f"{model.name}, asked"
    return predictions(task, outputs, resampler=name, arm="control", seed=0, layer="", probe_layers=0)


def predictions(task: Task, outputs: NDArray[np.float32], split: str = "test", **columns: object) -> pd.DataFrame:
    """Return the predictions table: one row per example, with what was said, whether it is right, and group columns.

    Columns: example_id, image_id, text, target, prediction, score, correct, task, source, the example's own (label,
    super_category, cell, area, distance, relation, category, words, ...) and `columns`. For boxes, target and
    prediction are (cx, cy, w, h) in 0..1 and score is their IoU; for yes/no they are 0 or 1 and score is the logit.
    """
    examples = task.splits[split]
    if len(outputs) != len(examples):
        raise ValueError(f"{task!r}, {split}: expected {len(examples)} outputs, got {len(outputs)}")
    said, target = torch.from_numpy(np.asarray(outputs, dtype=np.float32)), torch.from_numpy(task.targets(split))
    right = losses.correct(said, target).numpy()
    shown: list[Any]
    truth: list[Any]
    if task.kind == "box":
        overlap, _ = losses.paired_iou(losses.corners(said), losses.corners(target))
        shown, truth = [tuple(map(float, row)) for row in outputs], [e.target for e in examples]
        scores = overlap.numpy().astype(float)
    else:
        shown, truth = (said[:, 0] > 0).int().tolist(), [int(e.target[0]) for e in examples]
        scores = said[:, 0].numpy().astype(float)
    table = pd.DataFrame(
        {
            "example_id": [e.example_id for e in examples],
            "image_id": [e.image_id for e in examples],
            "text": [e.text for e in examples],
            "target": truth,
            "prediction": shown,
            "score": scores,
            "correct": right,
            "task": task.name,
            "source": task.source,
        }
    )
    own = pd.DataFrame([e.meta for e in examples])
    return pd.concat([table, own], axis=1).assign(**columns)
