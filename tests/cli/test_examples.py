"""Each command's help has examples, and each example is a command line that exists."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from rallypoint.cli import examples, main

from .conftest import Cli


def commands(group: Any = None, name: str = "") -> dict[str, Any]:
    """All commands by their names, also those in groups."""
    group = typer.main.get_command(main.app) if group is None else group
    found: dict[str, Any] = {}
    for each, command in group.commands.items():
        full = f"{name} {each}".strip()
        found |= commands(command, full) if hasattr(command, "commands") else {full: command}
    return found


COMMANDS = commands()


def test_every_command_has_examples() -> None:
    assert sorted(COMMANDS) == sorted(examples.EXAMPLES)


@pytest.mark.parametrize("name", list(examples.EXAMPLES))
def test_an_example_is_a_command_line_that_exists(cli: Cli, name: str) -> None:
    shown = cli(*name.split(), "--help").out
    command = COMMANDS[name]
    for line, what in examples.EXAMPLES[name]:
        assert " ".join(f"rallypoint {name} {line}".split()) in " ".join(shown.split())
        assert what in " ".join(shown.split())
        with command.make_context(name, shlex.split(line), resilient_parsing=False):
            pass


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_options(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_RALLYPOINT_COMPLETE", f"complete_{shell}")
    for typed, expected in (("rallypoint st", "status"), ("rallypoint wait --ti", "--timeout")):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        with pytest.raises(SystemExit):
            main.exit_code_of([])
        assert expected in capsys.readouterr().out
