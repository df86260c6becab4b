"""Which node dials which one and when, and what the failed dials mean together. Pure.

In step k each node dials the one that is k ranks after it. So in each step each node dials one and
is dialled by one, and after n - 1 steps each pair has been tried in both directions. Nodes do not
wait for each other: there are never more than n connections at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

LINES_MAX: Final = 20
"""How many failures are listed for people. All are in the JSON."""


class Problem:
    """What a dial met. Part of the output."""

    SILENT: Final = "silent"
    REFUSED: Final = "refused"
    UNREACHABLE: Final = "unreachable"
    STRANGER: Final = "stranger"
    CUT: Final = "cut"
    SECOND: Final = "second-address"
    NOT_TRIED: Final = "not-tried"


class Failure(msgspec.Struct, frozen=True):
    """A dial that failed. `source` and `target` are ranks; `problem` is one of Problem's."""

    source: int
    target: int
    address: str
    problem: str
    detail: str


class NodeResult(msgspec.Struct, frozen=True):
    """What one node has seen. Times in seconds; None if it has reached nobody.

    `shown`: the node for people. `slowest`: the rank that took longest to connect.
    """

    rank: int
    shown: str
    addresses: tuple[str, ...]
    reached: int = 0
    connect_median_s: float | None = None
    connect_max_s: float | None = None
    slowest: int | None = None
    failures: tuple[Failure, ...] = ()


def targets(rank: int, nodes: int) -> list[int]:
    """The ranks that a node dials, one in each step."""
    return [(rank + step) % nodes for step in range(1, nodes)]


def describe(failures: Sequence[Failure], names: Mapping[int, str]) -> list[str]:
    """The failures in words: nodes that nobody reaches first, then pairs."""
    everybody = len(names) - 1
    by_target, by_source = defaultdict(list), defaultdict(list)
    for each in failures:
        if each.problem != Problem.SECOND:
            by_target[each.target].append(each)
            by_source[each.source].append(each)
    lines: list[str] = []
    told: set[tuple[int, int]] = set()
    for found, text in (
        (by_target, "no node reaches {}"),
        (by_source, "{} reaches no other node"),
    ):
        for rank, those in sorted(found.items()):
            if everybody > 1 and len(those) == everybody:
                lines.append(f"{text.format(names[rank])}: {_common(those)}")
                told.update((each.source, each.target) for each in those)
    left = [each for each in failures if (each.source, each.target) not in told]
    pairs = {(each.source, each.target): each for each in left}
    for (source, target), each in sorted(pairs.items()):
        back = pairs.get((target, source))
        if back is None:
            verb = "reaches" if each.problem == Problem.SECOND else "does not reach"
            lines.append(f"{names[source]} {verb} {names[target]} at {each.address}: {each.detail}")
        elif source < target:
            lines.append(
                f"{names[source]} and {names[target]} do not reach each other: "
                f"{each.address}: {each.detail}"
                if Problem.SECOND not in (each.problem, back.problem)
                else f"{names[source]} and {names[target]} reach each other with trouble: "
                f"{each.address}: {each.detail}; {back.address}: {back.detail}"
            )
    if len(lines) > LINES_MAX:
        lines[LINES_MAX:] = [f"and {len(lines) - LINES_MAX} more lines like these (see --json)"]
    return lines


def _common(those: Sequence[Failure]) -> str:
    first = those[0]
    where = first.address if len({each.address for each in those}) == 1 else ""
    return f"{where}: {first.detail}" if where else first.detail


def advice(failures: Sequence[Failure]) -> list[str]:
    """What to do, a line for each kind of problem."""
    kinds = dict.fromkeys(each.problem for each in failures)
    return [_ADVICE[each] for each in kinds if each in _ADVICE]


_ADVICE: Final = {
    Problem.SILENT: (
        "open the ports between the nodes (--port-range limits those of Rallypoint; gloo and NCCL "
        "need more), or choose a network that all of them have: --interface"
    ),
    Problem.REFUSED: (
        "a firewall rejects the connections, or the address leads to another machine: choose "
        "another network with --interface, or --local-addr"
    ),
    Problem.UNREACHABLE: (
        "there is no route: choose a network that all nodes have with --interface, such as "
        "--interface 10.0.0.0/8"
    ),
    Problem.STRANGER: (
        "another program answered: several machines have the same address (as bridges to guests "
        "have); choose a network with --interface"
    ),
    Problem.CUT: (
        "small packets pass and large ones do not: compare the MTU of the interfaces and switches "
        "(`ip link`; `ping -M do -s 8972` between the two)"
    ),
    Problem.SECOND: (
        "workers use the first address: choose the network of the second one with --interface"
    ),
    Problem.NOT_TRIED: "give more time with --timeout, or mend what the other lines say first",
}
