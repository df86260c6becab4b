"""A lease, a claim and their values, for tests of the election that give each answer themselves.

What must not be here: a test, or a choice of what the ledger answers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rallypoint.core import election as e
from rallypoint.core.values import (
    Address,
    CloseRecord,
    NodeId,
    Outcome,
    RoundHead,
    RoundMember,
)

TIMING = e.Timing(ttl_s=3.0, margin_s=0.5, renew_s=1.0, retry_s=0.5)
HERE = (Address("me", 1),)
THERE = (Address("other", 2),)
CLOSE = CloseRecord(Outcome.SUCCEEDED, "trained")


def holder(process: str = "me", node: NodeId | None = None) -> e.LeaseHolder:
    return e.LeaseHolder(process, (Address(process, 1),), TIMING, node=node)


def good(now_s: float = 0.0, process: str = "me", node: NodeId | None = None) -> e.LeaseHolder:
    """A lease that was taken now."""
    taken = holder(process, node)
    taken.swapped(swap_of(taken.tick(now_s)), e.Swapped(1), now_s)
    assert taken.may_decide(now_s)
    return taken


def keep(lease: e.LeaseHolder, now_s: float) -> None:
    """The lease is renewed and lets its process decide at this time."""
    version = lease.beat + 1
    lease.swapped(swap_of(lease.tick(now_s)), e.Swapped(version), now_s)
    assert lease.may_decide(now_s)


def swap_of(actions: list[e.Action]) -> e.SwapLease:
    (swap,) = actions
    assert isinstance(swap, e.SwapLease)
    return swap


def run_swap_of(actions: list[e.Action]) -> e.SwapRun:
    (swap,) = actions
    assert isinstance(swap, e.SwapRun)
    return swap


def lease_in(swap: e.SwapLease) -> e.Lease:
    return e.decode_lease(swap.value)


def revoked(process: str = "me", beat: int = 1, by: str = "other") -> e.Lease:
    return e.Lease(e.FORMAT, process, beat, e.LeaseState.REVOKED, (), by, ttl_s=TIMING.ttl_s)


def serving(process: str = "other", beat: int = 1) -> e.Lease:
    return e.Lease(e.FORMAT, process, beat, addresses=(Address(process, 2),), ttl_s=TIMING.ttl_s)


def moving(process: str = "other", beat: int = 2) -> e.Lease:
    return e.Lease(e.FORMAT, process, beat, e.LeaseState.MOVING, (Address(process, 2),))


def register(owner: str = "other", term: int = 4, **changes: Any) -> e.RunRegister:
    return e.RunRegister(e.FORMAT, "ledger", "run", term, owner, **changes)


def a_round(number: int, *names: str, term: int = 4) -> RoundHead:
    return RoundHead(number, term, len(names), len(names), Address("host", 1), "digest")


def a_table(*names: str) -> e.Table:
    return e.Table(rows=tuple(RoundMember(name, 1, "host", (), 1) for name in names))


def found(value: e.Lease | e.RunRegister, version: int = 7) -> e.Versioned:
    return e.Versioned(e.encode(value), version)


class UnderNoFloor(e.Claim):
    """A ledger without removed runs: a question for the floor is answered at once."""

    answers_floor = True

    def _ask(self, state: e.ClaimState, question: Any, now_s: float) -> list[e.Action]:
        asked = super()._ask(state, question, now_s)
        if isinstance(question, e.ReadFloor) and self.answers_floor:
            return self.floor_read(question, None, now_s)
        return asked


class Claimant:
    """A claim and the lease of its process. The test gives the answers."""

    def __init__(self, process: str = "me", lease: e.LeaseHolder | None = None) -> None:
        self.lease = lease or good(0.0, process)
        self.claim = UnderNoFloor("run", "ledger", self.lease)

    def read_run(self, now_s: float) -> e.ReadRun:
        """Begin, or look again."""
        idle = self.claim.state is e.ClaimState.IDLE
        (asked,) = self.claim.begin(now_s) if idle else self.claim.tick(now_s)
        assert isinstance(asked, e.ReadRun)
        return asked

    def sees(self, value: e.RunRegister | None, now_s: float, version: int = 7) -> list[e.Action]:
        """Read the head, and find this."""
        there = None if value is None else found(value, version)
        return self.claim.run_read(self.read_run(now_s), there, now_s)

    def judges(
        self,
        owner: e.Lease | None,
        now_s: float,
        version: int = 3,
        run: e.RunRegister | None = None,
    ) -> list[e.Action]:
        """Read the head, and find this lease of its owner."""
        (asked,) = self.sees(run or register(), now_s)
        assert isinstance(asked, e.ReadLease)
        there = None if owner is None else found(owner, version)
        return self.claim.lease_read(asked, there, now_s)

    def wins(self, now_s: float = 0.0, run: e.RunRegister | None = None) -> e.RunRegister:
        """Become the owner of the run."""
        swap = run_swap_of(self.sees(run, now_s))
        (won,) = self.claim.run_swapped(swap, e.Swapped(8), now_s)
        assert isinstance(won, e.Elected)
        assert won == e.Elected(e.decode_run(swap.value), 8)
        return won.register


HOSTED = msgspec.structs.replace(serving(), node=NodeId("n", 5))


def fields_of(value: e.Lease | e.RunRegister) -> list[Any]:
    raw: list[Any] = msgspec.msgpack.decode(e.encode(value))
    return raw
