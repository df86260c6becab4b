"""What a member asks for or reports: a round, a failure, its end, its departure, a close."""

from __future__ import annotations

from rallypoint.core import causes, cooling, member_changes, reasons, rounds, writing
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.roster import Bucket, Member
from rallypoint.core.state import MembershipState
from rallypoint.core.values import ChangeKind, MemberState, Phase

# Each event uses these. To find a member in its class takes seven times as long (Python 3.11).
_IN_ROUND = Bucket.IN_ROUND
_IS_READY = MemberState.READY
_ENDING = (Bucket.DONE, Bucket.DEPARTING)
"""The buckets of members that ask for no further round."""


def on_ready(run: MembershipState, event: on.NodeReady) -> None:
    member = run.roster.living(event.node)
    if member is None or member.bucket in _ENDING:
        return
    is_in_round = member.bucket is _IN_ROUND
    # R4: a `ready` that names an older round than the node's last one is a repeat.
    if event.leaving_round < member.last_round:
        return
    # R4: nor does one of another round end this one.
    if is_in_round and event.leaving_round != member.last_round:
        return
    if is_in_round:
        adopt_end(run, member, event)
    if member.bucket is _IN_ROUND:
        # R4: this round has yet to begin, so no node leaves it.
        if run.phase_of_work is not Phase.ACTIVE:
            return
        rounds.break_round(run, causes.happened(ChangeKind.READY_AGAIN, run.number, [member.name]))
        run._probe.answered(member.name)
    mark_ready(run, member, event)


def adopt_end(run: MembershipState, speaker: Member, event: on.NodeReady) -> None:
    """End the round: the last coordinator told the members of its end, but did not write it.

    The reason is the same. What that coordinator charged to the budget is charged now.
    """
    change = event.change
    is_known = run.phase_of_work is not Phase.ACTIVE
    # R5: the end of another round, or one already known, has no effect.
    if change is None or is_known or not change.round == run.number == run._takeover.number:
        return
    rounds.break_round(run, change)
    run._probe.answered(speaker.name)
    if change.charged:
        rounds.charge(run, change)
    cooling.blamed(run, change)
    if change.kind in (ChangeKind.NODE_LEFT, ChangeKind.NODE_LOST):
        named = [m for m in map(run.roster.get, change.nodes) if m is not None]
        for member in named:
            # R8: a member that has attached is alive.
            if member.is_absent and member is not speaker:
                member_changes.take_out(run, member, change)
                member_changes.free_name(run, member.name)


def mark_ready(run: MembershipState, member: Member, event: on.NodeReady) -> None:
    member.bootstrap = event.bootstrap
    member.workers = event.workers
    if event.unfit != member.unfit:
        cooling.fitness(run, member, event.unfit)
    # R11: a repeat does not move it in the queue.
    if member.state is _IS_READY:
        rounds.consider_newcomer(run, member)
        return
    member.state = _IS_READY
    member.told_standby = False
    assert run.settings is not None
    member.eligible_s = run._now_s + run.departure_history.delay_s(
        member.name, run.settings.scale_up_delay_s, run._now_s - member.attached_s
    )
    run.roster.queue(member)
    run.roster.reindex(member)
    rounds.consider_newcomer(run, member)


def on_worker_failed(run: MembershipState, event: on.WorkerFailed) -> None:
    if run._suspicion.in_burst:
        # Cause before consequence: the processes that have ended are the cause of the round's
        # end.
        run._failed_in_burst.append(event)
        return
    member = run.roster.living(event.node)
    # R4: a report about another round ends nothing.
    if member is None or not event.round == run.number == member.last_round:
        return
    change = causes.failed(run.number, member.name, event.failure)
    if member.bucket is Bucket.IN_ROUND:
        rounds.break_round(run, change)
        run._probe.answered(member.name)
    elif run.case is not None:
        run.case.add_failure(member.name, event.failure)
        rounds.note_final(run, change)


def on_done(run: MembershipState, event: on.NodeDone) -> None:
    member = run.roster.living(event.node)
    if member is None or not event.round:
        return
    # R1: all rounds of this run are above its floor.
    if event.round <= run._floor and not member.last_round:
        run._do(do.Refuse(member.connection_id, reasons.run_removed(run.run_id)))
        return
    # R11: a repeat changes nothing, nor does a report about a round that the node is not in.
    if event.round != member.last_round and not was_in(run, member, event.round):
        return
    # R11: a repeat counts once.
    if member.state in (MemberState.READY, MemberState.DEPARTING, MemberState.DONE):
        return
    is_in_round = event.round == run.number
    # R11: also if the node was removed meanwhile, and has attached again.
    if not (run._marking.is_done(member.id) or run._finished.knows(member.id)):
        run._finished.add(member.id, is_in_round=is_in_round)
    if is_in_round:
        run._agreement.forget(member.id)
        run._marking.done(member.id, run._now_s)
    else:
        run._marking.finished_before(run._finished, run._now_s)
    member.state = MemberState.DONE
    member.survivor = False
    run.roster.reindex(member)


def was_in(run: MembershipState, member: Member, number: int) -> bool:
    """Whether it may have been in this round, before it was lost and attached again.

    Its workers may have finished while it could not be heard.
    """
    # R4: since it was admitted it has been in no round.
    if member.last_round or number > run.number:
        return False
    # A successor knows only the members of the last round.
    return number < run.number or run._marking.has(member.id)


def on_departing(run: MembershipState, event: on.NodeDeparting) -> None:
    member = run.roster.living(event.node)
    if member is None or member.bucket in _ENDING:
        return
    was_in_round = member.bucket is Bucket.IN_ROUND
    member_changes.explain_by_departure(run, member, event.reason)
    run._committing.member_went(member, ChangeKind.NODE_LEFT, event.reason)
    run._marking.gone(member.id, run._now_s)
    member.state = MemberState.DEPARTING
    member.survivor = False
    run.roster.reindex(member)
    if was_in_round and run.phase_of_work is Phase.ACTIVE:
        rounds.break_round(
            run, causes.happened(ChangeKind.NODE_LEFT, run.number, [member.name], event.reason)
        )


def on_left(run: MembershipState, event: on.NodeLeft) -> None:
    member = run.roster.living(event.node)
    if member is None:
        run._name_conflicts.drop(event.node)
        run._suspended_events.forget_attached(event.node)
        return
    # R8: its goodbye proves that its host lives.
    run.witnesses.heard(member)
    member_changes.remove(run, [member], ChangeKind.NODE_LEFT, event.reason, says_goodbye=True)


def on_close_requested(run: MembershipState, event: on.CloseRequested) -> None:
    by, by_operator = event.by, event.by_operator
    writing.close_run(run, event.outcome, event.reason, by=by, by_operator=by_operator)
