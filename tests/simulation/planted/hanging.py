"""Bugs of hangs: rounds that end as one and should not, and the reverse."""

from __future__ import annotations

from typing import Any

from tests.simulation.planted.planting import Bug, replaces


@replaces("rallypoint.core.progress:RunProgress.note")
def _first_report_only(original: Any, self: Any, name: Any, progress: Any, now_s: Any) -> None:
    """The deadline counts from the first report of a round."""
    is_known, before_s = self.round == progress.round and bool(self.nodes), self.advanced_s
    original(self, name, progress, now_s)
    if is_known:
        self.advanced_s = before_s


@replaces("rallypoint.core.hangs:conclude")
def _asks_for_ever(original: Any, run: Any) -> None:
    run._progress.stop_asking()
    run._do(run._progress.watch(1.0))


HANGING = (
    Bug(
        name="hang-of-a-round-that-advances",
        rule="R15",
        source="none",
        parts=(_first_report_only,),
        seed=507,
    ),
    Bug(
        name="hang-that-does-not-end",
        rule="R15",
        source="none",
        parts=(_asks_for_ever,),
        seed=638,
    ),
)
