"""`rallypoint env`: every setting, its value here, and the origin of the value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from rallypoint import settings, tokens
from rallypoint.cli import devices, output
from rallypoint.core.sizes import size_text
from rallypoint.errors import LauncherError, UsageError
from rallypoint.memory import default_budget
from rallypoint.settings import Found, Resolved, Setting

if TYPE_CHECKING:
    from rich.text import Text


class Row(msgspec.Struct, frozen=True):
    """One setting as a row. `error`: why its value cannot be used, with its hint; "" if it can."""

    name: str
    variable: str
    value: str
    source: str
    help: str
    is_expert: bool = False
    error: str = ""
    hint: str = ""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("env")(env)


def env(
    show_all: Annotated[
        bool, typer.Option("--all", help="Show the settings for experts, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all settings as JSON.")] = False,
) -> None:
    """Show each setting, its value here, the origin of the value, and what it does.

    Settings for experts are shown if they are set, or with --all. No secret is ever shown.
    Variables that begin with RALLYPOINT_ and are no setting are named.
    """
    found = settings.launched(is_node=True)
    rows = [*(_row(each, found) for each in settings.SETTINGS), *_labels(found)]
    if as_json:
        output.print_json([msgspec.to_builtins(each) for each in rows])
    else:
        shown = [each for each in rows if show_all or _is_shown(each)]
        headings = ("setting", "value", "from", "variable", "what it does")
        output.show(output.table(headings, [_cells(each) for each in shown]))
        if len(shown) < len(rows):
            more = len(rows) - len(shown)
            output.note(f"{more} more settings, for experts, have their defaults: see --all")
    for warning in found.warnings:
        output.warn(warning)
    for name, alike in settings.unknown_variables(each.variable for each in rows).items():
        question = f": did you mean {alike}?" if alike else ""
        output.warn(f"{name} is set, and is no setting{question}")
    wrong = [each for each in rows if each.error]
    if wrong:
        raise UsageError("; ".join(dict.fromkeys(each.error for each in wrong)), hint=_hint(wrong))


def _is_shown(row: Row) -> bool:
    return not row.is_expert or row.source != "default" or bool(row.error)


def _hint(wrong: list[Row]) -> str:
    of_users = "correct the variables named, or unset them"
    return "\n".join(dict.fromkeys(row.hint or of_users for row in wrong))


def _row(setting: Setting, found: Found) -> Row:
    try:
        is_token = setting.name == "token"
        resolved = _token() if is_token else settings.resolve(setting.name, found=found)
    except UsageError as error:
        source, hint = f"environment {setting.variable}", ""
        if isinstance(error, LauncherError):
            source, hint = error.source, error.hint
        about = (setting.help, setting.is_expert)
        return Row(setting.name, setting.variable, "?", source, *about, error.message, hint)
    shown = resolved.shown
    if setting.name == "memory" and resolved.value is None:
        # The default depends on this machine: the limit that `serve` would use here.
        shown = size_text(default_budget(is_embedded=False).bytes)
    row = Row(
        setting.name, setting.variable, shown, resolved.source, setting.help, setting.is_expert
    )
    try:
        _check(resolved, found)
    except UsageError as error:
        return msgspec.structs.replace(row, error=error.message, hint=error.hint)
    return row


def _check(resolved: Resolved, found: Found) -> None:
    """Raises the UsageError of `rallypoint run` if this machine or its launcher has no such value.

    What depends on other settings is not checked, because options may give those.
    """
    if resolved.value is None or resolved.source == "default":
        return
    match resolved.name:
        case "nproc_per_node":
            workers = devices.count_workers(resolved.value, note=lambda text: None)
            if workers > 1 and found.crowded is not None:
                raise LauncherError(found.crowded.message, hint=found.crowded.hint)
        case "interface":
            from rallypoint.client.identity import check_interface  # loads the client

            check_interface(resolved.value)


def _labels(found: Found) -> list[Row]:
    """The labels that the launcher gives to this node."""
    about = "a label of this node: --label replaces it"
    return [
        Row(f"label {name}", "", each.text, each.source, about)
        for name, each in found.labels.items()
    ]


def _token() -> Resolved:
    """The token that is given, or else the home's, which nodes at HOST:PORT use."""
    given = settings.resolve_token()
    if given.value or not settings.home() or settings.resolve("insecure").value:
        return given
    home = tokens.of_home(make=False)
    if not home.token:
        return given
    return Resolved("token", home.token, f"file {home.place} (for host:port)")


def _cells(row: Row) -> tuple[Text, ...]:
    is_set = row.source != "default"
    style = "red" if row.error else "bold" if is_set else "dim"
    texts = (row.name, row.value, row.source, row.variable, row.help)
    return tuple(output.cell(each, style) for each in texts)
