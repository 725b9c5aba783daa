"""Batches spread over a processor's cores, one thread of Python and of torch to each.

The matrices of micro models are too small to be split well: two batches side by side on one core each are done a fifth
sooner than one after the other on both. Results are the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Batch = TypeVar("Batch")
Result = TypeVar("Result")

SIDE_BY_SIDE = 4
"""Most batches in work at a time: each needs its own memory."""


def over_cores(work: Callable[[Batch], Result], batches: Sequence[Batch], spread: bool = True) -> Iterator[Result]:
    """Yield ``work(batch)`` for every batch, in their order.

    Args:
        work: gives the same whatever thread calls it; gradients are off in it.
        batches: what it is called with.
        spread: False: one after the other, in this thread, as on a GPU or for a model that is not safe in threads.
    """
    cores = torch.get_num_threads()
    workers = min(cores, SIDE_BY_SIDE, len(batches)) if spread else 1

    def quietly(batch: Batch) -> Result:
        with torch.no_grad():  # a thread begins with gradients on, whatever the caller had
            return work(batch)

    if workers <= 1:
        yield from map(quietly, batches)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(cores // workers,)) as pool:
        try:
            yield from pool.map(quietly, batches)
        finally:
            pool.shutdown(cancel_futures=True)


def spreads(model: object) -> bool:
    """Whether a model's batches may be worked on side by side: it says that it is ``thread_safe``, and has no GPU."""
    parameters: Iterable[torch.Tensor] = getattr(model, "module", torch.nn.Module()).parameters()
    return getattr(model, "thread_safe", False) and all(p.device.type == "cpu" for p in parameters)


def alike(lengths: Sequence[int] | NDArray[np.int64], size: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Return places in batches of at most `size` texts of like length, and the order that puts results back in place.

    A batch is filled up to its longest text, and what is filled up is paid for.
    """
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)], np.argsort(order)
