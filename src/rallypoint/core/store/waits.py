"""Who waits for what in a round's store: calls, barriers, and the ranks that meet at them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from rallypoint.core.store.operations import StoreOp, key_bytes, keys_of

# Measured with CPython 3.11 to 3.13, and rounded up.
WAITING_CALL_BYTES: Final = 250
"""What a call that waits takes besides that and its keys: its deadline, its place in a line."""
WAITING_KEY_BYTES: Final = 350
"""What a key takes that is waited for, besides its text."""


class Call:
    """A call that was admitted. It is compared by identity."""

    __slots__ = ("deadline_s", "missing", "node", "op", "request_id", "serial", "timeout_s")

    def __init__(
        self, node: str, request_id: int, op: StoreOp, timeout_s: float | None, serial: int
    ) -> None:
        self.node = node
        self.request_id = request_id
        self.op = op
        self.timeout_s = timeout_s
        self.serial = serial
        self.deadline_s: float | None = None
        self.missing = 0  # how many keys it still waits for


class OpenBarrier:
    """One generation of a barrier: it lives while somebody waits at it."""

    def __init__(self) -> None:
        self.arrived: dict[int, Call] = {}
        # Ranks that came and timed out. They have to come again, but who times out after them is
        # told of those that never came: they are the cause.
        self.gave_up: dict[int, None] = {}
        # The first ranks that never came, where known: N timeouts in a row search for them once.
        self.absent: tuple[int, ...] | None = None

    def place(self, rank: int, call: Call) -> None:
        self.arrived[rank] = call
        self.gave_up.pop(rank, None)
        self.absent = None

    def withdraw(self, rank: int, call: Call) -> None:
        if self.arrived.get(rank) is call:  # else it gave up, or a newer call took its place
            del self.arrived[rank]
            self.absent = None

    def give_up(self, rank: int) -> None:
        del self.arrived[rank]
        self.gave_up[rank] = None


class Seats:
    """Which node has which worker ranks."""

    def __init__(self, seats: Sequence[tuple[str, int, int]]) -> None:
        self._seats = sorted(seats, key=lambda seat: seat[1])
        self._firsts = [first for _, first, _ in self._seats]
        self._workers = {name: (first, workers) for name, first, workers in seats}
        self.size = sum(workers for _, _, workers in seats)
        self._check()

    def __contains__(self, node: str) -> bool:
        return node in self._workers

    def has(self, node: str, rank: int) -> bool:
        first, workers = self._workers[node]
        return first <= rank < first + workers

    def label(self, rank: int) -> str:
        """A rank as a person wants to read it."""
        name, _, workers = self._seats[bisect_right(self._firsts, rank) - 1]
        return name if workers == 1 else f"{name} (rank {rank})"

    def _check(self) -> None:
        # R3: each rank once, from 0 on.
        expected = 0
        for name, first, workers in self._seats:
            if first != expected or workers < 1:
                raise ValueError(f"seat {name!r} has {workers} workers from rank {first} on")
            expected += workers
        if len(self._workers) != len(self._seats):
            raise ValueError("a node has two seats")


def waiting_bytes(op: StoreOp) -> int:
    return sum(key_bytes(key) + WAITING_KEY_BYTES for key in keys_of(op))
