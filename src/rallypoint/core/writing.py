"""What is written to the ledger: the record of a round or of the run's end, and the marks.

One write at a time. `committing` and `marking` keep what is written; this file decides when.
"""

from __future__ import annotations

from functools import partial

import msgspec

from rallypoint.core import effects as do
from rallypoint.core.state import MembershipState
from rallypoint.core.values import Change, CloseRecord, Outcome, Phase


def give(run: MembershipState) -> None:
    """Write the record: at once, or after the marks that are being written."""
    assert run._committing.record is not None
    # R1: one write at a time.
    if not run._marking.is_writing:
        run._do(do.Commit(run._committing.record))


def write_marks(run: MembershipState) -> None:
    """Write the marks of the members, which a successor needs, or set the timer for that."""
    # R5: nothing is written while another may own the run.
    if run.settings is None or run.phase not in (Phase.GATHERING, Phase.ACTIVE):
        return
    settle_s = run.settings.settle_s
    blame = partial(run.blame, run._now_s)
    run._do(*run._marking.write(settle_s, run.restart_count, run._now_s, run._orders, blame))


def close_run(
    run: MembershipState,
    outcome: Outcome,
    reason: str,
    *,
    by: str = "",
    by_operator: bool | None = None,
    cause: Change | None = None,
) -> None:
    """End the run: at once, or after the record that is being written (R6)."""
    record = CloseRecord(outcome, reason, by, run.term, run.number, cause, by_operator)
    # R1: one write at a time, also for the close.
    if run.phase is Phase.COMMITTING:
        # R6: the first close counts.
        run._committing.close_wanted = run._committing.close_wanted or record
    else:
        commit_close(run, record)


def commit_close(run: MembershipState, record: CloseRecord) -> None:
    run._orders.record_formed()
    if run.settings is not None:
        run._blame.record_formed(run.restart_count, run.settings, run._now_s)
    # R6: the run is closed when the ledger says so, and not before.
    run._committing.begin(msgspec.structs.replace(record, round=run.number))
    run._committing.close_wanted = None
    run._enter(Phase.COMMITTING)
    give(run)
