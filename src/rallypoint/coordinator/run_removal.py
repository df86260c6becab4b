"""Removes runs from a ledger: their logs, their member tables, and last their registers.

The coordinator of a run or the garbage collector decides when it may be removed.
"""

from __future__ import annotations

import logging

import msgspec

from rallypoint.coordinator.tables import remove_all
from rallypoint.core import election as e
from rallypoint.core.values import CloseRecord, Outcome
from rallypoint.errors import LedgerError, LedgerUnreachableError
from rallypoint.ledger.contract import Conflict, Ledger, Swapped, Unknown
from rallypoint.ledger.keys import FLOOR, log_prefix, run_key

_log = logging.getLogger("rallypoint.coordinator")


async def raise_floor(ledger: Ledger, register: e.RunRegister) -> None:
    """Raise the floor, so that new runs begin above this one (R1, R13). Raises LedgerError."""
    found = await ledger.read(FLOOR)
    while True:
        floor = e.NO_FLOOR if found is None else e.decode_floor(found.value)
        raised = floor.raised(register)
        if raised == floor and found is not None:
            return
        outcome = await ledger.swap(
            FLOOR, None if found is None else found.version, e.encode(raised)
        )
        match outcome:
            case Swapped():
                return
            case Unknown():
                raise outcome.error or LedgerUnreachableError(outcome.reason)
            case Conflict(current):
                found = current


async def delete_run(ledger: Ledger, register: e.RunRegister, version: int) -> None:
    """Remove a closed run, unless its register has changed. Raises LedgerError.

    An open run must not be removed, because a process that takes it over meanwhile needs its log
    (R10).
    """
    run_id = register.run_id
    # The floor first and the register last: a process that finds no register finds the raised
    # floor. The logs before the register: without the register, a new run may create logs of the
    # same names.
    await raise_floor(ledger, register)
    if ledger.has_log:
        for log in await ledger.logs(log_prefix(run_id)):
            current = await ledger.read(run_key(run_id))
            if current is None or current.version != version:
                return
            await ledger.drop_log(log)
    await remove_all(ledger, run_id, register.term)
    await ledger.delete(run_key(run_id), version)


async def remove_own(ledger: Ledger, register: e.RunRegister, version: int) -> None:
    """As `close_and_delete`. What fails is left to a garbage collector."""
    try:
        await close_and_delete(ledger, register, version)
    except (LedgerError, e.UnreadableError) as error:
        _log.warning("run %s could not be removed from the ledger: %s", register.run_id, error)


async def close_and_delete(ledger: Ledger, register: e.RunRegister, version: int) -> None:
    """Remove a run of this process that has no members. Raises LedgerError.

    An open run is closed first. If another process owns it by now, nothing is removed (R5).
    """
    if register.close is None:
        closed = msgspec.structs.replace(
            register, sequence=register.sequence + 1, close=_nobody_came(register)
        )
        outcome = await ledger.swap(run_key(register.run_id), version, e.encode(closed))
        if not isinstance(outcome, Swapped):
            # Another process owns it, or the outcome is unknown: then a garbage collector finds it.
            return
        version = outcome.version
    await delete_run(ledger, register, version)


def closed_as_abandoned(register: e.RunRegister) -> e.RunRegister:
    """The register of the run, closed by another process after its owner's lease has ended (R5)."""
    return msgspec.structs.replace(
        register, term=register.term + 1, owner="", sequence=0, close=_nobody_came(register)
    )


def _nobody_came(register: e.RunRegister) -> CloseRecord:
    why = "it had no nodes for too long"
    return CloseRecord(Outcome.STOPPED, why, "", register.term, register.number)
