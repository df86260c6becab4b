"""`rallypoint status`: what a coordinator's runs do, and why they wait."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import typer

from rallypoint.cli import api, output, pictures
from rallypoint.cli.common import EndpointOption, TokenFileOption, endpoint_of, token_of

WATCH_EVERY_S: Final = 1.0
MEMBERS_SHOWN: Final = 50

Picture = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    run_id: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's id: show it in detail.")
    ] = None,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Keep showing it: on a terminal in place, else when it changes."
        ),
    ] = False,
    members: Annotated[
        int | None,
        typer.Option("--members", metavar="N", min=0, help="Show at most N members of a run."),
    ] = None,
) -> None:
    """Show the runs of a coordinator, or one run: members, ranks, why it waits, its last rounds."""
    where, token = endpoint_of(endpoint), token_of(token_file)
    shown = MEMBERS_SHOWN if members is None and not as_json else members

    def ask() -> Picture:
        if run_id is None:
            return api.runs(where, token)
        return api.run(where, token, run_id, shown)

    if watch:
        _watch(ask, as_json)
    else:
        _print(ask(), as_json)


def _print(picture: Picture, as_json: bool) -> None:
    if as_json:
        output.print_json(picture)
    else:
        output.show(*pictures.draw(picture))


def _watch(ask: Callable[[], Picture], as_json: bool) -> None:
    """Until Ctrl-C, or until the one run that is shown has ended."""
    try:
        if sys.stdout.isatty() and not as_json:
            _watch_in_place(ask)
        else:
            for picture in _changes(ask):
                _print(picture, as_json)
                if not as_json:
                    print()
    except KeyboardInterrupt:
        pass  # how a watch ends


def _watch_in_place(ask: Callable[[], Picture]) -> None:
    from rich.console import Group
    from rich.live import Live

    with Live(console=output.console(), auto_refresh=False) as live:
        for picture in _each_second(ask):
            live.update(Group(*pictures.draw(picture)), refresh=True)


def _changes(ask: Callable[[], Picture]) -> Iterator[Picture]:
    """A picture whenever something has changed that is not just a passing of time."""
    last: object = None
    for picture in _each_second(ask):
        key = pictures.key(picture)
        if key != last:
            last = key
            yield picture


def _each_second(ask: Callable[[], Picture]) -> Iterator[Picture]:
    while True:
        picture = ask()
        yield picture
        if pictures.has_ended(picture):
            return
        time.sleep(WATCH_EVERY_S)
