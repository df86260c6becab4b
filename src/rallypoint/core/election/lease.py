"""The lease of this process, kept by `LeaseHolder`; and how to read another process's lease.

The package's docstring says why a lease is safe. Runs and their owners are in `ownership`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rallypoint.core.election.actions import (
    Action,
    SwapLease,
    version_of,
)
from rallypoint.core.election.records import (
    FORMAT,
    Lease,
    LeaseState,
    UnreadableError,
    decode_lease,
    encode,
)
from rallypoint.core.registers import Conflict, SwapOutcome, Versioned
from rallypoint.core.values import (
    Address,
    FrozenStruct,
    NodeId,
)

HURRIED_S: Final = 1.0
"""The least time between two renewals, in seconds, if one is wanted before it is due."""


class Timing(FrozenStruct, frozen=True, kw_only=True):
    """Durations of the election, in seconds.

    `ttl_s`: the time without a renewal after which others may revoke the lease.
    `margin_s`: how much earlier the holder stops to decide. It covers the difference between the
    rates of two clocks, and the time until a decision has left the process.
    `renew_s`: the time from one renewal to the next. `retry_s`: the time until a question or swap
    without an answer is sent again.

    Raises:
        ValueError: from the constructor, naming the durations that do not fit together.
    """

    ttl_s: float = 5.0
    margin_s: float = 5.0 / 6
    renew_s: float = 5.0 / 3
    retry_s: float = 5.0 / 6

    @classmethod
    def of(cls, ttl_s: float) -> Timing:
        """The usual durations for a lease with this ttl."""
        return cls(ttl_s=ttl_s, margin_s=ttl_s / 6, renew_s=ttl_s / 3, retry_s=ttl_s / 6)

    def __post_init__(self) -> None:
        if not (0 < self.renew_s < self.ttl_s - self.margin_s and self.margin_s > 0):
            raise ValueError(
                f"a lease of {self.ttl_s:g} s must be renewed, every {self.renew_s:g} s, "
                f"before its margin of {self.margin_s:g} s begins"
            )
        if not 0 < self.retry_s < float("inf"):
            raise ValueError(f"retry_s must be more than 0 seconds, not {self.retry_s}")


class _Try(FrozenStruct, frozen=True):
    """A swap whose outcome is not known yet."""

    swap: SwapLease
    state: LeaseState
    first_sent_s: float


class LeaseHolder:
    """The lease of this process. A lost lease is never regained: the process takes a new name.

    `process` must be drawn at random. A process with a name that was used before would mistake the
    earlier process's bytes for its own.

    No method waits or reads a clock: `now_s` is the process's monotonic clock, in seconds.
    """

    def __init__(
        self,
        process: str,
        addresses: tuple[Address, ...],
        timing: Timing,
        *,
        only_run: str = "",
        token: str = "",
        node: NodeId | None = None,
    ) -> None:
        self.process = process
        self.addresses = addresses
        self.only_run = only_run
        self.token = token
        self.node = node
        self.timing = timing
        self.lost_reason = ""
        self.was_revoked_early = False
        """Whether the lease was revoked before its ttl had passed."""
        self.has_moved = False
        """Whether the ledger has the end of the process, so that nothing is left to do."""
        self._beat = 0
        self._renewals = 0
        self._version: int | None = None
        self._try: _Try | None = None
        self._last_sent_s = 0.0
        self._renewed_s: float | None = None
        self._is_moving = False
        self._is_hurried = False

    # -- queries -------------------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        """Whether another process has revoked the lease."""
        return bool(self.lost_reason)

    @property
    def beat(self) -> int:
        """How many renewals are known to be in the ledger."""
        return self._renewals

    def may_decide(self, now_s: float) -> bool:
        """Whether this process may decide for its runs.

        It may decide for the ttl minus the margin, counted from when the last confirmed renewal
        *was sent*. After `hand_over` it may never decide again, because others may take over its
        runs at once.
        """
        # R5: not without a renewal, nor after the lease was given away.
        if self.is_lost or self._is_moving or self._renewed_s is None:
            return False
        # R5: it stops before another process may take over.
        return now_s - self._renewed_s < self.timing.ttl_s - self.timing.margin_s

    def renewed_ago_s(self, now_s: float) -> float:
        """How many seconds ago the last confirmed renewal was sent; 0 if there was none."""
        return 0.0 if self._renewed_s is None else now_s - self._renewed_s

    def was_renewed_since(self, since_s: float) -> bool:
        """Whether a renewal that was sent after this moment is confirmed."""
        # R5: sent afterwards, so no process had revoked it until then.
        return self._renewed_s is not None and self._renewed_s > since_s

    def next_tick_s(self, now_s: float) -> float | None:
        """When to call `tick` next; None: never again."""
        if self.is_lost or self.has_moved:
            return None
        if self._try is not None:
            return self._last_sent_s + self.timing.retry_s
        if self._renewed_s is None:
            return now_s
        gap_s = min(HURRIED_S, self.timing.renew_s) if self._is_hurried else self.timing.renew_s
        return self._renewed_s + gap_s

    # -- events --------------------------------------------------------------------------------

    def tick(self, now_s: float) -> list[Action]:
        """Write the lease for the first time, renew it, or repeat a write without an answer."""
        next_s = self.next_tick_s(now_s)
        if next_s is None or now_s < next_s:
            return []
        if self._try is None:
            return self._write(now_s)
        self._last_sent_s = now_s
        # R5: the same bytes, until the outcome is known.
        return [self._try.swap]

    def renew_soon(self) -> None:
        """Renew before it is due: some node may take this process for ended."""
        self._is_hurried = True

    def hand_over(self, now_s: float) -> list[Action]:
        """Write that the process is ending, so that its runs may be taken over at once. Idempotent.

        Call `tick` until `has_moved`. Commits should be finished before.
        """
        if self.is_lost or self._is_moving:
            return []
        # R5: from now on it decides nothing.
        self._is_moving = True
        # R1: one write at a time.
        if self._try is not None:
            return []  # The outcome of this swap must be known before another value may be written.
        if self._version is None:
            self.has_moved = True
            return []
        return self._write(now_s)

    def swapped(self, asked: SwapLease, outcome: SwapOutcome, now_s: float) -> list[Action]:
        """The engine's answer to this swap, which may be late or repeated."""
        # R5: an answer to an old swap has no effect.
        if self._try is None or asked != self._try.swap:
            return []
        version = version_of(asked, outcome)
        # R5: renewed only if the ledger has these bytes.
        if version is not None:
            return self._renewed(self._try, version, now_s)
        # R5: another process has revoked it.
        if isinstance(outcome, Conflict):
            self._try, self._renewed_s = None, None
            self.lost_reason = _why_lost(outcome.current)
            self.was_revoked_early = was_revoked_early(outcome.current)
        return []

    def _write(self, now_s: float) -> list[Action]:
        # R5: no two writes have the same bytes.
        self._beat += 1
        state = LeaseState.MOVING if self._is_moving else LeaseState.SERVING
        lease = Lease(
            FORMAT,
            self.process,
            self._beat,
            state,
            self.addresses,
            only_run=self.only_run,
            token=self.token,
            ttl_s=self.timing.ttl_s,
            node=self.node,
        )
        value = encode(lease)
        self._try = _Try(SwapLease(self.process, self._version, value), state, now_s)
        self._last_sent_s = now_s
        return [self._try.swap]

    def _renewed(self, done: _Try, version: int, now_s: float) -> list[Action]:
        self._version = version
        # R5: counted from when it was first sent, not from the answer.
        self._renewed_s = done.first_sent_s
        self._renewals += 1
        self._try = None
        self._is_hurried = False
        self.has_moved = done.state is LeaseState.MOVING
        # A hand-over may have begun while this renewal had no answer.
        return self._write(now_s) if self._is_moving and not self.has_moved else []


def _why_lost(current: Versioned | None) -> str:
    if current is None:
        return "its lease is gone"
    try:
        lease = decode_lease(current.value)
    except UnreadableError as error:
        return f"its lease was overwritten: {error}"
    if lease.state is LeaseState.REVOKED:
        return f"its lease was revoked by {lease.revoked_by or 'somebody'}"
    return f"its lease was written by another process with the name {lease.process}"


def was_revoked_early(current: Versioned | None) -> bool:
    """Whether this lease was revoked before its ttl had passed. False if it cannot be read."""
    try:
        return current is not None and decode_lease(current.value).is_early
    except UnreadableError:
        return False


class Seen(FrozenStruct, frozen=True):
    """Since when a lease has been at this version, by the clock of the process that looks (R9)."""

    process: str
    version: int
    since_s: float


class Standstill:
    """Since when one lease has not changed, as far as this process has seen."""

    def __init__(self) -> None:
        self._seen: Seen | None = None

    @property
    def last(self) -> Seen | None:
        """The lease that was seen last."""
        return self._seen

    def seen(self, process: str, version: int, now_s: float) -> Seen:
        """Record that the lease is at this version now. Returns since when it has been."""
        known = self._seen
        # R9: any change begins the time anew.
        if known is None or (known.process, known.version) != (process, version):
            known = self._seen = Seen(process, version, now_s)
        return known

    def take_over(self, seen: Seen) -> None:
        """Adopt what another part of this process has seen before, with the same clock."""
        known = self._seen
        # R9: seen by the same clock, in this process.
        if known is None or known.process != seen.process:
            self._seen = seen
        elif known.version == seen.version:
            # R9: the version has stood since the first look at it.
            self._seen = min(known, seen, key=lambda each: each.since_s)
        else:
            # R9: the later look has the newer version.
            self._seen = max(known, seen, key=lambda each: each.since_s)


def lease_of(process: str, found: Versioned) -> Lease:
    """The lease of this process in what was read. Raises UnreadableError, also for another's."""
    lease = decode_lease(found.value)
    # R5: not the lease of another process.
    if lease.process != process:
        raise UnreadableError(f"this is the lease of {lease.process}, not of {process}")
    return lease


def revoked_by(lease: Lease, by: str, *, is_early: bool = False) -> Lease:
    """The lease as the process `by` revokes it. It still names the node that hosted its process.

    `is_early`: before its ttl has passed.
    """
    # R5: a revoked lease leads no node to its process.
    return msgspec.structs.replace(
        lease,
        state=LeaseState.REVOKED,
        addresses=(),
        revoked_by=by,
        token="",
        is_early=is_early,
    )
