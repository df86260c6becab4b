"""One node of a world: the shipped `NodeMachine`, and what its shell does with actions."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

import msgspec

from rallypoint.checkers.violations import InvariantViolation
from rallypoint.client import actions as act
from rallypoint.client.machine import DesiredState, NodeMachine
from rallypoint.client.step_gate import Pass, StepGate
from rallypoint.core.values import (
    Address,
    Failure,
    FailureKind,
    HostReport,
    NodeInfo,
    Outcome,
    RoundHead,
    RunSettings,
    Seat,
    Stamp,
)
from rallypoint.simulation.model.canonical import digest
from rallypoint.simulation.model.coordinator import LEDGER, RUN
from rallypoint.wire import messages as wire

SILENCE_S: Final = 10.0
LEFT_S: Final = 16.0
BOOTSTRAP: Final = Address("h", 1)
NO_SLOT: Final = -1
HANG_TIMEOUT_S: Final = 64.0


class Status(enum.StrEnum):
    """What has become of the node's process."""

    NEW = "new"
    """It has made no move yet."""
    RUNS = "runs"
    DEAD = "dead"
    LEFT = "left"
    """It has said goodbye, and its coordinator has answered."""


class Reaction(msgspec.Struct):
    """What a node did: it sent messages, left its connection, got a seat."""

    sent: list[wire.Message] = msgspec.field(default_factory=list)
    has_left: bool = False
    seat: tuple[RoundHead, Seat] | None = None


class Node:
    """One node. `react` takes an input, changes the state and returns what it did."""

    def __init__(
        self,
        index: int,
        settings: RunSettings,
        attempt: int = 0,
        *,
        is_witness: bool = False,
        reports: bool = False,
    ) -> None:
        self.index = index
        self.is_witness, self.reports = is_witness, reports
        self.attempt = attempt
        self.settings = settings
        self.status = Status.NEW if attempt == 0 else Status.RUNS
        self.slot = NO_SLOT
        """Its connection."""
        self.token = (0, 0)
        """(term, number) of its last round."""
        self.info = NodeInfo(f"n{index}", 10 * attempt + index + 1, f"h{index}")
        self.machine = NodeMachine(
            RUN,
            self.info,
            settings,
            silence_s=SILENCE_S,
            is_elected=True,
            resume_secret=bytes([10 * attempt + index + 1]) * 32,
            takes_orders=True,
            tells_stacks=reports,
            hang_timeout_s=HANG_TIMEOUT_S if reports else None,
            is_witness=is_witness,
        )
        self.gate = StepGate()
        """Of its one worker, in its present round."""
        self.next_step = 0
        self.is_asked = False
        """Whether its thread has yet to promise."""
        self.is_waiting = False
        """Whether the worker waits for the decision."""
        self.stopped_at: int | None = None
        self.drains = False
        self.must_leave = False
        """Whether an operator has asked it to leave."""
        self.machine.progress.counts_from_start = reports
        self.has_reported = False
        """Whether its coordinator knows that its workers may hang."""
        self.hangs = False
        """Whether its worker stands still."""
        self.is_off = False
        """Whether its host has lost power."""
        self.seen: tuple[str, ...] = ()
        """The hosts that have answered it."""
        self.questions: tuple[act.HostReportWanted, ...] = ()
        self._is_stuck = False
        self._reaction = Reaction()

    def __getstate__(self) -> dict[str, Any]:
        gate = self.gate
        known = (gate._asked, gate._passed, gate._promised, gate._step)
        return self.__dict__ | {"gate": known}  # A lock cannot be copied.

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.gate = gate = StepGate()
        gate._asked, gate._passed, gate._promised, gate._step = state["gate"]

    def key(self) -> bytes:
        """The name of this state."""
        if self.status in (Status.DEAD, Status.LEFT):
            end = f"{self.status} {self.is_off} {self.hangs}"
            return f"{self.index} {self.attempt} {end}".encode()
        machine = self.machine
        known = (machine.number, machine._was_done)
        place = (self.index, self.attempt, self.status, self.slot)
        gate = self.gate
        steps = (gate._asked, gate._passed, gate._promised, gate._step, self.next_step)
        waits = (self.is_asked, self.is_waiting, self.stopped_at, self.drains, self.must_leave)
        asked = [(each.question, each.host, each.asked_by) for each in self.questions]
        others = (self.has_reported, self.hangs, self.seen, asked)
        return digest((place, self.token, known, steps, waits, others, _plain(machine.freeze())))

    def react(self, what: str, *args: Any) -> Reaction:
        """Take one input. Raises InvariantViolation if a rule is broken by it."""
        self._reaction = Reaction()
        if self.status is Status.NEW:
            self.status = Status.RUNS
        before = self.machine.stamp
        INPUTS[what](self, *args)
        if self.machine.stamp.is_older_than(before):
            raise InvariantViolation("R5", f"{self.machine.stamp} was accepted after {before}")
        machine = self.machine
        if machine.is_attached and machine.stamp.is_older_than(Stamp(LEDGER, machine._floor.term)):
            raise InvariantViolation(
                "R5", f"attached in term {machine.stamp.term}, has read {machine._floor.term}"
            )
        return self._reaction

    def _dials(self, slot: int, term: int) -> None:
        self.slot = slot
        # It has read the register before it dials.
        self.machine.found_term(Stamp(LEDGER, term, 0))
        self._act(self.machine.connected(0.0))

    def _ready(self) -> None:
        self._act(self.machine.ready(BOOTSTRAP, 1))

    def _done(self) -> None:
        self._act(self.machine.done())

    def _fails(self) -> None:
        self._act(self.machine.failed(Failure(FailureKind.EXCEPTION, "boom")))

    def _departs(self) -> None:
        self._act(self.machine.depart("asked"))

    def _steps(self) -> None:
        """Its worker asks about its next step."""
        is_first = not self.gate.is_used
        self._enter()
        if is_first:
            self._act(self.machine.takes_part())

    def _enter(self) -> None:
        step = self.next_step
        passed = self.gate.enter(step)
        self.is_waiting = passed is Pass.WAIT
        if passed is Pass.STOP:
            self.stopped_at = step
        elif passed is Pass.GO_ON:
            self.next_step += 1

    def _promises(self) -> None:
        """Its thread answers."""
        self.is_asked = False
        step = self.gate.promise()
        if step is not None:
            self._act(self.machine.promise(step))

    def _drains(self) -> None:
        self.drains = True
        self._act(self.machine.drains("notice", LEFT_S, 0.0))

    def _says_goodbye(self) -> None:
        self._act(self.machine.goodbye("bye"))

    def _closes(self) -> None:
        self._act(self.machine.close(Outcome.STOPPED, "asked"))

    def _hangs(self) -> None:
        self.hangs = True

    def _reports(self) -> None:
        """Its next heartbeat says that its workers have begun."""
        self.has_reported = True
        progress = self.machine.progress.known(0.0)
        self._act([act.Send(wire.Heartbeat(self.machine.stamp, progress))])

    def _testifies(self, report: HostReport) -> None:
        """It has tried to reach the host that its coordinator has asked about first."""
        asked, *rest = self.questions
        self.questions = tuple(rest)
        if asked.host not in self.seen:
            report = HostReport.UNSEEN
        self._act(self.machine.testify(asked, report))

    def _hears(self, message: Any, is_stuck: bool = False) -> None:
        """`is_stuck`: no worker of its round has advanced for long."""
        self._is_stuck = is_stuck
        was_ready = self.machine.desired is DesiredState.READY
        self._act(self.machine.received(message, 0.0))
        seat = self._reaction.seat
        if seat is None:
            return
        head, _ = seat
        if not was_ready:
            raise InvariantViolation("R4", f"{self.info.name} got a round and was not ready")
        token = (head.term, head.number)
        if token <= self.token:
            raise InvariantViolation("R13", f"{self.info.name}: {token} after {self.token}")
        self.token = token

    def _loses(self, was_answered: bool) -> None:
        """Its connection has ended. `was_answered`: its coordinator closed it."""
        self.slot = NO_SLOT
        self.machine.disconnected()
        if was_answered and self.machine.has_said_goodbye:
            self.status = Status.LEFT

    def _drops(self) -> None:
        """It has not heard a coordinator with a lease for too long."""
        self._leave()

    def _dies(self) -> None:
        self.status, self.slot = Status.DEAD, NO_SLOT

    def _loses_power(self) -> None:
        self._dies()
        self.is_off = True

    def _restarts(self) -> None:
        token = self.token
        self.__init__(  # type: ignore[misc]
            self.index,
            self.settings,
            self.attempt + 1,
            is_witness=self.is_witness,
            reports=self.reports,
        )
        self.token = token

    def _act(self, actions: list[act.Action]) -> None:
        for action in actions:
            match action:
                case act.Send(message):
                    if self.slot != NO_SLOT:
                        self._reaction.sent.append(message)
                case act.Drop() | act.Redirected() | act.WasRefused():
                    self._leave()
                case act.RoundFormed(head=head, seat=seat):
                    self._reaction.seat = (head, seat)
                    self.gate, self.next_step, self.stopped_at = StepGate(), 0, None
                    self.is_asked = self.is_waiting = self.drains = False
                    self.has_reported = self.hangs = False
                case act.Attached():
                    self.has_reported = False
                case act.WatchWanted(addresses=addresses):
                    seen = {*self.seen, *(each.host for each in addresses)}
                    self.seen = tuple(sorted(seen))
                case act.HostReportWanted():
                    others = [each for each in self.questions if each.host != action.host]
                    self.questions = (*others, action)
                case act.StacksWanted(request_id=request_id):
                    now_s = 2 * HANG_TIMEOUT_S if self._is_stuck else 0.0
                    self._act(self.machine.stacks_told(request_id, (), now_s))
                case act.LeaveWanted():
                    self.must_leave = True
                case act.DrainTold(drain=drain):
                    self.is_asked = drain.is_asked
                case act.StepDecided(step=step):
                    self.gate.decide(step)
                    if self.is_waiting:
                        self._enter()
                case act.RoundEnded():
                    # The worker gets an error.
                    self.is_asked = self.is_waiting = self.hangs = False
                case _:
                    """For the program: a round ended, or the run."""

    def _leave(self) -> None:
        if self.slot != NO_SLOT:
            self._reaction.has_left = True
            self.slot = NO_SLOT
            self.machine.disconnected()


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return [type(value).__name__, value]
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


INPUTS: Final[dict[str, Callable[..., None]]] = {
    "dials": Node._dials,
    "ready": Node._ready,
    "ready again": Node._ready,
    "leave": Node._says_goodbye,
    "done": Node._done,
    "fail": Node._fails,
    "depart": Node._departs,
    "goodbye": Node._says_goodbye,
    "step": Node._steps,
    "promise": Node._promises,
    "drain": Node._drains,
    "drains as asked": Node._drains,
    "departs as asked": Node._departs,
    "departs at last": Node._departs,
    "asks at last": Node._ready,
    "close": Node._closes,
    "hears": Node._hears,
    "loses": Node._loses,
    "drops": Node._drops,
    "die": Node._dies,
    "power off": Node._loses_power,
    "hang": Node._hangs,
    "reports": Node._reports,
    "testifies": Node._testifies,
    "restart": Node._restarts,
}
