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


def test_what_keeps_the_rules_passes() -> None:
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
def test_a_round_that_is_not_one(rule: str, change: dict[str, Any]) -> None:
    name = next(iter(change))
    b = [each | change if name in each else each for each in node(1)]
    must_fail(rule, node(0), b, Harm())


def test_a_round_that_was_not_asked_for() -> None:
    unasked = [each for each in node(0, 2) if each["event"] != "ready"]
    must_fail("R4", [*node(0), *unasked], node(1), Harm())


def test_an_earlier_term() -> None:
    earlier = {"event": "attached", "term": 1, "round": 2}
    must_fail("R5", [*node(0), *node(0, 2, term=2), earlier], node(1), Harm())


def test_a_round_that_comes_twice() -> None:
    must_fail("R13", [*node(0), *node(0)[1:2]], node(1), Harm())


def test_an_earlier_worker_that_goes_on() -> None:
    must_fail("R13", [*node(0), *node(0, 2), *added(0, 1)], node(1), Harm())


def test_a_value_that_is_given_twice() -> None:
    must_fail("R10", [*node(0), *added(0, 1)], [*node(1), *added(1, 1)], Harm())


def test_a_value_below_the_last_one() -> None:
    must_fail("R10", [*node(0), *added(0, 2), *added(0, 1)], node(1), Harm())


def test_a_call_that_counts_twice() -> None:
    must_fail("R11", [*node(0), *added(0, 1), *added(0, 3)], node(1), Harm())


def test_a_reader_who_does_not_see_what_was_acknowledged() -> None:
    read = {"event": "paused", "round": 1, "pid": 1, "asked_s": 5.0, "total": 1}
    a = [*node(0), *added(0, 1), *added(0, 2)]
    must_fail("R10", a, [*node(1), read], Harm())


def test_who_was_not_harmed_is_lost() -> None:
    lost = {"event": "ended", "kind": "node_lost", "nodes": ["b"], "detail": "silent"}
    must_fail("R8", [*node(0), lost], node(1), Harm(nodes={"a"}))
    check([Story("a", [*node(0), lost]), Story("b", node(1))], Harm(nodes={"b"}))


def test_a_restart_that_nobody_caused() -> None:
    charged = [each | {"restarts": 1} for each in node(0)]
    must_fail("budget", charged, [], Harm())
    check([Story("a", charged)], Harm(program_failures=1))
