"""Search for a probe's settings: Bayesian (TPE), with pruning, and going on where it was killed.

"Lost in Space" tunes the learning rate, the number of epochs and, for boxes, the weights of the two losses, with TPE
for at least ten trials (table 4). A study is an SQLite file, written after every epoch of every trial. The proposals of
a trial depend on the seed and on the finished trials alone, so a study that was killed and taken up again ends as one
that was not; the trial that was cut off is marked as failed and asked for once more.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import sqlalchemy
from filelock import FileLock
from optuna.trial import TrialState
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.probing.training import OnEpoch, ProbeSettings

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
Train = Callable[[ProbeSettings, OnEpoch], float]
"""Trains with given settings, reports every epoch, and returns the best validation score."""


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What is searched: a range of learning rates (log scale), choices of epochs and of loss weights (boxes only)."""

    learning_rate: tuple[float, float]
    epochs: tuple[int, ...]
    weights: tuple[float, ...] = ()

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return a trial's proposal, by names of `ProbeSettings`."""
        found: dict[str, Any] = {
            "learning_rate": trial.suggest_float("learning_rate", *self.learning_rate, log=True),
            "epochs": trial.suggest_categorical("epochs", self.epochs),
        }
        if self.weights:
            found["l1"] = trial.suggest_categorical("l1", self.weights)
            found["giou"] = trial.suggest_categorical("giou", self.weights)
        return found


@dataclass(frozen=True)
class Found:
    """The best settings of a search, their validation score, and the table of all trials."""

    settings: ProbeSettings
    score: float
    trials: pd.DataFrame


def search(
    train: Train,
    space: SearchSpace,
    base: ProbeSettings,
    *,
    name: str,
    identity: Mapping[str, Any] | None = None,
    trials: int = 10,
    folder: Path | None = None,
    seed: int = 0,
    prune: bool = True,
    warm_up_epochs: int = 5,
    progress: bool = True,
) -> Found:
    """Look for the settings with the best validation score.

    Args:
        train: see `Train`.
        space: what may vary; everything else is as in `base`.
        base: the other settings.
        name: of the study, such as "rec micro-qformer frozen".
        identity: what the scores depend on besides the settings (hashes of weights and data, ...): another identity is
            another study.
        trials: finished trials (complete or pruned) that the study shall have in the end.
        folder: of the study's file (default: ``studies`` in the cache folder).
        seed: of the proposals.
        prune: stop trials whose score is below the median of the earlier ones at the same epoch.
        warm_up_epochs: the first epoch after which a trial can be pruned.
        progress: show a bar over the trials.

    Returns:
        The best complete trial's settings.

    Raises:
        ValueError: fewer than one trial.
    """
    if trials < 1:
        raise ValueError(f"expected at least one trial, got {trials}")
    place = folder or storage.cache_home() / "studies"
    place.mkdir(parents=True, exist_ok=True)
    facts = {
        "space": asdict(space),
        "base": asdict(base),
        "identity": dict(identity or {}),
        "seed": seed,
        "prune": prune,
    }
    facts["warm_up_epochs"] = warm_up_epochs
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = place / f"{name.replace(' ', '-').replace('/', '-')}-{digest}.sqlite"
    with FileLock(f"{path}.lock"):  # one process per study: a trial that is running when it is opened was cut off
        return _search(_open(path, name, prune, warm_up_epochs), train, space, base, trials, seed, progress)


def _open(path: Path, name: str, prune: bool, warm_up_epochs: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if prune:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=warm_up_epochs)
    _set_aside_if_broken(path)
    store = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    # What a killed process has written is in the system's hands already. Waiting for the disk after each of the three
    # writes per epoch costs more than a trial, and helps against a power cut only, which the check above would notice.
    sqlalchemy.event.listen(store.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
    store.engine.dispose()  # the connection that made the tables did not hear of it
    study = optuna.create_study(
        storage=store, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
    )
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
    return study


def _set_aside_if_broken(path: Path) -> None:
    """Rename a study's file that SQLite cannot vouch for, with a warning."""
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(path)) as connection:
            sound = connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except sqlite3.DatabaseError:
        sound = False
    if not sound:
        aside = path.with_name(f"torn-{path.name}-{time.time_ns()}")
        path.rename(aside)
        warnings.warn(f"{path} is damaged; set aside as {aside.name}, the study begins anew", stacklevel=3)


def _search(
    study: optuna.Study,
    train: Train,
    space: SearchSpace,
    base: ProbeSettings,
    trials: int,
    seed: int,
    progress: bool,
) -> Found:
    done = len(study.get_trials(deepcopy=False, states=FINISHED))
    with tqdm(total=trials, initial=min(done, trials), desc="trials", disable=not progress, leave=False) as bar:
        while done < trials:
            study.sampler = _sampler(seed, done)
            _one_trial(study, train, space, base)
            done += 1
            bar.update()
            if any(t.state == TrialState.COMPLETE for t in study.get_trials(deepcopy=False)):
                bar.set_postfix(best=f"{study.best_value:.3f}")
    best = study.best_trial
    return Found(base.changed(**best.params), float(study.best_value), table(study))


def _sampler(seed: int, finished: int) -> optuna.samplers.TPESampler:
    """A sampler whose proposal depends on the seed and the finished trials, not on how often the study was opened."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed * 100_003 + finished, n_startup_trials=5)


def _one_trial(study: optuna.Study, train: Train, space: SearchSpace, base: ProbeSettings) -> None:
    trial = study.ask()
    settings = base.changed(**space.suggest(trial))

    def report(epoch: int, score: float) -> None:
        trial.report(score, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        score = train(settings, report)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except FloatingPointError:
        study.tell(trial, float("-inf"))  # diverged: the worst score there is, which the sampler learns from
    except Exception:
        study.tell(trial, state=TrialState.FAIL)
        raise
    else:
        study.tell(trial, score)


def table(study: optuna.Study) -> pd.DataFrame:
    """Return one row per trial that was not cut off: trial, state, score, epochs run, seconds, and its settings."""
    rows = []
    for trial in study.get_trials(deepcopy=False, states=FINISHED):
        seconds = trial.duration.total_seconds() if trial.duration else float("nan")
        last = max(trial.intermediate_values, default=0)
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "score": trial.value if trial.state == TrialState.COMPLETE else float("nan"),
                "epochs run": last,
                "seconds": seconds,
                **trial.params,
            }
        )
    return pd.DataFrame(rows)
