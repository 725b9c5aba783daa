"""Is place still in the patch tokens? Linear probes for the cell (of 3 x 3) in which an object stands.

Two questions, told apart on purpose. *Where does this stand?* (`pointed_accuracy`): the probe gets the mean of the
tokens under an object's box and names the cell; all it needs is place. *Where is the cow?* (`cell_accuracy`): the probe
has to find the object too, so that it measures place and recognition in one.

In the second, a category that occurs once in a scene names an object; the probe is told the category and reads the
frozen tokens through two linear maps: *what* a patch shows (a category, or nothing), which chooses patches by softmax,
and the cell. The second map comes in two read-outs:

``attention``: it reads the cell from the mean of the chosen tokens, as one attention head of a resampler would. Patch
numbers are not used: place must be *in* the tokens.

``evidence``: it reads the cell from the map of where the category shows. Where a patch is, is known from its number, so
this asks for *what* alone.

Besides the questions, the training scenes' boxes teach each patch its own category and its object's cell: a probe that
had to find the object from nine cells alone would need far more scenes, and would measure itself.

The cell is that of the box's centre, by `boxes.cell_of`; a centre near the line between two cells is hard for any
reader, so accuracy away from lines is reported too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from seewhere.boxes import CELLS, cell_of
from seewhere.models.micro_clip import MicroClip
from seewhere.models.world_pairs import WorldPairs, pixels_of, single_objects
from seewhere.world.scenes import Scene

READOUTS = ("attention", "evidence")
MARGIN = 0.05  # of the picture's side: centres nearer to a line than this are left out of the second number
NOBODY = -100  # the cell of a patch that shows no object


@dataclass(frozen=True, slots=True)
class NamedCells:
    """Questions on pictures: rows (Q,) into the pictures, categories (Q,), cells (Q,) 0..8, distances (Q,) to a line.

    Distances are in shares of the picture's side.
    """

    rows: Tensor
    categories: Tensor
    cells: Tensor
    distances: Tensor


@dataclass(frozen=True, slots=True)
class CellScores:
    """Scores (0..1) of a probe on unseen scenes.

    Attributes:
        accuracy: share of objects whose cell is right; `away_from_lines` leaves out those near a line between cells.
        majority: share of the commonest cell.
        objects: number of objects.
        what: share of patches on an object whose category is right; None where the probe has no need to know.
    """

    accuracy: float
    away_from_lines: float
    majority: float
    objects: int
    what: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Return the scores as a plain dictionary."""
        return asdict(self)


def named_cells(pairs: WorldPairs, categories: Sequence[str]) -> NamedCells:
    """Return every question that a scene's single-instance objects allow."""
    index = {name: k for k, name in enumerate(categories)}
    rows, kinds, cells, distances = [], [], [], []
    for row, (scene, objects) in enumerate(zip(pairs.scenes, single_objects(pairs.scenes), strict=True)):
        for item in objects:
            rows.append(row)
            kinds.append(index[item.category])
            cells.append(cell_of(item.box, scene.size))
            distances.append(_distance_to_line(item.box, scene))
    return NamedCells(torch.tensor(rows), torch.tensor(kinds), torch.tensor(cells), torch.tensor(distances))


@dataclass(frozen=True, slots=True)
class PatchLabels:
    """What each patch shows: categories (N, T), the number of categories standing for none, and object cells (N, T).

    Cells are `NOBODY` where no object is.
    """

    categories: Tensor
    cells: Tensor


def patch_labels(pairs: WorldPairs, categories: Sequence[str], grid: int) -> PatchLabels:
    """Return for each patch the frontmost object whose box holds the patch's centre (at least one patch per object)."""
    index = {name: k for k, name in enumerate(categories)}
    kinds = torch.full((len(pairs), grid, grid), len(categories))
    cells = torch.full((len(pairs), grid, grid), NOBODY)
    for row, scene in enumerate(pairs.scenes):
        for item in sorted(scene.objects, key=lambda o: o.depth):
            x1, x2 = (v / scene.width * grid for v in (item.box[0], item.box[2]))
            y1, y2 = (v / scene.height * grid for v in (item.box[1], item.box[3]))
            columns, rows = _covered(x1, x2, grid), _covered(y1, y2, grid)
            kinds[row, rows, columns] = index[item.category]
            cells[row, rows, columns] = cell_of(item.box, scene.size)
    return PatchLabels(kinds.flatten(1), cells.flatten(1))


def _covered(first: float, last: float, grid: int) -> slice:
    """The patches whose centres lie between two coordinates (in patches), or the one in the middle."""
    start, stop = round(first), round(last)
    if start >= stop:
        start = min(int((first + last) / 2), grid - 1)
        stop = start + 1
    return slice(start, stop)


class CellProbe(nn.Module):
    """The probe, see the module.

    Args:
        width: width of the tokens.
        patches: number of patch tokens.
        categories: number of categories.
        readout: one of `READOUTS`.

    Raises:
        ValueError: unknown read-out.
    """

    def __init__(self, width: int, patches: int, categories: int, readout: str = "attention") -> None:
        super().__init__()
        if readout not in READOUTS:
            raise ValueError(f"unknown read-out {readout!r}; expected one of {READOUTS}")
        self.readout = readout
        self.what = nn.Linear(width, categories + 1)
        self.cells = nn.Linear(patches if readout == "evidence" else width, len(CELLS))
        self.sharpness = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor, rows: Tensor, categories: Tensor) -> Tensor:
        """Return logits (Q, 9) for patch tokens (B, T, width) and questions: rows (Q,) and categories (Q,)."""
        asked, weights = tokens[rows], self.what.weight[categories]
        evidence = (asked @ weights[:, :, None]).squeeze(2) + self.what.bias[categories][:, None]
        chosen = functional.softmax(self.sharpness * evidence, dim=1)
        return self.cells(chosen if self.readout == "evidence" else (chosen[:, None] @ asked).squeeze(1))

    def patch_loss(self, tokens: Tensor, labels: PatchLabels) -> Tensor:
        """Return the loss of each patch's category, and for ``attention`` of its object's cell."""
        loss = functional.cross_entropy(self.what(tokens).flatten(0, 1), labels.categories.flatten())
        if self.readout == "attention":
            logits = self.cells(tokens).flatten(0, 1)
            loss = loss + functional.cross_entropy(logits, labels.cells.flatten(), ignore_index=NOBODY)
        return loss


@torch.no_grad()
def frozen_patches(clip: MicroClip, images: np.ndarray, batch_size: int = 200, placed: bool = True) -> Tensor:
    """Return patch tokens (N, patches, width) fp16 of pictures (N, S, S, 3) uint8; see `pointed_accuracy`."""
    parts, read = [], clip.patch_tokens if placed else clip.patch_contents
    starts = range(0, len(images), batch_size)
    for start in tqdm(starts, desc="patch tokens", leave=False, disable=len(starts) < 4):
        pixels = torch.from_numpy(pixels_of(images[start : start + batch_size]))
        parts.append(read(pixels).half().cpu())
    return torch.cat(parts)


def cell_accuracy(
    clip: MicroClip,
    train: WorldPairs,
    test: WorldPairs,
    categories: Sequence[str],
    readout: str = "attention",
    epochs: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> CellScores:
    """Train a probe on the frozen patch tokens of some scenes and score it on others.

    Args:
        clip: the model; it stays as it is.
        train, test: scenes with different numbers.
        categories: names of the categories.
        readout: one of `READOUTS`.
        epochs: passes over the training scenes, 64 at a time, AdamW, cosine.
        seed: of the probe's parameters and the order.
        progress: show a bar.
    """
    torch.manual_seed(seed)
    tokens, asked, labels = (
        frozen_patches(clip, train.images),
        named_cells(train, categories),
        patch_labels(train, categories, clip.grid),
    )
    probe = CellProbe(clip.width, tokens.shape[1], len(categories), readout)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=0.01)
    batches = -(-len(tokens) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in tqdm(range(epochs), desc=f"{readout} probe", leave=False, disable=not progress):
        for scenes in torch.randperm(len(tokens)).split(64):
            part, questions = tokens[scenes].float(), questions_of(asked, scenes)
            loss = probe.patch_loss(part, PatchLabels(labels.categories[scenes], labels.cells[scenes]))
            if len(questions.rows):
                logits = probe(part, questions.rows, questions.categories)
                loss = loss + functional.cross_entropy(logits, questions.cells)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return _scores(probe, frozen_patches(clip, test.images), test, categories, clip.grid)


def questions_of(asked: NamedCells, scenes: Tensor) -> NamedCells:
    """Return the questions about some scenes, whose rows then count within those scenes, in order of scene.

    Args:
        asked: questions in order of row.
        scenes: distinct row numbers (B,).
    """
    starts, ends = (torch.searchsorted(asked.rows, scenes, right=right) for right in (False, True))
    found = torch.cat([torch.arange(int(a), int(b)) for a, b in zip(starts, ends, strict=True)])
    rows = torch.repeat_interleave(torch.arange(len(scenes)), ends - starts)
    return NamedCells(rows, asked.categories[found], asked.cells[found], asked.distances[found])


@torch.no_grad()
def _scores(probe: CellProbe, tokens: Tensor, test: WorldPairs, categories: Sequence[str], grid: int) -> CellScores:
    asked, labels = named_cells(test, categories), patch_labels(test, categories, grid)
    right, what = [], []
    for scenes in torch.arange(len(tokens)).split(64):
        part, questions = tokens[scenes].float(), questions_of(asked, scenes)
        right.append(probe(part, questions.rows, questions.categories).argmax(1) == questions.cells)
        truth = labels.categories[scenes]
        what.append((probe.what(part).argmax(2) == truth)[truth < len(categories)])
    scores = _cell_scores(torch.cat(right), asked.cells, asked.distances)
    return replace(scores, what=float(torch.cat(what).float().mean()))


def _cell_scores(hits: Tensor, cells: Tensor, distances: Tensor) -> CellScores:
    majority = torch.bincount(cells, minlength=len(CELLS)).max() / len(cells)
    accuracy, clear = (float(v.float().mean()) for v in (hits, hits[distances >= MARGIN]))
    return CellScores(accuracy, clear, float(majority), len(hits))


@dataclass(frozen=True, slots=True)
class PointedCells:
    """Objects pointed at by their boxes: rows (Q,) into the pictures, shares (Q, T), cells (Q,) and distances (Q,).

    A share says how much of the box lies on a patch; those of an object sum to 1. The rest is as in `NamedCells`.
    """

    rows: Tensor
    shares: Tensor
    cells: Tensor
    distances: Tensor


def pointed_cells(scenes: Sequence[Scene], grid: int) -> PointedCells:
    """Return every object of the scenes, pointed at by its box; in order of scene."""
    rows, shares, cells, distances = [], [], [], []
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            across = _overlap(item.box[0] / scene.width * grid, item.box[2] / scene.width * grid, grid)
            down = _overlap(item.box[1] / scene.height * grid, item.box[3] / scene.height * grid, grid)
            rows.append(row)
            shares.append((down[:, None] * across[None, :]).flatten())
            cells.append(cell_of(item.box, scene.size))
            distances.append(_distance_to_line(item.box, scene))
    return PointedCells(torch.tensor(rows), torch.stack(shares), torch.tensor(cells), torch.tensor(distances))


def _overlap(first: float, last: float, grid: int) -> Tensor:
    """The share of an interval (in patches) that falls on each of `grid` patches; sums to 1."""
    starts = torch.arange(grid)
    covered = ((starts + 1).clamp(max=last) - starts.clamp(min=first)).clamp(min=0)
    return covered / covered.sum()


def _distance_to_line(box: Sequence[float], scene: Scene) -> float:
    """How far the centre of a box is from the nearest line between two cells, in shares of the picture's side."""
    x, y = (box[0] + box[2]) / 2 / scene.width, (box[1] + box[3]) / 2 / scene.height
    return min(abs(v - line / 3) for v in (x, y) for line in (1, 2))


def pointed_accuracy(
    clip: MicroClip,
    train: WorldPairs,
    test: WorldPairs,
    epochs: int = 20,
    seed: int = 0,
    progress: bool = True,
    placed: bool = True,
) -> CellScores:
    """Train a linear probe for the cell of an object that is pointed at, and score it on other scenes.

    The probe is one linear map from the mean of the frozen tokens under the object's box (each weighed by how much of
    the box lies on it) to the nine cells. It is not told which patches these are: place must be *in* the tokens.

    Args:
        clip: the model; it stays as it is.
        train, test: scenes with different numbers.
        epochs: passes over the training objects, 256 at a time, AdamW, cosine.
        seed: of the probe's parameters and the order.
        progress: show a bar.
        placed: read what resamplers read, each patch's position added again; False: what the encoder itself has kept.
    """
    torch.manual_seed(seed)
    asked, held_out = pointed_cells(train.scenes, clip.grid), pointed_cells(test.scenes, clip.grid)
    read, read_held_out = (
        under_boxes(frozen_patches(clip, part.images, placed=placed), found)
        for part, found in ((train, asked), (test, held_out))
    )
    probe = nn.Linear(clip.width, len(CELLS))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=0.0)
    batches = -(-len(read) // 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in tqdm(range(epochs), desc="pointed probe", leave=False, disable=not progress):
        for part in torch.randperm(len(read)).split(256):
            functional.cross_entropy(probe(read[part]), asked.cells[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    with torch.no_grad():
        hits = probe(read_held_out).argmax(1) == held_out.cells
    return _cell_scores(hits, held_out.cells, held_out.distances)


def under_boxes(tokens: Tensor, asked: PointedCells) -> Tensor:
    """The mean (Q, width) fp32 of pictures' patch tokens (N, T, width) under each object's box."""
    return torch.cat(
        [
            (shares[:, None] @ tokens[rows].float()).squeeze(1)
            for rows, shares in zip(asked.rows.split(256), asked.shares.split(256), strict=True)
        ]
    )
