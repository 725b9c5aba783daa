"""Which weights a number came from: hashes of model folders, and revisions of what a hub gave.

A record of a result names its weights by hash, so that a number can be told from that of another training. Folders are
hashed; of a hub model the revision in the cache identifies every byte; of a served model only the address is known.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from seewhere import storage

WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")
CONFIGS = ("config.json", "adapter_config.json")


def is_address(name: str) -> bool:
    """Whether a model's name is the address of a server."""
    return name.startswith(("http://", "https://"))


def weight_hash(source: str | Path) -> str:
    """Return what identifies the weights of a model.

    Args:
        source: a folder, a hub id that was loaded before, or an address.

    Returns:
        For a folder the SHA-256 of its weight file (of the list of names and hashes, where there are several); for a
        hub id "revision ..."; for an address "served at ..."; "unknown" where nothing can be told.
    """
    text = str(source)
    if is_address(text):
        return f"served at {text}"
    folder = Path(source)
    if folder.is_dir():
        return _folder_hash(folder)
    return _revision(text)


def _folder_hash(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_FILES)
    if not files:
        return "unknown"
    hashes = [storage.hash_file(path) for path in files]
    if len(files) == 1:
        return hashes[0]
    listed = "\n".join(f"{path.name} {code}" for path, code in zip(files, hashes, strict=True))
    return hashlib.sha256(listed.encode()).hexdigest()


def _revision(hub_id: str) -> str:
    """The revision of a hub model in the local cache: the name of the folder that its files lie in."""
    for name in CONFIGS:
        try:
            found = try_to_load_from_cache(hub_id, name)
        except HFValidationError:
            return "unknown"
        if isinstance(found, str):
            return f"revision {Path(found).parent.name}"
    return "unknown"


def grounder_hash(grounder: Any) -> str:
    """Return what identifies the weights of a loaded grounder, see `weight_hash`."""
    known = getattr(grounder, "weights_hash", None)
    if known:
        return str(known)
    config = getattr(getattr(grounder, "model", None), "config", None)
    revision = getattr(config, "_commit_hash", None)
    if revision:
        return f"revision {revision}"
    source = getattr(config, "_name_or_path", "") or getattr(grounder, "endpoint", "")
    return weight_hash(source) if source else "unknown"


def name_of(source: str | Path) -> str:
    """Return a short name for a source of weights: the folder's, or that above where it is only called "adapter"."""
    path = Path(source)
    if not path.is_dir():
        return str(source)
    return path.parent.name if path.name == "adapter" else path.name
