"""The whole study on one data set: detectors x language models, kept in one predictions table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from seewhere import metrics, storage
from seewhere.datasets import ReferringDataset
from seewhere.llm_wrapper import experiments, prompts
from seewhere.llm_wrapper.wrapper import LLMWrapper, shipped_adapter
from seewhere.models.candidates import Detections, make_candidates
from seewhere.models.label_match import best_candidate
from seewhere.models.registry import load_grounder
from seewhere.records import Expression
from seewhere.show import figures


def draw_expressions(dataset: ReferringDataset, count: int, seeds: Sequence[int]) -> tuple[list[Expression], list[int]]:
    """Draw about `count` expressions for each seed: whole pictures in random order, all of a picture's expressions.

    Questions about one picture share its candidate list, so they cost little more than one; intervals are therefore
    drawn over pictures. No picture is drawn twice.

    Returns:
        (expressions, the seed that drew each). Fewer than asked for where the data set ends.
    """
    by_image: dict[int, list[Expression]] = {}
    for expression in dataset.expressions:
        by_image.setdefault(expression.image.image_id, []).append(expression)
    left, chosen, drawn_by = sorted(by_image), list[Expression](), list[int]()
    for seed in seeds:
        Random(seed).shuffle(left)
        start = len(chosen)
        while left and len(chosen) - start < count:
            found = by_image[left.pop()][: count - (len(chosen) - start)]
            chosen += found
            drawn_by += [seed] * len(found)
        left.sort()
    return chosen, drawn_by


def annotated_candidates(dataset: ReferringDataset, expressions: Sequence[Expression]) -> list[Detections]:
    """Return the data set's own boxes as candidates, for data without a detector.

    Labels are category names; the zero-shot answer is the best word match, the largest box among equals.
    """
    found = []
    for expression in expressions:
        regions = [r for r in dataset.by_image[expression.image.image_id] if not r.is_crowd]
        boxes = np.array([r.box for r in regions]).reshape(-1, 4)
        labels = [r.label for r in regions]
        sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        top = best_candidate(expression.text, labels, sizes)
        found.append(make_candidates(boxes, labels, None, detector=experiments.ANNOTATIONS, top=top))
    return found


@dataclass
class Study:
    """Detectors and language models asked about the same expressions.

    Attributes:
        dataset: where the expressions are from.
        expressions: what is asked.
        drawn_by: the seed that drew each expression.
        candidates: detector name -> candidate lists, one per expression.
        table: the predictions so far, one row per (expression, system).
    """

    dataset: ReferringDataset
    expressions: list[Expression]
    drawn_by: list[int]
    candidates: dict[str, list[Detections]] = field(default_factory=dict)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    @classmethod
    def start(cls, dataset: ReferringDataset, count: int, seeds: Sequence[int], detectors: Sequence[str]) -> Study:
        """Draw `count` expressions a seed and ask every detector; ``annotations`` are the data set's own boxes."""
        study = cls(dataset, *draw_expressions(dataset, count, seeds))
        for name in tqdm(detectors, desc="detectors", leave=False):
            if name == experiments.ANNOTATIONS:
                study.candidates[name] = annotated_candidates(dataset, study.expressions)
            else:
                study.candidates[name] = experiments.detect(load_grounder(name), study.expressions)
            study.add(experiments.zero_shot(study.expressions, study.candidates[name], name))
            study.add(study.at_random(name, seeds[0]))
        return study

    def add(self, rows: pd.DataFrame) -> None:
        """Append rows to the table."""
        self.table = pd.concat([self.table, rows], ignore_index=True)

    def estimates(self, seed: int = 0) -> dict[str, metrics.Interval]:
        """Return P@1 (0..1) of every system with its interval, for charts."""
        return {
            str(system): metrics.bootstrap_interval(part.hit.to_numpy(float), part.image_id.to_numpy(), seed)
            for system, part in self.table.groupby("system", sort=False)
        }

    def panels(self, detector: str, label: str, count: int = 4) -> list[figures.PanelRow]:
        """Lay out expressions, one a picture, for which the detector and a system asked before disagree."""
        chosen = self.table[self.table.system == f"{detector} + {label}"]["index"]
        rows: list[figures.PanelRow] = []
        shown: set[int] = set()
        for expression, found, index in zip(self.expressions, self.candidates[detector], chosen, strict=True):
            own, image_id = int(found.metadata.get("top", -1)), expression.image.image_id
            if own != index and len(rows) < count and image_id not in shown:
                shown.add(image_id)
                choices = {"detector": own, "wrapper": int(index)}
                rows.append(
                    figures.PanelRow(expression.image.open(), expression.text, found, expression.region.box, choices)
                )
        return rows

    def at_random(self, detector: str, seed: int) -> pd.DataFrame:
        """Score one candidate picked at random, the floor of every choice."""
        random = np.random.default_rng(seed)
        picked = []
        for found in self.candidates[detector]:
            top = int(random.integers(len(found))) if len(found) else -1
            picked.append(
                Detections(
                    xyxy=found.xyxy,
                    confidence=found.confidence,
                    data=found.data,
                    metadata={**found.metadata, "top": top},
                )
            )
        return experiments.zero_shot(self.expressions, picked, f"{detector}, at random")

    def ask(self, wrapper: LLMWrapper | Mapping[int, LLMWrapper], detector: str, label: str, free: bool = False) -> str:
        """Ask a wrapper about a detector's candidates; the system is called "detector + label" in the table.

        A mapping gives each seed's expressions to the wrapper that was trained with that seed.
        """
        name = f"{detector} + {label}"
        wrappers = wrapper if isinstance(wrapper, Mapping) else dict.fromkeys(self.drawn_by, wrapper)
        parts: dict[int, tuple[LLMWrapper, list[int]]] = {}
        for place, seed in enumerate(self.drawn_by):
            parts.setdefault(id(wrappers[seed]), (wrappers[seed], []))[1].append(place)
        rows = []
        for one, places in parts.values():
            asked = [self.expressions[i] for i in places], [self.candidates[detector][i] for i in places]
            rows.append(experiments.wrapped(one, *asked, name, free).set_index(pd.Index(places)))
        self.add(pd.concat(rows).sort_index().assign(detector=detector) if rows else pd.DataFrame())
        return name

    def join(self, first: str, second: str) -> str:
        """Join two detectors' candidates for ensembling; returns the joint name."""
        name = f"{first} & {second}"
        self.candidates[name] = [
            prompts.merge_candidates(a, b) for a, b in zip(self.candidates[first], self.candidates[second], strict=True)
        ]
        return name


def adapter_hashes(names: Sequence[str]) -> dict[str, str]:
    """Return name -> hash of the adapters that ship for some language models."""
    folders = {name: shipped_adapter(name) for name in names}
    return {
        f"llm-wrapper-{name}": storage.hash_file(folder / "adapter_model.safetensors")
        for name, folder in folders.items()
        if folder is not None
    }
