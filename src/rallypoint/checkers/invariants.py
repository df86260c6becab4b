"""The rules as checks on the state of a run. Tests run them after every step.

`check` tests each single state. `run_checker` and, for the round's store, `store_checker` test
rules over several steps and coordinators. Together they check R1 to R6, R8, R10, R11, and that
tokens grow (R13). R7 and the upper bounds of R8 set time limits, so their tests let time pass:
tests/core/test_properties.py. R9 needs no check, because the core reads no clock. The wire keeps
R12. The agent stops the workers of a superseded node (R13).
"""

from __future__ import annotations

from collections.abc import Callable

from rallypoint.checkers.run_checker import RunChecker
from rallypoint.checkers.store_checker import StoreChecker
from rallypoint.checkers.violations import InvariantViolation
from rallypoint.core import events as on
from rallypoint.core.effects import Effect
from rallypoint.core.election import RunState
from rallypoint.core.membership import Membership
from rallypoint.core.ranks import seats_of
from rallypoint.core.roster import Bucket, Roster
from rallypoint.core.values import NodeId, Phase, RoundRecord, table_digest

__all__ = ["Checked", "InvariantViolation", "RunChecker", "StoreChecker", "check"]


class Checked:
    """A membership that is checked after each step. O(N) for a step: not for a coordinator."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.checker = RunChecker(membership.term)

    def step(self, event: on.Event, now_s: float) -> list[Effect]:
        """Step the membership. Raises InvariantViolation, with the history, for any assertion."""

        def step() -> list[Effect]:
            effects = self.membership.step(event, now_s)
            self.checker.note(event, now_s, effects)
            self.checker.must_be_in(kept_out(self.membership.roster))
            return effects

        return self._checked(step, event, now_s)

    def take_over(
        self,
        successor: Membership,
        register: RunState,
        *,
        attach_grace_s: float,
        now_s: float,
        former_host: NodeId | None = None,
    ) -> list[Effect]:
        """Another coordinator restores the run into `successor`. The checker stays."""

        def restore() -> list[Effect]:
            effects = successor.restore(
                register, attach_grace_s=attach_grace_s, now_s=now_s, former_host=former_host
            )
            self.checker.restored(
                register,
                attach_grace_s=attach_grace_s,
                now_s=now_s,
                effects=effects,
                former_host=former_host,
            )
            self.membership = successor
            return effects

        return self._checked(restore, register, now_s)

    def _checked(
        self, work: Callable[[], list[Effect]], what: object, now_s: float
    ) -> list[Effect]:
        try:
            effects = work()
            check(self.membership)
        except InvariantViolation as violation:
            history = self.checker.history
            raise InvariantViolation(violation.rule, violation.problem, history) from violation
        except AssertionError as failed:
            history = (*self.checker.history, f"{now_s:10.3f} s  {what!r} failed")
            raise InvariantViolation("assertion", str(failed), history) from failed
        return effects


def kept_out(roster: Roster) -> list[str]:
    """The nodes that are ready, and have to stay out because they broke too many rounds."""
    return [member.name for member in roster.cooling() if member.is_cooling]


def check(membership: Membership) -> None:
    """Check one state. Raises InvariantViolation, without a history."""
    _check_buckets(membership.roster)
    _check_phase(membership)
    for record in (membership.round, membership.committing):
        # A coordinator that takes over a closed run reads only the rows in its head.
        is_whole = membership.phase is not Phase.CLOSED
        if isinstance(record, RoundRecord) and (is_whole or record.members):
            _check_record(record)
    _check_seats(membership)


def _check_buckets(roster: Roster) -> None:
    """The buckets agree with a recount of the members."""
    for bucket in Bucket:
        found = list(roster.names(bucket))
        recounted = [member.name for member in roster if member.where() is bucket]
        _must(sorted(found) == sorted(recounted), "buckets", f"{bucket}: {found}, not {recounted}")
    troubled = sorted(member.name for member in roster.troubled())
    recounted = sorted(member.name for member in roster if member.is_troubled)
    _must(troubled == recounted, "buckets", f"troubled: {troubled}, not {recounted}")


def _check_phase(membership: Membership) -> None:
    """Each phase has only the state that belongs to it."""
    phase = membership.phase_of_work
    in_round = membership.roster.members(Bucket.IN_ROUND)
    committing = membership.committing
    _must((committing is not None) == (phase is Phase.COMMITTING), "phase", "no record, or one")
    _must((membership.close is not None) == (phase is Phase.CLOSED), "phase", "closed, or not")
    if phase is Phase.GATHERING or isinstance(committing, RoundRecord):
        _must(not in_round, "phase", f"{phase}, and some are in a round")
    if phase is Phase.ACTIVE:
        _check_active(membership)
    if membership.settings is None:
        _must(not len(membership.roster), "phase", "members without settings")


def _check_active(membership: Membership) -> None:
    record = membership.round
    if record is None:
        raise InvariantViolation("phase", "active without a round")
    rows = {NodeId(row.name, row.incarnation) for row in record.members}
    inside = {member.id for member in membership.roster.members(Bucket.IN_ROUND)}
    _must(inside <= rows, "R4", f"active in a round without them: {inside - rows}")
    _must(membership.case is None, "phase", "active with a case")
    survivors = [member.name for member in membership.roster if member.survivor]
    _must(not survivors, "phase", f"active with survivors: {survivors}")


def _check_record(record: RoundRecord) -> None:
    head = record.head
    digest = table_digest(head.number, record.members, head.bootstrap)
    _must(head.digest == digest, "R2", f"the digest of round {head.number}")
    _must(head.nodes == len(record.members), "R3", f"the nodes of round {head.number}")
    size = sum(row.workers for row in record.members)
    _must(head.size == size, "R3", f"the size of round {head.number}")


def _check_seats(membership: Membership) -> None:
    """R3: node ranks 0 to n - 1 and worker ranks 0 to size - 1, each once."""
    record = membership.round
    if record is None or (membership.close is not None and not record.members):
        return  # The table of a run that was closed elsewhere is not read.
    head, seats = record.head, seats_of(record)
    node_ranks = [seat.node_rank for seat in seats]
    _must(node_ranks == list(range(head.nodes)), "R3", f"node ranks {node_ranks}")
    given = [rank for s in seats for rank in range(s.first_rank, s.first_rank + s.workers)]
    _must(given == list(range(head.size)), "R3", f"worker ranks {given}")


def _must(holds: bool, rule: str, problem: str) -> None:
    if not holds:
        raise InvariantViolation(rule, problem)
