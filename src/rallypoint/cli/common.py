"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from rallypoint import settings
from rallypoint.cli import output
from rallypoint.errors import UsageError
from rallypoint.settings import Endpoint, EndpointKind

EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="ENDPOINT",
        help="HOST:PORT or http://HOST:PORT [RALLYPOINT_ENDPOINT].",
    ),
]
TokenFileOption = Annotated[
    str | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="A file with the coordinator's token [RALLYPOINT_TOKEN_FILE, RALLYPOINT_TOKEN].",
    ),
]


def token_of(token_file: str | None) -> str:
    """The token, with a warning if its file is open to others. Raises UsageError."""
    path = settings.resolve("token_file", token_file).value
    token: str = settings.resolve_token(token_file).value
    if path is not None:
        warn_if_exposed(path)
    return token


def warn_if_exposed(token_file: str) -> None:
    """Tell the user if others can read the token."""
    if settings.is_readable_by_others(token_file):
        output.warn(f"token file {token_file!r} can be read by others: chmod 600 {token_file}")


def endpoint_of(text: str | None) -> Endpoint:
    """The coordinator that a person asks about. Raises UsageError if none is named."""
    endpoint: Endpoint = settings.resolve("endpoint", text).value
    if endpoint.kind is EndpointKind.LOCAL:
        raise UsageError(
            "which coordinator? no endpoint is given",
            hint="give --endpoint HOST:PORT, or set RALLYPOINT_ENDPOINT",
        )
    return endpoint
