"""A node's side of the election: where is the coordinator, and when is it this node's turn?"""

from __future__ import annotations

from typing import TypeAlias

from rallypoint.core.asking import (
    Found,
    ReadLease,
    ReadRun,
)
from rallypoint.core.leases import Standstill, Timing, lease_of
from rallypoint.core.registers import (
    Lease,
    LeaseState,
    RunRegister,
    decode_run,
)
from rallypoint.core.values import (
    Address,
    CloseRecord,
    Stamp,
    Value,
)


class Attach(Value, frozen=True):
    """The run's coordinator listens here. `stamp`: nothing older is to be believed (R5)."""

    addresses: tuple[Address, ...]
    process: str
    stamp: Stamp


class Stand(Value, frozen=True):
    """Nobody coordinates the run, and it is this node's turn: become a candidate."""


class Over(Value, frozen=True):
    """The run is closed (R6): there is nothing to attach to."""

    close: CloseRecord


Finding: TypeAlias = ReadRun | ReadLease | Attach | Stand | Over


def may_take(lease: Lease, run_id: str) -> bool:
    """Whether the process of this lease, if it is alive, may coordinate the run."""
    return lease.state is LeaseState.SERVING and lease.only_run in ("", run_id)


def where(register: RunRegister | None, lease: Lease | None) -> tuple[Address, ...] | None:
    """Where the nodes of a run attach, given its register and its owner's lease; None: nowhere."""
    if register is None or lease is None or lease.process != (register.owner or None):
        return None
    return lease.addresses if lease.state is LeaseState.SERVING else None


class Seeker:
    """How a node without a coordinator finds one, and when it becomes a candidate itself.

    It reads and never writes, about once per `look_s`. Every `jitter` is drawn by the caller from
    [0, 1), so that a thousand nodes do not look at once. Only the first `candidates` nodes stand:
    by their node rank in the last round, before there is one by `position`. Should all of those
    be gone, the next as many stand 2 ttl later, and so on.
    """

    def __init__(
        self, name: str, timing: Timing, candidates: int, position: int = 0, look_s: float = 1.0
    ) -> None:
        if candidates < 1 or not 0 < look_s < float("inf"):
            raise ValueError(f"candidates ({candidates}) and look_s ({look_s}) must be positive")
        self.name = name
        self.timing = timing
        self.candidates = candidates
        self.position = position
        self.look_s = look_s
        self._still = Standstill()
        self._ticket = 0
        self._open: ReadRun | ReadLease | None = None
        self._register: RunRegister | None = None
        self._look_again_s: float | None = None
        self._nobody_since_s: float | None = None

    def next_tick_s(self) -> float | None:
        """When `tick` has something to do; None while nothing is sought."""
        return self._look_again_s

    def seek(self, now_s: float, jitter: float) -> None:
        """There is no coordinator, or it could not be attached to. Looks within `look_s`."""
        self._open = None
        self._look_again_s = now_s + self.look_s * jitter

    def look_now(self, now_s: float) -> None:
        """The engine says that the register has changed."""
        if self._look_again_s is not None:
            self._look_again_s = now_s

    def tick(self, now_s: float, jitter: float) -> list[Finding]:
        """Look, or ask again what was not answered."""
        if self._look_again_s is None or now_s < self._look_again_s:
            return []
        if self._open is None:
            self._ticket += 1
            self._open = ReadRun(self._ticket)
        self._rest(now_s, jitter)
        return [self._open]

    def run_read(
        self, asked: ReadRun, found: Found | None, now_s: float, jitter: float
    ) -> list[Finding]:
        """What the run's register holds. Raises UnreadableError; it will look again."""
        if asked != self._open:
            return []
        self._register = None if found is None else decode_run(found.value)
        self._open = None
        if self._register is not None and self._register.close is not None:
            self._look_again_s = None
            return [Over(self._register.close)]
        if self._register is None or not self._register.owner:
            return self._nobody(now_s, jitter)
        self._ticket += 1
        self._open = ReadLease(self._register.owner, self._ticket)
        self._rest(now_s, jitter)
        return [self._open]

    def lease_read(
        self, asked: ReadLease, found: Found | None, now_s: float, jitter: float
    ) -> list[Finding]:
        """What the owner's lease says. Raises UnreadableError; it will look again."""
        if asked != self._open or self._register is None:
            return []
        lease = None if found is None else lease_of(asked.process, found)
        addresses = where(self._register, lease)
        self._open = None
        if found is None or lease is None or addresses is None:
            return self._nobody(now_s, jitter)
        since_s = self._still.since_s(asked.process, found.version, now_s)
        if now_s >= since_s + lease.ttl_s:
            return self._nobody(now_s, jitter)
        self._nobody_since_s = self._look_again_s = None
        return [Attach(addresses, asked.process, self._register.stamp)]

    def _nobody(self, now_s: float, jitter: float) -> list[Finding]:
        if self._nobody_since_s is None:
            self._nobody_since_s = now_s
        self._rest(now_s, jitter)
        patience_s = self._place() // self.candidates * 2 * self.timing.ttl_s
        return [Stand()] if now_s >= self._nobody_since_s + patience_s else []

    def _place(self) -> int:
        if self._register is None or self._register.round is None:
            return self.position
        names = [row.name for row in self._register.round.members]
        return names.index(self.name) if self.name in names else len(names) + self.position

    def _rest(self, now_s: float, jitter: float) -> None:
        self._look_again_s = now_s + self.look_s * (0.5 + jitter)
