"""The node's side of the election: where the coordinator is, and when to become a candidate.

Discovery only reads. `ownership` has the part of a candidate. This file does not decide how a node
attaches.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from rallypoint.core.candidacy import candidate_after_s
from rallypoint.core.election.actions import ReadLease, ReadRun
from rallypoint.core.election.lease import Seen, Standstill, Timing, lease_of
from rallypoint.core.election.records import Lease, LeaseState, RunRegister, decode_run
from rallypoint.core.registers import Versioned
from rallypoint.core.values import (
    Address,
    CloseRecord,
    EndedOwner,
    FrozenStruct,
    Stamp,
)


class AttachTo(FrozenStruct, frozen=True):
    """The run has a coordinator. `lease` is its lease, with the addresses where it listens.

    `stamp`: the node must refuse messages of an older term (R5).
    """

    lease: Lease
    stamp: Stamp


class BecomeCandidate(FrozenStruct, frozen=True):
    """Nobody coordinates the run, and this node should become a candidate.

    `seen`: the owner's lease, if it has to be revoked first. It did not change for its ttl, so a
    candidate in this process need not watch it for that time again.
    `ended`: the owner has ended, as far as this node has seen, so its lease need not expire.
    """

    seen: Seen | None = None
    ended: EndedOwner | None = None


class RunOver(FrozenStruct, frozen=True):
    """The run is closed (R6). There is no coordinator to attach to."""

    close: CloseRecord


DiscoveryAction: TypeAlias = ReadRun | ReadLease | AttachTo | BecomeCandidate | RunOver


def may_take(lease: Lease, run_id: str) -> bool:
    """Whether the process of this lease may coordinate the run, if it is alive."""
    # R5: only a process that still serves.
    return lease.state is LeaseState.SERVING and lease.only_run in ("", run_id)


def where(register: RunRegister | None, lease: Lease | None) -> tuple[Address, ...] | None:
    """Where nodes attach, by a run's head and its owner's lease; None: there is no owner."""
    # R5: the lease of the owner that the head names.
    if register is None or lease is None or lease.process != (register.owner or None):
        return None
    # R5: not of an owner that is going or revoked.
    return lease.addresses if lease.state is LeaseState.SERVING else None


LOOKS_PER_S: Final = 2_000
"""About how often all nodes of a run together look into the ledger. The more nodes there are, the
less often each looks."""
DOUBLINGS_PER_TTL: Final = 10
"""How often within a ttl the number of candidates doubles (see `candidacy`). A candidate becomes
visible after two writes and a read. The ttl is set to suit the ledger, so that these take less than
a tenth of it."""


class Discovery:
    """How a node without a coordinator finds one, and when it becomes a candidate.

    It reads the run's head and its owner's lease, so the cost of one look does not grow with the
    run. `nodes`: how many nodes the run is expected to have, until the head says it.

    The caller draws each `jitter` from [0, 1). So nodes look at different times, and few of them
    become candidates (see `candidacy`), for any set of dead nodes.

    Raises:
        ValueError: from the constructor, if `candidates` or `look_s` is not positive.
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
        """How long the engine took to answer the last time, in seconds."""
        self._register: RunRegister | None = None
        self._look_again_s: float | None = None
        self._lease_ends_s: float | None = None
        """When the owner's lease has expired, unless it changes before."""
        self._candidate_s: float | None = None
        """When this node becomes a candidate; None: the run has an owner."""
        self._ended: EndedOwner | None = None
        """The owner, if it has ended, as far as this node has seen."""
        self._contested_term = 0
        """The last term whose owner has ended, as far as this node has seen."""
        self._beside_owner_s: float | None = None
        """When this node becomes a candidate beside an owner that it cannot reach; None: it can."""
        self.floor = Stamp()
        """R5: by what was read so far, the node accepts no coordinator of an earlier term."""

    @property
    def nodes(self) -> int:
        """The number of the run's nodes, dead or alive, as far as this node knows."""
        register = self._register
        if register is not None and register.round is not None:
            return max(1, register.round.nodes)
        settings = register.settings if register is not None else None
        if settings is None:
            return self._expected
        return settings.expected_nodes or settings.min_nodes

    def next_tick_s(self) -> float | None:
        """When to call `tick` next; None while this node is not looking for a coordinator."""
        return self._look_again_s

    def search(self, now_s: float, jitter: float) -> None:
        """Begin to look for a coordinator: at once if the run is small, else within `look_s`."""
        self._open, self._candidate_s, self._beside_owner_s = None, None, None
        self._ended = None
        self._look_again_s = now_s + self._spread_s() * jitter

    def search_again(self, now_s: float, jitter: float) -> None:
        """The coordinator is out of reach: look again, at the latest when its lease may expire."""
        self._open = None
        self._rest(now_s, jitter)

    def owner_ended(self, now_s: float, jitter: float, refused: Address | None = None) -> bool:
        """The owner that was found last has ended, as far as this node has seen: see EndedOwner.

        Look again at once, and become a candidate soon if its lease has not been renewed since.
        `refused`: its address that refused this node.
        Returns False, and does nothing, if an owner of this term was contested before.
        """
        register, seen = self._register, self._still.last
        if register is None or seen is None or seen.process != register.owner:
            return False
        if register.term <= self._contested_term:
            return False
        self._contested_term = register.term
        self._ended = EndedOwner(seen.process, seen.version, refused)
        self._candidate_s = None
        if self._nobody(now_s, jitter, seen):
            self._look_again_s = now_s
        return True

    def is_candidate_beside_owner(self, now_s: float, chance: float) -> bool:
        """Whether to become a candidate although the run has an owner that is out of reach.

        The caller asks after each failed dial. A coordinator behind a firewall keeps its lease, and
        resigns only if it sees another process that can take over (see `resignation`). Nodes wait
        for the ttl first, because most owners that do not answer are dead. Then about `candidates`
        of them become candidates, by `chance`, which is drawn from [0, 1).
        """
        if self._beside_owner_s is None:
            doubling_s = self._doubling_s()
            drawn_s = candidate_after_s(chance, self.nodes, self.candidates, doubling_s)
            self._beside_owner_s = now_s + self.timing.ttl_s + drawn_s
        return now_s >= self._beside_owner_s

    def look_now(self, now_s: float, jitter: float = 0.0) -> None:
        """The engine has reported a change of the head, to all nodes at once: look soon."""
        if self._look_again_s is not None:
            self._look_again_s = min(self._look_again_s, now_s + self._spread_s() * jitter)

    def tick(self, now_s: float, jitter: float) -> list[DiscoveryAction]:
        """Look, or repeat a question without an answer."""
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
        """The answer to ReadRun. Raises UnreadableError; it will look again."""
        # R5: an answer to an old question has no effect.
        if asked != self._open:
            return []
        self._answer_s = now_s - self._asked_s
        self._register = None if found is None else decode_run(found.value)
        self._open = None
        # R5: the head that was read rules out earlier terms.
        self._raise_floor(is_ended=self._register is not None and not self._register.owner)
        # R6: a closed run has no coordinator.
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
        """The answer to ReadLease. Raises UnreadableError; it will look again."""
        if asked != self._open or self._register is None:
            return []
        lease = None if found is None else lease_of(asked.process, found)
        is_owner = where(self._register, lease) is not None
        self._open = None
        # R5: the term of an owner that is gone is over.
        self._raise_floor(is_ended=lease is not None and lease.state is not LeaseState.SERVING)
        if found is None or lease is None or not is_owner:
            return self._nobody(now_s, jitter)
        seen = self._still.seen(asked.process, found.version, now_s)
        # R9: by this node's clock, from its first look.
        # The ttl is that of the lease, not of this node's settings: its process renews by the
        # lease's.
        self._lease_ends_s = seen.since_s + lease.ttl_s
        # R7: a dead owner is succeeded.
        if now_s >= self._lease_ends_s:
            return self._nobody(now_s, jitter, seen)
        if self._ended is not None and self._ended.is_of(seen.process, seen.version):
            return self._nobody(now_s, jitter, seen, self._ended)
        self._ended = self._candidate_s = self._look_again_s = None
        return [AttachTo(lease, self._register.stamp)]

    def _nobody(
        self,
        now_s: float,
        jitter: float,
        seen: Seen | None = None,
        ended: EndedOwner | None = None,
    ) -> list[DiscoveryAction]:
        self._lease_ends_s = None
        # R7: the time to become a candidate is drawn once for each search.
        if self._candidate_s is None:
            after_s = candidate_after_s(jitter, self.nodes, self.candidates, self._doubling_s())
            self._candidate_s = now_s + after_s
        self._rest(now_s, jitter)
        # R7: some node becomes a candidate, whichever nodes are dead.
        return [BecomeCandidate(seen, ended)] if now_s >= self._candidate_s else []

    def _doubling_s(self) -> float:
        """The time in which the number of candidates doubles: longer with a slow engine."""
        return max(self.timing.ttl_s / DOUBLINGS_PER_TTL, 2 * self._answer_s)

    def _raise_floor(self, *, is_ended: bool) -> None:
        """`is_ended`: the term in the head is over, and another owner will replace its owner."""
        if self._register is not None:
            # R5: the next owner's term is higher.
            term = self._register.term + is_ended
            # R5: nodes refuse older messages.
            self.floor = Stamp(self._register.ledger_id, term, 0)

    def _spread_s(self) -> float:
        return min(self.look_s, self.nodes / LOOKS_PER_S)

    def _rest(self, now_s: float, jitter: float) -> None:
        """Look again after a while, and at each moment at which something may have to be done."""
        often_s = max(self.look_s, min(self.nodes / LOOKS_PER_S, self.timing.ttl_s))
        due_s = [now_s + often_s * (0.5 + jitter)]
        for then_s in (self._lease_ends_s, self._candidate_s):
            if then_s is not None and then_s > now_s:
                due_s.append(then_s)
        self._look_again_s = min(due_s)
