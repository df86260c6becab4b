"""The names that are most like one that does not exist: most unknown runs are misspelled.

Anybody with a token can ask for any name, and choose the names of runs. So the work has a bound,
whatever the names are.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Final

LOOKED_AT_MAX: Final = 10_000
"""The most names whose lengths are compared."""
CHARACTERS_MAX: Final = 20_000
"""The most characters of names whose letters are compared, which takes some milliseconds."""
COMPARED_MAX: Final = 8
"""The most names that difflib compares, of those that share the most pairs of letters."""
COMPARED_LENGTH_MAX: Final = 32
"""The longest name that difflib compares: its work can grow with the cube of the length."""
NEAREST_MAX: Final = 3
LENGTHS_APART_MAX: Final = 16
"""Names whose lengths differ more are not compared."""
ALIKE: Final = 0.6
"""How alike names must be, from 0 to 1: difflib's default."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """At most three of the known names, the most similar one first."""
    pairs = _pairs(name)
    shared = ((_share(pairs, _pairs(each)), each) for each in _compared(name, known))
    best = heapq.nlargest(COMPARED_MAX, shared, key=lambda found: found[0])
    if len(name) <= COMPARED_LENGTH_MAX:
        names = [each for _, each in best]
        return difflib.get_close_matches(name, names, NEAREST_MAX, ALIKE)
    return [each for share, each in best if share >= ALIKE][:NEAREST_MAX]


def _compared(name: str, known: Iterable[str]) -> Iterator[str]:
    left = CHARACTERS_MAX - len(name)
    for each in islice(known, LOOKED_AT_MAX):
        if abs(len(each) - len(name)) > LENGTHS_APART_MAX:
            continue
        left -= len(each)
        if left < 0:
            return
        yield each


def _pairs(name: str) -> set[str]:
    """Each letter with the next one; also the first and the last letter, which have none."""
    padded = f"\0{name}\0"
    return set(map("".join, pairwise(padded)))


def _share(pairs: set[str], others: set[str]) -> float:
    """How many of both are in common, from 0 to 1 (Dice's coefficient)."""
    return 2 * len(pairs & others) / (len(pairs) + len(others))


def did_you_mean(found: list[str]) -> str:
    """The question for people; "" if there is none."""
    return f"did you mean {' or '.join(map(repr, found))}? " if found else ""
