"""Reads what the last owner of a run has left in the ledger: its members, and its round's store.

This is done before the run begins here. It changes nothing of the run except for the seal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from rallypoint.coordinator.hosted_run import store_of
from rallypoint.coordinator.log_reader import RETRY_S, LogReader, SealedLog, StoreLostError
from rallypoint.coordinator.tables import read_members
from rallypoint.core.election import RunRegister, RunState, UnreadableError
from rallypoint.core.store import StoreLimits
from rallypoint.core.values import RoundMember
from rallypoint.errors import (
    LedgerCorruptError,
    LedgerError,
    LedgerForeignError,
    LedgerFormatError,
)
from rallypoint.ledger.contract import Ledger

_log = logging.getLogger("rallypoint.coordinator")

NO_LOG: Final = "this ledger keeps no log of it, and the coordinator that held it is gone"


class Left(msgspec.Struct, frozen=True):
    """`sealed`: the log of the round's store. `store_lost`: why an active round has none."""

    state: RunState
    sealed: SealedLog | None
    store_lost: str


async def read_and_seal(
    ledger: Ledger,
    register: RunRegister,
    limits: StoreLimits,
    renewed: Callable[[], Awaitable[None]],
) -> Left:
    """Read and seal all that is needed to continue the run. Waits while the ledger does not answer.

    `renewed` waits until a renewal of the lease was sent and confirmed. Raises UnreadableError and
    UnreadableLogError; then the run must not begin, and it has not been changed.
    """
    state = register.state(await _members(ledger, register, renewed))
    try:
        return Left(state, await _sealed_log(ledger, register.run_id, state, limits, renewed), "")
    except StoreLostError as error:
        # R10: a round whose store is gone has ended.
        return Left(state, None, str(error))


async def _members(
    ledger: Ledger, register: RunRegister, renewed: Callable[[], Awaitable[None]]
) -> tuple[RoundMember, ...]:
    """The member table. For a closed run, only the rows in its head, because none is needed."""
    # R6: no coordinator needs the table of a closed run.
    if register.close is not None:
        return register.table.rows if register.table is not None else ()
    told = ""
    while True:
        try:
            return await read_members(ledger, register.run_id, register.table)
        except UnreadableError:
            # R5: if it was deposed, this does not return.
            # Either a later owner has replaced the table: then this process is deposed. Or the
            # lease of this process is valid: then no process has sealed after it, and the table is
            # really damaged.
            await renewed()
            raise
        except (LedgerCorruptError, LedgerForeignError, LedgerFormatError) as error:
            raise UnreadableError(error.message) from error
        except LedgerError as error:
            if error.message != told:
                told = error.message
                _log.warning(
                    "run %s: the member table cannot be read: %s", register.run_id, error.message
                )
            await asyncio.sleep(RETRY_S)


async def _sealed_log(
    ledger: Ledger,
    run_id: str,
    state: RunState,
    limits: StoreLimits,
    renewed: Callable[[], Awaitable[None]],
) -> SealedLog | None:
    """The log of the round's store; None if there is no round.

    R5: after the seal, no write of the former owner can get into the log.
    """
    record = state.round
    # R6: nor its store.
    if record is None or state.close is not None:
        return None
    # R10: without a log, acknowledged writes are gone.
    if not ledger.has_log:
        raise StoreLostError(NO_LOG)
    reader = LogReader(
        ledger,
        run_id,
        record.head,
        # R5: sealed with the new term.
        state.term,
        new_store=lambda: store_of(record, limits),
        make_sure=renewed,
    )
    return await reader.sealed()
