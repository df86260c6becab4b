"""The calls of a round's store that wait: for keys or at barriers, and until their deadlines.

`Waits` only keeps the account. `store.RoundStore` reads from it which calls are due, and answers
them. No data is read here: the missing keys of a call are an argument.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final

import msgspec

from rallypoint.core.store.data import Drop, Tally, Write
from rallypoint.core.store.operations import (
    TIMEOUT,
    Barrier,
    StoreFailure,
    StoreLimits,
    StoreOp,
    key_bytes,
    keys_of,
    listed,
    shown,
)
from rallypoint.core.values import NAMES_SHOWN_MAX

# Measured with CPython 3.11 to 3.13, and rounded up.
WAITING_CALL_BYTES: Final = 250
"""Memory of a waiting call, besides `store.CALL_BYTES` and its keys: its deadline, its places
in the account."""
WAITING_KEY_BYTES: Final = 350
"""Memory of a key that a call waits for, besides its text."""


class Call(msgspec.Struct, eq=False):
    """A call that was admitted. Compared by identity.

    `missing`: how many keys it still waits for. `keys_bytes`: the memory of its keys while it
    waits, in bytes.
    """

    node: str
    request_id: int
    op: StoreOp
    timeout_s: float | None
    serial: int
    deadline_s: float | None = None
    missing: int = 0
    keys_bytes: int = 0


class Seats:
    """The worker ranks of each node.

    Raises ValueError, from the constructor, if the ranks are not 0 ... size - 1, each once (R3).
    """

    def __init__(self, seats: Sequence[tuple[str, int, int]]) -> None:
        self._seats = sorted(seats, key=lambda seat: seat[1])
        self._firsts = [first for _, first, _ in self._seats]
        self.nodes = {name: (first, workers) for name, first, workers in seats}
        """By the name of a node: its first rank, and its number of workers."""
        self.size = 0
        for name, first, workers in self._seats:
            # R3: each rank once, without a gap.
            if first != self.size or workers < 1:
                raise ValueError(f"seat {name!r} has {workers} workers from rank {first} on")
            self.size += workers
        if len(self.nodes) != len(self._seats):
            raise ValueError("a node has two seats")

    def has(self, node: str, rank: int) -> bool:
        """Whether this rank is one of the node's."""
        first, workers = self.nodes[node]
        # R4: only its own ranks.
        return first <= rank < first + workers

    def label(self, rank: int) -> str:
        """A rank for a message: the name of its node, with the rank if the node has several."""
        name, _, workers = self._seats[bisect_right(self._firsts, rank) - 1]
        return name if workers == 1 else f"{name} (rank {rank})"


class OpenBarrier:
    """One use of a barrier. It lasts while a call waits at it."""

    def __init__(self) -> None:
        self.arrived: dict[int, Call] = {}
        # Ranks whose calls timed out. They have to call again. A later timeout does not name them,
        # but the ranks that never came, because those are the cause.
        self.gave_up: dict[int, None] = {}
        # The first ranks that never came, once computed: N timeouts in a row search for them once.
        self.absent: tuple[int, ...] | None = None


class WaitCount:
    """The waiting calls of a node: their number, and the memory of their keys in bytes."""

    __slots__ = ("calls", "key_bytes")

    def __init__(self) -> None:
        self.calls = 0
        self.key_bytes = 0


class Waits:
    """The account of all calls that wait.

    Each operation costs O(1) amortised for each key of its call, and O(log n) for a deadline. To
    admit N calls at a barrier costs O(N) in all.
    """

    def __init__(self, seats: Seats, limits: StoreLimits, tally: Tally) -> None:
        self._seats = seats
        self._limits = limits
        self._tally = tally
        self.calls: dict[Call, None] = {}
        """All calls that wait, in the order in which the waits began."""
        # A key in this dict does not exist, and no call is under a key that it has seen exist.
        self.by_key: dict[str, dict[Call, None]] = {}
        self.barriers: dict[str, OpenBarrier] = {}
        self.counts: dict[str, WaitCount] = {}
        """By node; a node without a waiting call has none."""
        self._deadlines: list[tuple[float, int, Call]] = []  # a heap; some no longer wait

    # -- a wait begins and ends ------------------------------------------------------------------

    def begin(self, call: Call, now_s: float) -> StoreFailure | None:
        """Let the call wait. Returns the failure if its node has too much waiting already."""
        footprint = call.keys_bytes = waiting_bytes(call.op)
        count = self.counts.get(call.node) or WaitCount()
        refusal = self._limits.excess(
            waiting_calls_per_node_max=count.calls + 1,
            waiting_bytes_per_node_max=count.key_bytes + footprint,
        )
        # R12: the number of calls that wait is bounded.
        if refusal:
            return refusal
        self.counts[call.node] = count
        count.calls += 1
        count.key_bytes += footprint
        self._tally.kept += WAITING_CALL_BYTES + footprint
        self.calls[call] = None
        if call.timeout_s is not None and call.timeout_s != math.inf:
            self._set_deadline(call, now_s + max(call.timeout_s, 0.0))
        return None

    def shorten(self, call: Call, timeout_s: float | None, now_s: float) -> None:
        """End the wait after `timeout_s` if that is before its present deadline."""
        if timeout_s is None or call.deadline_s is None:
            return
        deadline_s = now_s + max(timeout_s, 0.0)
        if deadline_s < call.deadline_s:
            self._set_deadline(call, deadline_s)

    def _set_deadline(self, call: Call, deadline_s: float) -> None:
        call.deadline_s = deadline_s
        heappush(self._deadlines, (deadline_s, call.serial, call))
        # Calls that were answered in time leave their entry behind, and so does a later deadline.
        # Sweeping when these are the most keeps the heap within a constant of the waits, at an
        # amortised cost of O(1).
        if len(self._deadlines) > 2 * len(self.calls) + 64:
            valid = (each for each in self._deadlines if each[2] in self.calls)
            self._deadlines = [each for each in valid if each[0] == each[2].deadline_s]
            heapify(self._deadlines)

    def end(self, call: Call) -> None:
        """The call does not wait any more, for any reason."""
        footprint = call.keys_bytes
        count = self.counts[call.node]
        count.calls -= 1
        count.key_bytes -= footprint
        if not count.calls:
            del self.counts[call.node]
        self._tally.kept -= WAITING_CALL_BYTES + footprint
        del self.calls[call]
        if not self.calls:
            self._deadlines.clear()
        if isinstance(call.op, Barrier):
            self._leave_barrier(call, call.op)
        elif call.missing:
            self._unwatch(call)

    def next_deadline_s(self) -> float | None:
        """The earliest deadline of a call that waits; None if there is none."""
        while self._deadlines and self._deadlines[0][2] not in self.calls:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def take_due(self, now_s: float) -> Call | None:
        """The call with the earliest deadline, if that is not after `now_s`; it still waits."""
        deadline_s = self.next_deadline_s()
        if deadline_s is None or deadline_s > now_s:
            return None
        return heappop(self._deadlines)[2]

    # -- waiting for keys ------------------------------------------------------------------------

    def watch(self, call: Call, missing: Sequence[str]) -> None:
        """The call waits until all these keys have been written."""
        for key in missing:
            self.by_key.setdefault(key, {})[call] = None
        call.missing = len(missing)

    def written(self, writes: Iterable[Write]) -> list[Call]:
        """The calls whose last missing key is among these writes, in the order of their waits.

        The caller has to try whether a call can be answered, because a key that existed when the
        call began to wait may have been deleted since. So a deletion costs nothing, even if many
        calls wait.
        """
        ready: list[Call] = []
        for write in writes:
            if isinstance(write, Drop):
                continue
            for call in self.by_key.pop(write.key, ()):
                call.missing -= 1
                if not call.missing:
                    ready.append(call)
        return ready

    def _unwatch(self, call: Call) -> None:
        for key in keys_of(call.op):
            waiters = self.by_key.get(key)
            if waiters is not None:
                waiters.pop(call, None)
                if not waiters:
                    del self.by_key[key]

    # -- waiting at a barrier --------------------------------------------------------------------

    def arrive(self, call: Call, op: Barrier) -> Call | None:
        """The call takes its rank's place at the barrier. Returns the call that had it before."""
        barrier = self.barriers.setdefault(op.name, OpenBarrier())
        replaced = barrier.arrived.get(op.rank)
        barrier.arrived[op.rank] = call
        barrier.gave_up.pop(op.rank, None)
        barrier.absent = None
        return replaced

    def met(self, name: str) -> list[Call]:
        """The calls at this barrier, in order of arrival, if every rank is there; else none."""
        arrived = self.barriers[name].arrived
        # R10: every rank is there.
        return list(arrived.values()) if len(arrived) == self._seats.size else []

    def give_up(self, op: Barrier) -> None:
        """The rank's call has timed out. It keeps waiting in the account until `end`."""
        barrier = self.barriers[op.name]
        del barrier.arrived[op.rank]
        barrier.gave_up[op.rank] = None

    def ranks_missing(self, after: str, name: str) -> StoreFailure:
        """The timeout of a call at this barrier. `after` begins its message.

        It names the ranks that never came. If there are none, it names those that gave up.
        """
        barrier = self.barriers[name]
        count = self._seats.size - len(barrier.arrived) - len(barrier.gave_up)
        if count:
            ranks = self._absent(barrier)
        else:
            count, ranks = len(barrier.gave_up), tuple(islice(barrier.gave_up, NAMES_SHOWN_MAX))
        names = tuple(map(self._seats.label, ranks))
        what = f"ranks are not at barrier {shown(name)}"
        message = f"{after}{listed(what, self._seats.size, count, names)}"
        return StoreFailure(TIMEOUT, message, names, count)

    def _absent(self, barrier: OpenBarrier) -> tuple[int, ...]:
        """The first ranks that never came."""
        if barrier.absent is None:
            came = (barrier.arrived, barrier.gave_up)
            never = (r for r in range(self._seats.size) if not any(r in ranks for ranks in came))
            barrier.absent = tuple(islice(never, NAMES_SHOWN_MAX))
        return barrier.absent

    def _leave_barrier(self, call: Call, op: Barrier) -> None:
        barrier = self.barriers[op.name]
        if (
            barrier.arrived.get(op.rank) is call
        ):  # Otherwise it gave up, or a newer call replaced it.
            del barrier.arrived[op.rank]
            barrier.absent = None
        if not barrier.arrived:
            del self.barriers[op.name]


def waiting_bytes(op: StoreOp) -> int:
    """Memory of the keys that a call waits for, in bytes."""
    return sum(key_bytes(key) + WAITING_KEY_BYTES for key in keys_of(op))
