"""Probing from the cache: an epoch on kept features beside one that asks the resampler anew, and a trial of a search.

    python tests/benchmarks/bench_probing.py [--short] [--resampler micro-blip2]

Where the named resampler does not ship, one of the same shape with random weights takes its place: times and bytes are
the same.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from measure import seconds, show
from seewhere.models.micro_clip import MicroClip, build_model
from seewhere.models.micro_qformer import MicroBlip2, QFormerSettings
from seewhere.models.micro_text import world_tokenizer
from seewhere.models.resamplers import MicroResampler, load_resampler
from seewhere.probing.adapter import Probed
from seewhere.probing.features import cached_features, compute_features
from seewhere.probing.search import SearchSpace, search
from seewhere.probing.sources import FrozenTokens
from seewhere.probing.tasks import Task, load_task
from seewhere.probing.training import OnEpoch, ProbeSettings, fit
from seewhere.world.export import build

LEAST_GAIN = 20.0  # times: what keeping features has to save
PAPER_BYTES = 32 * 768 * 2  # one example of BLIP-2's Q-Former in half precision


def resampler(name: str) -> Probed:
    """Return the named resampler, or one of its shape with random weights."""
    try:
        return Probed(load_resampler(name))
    except FileNotFoundError as error:
        print(f"random weights in the shape of micro-blip2 ({str(error).splitlines()[0][:100]})")
        tokenizer = world_tokenizer()
        clip = MicroClip(build_model(len(tokenizer)), tokenizer)
        shape = QFormerSettings(vocabulary=len(tokenizer), sees=clip.width)
        return Probed(MicroResampler("micro-blip2", clip, MicroBlip2(shape)).eval())


def compare(model: Probed, task: Task, root: Path) -> None:
    """Time both ways of having features for an epoch, and a trial of ten epochs."""
    train, validation = task.splits["train"], task.splits["validation"]
    start = time.perf_counter()
    tables = [cached_features(model, part, root=root, progress=False)[model.layers[-1]] for part in (train, validation)]
    filling = time.perf_counter() - start
    sources = [FrozenTokens(table) for table in tables]
    targets = [task.targets(split) for split in ("train", "validation")]
    settings = ProbeSettings(epochs=10)

    def trial(chosen: ProbeSettings, report: OnEpoch) -> float:
        return fit(sources[0], targets[0], sources[1], targets[1], chosen, on_epoch=report, progress=False).score

    # Ten epochs are timed and divided, and the validation that belongs to each is in both ways.
    cached = seconds(lambda: trial(settings, lambda *_: None), repeats=3) / settings.epochs
    computing = seconds(lambda: [compute_features(model, part, model.layers[-1:]) for part in (train, validation)])
    opening = seconds(
        lambda: [cached_features(model, part, root=root, progress=False) for part in (train, validation)], repeats=3
    )
    space = SearchSpace((1e-4, 1e-2), (10,), (1.0, 2.0))
    start = time.perf_counter()
    search(trial, space, settings, name="bench", trials=3, folder=root / "studies", prune=False, progress=False)
    one_trial = (time.perf_counter() - start) / 3
    gain = (computing + cached) / cached
    rows = [
        ("an epoch from the cache", cached, f"{len(train) / cached:,.0f} examples/s"),
        (
            "an epoch that computes its features",
            computing + cached,
            f"{gain:.0f} x; limit: at least {LEAST_GAIN:.0f} x",
        ),
        ("filling the cache, once", filling, "features and their way to the disk"),
        ("opening it again, with all checksums", opening, "pictures are hashed too"),
        ("a trial of a search, 10 epochs", one_trial, "with the study's file"),
    ]
    show(f"{task!r}, {model.name}: times as multiples of an epoch from the cache", rows, cached)
    size = tables[0].bytes_per_row
    print(f"  {size:,} bytes per example; the paper's shape takes {PAPER_BYTES:,} ({PAPER_BYTES / size:.1f} x)")
    if gain < LEAST_GAIN:
        raise SystemExit(f"keeping features saves {gain:.1f} x, less than {LEAST_GAIN:.0f} x")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resampler", default="micro-blip2", help="a name, folder or hub id")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--short", action="store_true", default=os.environ.get("SEEWHERE_BENCH") == "short")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    preset, examples = ("smoke", 200) if chosen.short else ("quick", chosen.examples)
    sizes = {"train": examples, "validation": examples // 8, "test": 16}
    task = load_task("vsr", build(None, preset, progress=False), "random", sizes)
    with tempfile.TemporaryDirectory() as root:
        compare(resampler(chosen.resampler), task, Path(root))


if __name__ == "__main__":
    main()
