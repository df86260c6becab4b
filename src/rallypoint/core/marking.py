"""The marks: what the ledger keeps about a round's members; and the goodbyes that wait for it.

The absence of a member that is done is no loss, and a member that departs or has left is not
expected in the next round. A successor that did not know this would treat such an absence as a
loss. So the marks are written to the run's head (`values.Marks`), one write at a time. The goodbye
of a member is answered when the ledger has its marks.

This file keeps the marks, and decides what to write and when. It must not decide anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from rallypoint.core.blame import Blame
from rallypoint.core.closing import bounded_end
from rallypoint.core.effects import Dismiss, Effect, TimerKind, WriteMarks
from rallypoint.core.finished import Finished
from rallypoint.core.orders import KeptOrders
from rallypoint.core.timers import Timers
from rallypoint.core.values import Change, FrozenStruct, Marks, NodeId, RoundRecord


class Farewell(FrozenStruct, frozen=True):
    """A node that said goodbye on this connection, and may go once `serial` is written."""

    node: NodeId
    connection_id: int
    reason: str
    serial: int


class Marking:
    """The marks of the last committed round.

    `is_kept` False: no other coordinator can take the run over, so nothing is written.
    """

    def __init__(self, timers: Timers, *, is_kept: bool = True) -> None:
        self._timers = timers
        self._is_kept = is_kept
        self._timer_at_s = math.inf
        self._ranks: dict[NodeId, int] | None = None
        self._record: RoundRecord | None = None
        self._done, self._gone = bytearray(), bytearray()
        self._ended: Change | None = None
        self._finished_before, self._finished_nodes = 0, b""
        self._step: int | None = None
        self._step_serial = 0
        self._serial = 0
        """Counts the changes. Each mark has the number of the write that will have it."""
        self._written = 0
        self._writing = 0
        self.due_s: float | None = None
        """When to write what was marked since the last write; None if nothing was."""
        self._last_write_s = float("-inf")
        self._farewells: list[Farewell] = []

    # -- the marks -------------------------------------------------------------------------------

    def begin(
        self,
        record: RoundRecord,
        finished: Finished,
        ended: Change | None,
        gone: Iterable[NodeId],
        now_s: float,
    ) -> list[Effect]:
        """The ledger has a new round, in which no member is marked yet.

        `ended` and `gone`: what happened to the round while it was written.
        """
        waiting, self._farewells = self._farewells, []
        count, known = finished.count_at_forming, finished.known_at_forming
        self.restore(record, Marks(finished=count, finished_nodes=known))
        self.finished_before(finished, now_s)
        if ended is not None:
            self.ended(ended, now_s)
        for node in gone:
            self.gone(node, now_s)
        return [
            Dismiss(each.connection_id, each.reason)
            for each in waiting
            if not self.farewell(each.node, each.connection_id, each.reason)
        ]

    def restore(self, record: RoundRecord, marks: Marks) -> None:
        """Begin with the marks of this round that the ledger has."""
        self._record, self._ranks = record, None
        size = (record.head.nodes + 7) // 8
        self._done = bytearray(marks.done.ljust(size, b"\0"))
        self._gone = bytearray(marks.gone.ljust(size, b"\0"))
        self._ended = marks.ended
        self._finished_before, self._finished_nodes = marks.finished, marks.finished_nodes
        self._step, self._step_serial = marks.step, self._serial
        # R10: the ledger has these marks.
        self._written = self._serial
        self._writing, self.due_s = 0, None

    def finished_before(self, finished: Finished, now_s: float) -> None:
        """Set how many members have finished that are not in this round, and which ones."""
        if finished.earlier != self._finished_before:
            self._finished_before, self._finished_nodes = finished.earlier, finished.known
            self._changed(now_s)

    def has(self, node: NodeId) -> bool:
        """Whether the node is a member of the round, also if it was lost."""
        return self._rank(node) is not None

    def is_done(self, node: NodeId) -> bool:
        """Whether the node is a member of the round, and is marked as done."""
        rank = self._rank(node)
        return rank is not None and bool(self._done[rank // 8] >> rank % 8 & 1)

    def done(self, node: NodeId, now_s: float) -> None:
        """The node's workers have finished."""
        self._mark(self._done, node, now_s)

    def gone(self, node: NodeId, not_before_s: float) -> None:
        """The node is not expected in the next round. Written at `not_before_s`, or earlier."""
        self._mark(self._gone, node, not_before_s)

    def ended(self, change: Change, not_before_s: float) -> None:
        """The round has ended, or its cause is known better."""
        change = bounded_end(change)
        if change != self._ended:
            self._ended = change
            self._changed(not_before_s)

    def stepped(self, step: int, now_s: float) -> None:
        """All workers of the round stop at this step."""
        self._step = step
        self._changed(now_s)
        self._step_serial = self._serial

    @property
    def has_step(self) -> bool:
        """Whether the ledger has the step."""
        # R14: and not only the marks of before.
        return self._written >= self._step_serial

    def ordered(self, now_s: float) -> None:
        """An operator has ordered something: the ledger gets it with the marks."""
        self._changed(now_s)

    def _mark(self, bits: bytearray, node: NodeId, not_before_s: float) -> None:
        rank = self._rank(node)
        # R10: each mark is written once.
        if rank is not None and not bits[rank // 8] >> rank % 8 & 1:
            bits[rank // 8] |= 1 << rank % 8
            self._changed(not_before_s)

    def _rank(self, node: NodeId) -> int | None:
        """O(1), except for the first time in a round."""
        if self._ranks is None:
            rows = self._record.members if self._record is not None else ()
            self._ranks = {NodeId(r.name, r.incarnation): rank for rank, r in enumerate(rows)}
        return self._ranks.get(node)

    def _changed(self, not_before_s: float) -> None:
        # R10: so that a goodbye waits for this mark.
        self._serial += 1
        # R10: the earliest wish counts.
        due_s = not_before_s if self.due_s is None else min(self.due_s, not_before_s)
        self.due_s = due_s

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, hashable, without times and serial numbers."""
        before = (self._finished_before, self._finished_nodes)
        known = (bytes(self._done), bytes(self._gone), self._ended, *before, self._step)
        waiting = tuple((each.node, each.serial <= self._written) for each in self._farewells)
        return (*known, self.is_writing, self._written == self._serial, waiting)

    # -- writes ----------------------------------------------------------------------------------

    @property
    def is_writing(self) -> bool:
        """Whether a write is under way."""
        # R1: one write at a time.
        return self._writing > self._written

    def write(
        self,
        spacing_s: float,
        restarts: int,
        now_s: float,
        orders: KeptOrders,
        blame: Callable[[], Blame],
    ) -> list[Effect]:
        """Write the marks, or set the timer for that. Call it only if `due_s` is not None.

        Marks for which nodes wait are written first. The others wait for a moment, because the
        record of the next round may follow and make them needless. `spacing_s`: the least time
        between two writes. `restarts`: how many rounds have been charged. `orders`: those of
        operators, which are written with the marks. `blame`: what the failures have cost, too.
        """
        if not self._is_kept:
            self.give_up()
        # R1: one write at a time.
        if self.is_writing or self.due_s is None:
            return []
        # Before the first round there are no marks, but there may be orders.
        number = self._record.head.number if self._record is not None else 0
        due_s = max(self.due_s, self._last_write_s + spacing_s)
        if due_s <= now_s:
            self._writing, self.due_s, self._last_write_s = self._serial, None, now_s
            done, gone = bytes(self._done), bytes(self._gone)
            before = (self._finished_before, self._finished_nodes)
            marks = Marks(number, done, gone, self._ended, *before, self._step)
            return [WriteMarks(self._serial, marks, restarts, orders.marks_formed(), blame())]
        if due_s >= self._timer_at_s:
            return []
        self._timer_at_s = due_s
        return [self._timers.set(TimerKind.MARKS, due_s - now_s, round_number=number)]

    def timer_fired(self) -> None:
        """A MARKS timer fired that was not stale."""
        self._timer_at_s = math.inf

    def written(self, serial: int) -> bool:
        """The ledger has the write with this number. False if that is not the one under way."""
        # R10: not an answer to another write.
        if not self.is_writing or serial != self._writing:
            return False
        # R10: later marks are not written yet.
        self._written = serial
        return True

    def give_up(self) -> None:
        """Write nothing more: the run is over, or another coordinator has it."""
        self._written, self.due_s = self._serial, None

    # -- goodbyes --------------------------------------------------------------------------------

    def farewell(
        self, node: NodeId, connection_id: int, reason: str, *, is_being_written: bool = False
    ) -> bool:
        """The node said goodbye. False if the ledger already has all marks of the node.

        `is_being_written`: it is in the round that is being written, which has no marks yet.
        """
        # R10: it waits if a mark is not in the ledger yet.
        is_marked = self._rank(node) is None or self._written == self._serial
        if not self._is_kept or (is_marked and not is_being_written):
            return False
        # `begin` gives a goodbye of the next round its serial number, when it has marked the node.
        serial = self._serial + is_being_written
        self._farewells.append(Farewell(node, connection_id, reason, serial))
        return True

    def answered_farewells(self) -> list[Effect]:
        """The answers to goodbyes whose marks the ledger has, in the order of the goodbyes."""
        waiting = self._farewells
        # R10: the other goodbyes wait on.
        self._farewells = [each for each in waiting if each.serial > self._written]
        return [
            Dismiss(each.connection_id, each.reason)
            for each in waiting
            # R10: only goodbyes whose marks the ledger has.
            if each.serial <= self._written
        ]

    def take_all_farewells(self) -> list[Farewell]:
        """Take all goodbyes that wait."""
        waiting, self._farewells = self._farewells, []
        return waiting


def may_call(record: RoundRecord, marks: Marks) -> list[str]:
    """The names of the round's members that may still call its store: neither done nor gone."""
    ended = ranks_in(marks.done) | ranks_in(marks.gone) if marks.round == record.head.number else ()
    return [row.name for rank, row in enumerate(record.members) if rank not in ended]


def ranks_in(bits: bytes) -> frozenset[int]:
    """The node ranks that are set in a bitmap."""
    # R10: the bits as they were written.
    return frozenset(rank for rank in range(8 * len(bits)) if bits[rank // 8] >> rank % 8 & 1)
