"""The names that are most like one that does not exist: most unknown runs are misspelled."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import Final

COMPARED_MAX: Final = 1_000
"""The most names to compare: a comparison takes some microseconds."""
NEAREST_MAX: Final = 3
LENGTHS_APART_MAX: Final = 16
"""Names whose lengths differ more are not compared."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """At most three of the known names, the most similar one first."""
    length = len(name)
    alike = (each for each in known if abs(len(each) - length) <= LENGTHS_APART_MAX)
    return difflib.get_close_matches(name, list(islice(alike, COMPARED_MAX)), NEAREST_MAX)


def did_you_mean(found: list[str]) -> str:
    """The question for people; "" if there is none."""
    return f"did you mean {' or '.join(map(repr, found))}? " if found else ""
