"""How much of a coordinator one account may take: runs, connections, and how fast it begins runs.

An account is who holds a token, at one address. One token is one level of trust, so what the others
are left with is decided by address, too; but many nodes may share one address (NAT, an ingress), so
an address alone may use nearly all there is.

Nothing here knows of sessions or runs. Times and durations are in seconds, on the owner's clock.
"""

from __future__ import annotations

import enum
from typing import Final

from rallypoint.core.values import FrozenStruct

RESERVED: Final = 8
"""One part in so many of each limit is left to accounts that have less than such a part."""
RUNS_AT_ONCE: Final = 1_000
"""So many runs may be begun at once by one account, before it has to wait."""
WAIT_MAX_S: Final = 5.0
"""Who would have to wait longer to begin a run is refused."""
PACES_MAX: Final = 4_096
"""How many accounts are remembered that have begun runs."""
EVICT_AFTER_S: Final = 60.0
"""A run that has had a round is kept for so long after its last connection, in any case."""


class Account(FrozenStruct, frozen=True):
    """Who a connection belongs to. `token` names the token and does not tell it."""

    token: str = ""
    address: str = ""

    def holders(self) -> tuple[str, str]:
        """The names that it is counted under: its token, and its token at its address."""
        return self.token, f"{self.token}@{self.address}"


NOBODY: Final = Account()
"""Whose runs those are that no connection has begun."""


class Holdings:
    """How many things of one kind each account has."""

    def __init__(self) -> None:
        self.total = 0
        self._own: dict[str, int] = {}

    def has_room(self, account: Account, most: int, more: int = 1) -> bool:
        """Whether the account may have so many more, where there may be `most` in all.

        `more` 0: whether it may keep what it has. The last eighth is for accounts that have no more
        than that, so nobody takes all.
        """
        free = most - self.total - more
        if free >= most // RESERVED or free < 0:
            return free >= 0
        return self.is_small(account, most, more)

    def is_small(self, account: Account, most: int, more: int = 1) -> bool:
        """Whether the account has no more than the part that is reserved, with so many more."""
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
        """When an account has used up what it has begun; the generic cell rate algorithm."""

    def wait_s(self, account: Account, now_s: float) -> float | None:
        """How long the account has to wait before it begins one more run; that is its turn then.

        None: too long, and it has no turn.
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
    """What a run is to which no node is connected, in the order in which they go."""

    UNFORMED = enum.auto()
    """It has never had a round."""
    CLOSED = enum.auto()
    EMPTY = enum.auto()
    """It has had rounds, and is not closed."""


class Keep(FrozenStruct, frozen=True):
    """For how long runs are kept to which no node is connected."""

    closed_s: float
    empty_s: float
    unformed_s: float


def may_evict(idle: Idle, idle_s: float, *, is_kept_here: bool) -> bool:
    """Whether a run may go before its time, where there is no room for another.

    `is_kept_here`: it is in memory only. A ledger keeps what had a round until it is swept.
    """
    if idle is Idle.UNFORMED:
        return True
    if idle is Idle.EMPTY and not is_kept_here:
        return False
    return idle_s >= EVICT_AFTER_S


def keep_s(idle: Idle, arrivals: int, kept: Keep) -> float:
    """How long a run is kept to which no node is connected, since that is so.

    `arrivals`: how many times a node came for the first time. One alone that never had a round has
    made no run that anybody else knows of.
    """
    if idle is Idle.CLOSED:
        return kept.closed_s
    if idle is Idle.UNFORMED and arrivals <= 1:
        return min(kept.unformed_s, kept.empty_s)
    return kept.empty_s
