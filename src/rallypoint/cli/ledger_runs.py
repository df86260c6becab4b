"""What a ledger says of its runs and of who has them, for the command line."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from rallypoint import settings
from rallypoint.cli.run_locator import Known, Owner
from rallypoint.coordinator import ledger_view
from rallypoint.coordinator.ledger_view import Kept, Unread
from rallypoint.core import election as e
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.ledger.open import open_ledger


def read(endpoint: Endpoint, token: str, run_id: str | None, members_shown: int) -> list[Known]:
    """One run in detail, or a line for each. Raises LedgerError."""
    return asyncio.run(_read(endpoint, token, run_id, members_shown))


async def _read(
    endpoint: Endpoint, token: str, run_id: str | None, members_shown: int
) -> list[Known]:
    ledger = open_ledger(endpoint, settings.etcd_password(endpoint))
    async with ledger:
        if run_id is None:
            return [_known(each, token) for each in await ledger_view.look_at_all(ledger)]
        kept = await ledger_view.look(ledger, run_id)
        if kept is None:
            return []
        host = socket.gethostname()
        shown = await ledger_view.detail(ledger, kept, members_shown, host)

        def picture(problem: str) -> dict[str, Any]:
            return _plain(msgspec.structs.replace(shown, reason=shown_reason(kept, problem)))

        return [_of(kept, token, picture)]


def shown_reason(kept: Kept, problem: str) -> str:
    """Why the ledger answers, and no coordinator: not of a run that is over."""
    return kept.summary(problem).reason


def _known(each: Kept | Unread, token: str) -> Known:
    def picture(problem: str) -> dict[str, Any]:
        return _plain(each.summary(problem))

    if isinstance(each, Unread):
        return Known(each.run_id, None, None, picture)
    return _of(each, token, picture)


def _of(kept: Kept, token: str, picture: Callable[[str], dict[str, Any]]) -> Known:
    return Known(kept.register.run_id, kept.register.close, _owner(kept.lease, token), picture)


def _plain(value: msgspec.Struct) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(value)
    return fields


def _owner(lease: e.Lease | None, token: str) -> Owner | None:
    if lease is None:
        return None
    endpoints = (
        Endpoint(EndpointKind.SERVED, each.host, each.port, f"http://{each}")
        for each in lease.addresses
    )
    return Owner(lease.process, tuple(endpoints), token or lease.token)
