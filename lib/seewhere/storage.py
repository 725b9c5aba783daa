"""Where data, caches and runs live, and how a file comes into being there: wholly or not at all.

A run may be killed at any moment, and a torn file that looks complete is worse than none. So everything is written
aside, on the same file system, flushed, and then renamed; readers see the old state or the new one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np


def _home() -> Path:
    configured = os.environ.get("SEEWHERE_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "seewhere"


def data_home() -> Path:
    """Folder of data sets: ``$SEEWHERE_HOME/data`` (default ``~/.cache/seewhere/data``). Not created here."""
    return _home() / "data"


def cache_home() -> Path:
    """Folder of what can be made again: ``$SEEWHERE_HOME/cache``. Not created here."""
    return _home() / "cache"


def runs_home() -> Path:
    """Folder of finished and unfinished runs: ``$SEEWHERE_HOME/runs``. Not created here."""
    return _home() / "runs"


def atomic_write_bytes(path: Path | str, content: bytes) -> Path:
    """Write `content` to `path`, wholly or not at all, making its folder if need be. Returns the path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, _file_mode(target))
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    return target


def _file_mode(target: Path) -> int:
    """The mode of what is replaced, or what an ordinary write would give: mkstemp makes private files."""
    with suppress(FileNotFoundError):
        return target.stat().st_mode & 0o777
    return _ordinary_mode()


def make_readable(path: Path | str) -> None:
    """Give a file the mode of an ordinary write: safetensors makes private ones, and a cache may be shared."""
    os.chmod(path, _ordinary_mode())


def _ordinary_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def atomic_write_text(path: Path | str, text: str) -> Path:
    """Write `text` as UTF-8 to `path`, wholly or not at all. Returns the path."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path | str, obj: Any, indent: int | None = 2) -> Path:
    """Write `obj` as JSON to `path`, wholly or not at all. Returns the path.

    numpy numbers and arrays, paths, tuples and sets are written as plain JSON; NaN and infinities, which JSON cannot
    hold, as null.

    Raises:
        TypeError: for anything else that JSON cannot hold.
    """
    return atomic_write_text(path, json.dumps(_plain(obj), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(obj: Any) -> Any:
    """`obj` in the types that JSON knows."""
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, np.ndarray):
        return _plain(obj.tolist())
    if isinstance(obj, np.generic):
        return _plain(obj.item())
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, (set, frozenset)):
        return [_plain(value) for value in sorted(obj)]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    return obj


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON; the message names it and the place.
    """
    target = Path(path)
    try:
        return json.loads(target.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{target}: not a JSON file ({error}). Was it cut short on its way here?") from error


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_directory(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Build a folder aside and put it in place when the block ends without an error.

    ``with atomic_directory(target) as folder:`` gives a fresh folder beside `target`. When the block raises, it is
    removed and `target` is as before. When another process finishes the same folder first, its work stays and ours is
    dropped. What a killed process left behind is removed by the next one on the same machine.

    Args:
        path: the folder to make.
        overwrite: replace an existing folder (it stays in place until the new one is complete).

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already. Pass overwrite=True to replace it, or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    partial = _aside(target, "partial")
    try:
        yield partial
        _put_in_place(partial, target, overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def made_once(target: Path | str, fill: Callable[[Path], None]) -> Path:
    """Return a folder that is filled by the first who asks for it; others, also of other processes, wait.

    Args:
        target: the folder. What lies there already is taken as it is.
        fill: writes the content into the empty folder it is given. Where it fails, nothing is left behind.
    """
    from filelock import FileLock

    folder = Path(target)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():
                with atomic_directory(folder) as work:
                    fill(work)
    return folder


def _aside(target: Path, kind: str) -> Path:
    """A new empty folder beside `target` whose name tells which process owns it."""
    prefix = f".{target.name}.{kind}-{socket.gethostname()}-{os.getpid()}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    folder.chmod(0o755)
    return folder


def _put_in_place(partial: Path, target: Path, overwrite: bool) -> None:
    if overwrite and target.exists():
        old = _aside(target, "replaced")
        os.rename(target, old / target.name)
        try:
            os.rename(partial, target)
        except BaseException:
            os.rename(old / target.name, target)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
        return
    try:
        os.rename(partial, target)
    except OSError:
        if not target.exists():
            raise


def _remove_stale(target: Path) -> None:
    """Remove what dead processes of this machine left beside `target`."""
    for kind in ("partial", "replaced"):
        prefix = f".{target.name}.{kind}-{socket.gethostname()}-"
        for folder in target.parent.glob(f"{prefix}*"):
            owner = folder.name.removeprefix(prefix).split("-")[0]
            if owner.isdigit() and not _alive(int(owner)):
                shutil.rmtree(folder, ignore_errors=True)


def _alive(process_id: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl+C; what cannot be known is left alone
        return True
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
