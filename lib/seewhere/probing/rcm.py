"""Region cell matching: is the described thing in that part of the picture?

Built as in "Lost in Space", appendix A, from any data set of referring expressions:

1. every box goes to the cell of the 3 x 3 grid nearest to its centre;
2. cells are down-sampled to equal counts: N positives, each captioned with its own cell;
3. of the N_i positives of each cell i, N_i / 8 are captioned with each other cell j: N negatives.

So every cell is claimed as often truly as falsely, and a claim's cell alone tells nothing. The caption is the
expression, then "refers to the middle right part of the image". Where N_i is not a multiple of eight the paper does not
say what happens; here it is trimmed to one (`exact`), which also meets its totals (46k / 3k / 5.5k).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from seewhere.boxes import CELLS, cell_of
from seewhere.records import DataError, Expression


@dataclass(frozen=True, slots=True)
class RegionCell:
    """One item: an expression, the cell its region is in, the cell that the caption claims (indices into ``CELLS``)."""

    item_id: int
    expression: Expression
    cell: int
    claimed: int

    @property
    def label(self) -> bool:
        """Whether the claim is true."""
        return self.cell == self.claimed

    @property
    def text(self) -> str:
        """The caption."""
        return caption(self.expression.text, self.claimed)


def caption(expression: str, cell: int) -> str:
    """Return the caption that claims `cell` (index into ``CELLS``) for what an expression describes."""
    return expression.strip().rstrip(".").rstrip() + claim(CELLS[cell])


def claim(cell: str) -> str:
    """Return how a caption ends that claims a cell, given by its name."""
    return f" refers to the {cell} part of the image"


def build(
    expressions: Iterable[Expression],
    seed: int = 0,
    per_cell: int | None = None,
    exact: bool = True,
    skip_empty: bool = False,
) -> list[RegionCell]:
    """Build the task from the expressions of one split.

    Args:
        expressions: of one split; each sentence is an item of its own.
        seed: of the choice and of who is captioned with what.
        per_cell: most positives per cell; None: as many as the rarest cell has.
        exact: trim the positives per cell to a multiple of eight, so that exactly N_i / 8 go to every other cell. With
            fewer than eight, or without `exact`, what remains is dealt out as evenly as it goes.
        skip_empty: where no expression is about a cell, do without that cell (the same recipe with fewer cells), with
            a warning; for very small data sets.

    Returns:
        2N items, positives and negatives of one expression side by side, in random order of expressions.

    Raises:
        DataError: a cell without any expression, or `per_cell` below 1.
    """
    if per_cell is not None and per_cell < 1:
        raise DataError(f"region cell matching needs at least one positive per cell; got per_cell={per_cell}.")
    random = Random(f"region cell matching {seed}")
    by_cell: dict[int, list[Expression]] = {cell: [] for cell in range(len(CELLS))}
    for item in expressions:
        by_cell[cell_of(item.region.box, item.image.size)].append(item)
    cells = _usable(by_cell, skip_empty)
    count = min(len(by_cell[cell]) for cell in cells)
    count = min(count, per_cell) if per_cell is not None else count
    others = len(cells) - 1
    if exact and count >= others:
        count -= count % others
    pairs = []
    for place, cell in enumerate(cells):
        for number, item in enumerate(random.sample(by_cell[cell], count)):
            # Starting at another cell for every cell keeps the remainders, if any, from meeting in one.
            step = 1 + (number + place) % others
            pairs.append((item, cell, cells[(place + step) % len(cells)]))
    random.shuffle(pairs)
    claims = [(item, cell, claimed) for item, cell, other in pairs for claimed in (cell, other)]
    return [RegionCell(number, *claim) for number, claim in enumerate(claims)]


def _usable(by_cell: Mapping[int, Sequence[Expression]], skip_empty: bool) -> list[int]:
    """Return the cells that take part: all, or those with expressions."""
    empty = [CELLS[cell] for cell, found in by_cell.items() if not found]
    cells = [cell for cell, found in by_cell.items() if found]
    if not empty:
        return cells
    counts = {CELLS[cell]: len(found) for cell, found in by_cell.items()}
    message = f"no expression's centre is in {', '.join(empty)} ({counts})"
    if not skip_empty or len(cells) < 2:
        raise DataError(f"{message}. Take a larger split.")
    warnings.warn(f"{message}; region cell matching over {len(cells)} cells only", stacklevel=3)
    return cells
