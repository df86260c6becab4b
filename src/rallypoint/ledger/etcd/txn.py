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
