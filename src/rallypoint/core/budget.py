"""How many bytes a process keeps for its peers, and how runs share them. Pure.

Each run has a *share* that counts what is kept for it: stored, awaited, queued. Its fair part is
the limit, divided by the number of runs for which anything is kept and one more, for the next run.
A run may always have its fair part. Above that it borrows, as long as at least as much stays free
as it then has. So only a run above its fair part is refused, and two runs that borrow all they can
leave a third of the limit free. This is the dynamic threshold of shared-memory switches (Choudhury
and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).

What a run borrowed is not taken back. If many runs come after others have borrowed, the sum may
pass the limit, by less than the limit. The runs that borrowed get nothing until they are below
their part.
"""

from __future__ import annotations

from typing import Final

from rallypoint.core.sizes import size_text
from rallypoint.core.values import FrozenStruct

BYTES_MIN: Final = 16 * 1024**2
"""A smaller budget would refuse the largest messages of a single node."""
BYTES_DEFAULT: Final = 1024**3
"""The budget if the size of the memory is unknown."""
CALL_BYTES_MAX: Final = 16 * 1024**2
"""The most that one call of a store can add: a message of 8 MiB, and 10,000 keys."""
HOW_TO_RAISE: Final = "raise it where the coordinator starts: --memory or RALLYPOINT_MEMORY"


class Excess(FrozenStruct, frozen=True):
    """Why a run cannot have `asked` more bytes. All sizes in bytes.

    `of_one_sender`: `all` and `bytes_max` are those of the runs of its token, and not of all runs.
    """

    name: str
    asked: int
    own: int
    fair: int
    all: int
    bytes_max: int
    of_one_sender: bool = False

    def __str__(self) -> str:
        if self.of_one_sender:
            return (
                f"{self.name} cannot get {size_text(self.asked)} more: the runs of its token use "
                f"{size_text(self.all)} of {size_text(self.bytes_max)} (RALLYPOINT_TOKEN_MEMORY)"
            )
        return (
            f"{self.name} uses {size_text(self.own)} here and cannot get {size_text(self.asked)} "
            f"more: all runs together use {size_text(self.all)} of {size_text(self.bytes_max)}, "
            f"and the fair share of a run is {size_text(self.fair)}"
        )


class MemoryBudget:
    """The bytes of one process. All methods are O(1) for any number of shares."""

    __slots__ = ("_holders", "bytes_max", "fair", "surely", "used")

    def __init__(self, bytes_max: int = BYTES_DEFAULT) -> None:
        self.bytes_max = bytes_max
        self.used = 0
        self._holders = 0
        self._set_fair()

    def share(self, name: str) -> MemoryShare:
        """A new share. `name` is for people: "run 'job'"."""
        return MemoryShare(self, name)

    def count(self, more: int) -> None:
        """Add `more` to the number of shares that are in use. Only shares call this."""
        self._holders += more
        self._set_fair()

    def _set_fair(self) -> None:
        self.fair = self.bytes_max // (self._holders + 1)
        """What each run may always have."""
        self.surely = self.fair - CALL_BYTES_MAX
        """A run for which no more than this is kept may make any call."""


class MemoryGroup:
    """What is kept for all runs of one token together, which is limited to `bytes_max`."""

    __slots__ = ("bytes_max", "used")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0


class MemoryShare:
    """What is kept for one run. `add` is called for every message.

    `group`: the runs of the same token, if they have a limit of their own.
    """

    __slots__ = ("_budget", "group", "name", "used")

    def __init__(self, budget: MemoryBudget, name: str) -> None:
        self.name = name
        self.used = 0
        self.group: MemoryGroup | None = None
        self._budget = budget

    def add(self, size: int) -> None:
        """Count `size` more bytes, or fewer if negative. Never refuses: they are kept already."""
        before = self.used
        self.used = after = before + size
        self._budget.used += size
        if self.group is not None:
            self.group.used += size
        if not before or not after:
            self._budget.count((after != 0) - (before != 0))

    def join(self, group: MemoryGroup | None) -> None:
        """Count for this group from now on; None: for none."""
        if self.group is not None:
            self.group.used -= self.used
        self.group = group
        if group is not None:
            group.used += self.used

    def is_near_fair(self, margin: int) -> bool:
        """Whether `margin` more bytes would be more than the fair part, or there is a group."""
        return self.used + margin > self._budget.fair or self.group is not None

    def excess(self, size: int) -> Excess | None:
        """Why the run cannot have `size` more bytes; None if it can."""
        budget, own, group = self._budget, self.used + size, self.group
        if group is not None and group.used + size > group.bytes_max:
            fair = max(0, group.bytes_max - group.used)
            return Excess(self.name, size, self.used, fair, group.used, group.bytes_max, True)
        if own <= budget.fair or own <= budget.bytes_max - budget.used - size:
            return None
        return Excess(self.name, size, self.used, budget.fair, budget.used, budget.bytes_max)

    def close(self) -> None:
        """Give all bytes back. Later calls of `add` do not change the budget."""
        self.add(-self.used)
        self.join(None)
        self._budget = MemoryBudget()
