"""`rallypoint status`: what a coordinator's runs do, and why they wait."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import typer

from rallypoint.cli import api, output, owners, pictures
from rallypoint.cli.common import EndpointOption, TokenFileOption, endpoint_of, token_of
from rallypoint.endpoints import Endpoint, EndpointKind

WATCH_EVERY_S: Final = 1.0
MEMBERS_SHOWN: Final = 50

Picture = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    run_id: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's id; the only run's, if left out.")
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
            return _all_runs(where, token, as_json, shown)
        if where.kind is EndpointKind.LEDGER:
            known = owners.find(where, token, run_id)
            if known.close is not None:  # Whoever closed it may be gone.
                return known.summary
            owner = owners.serving(known)
        else:
            owner = owners.owner_of(where, token, run_id)
        return owner.ask(lambda at, secret: api.run(at, secret, run_id, shown))

    if watch:
        _watch(ask, as_json, until_ended=run_id is not None)
    else:
        _print(ask(), as_json)


def _all_runs(where: Endpoint, token: str, as_json: bool, shown: int | None) -> Picture:
    """All runs of these coordinators; for people, a run that is alone in more detail."""
    asked, known = owners.owners(where, token)
    told = [each.ask(api.runs) for each in asked]
    runs = [(owner, run) for owner, each in zip(asked, told, strict=True) for run in each["runs"]]
    names = {str(run.get("run_id")) for _, run in runs}
    others = [each.summary for each in known if each.run_id not in names]
    if len(runs) == 1 and not others and not as_json:
        owner, name = runs[0][0], str(runs[0][1].get("run_id"))
        return owner.ask(lambda at, secret: api.run(at, secret, name, shown))
    coordinator = told[0]["coordinator"] if told else None
    return {"coordinator": coordinator, "runs": [*(run for _, run in runs), *others]}


def _print(picture: Picture, as_json: bool) -> None:
    if as_json:
        output.print_json(picture)
    else:
        output.show(*pictures.draw(picture))


def _watch(ask: Callable[[], Picture], as_json: bool, *, until_ended: bool) -> None:
    """Until Ctrl-C or, if `until_ended`, until the run that is shown is over."""
    seconds = _each_second(ask, until_ended)
    try:
        if sys.stdout.isatty() and not as_json:
            _watch_in_place(seconds)
        else:
            _watch_in_blocks(seconds, as_json)
    except KeyboardInterrupt:
        pass  # how a watch ends


def _watch_in_place(seconds: Iterator[Picture]) -> None:
    from rich.console import Group
    from rich.live import Live

    with Live(console=output.console(), auto_refresh=False) as live:
        for picture in seconds:
            live.update(Group(*pictures.draw(picture)), refresh=True)


def _watch_in_blocks(seconds: Iterator[Picture], as_json: bool) -> None:
    """A block, or a line of JSON, whenever something has changed besides the time."""
    last: object = None
    for picture in seconds:
        key = pictures.key(picture)
        if key == last:
            continue
        if last is not None and not as_json:
            print()
        last = key
        _print(picture, as_json)


def _each_second(ask: Callable[[], Picture], until_ended: bool) -> Iterator[Picture]:
    while True:
        picture = ask()
        yield picture
        if until_ended and pictures.has_ended(picture):
            return
        time.sleep(WATCH_EVERY_S)
