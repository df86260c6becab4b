"""`make versions`: what it says of Pythons that are missing, and of histories that differ."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.simulation import versions

pytestmark = pytest.mark.processes


def script(path: Path, text: str) -> str:
    """A program in place of an interpreter."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert versions.main(["python3.999"]) == 2
    told = capsys.readouterr()
    assert told.out == "", "it must look before it plays"
    assert told.err.startswith("error: there is no python3.999 here\nhint: install it, or name")


def test_a_name_without_an_interpreter_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shim = script(tmp_path / "python3.99", "echo python3.99: command not found >&2; exit 127")
    assert versions.main([shim]) == 2
    assert capsys.readouterr().err.startswith(f"error: there is no {shim} here\nhint: ")


def test_an_old_python_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = script(tmp_path / "python", "echo 3.10.4")
    assert versions.main([old]) == 2
    expected = f"error: {old} is Python 3.10.4\nhint: Rallypoint needs Python 3.11 or later\n"
    assert capsys.readouterr().err == expected


def test_a_python_that_cannot_install_is_told_with_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = script(
        tmp_path / "python", '[ "$1" = -c ] && echo 3.12.1 || { echo no ensurepip; exit 1; }'
    )
    assert versions.main(["--seeds", "0:1", bare]) == 2
    expected = f"error: Rallypoint cannot be installed for {bare}:\nno ensurepip\nhint: "
    assert capsys.readouterr().err.startswith(expected)


def test_the_same_version_is_no_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert versions.main([sys.executable]) == 2
    told = capsys.readouterr()
    assert told.out == "", "it must look before it plays"
    assert "so is the one that it is compared with\nhint: name others" in told.err


def test_histories_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "installed", lambda python, folder: sys.executable)
    monkeypatch.setattr(versions, "_check_other", lambda found: None)
    assert versions.main(["--seeds", "0:1", sys.executable]) == 0
    assert "1 seeds have the same history" in capsys.readouterr().out
    told = iter([{"0": "a", "1": "b"}, {"0": "a", "1": "c"}])
    monkeypatch.setattr(versions, "histories", lambda python, seeds: next(told))
    assert versions.main(["--seeds", "0:2", sys.executable]) == 1
    assert "1 of 2 seeds differ from" in capsys.readouterr().out
