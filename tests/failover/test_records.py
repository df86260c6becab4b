"""The checks on records find what breaks each rule: chaos that finds nothing then says something.

Each record here is that of two nodes and one round, with one thing in it that may not be.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.failover.records import Harm, Story, check

MEMBERS = ["a", "b"]


def node(rank: int, number: int = 1, term: int = 1) -> list[dict[str, Any]]:
    """What a node and its worker write when they come into a round."""
    told = {"term": term, "round": number}
    return [
        {"event": "ready", "term": term, "round": number - 1},
        {
            "event": "formed",
            "digest": f"{number}",
            "nodes": 2,
            "size": 2,
            "node_rank": rank,
            **told,
        },
        {
            "event": "working",
            "rank": rank,
            "size": 2,
            "members": MEMBERS,
            "pid": rank,
            "restarts": 0,
        }
        | told,
    ]


def asked(rank: int, number: int = 1) -> dict[str, Any]:
    return {"event": "asked", "round": number, "pid": rank, "at_s": 0.0}


def added(rank: int, value: int, number: int = 1) -> list[dict[str, Any]]:
    told = {"event": "added", "round": number, "pid": rank, "value": value, "at_s": float(value)}
    return [asked(rank, number), told]


def must_fail(rule: str, a: list[dict[str, Any]], b: list[dict[str, Any]], harm: Harm) -> None:
    with pytest.raises(AssertionError, match=f"^{rule}"):
        check([Story("a", a), Story("b", b)], harm)


def test_records_that_keep_the_rules_pass() -> None:
    a = [*node(0), *added(0, 1), asked(0), *node(0, 2, term=3), *added(0, 1, 2)]
    b = [*node(1), *added(1, 3), *node(1, 2, term=3), *added(1, 2, 2)]
    check([Story("a", a), Story("b", b)], Harm())


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("R1", {"digest": "another"}),
        ("R1", {"term": 2}),
        ("R2", {"members": ["a", "c"]}),
        ("R3", {"node_rank": 0}),
        ("R3", {"node_rank": 2}),
        ("R3", {"rank": 0}),
        ("budget", {"restarts": 1}),
    ],
)
def test_a_round_that_differs_between_nodes_is_found(rule: str, change: dict[str, Any]) -> None:
    name = next(iter(change))
    b = [each | change if name in each else each for each in node(1)]
    must_fail(rule, node(0), b, Harm())


def test_a_round_that_no_node_was_ready_for_is_found() -> None:
    unasked = [each for each in node(0, 2) if each["event"] != "ready"]
    must_fail("R4", [*node(0), *unasked], node(1), Harm())


def test_a_round_of_an_earlier_term_is_found() -> None:
    earlier = {"event": "attached", "term": 1, "round": 2}
    must_fail("R5", [*node(0), *node(0, 2, term=2), earlier], node(1), Harm())


def test_a_repeated_round_is_found() -> None:
    must_fail("R13", [*node(0), *node(0)[1:2]], node(1), Harm())


def test_a_worker_of_an_earlier_round_that_continues_is_found() -> None:
    must_fail("R13", [*node(0), *node(0, 2), *added(0, 1)], node(1), Harm())


def test_a_value_returned_twice_is_found() -> None:
    must_fail("R10", [*node(0), *added(0, 1)], [*node(1), *added(1, 1)], Harm())


def test_a_value_below_the_last_one_is_found() -> None:
    must_fail("R10", [*node(0), *added(0, 2), *added(0, 1)], node(1), Harm())


def test_a_call_applied_twice_is_found() -> None:
    must_fail("R11", [*node(0), *added(0, 1), *added(0, 3)], node(1), Harm())


def test_a_reader_without_an_acknowledged_write_is_found() -> None:
    read = {"event": "paused", "round": 1, "pid": 1, "asked_s": 5.0, "total": 1}
    a = [*node(0), *added(0, 1), *added(0, 2)]
    must_fail("R10", a, [*node(1), read], Harm())


def test_the_loss_of_a_healthy_node_is_found() -> None:
    lost = {"event": "ended", "kind": "node_lost", "nodes": ["b"], "detail": "silent"}
    must_fail("R8", [*node(0), lost], node(1), Harm(nodes={"a"}))
    check([Story("a", [*node(0), lost]), Story("b", node(1))], Harm(nodes={"b"}))


def test_a_restart_without_a_cause_is_found() -> None:
    charged = [each | {"restarts": 1} for each in node(0)]
    must_fail("budget", charged, [], Harm())
    check([Story("a", charged)], Harm(program_failures=1))
