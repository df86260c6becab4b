"""The records of nodes and workers, checked against the rules that hold whatever was done.

Each file of an agent is in the order in which things happened there: every line is one appended
write. Times are of one machine's monotonic clock, so they may be compared in a test.

R3 and R4 are checked for who was there to write something down. R7, R8 and R12 are for others.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

Event = dict[str, Any]


class Story(msgspec.Struct, frozen=True):
    """One agent's records, in order. `node`: its name, which a later agent may have again."""

    node: str
    events: list[Event]

    def of(self, *kinds: str) -> list[Event]:
        return [each for each in self.events if each["event"] in kinds]


class Harm(msgspec.Struct):
    """What a test has done to the run, as far as a rule speaks of it."""

    nodes: set[str] = msgspec.field(default_factory=set)
    """Who was killed, frozen or asked to end."""
    program_failures: int = 0
    """How often a worker was made to fail, or killed."""


def check(stories: Iterable[Story], harm: Harm) -> None:
    """Raises AssertionError, which begins with the rule."""
    told = list(stories)
    for rule in _RULES:
        rule(told)
    _only_the_harmed_are_lost(told, harm)
    _restarts_are_counted(told, harm)


def _one_round_for_a_number(stories: list[Story]) -> None:
    """R1, R2: a number is one round, with one table, in one term."""
    heads: dict[int, tuple[object, ...]] = {}
    tables: dict[int, list[str]] = {}
    for each in _all(stories, "formed"):
        head = (each["digest"], each["term"], each["nodes"], each["size"])
        assert heads.setdefault(each["round"], head) == head, f"R1: round {each['round']} twice"
    for each in _all(stories, "working"):
        table = tables.setdefault(each["round"], each["members"])
        assert table == each["members"], f"R2: two tables of round {each['round']}"


def _places_are_given_once(stories: list[Story]) -> None:
    """R3: node ranks and worker ranks, each once, and the table names the nodes that have them."""
    nodes: dict[tuple[int, int], str] = {}
    for story in stories:
        for each in story.of("formed"):
            number, rank = each["round"], each["node_rank"]
            assert 0 <= rank < each["nodes"], f"R3: node rank {rank} of {each['nodes']}"
            assert nodes.setdefault((number, rank), story.node) == story.node, (
                f"R3: node rank {rank} of round {number} was given twice"
            )
    ranks: dict[tuple[int, int], int] = {}
    for story in stories:
        for each in story.of("working"):
            number, rank = each["round"], each["rank"]
            assert 0 <= rank < each["size"], f"R3: rank {rank} of {each['size']}"
            assert each["members"][rank] == story.node, f"R3: rank {rank} is not {story.node}'s"
            assert len(set(each["members"])) == each["size"], f"R3: {each['members']}"
            assert ranks.setdefault((number, rank), each["pid"]) == each["pid"], (
                f"R3: rank {rank} of round {number} was given twice"
            )


def _only_the_ready_have_a_seat(stories: list[Story]) -> None:
    """R4: between two rounds of a node it has said that it is ready."""
    for story in stories:
        is_ready = False
        seat = None
        for each in story.of("ready", "formed"):
            if each["event"] == "ready":
                is_ready = True
            elif each["round"] != seat:
                assert is_ready, f"R4: {story.node} was given round {each['round']} unasked"
                is_ready, seat = False, each["round"]


def _tokens_grow(stories: list[Story]) -> None:
    """R5, R13: no node goes back to an earlier term or round; every round's token is higher.

    A round's own term may be below that of the coordinator that gives it to a node later.
    """
    for story in stories:
        seen = [(e["term"], e["round"]) for e in story.of("attached", "ready")]
        assert seen == sorted(seen), f"R5: {story.node} went back: {_step_back(seen)}"
        for kind in ("formed", "working"):
            tokens = [(e["term"], e["round"]) for e in story.of(kind)]
            for before, after in itertools.pairwise(tokens):
                assert before[0] <= after[0], f"R13: {story.node}: {before}, then {after}"
                assert before[1] < after[1], f"R13: {story.node}: {before}, then {after}"


def _an_earlier_round_is_over(stories: list[Story]) -> None:
    """R13: no worker of a round is at work once one of the next is."""
    for story in stories:
        rounds = [e["round"] for e in story.of("working", "asked", "added", "paused")]
        assert rounds == sorted(rounds), f"R13: {story.node}: {_step_back(rounds)}"


def _answers_are_unique(stories: list[Story]) -> None:
    """R10, R11: every acknowledged write counts once, and none is taken back.

    A value without an answer belongs to a call whose caller was gone.
    """
    values: dict[int, list[int]] = defaultdict(list)
    unanswered: Counter[int] = Counter()
    for story in stories:
        own: dict[tuple[int, int], int] = {}
        for each in story.of("asked", "added"):
            number, worker = each["round"], (each["round"], each["pid"])
            if each["event"] == "asked":
                unanswered[number] += 1
                continue
            unanswered[number] -= 1
            values[number].append(each["value"])
            assert own.get(worker, 0) < each["value"], (
                f"R10: {story.node} was told less than before"
            )
            own[worker] = each["value"]
    for number, told in values.items():
        twice = [value for value, times in Counter(told).items() if times > 1]
        assert not twice, f"R10: in round {number} counted back to {twice[:5]}"
        unheard = max(told) - len(told)
        assert unheard <= unanswered[number], (
            f"R11: in round {number} {unheard} values were told to nobody, and "
            f"{unanswered[number]} calls were not answered"
        )


def _acknowledged_writes_are_read(stories: list[Story]) -> None:
    """R10: a reader sees what was acknowledged to anybody before it asked."""
    added = sorted(_all(stories, "added"), key=lambda each: each["at_s"])
    for read in _all(stories, "paused"):
        before = [
            each["value"]
            for each in added
            if each["round"] == read["round"] and each["at_s"] < read["asked_s"]
        ]
        assert read["total"] >= max(before, default=0), (
            f"R10: round {read['round']} has {read['total']}, and {max(before)} was acknowledged"
        )


_RULES: list[Callable[[list[Story]], None]] = [
    _one_round_for_a_number,
    _places_are_given_once,
    _only_the_ready_have_a_seat,
    _tokens_grow,
    _an_earlier_round_is_over,
    _answers_are_unique,
    _acknowledged_writes_are_read,
]


def _only_the_harmed_are_lost(stories: list[Story], harm: Harm) -> None:
    """R8: a node that answers is never declared lost, whatever happens to the coordinators."""
    for each in _all(stories, "ended"):
        if each["kind"] == "node_lost":
            innocent = set(each["nodes"]) - harm.nodes
            assert not innocent, f"R8: {innocent} lost: {each['detail']}"


def _restarts_are_counted(stories: list[Story], harm: Harm) -> None:
    """The budget is charged for the program's failures, for each at most once, and kept."""
    counts: dict[int, int] = {}
    for each in _all(stories, "working"):
        count = counts.setdefault(each["round"], each["restarts"])
        assert count == each["restarts"], f"budget: two counts in round {each['round']}"
    in_order = [counts[number] for number in sorted(counts)]
    assert in_order == sorted(in_order), f"budget: {in_order}"
    assert max(in_order, default=0) <= harm.program_failures, (
        f"budget: {max(in_order)} restarts charged for {harm.program_failures} failures"
    )


def _all(stories: list[Story], kind: str) -> Iterator[Event]:
    for story in stories:
        yield from story.of(kind)


def _step_back(values: list[Any]) -> str:
    return next(f"{b} after {a}" for a, b in itertools.pairwise(values) if b < a)
