"""Who coordinates a run: leases, terms, takeover and stepping down. Pure, as all of `core/`.

There are two kinds of register. A *lease* belongs to one coordinator process, however many runs it
has: a beat that advances, and where the process listens. A *run's register* says which process
owns the run, since which term, and what was last committed. Whoever sees a lease stand still for
`ttl_s` on its own clock may revoke it (a swap), and may then make a run of that process its own
(another swap, with the next term). That second swap is the seal: whatever the former owner still
tries to commit names a version that is gone (R5). Safety rests on the swaps alone; the times only
say when it is worth trying.

Answers of the engine may be lost, late, repeated or in conflict. The discipline: after an unknown
outcome only the same bytes are tried again, until the version moves; then what is there counts.

`LeaseHolder` keeps one process's own lease, `Claim` its claim to one run. Both take answers and
ticks and return actions; who carries those out is not known here, nor whether the engine keeps the
two registers in one blob.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

import msgspec

from rallypoint.core.values import (
    Address,
    CloseRecord,
    RoundRecord,
    RunSettings,
    Stamp,
    Value,
)

FORMAT: Final = 1
"""The format of what is written. A reader refuses a newer one."""


class LeaseState(enum.StrEnum):
    """What a lease says of its process."""

    SERVING = "serving"
    MOVING = "moving"
    """The process is going, and has let go of its runs: no need to wait for the ttl."""
    REVOKED = "revoked"


class Lease(Value, frozen=True):
    """A coordinator process's lease. (process, beat) is its writer's nonce and sequence."""

    format: int
    process: str
    beat: int
    state: LeaseState = LeaseState.SERVING
    addresses: tuple[Address, ...] = ()
    revoked_by: str = ""


class RunRegister(Value, frozen=True):
    """A run's register. (owner, sequence) is its writer's nonce and sequence.

    `owner` is a process, or "" when the last one has let go.
    """

    format: int
    ledger_id: str
    run_id: str
    term: int
    owner: str
    sequence: int = 0
    settings: RunSettings | None = None
    round: RoundRecord | None = None
    close: CloseRecord | None = None
    restarts: int = 0

    @property
    def number(self) -> int:
        """The number of the last committed round; 0 before the first."""
        return self.round.head.number if self.round else 0

    @property
    def stamp(self) -> Stamp:
        """What messages of this owner carry."""
        return Stamp(self.ledger_id, self.term, self.number)


class UnreadableError(Exception):
    """A register's bytes are not ours, damaged, or of a newer format. The text says which."""


def encode(value: Lease | RunRegister) -> bytes:
    """The bytes of a register's value."""
    return msgspec.msgpack.encode(value)


def decode_lease(data: bytes) -> Lease:
    """A lease. Raises UnreadableError."""
    lease = _decode(data, Lease)
    assert isinstance(lease, Lease)
    return lease


def decode_run(data: bytes) -> RunRegister:
    """A run's register. Raises UnreadableError."""
    register = _decode(data, RunRegister)
    assert isinstance(register, RunRegister)
    return register


def _decode(data: bytes, kind: type[Lease] | type[RunRegister]) -> Lease | RunRegister:
    try:
        (found,) = msgspec.msgpack.decode(data, type=list)[:1] or (None,)
    except (msgspec.DecodeError, TypeError) as error:
        raise UnreadableError(f"this is no {kind.__name__} of Rallypoint: {error}") from error
    if not isinstance(found, int) or isinstance(found, bool):
        raise UnreadableError(f"this is no {kind.__name__} of Rallypoint: it has no format")
    if found > FORMAT:
        raise UnreadableError(
            f"format {found} was written by a newer release; this one reads up to {FORMAT}"
        )
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnreadableError(f"this {kind.__name__} is damaged: {error}") from error


# -- what the engine answers ---------------------------------------------------------------------


class Found(Value, frozen=True):
    """What a register holds, and the version that a swap must name."""

    value: bytes
    version: int


class Done(Value, frozen=True):
    """The swap was done."""

    version: int


class Lost(Value, frozen=True):
    """The swap was not done: `current` is there instead (None: nothing)."""

    current: Found | None


class Unclear(Value, frozen=True):
    """The engine did not say whether the swap was done."""

    reason: str


Outcome: TypeAlias = Done | Lost | Unclear


# -- what is wanted ------------------------------------------------------------------------------


class ReadRun(Value, frozen=True):
    """Read the run's register, and answer by `Claim.run_read`."""


class ReadLease(Value, frozen=True):
    """Read a process's lease, and answer by `Claim.lease_read`."""

    process: str


class SwapRun(Value, frozen=True):
    """Swap the run's register, and answer by `Claim.run_swapped`."""

    expected: int | None
    value: bytes


class SwapLease(Value, frozen=True):
    """Swap a process's lease, and answer by `LeaseHolder.swapped` or `Claim.lease_swapped`."""

    process: str
    expected: int | None
    value: bytes


class Won(Value, frozen=True):
    """The run is this process's from now on. Its log's tail is to be sealed before it serves."""

    register: RunRegister
    version: int


class Elsewhere(Value, frozen=True):
    """Another live process owns the run; its nodes attach there."""

    addresses: tuple[Address, ...]
    process: str


Action: TypeAlias = ReadRun | ReadLease | SwapRun | SwapLease | Won | Elsewhere


# -- one's own lease -----------------------------------------------------------------------------


class Timing(Value, frozen=True, kw_only=True):
    """Durations of the election, in seconds.

    `margin_s`: how much earlier than the ttl a holder stops to decide; it bears the difference
    between two clocks' rates and the time that a decision takes to leave.
    """

    ttl_s: float = 3.0
    margin_s: float = 0.5
    renew_s: float = 1.0
    retry_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.renew_s < self.ttl_s - self.margin_s or self.margin_s <= 0:
            raise ValueError(
                f"a lease of {self.ttl_s:g} s must be renewed (every {self.renew_s:g} s) before its "
                f"margin of {self.margin_s:g} s begins"
            )


class _Try(msgspec.Struct):
    """A swap whose outcome is not known yet."""

    expected: int | None
    value: bytes
    first_sent_s: float
    last_sent_s: float


class LeaseHolder:
    """One process's own lease. A lost lease is lost for good: the process takes a new name."""

    def __init__(self, process: str, addresses: tuple[Address, ...], timing: Timing) -> None:
        self.process = process
        self.addresses = addresses
        self.timing = timing
        self.lost_reason = ""
        self._beat = 0
        self._version: int | None = None
        self._try: _Try | None = None
        self._renewed_s: float | None = None
        self._silent_since_s: float | None = None
        self._is_moving = False
        self._written = LeaseState.SERVING

    # -- what can be asked ---------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        """Whether somebody has revoked it."""
        return bool(self.lost_reason)

    @property
    def beat(self) -> int:
        """How often it was renewed."""
        return self._beat

    def may_decide(self, now_s: float) -> bool:
        """Whether the last renewal *was sent* less than the ttl, minus the margin, ago."""
        if self.is_lost or self._renewed_s is None:
            return False
        return now_s - self._renewed_s < self.timing.ttl_s - self.timing.margin_s

    def silent_s(self, now_s: float) -> float | None:
        """For how long the engine has not answered; None if it does."""
        return None if self._silent_since_s is None else now_s - self._silent_since_s

    def next_tick_s(self, now_s: float) -> float:
        """When `tick` has something to do."""
        if self._try is not None:
            return self._try.last_sent_s + self.timing.retry_s
        return now_s if self._renewed_s is None else self._renewed_s + self.timing.renew_s

    # -- what happens --------------------------------------------------------------------------

    def tick(self, now_s: float) -> list[Action]:
        """Take the lease, renew it, or repeat the last try."""
        if self.is_lost or now_s < self.next_tick_s(now_s):
            return []
        if self._try is not None:
            self._try.last_sent_s = now_s
            return [SwapLease(self.process, self._try.expected, self._try.value)]
        return self._write(now_s)

    def hand_over(self, now_s: float) -> list[Action]:
        """Say that the process is going: its runs may be taken at once."""
        self._is_moving = True
        return [] if self.is_lost or self._try is not None else self._write(now_s)

    def swapped(self, value: bytes, outcome: Outcome, now_s: float) -> list[Action]:
        """The engine's answer to a try of these bytes: also a late or a repeated one."""
        if self._try is None or value != self._try.value:
            return []
        if isinstance(outcome, Unclear):
            if self._silent_since_s is None:
                self._silent_since_s = self._try.first_sent_s
            return []
        if isinstance(outcome, Done):
            return self._renewed(outcome.version, now_s)
        if outcome.current is not None and outcome.current.value == value:
            return self._renewed(outcome.current.version, now_s)
        self._lose(outcome.current)
        return []

    def _write(self, now_s: float) -> list[Action]:
        self._beat += 1
        self._written = LeaseState.MOVING if self._is_moving else LeaseState.SERVING
        value = encode(Lease(FORMAT, self.process, self._beat, self._written, self.addresses))
        self._try = _Try(self._version, value, now_s, now_s)
        return [SwapLease(self.process, self._version, value)]

    def _renewed(self, version: int, now_s: float) -> list[Action]:
        assert self._try is not None
        self._version = version
        self._renewed_s = self._try.first_sent_s
        self._try = None
        self._silent_since_s = None
        # A hand-over may have begun while a renewal was out.
        has_told = not self._is_moving or self._written is LeaseState.MOVING
        return [] if has_told else self._write(now_s)

    def _lose(self, current: Found | None) -> None:
        self._try = None
        self._renewed_s = None
        self.lost_reason = "its lease is gone"
        if current is not None:
            try:
                by = decode_lease(current.value).revoked_by
            except UnreadableError as error:
                self.lost_reason = f"its lease was overwritten: {error}"
            else:
                self.lost_reason = f"its lease was revoked by {by or 'somebody'}"


# -- a claim to a run ----------------------------------------------------------------------------


class ClaimState(enum.StrEnum):
    """How far a claim has come."""

    IDLE = "idle"
    READING = "reading"
    JUDGING = "judging"
    """Another process owns the run; is its lease alive?"""
    REVOKING = "revoking"
    ADOPTING = "adopting"
    OWNED = "owned"
    ELSEWHERE = "elsewhere"
    """The owner is alive, as far as can be seen; looked at again while anybody wants the run."""


class Claim:
    """One process's claim to one run. `holder` is the process's own lease.

    `want` begins; `tick` looks again; answers bring it on. At most one action is outstanding, and
    an answer that does not belong to the state is late, and ignored.
    """

    def __init__(self, run_id: str, ledger_id: str, holder: LeaseHolder) -> None:
        self.run_id = run_id
        self.ledger_id = ledger_id
        self.state = ClaimState.IDLE
        self.register: RunRegister | None = None
        self.version: int | None = None
        self.not_before_s = 0.0
        self._holder = holder
        self._owner_version: int | None = None
        self._owner_seen_s = 0.0
        self._try: _Try | None = None
        self._look_again_s: float | None = None

    def want(self, now_s: float) -> list[Action]:
        """A node of the run is here, or this process would coordinate it."""
        if self.state is not ClaimState.IDLE or now_s < self.not_before_s:
            return []
        self.state = ClaimState.READING
        self._look_again_s = now_s + self._holder.timing.retry_s
        return [ReadRun()]

    def next_tick_s(self) -> float | None:
        """When `tick` has something to do; None if never by itself."""
        return self._look_again_s

    def tick(self, now_s: float) -> list[Action]:
        """Look again at an owner that may be dead; repeat what was not answered."""
        if self._look_again_s is None or now_s < self._look_again_s:
            return []
        self._look_again_s = now_s + self._holder.timing.retry_s
        if self._try is not None:
            # The discipline: only the same bytes again, until the version moves.
            return [SwapRun(self._try.expected, self._try.value)]
        if self.state is ClaimState.OWNED:
            return []
        self.state = ClaimState.READING
        return [ReadRun()]

    # -- answers -------------------------------------------------------------------------------

    def run_read(self, found: Found | None, now_s: float) -> list[Action]:
        """What the run's register holds. Raises UnreadableError."""
        if self.state is not ClaimState.READING:
            return []
        if found is None:
            self.register, self.version = None, None
            return self._adopt(now_s)
        self.register, self.version = decode_run(found.value), found.version
        if self.register.owner == self._holder.process:
            return self._won()
        if not self.register.owner:
            return self._adopt(now_s)
        self.state = ClaimState.JUDGING
        return [ReadLease(self.register.owner)]

    def lease_read(self, found: Found | None, now_s: float) -> list[Action]:
        """What the owner's lease says. Raises UnreadableError."""
        if self.state is not ClaimState.JUDGING or self.register is None:
            return []
        if found is None:
            return self._adopt(now_s)
        lease = decode_lease(found.value)
        if lease.state is not LeaseState.SERVING:
            return self._adopt(now_s)
        if found.version != self._owner_version:
            self._owner_version, self._owner_seen_s = found.version, now_s
        if now_s - self._owner_seen_s >= self._holder.timing.ttl_s:
            return self._revoke(lease)
        self.state = ClaimState.ELSEWHERE
        self._look_again_s = now_s + self._holder.timing.ttl_s / 3
        return [Elsewhere(lease.addresses, lease.process)]

    def lease_swapped(self, outcome: Outcome, now_s: float) -> list[Action]:
        """Whether the former owner's lease could be revoked."""
        if self.state is not ClaimState.REVOKING:
            return []
        if isinstance(outcome, Done):
            return self._adopt(now_s)
        # It was renewed after all, revoked by another, or nobody knows: look again.
        self.state = ClaimState.READING
        self._look_again_s = now_s + self._holder.timing.retry_s
        return [ReadRun()]

    def run_swapped(self, value: bytes, outcome: Outcome, now_s: float) -> list[Action]:
        """Whether the run could be made this process's: also a late or a repeated answer."""
        if self._try is None or value != self._try.value:
            return []
        if isinstance(outcome, Unclear):
            return []
        if isinstance(outcome, Done):
            self.version = outcome.version
        elif outcome.current is not None and outcome.current.value == value:
            self.version = outcome.current.version
        else:
            self._try = None
            self.state = ClaimState.READING
            return self.run_read(outcome.current, now_s)
        self._try = None
        self.register = decode_run(value)
        return self._won()

    def deposed(self, now_s: float, pause_s: float = 0.0) -> None:
        """The run is no longer this process's: by another's seal, or because it yields."""
        self.state = ClaimState.IDLE
        self.register, self.version, self._try = None, None, None
        self._owner_version, self._look_again_s = None, None
        self.not_before_s = now_s + pause_s

    # -- steps ---------------------------------------------------------------------------------

    def _adopt(self, now_s: float) -> list[Action]:
        """Seal the run's register with the next term. Only whose own lease is good may try."""
        if not self._holder.may_decide(now_s):
            self.state = ClaimState.READING
            self._look_again_s = now_s + self._holder.timing.retry_s
            return []
        value = encode(self._sealed())
        self.state = ClaimState.ADOPTING
        self._try = _Try(self.version, value, now_s, now_s)
        self._look_again_s = now_s + self._holder.timing.retry_s
        return [SwapRun(self.version, value)]

    def _sealed(self) -> RunRegister:
        process = self._holder.process
        if self.register is None:
            return RunRegister(FORMAT, self.ledger_id, self.run_id, 1, process)
        return msgspec.structs.replace(
            self.register, term=self.register.term + 1, owner=process, sequence=0
        )

    def _revoke(self, lease: Lease) -> list[Action]:
        self.state = ClaimState.REVOKING
        revoked = Lease(
            FORMAT,
            lease.process,
            lease.beat,
            LeaseState.REVOKED,
            (),
            revoked_by=self._holder.process,
        )
        return [SwapLease(lease.process, self._owner_version, encode(revoked))]

    def _won(self) -> list[Action]:
        assert self.register is not None
        assert self.version is not None
        self.state = ClaimState.OWNED
        self._look_again_s = None
        return [Won(self.register, self.version)]


# -- giving up an office that nobody can reach ---------------------------------------------------


class Yielding:
    """When a coordinator that was elected, but that nobody can reach, should let another try.

    A firewall or a wrong interface shows only after the election. `after_s`: how long it waits for
    anybody; then it lets go of the run and stays away, each time twice as long (up to 2**6 times).
    """

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self._since_s: float | None = None
        self._times = 0

    def won(self, now_s: float) -> None:
        """The office begins."""
        self._since_s = now_s

    def reached(self) -> None:
        """A node of another process has come through: this office can be reached."""
        self._since_s = None
        self._times = 0

    def should_yield(self, now_s: float) -> bool:
        """Whether nobody has come for too long."""
        return self._since_s is not None and now_s - self._since_s >= self.after_s

    def pause_s(self) -> float:
        """How long to stay away after yielding now, in seconds."""
        self._since_s = None
        self._times += 1
        return self.after_s * float(2 ** min(self._times, 6))
