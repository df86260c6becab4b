"""`rallypoint coordinators`: who coordinates at an endpoint or in a ledger, and how many runs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rallypoint import settings, threads
from rallypoint.cli import api, output, run_locator
from rallypoint.cli.common import EndpointOption, TokenFileOption, endpoint_of, keys_of
from rallypoint.cli.run_locator import CoordinatorClient
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.errors import RallypointError
from rallypoint.tokens import Keys

if TYPE_CHECKING:
    from rallypoint.doctor.leases import Looked

Row = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("coordinators")(coordinators)


def coordinators(
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the coordinators of a ledger, or the one at an address: release, runs, lease.

    A ledger is looked at twice, a renewal of the leases apart: with the default lease_ttl this
    takes about 2 s. A lease that was not renewed is that of a process that has ended or hangs.
    """
    where = endpoint_of(endpoint)
    keys = keys_of(where, token_file)
    rows = _of_ledger(where, keys) if where.kind is EndpointKind.LEDGER else _at(where, keys)
    if as_json:
        output.print_json({"coordinators": rows})
    elif not rows:
        output.show(output.cell(f"no coordinator has a lease in {where}"))
    else:
        headings = ("coordinator", "address", "release", "runs", "nodes", "lease")
        output.show(output.table(headings, [_cells(each) for each in rows]))


def _at(where: Endpoint, keys: Keys) -> list[Row]:
    """The one that answers. Raises the errors of a request."""
    client = run_locator.coordinator_of(where, keys, "")
    address = f"{where.host}:{where.port}"
    return [_row("", [address], _ask(client), None)]


def _of_ledger(where: Endpoint, keys: Keys) -> list[Row]:
    return [_asked(each, keys) for each in threads.run(_look(where))]


async def _look(where: Endpoint) -> list[Looked]:
    """The leases. Raises LedgerError; a ledger that does not exist is not made."""
    from rallypoint.doctor.leases import look_twice
    from rallypoint.ledger.open import open_ledger

    ledger = open_ledger(where, settings.etcd_password(where))
    try:
        if not await ledger.find():
            return []
        await ledger.open()
        return await look_twice(ledger)
    finally:
        await ledger.aclose()


def _asked(looked: Looked, keys: Keys) -> Row:
    """A coordinator with what it answers, if it is alive."""
    lease = looked.lease
    client = run_locator.client_of(lease, keys.token)
    answer: dict[str, Any] | str = f"not renewed for {looked.pause_s:.1f} s"
    if looked.is_renewed:
        try:
            answer = _ask(client)
        except RallypointError as error:
            answer = error.message
    addresses = [str(each) for each in lease.addresses]
    row = _row(lease.process, addresses, answer, looked.is_renewed)
    return row | {"lease_ttl_s": lease.ttl_s, "node": lease.node.name if lease.node else None}


def _ask(client: CoordinatorClient) -> dict[str, Any]:
    return client.ask(partial(api.runs, only_own=True))


def _row(
    process: str, addresses: list[str], answer: dict[str, Any] | str, is_renewed: bool | None
) -> Row:
    """The fields of docs/status.md. `answer`: a text if the coordinator has not answered."""
    known: dict[str, Any] = answer if isinstance(answer, dict) else {}
    about = known.get("coordinator", {})
    return {
        "process": process,
        "addresses": addresses,
        "software": about.get("software"),
        "host": about.get("host"),
        "runs": len(known["runs"]) if known else None,
        "connections": about.get("connections"),
        "memory_bytes": about.get("memory_bytes"),
        "is_renewed": is_renewed,
        "problem": answer if isinstance(answer, str) else None,
        "lease_ttl_s": None,
        "node": about.get("node"),
    }


def _cells(row: Row) -> list[Any]:
    lease = {True: "renewed", False: "not renewed", None: "none"}[row["is_renewed"]]
    problem = row["problem"] if row["is_renewed"] else None
    texts = (
        row["process"] or row["host"] or "",
        ", ".join(row["addresses"]),
        (row["software"] or "").removeprefix("rallypoint "),
        "" if row["runs"] is None else str(row["runs"]),
        "" if row["connections"] is None else str(row["connections"]),
        f"{lease}: {problem}" if problem else lease,
    )
    return [output.cell(each, "red" if row["problem"] else "") for each in texts]
