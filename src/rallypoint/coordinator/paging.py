"""A part of a list of runs. A coordinator may have ten thousand, whose ids have a kilobyte each.

Runs are in the order of their names in the ledger, on which all coordinators and engines agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import nsmallest
from typing import Final, NamedTuple, TypeVar

from rallypoint.ledger.keys import run_key

T = TypeVar("T")

RUNS_SHOWN_MAX: Final = 1_000
"""How many runs one answer lists."""


class Page(NamedTuple):
    """Which runs are asked for: at most `most`, and only those behind the run `after`, if given."""

    after: str = ""
    most: int = RUNS_SHOWN_MAX

    @property
    def after_key(self) -> str:
        return run_key(self.after) if self.after else ""

    def first(self, items: Iterable[T], key: Callable[[T], str]) -> list[T]:
        """Those of this page, in order, and one more if there are more. O(n).

        `key`: the name of the item's run in a ledger. To make one takes long for some ids.
        """
        after = self.after_key
        keyed = ((key(item), number, item) for number, item in enumerate(items))
        found = nsmallest(self.most + 1, (each for each in keyed if each[0] > after))
        return [item for _, _, item in found]


def page_of(query: Mapping[str, str]) -> Page:
    """What `?limit=` and `?after=` ask for. Raises ValueError with what is wrong."""
    after = query.get("after", "")
    if not after.isprintable():
        raise ValueError("after must be the id of a run")
    try:
        most = int(query.get("limit", RUNS_SHOWN_MAX))
    except ValueError:
        most = 0
    if most < 1:
        raise ValueError("limit must be a whole number above 0")
    return Page(after, min(most, RUNS_SHOWN_MAX))
