"""What a few fixed pictures looked like to a model while it was trained: "reconstruction growing"."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from seewhere import storage
from seewhere.models.micro_vlm_weights import FOLDER
from seewhere.pixels import pictures, targets
from seewhere.pixels.errors import reconstruction_error
from seewhere.pixels.recipe import whole

FILE = "history.npz"
FILES = {"micro-pixels": FILE} | {f"micro-pixels-{name}": f"history-{name}.npz" for name in ("frozen", "at-once")}
"""Name of a shipped history -> its file."""
PER_SNAPSHOT = ("steps", "stages", "questions", "reconstructions", "errors")
"""Fields of a history that have a row for each snapshot."""


@dataclass(frozen=True, slots=True)
class ReconstructionHistory:
    """K snapshots of P pictures.

    `steps` (K,) of the stage, `stages` (K,) its name ("2-on" is a part of "2"), `questions` (K,) about
    colours asked in that stage so far, `names` (P,), `targets` (P, 64, 64, 3) uint8, `reconstructions`
    (K, P, 64, 64, 3) uint8, `errors` (K, P): RE.
    """

    steps: np.ndarray
    stages: np.ndarray
    questions: np.ndarray
    names: np.ndarray
    targets: np.ndarray
    reconstructions: np.ndarray
    errors: np.ndarray

    def whole_stages(self) -> list[str]:
        """(K,) names of the stages, all parts of one under one name."""
        return [whole(str(stage)) for stage in self.stages]

    def with_snapshot(self, step: int, stage: str, questions: int, found: np.ndarray) -> ReconstructionHistory:
        """The same and one snapshot more, of reconstructions (P, 64, 64, 3) uint8."""
        errors = [reconstruction_error(a, b) for a, b in zip(found, self.targets, strict=True)]
        return ReconstructionHistory(
            np.append(self.steps, step),
            np.append(self.stages, stage),
            np.append(self.questions, questions),
            self.names,
            self.targets,
            np.concatenate([self.reconstructions, found[None]]),
            np.concatenate([self.errors, np.array([errors])]),
        )

    def followed_by(self, later: ReconstructionHistory) -> ReconstructionHistory:
        """This history and then another one of the same pictures.

        Raises:
            ValueError: other pictures.
        """
        if list(self.names) != list(later.names):
            raise ValueError(f"expected snapshots of {list(self.names)}, got those of {list(later.names)}")
        joined = {name: np.concatenate([getattr(self, name), getattr(later, name)]) for name in PER_SNAPSHOT}
        return dataclasses.replace(self, **joined)

    def without_middles(self, stages: Collection[str]) -> ReconstructionHistory:
        """The same with only the last snapshot of each of some stages."""
        last = {str(stage): row for row, stage in enumerate(self.stages)}
        kept = [row for row, stage in enumerate(self.stages) if stage not in stages or last[str(stage)] == row]
        return dataclasses.replace(self, **{name: getattr(self, name)[kept] for name in PER_SNAPSHOT})

    def write(self, path: Path) -> None:
        """Write the history as one compressed file, whole or not at all."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: getattr(self, name) for name in self.__slots__})
        storage.atomic_write_bytes(path, buffer.getvalue())


def read_history(path: Path) -> ReconstructionHistory:
    """Read what `ReconstructionHistory.write` wrote."""
    with np.load(path) as stored:
        return ReconstructionHistory(**{name: stored[name] for name in ReconstructionHistory.__slots__})


def load_history(source: str = "micro-pixels") -> ReconstructionHistory:
    """The shipped history: of stages 1 to 3 ("micro-pixels"), of stage 1 and the baseline ("micro-pixels-frozen"), or
    of the encoder trained from the first step on ("micro-pixels-at-once").

    Raises:
        FileNotFoundError: no such history.
    """
    if source not in FILES or not (FOLDER / FILES[source]).is_file():
        raise FileNotFoundError(f"no history {source!r}; expected one of {', '.join(FILES)} in {FOLDER}")
    return read_history(FOLDER / FILES[source])


def empty_history(shown: dict[str, Image.Image]) -> ReconstructionHistory:
    """A history of some pictures, without a snapshot."""
    wanted = np.stack([targets.target(image) for image in shown.values()])
    none = np.zeros(0, dtype=np.int64)
    return ReconstructionHistory(
        none,
        np.zeros(0, dtype="<U12"),
        none,
        np.array(list(shown)),
        wanted,
        np.zeros((0, *wanted.shape), dtype=np.uint8),
        np.zeros((0, len(shown))),
    )


def shown_pictures() -> dict[str, Image.Image]:
    """The pictures that histories show: two scenes of the test split, two photographs where scikit-image is there."""
    found = {f"scene {i}": image for i, (image, _) in enumerate(pictures.world_pictures(2, "test", seed=9))}
    try:
        photographs = pictures.photographs()
    except ImportError:
        return found
    return found | {name: photographs[name] for name in ("astronaut", "coffee") if name in photographs}
