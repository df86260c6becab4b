"""The ledger has answered, is away, is back, or has another owner for the run."""

from __future__ import annotations

from rallypoint.core import agreeing, attaching, losses, ordering, rounds, writing
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.roster import Bucket
from rallypoint.core.state import MembershipState
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import CloseRecord, Phase


def on_store_lost(run: MembershipState, event: on.StoreLost) -> None:
    # R4: the store of an earlier round ends nothing.
    if event.round == run.number:
        rounds.lose_store(run, event.reason)


def on_committed(run: MembershipState, event: on.Committed) -> None:
    # R1: a record is published only when the ledger has it.
    if run._marking.is_writing:
        return  # The ledger takes one write at a time, so it does not have the record yet.
    record = run._committing.finish()
    if isinstance(record, CloseRecord):
        # R6: the ledger has the close, so the run is over.
        run._enter(Phase.CLOSED)
        run.close = record
        run._closed_at_s = run._now_s
        run._do(do.Announce(record))
        run._marking.give_up()
        run._do(*run._marking.answered_farewells())
        for newcomer in run._name_conflicts.pop_all():
            attaching.refuse_closed(run, newcomer)
    elif record is not None:
        rounds.begin_round(run, record)


def on_marks_written(run: MembershipState, event: on.MarksWritten) -> None:
    # R10: only the write under way counts as written.
    if not run._marking.written(event.serial):
        return
    run._do(*run._marking.answered_farewells())
    ordering.in_ledger(run, run._orders.marks_written())
    agreeing.step_in_ledger(run)
    # R7: the record that waited for the marks is written now.
    if run._committing.unwritten is not None and not run.suspension:
        writing.give(run)


def on_commit_refused(run: MembershipState, event: on.CommitRefused) -> None:
    # R5: a deposed coordinator decides nothing any more, even if the ledger answers later.
    run.deposed = True
    # R5: it stays SUSPENDED, for ever.
    if run.phase_of_work is not Phase.CLOSED:
        suspend(run, SuspensionCause.DEPOSED, event.reason)
    # R5: its marks are not written either.
    run._marking.give_up()
    for each in run._marking.take_all_farewells():
        # The ledger may not have these marks, so the node has to send them to the next
        # coordinator.
        run._do(do.Refuse(each.connection_id, Refusal(RefusalCode.MOVED, event.reason)))
    run._do(do.StepDown(event.reason, event.is_voluntary))


def on_ledger_lost(run: MembershipState, event: on.LedgerLost) -> None:
    suspend(run, event.cause, event.reason, event.away_s)


def suspend(
    run: MembershipState, cause: SuspensionCause, reason: str, away_s: float | None = None
) -> None:
    # R8: an outage takes no time from a member.
    run._clock.stop(run._now_s)
    run.suspension.begin(cause, reason, run._now_s, away_s=away_s)
    run._set_phase()


def record_committed(run: MembershipState, event: on.Committed) -> None:
    """SUSPENDED: the ledger has the record, so it must not be written again."""
    # R1: a record that was not given is not in the ledger.
    is_given = not run._marking.is_writing
    # R1: a record in the ledger is not written again.
    run._committing.is_in_ledger = is_given and run._committing.record is not None


def on_ledger_restored(run: MembershipState, event: on.LedgerRestored) -> None:
    if not run.suspension.end(event.cause):
        return
    run._set_phase()
    # R5: each reason alone keeps the run SUSPENDED.
    if run.suspension:
        return
    # R8: first each member gets the time that it had left.
    # All kept events are handled before any decision, as if they came at the same moment.
    losses.judge_again(run)
    for kept in run._suspended_events.take():
        run._handle(kept)
    if run._committing.is_in_ledger:
        # R7: a record that the ledger has is published now.
        on_committed(run, on.Committed())
    # R7: the record is written again, or the run would wait for ever.
    elif run._committing.record is not None:
        writing.give(run)
    for member in run.roster.members(Bucket.NEWCOMER):
        rounds.consider_newcomer(run, member)
