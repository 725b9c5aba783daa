"""What cards say of how weights are made is what runs."""

from pathlib import Path

import pytest
from seewhere import again, cli


@pytest.mark.parametrize("name", again.names())
def test_every_card_s_commands_are_calls_that_parse_and_write_below_one_folder(name: str, tmp_path: Path) -> None:
    found = again.commands_of(name, tmp_path)
    for words in found:
        parsed = vars(cli.build_parser(words).parse_args(words))
        place = parsed.get("out") or parsed.get("output")
        assert place.is_relative_to(tmp_path) and "--ship" not in words
        if parsed.get("start"):
            assert str(parsed["start"]).startswith(str(tmp_path)), "it goes on from a folder that was made before"
    assert len({tuple(words) for words in found}) == len(found)


def test_commands_run_in_order_and_stop_at_the_first_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, called = cli.main, []
    monkeypatch.setattr(cli, "main", lambda words: called.append(words[3]) or (3 if len(called) == 2 else 0))
    call = ["train", "again", "micro-clip", "--out", str(tmp_path)]
    assert real([*call, "--dry-run"]) == 0 and called == []
    assert capsys.readouterr().out.count("seewhere train clip") == 3
    assert real(call) == 3
    assert called == [str(tmp_path / "FIRST"), str(tmp_path / "SECOND")]


def test_a_card_without_commands_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("# mine")
    monkeypatch.setattr(again, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="the card of mine tells no command"):
        again.commands_of("mine", tmp_path)
    with pytest.raises(ValueError, match="no shipped weights 'other'; expected one of mine"):
        again.commands_of("other", tmp_path)
