"""What marked lines promise about members: cases in which a small change would be wrong.

`make mutants` changes the lines that keep a rule. Each test here fails for changes that no other
test noticed. `test_marked_lines` has those of the election and of rounds.
"""

from __future__ import annotations

from rallypoint.core.finished import Finished
from rallypoint.core.values import Phase
from tests.core.test_marked_lines import marking, met, record

# -- name conflicts ------------------------------------------------------------------------------


def test_r8_the_older_node_has_no_more_time_when_its_time_was_over_before_the_outage() -> None:
    driver = met("a", "b")
    driver.attach("a'")
    driver.now_s += 2.5  # The process was starved: no timer fired.
    driver.lose_ledger()
    assert not driver.is_connected("a'")
    driver.restore_ledger()
    assert driver.is_connected("a'")


# -- marks ---------------------------------------------------------------------------------------


def test_r10_a_goodbye_does_not_wait_for_marks_of_an_earlier_round() -> None:
    marks, (a, b) = marking(2)
    marks.gone(a.id, 0.0)
    marks.begin(record(2, b), Finished(), None, (), 0.0)
    assert not marks.farewell(b.id, 1, "b")


# -- the ledger ----------------------------------------------------------------------------------


def test_r6_a_closed_run_is_not_suspended_when_another_coordinator_has_it() -> None:
    driver = met("a", "b")
    driver.close()
    driver.refuse_commit()
    assert driver.phase is Phase.CLOSED
    assert not driver.run.suspension
