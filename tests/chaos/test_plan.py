"""The schedule of chaos: drawn from the seed alone, and aimed at nobody who is safe."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.chaos.faults import _BEGIN
from tests.chaos.plan import KINDS, NODES, Ledger, draw

FAULTS = 400
LEDGERS: tuple[Ledger, ...] = ("etcd", "file")


@pytest.mark.parametrize("ledger", LEDGERS)
def test_each_kind_of_fault_is_drawn_and_can_be_done(ledger: Ledger) -> None:
    drawn = {fault.kind for number in range(9) for fault in draw(1, number, ledger, FAULTS).faults}
    assert drawn == {name for name, kind in KINDS.items() if kind.ledger in (None, ledger)}
    assert set(_BEGIN) == set(KINDS)


@pytest.mark.parametrize("ledger", LEDGERS)
def test_no_fault_is_aimed_at_a_safe_node(ledger: Ledger) -> None:
    for number in range(9):
        plan = draw(2, number, ledger, FAULTS)
        assert len(plan.safe) == 2
        hit = {host for fault in plan.faults for host in fault.hosts}
        assert not hit & set(plan.safe)
        assert set(NODES) - hit == set(plan.safe)


def test_jobs_of_one_seed_differ_and_jobs_of_one_number_are_alike() -> None:
    assert draw(3, 1, "etcd", 30) == draw(3, 1, "etcd", 30)
    assert draw(3, 1, "etcd", 30).faults != draw(3, 2, "etcd", 30).faults
    assert draw(3, 1, "etcd", 30).faults != draw(4, 1, "etcd", 30).faults


@pytest.mark.processes
def test_the_schedule_is_the_same_in_another_process() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--seed", "5", "--show", "2"]

    def shown(hash_seed: str) -> str:
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, env=env, text=True, capture_output=True, check=True).stdout

    assert shown("1") == shown("2") == draw(5, 2, "etcd", 30).shown() + "\n"
