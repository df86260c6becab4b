"""A transaction of etcd's that is sent until it is known what became of it.

Whoever changes something in etcd needs this: the ledger, and the rendezvous modules that speak to
etcd for a program. What is decided must be conditional on what it changes, so that a repeat, or a
first try that a frozen member carries out late, cannot be done a second time.
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
    """The condition that there is no key from `prefix` up to `range_end`."""
    return {**compare(prefix, "create_revision", 0), "range_end": range_end}


def put(key: bytes, value: bytes, *, lease: int = 0) -> dict[str, Any]:
    """An operation of a transaction."""
    return {"request_put": {"key": key, "value": value, "lease": str(lease)}}


def get(key: bytes, range_end: bytes = b"", **options: Any) -> dict[str, Any]:
    """An operation of a transaction; options as in etcd's RangeRequest."""
    return {"request_range": {"key": key, "range_end": range_end, **options}}


def delete(key: bytes, range_end: bytes = b"") -> dict[str, Any]:
    """An operation of a transaction."""
    return {"request_delete_range": {"key": key, "range_end": range_end}}


async def decided(
    client: EtcdClient,
    conditions: Sequence[Mapping[str, Any]],
    then: Sequence[Mapping[str, Any]],
    otherwise: Sequence[Mapping[str, Any]] = (),
) -> tuple[TxnResult, bool]:
    """A transaction that may be sent again, until its outcome is known or the time is over.

    The second value says whether an earlier try got no answer: then "the conditions do not hold"
    may be its own doing. The time is the client's `timeout_s`. Raises EtcdUnknownError at its end,
    and every other LedgerError as `EtcdClient.txn` does.
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
