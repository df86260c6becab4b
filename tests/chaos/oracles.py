"""What must hold of a job, whatever was done to it: the rules, from what everybody wrote down.

The checks of single rules are those of the other tests (tests/failover/records.py for nodes and
workers, rallypoint.checkers for the ledger). Here are those that need to know what was done when.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil

from rallypoint.checkers.violations import InvariantViolation
from rallypoint.core import election as e
from tests.chaos import store_calls
from tests.chaos.faults import Faults, Harm
from tests.failover import etcd_history, records
from tests.failover.etcd_history import Written
from tests.failover.records import Story

HARMED_FOR_S = 30.0
"""How long after its harm a node may still be declared lost: it is suspect and probed first, a
coordinator may change meanwhile, and then all deadlines begin again."""
DESCRIPTORS_MORE_MAX = 24
MEMORY_MORE_BYTES_MAX = 48 << 20
"""How much a process may have grown between two moments of peace."""


class Size(dict[int, tuple[int, int]]):
    """By process: its open descriptors, and its bytes of memory."""


def sizes(pids: Iterable[int]) -> Size:
    """Of those that are there."""
    found = Size()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found[pid] = (process.num_fds(), process.memory_info().rss)
    return found


def grown(before: Size, after: Size) -> str:
    """Which process has more descriptors or memory than it may keep; "" if none."""
    for pid, (descriptors, memory) in after.items():
        if pid in before:
            more, more_bytes = descriptors - before[pid][0], memory - before[pid][1]
            if more > DESCRIPTORS_MORE_MAX:
                return f"leak: process {pid} has {more} more descriptors: {_open_in(pid)}"
            if more_bytes > MEMORY_MORE_BYTES_MAX:
                return f"leak: process {pid} has {more_bytes} more bytes"
    return ""


def _open_in(pid: int) -> str:
    """Its descriptors: how many of each kind, and the connections."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        kinds = Counter(
            str(each.readlink()).partition(":")[0] for each in Path(f"/proc/{pid}/fd").iterdir()
        )
        ends = Counter((each.status, each.raddr) for each in process.net_connections("tcp"))
        return f"{dict(kinds)}, {dict(ends)}"
    return "?"


def check(stories: list[Story], faults: Faults) -> tuple[int, int]:
    """The rules for nodes and workers. Raises AssertionError, which begins with the rule.

    Returns how many calls of stores were answered, and for how many keys it is not decided whether
    an order explains theirs.
    """
    everybody = {story.node for story in stories}
    records.check(stories, records.Harm(everybody, faults.program_failures))
    only_the_harmed_are_lost(stories, faults.harm)
    return store_calls.check(stories)


def check_ledger(stories: list[Story], written: list[Written], *, is_whole: bool) -> None:
    """The rules for all that was written to the ledger, in its order.

    `is_whole`: whether `written` has the end of every log. Raises AssertionError.
    """
    try:
        counted = etcd_history.check(written)
    except InvariantViolation as error:
        raise AssertionError(f"in the ledger: {error}") from error
    committed_as_told(stories, written)
    for story in stories:
        for each in story.of("added") if is_whole else ():
            number, value = each["round"], each["value"]
            assert value <= counted[number], f"R10: {value} of round {number} is not in the log"


def only_the_harmed_are_lost(stories: Iterable[Story], harm: Iterable[Harm]) -> None:
    """R8: a node that answers is never declared lost."""
    by_node: dict[str, list[Harm]] = {}
    for each in harm:
        by_node.setdefault(each.node, []).append(each)
    for story in stories:
        for ended in story.of("ended"):
            if ended["kind"] != "node_lost":
                continue
            for node in ended["nodes"]:
                was = [
                    each
                    for each in by_node.get(node, ())
                    if each.from_s <= ended["at_s"] <= each.to_s + HARMED_FOR_S
                ]
                assert was, (
                    f"R8: {node} was lost in round {ended['round']}, and nobody had touched it: "
                    f"{ended['detail']}"
                )


def committed_as_told(stories: Iterable[Story], written: Iterable[Written]) -> None:
    """R1, R5: each node has the digest and the term of a round that the ledger has."""
    heads = {}
    for key, value in written:
        if key.startswith("r/runs/") and value is not None:
            head = e.decode_run(value).round
            if head is not None:
                heads[head.number] = (head.term, head.digest)
    for story in stories:
        for each in story.of("formed"):
            told = (each["term"], each["digest"])
            assert heads.get(each["round"]) == told, (
                f"R5: {story.node} has round {each['round']} as {told}, and the ledger as "
                f"{heads.get(each['round'])}"
            )
