"""Building the world: scenes per second on one processor and on all, beside what writing the pictures alone costs.

The limit is the encoding of the same pictures to the same files' format by Pillow, on all processors, without
composing, masks, language or annotation files.

    python tests/benchmarks/bench_world.py [--short]
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from measure import seconds
from PIL import Image
from seewhere import storage
from seewhere.world import export


def encode(files: list[Path]) -> int:
    """Decode each picture once, encode it again; gives the nanoseconds that encoding took."""
    from time import perf_counter_ns

    taken = 0
    for file in files:
        with Image.open(file) as image:
            kind, picture = image.format, image.copy()
        start = perf_counter_ns()
        picture.save(io.BytesIO(), kind, quality=export.JPEG_QUALITY, subsampling=0)
        taken += perf_counter_ns() - start
    return taken


def main() -> None:
    """Build the world twice, print scenes per second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", default=os.environ.get("SEEWHERE_BENCH") == "short")
    preset, cores = "smoke" if parser.parse_args().short else "quick", os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        roots = {workers: Path(folder) / str(workers) for workers in sorted({1, cores})}
        taken = {
            workers: seconds(lambda root=root, workers=workers: export.build(root, preset, workers, progress=False))
            for workers, root in roots.items()
        }
        files = sorted((roots[cores] / "images").rglob("*.*"))
        same = all(storage.hash_file(f) == storage.hash_file(roots[1] / f.relative_to(roots[cores])) for f in files)
        with ProcessPoolExecutor(cores) as pool:
            limit = sum(pool.map(encode, [files[i::cores] for i in range(cores)])) / 1e9 / cores
    print(f"\nworld, preset {preset}: {len(files)} scenes (the same bytes from every number of workers: {same})")
    for workers, used in taken.items():
        print(f"  {workers} worker(s)   {used:8.2f} s   {len(files) / used:8.1f} scenes/s")
    reached = limit / taken[cores]
    print(f"  encoding alone, {cores} workers   {limit:8.2f} s   {len(files) / limit:8.1f} pictures/s ({reached:.0%})")


if __name__ == "__main__":
    main()
