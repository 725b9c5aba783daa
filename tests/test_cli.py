import argparse
import subprocess
import sys

import pytest
import seewhere
from seewhere import cli


def test_every_listed_command_exists_and_explains_itself() -> None:
    modules = [name for command in cli.COMMANDS.values() for name in command.modules + command.inner]
    missing = [name for name in modules if not cli.is_present(name)]
    assert missing == []
    for name in cli.COMMANDS:
        parser = cli.build_parser([name])
        (group,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        assert len(group.choices[name].format_help().splitlines()) > 3, name


def test_several_modules_add_to_one_group() -> None:
    parsed = cli.build_parser(["train"]).parse_args(["train", "wrapper", "--out", "x"])
    assert str(parsed.out) == "x" and callable(parsed.run)
    assert cli.build_parser(["train"]).parse_args(["train", "detector"]).name == "micro"


def test_no_command_prints_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    said = capsys.readouterr().out
    assert all(name in said for name in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and seewhere.__version__ in capsys.readouterr().out


def test_unknown_commands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["rnu"])
    assert caught.value.code == 2 and "rnu" in capsys.readouterr().err


def test_errors_become_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "no-such-notebook"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("seewhere: 0 notebooks called 'no-such-notebook'") and "Traceback" not in said


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys; from seewhere.cli import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_an_absent_module_takes_only_its_own_command_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "gone", cli.Command("nothing", ("seewhere.no_such_module",)))
    assert not cli.is_present("seewhere.no_such.module")
    assert cli.main(["gone"]) == 2
