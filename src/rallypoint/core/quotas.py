"""Quotas: how many runs and connections one account may have, and how fast it may begin runs.

An account is a token at an address. All users of a token have the same rights, so the reserve for
others counts addresses, too. But many nodes may share one address (NAT, an ingress), so one address
may use nearly all of a limit.

This file must not depend on sessions or runs. Times and durations are in seconds, on the owner's
clock.
"""

from __future__ import annotations

import enum
from typing import Final

from rallypoint.core.values import FrozenStruct

RESERVED: Final = 8
"""One part in this many of each limit is reserved for accounts that have less than such a part."""
RUNS_AT_ONCE: Final = 1_000
"""How many runs one account may begin at once before it has to wait."""
WAIT_MAX_S: Final = 5.0
"""An account that would have to wait longer to begin a run is refused."""
PACES_MAX: Final = 4_096
"""How many accounts that began runs are remembered."""
EVICT_AFTER_S: Final = 60.0
"""A run that has had a round is kept at least this long after its last connection."""


class Account(FrozenStruct, frozen=True):
    """The account of a connection. `token` is a name of the token, and not the token."""

    token: str = ""
    address: str = ""

    def holders(self) -> tuple[str, str]:
        """The names under which it is counted: its token, and its token at its address."""
        return self.token, f"{self.token}@{self.address}"


NOBODY: Final = Account()
"""The account of runs that were not begun by a connection."""


class Holdings:
    """How many runs or connections each account has."""

    def __init__(self) -> None:
        self.total = 0
        self._own: dict[str, int] = {}

    def of_token(self, account: Account) -> int:
        """How many the account's token has, at all addresses."""
        return self._own.get(account.token, 0)

    def is_at_limit(self, account: Account, per_token: int | None, more: int = 1) -> bool:
        """Whether its token would have more than it may. None, or an account without: no limit."""
        if per_token is None or not account.token:
            return False
        return self.of_token(account) + more > per_token

    def has_room(self, account: Account, most: int, more: int = 1) -> bool:
        """Whether the account may have `more` more, of `most` in all.

        `more` 0: whether it may keep what it has. The last eighth is for accounts that have no more
        than an eighth, so no account takes everything.
        """
        free = most - self.total - more
        if free >= most // RESERVED or free < 0:
            return free >= 0
        return self.is_small(account, most, more)

    def is_small(self, account: Account, most: int, more: int = 1) -> bool:
        """Whether the account, with `more` more, has no more than the reserved part."""
        reserved = most // RESERVED
        return all(self._own.get(each, 0) + more <= reserved for each in account.holders())

    def take(self, account: Account) -> None:
        """The account has one more."""
        self.total += 1
        for holder in account.holders():
            self._own[holder] = self._own.get(holder, 0) + 1

    def give_back(self, account: Account) -> None:
        """The account has one less."""
        self.total -= 1
        for holder in account.holders():
            self._own[holder] -= 1
            if not self._own[holder]:
                del self._own[holder]


class Paces:
    """When each account may begin its next run: `at_once`, and then `per_s` a second."""

    def __init__(self, per_s: float, at_once: int = RUNS_AT_ONCE) -> None:
        self._each_s = 1 / per_s
        self._at_once = at_once
        self._next_s: dict[Account, float] = {}
        """When an account has used up what it began: the generic cell rate algorithm."""

    def wait_s(self, account: Account, now_s: float) -> float | None:
        """How long the account has to wait before it begins one more run. This counts as a run.

        None: the wait would be too long, and the run is not counted.
        """
        used_s = max(now_s, self._next_s.pop(account, now_s)) + self._each_s
        wait_s = used_s - now_s - self._at_once * self._each_s
        if wait_s > WAIT_MAX_S:
            self._next_s[account] = used_s - self._each_s
            return None
        self._next_s[account] = used_s
        while len(self._next_s) > PACES_MAX:
            del self._next_s[next(iter(self._next_s))]
        return max(0.0, wait_s)


class Idle(enum.Enum):
    """The kinds of runs to which no node is connected, in the order in which they are evicted."""

    UNFORMED = enum.auto()
    """It has never had a round."""
    CLOSED = enum.auto()
    EMPTY = enum.auto()
    """It has had rounds, and is not closed."""


class Keep(FrozenStruct, frozen=True):
    """How long runs are kept to which no node is connected, in seconds."""

    closed_s: float
    empty_s: float
    unformed_s: float


def may_evict(idle: Idle, idle_s: float, *, is_kept_here: bool) -> bool:
    """Whether a run may be evicted before its time, because there is no room for another.

    `is_kept_here`: it is only in memory. A ledger keeps a run that had a round until it is swept.
    """
    if idle is Idle.UNFORMED:
        return True
    if idle is Idle.EMPTY and not is_kept_here:
        return False
    return idle_s >= EVICT_AFTER_S


def keep_s(idle: Idle, arrivals: int, kept: Keep) -> float:
    """How long a run is kept after its last connection, in seconds.

    `arrivals`: how many nodes have come. If only one node came and it had no round, no other node
    was in the run.
    """
    if idle is Idle.CLOSED:
        return kept.closed_s
    if idle is Idle.UNFORMED and arrivals <= 1:
        return min(kept.unformed_s, kept.empty_s)
    return kept.empty_s
