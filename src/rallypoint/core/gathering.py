"""The gathering before a round: what it waits for, and until when.

`formation` decides from counts alone whether the round is formed now. This file gives it the
counts, and sets the timer at which to decide again: the moment for simultaneous arrivals, the last
call, the time that survivors need to stop their workers, the pause of a run that ends its rounds
too often. It must not send anything to a node, and it must not change a member.
"""

from __future__ import annotations

from collections.abc import Iterable

from rallypoint.core.effects import Effect, TimerKind
from rallypoint.core.formation import Call, Counts, Decision, decide
from rallypoint.core.pacing import Pace
from rallypoint.core.roster import Bucket, Member, Roster
from rallypoint.core.stopping import Stopping
from rallypoint.core.timers import Timers
from rallypoint.core.values import RoundRecord, RunSettings


class Gathering:
    """The waits of the present gathering. `begin` or `reset` starts the next one."""

    def __init__(self, roster: Roster, timers: Timers) -> None:
        self._roster = roster
        self._timers = timers
        self.pace = Pace()
        self.stopping = Stopping(roster)
        self.call = Call.NOT_YET
        self.is_settling = False
        """Whether the moment for simultaneous arrivals has begun: it may be over."""
        self._is_settled = False
        self._call_ends_s = 0.0
        self._stop_ends_s: float | None = None
        """For which deadline the STOP timer is set."""
        self._pause_ends_s = 0.0
        self._has_begun = False
        """Whether there is anything to reset."""

    def begin(self, survivors: Iterable[Member], now_s: float) -> None:
        """The round has ended. `survivors`: its members, which get time to stop their workers."""
        self.reset()
        self._has_begun = True
        # R7: their stop time begins now.
        self.stopping.begin(survivors, now_s)

    def reset(self) -> None:
        """Forget the waits: a round has begun, or all nodes that came have gone."""
        if not self._has_begun:
            return
        for kind in (TimerKind.LAST_CALL, TimerKind.STOP):
            self._timers.cancel(kind)
        # R7: the next gathering has a last call of its own.
        self.call = Call.NOT_YET
        self.stopping.clear()
        self._stop_ends_s = None
        self.unsettle()
        self._has_begun = False

    def unsettle(self) -> None:
        """Forget the settle time that has passed: the next wait to settle begins again."""
        self._is_settled = self.is_settling = False
        self._timers.cancel(TimerKind.SETTLE)

    def counts(self, settings: RunSettings) -> Counts:
        """The counts on which the decision depends. O(1)."""
        count = self._roster.count
        return Counts(
            minimum=settings.min_nodes,
            maximum=settings.max_nodes,
            expected=settings.expected_nodes,
            ready_survivors=count(Bucket.READY_SURVIVOR),
            places_held=count(Bucket.PLACE),
            stopping=count(Bucket.STOPPING),
            absent=count(Bucket.ABSENT),
            newcomers=count(Bucket.NEWCOMER),
            cooling_survivors=count(Bucket.COOLING_SURVIVOR),
            cooling=count(Bucket.COOLING),
            settled=self._is_settled,
            call=self.call,
        )

    def chosen(self, settings: RunSettings, previous: RoundRecord | None) -> list[Member]:
        """The members of the round if it is formed now, as many as there are places (R3).

        Survivors come first, then newcomers in order of arrival. If an operator has taken places
        away, the survivors with the lowest ranks in the `previous` round keep theirs.
        """
        counts = self.counts(settings)
        survivors = self._roster.members(Bucket.READY_SURVIVOR)
        if len(survivors) > settings.max_nodes and previous is not None:
            ranks = {row.name: rank for rank, row in enumerate(previous.members)}
            survivors.sort(key=lambda member: ranks.get(member.name, len(ranks)))
        # R3: survivors before newcomers, in order of arrival.
        members = survivors + self._roster.newcomers()
        if len(members) < counts.chosen:
            # R7: below the minimum, those that should stay out are let in.
            members += self._roster.cooling()
        # R3: as many as there are places.
        return members[: counts.chosen]

    def decide(self, settings: RunSettings) -> Decision:
        """Whether to form the round now, or what to wait for."""
        counts = self.counts(settings)
        if not (counts.able or counts.held or counts.places_held):
            # No node is left, so the next one begins a new gathering. This case is checked first
            # because it occurs for each of thousands of nodes that attach before one is ready.
            if self._has_begun:
                self.reset()
            return Decision.TOO_FEW
        decision = decide(counts)
        if self.is_settling and decision is not Decision.SETTLE:
            self.unsettle()
        return decision

    def wait(
        self, decision: Decision, settings: RunSettings, round_number: int, now_s: float
    ) -> list[Effect]:
        """Set the timer for the next decision, unless it is set."""
        match decision:
            case Decision.SETTLE if not self.is_settling:
                self.is_settling = True
                kind, delay_s = TimerKind.SETTLE, settings.settle_s
            # R7: the last call begins once, and never again.
            case Decision.LAST_CALL if self.call is Call.NOT_YET:
                self.call, self._call_ends_s = Call.RUNNING, now_s + settings.last_call_s
                kind, delay_s = TimerKind.LAST_CALL, settings.last_call_s
            case Decision.STOPPING:
                ends_s = self.stopping.next_end_s()
                # R7: the timer of the next deadline, once.
                if ends_s is None or ends_s == self._stop_ends_s:
                    return []
                self._stop_ends_s = ends_s
                kind, delay_s = TimerKind.STOP, max(0.0, ends_s - now_s)
            case _:
                return []
        self._has_begun = True
        # R7: a wait ends by its timer.
        return [self._timers.set(kind, delay_s, round_number=round_number)]

    def pause(self, pause_s: float, round_number: int, now_s: float) -> list[Effect]:
        """The run ends its rounds too often: form the next one after this pause."""
        if self._timers.is_set(TimerKind.PACE):
            return []
        self._pause_ends_s = now_s + pause_s
        # R7: so does the pause.
        return [self._timers.set(TimerKind.PACE, pause_s, round_number=round_number)]

    def timer_fired(self, kind: TimerKind, now_s: float) -> None:
        """A SETTLE, LAST_CALL, STOP or PACE timer fired that was not stale."""
        match kind:
            case TimerKind.SETTLE:
                # R7: the moment for simultaneous arrivals is over.
                self._is_settled = True
            case TimerKind.LAST_CALL:
                # R7: the round does not wait for nodes that are not ready by now.
                self.call = Call.OVER
                # R7: nor for nodes whose stop time has passed.
                self.stopping.end_due(now_s)
            case TimerKind.STOP:
                self._stop_ends_s = None
                self.stopping.end_due(now_s)
            case _:
                """PACE: the pause is over."""

    def last_call_left_s(self, now_s: float) -> float | None:
        """How long the last call still runs, in seconds; None if it does not."""
        return max(0.0, self._call_ends_s - now_s) if self.call is Call.RUNNING else None

    def pause_left_s(self, now_s: float) -> float | None:
        """How long the next round is still delayed, in seconds; None if it is not."""
        is_held_back = self._timers.is_set(TimerKind.PACE)
        return max(0.0, self._pause_ends_s - now_s) if is_held_back else None

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, without times, as a hashable value."""
        is_paused = self._timers.is_set(TimerKind.PACE)
        return (self.call, self._is_settled, self.is_settling, self.pace.freeze(), is_paused)
