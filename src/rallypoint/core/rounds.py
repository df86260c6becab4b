"""A round is formed, begins and ends; and why it ended is charged to the restart budget.

`formation` decides whether a round is full, `causes` what its end was, and `blame` counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from rallypoint.core import blame, causes, cooling, ordering, reasons, writing
from rallypoint.core import effects as do
from rallypoint.core.agreement import Agreement
from rallypoint.core.causes import Case
from rallypoint.core.committing import record_of
from rallypoint.core.roster import Bucket, Member
from rallypoint.core.state import MembershipState
from rallypoint.core.values import (
    Change,
    ChangeKind,
    MemberState,
    NodeId,
    Outcome,
    Phase,
    RoundRecord,
    RunSettings,
)

# Each event uses these. To find a member in its class takes seven times as long (Python 3.11).
_NEWCOMER = Bucket.NEWCOMER
_READY_SURVIVOR = Bucket.READY_SURVIVOR
_STAYS_OUT = (Bucket.COOLING, Bucket.COOLING_SURVIVOR)
_IS_READY = MemberState.READY
_IS_ACTIVE = MemberState.ACTIVE


def consider_newcomer(run: MembershipState, member: Member) -> None:
    """Let a ready newcomer in when its delay is over. O(1).

    The node is notified once that it is on standby, and not again in every later round.
    """
    bucket = member.bucket
    if bucket is _READY_SURVIVOR:  # It is nearly always one.
        return
    if bucket is _NEWCOMER:
        run._scale_up.newcomer(member)
    elif bucket not in _STAYS_OUT:
        return
    if run.is_standby(member) and not member.told_standby:
        member.told_standby = True
        reason = cooling.told_to(run, member)
        run._do(do.Notify(member.id, standby=True, reason=reason))


def form_round(run: MembershipState, settings: RunSettings) -> None:
    """Write the round to the ledger. An open case is closed first, which may end the run."""
    close_case(run, forced=True)
    # R6: the verdict may have ended the run.
    if run.phase is not Phase.GATHERING:
        return
    chosen = run._gathering.chosen(settings, run.round)
    cooling.let_in(run, chosen)
    record = record_of(
        chosen,
        # R1: above every number before it.
        number=run.number + 1,
        # R5: the term of the owner that decides it.
        term=run.term,
        rank_policy=settings.rank_policy,
        previous=run.round,
        restart_count=run.restart_count,
    )
    run._orders.record_formed()
    run._blame.record_formed(run.restart_count, settings, run._now_s)
    run._gathering.pace.round_formed(record.head.nodes)
    run._committing.begin(record)
    run._enter(Phase.COMMITTING)
    run._finished.round_formed()
    writing.give(run)


def begin_round(run: MembershipState, record: RoundRecord) -> None:
    """The ledger has the round. Begin it, and then handle what happened during the write."""
    run.round = record
    run._finished.round_began()
    committing = run._committing
    interrupted, committing.interrupted = committing.interrupted, None
    gone = gone_of(run, record) if interrupted is not None else []
    run._do(*run._marking.begin(record, run._finished, interrupted, gone, run._now_s))
    ordering.recorded(run)
    run._gathering.reset()
    run._scale_up.reset()
    run._agreement = Agreement()
    # R6: the close follows the write at once.
    if committing.close_wanted is not None:
        # No node receives a round that ends at once.
        writing.commit_close(run, committing.close_wanted)
    # R4: it has a member that is not ready for it any more.
    elif interrupted is not None:
        begin_again(run, record, interrupted)
    else:
        run._enter(Phase.ACTIVE)
        seat_members(run, record)
        run._do(do.Publish(record))
        for bucket in (Bucket.NEWCOMER, Bucket.COOLING):
            for member in run.roster.members(bucket):
                consider_newcomer(run, member)


def gone_of(run: MembershipState, record: RoundRecord) -> list[NodeId]:
    """The members of a record that went while it was written."""
    gone = []
    for row in record.members:
        node = NodeId(row.name, row.incarnation)
        member = run.roster.living(node)
        if member is None or member.state is MemberState.DEPARTING:
            gone.append(node)
    return gone


def begin_again(run: MembershipState, record: RoundRecord, change: Change) -> None:
    """Form another round: a member left during the write, so no node received this one.

    The other members are still ready, and keep their places.
    """
    run._gathering.pace.round_ended(0.0, run._now_s)
    ended_by = run.case.change if run.case is not None else None
    _leave_last_round(run.roster, ended_by)
    for member in run.roster:
        is_ready = member.state is MemberState.READY
        # R7: a member that is still ready keeps its place.
        member.survivor = is_ready and run._committing.is_in(record, member)
    run.case = Case(change)
    run.roster.reindex_all()
    run._enter(Phase.GATHERING)


def seat_members(run: MembershipState, record: RoundRecord) -> None:
    """Make the members of the round active, and survivors that are not in it idle."""
    ended_by = run.case.change if run.case is not None else None
    _leave_last_round(run.roster, ended_by)
    for row in record.members:
        member_now = run.roster.get(row.name)
        assert member_now is not None, row.name
        # R4: not another start of the node.
        assert member_now.info.incarnation == row.incarnation, row.name
        # R4: no node gets a round without asking.
        assert member_now.state is _IS_READY, row.name
        member_now.state = _IS_ACTIVE
        # R4: a `ready` of before does not leave this round.
        member_now.last_round = record.head.number
        member_now.last_change = None
    run.case = None
    run.roster.reindex_all()


def break_round(run: MembershipState, change: Change) -> None:
    """End the active round, tell its members once, and gather for the next."""
    assert run.phase_of_work is Phase.ACTIVE
    lasted_s = run._now_s - run._since_s
    run._gathering.pace.round_ended(lasted_s, run._now_s)
    run._enter(Phase.GATHERING)
    run._scale_up.reset()
    run._progress.forget()
    run._agreement = Agreement()
    # R9: another coordinator has seen the beginning of a round that was taken over.
    is_known = run.number != run._takeover.number
    run.case = Case(change, run._finished.first, lasted_s if is_known else math.inf)
    note_final(run, change)
    survivors = run.roster.members(Bucket.IN_ROUND)
    for member in survivors:
        member.survivor = True
    run._gathering.begin(survivors, run._now_s)
    run.roster.reindex_all()
    # R13: nodes stop their workers when they learn of the end.
    run._do(do.Break(change))
    run._marking.ended(change, later_s(run))
    if not run.case.closed:
        # Cause before consequence: find out who lives before a cause is named.
        assert run.settings is not None
        names = [member.name for member in survivors]
        # R8: suspects are asked before they are lost.
        run._do(*run._probe.begin(names, run.settings, run.number, run._now_s))


def lose_store(run: MembershipState, reason: str) -> None:
    """R10: acknowledged writes of this round cannot be read any more, so the round ends.

    The program is not to blame, so nothing is charged.
    """
    # Nodes of earlier releases know this kind of change.
    detail = reasons.store_lost(reason)
    break_round(run, causes.happened(ChangeKind.NODE_LOST, run.number, (), detail))


def close_case(run: MembershipState, *, forced: bool = False) -> None:
    """Name the cause when it is known, and charge the program's fault to the budget."""
    case, probe = run.case, run._probe
    if case is None or case.closed:
        return
    is_clear = probe.is_over if case.needs_time() else probe.is_settled
    # R8: members have time to answer before the verdict.
    if not forced and (probe.unanswered or not is_clear):
        return
    change = case.close(len(probe.unanswered))
    probe.end()
    run._marking.ended(change, later_s(run))
    charge(run, change)
    cooling.blamed(run, change)


def note_final(run: MembershipState, change: Change) -> None:
    """If a worker's exit code forbids a restart, the run ends by the next rule."""
    case, settings = run.case, run.settings
    if case is None or settings is None or case.final is not None:
        return
    if blame.ends_at_once(change.failure, settings):
        case.final = change


def end_at_once(run: MembershipState) -> None:
    """A worker's exit code forbids a restart: no other cause counts, and none is waited for."""
    case = run.case
    assert case is not None
    assert case.final is not None
    if not case.closed:
        close_case(run, forced=True)
    else:
        # The verdict was given before, and the round is charged once (R11).
        cause = msgspec.structs.replace(case.final, confirmed=True)
        writing.close_run(run, Outcome.FAILED, reasons.no_restart(cause), cause=cause)
    case.final = None


def later_s(run: MembershipState) -> float:
    """When to write marks for which no node waits."""
    assert run.settings is not None
    return run._now_s + run.settings.settle_s


def charge(run: MembershipState, change: Change) -> None:
    """Tell the members the verdict. End the run if no restart is allowed after it."""
    assert run.settings is not None
    run._do(do.Verdict(change))
    # R11: a verdict is charged once, and only if the program is to blame.
    if not change.charged:
        return
    settings, now_s = run.settings, run._now_s
    lasted_s = run.case.lasted_s if run.case is not None else math.inf
    weight = blame.weight_of(lasted_s, settings)
    repeats = run._blame.failed(
        change.failure, settings, now_s, run._progress.step_of(change.round)
    )
    if blame.ends_at_once(change.failure, settings):
        reason = reasons.no_restart(change)
    elif settings.same_failure is not None and repeats >= settings.same_failure:
        reason = reasons.same_failure(change, repeats)
    elif not blame.is_covered(spent := run.spent(now_s), weight, settings.max_restarts):
        reason = reasons.budget_spent(change, settings, spent, weight)
    else:
        run.restart_count += 1
        run._blame.charge(weight, settings, now_s)
        return
    writing.close_run(run, Outcome.FAILED, reason, cause=change)


def _leave_last_round(members: Iterable[Member], ended_by: Change | None) -> None:
    """Make active members idle, and no member a survivor.

    `ended_by`: why the last round is over, for members that attach later.
    """
    for member in members:
        # R4: a member outside the new round is in none.
        if member.state is _IS_ACTIVE:
            member.state = MemberState.IDLE
        if member.survivor and ended_by is not None:
            member.last_change = ended_by
        # R7: no later round waits for it.
        member.survivor = False
