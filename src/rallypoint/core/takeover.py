"""The takeover of a round: its members have yet to attach to this coordinator.

The loss of a coordinator does not disturb the workers, so the round goes on. Its members find the
new coordinator by themselves. A member that has not attached when the attach grace is over is lost.
This file puts the members into the roster from the ledger's record, and keeps the grace.
`suspicion` decides which of them are lost.
"""

from __future__ import annotations

from typing import Final

from rallypoint.core import causes
from rallypoint.core.effects import Effect, TimerKind
from rallypoint.core.flapping import DepartureHistory
from rallypoint.core.judging import JudgingClock
from rallypoint.core.marking import ranks_in
from rallypoint.core.roster import Roster
from rallypoint.core.suspicion import HOST_GRACE_S, Suspicion
from rallypoint.core.timers import Timers
from rallypoint.core.values import (
    ChangeKind,
    Marks,
    MemberState,
    NodeId,
    NodeInfo,
    RoundRecord,
    RunSettings,
)

ATTACH_NODES: Final = 30_000
"""This many nodes attach within half of the usual grace: a coordinator takes about 0.25 ms for each
(docs/scale.md). With more the grace grows in proportion, because their connections queue up."""
HOST_NODES: Final = 5_000
"""The same for the grace of the node that hosted the last coordinator, which may be the last."""


class Takeover:
    """The round that was taken over, if one was, and its attach grace."""

    def __init__(
        self, roster: Roster, timers: Timers, clock: JudgingClock, suspicion: Suspicion
    ) -> None:
        self._roster = roster
        self._timers = timers
        self._clock = clock
        self._suspicion = suspicion
        self.number = 0
        """The number of the last round that the run had when it was taken over."""
        self.is_grace_on = False
        """Whether members still have time to attach."""
        self._due_s = 0.0

    def expect_members(
        self,
        record: RoundRecord,
        marks: Marks,
        history: DepartureHistory,
        *,
        attach_grace_s: float,
        former_host: NodeId | None,
        now_s: float,
    ) -> list[Effect]:
        """Put the members of the round into the roster, except those that are marked as gone.

        `marks` are of this round. `former_host`: the node that hosted the last coordinator, if that
        one's lease ran out.
        """
        # R8: a node whose connection waits behind those of all others is not lost.
        attach_grace_s *= max(1.0, record.head.nodes / ATTACH_NODES)
        host_grace_s = HOST_GRACE_S * max(1.0, record.head.nodes / HOST_NODES)
        host_grace_s = min(host_grace_s, attach_grace_s)
        done, gone = ranks_in(marks.done), ranks_in(marks.gone)
        number = record.head.number
        self._due_s = self._clock.at(now_s) + attach_grace_s
        effects: list[Effect] = []
        for rank, row in enumerate(record.members):
            # R4: a node that left is not in the round any more.
            if rank in gone:
                # It departed, left or was lost. If it attaches, it is admitted and told why.
                change = marks.ended or causes.happened(ChangeKind.NODE_LEFT, number, [row.name])
                history.remember(row.name, change, stayed_s=0.0, is_done=True)
                continue
            info = NodeInfo(
                row.name,
                row.incarnation,
                row.host,
                row.addresses,
                row.workers,
                row.labels,
                row.stop_s,
            )
            # R5: the hash of its secret goes over, so that no other resumes as it.
            member = self._roster.add(info, 0, now_s, row.secret_hash)
            # R4: its reports about this round count.
            member.last_round = number
            member.grace_ends_s = self._due_s
            # R8: a node that is done need not attach.
            if rank in done:
                member.state = MemberState.DONE
                self._suspicion.ended_elsewhere(member)
                continue
            member.state = MemberState.ACTIVE
            # R8: by name and incarnation: not a later start of it.
            if member.id == former_host:
                effects += self._suspicion.absent_host(member, now_s, host_grace_s)
            else:
                # R8: each of the others has the attach grace.
                self._suspicion.absent(member, now_s)
        return [*effects, self._begin_grace(attach_grace_s)]

    def end_grace(self) -> None:
        """The time to attach is over, or all members have attached."""
        self.is_grace_on = False
        self._timers.cancel(TimerKind.ATTACH)
        # R8: the grace is over for all.
        self._suspicion.attach_over()

    def go_on(self, settings: RunSettings, now_s: float) -> list[Effect]:
        """The ledger is back: set the timer for the rest of the grace, if any is left."""
        left_s = self._clock.left_s(self._due_s, settings.reconnect_grace_s, now_s)
        # R8: the rest of the grace, not a new one.
        self.is_grace_on = self.is_grace_on and left_s > 0
        return [self._begin_grace(left_s)] if self.is_grace_on else []

    def _begin_grace(self, delay_s: float) -> Effect:
        self.is_grace_on = True
        return self._timers.set(TimerKind.ATTACH, delay_s, round_number=self.number)
