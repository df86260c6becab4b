"""Reads and writes the chunks of member tables in a ledger. `core/tables.py` decides which.

Only a few requests are under way at a time, because a table of 100,000 members has 200 chunks, and
the engine serves other clients, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

from rallypoint.coordinator.supervision import cancelled
from rallypoint.core import election as e
from rallypoint.core.closing import HEAD_BYTES_MAX
from rallypoint.core.tables import TABLE_BYTES_MAX, Plan, TableKeeper, members_of
from rallypoint.core.values import RoundMember
from rallypoint.errors import LedgerError, LedgerUnreachableError
from rallypoint.ledger.contract import Conflict, Ledger, LedgerLimits, Swapped, Unknown
from rallypoint.ledger.keys import chunk_key, chunk_of, chunk_prefix

_log = logging.getLogger("rallypoint.coordinator")
_T = TypeVar("_T")

REQUESTS_MAX: Final = 8
"""How many requests for one table are made at once."""


def table_room(limits: LedgerLimits) -> int:
    """The largest member table in this ledger, in bytes."""
    if limits.is_one_value:
        return limits.value_bytes_max - HEAD_BYTES_MAX
    return TABLE_BYTES_MAX


class Tables:
    """The member tables of the runs that one coordinator owns. Owned by one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._keepers: dict[str, TableKeeper] = {}

    def won(self, run_id: str, register: e.RunRegister) -> None:
        """This process owns the run, in this term. Idempotent."""
        keeper = self._keepers.get(run_id)
        if keeper is None or keeper.term != register.term:
            is_inline = self._ledger.limits.is_one_value
            self._keepers[run_id] = TableKeeper(register.term, register.table, is_inline=is_inline)

    def forget(self, run_id: str) -> None:
        """This process does not own the run any more."""
        self._keepers.pop(run_id, None)

    def plan(self, run_id: str, members: tuple[RoundMember, ...]) -> Plan:
        """Plan how to store the table of the next round."""
        return self._keepers[run_id].plan(members)

    async def write(self, run_id: str, plan: Plan) -> None:
        """Write the new chunks, before a head names them. It may be called again after an error.

        Raises LedgerError.
        """

        async def write(new: tuple[e.Chunk, bytes]) -> None:
            chunk, data = new
            key = chunk_key(run_id, chunk.term, chunk.serial)
            outcome = await self._ledger.swap(key, None, data)
            match outcome:
                case Unknown():
                    raise outcome.error or LedgerUnreachableError(outcome.reason)
                case Conflict(current) if current is None or current.value != data:
                    # Only this process writes chunks of that name, so the ledger is damaged.
                    raise LedgerUnreachableError(f"{key!r} has a value that no coordinator wrote")
                case Swapped() | Conflict():
                    pass

        await _each(plan.new, write)

    def committed(self, run_id: str, register: e.RunRegister) -> tuple[e.Chunk, ...]:
        """This head is in the ledger now. Returns the chunks that can be removed."""
        keeper = self._keepers.get(run_id)
        if keeper is None or keeper.term != register.term:
            return ()
        return keeper.committed(register.table)

    async def remove(self, run_id: str, chunks: Collection[e.Chunk]) -> None:
        """Remove chunks that are not needed. If the ledger fails, `sweep` removes them later."""

        async def remove(chunk: e.Chunk) -> None:
            await self._ledger.delete(chunk_key(run_id, chunk.term, chunk.serial))

        try:
            await _each(chunks, remove)
        except LedgerError as error:
            _log.debug(
                "run %s: parts of an old member table could not be removed yet: %s", run_id, error
            )

    async def sweep_if_possible(self, run_id: str) -> None:
        """As `sweep`. What cannot be removed now is removed after the next takeover."""
        try:
            await self.sweep(run_id)
        except LedgerError as error:
            _log.debug(
                "run %s: parts of old member tables could not be removed yet: %s", run_id, error
            )

    async def sweep(self, run_id: str) -> None:
        """Remove chunks left by earlier owners or failed removals. Raises LedgerError."""
        if self._ledger.limits.is_one_value:
            return
        keys = await self._ledger.keys(chunk_prefix(run_id))
        named = [name for key in keys if (name := chunk_of(key)) is not None]
        # Read after the list of chunks, so that the list has no chunk that is written later.
        keeper = self._keepers.get(run_id)
        if keeper is not None:
            await _each(
                keeper.leftovers(named),
                lambda name: self._ledger.delete(chunk_key(run_id, *name)),
            )


async def read_members(
    ledger: Ledger, run_id: str, table: e.Table | None
) -> tuple[RoundMember, ...]:
    """The rows of a run's member table. Raises LedgerError and UnreadableError."""
    if table is None:
        return ()
    contents: dict[e.Chunk, bytes | None] = {}

    async def read(chunk: e.Chunk) -> None:
        found = await ledger.read(chunk_key(run_id, chunk.term, chunk.serial))
        contents[chunk] = found.value if found is not None else None

    await _each(table.chunks, read)
    return members_of(table, contents)


async def remove_all(ledger: Ledger, run_id: str, term: int) -> None:
    """Remove every chunk of a run that is over, up to its last term. Raises LedgerError.

    If another process has removed the run and it has begun again, its new term is higher, because
    the ledger's floor has this one.
    """
    if ledger.limits.is_one_value:
        return
    keys = await ledger.keys(chunk_prefix(run_id))
    old = [key for key in keys if (name := chunk_of(key)) is not None and name[0] <= term]
    await _each(old, ledger.delete)


async def _each(items: Collection[_T], work: Callable[[_T], Awaitable[object]]) -> None:
    """Do the work for each item, a few at a time. Start no more after an error."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    tasks = [asyncio.ensure_future(worker()) for _ in range(min(REQUESTS_MAX, len(items)))]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        await cancelled(tasks)
        raise
