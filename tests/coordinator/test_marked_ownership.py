"""What marked lines of the coordinator's ownership promise, where a small change would be wrong.

`make mutants` changes the lines that keep a rule. Each test here fails for changes that no other
test noticed. In virtual time, without connections.
"""

from __future__ import annotations

from rallypoint.coordinator.claimed_run import ClaimedRun
from rallypoint.coordinator.lease_manager import LeaseManager, NodesMustLeave, Suspended
from rallypoint.ledger.memory import MemoryLedger
from tests.core.claimant import TIMING, Claimant, serving

# -- a claim, and the lease ----------------------------------------------------------------------


def test_r5_a_run_whose_register_was_read_is_not_owned_yet() -> None:
    me = Claimant()
    claimed = ClaimedRun("run", me.claim)
    assert not claimed.is_owned
    me.judges(serving(), 0.0)
    assert me.claim.register is not None
    assert not claimed.is_owned
    owner = Claimant()
    owner.wins()
    assert ClaimedRun("run", owner.claim).is_owned


def test_r7_nodes_are_sent_away_when_each_pause_is_over() -> None:
    manager = LeaseManager(MemoryLedger(), TIMING)
    (suspended,) = manager.judge(0.0, lambda: True)
    assert isinstance(suspended, Suspended)
    due_s = 0.0
    for pause_s in (TIMING.ttl_s, 2 * TIMING.ttl_s, 4 * TIMING.ttl_s):
        due_s += pause_s
        assert manager.judge(due_s - 0.1, lambda: True) == []
        (leave,) = manager.judge(due_s, lambda: True)
        assert isinstance(leave, NodesMustLeave)
