"""What a ledger says of its runs and of who has them, for the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from rallypoint import settings
from rallypoint.cli.owners import UNOWNED_HINT, Known, Owner
from rallypoint.core import election as e
from rallypoint.core import reasons
from rallypoint.core.values import named
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.errors import LedgerCorruptError, LedgerFormatError
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.keys import RUNS, lease_key, run_key
from rallypoint.ledger.opening import open_ledger

T = TypeVar("T")


def read(endpoint: Endpoint, token: str, run_id: str | None) -> list[Known]:
    """One run, or all. Raises LedgerError."""
    return asyncio.run(_read(endpoint, token, run_id))


async def _read(endpoint: Endpoint, token: str, run_id: str | None) -> list[Known]:
    ledger = open_ledger(endpoint, settings.etcd_password(endpoint))
    async with ledger:
        keys: Iterable[str] = [run_key(run_id)] if run_id else await ledger.keys(RUNS)
        registers = [await _decoded(ledger, key, e.decode_run) for key in keys]
        return [
            Known(
                register.run_id,
                register.close,
                await _owner(ledger, register.owner, token),
                _summary(register),
            )
            for register in registers
            if register is not None
        ]


def _summary(register: e.RunRegister) -> dict[str, Any]:
    head, close = register.round, register.close
    return {
        "run_id": register.run_id,
        "term": register.term,
        "phase": "closed" if close else "unowned",
        "reason": reasons.describe_close(close) if close else f"no coordinator: {UNOWNED_HINT}",
        "round": head.number if head else 0,
        "nodes": head.nodes if head else 0,
        "size": head.size if head else 0,
        "attached": 0,
        "restart_count": register.restarts,
        "waiting": None,
        "closed": named(close) if close else None,
        "suspended": [],
    }


async def _owner(ledger: Ledger, process: str, token: str) -> Owner | None:
    lease = await _decoded(ledger, lease_key(process), e.decode_lease) if process else None
    if lease is None or lease.state is not e.LeaseState.SERVING:
        return None
    endpoints = (
        Endpoint(EndpointKind.SERVED, each.host, each.port, f"http://{each}")
        for each in lease.addresses
    )
    return Owner(process, tuple(endpoints), token or lease.token)


async def _decoded(ledger: Ledger, key: str, decode: Callable[[bytes], T]) -> T | None:
    found = await ledger.read(key)
    try:
        return None if found is None else decode(found.value)
    except e.OtherFormatError as error:
        raise LedgerFormatError(
            f"register {key!r} of the ledger: {error}", hint=error.hint
        ) from error
    except e.UnreadableError as error:
        raise LedgerCorruptError(f"register {key!r} of the ledger: {error}") from error
