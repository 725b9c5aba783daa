"""The paper's experiments: a task, a resampler, frozen or trained along, over seeds, into one predictions table."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seewhere.probing import controls, crossed_text
from seewhere.probing.features import cached_encodings, cached_features
from seewhere.probing.names import FROZEN, UNFROZEN, folder_of
from seewhere.probing.protocols import EncodedResampler, Resampler, TrainableResampler
from seewhere.probing.search import Found, SearchSpace, search
from seewhere.probing.sources import FrozenTokens, TrainedTokens
from seewhere.probing.tasks import SPLITS, Example, Task, data_hash, examples_hash
from seewhere.probing.training import Fitted, OnEpoch, ProbeSettings, fit, predict


@dataclass(frozen=True)
class Arm:
    """What came out of one arm: its test predictions over all seeds, and what was trained under each."""

    table: pd.DataFrame
    fitted: dict[int, Fitted]

    def validation(self) -> dict[int, float]:
        """Return the best validation score of each seed, 0..1."""
        return {seed: found.score for seed, found in self.fitted.items()}


def frozen_sources(
    task: Task, model: Resampler, layers: Sequence[str] | None = None, root: Path | None = None, progress: bool = True
) -> dict[str, dict[str, FrozenTokens]]:
    """Return the cached tokens of a task: layer -> split -> source; all layers are computed in one pass."""
    found: dict[str, dict[str, FrozenTokens]] = {}
    for split in SPLITS:
        tables = cached_features(model, task.splits[split], layers, root=root, progress=progress)
        for layer, table in tables.items():
            found.setdefault(layer, {})[split] = FrozenTokens(table)
    return found


def frozen_outputs(
    sources: Mapping[str, FrozenTokens], targets: Mapping[str, NDArray[np.float32]], settings: ProbeSettings
) -> NDArray[np.float32]:
    """Train one probe on frozen tokens, split -> source, and return its outputs on the test split, (N, outputs)."""
    fitted = fit(
        sources["train"], targets["train"], sources["validation"], targets["validation"], settings, progress=False
    )
    return predict(fitted.probe, sources["test"])


def unfrozen_sources(
    task: Task, model: TrainableResampler, root: Path | None = None, progress: bool = True
) -> dict[str, TrainedTokens]:
    """Return split -> source of a resampler to be trained along, on its encoder's cached tokens where it has any.

    The resampler is copied first, so the given one stays as it is.

    Raises:
        ValueError: a model without parameters that require gradients.
    """
    own = copy.deepcopy(model)
    if not any(p.requires_grad for p in own.module.parameters()):
        raise ValueError(f"{model.name} has no parameter to train along; it can only be probed frozen")
    return {split: tokens_of(own, task.splits[split], root, progress) for split in SPLITS}


def tokens_of(
    model: TrainableResampler, examples: Sequence[Example], root: Path | None = None, progress: bool = True
) -> TrainedTokens:
    """Return the tokens of a resampler that is trained along, or was, on its encoder's cached tokens if it has any."""
    encoded = cached_encodings(model, examples, root, progress) if isinstance(model, EncodedResampler) else None
    return TrainedTokens(model, examples, encoded)


def frozen_arm(
    task: Task,
    model: Resampler,
    settings: ProbeSettings,
    seeds: Sequence[int] = (0,),
    layer: str | None = None,
    root: Path | None = None,
    progress: bool = True,
) -> Arm:
    """Train probes on a frozen resampler's cached tokens, one per seed, and score the test split."""
    chosen = layer or model.layers[-1]
    sources = frozen_sources(task, model, [chosen], root, progress)[chosen]
    return _arm(task, dict.fromkeys(seeds, sources), settings, model.name, FROZEN, chosen, None, progress)


def unfrozen_arm(
    task: Task,
    model: TrainableResampler,
    settings: ProbeSettings,
    seeds: Sequence[int] = (0,),
    root: Path | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> Arm:
    """Train the resampler and a probe together, once per seed from the same weights, and score the test split.

    `folder` keeps the state of each seed's training, so that a killed one goes on.
    """
    table: list[pd.DataFrame] = []
    fitted: dict[int, Fitted] = {}
    for seed in seeds:  # one copy of the resampler at a time
        sources = unfrozen_sources(task, model, root, progress)
        one = _arm(task, {seed: sources}, settings, model.name, UNFROZEN, model.layers[-1], folder, progress)
        table.append(one.table)
        fitted |= one.fitted
    return Arm(pd.concat(table, ignore_index=True), fitted)


def _arm(
    task: Task,
    sources_by_seed: Mapping[int, Mapping[str, Any]],
    settings: ProbeSettings,
    name: str,
    arm: str,
    layer: str,
    folder: Path | None,
    progress: bool,
) -> Arm:
    tables, fitted = [], {}
    for seed, sources in sources_by_seed.items():
        fitted[seed] = _fit(
            task,
            sources,
            settings.changed(seed=seed),
            folder=None if folder is None else folder_of(folder, task.name, name, arm, seed),
            progress=progress,
            description=f"{task.name}, {name} {arm}, seed {seed}",
        )
        columns = {"resampler": name, "arm": arm, "seed": seed, "layer": layer, "probe_layers": settings.layers}
        outputs = predict(fitted[seed].probe, sources["test"])
        tables.append(controls.predictions(task, outputs, "test", **columns))
    return Arm(pd.concat(tables, ignore_index=True), fitted)


def _fit(task: Task, sources: Mapping[str, Any], settings: ProbeSettings, **options: Any) -> Fitted:
    return fit(
        sources["train"],
        task.targets("train"),
        sources["validation"],
        task.targets("validation"),
        settings,
        **options,
    )


def search_arm(
    task: Task,
    model: Resampler,
    space: SearchSpace,
    base: ProbeSettings,
    *,
    arm: str = FROZEN,
    layer: str | None = None,
    trials: int = 10,
    folder: Path | None = None,
    root: Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Found:
    """Search the settings of one arm by its validation score; see `seewhere.probing.search.search`.

    Raises:
        ValueError: unknown arm, or one that must be trained with a model that cannot be.
    """
    if arm not in (FROZEN, UNFROZEN):
        raise ValueError(f"unknown arm {arm!r}; expected {FROZEN!r} or {UNFROZEN!r}")
    if arm == UNFROZEN and not isinstance(model, TrainableResampler):
        raise ValueError(f"{model.name} cannot be trained along: it has no module and forward")
    chosen = layer or model.layers[-1]
    frozen = frozen_sources(task, model, [chosen], root, progress)[chosen] if arm == FROZEN else None

    def train(settings: ProbeSettings, on_epoch: OnEpoch) -> float:
        sources: Mapping[str, Any]
        if frozen is not None:
            sources = frozen
        else:
            assert isinstance(model, TrainableResampler)
            sources = unfrozen_sources(task, model, root, progress)
        return _fit(task, sources, settings, on_epoch=on_epoch, progress=False).score

    identity = {
        "weights": model.weights_hash,
        "layer": chosen,
        "mixed precision": str(bool(getattr(model, "bf16", False))),
        **{split: data_hash(task.splits[split]) for split in ("train", "validation")},
        **{f"{split} targets": examples_hash(task.splits[split]) for split in ("train", "validation")},
    }
    return search(
        train,
        space,
        base,
        name=f"{task.name} {model.name} {arm}",
        identity=identity,
        trials=trials,
        folder=folder,
        seed=seed,
        progress=progress,
    )


def control_tables(
    task: Task, settings: ProbeSettings, root: Path | None = None, progress: bool = True
) -> pd.DataFrame:
    """Return the test predictions of the controls that need no resampler: majority, random, and the text alone.

    The text-only probe is trained like any frozen one, always on standardised counts, so that it is no weaker than it
    could be. Of yes/no tasks the text is read in a second way, with its words held against each other, see
    `seewhere.probing.crossed_text`. The column ``resampler`` names the control.
    """
    constant = controls.predictions(task, controls.majority(task), resampler="majority", arm="control", seed=0)
    drawn = controls.predictions(task, controls.at_random(task, seed=settings.seed), resampler="random", arm="control")
    plain = settings.changed(standardise=True, layers=1)
    text = frozen_arm(task, controls.TextOnly(), plain, (settings.seed,), None, root, progress).table
    parts = [constant, drawn.assign(seed=0), text.assign(arm="control", seed=0)]
    if task.kind == "binary":
        outputs = crossed_text.crossed_text(task, settings.seed)
        parts.append(controls.predictions(task, outputs, resampler=crossed_text.NAME, arm="control", seed=0))
    return pd.concat([part.assign(layer="", probe_layers=0) for part in parts], ignore_index=True)


def train_counts(task: Task) -> dict[str, int]:
    """Return super-category -> number of training examples."""
    return dict(Counter(str(e.meta.get("super_category", "")) for e in task.splits["train"]))
