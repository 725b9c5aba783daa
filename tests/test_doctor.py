from pathlib import Path
from types import SimpleNamespace

import pytest
from seewhere import cli, doctor


def test_the_report_names_everything_and_what_to_do(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    code = cli.main(["doctor"])
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("[")]
    assert len(lines) == len(doctor.CHECKS)
    assert all(line.startswith(("[ok]", "[missing]")) for line in lines)
    for name in ("Python", "versions", "device", "disk", "memory", "cache", "SmolLM2", "data", "Java", "Chromium"):
        assert f" {name}: " in said
    assert code == int("Needed and missing" in said)


def test_only_needed_things_decide_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optional = doctor.Finding("Java", False, "not found", "install it", needed=False)
    needed = doctor.Finding("disk", False, "1 GB", "free some")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: optional,))
    assert cli.main(["doctor"]) == 0 and "optional: install it" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CHECKS", (lambda: optional, lambda: needed))
    assert cli.main(["doctor"]) == 1 and "Needed and missing: disk" in capsys.readouterr().out


def test_versions_that_differ_from_the_lock_are_named(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("# a comment\nnumpy==0.0.1\nno-such-package==1.0  # why\n")
    finding = doctor.versions(lock)
    assert not finding.ok and not finding.needed
    assert "numpy" in finding.seen and "(locked 0.0.1)" in finding.seen and "no-such-package absent" in finding.seen
    assert doctor.versions(tmp_path / "none").ok


def test_local_versions_count_as_the_locked_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: "2.13.0+cpu")
    lock = tmp_path / "requirements.lock"
    lock.write_text("torch==2.13.0\n")
    assert doctor.versions(lock).ok


def test_a_full_disk_and_an_unwritable_cache_are_found(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=1e9))
    finding = doctor.disk()
    assert not finding.ok and "1 GB free" in finding.seen and "SEEWHERE_HOME" in finding.advice
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file where a folder is due")
    assert not doctor.cache().ok


def test_programs_that_are_absent_or_broken_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not doctor.java().ok and "METEOR" in doctor.java().advice
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    assert not doctor.java().ok


def test_data_folders_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refcoco").mkdir()
    monkeypatch.setenv("SEEWHERE_REAL_DATA", str(tmp_path))
    assert doctor.data().ok and "refcoco" in doctor.data().seen
    monkeypatch.setenv("SEEWHERE_REAL_DATA", str(tmp_path / "nowhere"))
    assert not doctor.data().ok
