"""Reads and seals the log of a round that is taken over (R5, R10).

It reads the log in pages, each with its own deadline, so a log may have any length. Until the seal
is in the log, the former owner may still write, move to another segment, or drop one.

An append with an unknown outcome may be carried out much later. So a dropped segment may exist
again, with some of its first records. Such a remnant is ignored. It is recognised because it does
not name a later segment, although there is one with more than its header: a segment gets its second
record only after it was named.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Never, TypeVar

import msgspec

from rallypoint.coordinator.log_records import UnreadableLogError, decode_record, seal_record
from rallypoint.coordinator.log_replay import Replay
from rallypoint.coordinator.round_log import LogId, first_of, parse
from rallypoint.core.store.store import RoundStore
from rallypoint.core.values import RoundHead
from rallypoint.errors import (
    LedgerCorruptError,
    LedgerError,
    LedgerForeignError,
    LedgerFormatError,
)
from rallypoint.ledger.contract import Created, Exists, Gap, Ledger, Unknown
from rallypoint.ledger.keys import round_prefix

_log = logging.getLogger("rallypoint.coordinator")
T = TypeVar("T")

RETRY_S: Final = 0.2
PAGE_RECORDS: Final = 256


class StoreLostError(Exception):
    """The store of an active round is not in the ledger. The text has the reason."""


class SealedLog(msgspec.Struct, frozen=True):
    """The replay of a log, and the place of its next record."""

    replay: Replay
    log: LogId
    next_index: int


class _Sealed(enum.Enum):
    DONE = enum.auto()
    NOT_YET = enum.auto()
    """More records have to be read first, or the outcome is unknown."""
    GONE = enum.auto()
    REMNANT = enum.auto()
    """The segment was dropped, and late appends have written its first records again."""


class LogReader:
    """Reads the log of the round with this `head`, for the coordinator of this `term`.

    `new_store` returns an empty store of the round. `make_sure` waits until this coordinator's
    lease is renewed. If the lease is lost, the whole takeover is cancelled.
    """

    def __init__(
        self,
        ledger: Ledger,
        run_id: str,
        head: RoundHead,
        term: int,
        *,
        new_store: Callable[[], RoundStore],
        make_sure: Callable[[], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._run_id = run_id
        self._prefix = round_prefix(run_id, head.number, head.term)
        self._term = term
        self._seal = seal_record(term)
        self._new_store = new_store
        self._make_sure = make_sure
        self._problem = ""
        self._remnants: set[str] = set()

    async def sealed(self) -> SealedLog:
        """Seal the log with this term, and return it. Waits while the ledger does not answer.

        Raises StoreLostError if the round has no log, and UnreadableLogError.
        """
        gone: LogId | None = None
        while True:
            first = await self._first()
            reading = _Reading(self._run_id, first, Replay(self._new_store))
            sealed = await self._read_and_seal(reading)
            if sealed is _Sealed.DONE:
                return SealedLog(reading.replay, reading.log, reading.index)
            # R10: a remnant is no beginning of a log.
            if sealed is _Sealed.REMNANT:
                self._remnants.add(self._name(first))
                continue
            # R10: twice the same, so the former owner has not moved on.
            if reading.log == gone:
                await self._lost(f"log {self._name(gone)!r} was removed from the ledger")
            # The former owner may have dropped this segment after it moved to the next one.
            gone = reading.log
            await asyncio.sleep(RETRY_S)

    async def _lost(self, why: str) -> Never:
        # R5: a successor may have dropped it: then this is deposed.
        # A successor that has formed the next round drops the log as well, which is no loss.
        await self._make_sure()
        raise StoreLostError(why)

    async def _first(self) -> LogId:
        first = first_of(tuple(name for name in await self._names() if name not in self._remnants))
        if first is None:
            await self._lost(f"its log, {self._prefix!r}, was removed from the ledger")
        return first

    async def _names(self) -> tuple[str, ...]:
        return await self._ask(lambda: self._ledger.logs(self._prefix))

    async def _read_and_seal(self, reading: _Reading) -> _Sealed:
        while True:
            name, index = self._name(reading.log), reading.index
            page = await self._page(name, index)
            if page:
                for _, data in page:
                    reading.take(data)
                await asyncio.sleep(0)  # Let other tasks run between two pages.
            # R10: a log without a header was removed.
            elif not index:
                return _Sealed.GONE
            # R5: nothing can follow it.
            elif reading.last == self._seal:
                return _Sealed.DONE
            # R10: a later segment says that this one has been named.
            elif await self._goes_on_after(reading.log):
                # R10: it names none, so it is a remnant.
                # This record was written before the next segment got its second record.
                if not await self._page(name, index):
                    return _Sealed.REMNANT
            else:
                sealed = await self._try_to_seal(reading)
                if sealed is not _Sealed.NOT_YET:
                    return sealed

    async def _page(self, name: str, index: int) -> tuple[tuple[int, bytes], ...]:
        return await self._ask(lambda: self._ledger.records(name, index, PAGE_RECORDS))

    async def _goes_on_after(self, log: LogId) -> bool:
        """Whether a later segment has more than its header."""
        found = [(each, name) for name in await self._names() if (each := parse(name)) is not None]
        for each, name in sorted(found):
            # R10: only later segments tell.
            if each.segment <= log.segment:
                continue
            # R10: a header alone proves nothing.
            if await self._ask(partial(self._ledger.records, name, 1, 1)):
                return True
            if not await self._ask(partial(self._ledger.records, name, 0, 1)):
                # The segment was dropped meanwhile: read the list again.
                return await self._goes_on_after(log)
        return False

    async def _try_to_seal(self, reading: _Reading) -> _Sealed:
        later = reading.replay.latest_term
        # R5: a later owner has it.
        if later > self._term:
            # R5: if it was deposed, this does not return.
            # Either this process stood still and has lost the run: then the next renewal fails, and
            # this is cancelled. Or the lease is valid: then no other process can have sealed after
            # it.
            await self._make_sure()
            raise UnreadableLogError(f"term {later} has sealed it; this one is {self._term}")
        # R5: behind the last record that was read, or not at all.
        outcome = await self._ledger.append(self._name(reading.log), reading.index, self._seal)
        # R5: sealed only if the ledger has the seal.
        if isinstance(outcome, Created) or outcome == Exists(self._seal):
            reading.take(self._seal)
            return _Sealed.DONE
        if isinstance(outcome, Unknown):
            self._tell("the log cannot be sealed", outcome.reason)
            await asyncio.sleep(RETRY_S)
        # R10: a conflict means that there is more to read.
        return _Sealed.GONE if isinstance(outcome, Gap) else _Sealed.NOT_YET

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await question()
            except (LedgerCorruptError, LedgerForeignError, LedgerFormatError) as error:
                raise UnreadableLogError(error.message) from error
            except LedgerError as error:
                self._tell("the log cannot be read", error.message)
            await asyncio.sleep(RETRY_S)

    def _name(self, log: LogId) -> str:
        return log.name(self._run_id)

    def _tell(self, what: str, why: str) -> None:
        problem, before = f"{what}: {why}", self._problem
        self._problem = problem
        if problem != before:
            _log.warning("run %s: %s", self._run_id, problem)


class _Reading:
    """The reader's position in the log."""

    def __init__(self, run_id: str, first: LogId, replay: Replay) -> None:
        self.replay = replay
        self.log = first
        self.index = 0
        self.last = b""
        self._run_id = run_id
        replay.begin_segment(first)

    def take(self, data: bytes) -> None:
        """Take the next record. Raises UnreadableLogError."""
        record = decode_record(data)
        if not self.index:
            header = record.header
            if header is None or (header.run_id, header.number) != (self._run_id, self.log.number):
                raise UnreadableLogError(
                    f"the log of round {self.log.number} of run {self._run_id!r} belongs to "
                    "another run or round"
                )
        self.last = data
        self.index += 1
        if record.moved is None:
            self.replay.take(record, len(data))
            return
        moved = record.moved
        self.log = LogId(self.log.term, self.log.number, moved.segment, moved.writer)
        self.index = 0
        self.replay.begin_segment(self.log)
