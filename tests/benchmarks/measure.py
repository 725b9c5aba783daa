"""What the benchmarks share: timing, the machine's own limit, and prompts like the wrapper's."""

from __future__ import annotations

import argparse
import os
import random
import time
import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from seewhere.llm_wrapper import prompts as wrapper_prompts
from seewhere.models.candidates import make_candidates
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

LABELS = ("dog", "cat", "giraffe", "person", "bus", "apple", "chair", "zebra")
PLACES = ("on the left", "on the right", "at the top", "in the middle", "nearest the bottom")


def arguments(purpose: str) -> argparse.Namespace:
    """Command line of a language model benchmark; `SEEWHERE_BENCH=short` stands for --short."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--model", default="smollm2", help="a name, folder or hub id")
    parser.add_argument("--adapter", default=None)
    parser.add_argument("--coordinates", default="percent", choices=("percent", "pixels"), help="pixels as published")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", default=os.environ.get("SEEWHERE_BENCH") == "short")
    return parser.parse_args()


def seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """Best wall-clock time of `repeats` runs."""
    best = float("inf")
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Floating point operations per second of this machine's own large matrix product."""
    size = size * 8 if device.type == "cuda" else size
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / seconds(lambda: a @ b, repeats=5)


def wrapper_questions(
    pictures: int, phrases: int, seed: int, coordinates: Literal["percent", "pixels"] = "percent"
) -> tuple[list[list[dict[str, str]]], list[list[str]]]:
    """Chats and options: `phrases` questions about each of `pictures` candidate lists of 4 to 14 boxes."""
    draw = random.Random(seed)
    chats, options = [], []
    for _ in range(pictures):
        count = draw.randint(4, 14)
        boxes = [[draw.uniform(0, 300), draw.uniform(0, 200), 0.0, 0.0] for _ in range(count)]
        boxes = [[x, y, x + draw.uniform(20, 300), y + draw.uniform(20, 200)] for x, y, _, _ in boxes]
        candidates = make_candidates(boxes, [draw.choice(LABELS) for _ in range(count)], None, "benchmark", 0)
        for _ in range(phrases):
            phrase = f"the {draw.choice(LABELS)} {draw.choice(PLACES)}"
            text = wrapper_prompts.prompt(candidates, phrase, (640, 480), coordinates)
            chats.append(wrapper_prompts.messages(text))
            options.append([str(i) for i in range(count)])
    return chats, options


def matrix_parameters(model: Any) -> tuple[int, int]:
    """Parameters of the layers' matrices, and of the output layer: each costs 2 operations per token."""
    head = model.get_output_embeddings().weight
    layers = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "layers." in n and "lora_" not in n)
    return layers, head.numel()


def show(title: str, rows: list[tuple[str, float, str]], base: float) -> None:
    """Print (what, seconds, remark) with each time as a multiple of `base` seconds."""
    print(f"\n{title}")
    for what, taken, remark in rows:
        print(f"  {what:58s} {taken:9.3f} s  {taken / base:7.2f} x  {remark}")


class PeakBytes(TorchDispatchMode):
    """Largest number of bytes in living storages that were made within the block, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages that it made."""
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.seen:
                    self.seen.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size
