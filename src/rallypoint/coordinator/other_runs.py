"""Hints for nodes of one job that were given different run ids, and wait for each other.

A coordinator tells them which other runs there are. It tells a run id only to nodes that are
admitted, and only to nodes with the same token.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core.reasons import tidy
from rallypoint.core.values import NAME_LENGTH_MAX

RECENT_S: Final = 60.0
"""For so long a request counts. A node that is refused asks again about once a second."""
TOLD_MAX: Final = 3
LOOKED_AT_MAX: Final = 64
"""How many runs are compared: the youngest."""


class TurnedAway:
    """The runs that nodes asked for at a coordinator that serves one other run."""

    def __init__(self) -> None:
        self._asked_s: dict[str, float] = {}

    def note(self, run_id: str, now_s: float) -> None:
        """A node asked for this run."""
        name = tidy(run_id, NAME_LENGTH_MAX)
        self._asked_s.pop(name, None)
        self._asked_s[name] = now_s
        if len(self._asked_s) > TOLD_MAX:
            del self._asked_s[next(iter(self._asked_s))]

    def recent(self, now_s: float) -> tuple[str, ...]:
        """The runs that were asked for within RECENT_S."""
        return tuple(run_id for run_id, s in self._asked_s.items() if now_s - s <= RECENT_S)


def looking_alike(run: HostedRun, others: Iterable[HostedRun]) -> tuple[str, ...]:
    """Runs that may be of the same job: begun at about the same time, and with too few nodes.

    `others`: the youngest first.
    """
    found = (each.run_id for each in islice(others, LOOKED_AT_MAX) if _may_belong(run, each))
    return tuple(islice(found, TOLD_MAX))


def _may_belong(run: HostedRun, other: HostedRun) -> bool:
    settings = run.membership.settings
    return (
        other is not run
        and settings is not None
        and other.membership.round is None
        and not other.is_closed
        and other.membership.settings == settings
        and 0 < other.attached_count <= settings.max_nodes - run.attached_count
        and abs(other.begun_s - run.begun_s) <= RECENT_S
        and other.account.token == run.account.token
    )
