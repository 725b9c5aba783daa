"""Is place still in the patch tokens? A linear probe for the cell (of 3 x 3) in which a named object stands.

A category that occurs once in a scene names an object; the probe is told the category and reads the frozen tokens.
Two read-outs, each linear in the tokens given where it looks:

``linear``: one weight vector per category, the same at every patch, gives evidence at each patch; a linear map turns
the map of evidence into cells. Where a patch is, is known from its number, so this asks *what* each token holds.

``attention``: the same evidence chooses patches by softmax, and a linear map reads the cell from the mean of the chosen
tokens, as one attention head of a resampler would. Patch numbers are not used: place must be *in* the tokens.

The cell is that of the box's centre, by `boxes.cell_of`; a centre near the line between two cells is hard for any
reader, so accuracy away from lines is reported too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from seewhere.boxes import CELLS, cell_of
from seewhere.models.micro_clip import MicroClip
from seewhere.models.world_pairs import WorldPairs, pixels_of, single_objects

READOUTS = ("linear", "attention")
MARGIN = 0.05  # of the picture's side: centres nearer to a line than this are left out of the second number


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
    """Accuracy (0..1) of a probe on unseen scenes: over all objects, away from lines, and of the commonest cell."""

    accuracy: float
    away_from_lines: float
    majority: float
    objects: int

    def as_dict(self) -> dict[str, float]:
        """Return the scores as a plain dictionary."""
        return asdict(self)


def named_cells(pairs: WorldPairs, categories: Sequence[str]) -> NamedCells:
    """Return every question that a scene's single-instance objects allow."""
    index = {name: k for k, name in enumerate(categories)}
    rows, kinds, cells, distances = [], [], [], []
    for row, (scene, objects) in enumerate(zip(pairs.scenes, single_objects(pairs.scenes), strict=True)):
        for item in objects:
            x, y = (item.box[0] + item.box[2]) / 2 / scene.width, (item.box[1] + item.box[3]) / 2 / scene.height
            rows.append(row)
            kinds.append(index[item.category])
            cells.append(cell_of(item.box, scene.size))
            distances.append(min(abs(v - line / 3) for v in (x, y) for line in (1, 2)))
    return NamedCells(torch.tensor(rows), torch.tensor(kinds), torch.tensor(cells), torch.tensor(distances))


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
        self.evidence = nn.Linear(width, categories)
        self.cells = nn.Linear(patches if readout == "linear" else width, len(CELLS))

    def forward(self, tokens: Tensor, categories: Tensor) -> Tensor:
        """Return logits (B, 9) for patch tokens (B, T, width) and categories (B,)."""
        weights, biases = self.evidence.weight[categories], self.evidence.bias[categories]
        evidence = (tokens @ weights[:, :, None]).squeeze(2) + biases[:, None]
        if self.readout == "linear":
            return self.cells(evidence)
        chosen = functional.softmax(evidence, dim=1)[:, None] @ tokens
        return self.cells(chosen.squeeze(1))


@torch.no_grad()
def frozen_patches(clip: MicroClip, images: np.ndarray, batch_size: int = 200) -> Tensor:
    """Return patch tokens (N, patches, width) fp16, without the class token, of pictures (N, S, S, 3) uint8."""
    parts = []
    starts = range(0, len(images), batch_size)
    for start in tqdm(starts, desc="patch tokens", leave=False, disable=len(starts) < 4):
        pixels = torch.from_numpy(pixels_of(images[start : start + batch_size]))
        parts.append(clip.patch_tokens(pixels)[:, 1:].half().cpu())
    return torch.cat(parts)


def cell_accuracy(
    clip: MicroClip,
    train: WorldPairs,
    test: WorldPairs,
    categories: Sequence[str],
    readout: str = "attention",
    epochs: int = 12,
    seed: int = 0,
    progress: bool = True,
) -> CellScores:
    """Train a probe on the frozen patch tokens of some scenes and score it on others.

    Args:
        clip: the model; it stays as it is.
        train, test: scenes with different numbers.
        categories: names of the categories.
        readout: one of `READOUTS`.
        epochs: passes over the training questions, batches of 256, AdamW, cosine.
        seed: of the probe's parameters and the order.
        progress: show a bar.
    """
    torch.manual_seed(seed)
    tokens, asked = frozen_patches(clip, train.images), named_cells(train, categories)
    probe = CellProbe(clip.width, tokens.shape[1], len(categories), readout)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=0.01)
    batches = -(-len(asked.rows) // 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in tqdm(range(epochs), desc=f"{readout} probe", leave=False, disable=not progress):
        for part in torch.randperm(len(asked.rows)).split(256):
            logits = probe(tokens[asked.rows[part]].float(), asked.categories[part])
            functional.cross_entropy(logits, asked.cells[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return _scores(probe, frozen_patches(clip, test.images), named_cells(test, categories))


@torch.no_grad()
def _scores(probe: CellProbe, tokens: Tensor, asked: NamedCells) -> CellScores:
    parts = [
        probe(tokens[asked.rows[p]].float(), asked.categories[p]).argmax(1)
        for p in torch.arange(len(asked.rows)).split(512)
    ]
    right = torch.cat(parts) == asked.cells
    away = asked.distances >= MARGIN
    majority = torch.bincount(asked.cells, minlength=len(CELLS)).max() / len(asked.cells)
    return CellScores(float(right.float().mean()), float(right[away].float().mean()), float(majority), len(right))
