"""`rallypoint token list`, `revoke` and `rotate`: the tokens of a state directory."""

from __future__ import annotations

import datetime as dt
import getpass
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rallypoint import settings, threads, tokens
from rallypoint.cli import output
from rallypoint.cli.token_common import as_usage_error, lasting
from rallypoint.core import reasons
from rallypoint.core.values import NAME_LENGTH_MAX
from rallypoint.endpoints import Endpoint, parse_ledger
from rallypoint.errors import UsageError
from rallypoint.security import claims, token_form
from rallypoint.security.claims import time_text
from rallypoint.security.client_certificates import ID_PREFIX
from rallypoint.security.hashed import check_id
from rallypoint.security.roles import ALL_RUNS, Role
from rallypoint.security.state import State

StateOption = Annotated[
    str, typer.Option("--state", metavar="DIR", help="The state directory of the tokens.")
]
Row = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list")(list_tokens)
    app.command("revoke")(revoke)
    app.command("rotate")(rotate)


def list_tokens(
    state: StateOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the tokens of a state directory: id, name, kind, roles, runs, end. Never shows a token.

    shared: of the file token, by its fingerprint. listed: of tokens.toml. claim: made here.
    """
    rows = _rows(State(Path(state).absolute()))
    if as_json:
        output.print_json({"tokens": rows})
        return
    headings = ("id", "name", "kind", "roles", "runs", "until", "state")
    output.show(output.table(headings, [_cells(each) for each in rows]))


def _rows(state: State) -> list[Row]:
    with as_usage_error():
        revoked, shared = state.revoked(), state.tokens()
        listed, issued = state.hashed_tokens(), state.issued()
    everything = tuple(Role)
    rows = [_row(tokens.fingerprint(each), "shared", everything, ALL_RUNS, None) for each in shared]
    rows += [_row(each.id, "listed", each.roles, each.runs, each.ends_at) for each in listed]
    rows += [
        _row(each.id, "claim", each.roles, each.runs, each.ends_at, each.name) for each in issued
    ]
    known = {each["id"] for each in rows}
    # An id may be of a claim that was made elsewhere.
    rows += [_row(each, "unknown", (), "", None) for each in sorted(revoked - known)]
    for row in rows:
        if row["id"] in revoked and row["kind"] != "shared":
            row["state"] = "revoked"
    return rows


def _row(
    token_id: str,
    kind: str,
    roles: tuple[Role, ...],
    runs: str,
    ends_at: float | None,
    name: str = "",
) -> Row:
    leeway_s = claims.LEEWAY_S if kind == "claim" else 0.0
    has_ended = ends_at is not None and time.time() > ends_at + leeway_s
    return {
        "id": token_id,
        "name": name,
        "kind": kind,
        "roles": list(roles),
        "runs": runs,
        "ends_at": ends_at,
        "state": "expired" if has_ended else "counts",
    }


def _cells(row: Row) -> list[Any]:
    roles = "all" if set(row["roles"]) == set(Role) else ", ".join(row["roles"])
    until = "" if row["ends_at"] is None else time_text(row["ends_at"])
    texts = (row["id"], row["name"], row["kind"], roles, row["runs"], until, row["state"])
    return [output.cell(each, "" if row["state"] == "counts" else "red") for each in texts]


def revoke(
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="As `token list` or the audit log shows it.")
    ],
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="The state directory of the tokens. A certificate of a PKI needs only --ledger.",
        ),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            "--ledger",
            metavar="LEDGER",
            help="The ledger of the coordinators: each of them then refuses the token within "
            "seconds.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Revoke an id that this directory does not know, such as that of a claim that "
            "another copy of it has made.",
        ),
    ] = False,
) -> None:
    """Let a claim, a token of tokens.toml, or a certificate of a PKI count no more, and end its
    connections.

    Without --ledger only a `serve` with this state directory learns of it. Ends with 2 for an id
    that is not known.
    """
    place = None if ledger is None else parse_ledger(ledger)
    try:
        check_id(token_id)
    except ValueError as error:
        raise UsageError(f"id {error}", hint="`rallypoint token list` shows the ids") from None
    is_certificate = token_id.lower().startswith(ID_PREFIX)
    if is_certificate:
        token_id = token_id.lower()
    if state is None:
        if place is None or not is_certificate:
            raise UsageError(
                "the id of a token needs --state DIR, and that of a certificate --ledger LEDGER "
                "or --state DIR",
                hint="add --state DIR",
            )
        threads.run(_revoke_in(place, token_id, None))
        output.note(f"{token_id} is revoked in {place}")
        return
    found = State(Path(state).absolute())
    rows = {each["id"]: each for each in _rows(found)}
    row = rows.get(token_id)
    if row is not None and row["kind"] == "shared":
        raise UsageError(
            f"{token_id} is the shared token of nodes, which has no end of its own",
            hint=f"rallypoint token rotate --state {state}",
        )
    if row is None and not (is_certificate or force):
        raise _unknown(token_id, rows)
    if place is not None:
        threads.run(_revoke_in(place, token_id, None if row is None else row["ends_at"]))
    with as_usage_error():
        found.revoke(token_id, _own_name())
    where = f"in {found.folder}" + (f" and {place}" if place is not None else "")
    output.note(f"{token_id} is revoked {where}")
    if place is None:
        output.note("replicas with other copies of the directory need --ledger LEDGER")


def _unknown(token_id: str, known: Iterable[str]) -> UsageError:
    from rallypoint.coordinator.nearest import did_you_mean, nearest

    return UsageError(
        f"there is no token with id {token_id!r}; nothing was changed",
        hint=f"{did_you_mean(nearest(token_id, known))}`rallypoint token list` shows the ids; "
        "--force revokes one that another copy of this directory has made",
    )


def _own_name() -> str:
    """Who revokes, for the log and the events: a user and a host, as far as they are known."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # A container may have no entry for its user.
        user = "somebody"
    return reasons.tidy(f"{user}@{socket.gethostname()}", NAME_LENGTH_MAX)


async def _revoke_in(place: Endpoint, token_id: str, ends_at: float | None) -> None:
    """Raises LedgerError; UsageError for a ledger that does not exist, which is not made."""
    from rallypoint.coordinator import revocations
    from rallypoint.ledger.etcd.ledger import EtcdLedger
    from rallypoint.ledger.file.ledger import FileLedger
    from rallypoint.ledger.open import open_ledger

    ledger = open_ledger(place, settings.etcd_password(place))
    try:
        if isinstance(ledger, EtcdLedger | FileLedger) and not await ledger.find():
            raise UsageError(f"there is no ledger in {place}", hint="check --ledger")
        await ledger.open()
        await revocations.revoke(ledger, token_id, ends_at, time.time(), _own_name())
    finally:
        await ledger.aclose()


def rotate(
    state: StateOption,
    overlap: Annotated[
        str | None,
        typer.Option(
            "--overlap",
            metavar="TIME",
            help="How long the old tokens count, as 12h or 7d. If left out, until --end-old.",
        ),
    ] = None,
    end_old: Annotated[
        bool, typer.Option("--end-old", help="Make no token; let only the newest one count.")
    ] = False,
) -> None:
    """Make a new shared token of nodes. The old one counts beside it for a while.

    Give nodes the new one (`rallypoint token new FILE --state DIR`), and then end the old one.
    """
    if end_old and overlap is not None:
        raise UsageError("--end-old and --overlap contradict each other", hint="give one of them")
    found = State(Path(state).absolute())
    with as_usage_error():
        if end_old:
            _tell_ended(found.end_old(), found)
            return
        ends = None if overlap is None else dt.datetime.now(dt.UTC) + lasting(overlap, "--overlap")
        new = found.rotate(ends)
    until = (
        f"until {time_text(ends.timestamp())}"
        if ends is not None
        else f"until `rallypoint token rotate --state {found.folder} --end-old`"
    )
    output.note(f"the new token has fingerprint {tokens.fingerprint(new)}; old ones count {until}")


def _tell_ended(ended: Sequence[str], state: State) -> None:
    mark = tokens.fingerprint(state.tokens()[0])
    if not ended:
        output.note(f"there is no old token to end: only the one with fingerprint {mark} counts")
        return
    names = ", ".join(
        tokens.fingerprint(each) if token_form.parse(each) else each for each in ended
    )
    what = "this old token counts" if len(ended) == 1 else "these old tokens count"
    output.note(f"{what} no more: {names}; the token with fingerprint {mark} counts")
