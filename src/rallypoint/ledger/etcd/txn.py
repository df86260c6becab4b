"""Transactions of etcd: their parts, and `decided`, which sends one until its outcome is known.

The ledger and the rendezvous modules for etcd use it for all changes. A transaction must be
conditional on the data that it changes. Then a repeat has no effect if the first try was done, even
if a frozen member does that one late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rallypoint.errors import LedgerUnreachableError
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.wire import EtcdUnknownError, TxnResult

_RETRY_S: Final = 0.05


def compare(key: bytes, target: str, value: int, *, result: str = "EQUAL") -> dict[str, Any]:
    """A condition of a transaction. `target` is "mod_revision", "create_revision" or "version"."""
    names = {"mod_revision": "MOD", "create_revision": "CREATE", "version": "VERSION"}
    return {"key": key, "target": names[target], "result": result, target: str(value)}


def compare_value(key: bytes, value: bytes) -> dict[str, Any]:
    """The condition that a key has this value."""
    return {"key": key, "target": "VALUE", "result": "EQUAL", "value": value}


def compare_absent(prefix: bytes, range_end: bytes) -> dict[str, Any]:
    """The condition that no key from `prefix` up to `range_end` exists."""
    return {**compare(prefix, "create_revision", 0), "range_end": range_end}


def put(key: bytes, value: bytes, *, lease: int = 0) -> dict[str, Any]:
    """An operation that writes. `lease`: the id of the lease that the key ends with; 0: none."""
    return {"request_put": {"key": key, "value": value, "lease": str(lease)}}


def get(key: bytes, range_end: bytes = b"", **options: Any) -> dict[str, Any]:
    """An operation that reads; options as in etcd's RangeRequest."""
    return {"request_range": {"key": key, "range_end": range_end, **options}}


def delete(key: bytes, range_end: bytes = b"") -> dict[str, Any]:
    """An operation that deletes."""
    return {"request_delete_range": {"key": key, "range_end": range_end}}


async def decided(
    client: EtcdClient,
    conditions: Sequence[Mapping[str, Any]],
    then: Sequence[Mapping[str, Any]],
    otherwise: Sequence[Mapping[str, Any]] = (),
) -> tuple[TxnResult, bool]:
    """Send a transaction until its outcome is known, for at most the client's `timeout_s`.

    Returns the result, and whether an earlier try got no answer. In that case, the conditions may
    have failed because that try was done.

    Raises:
        EtcdUnknownError: the time is over, and the transaction may have been done.
        LedgerError: as `EtcdClient.txn`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + client.options.timeout_s
    unsure = False
    while True:
        try:
            return await client.txn(conditions, then, otherwise), unsure
        except EtcdUnknownError:
            unsure = True
            if loop.time() >= deadline:
                raise
            await asyncio.sleep(_RETRY_S)
        except LedgerUnreachableError as error:
            if unsure:
                raise EtcdUnknownError(error.message, hint=error.hint) from error
            raise
