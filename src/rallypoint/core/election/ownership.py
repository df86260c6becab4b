"""The claim of this process to one run, from the first question to the loss of ownership.

The package's docstring says why a takeover is safe. A claim is one state machine: taking a run,
writing its head and resigning it share the one question that is open. What a head says is in
`records`. This file does not decide what the owner commits, or when.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

from rallypoint.core.election.actions import (
    Action,
    Deposed,
    Elected,
    OwnedElsewhere,
    ReadFloor,
    ReadLease,
    ReadMistake,
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
from rallypoint.core.values import EndedOwner, NodeId

Question: TypeAlias = ReadRun | ReadLease | ReadFloor | ReadMistake | SwapLease | SwapRun


class ClaimState(enum.StrEnum):
    """The state of a claim."""

    IDLE = "idle"
    READING = "reading"
    JUDGING = "judging"
    """Another process owns the run. Its lease is being read."""
    CONTESTING = "contesting"
    """The owner has ended, as far as others see. Whether such a sight was wrong before is being
    read: then this claim waits until the lease has expired."""
    REVOKING = "revoking"
    SEALING = "sealing"
    CHECKING = "checking"
    """The run has had no round. The ledger's floor is being read: the run has to be above it."""
    WAITING = "waiting"
    """The run may be taken over, but not by this process yet: its own lease does not let it decide,
    or it has resigned."""
    OWNED = "owned"
    RESIGNING = "resigning"
    ELSEWHERE = "elsewhere"
    """The owner is alive, as far as is known. Its lease is read again from time to time."""


class Claim:
    """The claim of this process to one run. `holder` is the lease of this process.

    `begin` starts it, and each answer continues it. At most one question is open. `tick` asks the
    same question again until it is answered; answers to other questions are ignored. The caller
    also ticks all claims after every answer to the holder, since they may have waited for it.
    """

    def __init__(self, run_id: str, ledger_id: str, holder: LeaseHolder) -> None:
        self.run_id = run_id
        self.ledger_id = ledger_id
        self.state = ClaimState.IDLE
        self.register: RunRegister | None = None
        self.version: int | None = None
        self._floor: Floor | None = None
        """The ledger's floor, if it was read after the run's head."""
        self._is_unchecked = False
        """Whether this claim has created the head, and has not read the floor since."""
        self.former_host: NodeId | None = None
        """The node that hosted the last owner, if that owner's lease was revoked: the node has
        ended with its process, as far as is known. A node whose owner handed over is alive."""
        self.not_before_s = float("-inf")
        """This process does not take over the run before this time. It only reports the owner."""
        self._yielded_term: int | None = None
        """The term in which it has resigned in favour of others. It waits for them to try."""
        self._holder = holder
        self._still = Standstill()
        self._ended: EndedOwner | None = None
        """The owner has ended, as far as somebody has seen: its lease may be revoked early."""
        self._contested: tuple[Lease, int] | None = None
        """The lease of that owner, and its version, while it is contested."""
        self._contested_term = 0
        """The term in which this claim has tried to revoke a lease early. It tries once."""
        self._early: Lease | None = None
        """The owner's lease, if it was revoked early."""
        self._ticket = 0
        self._open: Question | None = None
        self._look_again_s: float | None = None
        self._pause_s: float | None = None

    # -- queries -------------------------------------------------------------------------------

    def may_decide(self, now_s: float) -> bool:
        """Whether this process may decide for the run now. Ask before anything is sent."""
        # R5: an owner with a valid lease, and no other process.
        return self.state is ClaimState.OWNED and self._holder.may_decide(now_s)

    @property
    def is_committing(self) -> bool:
        """Whether the outcome of a commit is not known yet."""
        return self.state is ClaimState.OWNED and self._open is not None

    @property
    def is_at_rest(self) -> bool:
        """Whether this process owns the run, and `tick` has nothing to do."""
        return self.state is ClaimState.OWNED and self._look_again_s is None

    def next_tick_s(self) -> float | None:
        """When to call `tick` next; None: not before something else happens."""
        return self._look_again_s

    # -- requests ------------------------------------------------------------------------------

    def begin(self, now_s: float, seen: Seen | None = None) -> list[Action]:
        """A node asks for the run, or this process is to coordinate it.

        `seen`: since when this process has seen the owner's lease unchanged, by the same clock.
        """
        # R5: without a lease there is nothing to claim.
        if self._holder.is_lost:
            return []
        if seen is not None:
            self._still.take_over(seen)
        looks = self.state is ClaimState.IDLE or (seen and self.state is ClaimState.ELSEWHERE)
        return self._read(now_s) if looks else []

    def contest(self, ended: EndedOwner, now_s: float) -> list[Action]:
        """The owner's process has ended, as far as somebody has seen: do not wait for its ttl.

        The swap of its lease fails if the lease was renewed since. Safety rests on the swaps, as
        in every takeover. What rests on times is kept by `RunRegister.unsure_s`.
        """
        if self._holder.is_lost or self.state is ClaimState.OWNED:
            return []
        self._ended = ended
        is_waiting = self.state in (ClaimState.IDLE, ClaimState.ELSEWHERE)
        return self._read(now_s) if is_waiting else []

    def commit(self, register: RunRegister, now_s: float) -> list[Action]:
        """Write the head with another round, close, settings or restart count. Only while OWNED.

        To commit the same again while the outcome is unknown changes nothing. `RegisterWritten` or
        `Deposed` follows, unless this process ends before.
        """
        previous = self.register
        assert self.state is ClaimState.OWNED, self.state
        assert previous is not None
        # R6: a closed run forms no further round.
        assert previous.close is None, "a closed run gets no further commit"
        is_next = register.number == previous.number + 1
        # R1: numbers only grow.
        assert register.round == previous.round or is_next, (previous.number, register.number)
        # R5: it takes effect only if no process has sealed the head since.
        swap = SwapRun(self.version, encode(previous.following(register)))
        # R1: one write at a time.
        assert self._open in (None, swap), "the outcome of another commit is not known yet"
        # R1: the same bytes again, until the outcome is known.
        if self._open is not None:
            return []
        self._ask(ClaimState.OWNED, swap, now_s)
        # R5: nothing is sent on a lease that is too old.
        return [swap] if self._holder.may_decide(now_s) else []

    def resign(
        self, now_s: float, pause_s: float = 0.0, *, is_yielding: bool = False
    ) -> list[Action]:
        """Resign: give up the run when a pending commit is done, and not take it for `pause_s`.

        A process that ends does not call this; it hands over its whole lease. A claim that does not
        own the run is dropped. `is_yielding`: others are to try. The pause is over, but for the
        ttl, as soon as another owner has tried and gone.
        """
        yields = is_yielding and self.register is not None
        self._yielded_term = self.register.term if yields and self.register is not None else None
        if self.state is not ClaimState.OWNED:
            self.deposed(now_s, pause_s)
            return []
        self._pause_s = pause_s
        # R5: first the outcome of the commit.
        return [] if self._open is not None else self._resign(now_s)

    def end_pause(self) -> None:
        """The reason why this process resigned is gone: it may take over the run again."""
        self.not_before_s = float("-inf")

    def deposed(self, now_s: float, pause_s: float = 0.0) -> None:
        """Drop the claim: nobody asks for the run now, or another process is known to own it."""
        self.state = ClaimState.IDLE
        # R5: values that were read before are not used again.
        self.register, self.version = None, None
        self._floor, self._is_unchecked = None, False
        self._open, self._look_again_s, self._pause_s = None, None, None
        self._ended = self._contested = self._early = None
        # R9: a new look at the owner measures anew.
        self._still = Standstill()
        self.not_before_s = max(self.not_before_s, now_s + pause_s)

    def tick(self, now_s: float) -> list[Action]:
        """Look again whether the owner is alive, or repeat a question without an answer."""
        # R5: without its lease the process owns nothing.
        if self._holder.is_lost:
            return self._stop(self._holder.lost_reason, now_s)
        # A claim that waits for this process's lease continues as soon as the lease lets it decide.
        can_go_on = self.state is ClaimState.WAITING and self._may_take(now_s)
        is_due = self._look_again_s is not None and now_s >= self._look_again_s
        if not (can_go_on or is_due):
            return []
        if self._open is None:
            return self._read(now_s)
        self._look_again_s = now_s + self._holder.timing.retry_s
        is_swap = isinstance(self._open, SwapRun | SwapLease)
        # R5: no swap on a lease that is too old.
        return [] if is_swap and not self._holder.may_decide(now_s) else [self._open]

    # -- answers -------------------------------------------------------------------------------

    def run_read(self, asked: ReadRun, found: Versioned | None, now_s: float) -> list[Action]:
        """The answer to ReadRun. Raises UnreadableError; then the question stays open."""
        # R5: an answer to an old question has no effect.
        return self._judge(found, now_s) if asked == self._open else []

    def lease_read(self, asked: ReadLease, found: Versioned | None, now_s: float) -> list[Action]:
        """The answer to ReadLease. Raises UnreadableError; then the question stays open."""
        # R5: an answer to an old question has no effect.
        if asked != self._open:
            return []
        # R5: the lease is gone, so its process decides nothing.
        if found is None:
            return self._seal(now_s)
        lease = lease_of(asked.process, found)
        # R5: nor does one that was revoked or is moving.
        if lease.state is not LeaseState.SERVING:
            self._record_end(lease)
            return self._seal(now_s)
        # R9: counted from when this process first saw it, by its own clock.
        # The ttl is that of the lease, not of this process's settings: its owner renews by the
        # lease's.
        dead_s = self._still.seen(lease.process, found.version, now_s).since_s + lease.ttl_s
        # R5: not before the owner has stopped to decide.
        if now_s >= dead_s:
            return self._revoke(lease, found.version, now_s)
        if self._may_contest(lease, found.version):
            self._ticket += 1
            self._contested = (lease, found.version)
            return self._ask(ClaimState.CONTESTING, ReadMistake(self._ticket), now_s)
        return self._look_later(lease, now_s, dead_s)

    def mistake_read(self, asked: ReadMistake, has_mistake: bool, now_s: float) -> list[Action]:
        """The answer to ReadMistake."""
        if asked != self._open or self._contested is None:
            return []
        lease, version = self._contested
        # R9: after a mistake, only the ttl decides.
        if not has_mistake:
            return self._revoke(lease, version, now_s, is_early=True)
        self._ended = None
        since_s = self._still.seen(lease.process, version, now_s).since_s
        return self._look_later(lease, now_s, since_s + lease.ttl_s)

    def floor_read(self, asked: ReadFloor, found: Versioned | None, now_s: float) -> list[Action]:
        """The answer to ReadFloor. Raises UnreadableError; then the question stays open."""
        # R5: an answer to an old question has no effect.
        if asked != self._open:
            return []
        floor = self._floor = NO_FLOOR if found is None else decode_floor(found.value)
        register = self.register
        if self._is_unchecked and register is not None:
            self._is_unchecked = False
            # R13: a run that began anew is above everything that was removed.
            if register.term > floor.term and register.floor >= floor.number:
                return self._own(register, now_s)
            # The head was created late: the run had begun elsewhere meanwhile, and was removed.
        return self._seal(now_s)

    def lease_swapped(self, asked: SwapLease, outcome: SwapOutcome, now_s: float) -> list[Action]:
        """The outcome of revoking the owner's lease."""
        # R5: an outcome that is unknown proves nothing.
        if asked != self._open or isinstance(outcome, Unknown):
            return []
        # R5: only a lease that is revoked in the ledger is over.
        if version_of(asked, outcome) is not None:
            self._record_end(decode_lease(asked.value))
            return self._seal(now_s)
        # The lease was renewed after all, or another process has revoked it: look again.
        return self._read(now_s)

    def run_swapped(self, asked: SwapRun, outcome: SwapOutcome, now_s: float) -> list[Action]:
        """The outcome of writing the run's head. Raises UnreadableError, as `run_read`."""
        # R5: an outcome that is unknown is asked again.
        if asked != self._open or isinstance(outcome, Unknown):
            return []
        version = version_of(asked, outcome)
        # R1: committed only if the ledger has exactly these bytes.
        if version is not None:
            # R13: a head that was created may stand below the floor.
            self._is_unchecked = asked.expected is None
            return self._written(decode_run(asked.value), version, now_s)
        assert isinstance(outcome, Conflict)  # not Unknown, see above
        # R5: another process was faster: judge again.
        if self.state is ClaimState.SEALING:
            return self._judge(outcome.current, now_s)
        pause_s = self._pause_s or 0.0
        # R5: another owner has sealed the head.
        return self._stop("another process has written the run's register", now_s, pause_s)

    # -- steps ---------------------------------------------------------------------------------

    def _may_contest(self, lease: Lease, version: int) -> bool:
        """Whether this version of the lease may be revoked early: once in a term."""
        # R5: not a lease that was renewed since.
        is_ended = self._ended is not None and self._ended.is_of(lease.process, version)
        return is_ended and self.register is not None and self.register.term > self._contested_term

    def _record_end(self, lease: Lease) -> None:
        # R10: a process that is alive after all may still answer reads.
        self._early = lease if lease.is_early else None
        # R8: only a revoked lease says that its node is gone.
        # A process that has lost its lease continues under another name, in the same node.
        is_gone = lease.state is LeaseState.REVOKED and lease.node != self._holder.node
        self.former_host = lease.node if is_gone else None

    @property
    def _ttl_s(self) -> float:
        return self._holder.timing.ttl_s

    def _may_take(self, now_s: float) -> bool:
        # R5: only a process with a valid lease takes over.
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
        self.former_host = self._early = None
        self._floor, self._is_unchecked = None, False
        owner = self.register.owner if self.register else ""
        # R5: a free run, or one of this process, is sealed at once.
        if owner in ("", self._holder.process):
            # A run of its own is sealed again, too, so that no earlier swap of it can take effect.
            return self._seal(now_s)
        self._ticket += 1
        return self._ask(ClaimState.JUDGING, ReadLease(owner, self._ticket), now_s)

    def _register_of(self, found: Versioned) -> RunRegister:
        register = decode_run(found.value)
        # R1: a register of another ledger or run is not this one.
        if (register.ledger_id, register.run_id) != (self.ledger_id, self.run_id):
            raise UnreadableError(
                f"this is the register of run {register.run_id} in ledger {register.ledger_id}, "
                f"not of run {self.run_id} in ledger {self.ledger_id}"
            )
        return register

    def _look_later(self, lease: Lease, now_s: float, dead_s: float) -> list[Action]:
        """The owner is alive, as far as is known. Its lease expires at `dead_s` if it is not."""
        self._rest(ClaimState.ELSEWHERE, min(now_s + self._ttl_s / 3, dead_s))
        return [OwnedElsewhere(lease.addresses, lease.process)]

    def _revoke(
        self, lease: Lease, version: int, now_s: float, *, is_early: bool = False
    ) -> list[Action]:
        # R5: first a valid lease of its own.
        if not self._may_take(now_s):
            return self._wait(now_s)
        if is_early and self.register is not None:
            self._contested_term = self.register.term
        revoked = revoked_by(lease, self._holder.process, is_early=is_early)
        # R5: only if the owner has not renewed since.
        swap = SwapLease(lease.process, version, encode(revoked))
        return self._ask(ClaimState.REVOKING, swap, now_s)

    def _seal(self, now_s: float) -> list[Action]:
        """Seal the run's head with the next term, if this process may take over the run now."""
        # R5: first a valid lease of its own.
        if not self._may_take(now_s):
            return self._wait(now_s)
        register = self.register
        # R13: a run without a round has to begin above the floor.
        may_begin = register is None or (register.round is None and register.close is None)
        # R13: so the floor is read first.
        if may_begin and self._floor is None:
            return self._check(now_s)
        head = register or RunRegister(FORMAT, self.ledger_id, self.run_id, 0, "")
        # R5: a term above all others.
        sealed = head.sealed(self._holder.process, self._floor or NO_FLOOR, self._early)
        # R5: only if the head is still the one that was judged.
        return self._ask(ClaimState.SEALING, SwapRun(self.version, encode(sealed)), now_s)

    def _check(self, now_s: float) -> list[Action]:
        self._ticket += 1
        return self._ask(ClaimState.CHECKING, ReadFloor(self._ticket), now_s)

    def _wait(self, now_s: float) -> list[Action]:
        register, term = self.register, self._yielded_term
        if term is not None and register is not None and register.term > term:
            # R7: another one has tried. Those that have not tried yet come first, but not for long.
            self.not_before_s = min(self.not_before_s, now_s + self._ttl_s)
            self._yielded_term = None
        self._rest(ClaimState.WAITING, now_s + self._ttl_s / 3)
        return []

    def _written(self, register: RunRegister, version: int, now_s: float) -> list[Action]:
        before, self.register, self.version = self.state, register, version
        # R5: resigned in the ledger, so it owns nothing.
        if before is ClaimState.RESIGNING:
            self.deposed(now_s, self._pause_s or 0.0)
            return []
        if before is ClaimState.OWNED:
            self._rest(ClaimState.OWNED, None)
            more = [] if self._pause_s is None else self._resign(now_s)
            return [RegisterWritten(register, version), *more]
        if self._is_unchecked:
            # R13: during this swap the run may have begun elsewhere, and have been removed.
            return self._check(now_s)
        return self._own(register, now_s)

    def _own(self, register: RunRegister, now_s: float) -> list[Action]:
        # R5: a late outcome elects no owner.
        if not self._holder.may_decide(now_s):
            # The swap took long. By now another process may have sealed after it.
            return self._wait(now_s)
        assert self.version is not None
        self._rest(ClaimState.OWNED, None)
        return [Elected(register, self.version, self.former_host)]

    def _resign(self, now_s: float) -> list[Action]:
        assert self.register is not None
        # R5: a resignation, too, is conditioned on the head.
        swap = SwapRun(self.version, encode(self.register.freed()))
        self._ask(ClaimState.RESIGNING, swap, now_s)
        # R5: nothing is sent on a lease that is too old.
        return [swap] if self._holder.may_decide(now_s) else []

    def _stop(self, reason: str, now_s: float, pause_s: float = 0.0) -> list[Action]:
        was_owned = self.state is ClaimState.OWNED
        self.deposed(now_s, pause_s)
        return [Deposed(reason)] if was_owned else []
