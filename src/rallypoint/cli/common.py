"""Options that several commands share."""

from __future__ import annotations

import logging
from typing import Annotated

import msgspec
import typer

from rallypoint import settings, tokens
from rallypoint.cli import output
from rallypoint.errors import UsageError
from rallypoint.settings import Endpoint, EndpointKind

EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="ENDPOINT",
        help="HOST:PORT, http(s)://HOST:PORT, etcd://HOST:PORT,.../PREFIX or file:///FOLDER "
        "[RALLYPOINT_ENDPOINT].",
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


InsecureOption = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Use no token if none is given: everybody can join [RALLYPOINT_INSECURE].",
    ),
]


VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Log more: for developers, and what few nodes say."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Log only warnings and errors.")]
LogFormatOption = Annotated[
    str | None,
    typer.Option(
        "--log-format",
        metavar="text|json",
        help="The form of the log: text, or a JSON object a line [RALLYPOINT_LOG_FORMAT].",
    ),
]


class LogChoice(msgspec.Struct, frozen=True):
    """How a command logs: the lowest level, and whether each line is a JSON object."""

    level: int
    is_json: bool


def log_choice(log_format: str | None, *, verbose: bool, quiet: bool) -> LogChoice:
    """What the options say. From now on the command's own messages have this form, too.

    Raises UsageError.
    """
    if verbose and quiet:
        raise UsageError("--verbose and --quiet contradict each other", hint="give one of them")
    form = settings.resolve("log_format", log_format).value
    output.set_log(is_json=form == "json", is_quiet=quiet)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    return LogChoice(level, form == "json")


def accepted_of(token_file: str | None) -> settings.Accepted:
    """All that a coordinator accepts, with the same warning. Raises UsageError."""
    accepted = settings.resolve_accepted(token_file)
    warn_if_exposed(token_file)
    return accepted


def keys_of(endpoint: Endpoint, token_file: str | None) -> tokens.Keys:
    """The tokens that a command sends to a coordinator.

    Warns like `accepted_of`; raises UsageError.
    """
    keys = tokens.Keys.of_command(endpoint, token_file)
    warn_if_exposed(token_file)
    return keys


def warn_if_exposed(token_file: str | None) -> None:
    """Warn if other users can read the token file."""
    path = settings.resolve("token_file", token_file).value
    if path is not None and settings.is_readable_by_others(path):
        output.warn(f"token file {path!r} can be read by others: chmod 600 {path}")


def endpoint_of(text: str | None) -> Endpoint:
    """The endpoint that the user names. Raises UsageError if there is none."""
    known = settings.setting("endpoint")
    given = None if text is None else settings.read(known, text, "--endpoint")
    ports = settings.resolve("port_range").value
    endpoint = settings.with_ports(settings.resolve("endpoint", given), ports)
    if endpoint.kind is EndpointKind.LOCAL:
        raise UsageError(
            "no endpoint is given",
            hint="give --endpoint HOST:PORT, or set RALLYPOINT_ENDPOINT",
        )
    return endpoint
