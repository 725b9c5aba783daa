"""Files come into being wholly or not at all, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from seewhere import storage


def test_homes_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SEEWHERE_HOME", str(tmp_path / "here"))
    assert storage.data_home() == tmp_path / "here" / "data"
    assert storage.cache_home() == tmp_path / "here" / "cache"
    assert storage.runs_home() == tmp_path / "here" / "runs"
    monkeypatch.delenv("SEEWHERE_HOME")
    assert storage.data_home() == Path.home() / ".cache" / "seewhere" / "data"


def test_json_comes_back(tmp_path):
    path = storage.atomic_write_json(tmp_path / "deep" / "er" / "a.json", {"é": [1, 2.5, None, True, "x"]})
    assert storage.read_json(path) == {"é": [1, 2.5, None, True, "x"]}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_json_takes_what_results_hold(tmp_path):
    obj = {
        "a": np.float32(0.5),
        "b": np.arange(3),
        "c": (1, 2),
        "d": Path("x"),
        "e": {3, 1},
        "f": float("nan"),
        4: np.bool_(True),
    }
    path = storage.atomic_write_json(tmp_path / "a.json", obj)
    assert json.loads(path.read_text()) == {
        "a": 0.5, "b": [0, 1, 2], "c": [1, 2], "d": "x", "e": [1, 3], "f": None, "4": True,
    }  # fmt: skip
    with pytest.raises(TypeError):
        storage.atomic_write_json(tmp_path / "b.json", {"a": object()})
    assert not (tmp_path / "b.json").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = storage.atomic_write_text(tmp_path / "a.txt", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.atomic_write_text(path, "new")
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_files_are_readable_by_others_as_usual(tmp_path):
    ordinary = tmp_path / "b.txt"
    ordinary.write_text("x")
    path = storage.atomic_write_bytes(tmp_path / "a.txt", b"x")
    assert path.stat().st_mode == ordinary.stat().st_mode
    path.chmod(0o600)
    storage.atomic_write_bytes(path, b"y")
    assert path.stat().st_mode & 0o777 == 0o600


def test_private_files_of_others_become_readable(tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "a.safetensors"
    save_file({"a": np.zeros(3)}, file)
    before = os.umask(0o027)
    try:
        storage.make_readable(file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_folder_is_made_once_and_a_failed_one_again(tmp_path):
    made = []

    def fail(folder):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    def fill(folder):
        made.append(folder)
        (folder / "whole").write_text("y")

    target = tmp_path / "deep" / "folder"
    with pytest.raises(OSError, match="disk full"):
        storage.made_once(target, fail)
    assert not target.exists()
    assert storage.made_once(target, fill) == storage.made_once(target, fill) == target
    assert len(made) == 1 and [f.name for f in target.iterdir()] == ["whole"]


def test_broken_json_names_its_file(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"a": [1, 2')
    with pytest.raises(ValueError, match=r"broken\.json: not a JSON file .*cut short"):
        storage.read_json(path)


def test_hash_is_of_the_bytes(tmp_path):
    path = storage.atomic_write_bytes(tmp_path / "a", b"abc")
    assert storage.hash_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "world"
    with storage.atomic_directory(target) as folder:
        (folder / "a.txt").write_text("x")
        assert not target.exists() and folder.parent == tmp_path
    assert (target / "a.txt").read_text() == "x" and list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="half way"), storage.atomic_directory(tmp_path / "world") as folder:
        (folder / "a.txt").write_text("x")
        raise RuntimeError("half way")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_unless_told(tmp_path):
    target = tmp_path / "world"
    target.mkdir()
    (target / "old.txt").write_text("x")
    with pytest.raises(FileExistsError, match="overwrite=True"), storage.atomic_directory(target):
        pass
    with pytest.raises(RuntimeError), storage.atomic_directory(target, overwrite=True):
        raise RuntimeError
    assert (target / "old.txt").exists()
    with storage.atomic_directory(target, overwrite=True) as folder:
        (folder / "new.txt").write_text("y")
    assert [entry.name for entry in target.iterdir()] == ["new.txt"] and list(tmp_path.iterdir()) == [target]


def test_the_first_of_two_processes_wins(tmp_path):
    target = tmp_path / "world"
    with storage.atomic_directory(target) as ours:
        (ours / "a.txt").write_text("ours")
        with storage.atomic_directory(target) as theirs:
            (theirs / "a.txt").write_text("theirs")
    assert (target / "a.txt").read_text() == "theirs" and list(tmp_path.iterdir()) == [target]


def test_a_killed_process_leaves_nothing_that_looks_complete(tmp_path):
    code = (
        "import sys, time\nfrom seewhere.storage import atomic_directory\n"
        "with atomic_directory(sys.argv[1]) as folder:\n"
        "    (folder / 'a.txt').write_text('half')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    target = tmp_path / "world"
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists() and len(list(tmp_path.iterdir())) == 1  # hidden, partial, and no one's
    while storage._alive(process.pid):
        time.sleep(0.01)
    with storage.atomic_directory(target) as folder:
        (folder / "a.txt").write_text("whole")
    assert list(tmp_path.iterdir()) == [target] and (target / "a.txt").read_text() == "whole"


def test_where_signals_are_not_those_of_unix_none_asks_whether_a_process_lives(monkeypatch):
    monkeypatch.setattr(storage.os, "name", "nt")
    monkeypatch.setattr(storage.os, "kill", lambda *_: pytest.fail("signal 0 is Ctrl+C there"))
    assert storage._alive(2**30)
