"""The command as a whole: how it starts, what it offers, how it ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from rallypoint._version import __version__
from rallypoint.cli import main, output
from rallypoint.errors import ExitCode, RallypointError

from .conftest import COMMAND, Cli

HEAVY = ["aiohttp", "asyncio", "websockets", "torch", "numpy", "rallypoint.coordinator"]


def test_the_version_is_printed(cli: Cli) -> None:
    assert str(cli("--version")) == f"rallypoint {__version__}\nexit code 0\n"


@pytest.mark.processes
@pytest.mark.parametrize("arguments", [["--version"], ["env"], ["run", "nope.py"]])
def test_quick_commands_import_little(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from rallypoint.cli.main import exit_code_of\n"
        f"exit_code_of({arguments!r})\n"
        f"print('loaded', [each for each in {HEAVY!r} if each in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["loaded []"], done.stderr


def test_without_a_command_the_commands_are_listed(cli: Cli) -> None:
    done = cli()
    assert (done.code, done.out) == (2, "")
    for name in ("run", "serve", "status", "close", "env"):
        assert f" {name} " in done.err


def test_every_exit_code_is_documented(cli: Cli) -> None:
    text = " ".join(cli("--help").out.replace("│", " ").split())
    said = text.partition("Exit codes:")[2]
    for code in ExitCode:
        assert f"{int(code)} " in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["run", "--bogus"],
        ["serve", "--port", "70000"],
        ["close"],
        ["env", "more"],
        ["bench"],
    ],
)
def test_a_bad_command_line_is_a_usage_error(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    lines = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("hint: `rallypoint ")
    assert len(lines) == 2


@pytest.mark.parametrize("arguments", [["statu"], ["token", "nwe"], ["token"]])
def test_an_unknown_command_points_to_the_list_of_commands(cli: Cli, arguments: list[str]) -> None:
    above = " ".join(["rallypoint", *arguments[:1]]) if arguments[0] == "token" else "rallypoint"
    done = cli(*arguments)
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        f"hint: `{above} --help` lists the commands",
    )


def test_the_options_of_each_command(snapshot: Callable[[str, str], None]) -> None:
    """Names and help texts only: how typer draws them is its own affair."""
    snapshot("options", "\n".join(_all_options()) + "\n")


def _all_options() -> Iterator[str]:
    group = typer.main.get_command(main.app)
    for name in sorted(group.commands):  # type: ignore[attr-defined]
        yield f"rallypoint {name}"
        for each in group.commands[name].params:  # type: ignore[attr-defined]
            names = "/".join([*each.opts, *each.secondary_opts])
            is_option = names.startswith("-")
            yield f"  {names if is_option else each.metavar}  {each.help or ''}".rstrip()


@pytest.mark.parametrize("name", ["run", "serve", "status", "close", "env", "simulate", "bench"])
def test_each_command_has_help(cli: Cli, name: str) -> None:
    done = cli(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"rallypoint {name}" in done.out
    assert cli(name, "-h").out == done.out


def test_an_expected_error_ends_with_its_hint(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output.print_failure(RallypointError("it broke\nin two lines", hint="mend it"))
    assert capsys.readouterr().err == "error: it broke\nin two lines\nhint: mend it\n"


def test_text_of_other_machines_cannot_control_the_terminal() -> None:
    assert output.clean("a\x1b[31mb\rc\n") == "a\\x1b[31mb\\rc\\n"
    assert output.clean("a\nb\x07", lines=True) == "a\nb\\x07"
    assert output.clean("hoch – ünïcode") == "hoch – ünïcode"


@pytest.mark.processes
def test_a_reader_that_stops_reading_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "env"], stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert done.stderr == b""
    assert done.returncode != 0


def test_the_table_of_exit_codes_has_those_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
    table = page.partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    documented = [each for each in rows if each not in ("code", "---")]
    assert documented == [*(str(code.value) for code in ExitCode), "128 + n"]
    for code in ExitCode:
        assert f" {code.value} " in f" {main._EXIT_CODES} ".replace(":", " ")


NOBODY = ("--endpoint", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ("--version",)),
        (0, ("env",)),
        (2, ("status", "--no-such-option")),
        (2, ("scale", "job", "--nnodes", "3:2", *NOBODY)),
        (3, ("status", *NOBODY)),
        (3, ("events", "job", *NOBODY)),
        (3, ("wait", "job", "--timeout", "0.1", *NOBODY)),
        (3, ("close", "job", *NOBODY)),
        (3, ("scale", "job", "--nnodes", "2:3", *NOBODY)),
        (3, ("drain", "job", "node", *NOBODY)),
        (3, ("evict", "job", "node", "--yes", *NOBODY)),
    ],
)
@pytest.mark.sockets
def test_commands_end_with_the_documented_code(
    cli: Cli, code: int, arguments: tuple[str, ...]
) -> None:
    assert cli(*arguments).code == code
