"""Frozen features, computed once: shards on disk that are complete or absent, found again by what they depend on.

A folder stands for one layer of one model over one list of examples; its name is a hash of the model's weights, the
examples' pictures and texts, the layer and the number format, so features of other weights or data are never read. A
shard is one ``.npy`` of consecutive rows. It is written aside and renamed, and its name ends in the checksum of
its bytes: a process that is killed loses the shard it was computing and nothing else, and a file that was cut short or
changed afterwards is found out, removed and computed again.

Reading maps shards into memory, the ones last used: a map holds a file open, and a system allows a thousand or so. Only
the rows that are asked for are read.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import threading
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm.auto import tqdm

from seewhere import storage

FORMAT = 1
SHARD_ROWS = 512
OPEN_MAPS = 256
ABOUT = "about.json"
_SHARD = re.compile(r"(\d{5})-of-(\d{5})-([0-9a-f]{8})\.npy")

Compute = Callable[[slice, Sequence[str]], Mapping[str, NDArray]]
"""(rows, layers) -> layer -> (rows, tokens, width): what has to be computed when it is not there."""


class CacheError(ValueError):
    """A cache folder cannot be used or filled; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Key:
    """All that cached features depend on. `weights` and `data` are hashes, `rows` is the number of examples."""

    model: str
    weights: str
    data: str
    layer: str
    dtype: str
    rows: int
    shard_rows: int = SHARD_ROWS
    format: int = FORMAT

    def folder(self, root: Path | None = None) -> Path:
        """Return the folder of these features, below `root` (default: the cache folder's ``features``)."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.model)
        return (root or storage.cache_home() / "features") / f"{name}-{digest[:32]}"

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def slice_of(self, shard: int) -> slice:
        """Rows of a shard."""
        return slice(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))


class FeatureTable:
    """Features of one layer, memory-mapped: ``table[[3, 1, 4]]`` gives (3, tokens, width) in the stored format."""

    def __init__(self, key: Key, files: Sequence[Path]) -> None:
        self.key, self.files = key, list(files)
        self.shape = (key.rows, *mapped(self.files[0]).shape[1:])

    def __del__(self) -> None:
        """Let go of what was mapped: a worker that keeps it looks to its pool as if it lost memory, and is stopped."""
        if mapped is not None:  # else the interpreter is on its way out
            mapped.forget(getattr(self, "files", ()))

    def __len__(self) -> int:
        return self.key.rows

    def __getitem__(self, rows: Sequence[int] | NDArray[np.integer]) -> NDArray:
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of a table of {len(self)}")
        found = np.empty((len(wanted), *self.shape[1:]), dtype=self.key.dtype)
        shards = wanted // self.key.shard_rows
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = mapped(self.files[shard])[wanted[here] - shard * self.key.shard_rows]
        return found

    @property
    def bytes_per_row(self) -> int:
        """Bytes that one example takes on disk."""
        return int(np.prod(self.shape[1:])) * np.dtype(self.key.dtype).itemsize


def open_table(key: Key, root: Path | None = None) -> FeatureTable | None:
    """Return the features of `key` if they are there as a whole, else None."""
    folder = key.folder(root)
    parts = {shard: path for shard, path in _whole_shards(folder, key)}
    if not key.rows or set(parts) != set(range(key.shards)):
        return None
    return FeatureTable(key, [parts[shard] for shard in range(key.shards)])


class _Maps:
    """The arrays on disk that were asked for last, memory-mapped; one whose file is another by then is mapped anew."""

    def __init__(self, limit: int) -> None:
        self.limit, self.lock = limit, threading.Lock()
        self.kept: OrderedDict[Path, tuple[tuple[int, int], NDArray]] = OrderedDict()

    def __call__(self, path: Path) -> NDArray:
        told = path.stat()
        version = (told.st_ino, told.st_mtime_ns)
        with self.lock:
            kept = self.kept.pop(path, None)
            if kept is None or kept[0] != version:
                kept = (version, np.asarray(np.load(path, mmap_mode="r")))
            self.kept[path] = kept
            while len(self.kept) > self.limit:
                self.kept.popitem(last=False)
        return kept[1]

    def forget(self, paths: Sequence[Path]) -> None:
        with self.lock:
            for path in paths:
                self.kept.pop(path, None)


mapped = _Maps(OPEN_MAPS)


def fill(
    keys: Sequence[Key],
    compute: Compute,
    root: Path | None = None,
    progress: bool = True,
    description: str = "features",
) -> dict[str, FeatureTable]:
    """Return the features of several layers over the same examples, computing what is not there.

    One process writes at a time; another one that wants the same features waits and then finds them.

    Args:
        keys: one per layer; they differ in the layer only.
        compute: called for the rows of a shard with the layers that lack it.
        root: folder of the caches (default: in the cache folder).
        progress: show a bar over the shards.
        description: of the bar.

    Raises:
        CacheError: no examples, another folder under the same name, too little room on the disk, or `compute` returned
            another number of rows.
    """
    if not keys or not keys[0].rows:
        raise CacheError("there is nothing to compute features for; expected at least one layer and one example")
    for key in keys:
        _prepare(key, root)
    missing = {key.layer: _missing(key, root) for key in keys}
    todo = sorted(set().union(*missing.values()))
    by_layer = {key.layer: key for key in keys}
    with ExitStack() as locks:
        for folder in sorted({key.folder(root) for key in keys}):
            locks.enter_context(FileLock(folder / ".lock"))
        if todo:  # another process may have computed them while this one waited
            missing = {key.layer: _missing(key, root, clean=True) for key in keys}
            todo = sorted(set().union(*missing.values()))
        left = sum(map(len, missing.values()))  # shards of every layer
        for shard in tqdm(todo, desc=description, unit="shard", disable=not progress or not todo, leave=False):
            layers = [layer for layer, shards in missing.items() if shard in shards]
            rows = keys[0].slice_of(shard)
            found = compute(rows, layers)
            for layer in layers:
                _write(by_layer[layer], shard, np.asarray(found[layer]), root, remaining=left)
                left -= 1
    tables = {key.layer: open_table(key, root) for key in keys}
    absent = [layer for layer, table in tables.items() if table is None]
    if absent:
        raise CacheError(f"features of {', '.join(absent)} were written and are not whole; is the disk failing?")
    return {layer: table for layer, table in tables.items() if table is not None}


def _prepare(key: Key, root: Path | None) -> None:
    about = key.folder(root) / ABOUT
    wanted = asdict(key)
    if not about.is_file():
        storage.atomic_write_json(about, wanted)
    elif storage.read_json(about) != wanted:
        raise CacheError(f"{about.parent} holds features of something else. Remove the folder.")


def _missing(key: Key, root: Path | None, clean: bool = False) -> set[int]:
    """Return the shards that are not there; with `clean`, remove what a killed process left (the lock must be held)."""
    folder = key.folder(root)
    if clean:
        for path in folder.glob(".*.partial"):
            path.unlink(missing_ok=True)
    return set(range(key.shards)) - {shard for shard, _ in _whole_shards(folder, key)}


def _whole_shards(folder: Path, key: Key) -> Iterator[tuple[int, Path]]:
    """Yield (shard, path) of the shards whose bytes are those that were written; remove the others with a warning."""
    for path in sorted(folder.glob("*.npy")):
        match = _SHARD.fullmatch(path.name)
        if match is None or int(match[2]) != key.shards:
            continue
        if f"{checksum(path):08x}" == match[3]:
            yield int(match[1]), path
        else:
            path.unlink(missing_ok=True)
            warnings.warn(f"{path} was cut short or changed; it is computed again", stacklevel=4)


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file's bytes; a file that has not changed since is not read again."""
    told = path.stat()
    return _checksum(path, told.st_size, told.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _checksum(path: Path, size: int, changed: int) -> int:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _write(key: Key, shard: int, rows: NDArray, root: Path | None, remaining: int) -> None:
    expected = key.slice_of(shard).stop - key.slice_of(shard).start
    if rows.ndim != 3 or len(rows) != expected:
        raise CacheError(
            f"{key.model}, layer {key.layer}: expected ({expected}, tokens, width) for shard {shard}; got {rows.shape}"
        )
    with np.errstate(over="ignore"):
        stored = rows.astype(key.dtype)
    if not np.isfinite(stored).all():
        raise CacheError(
            f"{key.model}, layer {key.layer}: features beyond the range of {key.dtype}, or not numbers at all. "
            "Store them as float32."
        )
    folder = key.folder(root)
    check_room(folder, stored.nbytes * remaining)
    buffer = io.BytesIO()
    np.save(buffer, stored)
    content = buffer.getvalue()
    name = f"{shard:05d}-of-{key.shards:05d}-{zlib.crc32(content):08x}.npy"
    storage.atomic_write_bytes(folder / name, content)


def check_room(folder: Path, needed: int) -> None:
    """Raise CacheError where the disk has less room than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CacheError(
            f"{folder}: {needed / 1e9:.1f} GB are still to be written and {free / 1e9:.1f} GB are free. "
            "Make room, set SEEWHERE_HOME to another disk, or use fewer examples."
        )


def describe(table: FeatureTable) -> dict[str, Any]:
    """Return what a table of features is: model, layer, shape, bytes per example and in all."""
    return {
        "model": table.key.model,
        "layer": table.key.layer,
        "shape": table.shape,
        "bytes per example": table.bytes_per_row,
        "bytes": table.bytes_per_row * len(table),
    }
