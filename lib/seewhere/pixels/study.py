"""The reconstruction study: sets of pictures, models asked for every cell of each, and one table of scores.

Baselines that know the target (one colour, a blur, one colour a patch) stand in the same table as the models, because
an error is only large or small beside theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from seewhere import metrics
from seewhere.models.pixel_points import grid_points, read_picture
from seewhere.models.protocols import PixelReader
from seewhere.pixels import errors, pictures, targets
from seewhere.show import charts
from seewhere.show.pixels import Reconstruction, side_by_side
from seewhere.world.scenes import Scene

GRID = 64
OWN = "own pictures"
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
BASELINES = tuple(targets.BASELINES)


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture of a set, with its target (grid, grid, 3), the seed that drew it, and its scene where it is one."""

    set: str
    name: str
    seed: int
    image: Image.Image
    target: NDArray
    scene: Scene | None = None


# ------------------------------------------------------------------------------------------------------- pictures

Drawn = list[tuple[str, Image.Image, Scene | None]]


def _scenes(split: str) -> Callable[[int, int], Drawn]:
    def draw(count: int, seed: int) -> Drawn:
        found = pictures.world_pictures(count, split, seed)
        return [(f"{split} {seed}/{place}", image, scene) for place, (image, scene) in enumerate(found)]

    return draw


def _textures(count: int, seed: int) -> Drawn:
    # Far from the numbers that training draws from.
    found = pictures.textures(count, 1_000_000 + seed)
    return [(f"texture {seed}/{place}", image, None) for place, image in enumerate(found)]


def _photographs(count: int, seed: int) -> Drawn:
    """The same for every seed, so they are drawn for the first one only; `count` is a limit where it is above 0."""
    found = list(pictures.photographs().items())
    return [(name, image, None) for name, image in found[: count or None]]


def _game(name: str) -> Callable[[int, int], Drawn]:
    def draw(count: int, seed: int) -> Drawn:
        found = pictures.game_frames(name, count, 1_000_000 + seed)
        return [(f"{name} {seed}/{place}", image, None) for place, image in enumerate(found)]

    return draw


SETS: dict[str, Callable[[int, int], Drawn]] = {
    "scenes": _scenes("test"),
    "novel scenes": _scenes("novel"),
    "photographs": _photographs,
    "textures": _textures,
    "CarRacing": _game("CarRacing"),
    "SpaceInvaders": _game("SpaceInvaders"),
}
"""Evaluation sets by name: (count, seed) -> (name, picture, scene); none of the pictures was trained on."""
FIXED = ("photographs", OWN)
"""Sets that no seed changes."""


def own_pictures(folder: str | Path) -> Drawn:
    """Pictures of the reader's own: one file, or all picture files of a folder, by name.

    Raises:
        DataError: a file that is no picture. ValueError: a folder without any.
    """
    place = Path(folder).expanduser()
    files = sorted(f for f in place.iterdir() if f.suffix.lower() in PICTURE_ENDINGS) if place.is_dir() else [place]
    if not files:
        raise ValueError(f"{place} holds no pictures; expected files ending in {', '.join(PICTURE_ENDINGS)}")
    return [(file.name, read_picture(file), None) for file in files]


def gather(
    names: Sequence[str], counts: Mapping[str, int], seeds: Sequence[int], own: str | Path = "", grid: int = GRID
) -> list[Shown]:
    """Draw the pictures of some sets, `counts[name]` for each seed; `own` adds a set of the reader's own.

    A set whose package is not installed (the games) is left out, and the reason printed.

    Raises:
        ValueError: an unknown set, or one without a count.
    """
    unknown = [name for name in names if name not in SETS or name not in counts]
    if unknown:
        raise ValueError(f"unknown sets or sets without a count: {unknown}; the sets are {', '.join(SETS)}")
    found: list[Shown] = []
    for name in names:
        for seed in seeds[:1] if name in FIXED else seeds:
            try:
                drawn = SETS[name](counts[name], seed)
            except ImportError as error:
                print(f"{name}: left out ({error})")
                break
            found += [Shown(name, key, seed, image, targets.target(image, grid), scene) for key, image, scene in drawn]
    drawn = own_pictures(own) if own else []
    return found + [Shown(OWN, key, seeds[0], image, targets.target(image, grid)) for key, image, _ in drawn]


# ---------------------------------------------------------------------------------------------------------- study


@dataclass
class Study:
    """Models asked for all cells of the same pictures.

    Attributes:
        shown: the pictures.
        answers: system -> (grid, grid, 3) for each picture, NaN where an answer was unusable; baselines too.
        confidence: system -> (grid, grid, 3) for each picture, for models that tell it.
        table: one row per picture and system: set, seed, picture, system, re (0..300), re_mean (0..100), psnr, ssim,
            missing (share of cells).
    """

    shown: list[Shown]
    grid: int = GRID
    answers: dict[str, list[NDArray]] = field(default_factory=dict)
    confidence: dict[str, list[NDArray]] = field(default_factory=dict)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    @classmethod
    def start(cls, shown: Sequence[Shown]) -> Study:
        """Begin with the baselines."""
        if not shown:
            raise ValueError("there are no pictures; expected at least one")
        study = cls(list(shown), len(shown[0].target))
        for name, make in targets.BASELINES.items():
            study._add(name, [make(item.target).astype(np.float64) for item in study.shown])
        return study

    def ask(self, reader: PixelReader, system: str, progress: bool = True) -> str:
        """Ask a model for every cell of every picture; returns the name under which it stands in the table."""
        answers, sure = [], []
        for item in tqdm(self.shown, desc=system, unit="picture", disable=not progress, leave=False):
            points, shape = [grid_points(item.image.size, self.grid)], (self.grid, self.grid, 3)
            if hasattr(reader, "read_colours"):
                found = reader.read_colours([item.image], points)[0]
                answers.append(np.asarray(found.values, dtype=np.float64).reshape(shape))
                sure.append(np.exp(found.log_probabilities).reshape(shape))
            else:
                answers.append(reader.read_pixels([item.image], points)[0].reshape(shape))
        self._add(system, answers)
        if sure:
            self.confidence[system] = sure
        return system

    def _add(self, system: str, answers: list[NDArray]) -> None:
        rows = [
            {
                "set": item.set,
                "seed": item.seed,
                "picture": item.name,
                "system": system,
                **errors.scores(values, item.target),
                "missing": float(np.isnan(values).any(axis=2).mean()),
            }
            for item, values in zip(self.shown, answers, strict=True)
        ]
        self.answers[system] = answers
        self.table = pd.concat([self.table, pd.DataFrame(rows)], ignore_index=True)

    # ------------------------------------------------------------------------------------------------ questions

    def rows(self, systems: Sequence[str], every: int = 16) -> pd.DataFrame:
        """Every `every`-th question as a row, to be kept with a run.

        Columns: set, seed, picture, system, x, y (cell), red, green, blue (truth), predicted_*, error (0..300), status.
        """
        parts = []
        for system in systems:
            for number, (item, values) in enumerate(zip(self.shown, self.answers[system], strict=True)):
                places = np.arange(number % every, self.grid**2, every)
                truth, said = item.target.reshape(-1, 3)[places], values.reshape(-1, 3)[places]
                part = {"set": item.set, "seed": item.seed, "picture": item.name, "system": system}
                columns = {"x": places % self.grid, "y": places // self.grid}
                for channel, name in enumerate(("red", "green", "blue")):
                    columns |= {name: truth[:, channel], f"predicted_{name}": said[:, channel]}
                lost = np.isnan(said).any(axis=1)
                columns["error"] = np.abs(said - truth).sum(axis=1) / 2.55
                parts.append(pd.DataFrame(columns).assign(**part, status=np.where(lost, "unusable", "answered")))
        return pd.concat(parts, ignore_index=True)

    # ---------------------------------------------------------------------------------------------- what came out

    def estimates(self, seed: int = 0) -> dict[str, dict[str, metrics.Interval]]:
        """Set -> system -> mean RE with its interval over pictures."""
        found: dict[str, dict[str, metrics.Interval]] = {}
        for (name, system), part in self.table.groupby(["set", "system"], sort=False):
            interval = metrics.bootstrap_interval(part.re.to_numpy(), part.picture.to_numpy(), seed)
            found.setdefault(str(name), {})[str(system)] = interval
        return found

    def summary(self, seed: int = 0) -> pd.DataFrame:
        """One row per set and system, for reading: RE with interval, both readings, PSNR, SSIM, unusable, pictures."""
        rows = []
        for (name, system), part in self.table.groupby(["set", "system"], sort=False):
            interval = metrics.bootstrap_interval(part.re.to_numpy(), part.picture.to_numpy(), seed)
            rows.append(
                {
                    "set": name,
                    "system": system,
                    "RE": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "RE, channels' mean": part.re_mean.mean(),
                    "PSNR (dB)": part.psnr.mean(),
                    "SSIM": part.ssim.mean(),
                    "unusable (%)": 100 * part.missing.mean(),
                    "pictures": len(part),
                }
            )
        table = pd.DataFrame(rows)
        return table.round({name: 2 for name in table.columns if name not in ("set", "system", "pictures")})

    def ratio(self, above: str, below: str, name: str, seed: int = 0) -> metrics.Interval:
        """Mean RE of system `above` over that of `below` on a set, paired by picture, with its interval."""
        part = self.table[self.table.set == name].sort_values(["seed", "picture"])
        first, second = (
            {int(str(s)): rows.re.to_numpy() for s, rows in part[part.system == system].groupby("seed")}
            for system in (above, below)
        )
        images = {int(str(s)): r.picture.to_numpy() for s, r in part[part.system == above].groupby("seed")}
        return metrics.ratio_interval(first, second, images, seed=seed, resample_seeds=False)

    def difference(self, first: str, second: str, name: str, seed: int = 0) -> metrics.Interval:
        """Mean RE of system `first` minus that of `second` on a set, paired by picture."""
        part = self.table[self.table.set == name].sort_values(["seed", "picture"])
        one, two = (part[part.system == system] for system in (first, second))
        return metrics.paired_interval(one.re, two.re, one.picture.to_numpy(), seed)

    # ----------------------------------------------------------------------------------------------------- figures

    def chart(self, systems: Sequence[str], seed: int = 0, title: str = "") -> Figure:
        """Bars of RE per set for some systems."""
        found = self.estimates(seed)
        chosen = {name: {s: group[s] for s in systems if s in group} for name, group in found.items()}
        return charts.bar_chart(chosen, title=title, label="RE (0 to 300)", percent=False)

    def gallery(self, systems: Sequence[str], each: int = 2, sets: Sequence[str] = ()) -> Figure:
        """The first `each` pictures of every set (or of `sets`): original, target, reconstructions, error maps."""
        wanted = list(sets) or list(dict.fromkeys(item.set for item in self.shown))
        places = [[n for n, item in enumerate(self.shown) if item.set == name][:each] for name in wanted]
        return side_by_side([self._reconstruction(place, systems) for group in places for place in group])

    def _reconstruction(self, place: int, systems: Sequence[str]) -> Reconstruction:
        item = self.shown[place]
        found = self.table[(self.table.set == item.set) & (self.table.picture == item.name)].set_index("system")
        titles = {system: f"{system}: RE {found.re[system]:.1f}" for system in systems}
        answers = {system: self.answers[system][place] for system in systems}
        return Reconstruction(item.image, item.target, answers, titles)
