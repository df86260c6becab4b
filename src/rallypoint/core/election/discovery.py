"""A node's side of the election: where is the coordinator, and when is it this node's turn?"""

from __future__ import annotations

from typing import Final, TypeAlias

from rallypoint.core.candidacy import stands_after_s
from rallypoint.core.election.actions import ReadLease, ReadRun
from rallypoint.core.election.lease import Seen, Standstill, Timing, lease_of
from rallypoint.core.election.records import Lease, LeaseState, RunRegister, decode_run
from rallypoint.core.registers import Versioned
from rallypoint.core.values import (
    Address,
    CloseRecord,
    FrozenStruct,
    Stamp,
)


class AttachTo(FrozenStruct, frozen=True):
    """The run's coordinator listens here. `stamp`: nothing older is to be believed (R5)."""

    addresses: tuple[Address, ...]
    process: str
    stamp: Stamp


class BecomeCandidate(FrozenStruct, frozen=True):
    """Nobody coordinates the run, and it is this node's turn: become a candidate.

    `seen`: the owner's lease, if that is in the way. It was seen to stand still for its ttl, so a
    candidate in this process need not watch it for as long again.
    """

    seen: Seen | None = None


class RunOver(FrozenStruct, frozen=True):
    """The run is closed (R6): there is nothing to attach to."""

    close: CloseRecord


DiscoveryAction: TypeAlias = ReadRun | ReadLease | AttachTo | BecomeCandidate | RunOver


def may_take(lease: Lease, run_id: str) -> bool:
    """Whether the process of this lease, if it is alive, may coordinate the run."""
    return lease.state is LeaseState.SERVING and lease.only_run in ("", run_id)


def where(register: RunRegister | None, lease: Lease | None) -> tuple[Address, ...] | None:
    """Where the nodes of a run attach, given its register and its owner's lease; None: nowhere."""
    if register is None or lease is None or lease.process != (register.owner or None):
        return None
    return lease.addresses if lease.state is LeaseState.SERVING else None


LOOKS_PER_S: Final = 2_000
"""How often all nodes of a run together may look into the ledger, about: more nodes look rarer."""
DOUBLINGS_PER_TTL: Final = 10
"""How fast the hazard grows (`candidacy`). The ttl is set to what the ledger can do, so it says how
long a candidate may take to become visible: two writes and a read are less than a tenth of it."""


class Discovery:
    """How a node without a coordinator finds one, and when it becomes a candidate itself.

    It reads and never writes: the run's head and its owner's lease, so what one look costs does not
    grow with the run. `nodes`: how many nodes the run is to have, as long as the register does
    not say. Every `jitter` is drawn by the caller from [0, 1): nodes look at different times, and
    those that stand are few (`candidacy`), whoever is dead.
    """

    def __init__(
        self, name: str, timing: Timing, candidates: int, nodes: int = 1, look_s: float = 1.0
    ) -> None:
        if candidates < 1 or not 0 < look_s < float("inf"):
            raise ValueError(f"candidates ({candidates}) and look_s ({look_s}) must be positive")
        self.name = name
        self.timing = timing
        self.candidates = candidates
        self.look_s = look_s
        self._expected = nodes
        self._still = Standstill()
        self._ticket = 0
        self._open: ReadRun | ReadLease | None = None
        self._asked_s = 0.0
        self._answer_s = 0.0
        """How long the engine took for its last answer."""
        self._register: RunRegister | None = None
        self._look_again_s: float | None = None
        self._lease_ends_s: float | None = None
        """When the owner's lease is over, should it not move again."""
        self._stands_s: float | None = None
        """When this node stands; None: there is no vacancy."""
        self._stands_by_s: float | None = None
        """When this node stands by, beside an owner that it cannot reach; None: it can."""
        self.floor = Stamp()
        """R5: no coordinator of an earlier term is to be believed, by what was read so far."""

    @property
    def nodes(self) -> int:
        """How many nodes the run has, dead or alive, as far as this one can know."""
        register = self._register
        if register is not None and register.round is not None:
            return max(1, register.round.nodes)
        settings = register.settings if register is not None else None
        if settings is None:
            return self._expected
        return settings.expected_nodes or settings.min_nodes

    def next_tick_s(self) -> float | None:
        """When `tick` has something to do; None while nothing is sought."""
        return self._look_again_s

    def seek(self, now_s: float, jitter: float) -> None:
        """There is no coordinator. Looks at once if the run is small, else within `look_s`."""
        self._open, self._stands_s, self._stands_by_s = None, None, None
        self._look_again_s = now_s + self._spread_s() * jitter

    def seek_again(self, now_s: float, jitter: float) -> None:
        """Who was found could not be attached to. Looks when its lease may be over, or before."""
        self._open = None
        self._rest(now_s, jitter)

    def stands_by(self, now_s: float, chance: float) -> bool:
        """Whether to be a candidate though the run has an owner, as that cannot be reached.

        To be asked whenever a dial has failed. A coordinator behind a firewall keeps its lease, and
        yields only to a process that it sees stand by (`resignation`). Nodes wait for the ttl
        first, as most owners that do not answer are dead, and then stand as for a vacancy: about
        `candidates` of them, by `chance`, drawn from [0, 1).
        """
        if self._stands_by_s is None:
            doubling_s = self._doubling_s()
            drawn_s = stands_after_s(chance, self.nodes, self.candidates, doubling_s)
            self._stands_by_s = now_s + self.timing.ttl_s + drawn_s
        return now_s >= self._stands_by_s

    def look_now(self, now_s: float, jitter: float = 0.0) -> None:
        """The engine says that the register has changed, to all nodes at once."""
        if self._look_again_s is not None:
            self._look_again_s = min(self._look_again_s, now_s + self._spread_s() * jitter)

    def tick(self, now_s: float, jitter: float) -> list[DiscoveryAction]:
        """Look, or ask again what was not answered."""
        if self._look_again_s is None or now_s < self._look_again_s:
            return []
        if self._open is None:
            self._ticket += 1
            self._open, self._asked_s = ReadRun(self._ticket), now_s
        self._rest(now_s, jitter)
        return [self._open]

    def run_read(
        self, asked: ReadRun, found: Versioned | None, now_s: float, jitter: float
    ) -> list[DiscoveryAction]:
        """What the run's register holds. Raises UnreadableError; it will look again."""
        if asked != self._open:
            return []
        self._answer_s = now_s - self._asked_s
        self._register = None if found is None else decode_run(found.value)
        self._open = None
        self._raise_floor(is_ended=self._register is not None and not self._register.owner)
        if self._register is not None and self._register.close is not None:
            self._look_again_s = None
            return [RunOver(self._register.close)]
        if self._register is None or not self._register.owner:
            return self._nobody(now_s, jitter)
        self._ticket += 1
        self._open = ReadLease(self._register.owner, self._ticket)
        self._rest(now_s, jitter)
        return [self._open]

    def lease_read(
        self, asked: ReadLease, found: Versioned | None, now_s: float, jitter: float
    ) -> list[DiscoveryAction]:
        """What the owner's lease says. Raises UnreadableError; it will look again."""
        if asked != self._open or self._register is None:
            return []
        lease = None if found is None else lease_of(asked.process, found)
        addresses = where(self._register, lease)
        self._open = None
        self._raise_floor(is_ended=lease is not None and lease.state is not LeaseState.SERVING)
        if found is None or lease is None or addresses is None:
            return self._nobody(now_s, jitter)
        seen = self._still.seen(asked.process, found.version, now_s)
        # The lease's own ttl: its process renews by that one, whatever this node is set to.
        self._lease_ends_s = seen.since_s + lease.ttl_s
        if now_s >= self._lease_ends_s:
            return self._nobody(now_s, jitter, seen)
        self._stands_s = self._look_again_s = None
        return [AttachTo(addresses, asked.process, self._register.stamp)]

    def _nobody(
        self, now_s: float, jitter: float, seen: Seen | None = None
    ) -> list[DiscoveryAction]:
        self._lease_ends_s = None
        if self._stands_s is None:
            after_s = stands_after_s(jitter, self.nodes, self.candidates, self._doubling_s())
            self._stands_s = now_s + after_s
        self._rest(now_s, jitter)
        return [BecomeCandidate(seen)] if now_s >= self._stands_s else []

    def _doubling_s(self) -> float:
        """An engine that is slow to answer is slow to show who stands."""
        return max(self.timing.ttl_s / DOUBLINGS_PER_TTL, 2 * self._answer_s)

    def _raise_floor(self, *, is_ended: bool) -> None:
        """`is_ended`: the term of the register is over for good, and its owner replaced."""
        if self._register is not None:
            term = self._register.term + is_ended
            self.floor = Stamp(self._register.ledger_id, term, 0)

    def _spread_s(self) -> float:
        return min(self.look_s, self.nodes / LOOKS_PER_S)

    def _rest(self, now_s: float, jitter: float) -> None:
        """Look again in a while, and in any case when there may be something to do."""
        often_s = max(self.look_s, min(self.nodes / LOOKS_PER_S, self.timing.ttl_s))
        due_s = [now_s + often_s * (0.5 + jitter)]
        for then_s in (self._lease_ends_s, self._stands_s):
            if then_s is not None and then_s > now_s:
                due_s.append(then_s)
        self._look_again_s = min(due_s)
