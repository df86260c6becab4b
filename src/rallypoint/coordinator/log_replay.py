"""Rebuilds a round's store from its log, for a coordinator that takes over the round.

No I/O: `log_reader` passes in the records of the segments in order, and follows `Moved` to the next
segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rallypoint.coordinator.log_records import Cost, Record, UnreadableLogError
from rallypoint.coordinator.round_log import LogId
from rallypoint.core.store.snapshot import Settled
from rallypoint.core.store.store import RoundStore


class Replay:
    """Replays records into a store. `new_store` returns an empty one.

    `latest_term`: the highest term that has written to the log, a seal or another record. `base`:
    the first segment that is needed to make the store. `snapshot`: the cost of the last complete
    snapshot. `since`: the cost of the records since that snapshot began.
    """

    def __init__(self, new_store: Callable[[], RoundStore]) -> None:
        self.latest_term = 0
        self.base: LogId | None = None
        self.snapshot = Cost()
        self.since = Cost()
        self._new_store = new_store
        self._store: RoundStore | None = None
        self._log: LogId | None = None
        self._unfinished: list[Settled] = []
        # While the segment's snapshot is not complete: its store, the entries since it began, and
        # the cost of both.
        self._coming: RoundStore | None = None
        self._since_it: list[Settled] = []
        self._cost_of_it = Cost()
        self._cost_since_it = Cost()

    @property
    def store(self) -> RoundStore:
        """The rebuilt store. Raises UnreadableLogError if the first records are missing."""
        # R10: a log without its beginning makes no store.
        if self._store is None:
            raise UnreadableLogError(
                "the first records of the log of the round's store are missing"
            )
        return self._store

    def begin_segment(self, log: LogId) -> None:
        """The next records are those of this segment."""
        self._log = log
        self._since_it, self._cost_of_it, self._cost_since_it = [], Cost(), Cost()
        # R10: a later segment begins with a snapshot.
        if log.segment:
            self._coming = self._new_store()
        else:
            self._store, self._coming, self.base = self._new_store(), None, log

    def take(self, record: Record, size: int) -> None:
        """Replay the segment's next record, of `size` bytes. Raises UnreadableLogError."""
        try:
            self._take(record, size)
        except (KeyError, AssertionError) as error:
            raise UnreadableLogError(
                "a record does not follow from the records before it"
            ) from error

    def _take(self, record: Record, size: int) -> None:
        # R5: a later seal must be seen.
        self.latest_term = max(self.latest_term, record.term)
        if record.part is not None:
            self._cost_of_it.add(size)
            if self._coming is not None:
                self._coming.load(record.part.items)
                # R10: a snapshot counts when it is whole.
                if record.part.is_last:
                    self._switch(self._coming)
            return
        self.since.add(size)
        self._cost_since_it.add(size)
        # R11: an unfinished group was not acknowledged.
        if record.is_seal:
            # Groups that the former writer did not finish were never acknowledged: drop them.
            self._unfinished = []
        self._unfinished += record.entries
        # R10: a group counts as a whole or not at all.
        finished = len(self._unfinished) - record.unfinished
        entries, self._unfinished = self._unfinished[:finished], self._unfinished[finished:]
        if self._coming is not None:
            # R10: calls between the parts of the snapshot.
            self._since_it += entries
        if self._store is not None:
            # R10: in order.
            _redo(self._store, entries)

    def _switch(self, store: RoundStore) -> None:
        # R10: the calls since the snapshot began.
        _redo(store, self._since_it)
        self._store, self._coming, self._since_it = store, None, []
        # R10: the segments before are not needed.
        self.base = self._log
        self.snapshot, self.since = self._cost_of_it, self._cost_since_it


def _redo(store: RoundStore, entries: Iterable[Settled]) -> None:
    for entry in entries:
        # R10: the same writes. R11: the same answers.
        store.redo(entry)
