"""`rallypoint close`: end a run for all its nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from rallypoint.cli import api, output
from rallypoint.cli.common import EndpointOption, TokenFileOption, endpoint_of, token_of


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
    """End a run for all its nodes: their workers are stopped, and no further round is formed."""
    answer = api.close(endpoint_of(endpoint), token_of(token_file), run_id, reason)
    how = "had ended already" if answer.get("was_closed") else "is closed"
    print(f"run {output.clean(repr(run_id))} {how}")
