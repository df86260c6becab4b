"""The schedule of a tournament, and what failed dials mean together."""

from __future__ import annotations

import pytest

from rallypoint.doctor import tournament
from rallypoint.doctor.all_pairs import table_of
from rallypoint.doctor.findings import Verdict
from rallypoint.doctor.tournament import LINES_MAX, Failure, NodeResult, Problem

NAMES = {0: "n1", 1: "n2", 2: "n3"}


@pytest.mark.parametrize("nodes", [2, 3, 8, 101])
def test_each_pair_is_dialled_once_in_each_direction(nodes: int) -> None:
    rows = [tournament.targets(rank, nodes) for rank in range(nodes)]
    assert {(source, target) for source, row in enumerate(rows) for target in row} == {
        (a, b) for a in range(nodes) for b in range(nodes) if a != b
    }
    # In each step each node is dialled by one.
    for step in zip(*rows, strict=True):
        assert sorted(step) == list(range(nodes))


def test_one_node_dials_nobody() -> None:
    assert tournament.targets(0, 1) == []


def failed(source: int, target: int, problem: str = Problem.SILENT, at: str = "") -> Failure:
    return Failure(source, target, at or f"10.0.0.{target + 1}:5", problem, "no answer within 3 s")


def test_a_node_that_nobody_reaches_is_one_line() -> None:
    lines = tournament.describe([failed(0, 2), failed(1, 2)], NAMES)
    assert lines == ["no node reaches n3: 10.0.0.3:5: no answer within 3 s"]


def test_a_node_that_reaches_nobody_is_one_line() -> None:
    assert tournament.describe([failed(2, 0), failed(2, 1)], NAMES) == [
        "n3 reaches no other node: no answer within 3 s"
    ]


def test_one_direction_and_both() -> None:
    assert tournament.describe([failed(0, 1)], NAMES) == [
        "n1 does not reach n2 at 10.0.0.2:5: no answer within 3 s"
    ]
    assert tournament.describe([failed(0, 1), failed(1, 0)], NAMES) == [
        "n1 and n2 do not reach each other: 10.0.0.2:5: no answer within 3 s"
    ]


def test_a_second_address_is_no_loss() -> None:
    [line] = tournament.describe([failed(0, 1, Problem.SECOND)], NAMES)
    assert line.startswith("n1 reaches n2 at")


def test_many_failures_are_few_lines() -> None:
    names = {rank: f"n{rank}" for rank in range(200)}
    broken = [failed(rank, (rank + 1) % 200) for rank in range(200)]
    lines = tournament.describe(broken, names)
    assert len(lines) == LINES_MAX + 1
    assert lines[-1].startswith("and 180 more")


def result(rank: int, reached: int, *failures: Failure) -> NodeResult:
    return NodeResult(rank, f"n{rank + 1}", ("10.0.0.1",), reached, failures=failures)


def test_the_verdict_of_the_table() -> None:
    good = [result(0, 1), result(1, 1)]
    assert table_of(good, 2).verdict is Verdict.OK
    missing = table_of(good, 3)
    assert missing.verdict is Verdict.FAILED
    assert missing.lines[0] == "2 of 3 nodes came: n1, n2"
    second = table_of([result(0, 1, failed(0, 1, Problem.SECOND)), result(1, 1)], 2)
    assert second.verdict is Verdict.WARNING
    broken = table_of([result(0, 0, failed(0, 1)), result(1, 1)], 2)
    assert broken.verdict is Verdict.FAILED
    assert (broken.reached, broken.pairs) == (1, 2)
    assert "--port-range" in broken.what_to_do[0]
