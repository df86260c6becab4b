"""Pages of a list of runs. A coordinator may have ten thousand runs with ids of a kilobyte.

Runs are ordered by their names in the ledger, which is the same for all coordinators and engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import nsmallest
from typing import Final, TypeVar

import msgspec

from rallypoint.ledger.keys import run_key

T = TypeVar("T")

RUNS_SHOWN_MAX: Final = 1_000
"""The most runs that one answer lists."""


class Page(msgspec.Struct, frozen=True):
    """The runs of one answer: at most `most`, beginning after the run `after`, if that is given."""

    after: str = ""
    most: int = RUNS_SHOWN_MAX

    @property
    def after_key(self) -> str:
        return run_key(self.after) if self.after else ""

    def first(self, items: Iterable[T], key: Callable[[T], str]) -> list[T]:
        """The items of this page, in order, and one more if there are more. O(n).

        `key` returns the name of the item's run in a ledger; it is slow for some ids.
        """
        after = self.after_key
        keyed = ((key(item), number, item) for number, item in enumerate(items))
        found = nsmallest(self.most + 1, (each for each in keyed if each[0] > after))
        return [item for _, _, item in found]


def page_of(query: Mapping[str, str]) -> Page:
    """The page for `?limit=` and `?after=`. Raises ValueError with a text that names the fault."""
    after = query.get("after", "")
    if not after.isprintable():
        raise ValueError("after must be the id of a run")
    most = number_in(query, "limit", RUNS_SHOWN_MAX)
    return Page(after, RUNS_SHOWN_MAX if most is None else most)


def number_in(query: Mapping[str, str], name: str, most: int, *, least: int = 1) -> int | None:
    """The number that a query names, at most `most`; None if it names none.

    Raises ValueError, with a text that names the fault, unless it is a whole number from `least`
    on, in ASCII digits. `most` is below 10**9.
    """
    text = query.get(name)
    if text is None:
        return None
    fault = ValueError(f"{name} must be a whole number{' above 0' if least else ''}")
    if not (text.isascii() and text.isdigit()):
        raise fault
    digits = text.lstrip("0") or "0"
    # Python does not read more than 4,300 digits, and few functions take a number above 2**63.
    number = most if len(digits) > 9 else int(digits)
    if number < least:
        raise fault
    return min(number, most)
