"""The page of the command line, generated from the commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import typer

from rallypoint.cli import main
from tools.docsite.text import code, escaped

PAGE = PurePosixPath("reference/command-line.md")


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, including groups: `rallypoint token new`."""
    yield from _below("rallypoint", typer.main.get_command(main.app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for each in sorted(getattr(command, "commands", {})):
        yield from _below(f"{name} {each}", command.commands[each])


def option_names(parameter: Any) -> list[str]:
    """How an option or argument is written on a command line."""
    written = [*parameter.opts, *parameter.secondary_opts]
    return written if written[0].startswith("-") else [parameter.metavar or parameter.name.upper()]


def page() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    parts = [
        "# Command line",
        "Every command, made from the program itself; `rallypoint COMMAND --help` prints the same. "
        "Options that are left out are read from the environment, then have their defaults: see "
        "[settings](settings.md). [Errors and exit codes](errors.md) says how a command ends.",
    ]
    for name, command in commands():
        lines = [_line(each) for each in command.params if not getattr(each, "hidden", False)]
        about = (command.help or "").replace("\f", "").strip()
        parts += [f"## {name}", escaped(about), "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(parameter: Any) -> str:
    written = ", ".join(code(each) for each in option_names(parameter))
    value = parameter.metavar if written.startswith("`-") else None
    shown = f"{written} {escaped(value)}" if value else written
    about = " ".join((getattr(parameter, "help", "") or "").split())
    return f"- {shown}: {escaped(about)}" if about else f"- {shown}"
