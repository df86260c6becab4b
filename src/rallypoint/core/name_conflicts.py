"""Name conflicts: a newcomer has the name of a member, which is another start of that node.

The older node is probed. If it answers, the newcomer is refused. If it does not answer in time, or
its process has ended, or it leaves, the newcomer gets the name. An older node whose connection is
closed has the rest of its grace to attach, which counts as an answer: a broken connection does not
prove that the process has ended. This file keeps the newcomers and sends the probes. `membership`
takes out the older node and lets in the newcomer.
"""

from __future__ import annotations

from rallypoint.core import reasons
from rallypoint.core.effects import Effect, ProbeNode, Refuse, TimerKind
from rallypoint.core.events import NodeAttached
from rallypoint.core.judging import JudgingClock
from rallypoint.core.roster import Member
from rallypoint.core.suspicion import Suspicion
from rallypoint.core.timers import Timers
from rallypoint.core.values import NodeId, Reachability, RunSettings


class NameConflicts:
    """The newcomers that wait, at most one for each name, in order of arrival."""

    def __init__(self, timers: Timers, clock: JudgingClock, suspicion: Suspicion) -> None:
        self._timers = timers
        self._clock = clock
        self._suspicion = suspicion
        self.waiting: dict[str, NodeAttached] = {}
        """The newcomers, by name. Only this class changes it."""
        self._due_s: dict[str, float] = {}
        """By when the older node has to answer; on the judging clock."""

    def asked(
        self, member: Member, event: NodeAttached, settings: RunSettings, now_s: float
    ) -> list[Effect]:
        """Another incarnation asks for the member's name. A second newcomer is refused."""
        waiting = self.waiting.get(member.name)
        if waiting is None:
            return self.challenge(member, event, settings, now_s)
        # R4: another start, or a stranger, does not take its place.
        if (waiting.node.id, waiting.secret_hash) == (event.node.id, event.secret_hash):
            self.waiting[member.name] = event  # The same one, on another connection.
            return []
        return [Refuse(event.connection_id, reasons.name_taken(member.name, member.info.host))]

    def challenge(
        self, member: Member, event: NodeAttached, settings: RunSettings, now_s: float
    ) -> list[Effect]:
        """Probe the older node."""
        name = member.name
        is_closed = member.reachability is Reachability.DISCONNECTED
        grace_left_s = max(0.0, member.grace_ends_s - self._clock.at(now_s))
        # R8: a broken connection has the rest of its grace.
        left_s = grace_left_s if is_closed else settings.probe_s
        self.waiting[name] = event
        self._due_s[name] = self._clock.at(now_s) + left_s
        effects: list[Effect] = [] if is_closed else [ProbeNode(member.id)]
        # R8: a member that has yet to attach has the attach grace.
        # A member that has not attached after a takeover has until the end of the attach grace. A
        # member whose process has ended is taken out soon anyway.
        if not member.is_absent and not self._suspicion.has_ended(member):
            effects.append(self._timers.set(TimerKind.NAME, left_s, name=name))
        return effects

    def is_over(self, member: Member, settings: RunSettings, now_s: float) -> bool:
        """The ledger is back: whether the older node has no time left to answer."""
        due_s = self._due_s[member.name]
        is_closed = member.reachability is Reachability.DISCONNECTED
        # R8: the time of a closed connection is judged elsewhere.
        return not is_closed and self._clock.left_s(due_s, settings.probe_s, now_s) <= 0

    def go_on(self, member: Member, settings: RunSettings, now_s: float) -> list[Effect]:
        """The ledger is back: ask the older node again, within the time that is left."""
        if member.reachability is Reachability.DISCONNECTED:
            return self.challenge(member, self.waiting[member.name], settings, now_s)
        left_s = self._clock.left_s(self._due_s[member.name], settings.probe_s, now_s)
        timer = self._timers.set(TimerKind.NAME, left_s, name=member.name)
        return [ProbeNode(member.id), timer]

    def refuse(self, member: Member) -> list[Effect]:
        """The older node is alive: refuse the newcomer, if there is one."""
        newcomer = self.pop(member.name)
        if newcomer is None:
            return []
        return [Refuse(newcomer.connection_id, reasons.name_taken(member.name, member.info.host))]

    def pop(self, name: str) -> NodeAttached | None:
        """Take the newcomer out, if there is one."""
        self._due_s.pop(name, None)
        self._timers.cancel(TimerKind.NAME, name)
        return self.waiting.pop(name, None)

    def pop_all(self) -> list[NodeAttached]:
        """Take all of them out."""
        return [event for name in self.names() if (event := self.pop(name)) is not None]

    def drop(self, node: NodeId, connection_id: int | None = None) -> None:
        """The newcomer said goodbye, or closed this connection."""
        waiting = self.waiting.get(node.name)
        if waiting and waiting.node.id == node and connection_id in (None, waiting.connection_id):
            self.pop(node.name)

    def names(self) -> tuple[str, ...]:
        """The names for which a newcomer waits."""
        return tuple(self.waiting)
