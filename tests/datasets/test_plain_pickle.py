"""A pickle is a program: data comes through, anything else does not run."""

import collections
import os
import pickle
import subprocess
import sys

import pytest
from seewhere.datasets.plain_pickle import load_plain_pickle
from seewhere.records import DataError

PLAIN = [{"a": (1, 2.5, None, True), "b": {"c": "é", "d": b"\xff\x00"}, "e": {1, 2}, "f": frozenset("x"), 7: 2**80}, []]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back(tmp_path, protocol):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    assert load_plain_pickle(path) == PLAIN


def test_python_2_text_comes_back(tmp_path):
    path = tmp_path / "refs(unc).p"
    # what Python 2 writes for [{'raw': 'caf\xe9', 'n': 5L}], protocol 0
    path.write_bytes(b"(lp0\n(dp1\nS'raw'\np2\nS'caf\\xe9'\np3\nsS'n'\np4\nL5L\nsa.")
    assert load_plain_pickle(path) == [{"raw": "café", "n": 5}]


class Exploit:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_exploit_is_refused_and_does_not_run(tmp_path, protocol):
    mark = tmp_path / "owned"
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"ref_id": 1, "sentences": Exploit(f"touch {mark}")}], protocol=protocol))
    with pytest.raises(
        DataError, match=r"refs\(unc\)\.p: refused\. It asks for (posix|nt)\.system.*Nothing of it was run"
    ):
        load_plain_pickle(path)
    assert not mark.exists()


def test_the_exploit_is_a_real_one(tmp_path):
    mark, path = tmp_path / "owned", tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(Exploit(f"touch {mark}")))
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.load(open({str(path)!r}, 'rb'))"], check=True)
    assert mark.exists()  # so that the test above cannot pass because the exploit is a dud


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (collections.OrderedDict(a=1), r"collections\.OrderedDict"),
        (eval, r"builtins\.eval"),
        (DataError, r"seewhere\.records\.DataError"),
        (complex(1, 2), r"builtins\.complex"),
    ],
)
def test_other_objects_are_refused_by_name(tmp_path, value, name):
    path = tmp_path / "x.p"
    path.write_bytes(pickle.dumps([value]))
    with pytest.raises(DataError, match=f"refused. It asks for {name}"):
        load_plain_pickle(path)


def test_roundabout_ways_are_refused(tmp_path):
    path = tmp_path / "x.p"
    path.write_bytes(b"c_codecs\nencode\n(X\x02\x00\x00\x00hiX\x05\x00\x00\x00rot13tR.")
    with pytest.raises(DataError, match="encoding"):
        load_plain_pickle(path)
    path.write_bytes(b"cbuiltins\nset\n(X\x08\x00\x00\x00__init__tR.")  # a plain call of a plain name: harmless
    assert load_plain_pickle(path) == set("__init__")
    path.write_bytes(b"\x80\x04\x8c\x02os\x8c\x06system\x93.")  # STACK_GLOBAL
    with pytest.raises(DataError, match=r"os\.system"):
        load_plain_pickle(path)
    path.write_bytes(b"Pabc\n.")  # a persistent id
    with pytest.raises(DataError, match="not a whole pickle"):
        load_plain_pickle(path)


def test_a_broken_pickle_names_its_file(tmp_path):
    path = tmp_path / "refs(umd).p"
    for content in (b"", b"<html>404</html>", pickle.dumps(PLAIN)[:-20], b"\x80\x02b."):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"refs\(umd\)\.p: not a whole pickle"):
            load_plain_pickle(path)
    with pytest.raises(DataError, match="no such file"):
        load_plain_pickle(tmp_path / "gone.p")
