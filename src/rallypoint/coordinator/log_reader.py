"""Reads and seals the log of a round that is taken over (R5, R10).

In pages, so that each has a deadline of its own: a log of any length can be read. The former owner
may still write, move to another segment, or drop one, until the seal is in the log.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeVar

from rallypoint.coordinator.log_records import UnreadableLogError, decode_record, seal_record
from rallypoint.coordinator.log_replay import Replay
from rallypoint.coordinator.round_log import LogId, first_of
from rallypoint.core.store import RoundStore
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
    """The store of a round that is on is not in the ledger. The text says why."""


class SealedLog(NamedTuple):
    """What a log led to, and where its next record goes."""

    replay: Replay
    log: LogId
    next_index: int


class _Sealed(enum.Enum):
    DONE = enum.auto()
    NOT_YET = enum.auto()
    """There is more to be read first, or nobody knows."""
    GONE = enum.auto()


class LogReader:
    """Reads the log of the round with this `head`, for the coordinator of this `term`.

    `new_store` gives an empty store of the round.
    `make_sure`: returns once this coordinator has found out whether its lease is still good; it is
    cancelled if that is not so.
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
        self._head = head
        self._term = term
        self._seal = seal_record(term)
        self._new_store = new_store
        self._make_sure = make_sure
        self._problem = ""

    async def sealed(self) -> SealedLog:
        """The log, after this term has sealed it. Waits for a ledger that does not answer.

        Raises StoreLostError if the round has no log, and UnreadableLogError.
        """
        gone: LogId | None = None
        while True:
            reading = _Reading(self._run_id, await self._first(), Replay(self._new_store))
            if await self._read_and_seal(reading):
                return SealedLog(reading.replay, reading.log, reading.index)
            if reading.log == gone:
                raise StoreLostError(f"log {self._name(gone)!r} was removed from the ledger")
            # Its former owner may have dropped it, as another segment takes its place.
            gone = reading.log
            await asyncio.sleep(RETRY_S)

    async def _first(self) -> LogId:
        prefix = round_prefix(self._run_id, self._head.number, self._head.term)
        first = first_of(await self._ask(lambda: self._ledger.logs(prefix)))
        if first is None:
            raise StoreLostError(f"its log, {prefix!r}, was removed from the ledger")
        return first

    async def _read_and_seal(self, reading: _Reading) -> bool:
        """False: a segment is gone."""
        while True:
            name, index = self._name(reading.log), reading.index
            page = await self._ask(lambda: self._ledger.records(name, index, PAGE_RECORDS))  # noqa: B023
            if page:
                for _, data in page:
                    reading.take(data)
                await asyncio.sleep(0)  # Others have their turn between two pages.
            elif not index:
                return False
            elif reading.last == self._seal:
                return True
            else:
                sealed = await self._try_to_seal(reading)
                if sealed is not _Sealed.NOT_YET:
                    return sealed is _Sealed.DONE

    async def _try_to_seal(self, reading: _Reading) -> _Sealed:
        later = reading.replay.sealed_by
        if later > self._term:
            # This process stood still, and will be told that the run is another's: then this
            # ends. If its lease turns out to be good, nobody can have sealed after it.
            await self._make_sure()
            raise UnreadableLogError(f"term {later} has sealed it; this one is {self._term}")
        outcome = await self._ledger.append(self._name(reading.log), reading.index, self._seal)
        if isinstance(outcome, Created) or outcome == Exists(self._seal):
            reading.take(self._seal)
            return _Sealed.DONE
        if isinstance(outcome, Unknown):
            self._tell("the log cannot be sealed", outcome.reason)
            await asyncio.sleep(RETRY_S)
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
    """Where in the log the reader is."""

    def __init__(self, run_id: str, first: LogId, replay: Replay) -> None:
        self.replay = replay
        self.log = first
        self.index = 0
        self.last = b""
        self._run_id = run_id
        replay.begin_segment(first)

    def take(self, data: bytes) -> None:
        """The next record. Raises UnreadableLogError."""
        record = decode_record(data)
        if not self.index:
            header = record.header
            if header is None or (header.run_id, header.number) != (self._run_id, self.log.number):
                raise UnreadableLogError(
                    f"the log of round {self.log.number} of run {self._run_id!r} is another's"
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
