"""The state of one run, and what others ask about it.

`membership` steps it. The handlers and rules are functions of it in files of their own, and share
its private parts. This file must not decide what happens to a run.
"""

from __future__ import annotations

from itertools import chain

from rallypoint.core import events as on
from rallypoint.core import reasons
from rallypoint.core.admission import BEGIN_AGAIN_AFTER_S, Admission, is_reusable
from rallypoint.core.agreement import Agreement
from rallypoint.core.blame import Blame, KeptBlame
from rallypoint.core.causes import Case
from rallypoint.core.committing import Committing
from rallypoint.core.effects import Effect
from rallypoint.core.finished import Finished
from rallypoint.core.flapping import DepartureHistory
from rallypoint.core.gathering import Gathering
from rallypoint.core.judging import JudgingClock
from rallypoint.core.marking import Marking
from rallypoint.core.name_conflicts import NameConflicts
from rallypoint.core.orders import KeptOrders, Orders
from rallypoint.core.probing import Probe
from rallypoint.core.progress import RunProgress
from rallypoint.core.reasons import Waiting
from rallypoint.core.roster import READY, Bucket, Member, Roster
from rallypoint.core.scale_up import ScaleUp
from rallypoint.core.suspended_events import SuspendedEvents
from rallypoint.core.suspension import Suspension
from rallypoint.core.suspicion import Suspicion
from rallypoint.core.tables import TABLE_BYTES_MAX
from rallypoint.core.takeover import Takeover
from rallypoint.core.timers import Timers
from rallypoint.core.values import CloseRecord, Marks, NodeId, Phase, RoundRecord, RunSettings
from rallypoint.core.witnesses import Witnesses

_MISSING = (Bucket.STOPPING, Bucket.ABSENT, Bucket.PLACE)
"""The buckets of survivors that are not ready and keep their places."""
_COOLING = (Bucket.COOLING_SURVIVOR, Bucket.COOLING)


class MembershipState:
    """The members and rounds of one run, as all handlers and rules see and change them.

    `run_id` is only a name. `term` is in every record (R5). Round numbers begin above `floor` (R1).
    `members_max`: the most members. `table_bytes_max`: the most bytes that the ledger can keep of
    their rows. A node beyond either limit is refused. `has_successor` False: no other coordinator
    can take over the run, so the ledger needs no marks.
    """

    def __init__(
        self,
        run_id: str,
        *,
        term: int = 1,
        floor: int = 0,
        members_max: int = 100_000,
        table_bytes_max: int = TABLE_BYTES_MAX,
        has_successor: bool = True,
    ) -> None:
        self.run_id = run_id
        self.term = term
        self.phase_of_work = Phase.GATHERING
        """The phase. While the run is SUSPENDED: the phase to which it returns."""
        self.phase = Phase.GATHERING
        """What the run does now. A closed run is never SUSPENDED: there is nothing to decide."""
        self.settings: RunSettings | None = None
        """Those that count."""
        self.asked_settings: RunSettings | None = None
        """Those that the nodes ask for: the same, unless an operator has scaled the run."""
        self.roster = Roster()
        self.round: RoundRecord | None = None
        self.close: CloseRecord | None = None
        self.restart_count = 0
        """How many rounds have been charged to the program."""
        self.case: Case | None = None
        """Why the last round ended, while the next one is gathered."""
        self.suspension = Suspension()
        self.deposed = False

        timers, clock = Timers(), JudgingClock()
        self._timers = timers
        self._clock = clock
        self._probe = Probe(timers, clock)
        self._suspicion = Suspicion(self.roster, timers, clock, self._probe)
        self.witnesses = Witnesses(self.roster, timers)
        self._takeover = Takeover(self.roster, timers, clock, self._suspicion)
        self._name_conflicts = NameConflicts(timers, clock, self._suspicion)
        self._progress = RunProgress(timers, clock)
        self._gathering = Gathering(self.roster, timers)
        self._scale_up = ScaleUp(self.roster, timers)
        self._committing = Committing()
        self._marking = Marking(timers, is_kept=has_successor)
        self._finished = Finished()
        self._orders = KeptOrders(is_kept=has_successor)
        self._blame = KeptBlame()
        self._let_in: tuple[NodeId, ...] = ()
        """Members of the last round that should stay out, and were let in for want of others."""
        self._agreement = Agreement()
        self._admission = Admission(
            run_id, members_max=members_max, table_bytes_max=table_bytes_max
        )
        self.departure_history = DepartureHistory()
        self._suspended_events = SuspendedEvents()
        self._failed_in_burst: list[on.WorkerFailed] = []
        """Failures that were reported while processes ended: they count when all have ended."""
        self._floor = floor
        self._has_successor = has_successor
        self._since_s = 0.0
        self._closed_at_s = 0.0
        self._now_s = 0.0
        self._effects: list[Effect] = []

    # -- queries -------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """The number of the last committed round; before the first one, that of the floor."""
        # R1: the next number is above this one.
        return self.round.head.number if self.round else self._floor

    @property
    def suspended_reason(self) -> str:
        """Why the run is SUSPENDED; "" if it is not."""
        return self.suspension.reason if self.phase is Phase.SUSPENDED else ""

    @property
    def unwritten(self) -> RoundRecord | CloseRecord | None:
        """The record that is being written, until the ledger is known to hold it."""
        return self._committing.unwritten

    @property
    def committing(self) -> RoundRecord | CloseRecord | None:
        """The record that is being written to the ledger."""
        return self._committing.record

    def has_another_waiting(self, name: str) -> bool:
        """Whether a node of another name than this is connected, and waits for its own name."""
        return any(each != name for each in self._name_conflicts.waiting)

    @property
    def progress(self) -> RunProgress:
        """How far the workers of the present round are."""
        return self._progress

    @property
    def agreement(self) -> Agreement:
        """Who drains in the present round, and at which step all workers stop. For people."""
        return self._agreement

    @property
    def orders(self) -> Orders:
        """What operators have ordered."""
        return self._orders.now

    @property
    def orders_written(self) -> Orders:
        """What operators have ordered, as far as the ledger has it."""
        return self._orders.written

    @property
    def orders_possible(self) -> tuple[Orders, ...]:
        """The orders of which the ledger may have any now: the last ones, and those on the way."""
        return self._orders.possible

    @property
    def orders_with_record(self) -> Orders:
        """The orders to write together with a record."""
        return self._orders.at_forming

    @property
    def blame_with_record(self) -> Blame:
        """What the failures have cost, to write together with a record."""
        return self._blame.at_forming

    def blame(self, now_s: float) -> Blame:
        """What the failures have cost, now."""
        if self.settings is None:
            return self._blame.at_forming
        return self._blame.now(self.restart_count, self.settings, now_s)

    def spent(self, now_s: float) -> int:
        """What counts against the restart budget now."""
        return self._blame.spent(now_s)

    def marks_with(self, record: RoundRecord | CloseRecord) -> Marks:
        """The marks to write together with a record."""
        if isinstance(record, CloseRecord):
            return Marks()  # Nobody reads marks after a close.
        finished = self._finished
        return Marks(
            record.head.number,
            finished=finished.count_at_forming,
            finished_nodes=finished.known_at_forming,
        )

    def waiting(self, now_s: float) -> Waiting | None:
        """Why no round is active; None if one is, or the run is over. Its size is bounded."""
        settings = self.settings
        if self.phase in (Phase.ACTIVE, Phase.CLOSED) or settings is None:
            return None
        stopping_count = self.roster.count(Bucket.STOPPING)
        stop_left_s = self._gathering.stopping.left_s(now_s) if stopping_count else 0.0
        return Waiting(
            ready=self.roster.ready_count,
            minimum=settings.min_nodes,
            maximum=settings.max_nodes,
            missing=reasons.first_names(chain(*map(self.roster.names, _MISSING))),
            missing_count=sum(map(self.roster.count, _MISSING)),
            last_call_s=self._gathering.last_call_left_s(now_s),
            suspects=reasons.first_names(m.name for m in self.roster.troubled()),
            guard_s=self._suspicion.guard_left_s(settings, now_s),
            committing=self.phase is Phase.COMMITTING,
            suspended=self.suspended_reason,
            since_s=now_s - (self.suspension.since_s if self.suspension else self._since_s),
            attached=len(self.roster),
            ledger_away_s=self.suspension.ledger_away_s(now_s) if self.suspended_reason else None,
            stopping=reasons.first_names(self.roster.names(Bucket.STOPPING)) if stop_left_s else (),
            stopping_count=stopping_count if stop_left_s else 0,
            stop_left_s=stop_left_s,
            held_back_s=self._gathering.pause_left_s(now_s),
            cooling=reasons.first_names(chain(*map(self.roster.names, _COOLING))),
            cooling_count=sum(map(self.roster.count, _COOLING)),
            idle=reasons.first_names(self.roster.names(Bucket.OTHER)),
            idle_count=self.roster.count(Bucket.OTHER),
            ready_names=reasons.first_names(chain(*map(self.roster.names, READY))),
        )

    def closed_ago_s(self, now_s: float) -> float:
        """How long the run has been closed, in seconds."""
        return max(0.0, now_s - self._closed_at_s)

    @property
    def _can_begin_again(self) -> bool:
        """R6: a run that has had a round stays closed."""
        close = self.close
        # R6: only a run that never had a round, and is in no ledger.
        is_unused = self.round is None and not self._has_successor
        return is_unused and close is not None and is_reusable(close)

    def may_begin_again(self, settings: RunSettings, now_s: float) -> bool:
        """Whether a node that was never in this closed run may begin it again.

        It may if the run never had a round, because the id was then used before the job began. A
        node with other settings belongs to another job, so it may begin at once. A node with the
        same settings may be a late node of the closed run, and must learn that the run is over. So
        it may begin the run again only after BEGIN_AGAIN_AFTER_S.
        """
        # R6: not a run that had a round.
        if self.phase_of_work is not Phase.CLOSED or self.round is not None:
            return False
        # R6: not a run whose close is in a ledger.
        if self._has_successor or self.asked_settings is None:
            return False
        if self.asked_settings.conflicts(settings):
            return True
        return self._can_begin_again and self.closed_ago_s(now_s) >= BEGIN_AGAIN_AFTER_S

    def adopt_settings(self, asked: RunSettings | None) -> None:
        """These settings of the nodes count, with the number of nodes that an operator wants."""
        self.asked_settings = asked
        self.settings = None if asked is None else self._orders.now.settings_of(asked)

    def is_of_last_round(self, node: NodeId) -> bool:
        """Whether the node is a member of the last round, and may read its table. O(1)."""
        member = self.roster.living(node)
        # R4: other nodes get no member table.
        return member is not None and 0 < member.last_round == self.number

    def is_standby(self, member: Member) -> bool:
        """Whether it is ready while a round is active without it."""
        waits = member.bucket in (Bucket.NEWCOMER, Bucket.COOLING)
        return waits and self.phase_of_work is Phase.ACTIVE

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value, for tests and model checkers.

        It has no times and no serial numbers. It includes which timers are set.
        """
        return (
            (self.phase_of_work, self.suspension.causes, self.deposed, self.close, self.number),
            (*self._committing.freeze(), tuple(self._suspended_events)),
            (self.restart_count, self._finished.freeze(), self._blame.freeze(), self._let_in),
            self.case and (*self.case.freeze(), self._probe.is_settled),
            (*self._gathering.freeze(), self._scale_up.is_due),
            (self._suspicion.guarding, tuple(self._probe.unanswered), self._probe.is_over),
            tuple(member.name for member in self._suspicion.ended_members()),
            (self._suspicion.in_burst, tuple(self._failed_in_burst)),
            self._suspicion.attaching,
            self._marking.freeze(),
            self._orders.freeze(),
            self.witnesses.freeze(),
            self._agreement.freeze(),
            tuple(member.freeze() for member in self.roster),
            self._name_conflicts.names(),
            self._progress.freeze(),
        )

    # -- the phase, and the effects of this step ---------------------------------------------

    def _enter(self, phase: Phase) -> None:
        self.phase_of_work = phase
        self._since_s = self._now_s
        self._set_phase()

    def _set_phase(self) -> None:
        # The phase is stored, because each event reads it several times.
        work = self.phase_of_work
        # R5: any reason suspends.
        is_suspended = bool(self.suspension) and work is not Phase.CLOSED
        self.phase = Phase.SUSPENDED if is_suspended else work

    def _do(self, *effects: Effect) -> None:
        self._effects.extend(effects)

    def _handle(self, event: on.Event) -> None:
        """Handle an event as the table says: `membership` has the handlers."""
        raise NotImplementedError
