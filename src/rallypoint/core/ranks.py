"""Which node gets which rank: pure functions of the last round and the members of the next.

`POLICIES` has the rank policies by name. A policy sees names, hosts, indexes and numbers of
workers. It must not see a clock, an address or a phase, so that every coordinator computes the same
ranks from the same members (R2). `seats_of` gives the worker ranks of a round that is formed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final, TypeAlias

from rallypoint.core.values import FrozenStruct, RoundRecord, Seat


class Candidate(FrozenStruct, frozen=True):
    """A node that will be in the next round: its unique name, its host, its number of workers.

    `index`: its place among the nodes that a scheduler started; None without a scheduler.
    """

    name: str
    host: str
    workers: int
    index: int | None = None


Policy: TypeAlias = Callable[[Sequence[str], Sequence[Candidate]], list[str]]


def order(policy: str, previous: Sequence[str], candidates: Sequence[Candidate]) -> list[str]:
    """Return the candidates' names in node-rank order: the node at index i has node rank i.

    `previous` holds the names of the last round in its node-rank order, and is empty before the
    first. `candidates` come in order of arrival; no policy depends on it.
    Every candidate gets exactly one rank (R3). O(n log n).

    Raises ValueError for an unknown policy, and for a name that occurs twice.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown rank policy {policy!r}; known are {', '.join(POLICIES)}")
    _refuse_duplicates("previous", previous)
    # R3: each node once.
    _refuse_duplicates("candidates", [candidate.name for candidate in candidates])
    return POLICIES[policy](previous, candidates)


def worker_ranks(names: Sequence[str], workers: Mapping[str, int]) -> list[int]:
    """Return the first worker rank of each node, in the order of `names` (node-rank order).

    Node i has the ranks from result[i] on, as many as `workers` gives its name; together they are
    0 ... size - 1, each once (R3). Raises ValueError for a node without workers, KeyError for a
    name that `workers` lacks.
    """
    counts = [workers[name] for name in names]
    for name, count in zip(names, counts, strict=True):
        # R3: a node without workers would leave no rank.
        if count < 1:
            raise ValueError(
                f"node {name!r} has {count} workers; a node of a round needs at least one"
            )
    # R3: each begins where the one before ends.
    return list(accumulate(counts, initial=0))[:-1]


def seats_of(record: RoundRecord) -> list[Seat]:
    """The seat of every member of a round, in node-rank order. O(n)."""
    workers = {member.name: member.workers for member in record.members}
    firsts = worker_ranks(tuple(workers), workers)
    return [
        Seat(rank, first, count)
        for rank, (first, count) in enumerate(zip(firsts, workers.values(), strict=True))
    ]


def natural_order(candidates: Iterable[Candidate]) -> list[str]:
    """Return the names in natural order of host, then of name: `node9` before `node10`."""
    return [candidate.name for candidate in sorted(candidates, key=_natural_place)]


def stable_order(previous: Sequence[str], candidates: Sequence[Candidate]) -> list[str]:
    """Survivors keep their node ranks where possible, and newcomers fill the gaps.

    With n candidates, a survivor whose old rank is below n keeps it. Those whose old rank is n or
    more have to move: they take the lowest gaps, in the order of their old ranks. Newcomers take
    the remaining gaps, in natural order.
    """
    return _kept(previous, candidates, natural_order)


def index_order(previous: Sequence[str], candidates: Sequence[Candidate]) -> list[str]:
    """As `stable`, but newcomers take the gaps in the order of their indexes.

    So the first round has the order of the scheduler. Newcomers without an index come last, in
    natural order, and so do those of one index among themselves.
    """
    return _kept(previous, candidates, _by_index)


def _by_index(candidates: Iterable[Candidate]) -> list[str]:
    def place(candidate: Candidate) -> tuple[bool, int]:
        return candidate.index is None, candidate.index or 0

    # R2: a total order: natural order decides between equal indexes, and sorting is stable.
    natural = sorted(candidates, key=_natural_place)
    return [candidate.name for candidate in sorted(natural, key=place)]


def _kept(
    previous: Sequence[str],
    candidates: Sequence[Candidate],
    in_order: Callable[[Iterable[Candidate]], list[str]],
) -> list[str]:
    remaining = {candidate.name: candidate for candidate in candidates}
    survivors = [remaining.pop(name, None) for name in previous]
    count = len(candidates)
    # R3: as many places as candidates.
    kept = survivors[:count] + [None] * (count - len(survivors))
    # R3: survivors beyond the end move into gaps.
    moved = [survivor.name for survivor in survivors[count:] if survivor is not None]
    fillers = iter(moved + in_order(remaining.values()))
    # R3: each gap is filled once.
    return [survivor.name if survivor is not None else next(fillers) for survivor in kept]


POLICIES: Final[dict[str, Policy]] = {
    "stable": stable_order,
    "index": index_order,
    "natural": lambda previous, candidates: natural_order(candidates),
}


# re's \d and str.isdigit also match superscripts and digits of other scripts, which do not all
# compare as numbers. Here these are text.
_DIGITS: Final = re.compile("([0-9]+)")

_NaturalKey: TypeAlias = tuple[str | tuple[int, str], ...]


def _natural_key(text: str) -> _NaturalKey:
    """Text and numbers in turns. Text is first (perhaps empty), so like is compared with like."""
    parts = _DIGITS.split(text)
    return tuple(_number_key(part) if index % 2 else part for index, part in enumerate(parts))


def _number_key(digits: str) -> tuple[int, str]:
    # R12: a name may have thousands of digits.
    # int() is quadratic and refuses thousands of digits, which a hostile name may have.
    significant = digits.lstrip("0")
    return len(significant), significant


def _natural_place(candidate: Candidate) -> tuple[_NaturalKey, str, _NaturalKey, str]:
    # "node1" and "node01" are the same number: the plain text makes the order total.
    host, name = candidate.host, candidate.name
    # R2: a total order, whoever computes it.
    return _natural_key(host), host, _natural_key(name), name


def _refuse_duplicates(what: str, names: Sequence[str]) -> None:
    if len(names) == len(dict.fromkeys(names)):
        return
    seen: dict[str, None] = {}
    for name in names:
        if name in seen:
            raise ValueError(f"{what} has the name {name!r} twice")
        seen[name] = None
