"""One process's claim to one run: see `election`."""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec

from rallypoint.core.election.actions import (
    Action,
    Deposed,
    Elected,
    OwnedElsewhere,
    ReadFloor,
    ReadLease,
    ReadRun,
    RegisterWritten,
    SwapLease,
    SwapRun,
    version_of,
)
from rallypoint.core.election.lease import LeaseHolder, Seen, Standstill, lease_of, revoked_by
from rallypoint.core.election.records import (
    FORMAT,
    NO_FLOOR,
    Floor,
    Lease,
    LeaseState,
    RunRegister,
    UnreadableError,
    decode_floor,
    decode_lease,
    decode_run,
    encode,
)
from rallypoint.core.registers import Conflict, SwapOutcome, Unknown, Versioned
from rallypoint.core.values import NodeId

Question: TypeAlias = ReadRun | ReadLease | ReadFloor | SwapLease | SwapRun


class ClaimState(enum.StrEnum):
    """How far a claim has come."""

    IDLE = "idle"
    READING = "reading"
    JUDGING = "judging"
    """Another process owns the run; is its lease alive?"""
    REVOKING = "revoking"
    ADOPTING = "adopting"
    CHECKING = "checking"
    """Is a run that has had no round above the ledger's floor?"""
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
        self._floor: Floor | None = None
        """The ledger's floor, if it was read since the run's register was."""
        self._is_unchecked = False
        """Whether this claim has created the register, and not read the floor since."""
        self.former_host: NodeId | None = None
        """The node that hosted the last owner, if that owner's lease was revoked: it has ended with
        its process, as far as can be seen. One that handed its runs over is alive."""
        self.not_before_s = float("-inf")
        """Until then it does not take the run, but says where it is."""
        self._holder = holder
        self._still = Standstill()
        self._ticket = 0
        self._open: Question | None = None
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

    @property
    def is_at_rest(self) -> bool:
        """Whether the run is this process's, and `tick` has nothing to do."""
        return self.state is ClaimState.OWNED and self._look_again_s is None

    def next_tick_s(self) -> float | None:
        """When `tick` has something to do; None if never by itself."""
        return self._look_again_s

    # -- what is asked for ---------------------------------------------------------------------

    def want(self, now_s: float, seen: Seen | None = None) -> list[Action]:
        """A node of the run is here, or this process would coordinate it.

        `seen`: what this process has seen of the owner's lease before, by the same clock.
        """
        if self._holder.is_lost:
            return []
        if seen is not None:
            self._still.take_over(seen)
        looks = self.state is ClaimState.IDLE or (seen and self.state is ClaimState.ELSEWHERE)
        return self._read(now_s) if looks else []

    def commit(self, register: RunRegister, now_s: float) -> list[Action]:
        """Write `self.register` with another round, close, settings or restart count.

        Only for OWNED; the same again while its outcome is unknown changes nothing.
        `RegisterWritten` or `Deposed` follows, if not this process's end.
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
        self._floor, self._is_unchecked = None, False
        self._open, self._look_again_s, self._pause_s = None, None, None
        self._still = Standstill()
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

    def run_read(self, asked: ReadRun, found: Versioned | None, now_s: float) -> list[Action]:
        """What the run's register holds. Raises UnreadableError; the question stays open."""
        return self._judge(found, now_s) if asked == self._open else []

    def lease_read(self, asked: ReadLease, found: Versioned | None, now_s: float) -> list[Action]:
        """What the owner's lease says. Raises UnreadableError; the question stays open."""
        if asked != self._open:
            return []
        if found is None:
            return self._adopt(now_s)
        lease = lease_of(asked.process, found)
        if lease.state is not LeaseState.SERVING:
            self._note_former_host(lease)
            return self._adopt(now_s)
        # The lease's own ttl: its process renews by that one, whatever this process is set to.
        dead_s = self._still.seen(lease.process, found.version, now_s).since_s + lease.ttl_s
        if now_s >= dead_s:
            return self._revoke(lease, found.version, now_s)
        look_s = now_s + self._ttl_s / 3
        self._rest(ClaimState.ELSEWHERE, min(look_s, dead_s))
        return [OwnedElsewhere(lease.addresses, lease.process)]

    def floor_read(self, asked: ReadFloor, found: Versioned | None, now_s: float) -> list[Action]:
        """What the ledger's floor is. Raises UnreadableError; the question stays open."""
        if asked != self._open:
            return []
        floor = self._floor = NO_FLOOR if found is None else decode_floor(found.value)
        register = self.register
        if self._is_unchecked and register is not None:
            self._is_unchecked = False
            if register.term > floor.term and register.floor >= floor.number:
                return self._own(register, now_s)
            # The register was created late: meanwhile the run had begun, and was removed.
        return self._adopt(now_s)

    def lease_swapped(self, asked: SwapLease, outcome: SwapOutcome, now_s: float) -> list[Action]:
        """Whether the former owner's lease could be revoked."""
        if asked != self._open or isinstance(outcome, Unknown):
            return []
        if version_of(asked, outcome) is not None:
            self._note_former_host(decode_lease(asked.value))
            return self._adopt(now_s)
        # It was renewed after all, or revoked by another: look again.
        return self._read(now_s)

    def run_swapped(self, asked: SwapRun, outcome: SwapOutcome, now_s: float) -> list[Action]:
        """Whether the run's register could be written. Raises UnreadableError, as `run_read`."""
        if asked != self._open or isinstance(outcome, Unknown):
            return []
        version = version_of(asked, outcome)
        if version is not None:
            self._is_unchecked = asked.expected is None
            return self._written(decode_run(asked.value), version, now_s)
        assert isinstance(outcome, Conflict)
        if self.state is ClaimState.ADOPTING:
            return self._judge(outcome.current, now_s)
        pause_s = self._pause_s or 0.0
        return self._stop("another process has written the run's register", now_s, pause_s)

    # -- steps ---------------------------------------------------------------------------------

    def _note_former_host(self, lease: Lease) -> None:
        # A process that lost its lease goes on under another name, in the same node.
        is_gone = lease.state is LeaseState.REVOKED and lease.node != self._holder.node
        self.former_host = lease.node if is_gone else None

    @property
    def _ttl_s(self) -> float:
        return self._holder.timing.ttl_s

    def _may_take(self, now_s: float) -> bool:
        return self._holder.may_decide(now_s) and now_s >= self.not_before_s

    def _ask(self, state: ClaimState, question: Question, now_s: float) -> list[Action]:
        self.state, self._open = state, question
        self._look_again_s = now_s + self._holder.timing.retry_s
        return [question]

    def _rest(self, state: ClaimState, look_again_s: float | None) -> None:
        self.state, self._open, self._look_again_s = state, None, look_again_s

    def _read(self, now_s: float) -> list[Action]:
        self._ticket += 1
        return self._ask(ClaimState.READING, ReadRun(self._ticket), now_s)

    def _judge(self, found: Versioned | None, now_s: float) -> list[Action]:
        self.register = None if found is None else self._register_of(found)
        self.version = None if found is None else found.version
        self.former_host = None
        self._floor, self._is_unchecked = None, False
        owner = self.register.owner if self.register else ""
        if owner in ("", self._holder.process):
            # Its own run, too, is sealed anew: what it had tried before it lost sight is void.
            return self._adopt(now_s)
        self._ticket += 1
        return self._ask(ClaimState.JUDGING, ReadLease(owner, self._ticket), now_s)

    def _register_of(self, found: Versioned) -> RunRegister:
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
        revoked = revoked_by(lease, self._holder.process)
        swap = SwapLease(lease.process, version, encode(revoked))
        return self._ask(ClaimState.REVOKING, swap, now_s)

    def _adopt(self, now_s: float) -> list[Action]:
        """Seal the run's register with the next term. Only whose own lease is good may try."""
        if not self._may_take(now_s):
            return self._wait(now_s)
        register = self.register
        may_begin = register is None or (register.round is None and register.close is None)
        if may_begin and self._floor is None:
            return self._check(now_s)
        swap = SwapRun(self.version, encode(self._sealed()))
        return self._ask(ClaimState.ADOPTING, swap, now_s)

    def _check(self, now_s: float) -> list[Action]:
        self._ticket += 1
        return self._ask(ClaimState.CHECKING, ReadFloor(self._ticket), now_s)

    def _sealed(self) -> RunRegister:
        process, floor = self._holder.process, self._floor or NO_FLOOR
        if self.register is None:
            return RunRegister(
                FORMAT, self.ledger_id, self.run_id, floor.term + 1, process, floor=floor.number
            )
        return msgspec.structs.replace(
            self.register,
            format=FORMAT,
            term=max(self.register.term, floor.term) + 1,
            owner=process,
            sequence=0,
            floor=max(self.register.floor, floor.number),
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
            return [RegisterWritten(register, version), *more]
        if self._is_unchecked:
            # R13: the swap may have been under way while the run began elsewhere and was removed.
            return self._check(now_s)
        return self._own(register, now_s)

    def _own(self, register: RunRegister, now_s: float) -> list[Action]:
        if not self._holder.may_decide(now_s):
            # The swap was under way for long. By now somebody may have sealed after it.
            return self._wait(now_s)
        assert self.version is not None
        self._rest(ClaimState.OWNED, None)
        return [Elected(register, self.version, self.former_host)]

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
