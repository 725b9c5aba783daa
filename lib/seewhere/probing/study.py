"""The whole study under one preset: tasks x models x arms x seeds, kept in predictions tables.

Frozen probes are small and many, so they are trained side by side in a few processes on cached tokens. Unfrozen arms
are few and costly: those that ship with the package are loaded, others are trained here, and records say which.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.presets import Preset
from seewhere.probing import arms, controls, experiments
from seewhere.probing.lengths import readable
from seewhere.probing.micro_models import UNTRAINED
from seewhere.probing.names import DATA, FROZEN, SHIPPED, UNFROZEN, folder_of
from seewhere.probing.protocols import EncodedResampler, Resampler, TrainableResampler
from seewhere.probing.settings import kind_of, settings_of, sizes_of, space_of
from seewhere.probing.sources import GreyPictures, TrainedTokens
from seewhere.probing.tasks import SPLITS, Task, data_hash, examples_hash, load_task, with_fewer, with_larger_train
from seewhere.probing.training import Fitted, ProbeSettings, fit, predict
from seewhere.probing.verdicts import Origin

GREY = "unfrozen, shown grey"
NO_ROWS = {"task": str, "resampler": str, "arm": str, "seed": int, "layer": str, "probe_layers": int, "correct": bool}


def load_tasks(
    settings: Preset,
    world: Path | str,
    referring: tuple[str, str] = ("", ""),
    vsr: tuple[str, str] = ("", ""),
    images: tuple[str, str] = ("", ""),
) -> dict[str, Task]:
    """Return the three tasks by name.

    Args:
        settings: of notebook 01; says how many examples.
        world: folder of the world, used where no other is given.
        referring: (folder, name) of the referring expressions for rec and rcm; "" for the world's.
        vsr: (folder, partition) of the spatial statements.
        images: folders of the pictures of both, where they are not in a usual place; "" where they are.
    """
    found = {}
    for name, usual in DATA.items():
        root, data = vsr if name == "vsr" else referring
        place = images[1] if name == "vsr" else images[0]
        task = load_task(name, root or world, data or usual, sizes_of(settings), images=place or None)
        start = settings.unfrozen_starts.get(name, "")
        found[name] = task if root else replace(task, larger=settings.unfrozen_world, start=start)
    return found


@dataclass
class Study:
    """Tasks and models under one preset.

    Attributes:
        settings: of notebook 01.
        tasks, models: by name.
        seeds: of the trainings.
        layered: tasks whose earlier layers will be asked for as well: all layers are then computed in one pass.
        chosen: (task, model, arm) -> settings, where something else than the preset's was found by a search.
        trained: (task, model, seed) -> (probe, resampler) of the unfrozen arms, for pictures.
        origins: how each unfrozen arm came to be.
        histories: (task, model, seed) -> one row per epoch of its training; see `seewhere.probing.training.Fitted`.
    """

    settings: Preset
    tasks: Mapping[str, Task]
    models: Mapping[str, Any]
    seeds: Sequence[int]
    layered: Sequence[str] = ()
    chosen: dict[tuple[str, str, str], ProbeSettings] = field(default_factory=dict)
    trained: dict[tuple[str, str, int], tuple[Any, Any]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    histories: dict[tuple[str, str, int], pd.DataFrame] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tasks = {name: readable(task, self.models.values()) for name, task in self.tasks.items()}

    def probe_settings(self, task: str, model: Resampler, arm: str, **changes: Any) -> ProbeSettings:
        """Return the settings of one arm: what a search found, or the preset's."""
        kind = kind_of(model.name, arm)
        found = self.chosen.get((task, model.name, arm)) or settings_of(self.settings, task, kind, arm)
        return found.changed(**changes)

    # -- frozen --------------------------------------------------------------------------------------------------------

    def frozen(
        self,
        models: Sequence[str],
        tasks: Sequence[str] = tuple(DATA),
        layers: str = "last",
        probe_layers: Sequence[int] = (1,),
        seeds: Sequence[int] | None = None,
    ) -> pd.DataFrame:
        """Return test predictions of probes on frozen tokens, for every combination of what is given.

        Args:
            models, tasks: names.
            layers: "last", "earlier" (all but the last) or "all".
            probe_layers: sizes of the probes.
            seeds: of the trainings; None for the study's.
        """
        jobs, about = [], []
        for task_name, model_name in product(tasks, models):
            task, model = self.tasks[task_name], self.models[model_name]
            names = {"last": model.layers[-1:], "earlier": model.layers[:-1], "all": model.layers}[layers]
            if not names:  # patch tokens have no layer before the last
                continue
            computed = model.layers if task_name in self.layered else names
            sources = experiments.frozen_sources(task, model, computed)
            targets = {split: task.targets(split) for split in SPLITS}
            for layer, size, seed in product(names, probe_layers, self.seeds if seeds is None else seeds):
                settings = self.probe_settings(task_name, model, FROZEN, layers=size, seed=seed)
                if size > 1 and self.settings.larger_probe_rate:
                    settings = settings.changed(learning_rate=self.settings.larger_probe_rate)
                jobs.append(joblib.delayed(experiments.frozen_outputs)(sources[layer], targets, settings))
                columns = {"resampler": model.name, "arm": FROZEN, "seed": seed, "layer": layer}
                about.append((task, {**columns, "probe_layers": size}))
        workers = min(self.settings.workers, os.cpu_count() or 1, max(len(jobs), 1))
        running = joblib.Parallel(workers, return_as="generator")(jobs)
        bar = tqdm(running, total=len(jobs), desc="probes", leave=False)
        tables = [controls.predictions(t, out, "test", **row) for out, (t, row) in zip(bar, about, strict=True)]
        return together(_nothing(), *tables)

    # -- unfrozen ------------------------------------------------------------------------------------------------------

    def unfrozen(self, models: Sequence[str], tasks: Sequence[str] = tuple(DATA)) -> pd.DataFrame:
        """Return test predictions of resamplers that were trained along with their probe.

        Arms that ship are loaded, if weights, examples and settings are these (see `arms.misfit`); they are those of
        the preset's own seeds, whatever the study's: its first seed goes with their first. What is done where none
        ships that fits, the preset's ``unfrozen`` says. "shipped": it is left out, with a line. "taste": the first
        seed's is trained here for ``live_unfrozen_epochs``, which a column of that name marks and no claim rests on.
        "train": every arm is trained here at full length, on the larger world if the preset names one. What is trained
        here is kept below `storage.runs_home`, so a training that was killed goes on where it was, and a finished one
        is read. Models with nothing to train are passed over, with a line; where none is left the table has no rows.
        """
        tables = [_nothing()]
        models = self.trainable(models)
        whole, taste = self.settings.unfrozen == "train", self.settings.unfrozen == "taste"
        for (task_name, model_name), seed in product(product(tasks, models), self.seeds):
            model = self.models[model_name]
            settings = self.probe_settings(task_name, model, UNFROZEN, seed=seed)
            folder, why = shipped_arm(self.tasks[task_name], model, settings.changed(seed=self._shipped_seed(seed)))
            if whole or (taste and folder is None and seed == self.seeds[0]):
                tables.append(self._train(task_name, model, settings, whole, "" if whole else why))
            elif folder is not None:
                tables.append(self._load(task_name, model, seed, folder))
            elif seed == self.seeds[0]:
                reason = f" that fits ({why})" if why else ""
                how = "seewhere train arms --out FOLDER --ship"
                print(f"{task_name}, {model_name}: no unfrozen arm ships{reason}. Train it and the others with: {how}")
        return together(*tables)

    def _shipped_seed(self, seed: int) -> int:
        """Return the seed of the shipped arm that stands for a seed of the study."""
        return dict(zip(self.seeds, self.settings.seeds, strict=False)).get(seed, seed)

    def trainable(self, models: Sequence[str]) -> list[str]:
        """Return those of some models that can be trained along; say of the others that they are probed frozen only."""
        found = []
        for name in models:
            module = getattr(self.models[name], "module", None)
            if module is not None and any(p.requires_grad for p in module.parameters()):
                found.append(name)
            else:
                print(f"{name}: nothing in it can be trained along, so it is probed frozen only")
        return found

    def arms_table(self) -> pd.DataFrame:
        """Return one row per unfrozen arm: task, model, seed, epochs, the best one and its score, and its origin."""
        rows = []
        for (task, model, seed), history in self.histories.items():
            score = history.validation_score
            best = int(history.epoch[score.idxmax()])
            rows.append((task, model, seed, len(history), best, score.max(), self.origins[f"{task} {model} {seed}"]))
        columns = ["task", "model", "seed", "epochs", "best epoch", "validation score", "how it came to be"]
        return pd.DataFrame(rows, columns=columns).round(3)

    def live(self, task: str, model: str, epochs: int | None = None) -> Fitted:
        """Train the first seed's unfrozen arm for some epochs (None: ``live_unfrozen_epochs``), and return it.

        It reads ``live_unfrozen_examples`` of the task (0: all): enough for a curve, too few for a result.
        """
        seed, data = self.seeds[0], self.tasks[task]
        if self.settings.live_unfrozen_examples:
            data = with_fewer(data, self.settings.live_unfrozen_examples, seed)
        probed = self._begin(task, self.models[model], seed)
        length = self.settings.live_unfrozen_epochs if epochs is None else epochs
        settings = self.probe_settings(task, probed, UNFROZEN, epochs=length, seed=seed)
        folder = state_folder(data, probed, settings)
        return experiments.unfrozen_arm(data, probed, settings, (seed,), folder=folder).fitted[seed]

    def _train(
        self, task: str, model: TrainableResampler, settings: ProbeSettings, whole: bool, why: str
    ) -> pd.DataFrame:
        data, seed = self.tasks[task], settings.seed
        if not whole:
            settings = settings.changed(epochs=self.settings.live_unfrozen_epochs)
        elif data.larger:
            data = readable(with_larger_train(data, self.settings, DATA[task]), self.models.values())
        begun = self._begin(task, model, seed)
        sources = experiments.unfrozen_sources(data, begun)
        place = state_folder(data, begun, settings)
        fitted = fit(
            sources["train"], data.targets("train"), sources["validation"], data.targets("validation"), settings,
            folder=folder_of(place, data.name, model.name, UNFROZEN, seed),
            description=f"{task}, {model.name} unfrozen, seed {seed}",
        )  # fmt: skip
        reason = _after(data.start) + (f" (the shipped arm is left out: {why})" if why else "")
        self.origins[f"{task} {model.name} {seed}"] = f"trained here for {settings.epochs} epochs{reason}"
        self.histories[task, model.name, seed] = fitted.history
        table = self._table(task, fitted.probe, sources["test"], model, seed).assign(taste=not whole)
        return table.assign(made=self.origins[f"{task} {model.name} {seed}"])

    def _begin(self, task: str, model: TrainableResampler, seed: int) -> TrainableResampler:
        """Return what an unfrozen training begins with: the resampler, or its arm on the task that is to come first."""
        start = self.tasks[task].start
        if not start:
            return model
        settings = self.probe_settings(start, model, UNFROZEN, seed=self._shipped_seed(seed))
        folder, _ = shipped_arm(self.tasks[start], model, settings)
        if folder is not None:
            own = arms.load_arm(folder, model)[1]
        else:
            if (start, model.name, seed) not in self.trained:
                self._train(start, model, settings.changed(seed=seed), True, "")
            own = copy.deepcopy(self.trained[start, model.name, seed][1])
            own.weights_hash = arms.parameters_hash(own.module)
        assert isinstance(own, TrainableResampler)
        return own

    def _load(self, task: str, model: EncodedResampler, seed: int, folder: Path) -> pd.DataFrame:
        probe, own, about = arms.load_arm(folder, model)
        examples = self.tasks[task].splits["test"]
        assert isinstance(own, TrainableResampler)
        self.origins[f"{task} {model.name} {seed}"] = (
            f"shipped, {about['settings']['epochs']} epochs of {about['train_examples']} examples"
            f"{_after(about.get('start_task', ''))}"
            f"{'' if about['settings']['seed'] == seed else ' (of the seeds that ship)'}"
        )
        self.histories[task, model.name, seed] = pd.DataFrame(about["history"])
        table = self._table(task, probe, experiments.tokens_of(own, examples), model, seed)
        return table.assign(made=self.origins[f"{task} {model.name} {seed}"])

    def _table(self, task: str, probe: Any, test: TrainedTokens, model: Resampler, seed: int) -> pd.DataFrame:
        # Kept is what is read again: on a GPU each is a resampler's worth of memory.
        if seed == self.seeds[0] or task in {other.start for other in self.tasks.values()}:
            self.trained[task, model.name, seed] = (probe, test.model)
        columns = {"resampler": model.name, "arm": UNFROZEN, "seed": seed, "layer": model.layers[-1]}
        return controls.predictions(self.tasks[task], predict(probe, test), "test", **columns, probe_layers=1)

    def blind(self) -> pd.DataFrame:
        """Return test predictions of the first seed's unfrozen arms that are shown grey in place of every picture.

        What they get right so, they have from the text alone. ``blind_examples`` of each task are asked; arms whose
        encoder cannot be run apart are left out.
        """
        tables = [_nothing()]
        for (name, model, seed), (probe, own) in self.trained.items():
            if seed != self.seeds[0] or not isinstance(own, EncodedResampler):
                continue
            task = self.tasks[name]
            asked = with_fewer(task, self.settings.blind_examples, seed, "test")
            assert isinstance(own, TrainableResampler)
            outputs = predict(probe, TrainedTokens(own, asked.splits["test"], GreyPictures(own)))
            columns = {"resampler": model, "arm": GREY, "seed": seed, "layer": own.layers[-1], "probe_layers": 1}
            tables.append(controls.predictions(asked, outputs, "test", **columns))
        return together(*tables)

    # -- controls, settings, records -----------------------------------------------------------------------------------

    def controls(self, asked: Sequence[Any] = (), tasks: Sequence[str] = tuple(DATA)) -> pd.DataFrame:
        """Return test predictions of majority, random and text-only controls, and of whole models asked directly.

        Args:
            asked: names of models of the study, or whole models such as an InstructBLIP, to put the yes/no tasks to;
                models that have nothing to answer with are passed over.
            tasks: names.
        """
        whole = [model for model in (self.models.get(m, m) for m in asked) if controls.can_answer(model)]
        tables = []
        for name in tasks:
            task = self.tasks[name]
            base = settings_of(self.settings, name, seed=self.seeds[0])
            tables.append(experiments.control_tables(task, base))
            if task.kind == "binary":
                tables += [controls.asked_table(task, model, self.settings.asked_question) for model in whole]
        return pd.concat(tables, ignore_index=True)

    def search(self, models: Sequence[str], tasks: Sequence[str] = tuple(DATA)) -> pd.DataFrame:
        """Search the frozen arms' settings (TPE, resumable), use them from now on, and return every trial."""
        found = []
        for task_name, model_name in product(tasks, models):
            model = self.models[model_name]
            base = self.probe_settings(task_name, model, FROZEN)
            space = space_of(self.settings, task_name)
            best = experiments.search_arm(
                self.tasks[task_name], model, space, base, trials=self.settings.search_trials, seed=self.seeds[0]
            )
            self.chosen[task_name, model.name, FROZEN] = best.settings
            found.append(best.trials.assign(task=task_name, resampler=model.name))
        return pd.concat(found, ignore_index=True)

    def chosen_settings(self, models: Sequence[str]) -> pd.DataFrame:
        """Return one row per task, model and arm: learning rate, epochs, loss weights, optimizer."""
        rows = []
        for task, name, arm in product(self.tasks, models, (FROZEN, UNFROZEN)):
            found = self.probe_settings(task, self.models[name], arm)
            weights = f"{found.l1:g} / {found.giou:g}" if task == "rec" else ""
            rows.append((task, name, arm, f"{found.learning_rate:g}", found.epochs, weights, found.optimizer))
        return pd.DataFrame(rows, columns=["task", "model", "arm", "learning rate", "epochs", "L1 / GIoU", "optimizer"])

    def origin(self) -> Origin:
        """Return what the records of this run have in common."""
        weights = {name: model.weights_hash for name, model in self.models.items()}
        untrained = any(getattr(model, "untrained", False) for model in self.models.values())
        return Origin(self.settings.name, tuple(self.seeds), weights, UNTRAINED if untrained else "")

    def majority(self, task: str) -> float:
        """Return the share (0..1) of test examples that a constant answer gets right."""
        return float(controls.predictions(self.tasks[task], controls.majority(self.tasks[task])).correct.mean())

    def gallery_tables(self, table: pd.DataFrame, task: str, model: str) -> dict[str, pd.DataFrame]:
        """Return arm -> the first seed's predictions of one task and model, for `pictures.box_gallery`."""
        part = table[(table.task == task) & (table.resampler == model) & (table.seed == self.seeds[0])]
        return {str(arm): rows for arm, rows in part[part.probe_layers == 1].groupby("arm", sort=True)}


def _nothing() -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in NO_ROWS.items()})


def together(*tables: pd.DataFrame) -> pd.DataFrame:
    """Return predictions tables as one; those without rows are left out, or numbers would turn into fractions."""
    return pd.concat([table for table in tables if len(table)] or list(tables[:1]), ignore_index=True)


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    """Return "task, resampler, arm" -> share (0..1) of right answers of the linear probes, for `runs.record`."""
    linear = table[table.probe_layers <= 1]
    means = linear.groupby(["task", "resampler", "arm"], sort=False).correct.mean()
    return {", ".join(map(str, key)): float(value) for key, value in means.items()}


def shipped_arm(
    task: Task, model: Resampler, settings: ProbeSettings, root: Path | None = None
) -> tuple[Path | None, str]:
    """Return the folder of the shipped unfrozen arm that training with these settings would give, or None and why.

    The reason is empty where nothing ships under that name.
    """
    folder = folder_of(root or SHIPPED, task.name, model.name, settings.seed)
    if not (folder / arms.ABOUT).is_file():
        return None, ""
    why = arms.misfit(folder, task, model, settings)
    return (None, why) if why else (folder, "")


def _after(start: str) -> str:
    return f" after those of {start}" if start else ""


def state_folder(task: Task, model: Resampler, settings: ProbeSettings) -> Path:
    """Return where an unfrozen training of this study keeps its state: another weight, example or setting, another."""
    facts = {
        "settings": asdict(settings),
        "weights": model.weights_hash,
        "mixed precision": bool(getattr(model, "bf16", False)),
        "train": data_hash(task.splits["train"]),
        "validation": data_hash(task.splits["validation"]),
        "targets": [examples_hash(task.splits[split]) for split in ("train", "validation")],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return storage.runs_home() / "unfrozen-arms" / digest[:16]
