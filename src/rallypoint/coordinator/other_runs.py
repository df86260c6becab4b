"""Hints for nodes of one job that wait for each other because their run ids differ.

A coordinator names the other runs to them. It names a run only to admitted nodes, all of which have
its token.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core.reasons import tidy
from rallypoint.core.values import NAME_LENGTH_MAX

RECENT_S: Final = 60.0
"""How long a request counts, in seconds. A refused node asks again about once a second."""
TOLD_MAX: Final = 3
LOOKED_AT_MAX: Final = 64
"""How many runs to compare, the youngest first."""


class TurnedAway:
    """The runs for which nodes asked at a coordinator that serves only another run."""

    def __init__(self) -> None:
        self._asked_s: dict[str, float] = {}

    def record(self, run_id: str, now_s: float) -> None:
        """Record that a node asked for this run."""
        name = tidy(run_id, NAME_LENGTH_MAX)
        self._asked_s.pop(name, None)
        self._asked_s[name] = now_s
        if len(self._asked_s) > TOLD_MAX:
            del self._asked_s[next(iter(self._asked_s))]

    def recent(self, now_s: float) -> tuple[str, ...]:
        """The runs for which nodes asked within RECENT_S."""
        return tuple(run_id for run_id, s in self._asked_s.items() if now_s - s <= RECENT_S)


def looking_alike(run: HostedRun, others: Iterable[HostedRun]) -> tuple[str, ...]:
    """Runs that may be of the same job: begun at about the same time, and with too few nodes.

    `others`: the youngest run first.
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
