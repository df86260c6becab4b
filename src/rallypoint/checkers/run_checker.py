"""Whether the steps of one run were allowed: the rules that span more than one step.

A `RunChecker` sees only the events and effects of a run. From these it keeps its own, much simpler
account of the members: which are there, which asked for a round, which cannot be heard. It compares
the effects with that account. It must not share state with `membership`, so that one mistake cannot
hide in both. Only tests use it, because a step costs O(N).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import msgspec

from rallypoint.checkers.agreement_checker import AgreementChecker
from rallypoint.checkers.budget_checker import BudgetChecker
from rallypoint.checkers.cooling_checker import CoolingChecker
from rallypoint.checkers.violations import HISTORY_LENGTH, InvariantViolation, short, step_line
from rallypoint.checkers.witness_question import Question
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.addresses import literal
from rallypoint.core.election import RunState
from rallypoint.core.marking import ranks_in
from rallypoint.core.orders import NO_ORDERS, Order, order
from rallypoint.core.progress import Progress
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.suspicion import HOST_GRACE_S
from rallypoint.core.values import (
    NAMES_SHOWN_MAX,
    Change,
    ChangeKind,
    CloseRecord,
    ConnectionEnd,
    FrozenStruct,
    Marks,
    NodeId,
    Reachability,
    RoundRecord,
    RunSettings,
    table_digest,
)

TOLERANCE_S: Final = 1e-6
"""The rounding error allowed for sums of floating-point seconds."""
LOST_WITHIN_S: Final = 2.0
"""A member is lost so soon after its host was found gone."""
CLOCKS: Final = 1.2
"""By so much, at most, the clock of the checks may run faster than that of the run."""


class _Node:
    """The checker's data about one member."""

    def __init__(self, node: NodeId, connection_id: int) -> None:
        self.id = node
        self.connection_id = connection_id
        self.reachability = Reachability.CONNECTED
        self.closed_s: float | None = None
        self.absent_since_s: float | None = None
        """Since when a coordinator that took over its round has expected it."""
        self.is_former_host = False
        self.silent_since_s: float | None = None
        self.probed_s: float | None = None
        self.name_probed_s: float | None = None
        self.seated = 0
        self.asked = False
        self.unfit = ""
        self.departing = False
        self.done = False
        self.said_goodbye = False
        self.has_ended = False
        self.host = ""
        """Where it is, by the address of its connection; "" if that is not known."""
        self.is_beside = self.is_witness = self.has_missed = False

    @property
    def is_awaited(self) -> bool:
        return not (self.done or self.departing)

    @property
    def is_missing(self) -> bool:
        return (
            self.is_awaited
            and self.reachability is not Reachability.CONNECTED
            and not self.has_ended
        )

    def heard(self) -> None:
        self.probed_s = self.name_probed_s = None
        self.has_missed = False
        if self.reachability is Reachability.SILENT:
            self.reachability, self.silent_since_s = Reachability.CONNECTED, None


class RunChecker:
    """Checks R1 to R6, R8, R13 and R14 over the steps of one run.

    `term`: that of the coordinator. A run with a new coordinator keeps its checker: call `restored`
    for a takeover.
    """

    def __init__(self, term: int = 1) -> None:
        self.term = term
        self._history: deque[Callable[[], str]] = deque(maxlen=HISTORY_LENGTH)
        """Lines, each written only when somebody reads it."""
        self._nodes: dict[str, _Node] = {}
        self._settings = RunSettings()
        self._digests: dict[int, str] = {}
        self._number = self._floor = 0
        self._budget = BudgetChecker()
        self._cooling = CoolingChecker()
        self._run_s = 0.0
        """The time of this step, on the run's own clock."""
        self._published_s: float | None = None
        """When the last round was published; None if another coordinator did that."""
        self._lasted_s: float | None = None
        self._pending: RoundRecord | CloseRecord | None = None
        self._just_committed: RoundRecord | CloseRecord | None = None
        self._published: RoundRecord | None = None
        self._broken: Change | None = None
        self._verdicts: dict[int, Change] = {}
        self._leavers: set[str] = set()
        self._suspended = self._deposed = self._closed = False
        self._causes: dict[SuspensionCause, None] = {}
        self._is_committed = False
        self._mass_since_s: float | None = None
        self._guarding: bool | None = None
        self._guards_ended_s: list[float] = []
        """When the mass guard ended, each time before its own time was over."""
        self._maybe_until_s = float("-inf")
        """The same, if that may have been so: a clock of the checks may be the faster one."""
        self._went_on_s = float("-inf")
        """When the run went on after it had been SUSPENDED last."""
        self._superseded: set[str] = set()
        self._earlier: list[RunSettings] = []
        """The settings for which a record may have been formed that is not given yet."""
        self._orders = NO_ORDERS
        """What operators have asked for."""
        self._kept_evictions: list[Order] = []
        """Those that came while the run was SUSPENDED."""
        self._admitted: dict[str, None] = {}
        """The names whose evictions operators wanted to lift."""
        self._token = (0, 0)
        self._restored_number = 0
        self._seen_s = self._clock_s = 0.0
        self._is_closed_in_ledger = False
        self._attach_grace_s = 0.0
        self._attach_since_s = self._attach_until_s = 0.0
        self._has_half_come: bool | None = None
        """Whether half of a round that was taken over attached in time; None: unknown yet."""
        self._writing_marks = 0
        """The number of the marks that are being written; 0 if none are."""
        self._expected_count = 0
        self._agreement = AgreementChecker(self._fail)
        self._came: set[str] = set()
        """Which members have attached that were expected after a takeover."""
        self._questions: dict[int, Question] = {}
        """What witnesses are asked about hosts of which no member was heard since."""
        self._attaching: dict[int, on.NodeAttached] = {}
        """By connection: what its node said of itself."""

    @property
    def history(self) -> tuple[str, ...]:
        """The latest events and their effects, oldest first, in short lines."""
        return tuple(line() for line in self._history)

    def note(
        self,
        event: on.Event,
        now_s: float,
        effects: Sequence[do.Effect],
        run_s: float | None = None,
    ) -> None:
        """Check one step of the run. Raises InvariantViolation.

        `run_s`: the time of the step on the run's own clock, if the checks have another one.
        """
        self._history.append(partial(step_line, event, now_s, tuple(effects)))
        self._run_s = now_s if run_s is None else run_s
        now_s = self._judged_s(now_s)
        self._just_committed, self._guarding = None, None
        self._superseded.clear()
        self._end_attach_grace(now_s)
        self._must_have_lost(now_s)
        self._agreement.see_event(event)
        self._see_event(event, now_s)
        self._end_attach_grace(now_s)
        for effect in effects:
            self._see_effect(effect, event, now_s)
        if self._guarding is None:
            self._update_guard(now_s)

    def _judged_s(self, now_s: float) -> float:
        """The time on a clock that stops while the ledger is unreachable, as deadlines do (R8)."""
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        if not self._suspended:
            self._clock_s += passed_s
        return self._clock_s

    def restored(
        self,
        register: RunState,
        *,
        attach_grace_s: float,
        now_s: float,
        effects: Sequence[do.Effect],
        former_host: NodeId | None = None,
        run_s: float | None = None,
    ) -> None:
        """Another coordinator has taken the run over, with this state from the ledger.

        `former_host`: the node that hosted the last coordinator, and ended with it. Raises
        InvariantViolation if the state is not what was committed. `run_s`: see `note`.
        """
        self._history.append(partial(_restored_line, register, now_s, tuple(effects)))
        self._run_s = now_s if run_s is None else run_s
        self._published_s = self._lasted_s = None
        now_s = self._judged_s(now_s)
        self._must_follow(register)
        self.term, self._attach_grace_s = register.term, attach_grace_s
        self._attach_since_s, self._attach_until_s = now_s, now_s + attach_grace_s
        self._orders = register.orders
        self._kept_evictions.clear()
        self._settings = self._orders.settings_of(register.settings or RunSettings())
        self._budget.restored(register.blame, register.restarts, self._settings, self._run_s)
        self._cooling.restored(register.blame, self._run_s)
        self._floor = register.floor
        self._pending = self._just_committed = self._broken = None
        self._earlier.clear()
        self._writing_marks = 0
        self._mass_since_s = self._guarding = None
        self._guards_ended_s.clear()
        self._maybe_until_s = float("-inf")
        self._suspended = self._deposed = self._is_committed = False
        self._causes.clear()
        self._questions.clear()
        self._closed = self._is_closed_in_ledger = register.close is not None
        self._nodes.clear()
        self._leavers.clear()
        self._verdicts.clear()
        self._published = None
        self._agreement.restored(register.round, register.marks)
        if register.round is not None:
            self._take_up(register.round, register.marks, now_s)
        self._expected_count = sum(node.is_awaited for node in self._nodes.values())
        self._came.clear()
        self._has_half_come = None
        for node in self._nodes.values():
            node.is_former_host = node.id == former_host
        ended = register.marks.ended if register.marks.round == self._number else None
        if ended is not None:
            self._leavers.update(ended.nodes)
        for effect in effects:
            # If an earlier coordinator saw the round end, its members are told.
            if isinstance(effect, do.Break) and effect.change == ended:
                self._break(effect.change)
            elif not isinstance(effect, do.SetTimer | do.ProbeRound):
                self._fail("R5", f"a coordinator began with more than waiting: {short(effect)}")

    def _must_follow(self, register: RunState) -> None:
        if register.term <= self.term and self._number:
            self._fail("R5", f"term {register.term} follows term {self.term}")
        if register.number < self._number:
            self._fail(
                "R1", f"round {self._number} was committed, the ledger has {register.number}"
            )
        head = register.round.head if register.round is not None else None
        if head is not None and head.digest != self._digests.get(head.number, head.digest):
            self._fail("R2", f"round {head.number} has two digests")
        if self._is_closed_in_ledger and register.close is None:
            self._fail("R6", "a closed run was taken over as an open one")

    def _take_up(self, record: RoundRecord, marks: Marks, now_s: float) -> None:
        """Continue the round. Of its members only the membership is known."""
        self._number = self._restored_number = record.head.number
        self._digests[self._number] = record.head.digest
        self._published = record
        self._token = max(self._token, (record.head.term, self._number))
        if self._closed:
            return
        is_of_round = marks.round == self._number
        done, gone = (ranks_in(marks.done), ranks_in(marks.gone)) if is_of_round else ((), ())
        for rank, row in enumerate(record.members):
            if rank in gone:
                continue
            node = self._nodes[row.name] = _Node(NodeId(row.name, row.incarnation), 0)
            node.reachability, node.done = Reachability.DISCONNECTED, rank in done
            node.absent_since_s = None if node.done else now_s
            node.seated = self._number

    # -- events --------------------------------------------------------------------------------

    def _see_event(self, event: on.Event, now_s: float) -> None:
        node = self._living(event)
        if node is not None:
            self._see_node(node, event, now_s)
        match event:
            case on.NodeAttached(connection_id=connection_id):
                self._attaching[connection_id] = event
            case on.HostReported(node=named, question=number, report=said):
                question = self._questions.get(number)
                if question is not None and named.name in question.asked:
                    question.said.setdefault(named.name, said)
            case on.Committed() if self._pending is not None:
                self._is_committed = True
            case on.MarksWritten(serial=serial) if serial == self._writing_marks:
                self._writing_marks = 0
            case on.DrainRequested(node=named, by=by, reason=reason):
                self._orders = self._orders.with_drain(order(named, by, reason))
            case on.EvictRequested(node=named, by=by, reason=reason):
                self._kept_evictions.append(order(named, by, reason))
            case on.AdmitRequested(node=named):
                self._admitted[named.name] = None
            case on.CommitRefused():
                self._suspended = self._deposed = True
            case on.LedgerLost(cause=cause) if not self._closed:
                self._suspended = True
                self._causes[cause] = None
                # What was said before an outage does not count after it.
                self._questions.clear()
            case on.LedgerRestored(cause=cause) if cause in self._causes:
                del self._causes[cause]
                if not self._causes and not self._deposed:
                    self._go_on(now_s)
        if not self._suspended:
            self._evict()
        if self._is_committed and self._pending is not None and not self._suspended:
            self._committed(self._pending)

    def _evict(self) -> None:
        """The evictions count that operators have asked for, also while the run was SUSPENDED."""
        kept, self._kept_evictions = self._kept_evictions, []
        for each in kept:
            if self._orders.eviction_of(each.node.name) is None:
                self._orders = self._orders.with_eviction(each)

    def _living(self, event: on.Event) -> _Node | None:
        named = getattr(event, "node", None)
        if not isinstance(named, NodeId):
            return None
        node = self._nodes.get(named.name)
        return node if node is not None and node.id == named else None

    def _see_node(self, node: _Node, event: on.Event, now_s: float) -> None:
        if isinstance(event, on.SignOfLife):
            node.heard()
        if isinstance(event, on.SignOfLife | on.NodeLeft | on.ConnectionLost):
            self._host_lives(node)
        match event:
            case on.NodeReady():
                self._ready(node, event)
            case on.NodeProgressed(progress=progress) if self._is_in_published(node):
                self._advanced(progress)
            case on.StacksTold(progress=Progress() as progress) if self._is_in_published(node):
                self._advanced(progress)
            case on.WorkerFailed():
                self._forbids_restart(node, event)
            case on.NodeDone(round=number):
                finished = number and not node.asked and self._was_in(node, number)
                node.done = node.done or bool(finished and not node.departing)
            case on.NodeDeparting():
                node.departing = not node.done
            case on.NodeLeft():
                node.said_goodbye = True
            case on.ConnectionLost(connection_id=connection_id, how=how):
                if (
                    connection_id == node.connection_id
                    and node.reachability is not Reachability.DISCONNECTED
                ):
                    node.reachability, node.closed_s = Reachability.DISCONNECTED, now_s
                    node.has_ended = how is ConnectionEnd.PROCESS_ENDED
            case on.BeatsMissed():
                node.has_missed = not self._suspended
            case on.NodeSilent(silent_s=silent_s) if node.reachability is Reachability.CONNECTED:
                node.reachability, node.silent_since_s = Reachability.SILENT, now_s - silent_s

    def _host_lives(self, node: _Node) -> None:
        for number in [n for n, each in self._questions.items() if each.host == node.host]:
            del self._questions[number]

    def _ask_witness(self, effect: do.AskWitness, now_s: float) -> None:
        node = self._nodes.get(effect.node.name)
        if node is None or node.id != effect.node or not node.is_witness:
            self._fail("R8", f"{effect.node.name} is no witness, and was asked")
        elif node.host == effect.host or node.reachability is not Reachability.CONNECTED:
            self._fail("R8", f"{node.id.name} was asked about its own host, or cannot be heard")
        else:
            question = self._questions.setdefault(effect.question, Question(effect.host, now_s))
            question.asked[node.id.name] = node.is_beside

    def _must_have_lost(self, now_s: float) -> None:
        """R8: a suspect member whose host answers no witness is lost soon, if all others are well.

        If others cannot be heard either, or the ledger was away, nothing is demanded any more.
        """
        for question in self._questions.values():
            there = [n for n in self._nodes.values() if n.host == question.host and n.is_awaited]
            others = (n for n in self._nodes.values() if n.host != question.host and n.is_awaited)
            question.is_void = question.is_void or self._suspended or any(map(_is_missed, others))
            if question.is_void or not question.is_complete or not question.proves_loss(now_s):
                continue
            are_suspect = all(n.reachability is not Reachability.CONNECTED for n in there)
            if not are_suspect:
                question.told_s = None
            elif question.told_s is None:
                question.told_s = now_s
            elif there and _passed(question.told_s, CLOCKS * LOST_WITHIN_S, now_s):
                name = there[0].id.name
                self._fail("R8", f"the host of {name} answers no witness, and it is still a member")

    def _is_witnessed(self, node: _Node, now_s: float) -> bool:
        """R8: whether witnesses have found that the host of a suspect member is gone."""
        found = any(q.host == node.host and q.proves_loss(now_s) for q in self._questions.values())
        hosts = {each.host for each in self._nodes.values() if each.host}
        # Most hosts are heard: else the coordinator may be the one that is cut off.
        found = found and 2 * sum(map(self._is_unheard, hosts)) <= len(hosts)
        since_s, bound_s = node.silent_since_s, self._settings.suspect_after_s
        is_suspect = since_s is not None and _passed(since_s, bound_s, now_s)
        return found and bool(node.host) and (is_suspect or node.closed_s is not None)

    def _is_unheard(self, host: str) -> bool:
        there = [each for each in self._nodes.values() if each.host == host]
        is_missed = [n.has_missed or n.reachability is Reachability.SILENT for n in there]
        return all(is_missed) and any(each.is_awaited for each in there)

    def _was_in(self, node: _Node, number: int) -> bool:
        """Whether it may have been in this round: also before it was lost and came back."""
        if node.seated or number != self._number:
            return number == (node.seated or number) and self._floor < number <= self._number
        rows = self._published.members if self._published is not None else ()
        return any(NodeId(row.name, row.incarnation) == node.id for row in rows)

    def _ready(self, node: _Node, event: on.NodeReady) -> None:
        # R4: a `ready` that names an older round is a repeat.
        if event.leaving_round < node.seated or not node.is_awaited:
            return
        is_inside = self._broken is None and self._is_in_published(node)
        is_over = isinstance(self._pending, CloseRecord)
        if is_inside and (is_over or event.leaving_round != node.seated):
            return
        if self._published and event.leaving_round == self._published.head.number:
            self._leavers.add(node.id.name)
            if event.change is not None and self._restored_number == event.change.round:
                # An earlier coordinator has announced who left, and died before the next round.
                self._leavers.update(event.change.nodes)
        node.asked, node.unfit = True, event.unfit

    def _is_in_published(self, node: _Node) -> bool:
        return self._published is not None and node.seated == self._published.head.number

    def _committed(self, record: RoundRecord | CloseRecord) -> None:
        self._pending, self._just_committed, self._is_committed = None, record, False
        self._earlier.clear()
        if isinstance(record, CloseRecord):
            self._closed = self._is_closed_in_ledger = True
            return
        self._number = record.head.number
        self._budget.step = None
        self._digests[self._number] = record.head.digest

    def _end_attach_grace(self, now_s: float) -> None:
        """At the end of the grace: whether the mass guard protects members that are absent."""
        is_over = not self._suspended and _passed(self._attach_until_s, 0.0, now_s)
        # The clock of the checks may be early: whoever comes a little later was in time.
        is_young = not _passed(self._attach_until_s, (CLOCKS - 1) * self._attach_grace_s, now_s)
        if is_over and (self._has_half_come is None or is_young):
            self._has_half_come = 2 * len(self._came) >= self._expected_count

    def _go_on(self, now_s: float) -> None:
        """The ledger is back: members that have yet to attach get more time, but only once."""
        self._suspended, self._went_on_s = False, now_s
        due_s = self._attach_since_s + self._attach_grace_s
        more_s = self._settings.reconnect_grace_s
        if now_s < self._attach_until_s:
            self._attach_until_s = min(max(due_s, now_s + more_s), due_s + more_s)

    # -- effects -------------------------------------------------------------------------------

    def _see_effect(self, effect: do.Effect, event: on.Event, now_s: float) -> None:
        self._must_be_small(effect)
        if self._deposed and isinstance(
            effect,
            do.Commit
            | do.Publish
            | do.Break
            | do.Verdict
            | do.Announce
            | do.TellDrain
            | do.TellStep,
        ):
            self._fail("R5", f"a deposed coordinator decided something: {short(effect)}")
        self._agreement.see_effect(effect)
        match effect:
            case do.Welcome():
                self._welcome(effect, event)
            case do.Commit(record=RoundRecord() as record):
                # A record that is given again was formed before an operator scaled the run.
                is_new = record != self._pending
                self._must_be_due(record)
                self._must_be_a_round(record, is_new=is_new)
            case do.Commit(record=CloseRecord() as record):
                self._must_be_due(record)
                self._must_be_paid(self._budget.of_close(record))
            case do.WriteMarks(serial=serial, blame=blame):
                self._must_be_alone()
                self._must_be_paid(self._budget.of_ledger(blame, self._run_s))
                untold = self._cooling.of_ledger(blame, self._run_s)
                if untold:
                    self._fail("R9", untold)
                self._writing_marks = serial
            case do.Publish(record=record):
                self._publish(record)
            case do.Break(change=change):
                self._break(change)
                if change.confirmed and change.kind is ChangeKind.NODE_LOST:
                    self._blame(change)
            case do.Verdict(change=change):
                self._verdict(change)
                self._blame(change)
            case do.StayOut(name=name, left_s=left_s) if left_s is not None:
                if not self._cooling.may_be_out(name, self._run_s):
                    self._fail("R7", f"{name} has to stay out, and broke too few rounds")
            case do.Forgive(name=name):
                # A node whose own check has passed says so.
                is_fit_again = isinstance(event, on.NodeReady) and event.node.name == name
                early = "" if is_fit_again else self._cooling.forgiven(name, self._run_s)
                if early:
                    self._fail("R7", early)
            case do.Announce(close=close):
                if close != self._just_committed:
                    self._fail("R6", "an end was announced that the ledger does not hold")
            case do.ProbeRound(round=number):
                for node in self._nodes.values():
                    is_asked = node.seated == number and node is not self._living(event)
                    if is_asked and not (_is_again(event) and node.probed_s is not None):
                        node.probed_s = now_s
            case do.ProbeNode(node=named):
                node = self._nodes[named.name]
                if not (_is_again(event) and node.name_probed_s is not None):
                    node.name_probed_s = now_s
            case do.AskWitness():
                self._ask_witness(effect, now_s)
            case do.AskToLeave(order=drain):
                known = self._nodes.get(drain.node.name)
                if self._deposed or known is None or known.id != drain.node:
                    self._fail("R4", f"{drain.node.name} is asked to leave, and is no member")
                if self._orders.drain_of(drain.node) is None:
                    self._fail("R4", f"{drain.node.name} is asked to leave, and nobody wanted it")
            case do.Evict(node=named):
                if self._suspended or self._deposed:
                    self._fail("R5", f"{named.name} was evicted without a lease")
                if self._orders.eviction_of(named.name) is None:
                    self._fail("R8", f"{named.name} was evicted, and nobody wanted it")
                self._superseded.add(named.name)
            case do.Readmit(order=lifted):
                if lifted.node.name not in self._admitted:
                    self._fail("R8", f"{lifted.node.name} is admitted, and nobody wanted it")
                self._orders = self._orders.without_eviction(lifted.node.name)
            case do.Rescale(scale=scale):
                if self._writing_marks or isinstance(event, on.LedgerRestored):
                    # A record may have been formed already, which waits for that write.
                    self._earlier.append(self._settings)
                self._orders = msgspec.structs.replace(self._orders, scale=scale)
                self._settings = self._orders.settings_of(self._settings)
            case do.Supersede(node=named):
                self._supersede(self._nodes[named.name], now_s)
            case do.Forget(node=named):
                self._forget(named, now_s)

    def _welcome(self, effect: do.Welcome, event: on.Event) -> None:
        node = self._nodes.get(effect.node.name)
        if self._orders.eviction_of(effect.node.name) is not None and not self._suspended:
            self._fail("R4", f"{effect.node.name} was evicted, and is let in")
        if effect.resumed != (node is not None):
            self._fail("R11", f"{effect.node.name} was let in twice, or resumed and is no member")
        if node is None:
            if not self._nodes and isinstance(event, on.NodeAttached):
                self._settings = self._orders.settings_of(event.settings)
            node = self._nodes[effect.node.name] = _Node(effect.node, effect.connection_id)
            self._locate(node)
            return
        node.connection_id = effect.connection_id
        self._locate(node)
        node.heard()
        if node.absent_since_s is not None:
            self._came.add(node.id.name)
        node.reachability, node.connection_id = Reachability.CONNECTED, effect.connection_id
        node.closed_s = node.silent_since_s = node.absent_since_s = None
        node.has_ended = False

    def _locate(self, node: _Node) -> None:
        event = self._attaching.get(node.connection_id)
        if event is None:
            return
        address = event.address
        node.host = str(literal(address.host) or "") if address is not None else ""
        node.is_beside, node.is_witness = event.is_beside, event.is_witness
        self._host_lives(node)

    def _must_be_alone(self) -> None:
        if self._writing_marks or self._suspended:
            self._fail("R5", "two writes to one register at a time, or one without a lease")

    def _must_be_due(self, record: RoundRecord | CloseRecord) -> None:
        self._must_be_alone()
        if self._closed:
            self._fail("R6", "something was committed after the close")
        if self._pending is not None and record != self._pending:
            self._fail("R1", "a second record was given to the ledger before the first was in it")
        self._pending = record
        term = record.term if isinstance(record, CloseRecord) else record.head.term
        if term != self.term:
            self._fail("R5", f"a record has term {term}, but the coordinator has term {self.term}")

    def _must_be_a_round(self, record: RoundRecord, *, is_new: bool) -> None:
        head, names = record.head, [member.name for member in record.members]
        if head.number <= self._number:
            self._fail("R1", f"round {head.number} after round {self._number}")
        if head.digest != table_digest(head.number, record.members, head.bootstrap):
            self._fail("R2", f"the digest of round {head.number} is not that of its table")
        if len(set(names)) != len(names) or head.nodes != len(names):
            self._fail("R3", f"round {head.number} has a node twice, or miscounts: {names}")
        bounds = [*self._earlier, self._settings]
        if is_new and not any(each.min_nodes <= head.nodes <= each.max_nodes for each in bounds):
            self._fail("R3", f"round {head.number} has {head.nodes} nodes: {names}")
        if is_new:
            self._must_be_paid(self._budget.of_round(head.restart_count))
            least = min(each.min_nodes for each in bounds)
            unfit = [name for name in names if name in self._nodes and self._nodes[name].unfit]
            if unfit and head.nodes > least:
                self._fail("R7", f"round {head.number} has {unfit}, whose checks have failed")
            kept_out = self._cooling.of_round(record, least, self._run_s)
            if kept_out:
                self._fail("R7", kept_out)

    def _publish(self, record: RoundRecord) -> None:
        if record != self._just_committed:
            self._fail("R1", f"round {record.head.number} was published without being committed")
        if record.head.digest != self._digests[record.head.number]:
            self._fail("R2", f"round {record.head.number} has two digests")
        if record.head.nodes > self._settings.max_nodes:
            # An operator has scaled the run while the record was written.
            most = self._settings.max_nodes
            self._fail("R3", f"a round of {record.head.nodes} nodes begins, and {most} are allowed")
        token = (record.head.term, record.head.number)
        if token <= self._token:
            self._fail("R13", f"(term, number) {token} was given after {self._token}")
        self._published, self._broken, self._token = record, None, token
        self._published_s = self._run_s
        self._agreement.published(record)
        self._leavers.clear()
        for row in record.members:
            node = self._nodes.get(row.name)
            if node is None or node.id != NodeId(row.name, row.incarnation):
                self._fail("R4", f"{row.name} is given a round, but is not a member any more")
            elif not node.asked or not node.is_awaited:
                self._fail("R4", f"{row.name} is given a round that it was not ready for")
            else:
                node.asked, node.seated = False, record.head.number

    def _break(self, change: Change) -> None:
        record = self._published
        if record is None or self._broken is not None or change.round != record.head.number:
            self._fail("R4", f"round {change.round} was broken twice, or never published")
            return
        self._broken = change
        since_s = self._published_s
        self._lasted_s = None if since_s is None else self._run_s - since_s
        self._agreement.ended()
        inside = {row.name for row in record.members}
        is_inside = change.kind is not ChangeKind.NODES_JOINED
        if any((name in inside) != is_inside for name in change.nodes):
            self._fail("R4", f"round {change.round} was broken by {change.nodes}")
        if change.kind is ChangeKind.READY_AGAIN and not self._leavers.issuperset(change.nodes):
            self._fail("R4", f"a repeat of {change.nodes} broke round {change.round}")

    def _verdict(self, change: Change) -> None:
        if self._broken is None or self._broken.round != change.round:
            self._fail("budget", f"a verdict on round {change.round}, which is not broken")
        if change.round in self._verdicts or not change.confirmed:
            self._fail("budget", f"two verdicts on round {change.round}, or one that is open")
        self._verdicts[change.round] = change
        self._budget.verdict(change, self._settings, self._lasted_s, self._run_s)

    def _blame(self, change: Change) -> None:
        if not any(self._orders.eviction_of(name) for name in change.nodes):
            self._cooling.ended(change, self._settings, self._run_s)

    def must_be_in(self, names: Iterable[str]) -> None:
        """These nodes are kept out of the next round. Raises InvariantViolation."""
        for name in names:
            if not self._cooling.may_be_out(name, self._run_s):
                self._fail("R7", f"{name} is kept out, and broke too few rounds, or long ago")

    def _must_be_paid(self, problem: str) -> None:
        if problem:
            self._fail("budget", problem)

    def _advanced(self, progress: Progress) -> None:
        """A node of the present round has said how far its workers are."""
        if self._broken is None and progress.round == self._number and progress.step is not None:
            known = self._budget.step
            self._budget.step = progress.step if known is None else max(known, progress.step)

    def _forbids_restart(self, node: _Node, event: on.WorkerFailed) -> None:
        """A worker's exit code ends the run, unless its report is too late."""
        is_seen = event.round == self._number == node.seated and self._published is not None
        # If processes end together, the report waits, and its node may be lost before.
        is_burst = any(each.has_ended for each in self._nodes.values())
        if not is_seen or is_burst or self._pending is not None or self._closed:
            return
        if event.failure.exit_code in self._settings.no_restart_exit_codes:
            self._budget.forbade_restart()

    # -- R8: who may be declared lost ----------------------------------------------------------

    def _supersede(self, node: _Node, now_s: float) -> None:
        self._superseded.add(node.id.name)
        asked_s = node.name_probed_s
        unanswered = asked_s is not None and _passed(asked_s, self._settings.probe_s, now_s)
        if node.reachability is not Reachability.DISCONNECTED and not unanswered:
            self._fail("R8", f"{node.id.name} is alive, and was superseded")
        if node.reachability is Reachability.DISCONNECTED and not self._had_grace(node, now_s):
            self._fail("R8", f"{node.id.name} was superseded within its grace")

    def _had_grace(self, node: _Node, now_s: float) -> bool:
        """Whether a node whose connection is closed had time to attach again, or is unable to."""
        if node.has_ended:
            return True
        if node.closed_s is not None:
            return _passed(node.closed_s, self._settings.reconnect_grace_s, now_s)
        return _passed(self._attach_until_s, 0.0, now_s)

    def _forget(self, named: NodeId, now_s: float) -> None:
        node = self._nodes[named.name]
        has_told = node.said_goodbye or (node.absent_since_s is not None and self._was_named(node))
        if node.is_awaited and not has_told and named.name not in self._superseded:
            self._must_be_lost(node, now_s)
        del self._nodes[named.name]

    def _was_named(self, node: _Node) -> bool:
        """Whether a member reported that an earlier coordinator had announced this node's end."""
        return node.id.name in self._leavers

    def _must_be_lost(self, node: _Node, now_s: float) -> None:
        if self._guarding is None:
            self._update_guard(now_s)
        if node.has_ended and not self._suspended:
            return  # R8: its own kernel closed its connection.
        is_kept = self._guarding and not self._is_unguarded(node)
        if self._suspended or is_kept:
            self._fail("R8", f"{node.id.name} was declared lost while no member may be")
        settings, name = self._settings, node.id.name
        if node.absent_since_s is not None:
            if not self._is_attach_over(node, now_s):
                self._fail("R8", f"{name} was declared lost before it had time to attach here")
            return
        if node.reachability is Reachability.CONNECTED:
            self._fail("R8", f"{name} answers, and was declared lost")
        if self._is_witnessed(node, now_s):
            return
        bounds = (
            (
                node.closed_s if node.reachability is Reachability.DISCONNECTED else None,
                settings.reconnect_grace_s,
            ),
            (node.silent_since_s, settings.lost_after_s),
            (node.probed_s if node.silent_since_s is not None else None, settings.probe_s),
        )
        over = [(since_s, s) for since_s, s in bounds if since_s is not None]
        over = [(since_s, s) for since_s, s in over if _passed(since_s, s, now_s)]
        if not over:
            self._fail("R8", f"{name} was declared lost before its time")
        # Those that a guard has protected have the grace once more.
        until_s = [self._graced_since_s(since_s, s) for since_s, s in over]
        if not any(_passed(each_s, settings.reconnect_grace_s, now_s) for each_s in until_s):
            self._fail("R8", f"{name} was declared lost as soon as others were back")

    def _graced_since_s(self, since_s: float, bound_s: float) -> float:
        """When the last guard ended by which its time was surely over; -inf if there was none."""
        first_s, last_s = since_s + bound_s, since_s + CLOCKS * bound_s
        graced_s, grace_s = float("-inf"), self._settings.reconnect_grace_s
        for ended_s in self._guards_ended_s:
            if last_s < ended_s:
                graced_s, first_s = ended_s, ended_s + grace_s
            if first_s < ended_s or graced_s == ended_s:
                # It may have the grace once more, from then on.
                last_s = ended_s + CLOCKS * grace_s
        return graced_s

    def _is_attach_over(self, node: _Node, now_s: float) -> bool:
        """Whether a member that has yet to attach had time for that."""
        assert node.absent_since_s is not None
        if _passed(self._attach_until_s, 0.0, now_s):
            return True
        return node.is_former_host and _passed(node.absent_since_s, HOST_GRACE_S, now_s)

    def _is_unguarded(self, node: _Node) -> bool:
        """Whether the mass guard neither counts nor protects a member that has yet to attach.

        After the attach grace it counts and protects the member if less than half of the round has
        attached, because then this coordinator may be the one that is cut off.
        """
        if node.absent_since_s is None:
            return False
        return node.is_former_host or self._has_half_come in (None, True)

    def _update_guard(self, now_s: float) -> None:
        """Count once in each step: after the event, and before a member is declared lost."""
        if self._suspended or self._closed:
            return
        missing = sum(
            node.is_missing and not self._is_unguarded(node) for node in self._nodes.values()
        )
        awaited = sum(node.is_awaited for node in self._nodes.values())
        limit = max(self._settings.mass_min, self._settings.mass_fraction * awaited)
        if missing <= limit:
            # Nobody was guarded any more if the guard was raised for as long as it may be.
            since_s, bound_s = self._mass_since_s, self._settings.mass_grace_s
            if since_s is not None and not _passed(since_s, bound_s, now_s):
                self._guards_ended_s.append(now_s)
            if since_s is not None and not _passed(since_s, CLOCKS * bound_s, now_s):
                self._maybe_until_s = now_s
            self._mass_since_s = None
        elif self._mass_since_s is None:
            self._mass_since_s = now_s
        since_s = self._mass_since_s
        is_over = since_s is None or _passed(since_s, self._settings.mass_grace_s, now_s)
        self._guarding = not is_over
        if self._guarding:
            self._questions.clear()

    # -- sizes ---------------------------------------------------------------------------------

    def _must_be_small(self, effect: do.Effect) -> None:
        if isinstance(effect, do.Commit | do.Publish):
            return
        bound = max(NAMES_SHOWN_MAX, len(RunSettings.__struct_fields__))
        if any(length > bound for length in _lengths(effect)):
            self._fail("size", f"an effect grows with the number of nodes: {short(effect)}")

    def _fail(self, rule: str, problem: str) -> None:
        raise InvariantViolation(rule, problem, self.history)


def _restored_line(register: RunState, now_s: float, effects: Sequence[do.Effect]) -> str:
    told = f"round {register.number}, close {register.close is not None}"
    what = f"restored in term {register.term} from {told}"
    return f"{now_s:10.3f} s  {what} -> {', '.join(map(short, effects))}"


def _is_missed(node: _Node) -> bool:
    return node.has_missed or node.reachability is not Reachability.CONNECTED


def _is_again(event: on.Event) -> bool:
    """Whether a probe after this event repeats an earlier one, and gives no more time."""
    return isinstance(event, on.LedgerRestored)


def _passed(since_s: float, bound_s: float, now_s: float) -> bool:
    return now_s - since_s >= bound_s - TOLERANCE_S


def _lengths(value: object) -> Iterator[int]:
    """The lengths of all sequences and mappings in a value, except a failure's last lines."""
    if isinstance(value, FrozenStruct):
        for name in value.__struct_fields__:
            # The number of orders does not depend on that of the nodes, and the blame is bounded.
            if name not in ("last_lines", "orders", "blame"):
                yield from _lengths(getattr(value, name))
    elif isinstance(value, tuple | list | dict):
        yield len(value)
        for each in value:
            yield from _lengths(each)
