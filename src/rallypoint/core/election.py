"""Who coordinates a run: leases, terms, takeover and stepping down. Pure, as all of `core/`.

There are two kinds of register. A *lease* belongs to one coordinator process, however many runs it
has: a beat that advances, and where the process listens. A *run's register* says which process
owns the run, since which term, and what was last committed. Whoever sees a lease stand still for
`ttl_s` on its own clock may revoke it (a swap), and may then make a run of that process its own
(another swap, with the next term). That second swap is the seal: whatever the former owner still
tries to commit names a version that is gone (R5). Safety rests on the swaps alone; the times only
say when it is worth trying.

What the times add, as long as two clocks' rates differ by less than the margin allows: at every
moment, a process whose claim is OWNED and whose lease lets it decide is the one that the run's
register names, with that term. A lease is final once it is revoked or moving, so reading that is
reason enough to seal. Only such leases may be swept: one that is merely missing is taken for dead.

Answers of the engine may be lost, late, repeated or in conflict. The discipline: after an unknown
outcome only the same bytes are tried again, until the version moves; then what is there counts.

`LeaseHolder` keeps one process's own lease, `Claim` its claim to one run. Both take answers and
ticks and return actions; who carries those out is not known here, nor whether the engine keeps the
two registers in one blob. Every answer comes with the action that it answers, so that one to an
earlier question is known for late. `Seeker` is a node's side: where is the run's coordinator?
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

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

Counter = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class LeaseState(enum.StrEnum):
    """What a lease says of its process. The last two are final."""

    SERVING = "serving"
    MOVING = "moving"
    """The process is going, and has let go of its runs: no need to wait for the ttl."""
    REVOKED = "revoked"


class Lease(Value, frozen=True):
    """A coordinator process's lease. (process, beat) is its writer's nonce and sequence.

    `only_run`: the one run that a node's own coordinator serves; "" is any run. `token`: what it
    asks nodes for that have been given none; whoever may read the ledger may join its runs.
    """

    format: int
    process: str
    beat: Counter
    state: LeaseState = LeaseState.SERVING
    addresses: tuple[Address, ...] = ()
    revoked_by: str = ""
    only_run: str = ""
    token: str = ""

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["token"] = "set" if self.token else ""
        return f"Lease({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class RunRegister(Value, frozen=True):
    """A run's register. (owner, term, sequence) is its writer's nonce and sequence.

    `owner` is a process, or "" when the last one has let go.
    """

    format: int
    ledger_id: str
    run_id: str
    term: Counter
    owner: str
    sequence: Counter = 0
    settings: RunSettings | None = None
    round: RoundRecord | None = None
    close: CloseRecord | None = None
    restarts: Counter = 0

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
    """A lease. Raises UnreadableError, and nothing else, whatever the bytes are."""
    lease = _decode(data, Lease)
    assert isinstance(lease, Lease)
    return lease


def decode_run(data: bytes) -> RunRegister:
    """A run's register. Raises UnreadableError, and nothing else, whatever the bytes are."""
    register = _decode(data, RunRegister)
    assert isinstance(register, RunRegister)
    return register


def _decode(data: bytes, kind: type[Lease] | type[RunRegister]) -> Lease | RunRegister:
    try:
        value = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError(_why_unreadable(data, kind.__name__, error)) from error
    # A newer release may only have added fields: what can be read need not be all there is.
    if not 1 <= value.format <= FORMAT:
        raise UnreadableError(_other_format(value.format))
    return value


def _why_unreadable(data: bytes, kind: str, error: Exception) -> str:
    try:
        (found,) = msgspec.msgpack.decode(data, type=list)[:1] or (None,)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return f"this is no {kind} of Rallypoint: {error}"
    if not isinstance(found, int) or isinstance(found, bool):
        return f"this is no {kind} of Rallypoint: it has no format"
    if not 1 <= found <= FORMAT:
        return _other_format(found)
    return f"this {kind} is damaged: {error}"


def _other_format(found: int) -> str:
    by = "a newer release" if found > FORMAT else "no release"
    return f"format {found} was written by {by}; this one reads 1 to {FORMAT}"


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
    """Read the run's register, and answer by `run_read` of who asked."""

    ticket: int = 0


class ReadLease(Value, frozen=True):
    """Read a process's lease, and answer by `lease_read` of who asked."""

    process: str
    ticket: int = 0


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


class Committed(Value, frozen=True):
    """What `Claim.commit` was given is in the ledger."""

    register: RunRegister
    version: int


class Deposed(Value, frozen=True):
    """The run is no longer this process's."""

    reason: str


class Elsewhere(Value, frozen=True):
    """Another live process owns the run; its nodes attach there."""

    addresses: tuple[Address, ...]
    process: str


Action: TypeAlias = (
    ReadRun | ReadLease | SwapRun | SwapLease | Won | Committed | Deposed | Elsewhere
)


# -- one's own lease -----------------------------------------------------------------------------


class Timing(Value, frozen=True, kw_only=True):
    """Durations of the election, in seconds.

    `margin_s`: how much earlier than the ttl a holder stops to decide; it bears the difference
    between two clocks' rates and the time that a decision takes to leave.

    Raises:
        ValueError: from the constructor, naming the durations that do not fit together.
    """

    ttl_s: float = 3.0
    margin_s: float = 0.5
    renew_s: float = 1.0
    retry_s: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.renew_s < self.ttl_s - self.margin_s and self.margin_s > 0):
            raise ValueError(
                f"a lease of {self.ttl_s:g} s must be renewed, every {self.renew_s:g} s, "
                f"before its margin of {self.margin_s:g} s begins"
            )
        if not 0 < self.retry_s < float("inf"):
            raise ValueError(f"retry_s must be more than 0 seconds, not {self.retry_s}")


class _Try(Value, frozen=True):
    """A swap whose outcome is not known yet."""

    swap: SwapLease
    state: LeaseState
    first_sent_s: float


class LeaseHolder:
    """One process's own lease. A lost lease is lost for good: the process takes a new name.

    `process` must be drawn, never given: a second life of one name would take the first one's
    bytes for its own.
    """

    def __init__(
        self,
        process: str,
        addresses: tuple[Address, ...],
        timing: Timing,
        *,
        only_run: str = "",
        token: str = "",
    ) -> None:
        self.process = process
        self.addresses = addresses
        self.only_run = only_run
        self.token = token
        self.timing = timing
        self.lost_reason = ""
        self.has_moved = False
        """Whether the ledger says that the process is going: nothing is left to be done."""
        self._beat = 0
        self._version: int | None = None
        self._try: _Try | None = None
        self._last_sent_s = 0.0
        self._renewed_s: float | None = None
        self._is_moving = False

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
        """Whether the last renewal *was sent* less than the ttl, minus the margin, ago.

        Never again after `hand_over`: from then on others may take the runs at once.
        """
        if self.is_lost or self._is_moving or self._renewed_s is None:
            return False
        return now_s - self._renewed_s < self.timing.ttl_s - self.timing.margin_s

    def renewed_ago_s(self, now_s: float) -> float:
        """How long ago the last renewal that was answered was sent; 0 if there was none."""
        return 0.0 if self._renewed_s is None else now_s - self._renewed_s

    def next_tick_s(self, now_s: float) -> float | None:
        """When `tick` has something to do; None if never again."""
        if self.is_lost or self.has_moved:
            return None
        if self._try is not None:
            return self._last_sent_s + self.timing.retry_s
        return now_s if self._renewed_s is None else self._renewed_s + self.timing.renew_s

    # -- what happens --------------------------------------------------------------------------

    def tick(self, now_s: float) -> list[Action]:
        """Take the lease, renew it, or repeat the last try."""
        next_s = self.next_tick_s(now_s)
        if next_s is None or now_s < next_s:
            return []
        if self._try is None:
            return self._write(now_s)
        self._last_sent_s = now_s
        return [self._try.swap]

    def hand_over(self, now_s: float) -> list[Action]:
        """Say that the process is going: its runs may be taken at once. Idempotent.

        Until `has_moved`, ticks go on. What is being committed should be done before.
        """
        if self.is_lost or self._is_moving:
            return []
        self._is_moving = True
        if self._try is not None:
            return []  # A renewal is out, and nothing else may be tried before its outcome.
        if self._version is None:
            self.has_moved = True
            return []
        return self._write(now_s)

    def swapped(self, asked: SwapLease, outcome: Outcome, now_s: float) -> list[Action]:
        """The engine's answer to this try: also a late or a repeated one."""
        if self._try is None or asked != self._try.swap:
            return []
        if isinstance(outcome, Unclear):
            return []
        version = _version_of(asked, outcome)
        if version is not None:
            return self._renewed(self._try, version, now_s)
        assert isinstance(outcome, Lost)
        self._lose(outcome.current)
        return []

    def _write(self, now_s: float) -> list[Action]:
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
        )
        value = encode(lease)
        self._try = _Try(SwapLease(self.process, self._version, value), state, now_s)
        self._last_sent_s = now_s
        return [self._try.swap]

    def _renewed(self, done: _Try, version: int, now_s: float) -> list[Action]:
        self._version = version
        self._renewed_s = done.first_sent_s
        self._try = None
        self.has_moved = done.state is LeaseState.MOVING
        # A hand-over may have begun while a renewal was out.
        return self._write(now_s) if self._is_moving and not self.has_moved else []

    def _lose(self, current: Found | None) -> None:
        self._try = None
        self._renewed_s = None
        self.lost_reason = _why_lost(current)


def _version_of(asked: SwapRun | SwapLease, outcome: Outcome) -> int | None:
    """The version of what was asked for, if it is there: own bytes in a conflict are a success."""
    if isinstance(outcome, Done):
        return outcome.version
    if isinstance(outcome, Lost) and outcome.current is not None:
        return outcome.current.version if outcome.current.value == asked.value else None
    return None


def _why_lost(current: Found | None) -> str:
    if current is None:
        return "its lease is gone"
    try:
        lease = decode_lease(current.value)
    except UnreadableError as error:
        return f"its lease was overwritten: {error}"
    if lease.state is LeaseState.REVOKED:
        return f"its lease was revoked by {lease.revoked_by or 'somebody'}"
    return f"its lease was written by another process that calls itself {lease.process}"


# -- a claim to a run ----------------------------------------------------------------------------


class ClaimState(enum.StrEnum):
    """How far a claim has come."""

    IDLE = "idle"
    READING = "reading"
    JUDGING = "judging"
    """Another process owns the run; is its lease alive?"""
    REVOKING = "revoking"
    ADOPTING = "adopting"
    WAITING = "waiting"
    """The run is to be had, but not yet by this process: its lease is not good, or it pauses."""
    OWNED = "owned"
    LETTING_GO = "letting go"
    ELSEWHERE = "elsewhere"
    """The owner is alive, as far as can be seen; looked at again while anybody wants the run."""


class Claim:
    """One process's claim to one run. `holder` is the process's own lease.

    `want` begins; `tick` looks again; answers bring it on. At most one question is open: it is
    asked again, the same, until it is answered, and whatever answers another one is ignored.
    After every answer to the holder its claims are ticked: they may have waited for it.
    """

    def __init__(self, run_id: str, ledger_id: str, holder: LeaseHolder) -> None:
        self.run_id = run_id
        self.ledger_id = ledger_id
        self.state = ClaimState.IDLE
        self.register: RunRegister | None = None
        self.version: int | None = None
        self.not_before_s = float("-inf")
        """Until then it does not take the run, but says where it is."""
        self._holder = holder
        self._still = _Standstill()
        self._ticket = 0
        self._open: ReadRun | ReadLease | SwapLease | SwapRun | None = None
        self._look_again_s: float | None = None
        self._pause_s: float | None = None

    # -- what can be asked ---------------------------------------------------------------------

    def may_decide(self, now_s: float) -> bool:
        """Whether this process may decide for the run now: to be asked before anything is sent."""
        return self.state is ClaimState.OWNED and self._holder.may_decide(now_s)

    @property
    def is_committing(self) -> bool:
        """Whether a commit's outcome is not known yet."""
        return self.state is ClaimState.OWNED and self._open is not None

    def next_tick_s(self) -> float | None:
        """When `tick` has something to do; None if never by itself."""
        return self._look_again_s

    # -- what is asked for ---------------------------------------------------------------------

    def want(self, now_s: float) -> list[Action]:
        """A node of the run is here, or this process would coordinate it."""
        if self.state is not ClaimState.IDLE or self._holder.is_lost:
            return []
        return self._read(now_s)

    def commit(self, register: RunRegister, now_s: float) -> list[Action]:
        """Write `self.register` with another round, close, settings or restart count.

        Only for OWNED; the same again while its outcome is unknown changes nothing. `Committed` or
        `Deposed` follows, if not this process's end.
        """
        previous = self.register
        assert self.state is ClaimState.OWNED, self.state
        assert previous is not None
        # R6: a closed run forms no further round. R1: numbers only grow.
        assert previous.close is None, "a closed run is committed to no more"
        is_next = register.number == previous.number + 1
        assert register.round == previous.round or is_next, (previous.number, register.number)
        swap = SwapRun(self.version, encode(_following(previous, register)))
        assert self._open in (None, swap), "another commit's outcome is not known yet"
        if self._open is not None:
            return []
        self._ask(ClaimState.OWNED, swap, now_s)
        return [swap] if self._holder.may_decide(now_s) else []

    def let_go(self, now_s: float, pause_s: float = 0.0) -> list[Action]:
        """Give the run up, once a commit that is under way is done, and stay away for a while.

        For a process that yields; one that goes hands its whole lease over. A claim that does not
        own the run is dropped.
        """
        if self.state is not ClaimState.OWNED:
            self.deposed(now_s, pause_s)
            return []
        self._pause_s = pause_s
        return [] if self._open is not None else self._let_go(now_s)

    def end_pause(self) -> None:
        """What this process stayed away for is over: it may take the run again."""
        self.not_before_s = float("-inf")

    def deposed(self, now_s: float, pause_s: float = 0.0) -> None:
        """Forget the run: nobody wants it any more, or the caller knows that another has it."""
        self.state = ClaimState.IDLE
        self.register, self.version = None, None
        self._open, self._look_again_s, self._pause_s = None, None, None
        self._still = _Standstill()
        self.not_before_s = max(self.not_before_s, now_s + pause_s)

    def tick(self, now_s: float) -> list[Action]:
        """Look again at an owner that may be dead; repeat what was not answered."""
        if self._holder.is_lost:
            return self._stop(self._holder.lost_reason, now_s)
        # Who waited only for its own lease goes on as soon as that is good.
        can_go_on = self.state is ClaimState.WAITING and self._may_take(now_s)
        is_due = self._look_again_s is not None and now_s >= self._look_again_s
        if not (can_go_on or is_due):
            return []
        if self._open is None:
            return self._read(now_s)
        self._look_again_s = now_s + self._holder.timing.retry_s
        is_swap = isinstance(self._open, SwapRun | SwapLease)
        return [] if is_swap and not self._holder.may_decide(now_s) else [self._open]

    # -- answers -------------------------------------------------------------------------------

    def run_read(self, asked: ReadRun, found: Found | None, now_s: float) -> list[Action]:
        """What the run's register holds. Raises UnreadableError; the question stays open."""
        return self._judge(found, now_s) if asked == self._open else []

    def lease_read(self, asked: ReadLease, found: Found | None, now_s: float) -> list[Action]:
        """What the owner's lease says. Raises UnreadableError; the question stays open."""
        if asked != self._open:
            return []
        if found is None:
            return self._adopt(now_s)
        lease = _lease_of(asked.process, found)
        if lease.state is not LeaseState.SERVING:
            return self._adopt(now_s)
        dead_s = self._still.since_s(lease.process, found.version, now_s) + self._ttl_s
        if now_s >= dead_s:
            return self._revoke(lease, found.version, now_s)
        look_s = now_s + self._ttl_s / 3
        self._rest(ClaimState.ELSEWHERE, min(look_s, dead_s))
        return [Elsewhere(lease.addresses, lease.process)]

    def lease_swapped(self, asked: SwapLease, outcome: Outcome, now_s: float) -> list[Action]:
        """Whether the former owner's lease could be revoked."""
        if asked != self._open or isinstance(outcome, Unclear):
            return []
        if _version_of(asked, outcome) is not None:
            return self._adopt(now_s)
        # It was renewed after all, or revoked by another: look again.
        return self._read(now_s)

    def run_swapped(self, asked: SwapRun, outcome: Outcome, now_s: float) -> list[Action]:
        """Whether the run's register could be written. Raises UnreadableError, as `run_read`."""
        if asked != self._open or isinstance(outcome, Unclear):
            return []
        version = _version_of(asked, outcome)
        if version is not None:
            return self._written(decode_run(asked.value), version, now_s)
        assert isinstance(outcome, Lost)
        if self.state is ClaimState.ADOPTING:
            return self._judge(outcome.current, now_s)
        pause_s = self._pause_s or 0.0
        return self._stop("another process has written the run's register", now_s, pause_s)

    # -- steps ---------------------------------------------------------------------------------

    @property
    def _ttl_s(self) -> float:
        return self._holder.timing.ttl_s

    def _may_take(self, now_s: float) -> bool:
        return self._holder.may_decide(now_s) and now_s >= self.not_before_s

    def _ask(
        self, state: ClaimState, question: ReadRun | ReadLease | SwapLease | SwapRun, now_s: float
    ) -> list[Action]:
        self.state, self._open = state, question
        self._look_again_s = now_s + self._holder.timing.retry_s
        return [question]

    def _rest(self, state: ClaimState, look_again_s: float | None) -> None:
        self.state, self._open, self._look_again_s = state, None, look_again_s

    def _read(self, now_s: float) -> list[Action]:
        self._ticket += 1
        return self._ask(ClaimState.READING, ReadRun(self._ticket), now_s)

    def _judge(self, found: Found | None, now_s: float) -> list[Action]:
        self.register = None if found is None else self._register_of(found)
        self.version = None if found is None else found.version
        owner = self.register.owner if self.register else ""
        if owner in ("", self._holder.process):
            # Its own run, too, is sealed anew: what it had tried before it lost sight is void.
            return self._adopt(now_s)
        self._ticket += 1
        return self._ask(ClaimState.JUDGING, ReadLease(owner, self._ticket), now_s)

    def _register_of(self, found: Found) -> RunRegister:
        register = decode_run(found.value)
        if (register.ledger_id, register.run_id) != (self.ledger_id, self.run_id):
            raise UnreadableError(
                f"this is the register of run {register.run_id} in ledger {register.ledger_id}, "
                f"not of run {self.run_id} in ledger {self.ledger_id}"
            )
        return register

    def _revoke(self, lease: Lease, version: int, now_s: float) -> list[Action]:
        if not self._may_take(now_s):
            return self._wait(now_s)
        by = self._holder.process
        revoked = Lease(FORMAT, lease.process, lease.beat, LeaseState.REVOKED, (), by)
        swap = SwapLease(lease.process, version, encode(revoked))
        return self._ask(ClaimState.REVOKING, swap, now_s)

    def _adopt(self, now_s: float) -> list[Action]:
        """Seal the run's register with the next term. Only whose own lease is good may try."""
        if not self._may_take(now_s):
            return self._wait(now_s)
        swap = SwapRun(self.version, encode(self._sealed()))
        return self._ask(ClaimState.ADOPTING, swap, now_s)

    def _sealed(self) -> RunRegister:
        process = self._holder.process
        if self.register is None:
            return RunRegister(FORMAT, self.ledger_id, self.run_id, 1, process)
        term = self.register.term + 1
        return msgspec.structs.replace(
            self.register, format=FORMAT, term=term, owner=process, sequence=0
        )

    def _wait(self, now_s: float) -> list[Action]:
        self._rest(ClaimState.WAITING, now_s + self._ttl_s / 3)
        return []

    def _written(self, register: RunRegister, version: int, now_s: float) -> list[Action]:
        before, self.register, self.version = self.state, register, version
        if before is ClaimState.LETTING_GO:
            self.deposed(now_s, self._pause_s or 0.0)
            return []
        if before is ClaimState.OWNED:
            self._rest(ClaimState.OWNED, None)
            more = [] if self._pause_s is None else self._let_go(now_s)
            return [Committed(register, version), *more]
        if not self._holder.may_decide(now_s):
            # The swap was under way for long. By now somebody may have sealed after it.
            return self._wait(now_s)
        self._rest(ClaimState.OWNED, None)
        return [Won(register, version)]

    def _let_go(self, now_s: float) -> list[Action]:
        assert self.register is not None
        free = msgspec.structs.replace(_following(self.register, self.register), owner="")
        swap = SwapRun(self.version, encode(free))
        self._ask(ClaimState.LETTING_GO, swap, now_s)
        return [swap] if self._holder.may_decide(now_s) else []

    def _stop(self, reason: str, now_s: float, pause_s: float = 0.0) -> list[Action]:
        was_owned = self.state is ClaimState.OWNED
        self.deposed(now_s, pause_s)
        return [Deposed(reason)] if was_owned else []


class _Standstill:
    """Since when one lease has been seen at one version, by the clock of whoever looks (R9)."""

    def __init__(self) -> None:
        self._seen: tuple[str, int] | None = None
        self._since_s = 0.0

    def since_s(self, process: str, version: int, now_s: float) -> float:
        if self._seen != (process, version):
            self._seen, self._since_s = (process, version), now_s
        return self._since_s


def _lease_of(process: str, found: Found) -> Lease:
    lease = decode_lease(found.value)
    if lease.process != process:
        raise UnreadableError(f"this is the lease of {lease.process}, not of {process}")
    return lease


def _following(previous: RunRegister, register: RunRegister) -> RunRegister:
    """The next value that the same owner writes in the same term."""
    return msgspec.structs.replace(
        register,
        format=FORMAT,
        ledger_id=previous.ledger_id,
        run_id=previous.run_id,
        term=previous.term,
        owner=previous.owner,
        sequence=previous.sequence + 1,
    )


# -- giving up an office that nobody can reach ---------------------------------------------------


class Yielding:
    """When a coordinator that no node of another process can reach should let another try.

    A firewall or a wrong interface shows only after the election, and may come at any time later.
    Who has heard nobody for `after_s`, and sees that another process stands by, lets go of the run
    and stays away, each time twice as long (up to 2**2 times: the others may not be able to host).
    Who would yield to nobody stays: whom it waits for may only not have been started yet.

    Others are looked for every `look_s`, in which a living process renews its lease.
    """

    def __init__(self, after_s: float, look_s: float) -> None:
        self.after_s = after_s
        self.look_s = look_s
        self._since_s: float | None = None
        self._next_look_s = 0.0
        self._seen: Mapping[str, int] = {}
        self._times = 0

    def won(self, now_s: float) -> None:
        """The office begins."""
        self._since_s = now_s

    def heard(self) -> None:
        """A node of another process can be heard, or none is needed."""
        self._since_s = None
        self._times = 0

    def unheard(self, now_s: float) -> None:
        """No node of another process can be heard."""
        if self._since_s is None:
            self._since_s = now_s

    def should_look(self, now_s: float) -> bool:
        """Whether it is time to see who stands by: twice before `after_s` is over, then again."""
        if self._since_s is None:
            return False
        if now_s < max(self._since_s + self.after_s - self.look_s, self._next_look_s):
            return False
        self._next_look_s = now_s + self.look_s
        return True

    def should_yield(self, others: Mapping[str, int] | None, now_s: float) -> bool:
        """Whether to let go now. `others`: the version of the lease of each that may take the run.

        Only one that has moved since the last look is alive. None: the engine cannot list them.
        """
        before, self._seen = self._seen, others or {}
        if self._since_s is None or now_s - self._since_s < self.after_s:
            return False
        return others is None or any(before.get(p, v) != v for p, v in others.items())

    def pause_s(self) -> float:
        """How long to stay away after yielding now, in seconds."""
        self._since_s = None
        self._times += 1
        return self.after_s * float(2 ** min(self._times, 2))


# -- a node's side: where is the coordinator? ----------------------------------------------------


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
        self._still = _Standstill()
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
        lease = None if found is None else _lease_of(asked.process, found)
        addresses = where(self._register, lease)
        self._open = None
        if found is None or addresses is None:
            return self._nobody(now_s, jitter)
        since_s = self._still.since_s(asked.process, found.version, now_s)
        if now_s >= since_s + self.timing.ttl_s:
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
