"""Pickles from strangers, read as data only.

REFER's expressions are published as pickles, and a pickle is a program: it may import anything and call it. Such a file
needs lists, dicts, text and numbers, so this reader knows nothing else and refuses the first import it is asked for,
before anything runs.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from seewhere.records import DataError


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them in the old protocols: text to be encoded again. Latin-1 only, as it always is."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in an encoding that pickle itself never writes")
    return text.encode("latin-1")


# What plain data needs although pickle has no opcode for it in every protocol. None of it can reach anything else.
_PLAIN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("_codecs", "encode"): _encode,
}


class _Refused(Exception):
    """Carries the name of the import that a pickle asked for."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return what a plain pickle may name; refuse everything else."""
        if (module_name, global_name) in _PLAIN:
            return _PLAIN[module_name, global_name]
        raise _Refused(f"{module_name}.{global_name}")


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle that holds plain containers, text, bytes, numbers, bools and None, and nothing else.

    Files written by Python 2 are read with Latin-1 text, as their authors' tools do.

    Raises:
        DataError: the file asks for an import (it is named, and not done), or is not a whole pickle.
    """
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="latin1").load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except _Refused as error:
        raise DataError(
            f"{path.name}: refused. It asks for {error}, which is code; this file should hold lists, dicts, text and "
            f"numbers only, so it may be an attack. Nothing of it was run. Delete {path} and fetch the published file."
        ) from None
    except Exception as error:  # a broken pickle can fail in any way: IndexError, AttributeError, MemoryError, ...
        raise DataError(
            f"{path.name}: not a whole pickle ({type(error).__name__}: {error}). Fetch {path} again."
        ) from error
