"""`rallypoint wait`: end when a run is active, or over. For scripts."""

from __future__ import annotations

import enum
import time
from typing import Annotated, Any, Final

import msgspec
import typer

from rallypoint import settings
from rallypoint.cli import output, status_view
from rallypoint.cli.common import EndpointOption, TokenFileOption, endpoint_of, keys_of
from rallypoint.cli.status import one_run
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.errors import (
    CoordinatorError,
    ExitCode,
    LedgerError,
    RallypointError,
    TokenError,
    UnreachableError,
    UsageError,
)
from rallypoint.tokens import Keys

LOOK_EVERY_S: Final = 0.5
"""How often the run is looked at, in seconds."""
LOOK_AT_LEDGER_EVERY_S: Final = 2.0
"""The same in a ledger, which is opened and tested each time."""


class State(enum.StrEnum):
    """What to wait for."""

    ACTIVE = "active"
    CLOSED = "closed"


class NotYetError(RallypointError):
    """The run did not come to the state in time, or will not."""

    exit_code = ExitCode.COULD_NOT_MEET


class Seen(msgspec.Struct, frozen=True):
    """One look at the run. `why`: what keeps it from the state. `status`: {} if it is not known."""

    status: dict[str, Any]
    why: str
    is_refused: bool = False


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("wait")(wait)


def wait(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")],
    wanted: Annotated[
        State, typer.Option("--for", help="active: a round has begun; closed: the run is over.")
    ] = State.ACTIVE,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", metavar="TIME", help="How long to wait (default: no limit)."),
    ] = None,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Wait until a run is active or closed. What it waits for is on stderr.

    Exit codes: 0 it is; 1 it has failed, or has ended before it was active; 3 not in time. A run
    and a coordinator that do not exist yet are waited for, too.
    """
    where = endpoint_of(endpoint)
    keys = keys_of(where, token_file)
    limit_s = _limit_s(timeout)
    code = _wait(where, keys, run_id, wanted, limit_s)
    if code:
        raise typer.Exit(code)


def _limit_s(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return settings.parse_duration_s(text)
    except ValueError as error:
        raise UsageError(f"--timeout {error}") from None


def _wait(where: Endpoint, keys: Keys, run_id: str, wanted: State, limit_s: float | None) -> int:
    """The exit code. Raises NotYetError, and TokenError."""
    began_s = time.monotonic()
    told: object = None
    was_known = False
    is_ledger = where.kind is EndpointKind.LEDGER
    pause_s = LOOK_AT_LEDGER_EVERY_S if is_ledger else LOOK_EVERY_S
    while True:
        seen = _look(where, keys, run_id)
        code = _code_of(seen.status, wanted)
        if code is not None:
            output.tell_result(f"run {output.clean(repr(run_id))}: {output.clean(seen.why)}")
            return code
        if seen.is_refused and was_known and where.kind is EndpointKind.HOST:
            raise NotYetError(
                f"the coordinator of run {run_id!r}, inside a node, has ended with its node: "
                "how the run ended is not known",
                hint="the log of any of its nodes has the end; `rallypoint serve` keeps it",
            )
        was_known = was_known or bool(seen.status)
        key = status_view.key(seen.status) if seen.status else seen.why
        if key != told:
            told = key
            output.note(f"waiting: {seen.why}")
        if limit_s is not None and time.monotonic() - began_s >= limit_s:
            raise NotYetError(
                f"run {run_id!r} is not {wanted} after {limit_s:g} s: {seen.why}",
                hint="`rallypoint status` shows more; --timeout gives more time",
            )
        time.sleep(pause_s)


def _look(where: Endpoint, keys: Keys, run_id: str) -> Seen:
    """Look at the run. Raises TokenError, and other errors that time does not mend."""
    try:
        answer = one_run(where, keys, run_id, 0)
    except TokenError:
        raise
    except (CoordinatorError, LedgerError) as error:
        return Seen({}, error.message, isinstance(error, UnreachableError))
    if not answer.is_known:
        return Seen({}, f"there is no run {run_id!r} yet")
    status = answer.status
    return Seen(status, f"{status['phase']}: {status.get('reason') or _round_of(status)}")


def _round_of(status: dict[str, Any]) -> str:
    return f"round {status.get('round')} with {status.get('nodes')} nodes"


def _code_of(status: dict[str, Any], wanted: State) -> int | None:
    """The exit code; None to go on."""
    closed = status.get("closed")
    if closed is not None:
        is_well = closed.get("outcome") == "succeeded" and wanted is State.CLOSED
        return ExitCode.DONE if is_well else ExitCode.PROGRAM_FAILED
    is_there = wanted is State.ACTIVE and status.get("phase") == "active"
    return ExitCode.DONE if is_there else None
