"""`rallypoint close`: end a run for all its nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from rallypoint.cli import api, output, run_locator
from rallypoint.cli.common import EndpointOption, TokenFileOption, endpoint_of, keys_of
from rallypoint.errors import RunClosedError


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("close")(close)


def close(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")],
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Shown to every node.")
    ] = "closed by request",
) -> None:
    """End a run for all its nodes. Their workers stop, and no further round forms."""
    where = endpoint_of(endpoint)
    keys = keys_of(where, token_file)
    try:
        coordinator = run_locator.coordinator_of(where, keys, run_id)
        answer = coordinator.ask(lambda at, secret: api.close(at, secret, run_id, reason))
        was_closed = bool(answer.get("was_closed"))
    except RunClosedError:
        was_closed = True  # by the ledger; the run has no coordinator any more
    how = "had already ended" if was_closed else "is closed"
    output.tell_result(f"run {output.clean(repr(run_id))} {how}")
