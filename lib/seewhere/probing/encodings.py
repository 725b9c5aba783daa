"""A frozen image encoder's tokens, kept once per picture and shared by every task, split, text and resampler.

Unlike features (`seewhere.probing.cache`), which belong to one list of examples, these belong to a picture: a folder
per encoder holds shards of some hundred pictures each, with a list of the pictures' content hashes beside it. The list
is written after the shard and names its checksum, so a shard counts only when it is whole, and a process that is killed
loses the shard it was computing and nothing else.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm.auto import tqdm

from seewhere import storage
from seewhere.probing.cache import CacheError, check_room, checksum, mapped
from seewhere.probing.tasks import Picture

SHARD = 256
"""Pictures per shard: at most these are encoded again after a kill."""

Encode = Callable[[Sequence[Picture]], NDArray]
"""Pictures -> (N, patches, width)."""


class EncodingStore:
    """The kept tokens of one encoder.

    Args:
        encoder: hash of everything that the tokens depend on besides the picture.
        root: folder of the stores (default: ``encodings`` in the cache folder).
        dtype: number format on disk.
    """

    def __init__(self, encoder: str, root: Path | None = None, dtype: str = "float16") -> None:
        self.folder = (root or storage.cache_home()) / "encodings" / f"{encoder[:32]}-{dtype}"
        self.encoder, self.dtype = encoder, dtype
        self._places: dict[str, tuple[Path, int]] = {}
        self._read: set[str] = set()

    def __contains__(self, picture: str) -> bool:
        return picture in self._places

    def read(self) -> None:
        """Look for shards that are new since the last look; broken ones are removed with a warning."""
        for listing in sorted(self.folder.glob("*.json")):
            if listing.name in self._read:
                continue
            shard = listing.with_suffix(".npy")
            try:
                about = storage.read_json(listing)
            except ValueError:  # a damaged disk: what it listed is encoded again
                about = {"encoder": self.encoder, "checksum": ""}
            if about["encoder"] != self.encoder:
                raise CacheError(f"{self.folder} holds tokens of another encoder. Remove the folder.")
            if not shard.is_file() or f"{checksum(shard):08x}" != about["checksum"]:
                listing.unlink(missing_ok=True)
                shard.unlink(missing_ok=True)
                warnings.warn(f"{shard} was cut short or changed; its pictures are encoded again", stacklevel=2)
                continue
            self._places |= {name: (shard, row) for row, name in enumerate(about["pictures"])}
            self._read.add(listing.name)

    def fill(self, pictures: Mapping[str, Picture], encode: Encode, progress: bool = True) -> None:
        """Encode the pictures (content hash -> picture) that are not there. One process writes at a time."""
        self.read()
        if all(name in self for name in pictures):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            self.read()  # another process may have encoded them while this one waited
            for leftover in self.folder.glob(".*.partial"):
                leftover.unlink(missing_ok=True)
            todo = [name for name in pictures if name not in self]
            parts = [todo[start : start + SHARD] for start in range(0, len(todo), SHARD)]
            for place, part in enumerate(tqdm(parts, desc="pictures", unit="shard", disable=not progress, leave=False)):
                values = np.asarray(encode([pictures[name] for name in part])).astype(self.dtype)
                if len(values) != len(part) or values.ndim != 3 or not np.isfinite(values).all():
                    raise CacheError(f"expected ({len(part)}, patches, width) finite numbers; got shape {values.shape}")
                check_room(self.folder, values.nbytes * (len(parts) - place))
                self._write(part, values)
        self.read()

    def _write(self, names: Sequence[str], values: NDArray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, values)
        content = buffer.getvalue()
        found = f"{zlib.crc32(content):08x}"
        shard = self.folder / f"{names[0][:16]}-{len(names)}-{found}.npy"
        storage.atomic_write_bytes(shard, content)
        about = {"encoder": self.encoder, "checksum": found, "pictures": list(names)}
        storage.atomic_write_json(shard.with_suffix(".json"), about, indent=None)

    def __getitem__(self, names: Sequence[str]) -> NDArray:
        """Return the tokens of pictures by their hashes, (N, patches, width)."""
        return np.stack([mapped(shard)[row] for shard, row in (self._places[name] for name in names)])


class EncodedPictures:
    """The encoder's tokens by example: ``encoded[rows]`` is (B, patches, width)."""

    def __init__(self, store: EncodingStore, names: Sequence[str]) -> None:
        self.store, self.names = store, list(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: NDArray[np.integer] | Sequence[int]) -> NDArray:
        return self.store[[self.names[row] for row in rows]]
