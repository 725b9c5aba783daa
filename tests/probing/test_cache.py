"""The feature cache: found again by what it depends on, whole or not at all, also when the process is killed."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from seewhere import storage
from seewhere.probing import cache
from seewhere.probing.encodings import EncodingStore
from seewhere.probing.features import cached_encodings, cached_features, compute_features
from seewhere.probing.tasks import data_hash
from tiny import Tiny, TinyEncoded, write_picture

KEY = cache.Key("tiny", "w", "d", "late", "float16", rows=10, shard_rows=4)


class Counting:
    """Features that say which row they are of, and how often they were computed."""

    def __init__(self):
        self.rows = []

    def __call__(self, rows, layers):
        self.rows += [(row, layer) for row in range(rows.start, rows.stop) for layer in layers]
        numbers = np.arange(rows.start, rows.stop, dtype=np.float32)
        return {layer: np.tile(numbers[:, None, None] + len(layer), (1, 3, 2)) for layer in layers}


def fill(root, compute, *keys):
    return cache.fill(keys or [KEY], compute, root, progress=False)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted as Linux tells them")
def test_many_shards_do_not_hold_many_files_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    rows = 2 * cache.OPEN_MAPS
    keys = [replace(KEY, layer=name, rows=rows, shard_rows=2) for name in ("a", "bb", "ccc")]
    tables = fill(tmp_path, Counting(), *keys)
    store = EncodingStore("e", tmp_path)
    for start in range(0, 40):  # a shard each
        store.fill({f"{start:016d}": None}, lambda pictures: np.full((1, 2, 2), 1.0), progress=False)
    for table in tables.values():
        assert table[np.arange(rows)[::-1]][:, 0, 0].tolist() == [r + len(table.key.layer) for r in range(rows)][::-1]
    assert store[[f"{n:016d}" for n in range(40)]].shape == (40, 2, 2)
    assert len(os.listdir("/proc/self/fd")) - before <= cache.OPEN_MAPS + 8
    kept = len(cache.mapped.kept)
    files = set(tables["ccc"].files)
    assert files & cache.mapped.kept.keys()
    table = None
    del tables["ccc"]
    assert len(cache.mapped.kept) < kept and not files & cache.mapped.kept.keys()


def test_rows_come_back_in_any_order(tmp_path):
    table = fill(tmp_path, Counting())["late"]
    assert table.shape == (10, 3, 2) and table.bytes_per_row == 12 and len(table) == 10
    assert table[[9, 0, 5, 5]][:, 0, 0].tolist() == [13, 4, 9, 9]
    assert table[[9]].dtype == np.float16
    assert all(isinstance(cache.mapped(file).base, np.memmap) for file in table.files)
    with pytest.raises(IndexError, match="rows 10 to 10 of a table of 10"):
        table[[10]]


def test_nothing_is_computed_twice_and_a_new_layer_computes_only_itself(tmp_path):
    first, second = Counting(), Counting()
    fill(tmp_path, first)
    fill(tmp_path, second)
    assert len(first.rows) == 10 and second.rows == []
    fill(tmp_path, second, KEY, replace(KEY, layer="early"))
    assert {layer for _, layer in second.rows} == {"early"} and len(second.rows) == 10


@pytest.mark.parametrize(
    "change", [{"weights": "v"}, {"data": "e"}, {"layer": "early"}, {"dtype": "float32"}, {"model": "other"}]
)
def test_other_weights_data_layer_or_format_are_other_features(tmp_path, change):
    fill(tmp_path, Counting())
    other = replace(KEY, **change)
    assert cache.open_table(other, tmp_path) is None and other.folder(tmp_path) != KEY.folder(tmp_path)
    again = Counting()
    fill(tmp_path, again, other)
    assert len(again.rows) == 10


def test_a_shard_that_was_cut_short_or_changed_is_computed_again_and_only_it(tmp_path):
    before = fill(tmp_path, Counting())["late"][range(10)].copy()
    first, second, _ = sorted(KEY.folder(tmp_path).glob("*.npy"))
    first.write_bytes(first.read_bytes()[:-5])
    content = bytearray(second.read_bytes())
    content[-3] ^= 1
    second.write_bytes(content)
    with pytest.warns(UserWarning, match="cut short or changed"):
        assert cache.open_table(KEY, tmp_path) is None
    again = Counting()
    table = fill(tmp_path, again)["late"]
    assert [row for row, _ in again.rows] == list(range(8))
    assert np.array_equal(table[range(10)], before)


def test_what_cannot_be_stored_is_refused(tmp_path, monkeypatch):
    with pytest.raises(cache.CacheError, match=r"beyond the range of float16.*float32"):
        fill(tmp_path, lambda rows, layers: {"late": np.full((rows.stop - rows.start, 1, 1), 1e6)})
    with pytest.raises(cache.CacheError, match=r"expected \(4, tokens, width\) for shard 0; got \(3, 2\)"):
        fill(tmp_path, lambda rows, layers: {"late": np.zeros((3, 2))})
    with pytest.raises(cache.CacheError, match="nothing to compute"):
        fill(tmp_path, Counting(), replace(KEY, rows=0))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(cache.CacheError, match=r"GB are free\. Make room"):
        fill(tmp_path, Counting())


def test_a_folder_of_something_else_is_refused(tmp_path):
    fill(tmp_path, Counting())
    about = KEY.folder(tmp_path) / cache.ABOUT
    storage.atomic_write_json(about, {**storage.read_json(about), "weights": "other"})
    with pytest.raises(cache.CacheError, match="something else"):
        fill(tmp_path, Counting())


# -- models ------------------------------------------------------------------------------------------------------------


def test_cached_features_are_the_models_own(binary_task, tmp_path):
    model, examples = Tiny(), binary_task.splits["train"]
    tables = cached_features(model, examples, Tiny.layers, root=tmp_path, shard_rows=20, progress=False)
    direct = compute_features(model, examples, Tiny.layers)
    for layer in Tiny.layers:
        np.testing.assert_allclose(tables[layer][range(48)], direct[layer], atol=2e-3, rtol=1e-3)
    looks = model.looks
    cached_features(model, examples, root=tmp_path, shard_rows=20, progress=False)
    assert model.looks == looks
    cached_features(Tiny(seed=1), examples, root=tmp_path, progress=False)
    with pytest.raises(ValueError, match="no layer 'middle'; its layers are early, late"):
        cached_features(model, examples, ["middle"], root=tmp_path)


def test_data_are_their_pictures_contents_and_texts(binary_task):
    examples = binary_task.splits["test"]
    before = data_hash(examples)
    assert data_hash(examples) == before != data_hash(examples[::-1])
    assert data_hash([replace(examples[0], text="x"), *examples[1:]]) != before
    write_picture(examples[0].picture.path, 0, 0, colour=(0, 0, 200))
    assert data_hash(examples) != before


def test_every_picture_is_encoded_once_for_all_tasks_and_arms(binary_task, tmp_path):
    examples, model = binary_task.splits["test"], TinyEncoded()
    encoded = cached_encodings(model, [*examples, *examples], tmp_path, progress=False)
    assert model.looks == len(examples) and len(encoded) == 2 * len(examples)
    assert np.array_equal(encoded[[3]], encoded[[3 + len(examples)]])
    chosen = [*examples, *binary_task.splits["train"][:5]]
    asked = [
        replace(e, text="another question " * (n * 7 % 5)) for n, e in enumerate(chosen)
    ]  # long ones between short
    tables = cached_features(model, asked, Tiny.layers, root=tmp_path, progress=False)
    assert model.looks == len(examples) + 5
    direct = compute_features(Tiny(), asked, Tiny.layers)
    for layer in Tiny.layers:
        np.testing.assert_allclose(tables[layer][range(len(asked))], direct[layer], atol=5e-3, rtol=2e-3)


def test_encodings_that_were_changed_on_the_disk_are_made_again(binary_task, tmp_path):
    examples, model = binary_task.splits["test"], TinyEncoded()
    before = cached_encodings(model, examples, tmp_path, progress=False)[range(len(examples))].copy()
    (shard,) = tmp_path.glob("encodings/*/*.npy")
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="encoded again"):
        again = cached_encodings(model, examples, tmp_path, progress=False)
    assert model.looks == 2 * len(examples) and np.array_equal(again[range(len(examples))], before)
    other = TinyEncoded(seed=1)
    assert not np.array_equal(cached_encodings(other, examples, tmp_path, progress=False)[[0]], before[:1])
    for listing in tmp_path.glob("encodings/*/*.json"):
        listing.write_text(listing.read_text()[:-9])
    with pytest.warns(UserWarning, match="encoded again"):
        cached_encodings(model, examples, tmp_path, progress=False)
    assert model.looks == 3 * len(examples)
    # A shard without its list was cut off by a kill: it does not count.
    (listing,) = [p for p in tmp_path.glob("encodings/*/*.json") if model.weights_hash[:32] in str(p)]
    listing.unlink()
    cached_encodings(model, examples, tmp_path, progress=False)
    assert model.looks == 4 * len(examples)


# -- killed ------------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy as np
from seewhere.probing import cache
key = cache.Key("tiny", "w", "d", "late", "float16", rows=4000, shard_rows=100)
def compute(rows, layers):
    with open({log!r}, "a") as log:
        log.write(f"{{rows.start}}\\n")
    time.sleep(0.02)
    return {{"late": np.arange(rows.start, rows.stop)[:, None, None] % 1000 * np.ones((1, 20, 50))}}
cache.fill([key], compute, Path({root!r}), progress=False)
"""


def test_a_killed_process_loses_the_shard_in_progress_and_nothing_else(tmp_path):
    root, log = tmp_path / "cache", tmp_path / "log"
    key = cache.Key("tiny", "w", "d", "late", "float16", rows=4000, shard_rows=100)
    code = SCRIPT.format(tests=str(Path(__file__).parent), log=str(log), root=str(root))
    for wanted in (3, 12):  # twice, the second time in the middle of a resumed one
        process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 120
        while len(list(key.folder(root).glob("*.npy"))) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = {path.name for path in key.folder(root).glob("*.npy")}
    assert 12 <= len(done) < 40 and cache.open_table(key, root) is None
    started = log.read_text().split()
    # A leftover of a write that was cut off, as a kill within the write would leave it.
    (key.folder(root) / ".00039-of-00040-00000000.npy.x.partial").write_bytes(b"torn")
    subprocess.run([sys.executable, "-c", code], check=True)
    computed = log.read_text().split()[len(started) :]
    assert len(computed) == len(set(computed)) == 40 - len(done)
    assert len(started) - len(set(started)) <= 1  # of the two kills, each lost at most the shard it was computing
    table = cache.open_table(key, root)
    assert table is not None and np.array_equal(table[range(4000)][:, 0, 0], np.arange(4000) % 1000)
    assert done <= {path.name for path in key.folder(root).glob("*.npy")}
    assert not list(key.folder(root).glob("*.partial")) and not list(key.folder(root).glob(".*.partial"))


ENCODE = """
import time
from pathlib import Path
import numpy as np
from seewhere.probing import encodings
encodings.SHARD = 50
def encode(pictures):
    with open({log!r}, "a") as log:
        log.write("".join(f"{{picture}}\\n" for picture in pictures))
    time.sleep(0.02)
    return np.array(pictures, dtype=np.float32)[:, None, None] * np.ones((1, 5, 8))
store = encodings.EncodingStore("eye", Path({root!r}))
store.fill({{f"{{number:032x}}": number for number in range(1000)}}, encode, progress=False)
"""


def test_a_killed_encoder_looks_again_only_at_the_pictures_in_progress(tmp_path):
    root, log = tmp_path / "cache", tmp_path / "log"
    code = ENCODE.format(log=str(log), root=str(root))
    folder = EncodingStore("eye", root).folder
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.json"))) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    listed = len(list(folder.glob("*.json")))
    assert 4 <= listed < 20
    (folder / ".torn.npy.x.partial").write_bytes(b"torn")
    subprocess.run([sys.executable, "-c", code], check=True)
    looked = [int(line) for line in log.read_text().split()]
    assert set(looked) == set(range(1000)) and len(looked) - 1000 <= 50, "at most one shard twice"
    store = EncodingStore("eye", root)
    store.read()
    names = [f"{number:032x}" for number in range(1000)]
    assert np.array_equal(store[names][:, 0, 0], np.arange(1000)) and not list(folder.glob(".*.partial"))
