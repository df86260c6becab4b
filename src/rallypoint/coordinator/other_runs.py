"""Nodes of one job that were given different run ids wait for each other, each in its own run.

Here is what a coordinator can tell them of each other. A run id is told only to nodes that are let
in, and on a coordinator of several tokens only to those that showed the same one.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core.reasons import tidy
from rallypoint.core.values import NAME_LENGTH_MAX

RECENT_S: Final = 60.0
"""A node that was turned away asks again about once a second."""
TOLD_MAX: Final = 3
LOOKED_AT_MAX: Final = 64
"""Of a coordinator with many runs, only the youngest are looked at."""


class TurnedAway:
    """The runs that nodes asked for at a coordinator that has another one only."""

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
        """Those that were asked for until a while ago."""
        return tuple(run_id for run_id, s in self._asked_s.items() if now_s - s <= RECENT_S)


def looking_alike(run: HostedRun, others: Iterable[HostedRun]) -> tuple[str, ...]:
    """Runs that may be parts of the same job: begun about when this one was, by too few nodes.

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
