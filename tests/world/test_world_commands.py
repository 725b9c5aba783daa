"""``seewhere world build`` and ``seewhere world card``."""

import argparse

import pytest
from seewhere.world import cli, export


@pytest.fixture
def parser():
    made = argparse.ArgumentParser()
    cli.register(made.add_subparsers())
    return made


def _run(parser, *words):
    arguments = parser.parse_args(["world", *map(str, words)])
    return arguments.handler(arguments)


def test_build_and_card(parser, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(export.PRESETS, "smoke", export.Scale(6, 2, 3, 2))
    root = tmp_path / "world"
    assert _run(parser, "build", "--preset", "smoke", "--root", root, "--workers", 1) == 0
    assert str(root) in capsys.readouterr().out
    assert _run(parser, "card", "--preset", "smoke", "--root", root, "--out", tmp_path / "card") == 0
    assert "| images | 6 | 2 | 3 | 2 |" in capsys.readouterr().out
    assert (tmp_path / "card" / "world_scenes.png").is_file()


def test_a_refusal_is_a_message_and_an_exit_code(parser, tmp_path, capsys):
    (tmp_path / "file.txt").write_text("something else")
    assert _run(parser, "build", "--preset", "smoke", "--root", tmp_path) == 2
    assert "no build of the world" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        _run(parser, "build", "--preset", "huge")
