"""The whole study on one data set: detectors x language models, kept in one predictions table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from seewhere import metrics
from seewhere.datasets import ReferringDataset
from seewhere.llm_wrapper import experiments, prompts
from seewhere.llm_wrapper.wrapper import CHOSEN, ONE_CANDIDATE, LLMWrapper
from seewhere.models import provenance
from seewhere.models.candidates import Detections, make_candidates
from seewhere.models.label_match import best_candidate
from seewhere.models.registry import load_grounder
from seewhere.records import Expression
from seewhere.show import figures

SURER = "the surer of two"  # the status of an answer that was given before, see `Study.surer`
LONG_DATA = ("worldlong", "hc-refloco")


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


@dataclass(eq=False)
class Study:
    """Detectors and language models asked about the same expressions.

    Attributes:
        dataset: where the expressions are from.
        expressions: what is asked.
        drawn_by: the seed that drew each expression.
        candidates: detector name -> candidate lists, one per expression.
        table: the predictions so far, one row per (expression, system).
        hashes: detector name -> what identifies its weights.
    """

    dataset: ReferringDataset
    expressions: list[Expression]
    drawn_by: list[int]
    candidates: dict[str, list[Detections]] = field(default_factory=dict)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    hashes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def start(cls, dataset: ReferringDataset, count: int, seeds: Sequence[int], detectors: Sequence[str]) -> Study:
        """Draw `count` expressions a seed and ask every detector; ``annotations`` are the data set's own boxes."""
        return cls.of(dataset, *draw_expressions(dataset, count, seeds), detectors)

    @classmethod
    def of(
        cls, dataset: ReferringDataset, expressions: list[Expression], drawn_by: list[int], detectors: Sequence[str]
    ) -> Study:
        """As `start`, about expressions that are drawn already."""
        study = cls(dataset, expressions, drawn_by)
        for name in tqdm(detectors, desc="detectors", leave=False):
            if name == experiments.ANNOTATIONS:
                study.candidates[name] = annotated_candidates(dataset, study.expressions)
            else:
                grounder = load_grounder(name)
                study.candidates[name] = experiments.detect(grounder, study.expressions)
                study.hashes[name] = provenance.grounder_hash(grounder)
            study.add(experiments.zero_shot(study.expressions, study.candidates[name], name))
            study.add(study.at_random(name, drawn_by[0] if drawn_by else 0))
        return study

    @property
    def is_long(self) -> bool:
        """Whether the data set asks in paragraphs (F9); all others are ordinary."""
        return self.dataset.name in LONG_DATA

    def add(self, rows: pd.DataFrame) -> None:
        """Append rows to the table."""
        self.table = pd.concat([self.table, rows], ignore_index=True)

    def estimates(self, seed: int = 0, detector: str | None = None) -> dict[str, metrics.Interval]:
        """Return P@1 (0..1) of every system (on one detector's boxes) with its interval, for charts."""
        table = self.table if detector is None else self.table[self.table.detector == detector]
        return {
            str(system): metrics.bootstrap_interval(part.hit.to_numpy(float), part.image_id.to_numpy(), seed)
            for system, part in table.groupby("system", sort=False)
        }

    def panels(self, detector: str, llm: str, count: int = 4) -> list[figures.PanelRow]:
        """Lay out expressions, one a picture, for which the detector and a fine-tuned model asked before disagree.

        Where they never do, those that the model was asked first.
        """
        asked = self.table[self.table.system == experiments.system(detector, llm)]
        chosen = dict(zip(asked.expression_id, asked["index"], strict=True))
        pairs = zip(self.expressions, self.candidates[detector], strict=True)
        known = [(expression, found) for expression, found in pairs if expression.expression_id in chosen]
        apart = [(e, found) for e, found in known if chosen[e.expression_id] != found.metadata.get("top", -1)]
        rows: dict[int, figures.PanelRow] = {}
        for expression, found in apart or known:
            if len(rows) < count and expression.image.image_id not in rows:
                index = int(chosen[expression.expression_id])
                choices = {"detector": int(found.metadata.get("top", -1)), "wrapper": index}
                rows[expression.image.image_id] = figures.PanelRow(
                    expression.image.open(), expression.text, found, expression.region.box, choices
                )
        return list(rows.values())

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
        return experiments.zero_shot(self.expressions, picked, detector, experiments.AT_RANDOM)

    def ask(
        self,
        wrapper: LLMWrapper | Mapping[int, LLMWrapper],
        detector: str,
        llm: str,
        training: str = experiments.FINE_TUNED,
        free: bool = False,
        most: int | None = None,
    ) -> str:
        """Ask a wrapper about a detector's candidates; returns the system's name in the table.

        A mapping gives each seed's expressions to the wrapper that was trained with that seed.

        Args:
            wrapper: one for all, or one for each seed.
            detector: whose candidates.
            llm: the language model's name, for the table.
            training: "fine-tuned" or "zero-shot".
            free: let it write, see `LLMWrapper.answer_freely`.
            most: of each seed's expressions only so many, the first drawn; None for all.
        """
        wrappers = wrapper if isinstance(wrapper, Mapping) else dict.fromkeys(self.drawn_by, wrapper)
        parts: dict[int, tuple[LLMWrapper, list[int]]] = {}
        for place in self._first(most):
            one = wrappers[self.drawn_by[place]]
            parts.setdefault(id(one), (one, []))[1].append(place)
        rows = []
        for one, places in parts.values():
            asked = [self.expressions[i] for i in places], [self.candidates[detector][i] for i in places]
            rows.append(experiments.wrapped(one, *asked, detector, llm, training, free).set_index(pd.Index(places)))
        self.add(pd.concat(rows).sort_index() if rows else pd.DataFrame())
        return experiments.system(detector, llm, training, free)

    def _first(self, most: int | None) -> list[int]:
        """Places of the first `most` expressions that each seed drew."""
        seen: Counter[int] = Counter()
        chosen = []
        for place, seed in enumerate(self.drawn_by):
            seen[seed] += 1
            if most is None or seen[seed] <= most:
                chosen.append(place)
        return chosen

    def surer(self, first: str, second: str, llm: str) -> str:
        """Of the answers that were given about each detector's list alone take the surer one; returns the joint name.

        A list of one was never asked about, so it counts only where the other list gave no answer either.
        """
        one, two = (
            self.table[self.table.system == experiments.system(name, llm)].set_index("expression_id")
            for name in (first, second)
        )
        both = [number for number in one.index if number in two.index]
        one, two = one.loc[both], two.loc[both]
        second_is_surer = _sureness(two) > _sureness(one)
        taken = pd.concat([one[~second_is_surer], two[second_is_surer]]).loc[both]
        name = f"{first} | {second}"
        system = experiments.system(name, llm)
        taken = taken.assign(system=system, detector=name, status=SURER, reachable=one.reachable | two.reachable)
        self.add(taken.reset_index())
        return name

    def join(self, first: str, second: str) -> str:
        """Join two detectors' candidates for ensembling; returns the joint name."""
        name = f"{first} & {second}"
        self.candidates[name] = [
            prompts.merge_candidates(a, b) for a, b in zip(self.candidates[first], self.candidates[second], strict=True)
        ]
        return name

    def hashes_of(self, detector: str) -> dict[str, str]:
        """Return the hashes of a detector's weights, of both where the name joins two."""
        names = detector.replace(" | ", " & ").split(" & ")
        return {f"detector {name}": self.hashes[name] for name in names if name in self.hashes}


def _sureness(rows: pd.DataFrame) -> pd.Series:
    """How sure each answer is: its probability; 0 where nothing was asked, below that where nothing was found."""
    unasked = rows.status.map({ONE_CANDIDATE: 0.0}).fillna(-1.0)
    return rows.probability.where(rows.status == CHOSEN, unasked)
