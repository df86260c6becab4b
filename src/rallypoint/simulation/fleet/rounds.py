"""The rounds of a simulated job: when workers work, why they do not, and how long a regroup took.

It watches. What it sees of the core are the phase and counts; nothing here has an effect on a node
or a coordinator.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rallypoint.core.roster import Bucket
from rallypoint.core.values import Change, ChangeKind, Phase
from rallypoint.simulation.fleet.accounts import Accounts, Cause
from rallypoint.simulation.fleet.coordinator import FleetCoordinator, Register
from rallypoint.simulation.fleet.nodes import FleetNode
from rallypoint.simulation.fleet.schedule import Schedule
from rallypoint.simulation.fleet.workload import Workload

_PLANNED: Final = (ChangeKind.NODES_JOINED, ChangeKind.NODE_LEFT)
"""Workers that all live can save before such a change."""
_NOT_OWN: Final = (
    Cause.STOP,
    Cause.START,
    Cause.BELOW_MINIMUM,
    Cause.LEDGER,
    Cause.STALL,
)
"""The parts of a regroup that are not Rallypoint's."""
FIRST: Final = "start"
_UNKNOWN: Final = "failure"


class Regroup(msgspec.Struct, frozen=True):
    """One regroup. Times in seconds.

    `at_s`: when it began, with a failure or an arrival. `why`: the kind of the first change.
    `took_s`: until the workers of the next round work. `own_s`: without the workers' stop and
    start, and without the wait for machines.
    """

    at_s: float
    why: str
    took_s: float
    own_s: float


class Rounds:
    """The rounds of one job, and its time."""

    def __init__(
        self, schedule: Schedule, register: Register, workload: Workload, min_nodes: int
    ) -> None:
        self.accounts = Accounts(
            checkpoint_every_s=workload.checkpoint_every_s, checkpoint_s=workload.checkpoint_s
        )
        self.count = 0
        """How many rounds have worked."""
        self.breaks: dict[str, int] = {}
        """How many rounds ended, by why."""
        self._broke: Change | None = None
        """Why the last round ended, as far as it is known."""
        self.regroups: list[Regroup] = []
        self.end_reason = ""
        """Why the job ended before its time; "" if it did not."""
        self.stopping = 0
        """How many groups of nodes stop their workers now."""
        self._schedule = schedule
        self._register = register
        self._workload = workload
        self._min_nodes = min_nodes
        self._formed = 0
        """How many members of the starting round have their seats."""
        self._working = 0
        self._starting = 0
        """The numbers of the round that works, and of the last one that was formed."""
        self._trouble: dict[FleetNode, None] = {}
        """Members of the present round that have failed, and whose loss has not ended it yet."""
        self._since_s: float | None = 0.0
        """When the regroup began that is under way; None if none is."""
        self._why = FIRST
        self._not_own_s = 0.0
        self._noted: Cause | None = None
        self._noted_s = 0.0
        """What was true at the last step, and when that was."""

    # -- what happens ------------------------------------------------------------------------------

    @property
    def is_planned(self) -> bool:
        """Whether the present regroup began with a change that workers could prepare for."""
        return self._why in _PLANNED

    def is_working_in(self, node: FleetNode) -> bool:
        """Whether the node's round is the one that works."""
        return node.machine.number == self._working

    def hurt(self, node: FleetNode) -> None:
        """A member has failed: the work of its round stands still from now on."""
        if node.machine.number in (self._working, self._starting):
            self._trouble[node] = None
            self._begin(_UNKNOWN)

    def is_well_again(self, node: FleetNode) -> None:
        """A member goes on that stood still."""
        self._trouble.pop(node, None)

    def goes_on(self, coordinator: FleetCoordinator | None) -> None:
        """A member was well again: if its round is on and has no other trouble, work goes on."""
        if self._trouble or self._starting != self._working or self.accounts.is_working:
            return
        if self._since_s is not None and not self.stopping and self._is_on(coordinator):
            self.accounts.stalled(self._schedule.now_s)
            self._since_s = None

    def _is_on(self, coordinator: FleetCoordinator | None) -> bool:
        """Whether the round is on, as far as its coordinator knows; without one, it is on."""
        if not self._working:
            return False
        if coordinator is None:
            record = self._register.round
            return record is not None and record.head.number == self._working
        membership = coordinator.membership
        return membership.number == self._working and membership.phase_of_work is Phase.ACTIVE

    def has_seat(self, number: int, nodes: int) -> None:
        """One of the members of this round has its seat."""
        if number != self._starting:
            self._starting, self._formed = number, 0
            self._trouble.clear()
        self._formed += 1
        if self._formed == nodes:
            self._schedule.after(self._workload.start_s, self._works, number, nodes)

    def _works(self, number: int, nodes: int) -> None:
        """All workers of the round have started."""
        if self._starting != number or self._trouble or self._working == number:
            return
        self._working = number
        self.count += 1
        now_s = self._schedule.now_s
        self._note_own(now_s)
        if self._since_s is not None:
            took_s = now_s - self._since_s
            own_s = max(0.0, took_s - self._not_own_s)
            self.regroups.append(Regroup(self._since_s, self._why, took_s, own_s))
        self._since_s = None
        self.accounts.began(nodes, now_s)

    def broke(self, change: Change) -> None:
        """The coordinator has ended a round."""
        why = str(change.kind)
        self.breaks[why] = self.breaks.get(why, 0) + 1
        self._broke = change
        self._begin(why)
        if self._why == _UNKNOWN:
            self._why = why

    def judged(self, change: Change) -> None:
        """The cause of a round's end is known: it counts, and not the first report."""
        before = self._broke
        if before is not None and before.round == change.round:
            self.breaks[str(before.kind)] -= 1
            self.breaks[str(change.kind)] = self.breaks.get(str(change.kind), 0) + 1
            self._broke = change

    def work_ends(self, change: Change) -> None:
        """A member was told that its round has ended."""
        if self._working:
            saves = change.kind in _PLANNED and self._workload.saves_on_change
            self.accounts.finished(self._schedule.now_s, saves=saves)
        self._working = self._starting = 0
        self._trouble.clear()
        self._begin(str(change.kind))

    def end(self, reason: str) -> None:
        """The job has ended before its time."""
        self.accounts.finished(self._schedule.now_s, saves=False)
        self.end_reason = reason

    def _begin(self, why: str) -> None:
        """A regroup begins, unless one is under way."""
        if self._since_s is None:
            self._since_s, self._why = self._schedule.now_s, why
            self._not_own_s = 0.0

    # -- the time ----------------------------------------------------------------------------------

    def note(self, coordinator: FleetCoordinator | None) -> None:
        """Account the time from now on to what is true now."""
        cause = self._cause(coordinator)
        if cause is None:
            return
        now_s = self._schedule.now_s
        self._note_own(now_s)
        self._noted = cause
        self.accounts.note(cause, now_s)

    def _note_own(self, now_s: float) -> None:
        if self._noted in _NOT_OWN:
            self._not_own_s += now_s - self._noted_s
        self._noted, self._noted_s = None, now_s

    def _cause(self, coordinator: FleetCoordinator | None) -> Cause | None:
        """Why no worker works now; None if they work."""
        if self.end_reason:
            return Cause.ENDED
        if self.accounts.is_working and not self._trouble:
            return None
        if coordinator is None:
            is_away = self._register.away_until_s > self._schedule.now_s
            return Cause.LEDGER if is_away else Cause.COORDINATOR
        membership = coordinator.membership
        if membership.phase is Phase.SUSPENDED:
            return Cause.LEDGER
        if membership.phase_of_work is Phase.ACTIVE:
            return self._cause_in_round()
        if self.stopping:
            return Cause.STOP
        if membership.phase_of_work is Phase.COMMITTING or coordinator.is_busy:
            return Cause.MEET
        return self._cause_in_gathering(coordinator)

    def _cause_in_round(self) -> Cause:
        if self._trouble:
            return Cause.DETECT
        if self.stopping:
            return Cause.STOP
        record = self._register.round
        is_told = record is not None and self._formed >= record.head.nodes
        return Cause.START if self._starting and is_told else Cause.MEET

    def _cause_in_gathering(self, coordinator: FleetCoordinator) -> Cause:
        membership = coordinator.membership
        count = membership.roster.count
        held = count(Bucket.STOPPING) + count(Bucket.PLACE)
        if count(Bucket.ABSENT):
            return Cause.COORDINATOR
        if membership.roster.ready_count + held < self._min_nodes:
            # Nodes that are connected are about to be ready.
            are_coming = len(coordinator.links) >= self._min_nodes
            return Cause.MEET if are_coming else Cause.BELOW_MINIMUM
        if held:
            return Cause.GRACE
        waiting = membership.waiting(self._schedule.now_s)
        if waiting is not None and waiting.held_back_s is not None:
            return Cause.HELD_BACK
        # After a round, the wait for survivors that are all ready is not that of the last call.
        is_call = waiting is not None and waiting.last_call_s is not None
        return Cause.LAST_CALL if is_call and not count(Bucket.READY_SURVIVOR) else Cause.SETTLE
