"""Which members are suspect, which are lost, and when many losses are not declared (R8).

To stop a thousand nodes because of a pause in the network is worse than to notice one death late.
But the end of a process should be noticed at once. So:

* a member whose kernel closed its connection is lost at once (`endings` has the proof);
* a member whose connection closed in any other way is lost if it does not resume within the grace;
* a silent member is suspect. It is lost after `lost_after_s`, or when it leaves a probe unanswered
  while a case is open;
* while many members are missing together, none of these is lost: the path or the coordinator is
  more likely to be the cause. This is the mass guard.

This file keeps the deadlines and finds the members that are past theirs. `membership` decides what
follows from a loss.
"""

from __future__ import annotations

from rallypoint.core.effects import Effect, Timer, TimerKind
from rallypoint.core.judging import JudgingClock
from rallypoint.core.probing import Probe
from rallypoint.core.roster import Member, Roster
from rallypoint.core.timers import Timers
from rallypoint.core.values import Reachability, RunSettings

QUEUE_NODES = 500
"""If more members than this are missing, the grace grows in proportion, because their reconnects
queue up. It depends on their number and not on the size of the run, so that one death in a large
run is noticed as soon as in a small one.
"""

HOST_GRACE_S = 2.0
"""How long the node that hosted the former coordinator has to attach to the next one, if the lease
ran out. All living nodes attach within this time after a takeover (docs/operations.md).
"""

BURST_S = 0.025
"""Processes that end together are declared lost together, when this time has passed without another
end. Until then nothing is sent to the run. A process that ends with unread input makes its kernel
send a reset instead of a FIN, and would then have the grace.
"""
BURST_MAX_S = 1.0


class Suspicion:
    """Deadlines of members in trouble."""

    def __init__(self, roster: Roster, timers: Timers, clock: JudgingClock, probe: Probe) -> None:
        self._roster = roster
        self._timers = timers
        self._clock = clock
        self._probe = probe
        self._overdue: dict[str, None] = {}
        self._absent: dict[str, None] = {}
        """Members that have yet to attach after a takeover. The ATTACH timer is their deadline."""
        self._unguarded: dict[str, None] = {}
        """Members that the mass guard neither counts nor protects: see `attach_over`."""
        self._host_grace_s = HOST_GRACE_S
        self._expected = 0
        self._arrived = 0
        self._ended: dict[str, None] = {}
        self._ended_missing: dict[str, None] = {}
        """Those of them that are missed. Kept, because thousands of processes may end together, and
        a count after each end would take the square of their number."""
        self._burst_since_s = 0.0
        self._mass_since_s: float | None = None
        self._mass_over = False

    # -- what happened to a member -------------------------------------------------------------

    def disconnected(self, member: Member, settings: RunSettings, now_s: float) -> list[Effect]:
        """Its connection closed: it has the grace to resume."""
        if member.reachability is Reachability.CONNECTED:
            member.trouble_since_s = now_s
        self._set_reachability(member, Reachability.DISCONNECTED)
        # R8: it has the grace to come back, and no more.
        return self._deadline(member, TimerKind.GRACE, self.grace_s(settings), now_s)

    def ended(self, member: Member, now_s: float) -> list[Effect]:
        """Its kernel's FIN proves that its process has ended: no grace, and no mass guard."""
        if member.reachability is Reachability.CONNECTED:
            member.trouble_since_s = now_s
        self._cancel_deadline(member.name)
        # R8: its kernel's FIN is enough.
        self._ended[member.name] = None
        self._set_reachability(member, Reachability.DISCONNECTED)
        if member.is_troubled:
            self._ended_missing[member.name] = None
        if not self.in_burst:
            self._burst_since_s = now_s
        # R8: a burst is over after BURST_MAX_S, whatever follows.
        elif now_s - self._burst_since_s >= BURST_MAX_S:
            return []
        return [self._timers.set(TimerKind.BURST, BURST_S)]

    def has_ended(self, member: Member) -> bool:
        """Whether its process is proved to have ended."""
        return member.name in self._ended

    @property
    def in_burst(self) -> bool:
        """Whether processes ended within BURST_S. They are declared lost together, after that."""
        return self._timers.is_set(TimerKind.BURST)

    def ended_members(self) -> list[Member]:
        """Members whose process has ended, if no other ended within BURST_S."""
        # R8: processes that end together are lost together.
        return [] if self.in_burst else self._has_ended()

    def _has_ended(self) -> list[Member]:
        found = (self._roster.get(name) for name in self._ended)
        return [member for member in found if member is not None]

    def absent(self, member: Member, now_s: float) -> None:
        """It is in the round that this coordinator took over, and has not attached here yet."""
        self._expect(member, now_s)
        # R8: it has the attach grace.
        self._absent[member.name] = None

    def absent_host(self, member: Member, now_s: float, grace_s: float) -> list[Effect]:
        """The former coordinator ran in this member's process, and its lease ran out.

        So the process has ended, stands still, or is cut off from the ledger. It gets the time that
        any living node needs to attach to a new coordinator.
        """
        self._expect(member, now_s)
        self._host_grace_s = grace_s
        # R8: its bound is known, and short.
        return self._deadline(member, TimerKind.GRACE, grace_s, now_s)

    def _expect(self, member: Member, now_s: float) -> None:
        member.trouble_since_s = now_s
        self._expected += 1
        self._wait_for(member)

    def _wait_for(self, member: Member) -> None:
        self._unguarded[member.name] = None
        member.is_absent = True
        self._set_reachability(member, Reachability.DISCONNECTED)

    def has_never_attached(self, member: Member) -> bool:
        """Whether it is in the round that was taken over, and has not attached here yet."""
        return member.name in self._absent

    def ended_elsewhere(self, member: Member) -> None:
        """Its workers finished under an earlier coordinator.

        It may have left, so it does not have to attach.
        """
        self._set_reachability(member, Reachability.DISCONNECTED)

    def attach_over(self) -> None:
        """The time to attach is over: members that have not attached are past their deadline.

        If half of the round has attached, this coordinator can be reached, so the mass guard does
        not protect the others. If fewer have, this one may be cut off, so the guard decides.
        """
        # R8: with fewer than half, this coordinator may be the one cut off.
        if 2 * self._arrived < self._expected:
            for name in self._absent:
                self._unguarded.pop(name, None)
        # R8: members that did not attach in time are lost.
        self._overdue.update(self._absent)
        for member in map(self._roster.get, self._absent):
            if member is not None:
                member.is_absent = False
                self._roster.reindex(member)

    @property
    def has_absent(self) -> bool:
        """Whether a member, except the former host, has yet to attach here. O(1)."""
        return bool(self._absent)

    @property
    def attaching(self) -> tuple[object, ...]:
        """The state on which decisions about members that have yet to attach depend, hashable."""
        names = (tuple(self._absent), tuple(self._unguarded))
        return (*names, self._arrived, self._expected)

    def silent(
        self, member: Member, settings: RunSettings, now_s: float, silent_s: float
    ) -> list[Effect]:
        """It was silent for `silent_s`: it becomes suspect."""
        member.trouble_since_s = now_s - silent_s
        self._set_reachability(member, Reachability.SILENT)
        # R8: it did not answer the probe either.
        if self._probe.is_over and member.name in self._probe.unanswered:
            self._overdue[member.name] = None
        # R8: an outage takes no time from a member.
        if self._clock.is_stopped:
            # No member is judged now, so this silence does not count in full.
            silent_s = min(silent_s, settings.suspect_after_s)
        # R8: lost `lost_after_s` after it was last heard.
        remaining_s = max(0.0, settings.lost_after_s - silent_s)
        # R8: silence has a bound.
        return self._deadline(member, TimerKind.LOST, remaining_s, now_s)

    def heard(self, member: Member) -> None:
        """It was heard, or its connection is back: it stops being suspect."""
        if member.reachability is Reachability.CONNECTED:
            return
        # R8: it counts as attached.
        if member.name in self._unguarded:
            self._arrived += 1
        # R8: it is not absent any more.
        self._forget_absence(member.name)
        member.is_absent = False
        # R8: a member that answers has no deadline.
        self._cancel_deadline(member.name)
        # R8: and is not lost for one that has passed.
        self._overdue.pop(member.name, None)
        # R8: so its process has not ended.
        self._ended.pop(member.name, None)
        self._ended_missing.pop(member.name, None)
        # R8: it can be heard.
        self._set_reachability(member, Reachability.CONNECTED)

    def gone(self, member: Member) -> None:
        """It is no member any more."""
        self._forget_absence(member.name)
        self._cancel_deadline(member.name)
        self._overdue.pop(member.name, None)
        self._ended.pop(member.name, None)
        self._ended_missing.pop(member.name, None)
        self._probe.answered(member.name)

    def probe_over(self) -> None:
        """The time to answer is over: suspects that did not answer are past their deadline."""
        self._probe.is_over = True
        for name in self._probe.unanswered:
            member = self._roster.get(name)
            # R8: only suspects that did not answer.
            if member and member.reachability is Reachability.SILENT:
                self._overdue[name] = None

    # -- deadlines -----------------------------------------------------------------------------

    def deadline_passed(self, timer: Timer) -> None:
        """A GRACE, LOST or MASS timer fired that was not stale."""
        if timer.kind is TimerKind.MASS:
            self._mass_over = True
        else:
            self._overdue[timer.name] = None

    def go_on(self, settings: RunSettings, now_s: float) -> list[Effect]:
        """The ledger is back, and members are judged again: each has the time that was left.

        The caller sets the timers of the attach grace and of probes.
        """
        self._clock.go_on(now_s)
        # R8: each is judged by the time that it has left.
        self._overdue.clear()
        effects: list[Effect] = []
        guard_left_s = self.guard_left_s(settings, now_s)
        # R8: the guard has its rest, too.
        if guard_left_s is not None:
            effects.append(self._timers.set(TimerKind.MASS, guard_left_s))
        for member in self._roster:
            is_ended = member.name in self._ended  # Its process has ended, so it has no deadline.
            # R8: each that cannot be heard keeps a deadline.
            if member.reachability is not Reachability.CONNECTED and not is_ended:
                effects += self._deadline_goes_on(member, settings, now_s)
        return effects

    def _deadline_goes_on(
        self, member: Member, settings: RunSettings, now_s: float
    ) -> list[Effect]:
        if member.name in self._absent:
            return []
        is_silent = member.reachability is Reachability.SILENT
        # R8: time enough to answer, as it may have tried in vain.
        least_s = settings.reconnect_grace_s if is_silent else self.grace_s(settings)
        if member.name in self._unguarded:
            least_s = self._host_grace_s
        left_s = self._clock.left_s(member.due_s, least_s, now_s)
        # R8: no time left: it is lost.
        if left_s > 0:
            kind = TimerKind.LOST if is_silent else TimerKind.GRACE
            return self._arm(member, kind, left_s, now_s)
        self._overdue[member.name] = None
        return []

    @property
    def is_quiet(self) -> bool:
        """Whether all members can be heard, which is nearly always so. Then nothing is judged."""
        are_all_heard = not (self._roster.troubled_names or self._overdue or self._ended)
        return are_all_heard and self._mass_since_s is None

    def update_guard(self, settings: RunSettings, now_s: float) -> list[Effect]:
        """Raise or lift the mass guard, by the number of members that are missing now."""
        ended = len(self._ended_missing)
        # R8: neither proved deaths nor members that have yet to attach raise it.
        missing = len(self._roster.troubled_names) - len(self._unguarded) - ended
        # R8: the limit of the mass guard.
        limit = max(settings.mass_min, settings.mass_fraction * self._roster.awaited_count)
        # R8: few are missing, so each is judged.
        if missing <= limit:
            return self._end_guard(settings, now_s)
        # R8: its time does not begin again.
        if self._mass_since_s is not None:
            return []
        self._mass_since_s = self._clock.at(now_s)
        # R8: it holds for `mass_grace_s` at most.
        return [self._timers.set(TimerKind.MASS, settings.mass_grace_s)]

    def past_deadline(self) -> list[Member]:
        """Members past their deadline, without those that the mass guard protects."""
        names = self._overdue
        # R8: while many are missing, none of them is lost.
        if self.guarding and names:
            names = {name: None for name in self._unguarded if name in names}
        found = (self._roster.get(name) for name in names)
        return [member for member in found if member is not None]

    @property
    def guarding(self) -> bool:
        """R8: whether so many are missing together that none may be declared lost."""
        # R8: raised, and not over.
        return self._mass_since_s is not None and not self._mass_over

    def guard_left_s(self, settings: RunSettings, now_s: float) -> float | None:
        """How long the mass guard still lasts, in seconds; None if it is not raised."""
        if not self.guarding or self._mass_since_s is None:
            return None
        return max(0.0, settings.mass_grace_s - (self._clock.at(now_s) - self._mass_since_s))

    def grace_s(self, settings: RunSettings) -> float:
        """How long a connection that closes now has to resume: longer while many are missing."""
        # R8: the bound of a closed connection.
        return settings.reconnect_grace_s * max(1.0, len(self._roster.troubled_names) / QUEUE_NODES)

    # -- how deadlines are kept ----------------------------------------------------------------

    def _end_guard(self, settings: RunSettings, now_s: float) -> list[Effect]:
        """Lift the guard, as most members are back. Those past their deadline get a new grace (R8).

        Without this, the last members to reconnect would be lost just because they are the last.
        """
        was_guarding = self.guarding
        self._mass_since_s, self._mass_over = None, False
        self._timers.cancel(TimerKind.MASS)
        # R8: without a guard, deadlines stand.
        if not was_guarding:
            return []
        overdue = self._overdue | dict.fromkeys(self._past_due(now_s))
        self._overdue = {}
        effects: list[Effect] = []
        for member in map(self._roster.get, overdue):
            if member is not None:
                self._absent.pop(member.name, None)  # From now on it has its own deadline.
                grace_s = self.grace_s(settings)
                # R8: the last members to return have the grace once more.
                effects += self._deadline(member, TimerKind.GRACE, grace_s, now_s)
        return effects

    def _past_due(self, now_s: float) -> list[str]:
        """The members that the guard protects, and that only the end of an outage gave more time.

        The guard may end in this time. Others that are back then must not be why they are lost.
        """
        at_s = self._clock.at(now_s)
        return [
            member.name
            for member in self._roster.troubled()
            # R8: a member that has yet to attach has the attach grace.
            if member.name not in self._unguarded and member.due_s <= at_s
        ]

    def _forget_absence(self, name: str) -> None:
        self._absent.pop(name, None)
        self._unguarded.pop(name, None)

    def _set_reachability(self, member: Member, reachability: Reachability) -> None:
        member.reachability = reachability
        self._roster.reindex(member)

    def _deadline(
        self, member: Member, kind: TimerKind, delay_s: float, now_s: float
    ) -> list[Effect]:
        # R8: on the clock that outages do not advance.
        member.due_s = self._clock.at(now_s) + delay_s
        return self._arm(member, kind, delay_s, now_s)

    def _arm(self, member: Member, kind: TimerKind, delay_s: float, now_s: float) -> list[Effect]:
        # R8: a member has one deadline.
        self._cancel_deadline(member.name)
        member.grace_ends_s = self._clock.at(now_s) + delay_s
        return [self._timers.set(kind, delay_s, name=member.name)]

    def _cancel_deadline(self, name: str) -> None:
        # R8: no earlier timer of it counts.
        self._timers.cancel(TimerKind.GRACE, name)
        # R8: nor its timer for silence.
        self._timers.cancel(TimerKind.LOST, name)
