"""Candidates on disk: hours of a detector's work on a training split outlive the process that did it.

A part of the phrases is one ``.npz`` file that holds arrays only and is written wholly or not at all. Its name says
which weights were asked about what, so other phrases or another detector never find it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seewhere import storage
from seewhere.models.candidates import Detections

_FIELDS = ("xyxy", "confidence")
_DATA = "data/"
_METADATA = "metadata"


def part_name(grounder: str, asked: Sequence[tuple[Any, str]]) -> str:
    """Return the name of the file of some phrases.

    Args:
        grounder: what identifies the detector and its weights, see `seewhere.models.provenance.grounder_hash`.
        asked: (number of the picture, phrase), in the order asked.
    """
    facts = json.dumps([grounder, [[str(picture), phrase] for picture, phrase in asked]], ensure_ascii=False)
    return f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.npz"


def write(path: Path, found: Sequence[Detections]) -> Path:
    """Write candidate sets, with every array in its own type."""
    arrays: dict[str, np.ndarray] = {}
    for number, candidates in enumerate(found):
        given = {name: getattr(candidates, name) for name in _FIELDS}
        given |= {_DATA + name: values for name, values in candidates.data.items()}
        arrays |= {f"{number}/{name}": np.asarray(values) for name, values in given.items() if values is not None}
    metadata = [{k: _plain(v) for k, v in candidates.metadata.items()} for candidates in found]
    arrays[_METADATA] = np.array(json.dumps(metadata, ensure_ascii=False))
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    return storage.atomic_write_bytes(path, content.getvalue())


def read(path: Path) -> list[Detections] | None:
    """Return what `write` wrote; None where there is no such file or it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        metadata = json.loads(str(arrays.pop(_METADATA)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    parts: list[dict[str, np.ndarray]] = [{} for _ in metadata]
    for name, values in arrays.items():
        number, _, field = name.partition("/")
        parts[int(number)][field] = values
    return [
        Detections(
            xyxy=part["xyxy"],
            confidence=part.get("confidence"),
            data={name.removeprefix(_DATA): values for name, values in part.items() if name.startswith(_DATA)},
            metadata=told,
        )
        for part, told in zip(parts, metadata, strict=True)
    ]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
