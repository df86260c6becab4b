"""What one node knows and says. A machine without I/O: messages, ticks and wishes in, actions out.

The node's wishes are kept as a level, not sent as edges: whatever it wants and has not been
answered is said again on every new connection, and the coordinator takes repeats without harm
(R4, R11). So a lost connection, a lost message and a new coordinator are all the same case.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

import msgspec

from rallypoint.core import reasons
from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.store import StoreOp, StoreResult
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    NodeInfo,
    Outcome,
    RoundHead,
    RoundMember,
    RunSettings,
    Seat,
    Stamp,
)
from rallypoint.wire import messages as wire

LATE_TICK_S: Final = 0.05
"""A tick that comes later than this was late because this process did not run."""
LOOK_AGAIN_S: Final = 0.01
"""So long after a late tick, what had come in by then has been read."""
STILL_OPEN_MAX: Final = 64
"""With more calls open than this, acknowledging waits for the oldest of them."""
HEARTBEAT_MIN_S: Final = 0.01
TEXT_CHARACTERS_MAX: Final = 2_000
"""Longer reasons and messages are cut: a coordinator refuses what is longer than `Text`."""
LINES_MAX: Final = 64


_SENDS_AWAY: Final = frozenset({RefusalCode.ELSEWHERE, RefusalCode.MOVED})


class DesiredState(enum.StrEnum):
    """What the node wants of the run."""

    NOTHING = "nothing"
    READY = "ready"
    IN_ROUND = "in_round"
    DONE = "done"
    DEPARTING = "departing"
    GONE = "gone"


# -- actions -------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True):
    """Send this message."""

    message: wire.Message


class Drop(msgspec.Struct, frozen=True):
    """Close the connection, and find a coordinator again."""

    reason: str


class Attached(msgspec.Struct, frozen=True):
    """The coordinator has let the node in, or in again."""


class RoundFormed(msgspec.Struct, frozen=True):
    """The node has a seat in a new round."""

    head: RoundHead
    seat: Seat


class RoundEnded(msgspec.Struct, frozen=True):
    """The node's round has ended, or its cause became known: `change.confirmed`."""

    change: Change


class RunEnded(msgspec.Struct, frozen=True):
    """The run is closed."""

    close: CloseRecord


class WasRefused(msgspec.Struct, frozen=True):
    """The coordinator will not have the node, or no longer: for good."""

    refusal: Refusal


class SentAway(msgspec.Struct, frozen=True):
    """This coordinator does not have the run, or no longer: look for the one that has.

    `addresses`: where it listens, if that was said.
    """

    addresses: tuple[Address, ...]
    reason: str


class CallAnswered(msgspec.Struct, frozen=True):
    """A call of the store has its result."""

    request_id: int
    result: StoreResult


class MembersTold(msgspec.Struct, frozen=True):
    """The member table of round `number`."""

    request_id: int
    number: int
    digest: str
    members: tuple[RoundMember, ...]


class WaitingTold(msgspec.Struct, frozen=True):
    """Why there is no round yet."""

    request_id: int
    waiting: Waiting | None


class PlacedOnStandby(msgspec.Struct, frozen=True):
    """The round is on without the node."""


Action: TypeAlias = (
    Send
    | Drop
    | Attached
    | RoundFormed
    | RoundEnded
    | RunEnded
    | WasRefused
    | SentAway
    | CallAnswered
    | MembersTold
    | WaitingTold
    | PlacedOnStandby
)


class NodeMachine:
    """One node of one run. Not thread-safe: one owner.

    `silence_s`: after this long without a word from the coordinator, or without being let in, the
    connection is dropped.
    `is_elected`: the coordinator is found through a ledger, so that what listens at an address may
    by now be another run's: a refusal for that is no reason to stop.
    `resume_secret`: drawn for this node; nobody else can resume as it. Shown at every attach, also
    the first: then it does not matter whether the answer to that was lost.
    All `now_s` are of one monotonic clock, in seconds.
    """

    def __init__(
        self,
        run_id: str,
        info: NodeInfo,
        settings: RunSettings,
        *,
        silence_s: float,
        software: str = "",
        is_elected: bool = False,
        resume_secret: bytes = b"",
    ) -> None:
        self.run_id = run_id
        self.info = info
        self.settings = settings
        self.silence_s = silence_s
        self.desired = DesiredState.NOTHING
        self.head: RoundHead | None = None
        self.seat: Seat | None = None
        self.ended: Change | None = None
        self.closed: CloseRecord | None = None
        self.refused: Refusal | None = None
        self.is_attached = False
        self.is_standby = False
        self.stamp = Stamp()
        self._software = software
        self._is_elected = is_elected
        self._resume_secret = resume_secret
        self._sends_away = _SENDS_AWAY | {RefusalCode.OTHER_RUN} if is_elected else _SENDS_AWAY
        self._ended_term = 0
        """Which term's coordinator has told why the last round ended."""
        self._ready: wire.Ready | None = None
        self._missed_round = 0
        self._failure: wire.Failed | None = None
        self._departing_reason = ""
        self._goodbye_reason = ""
        self._was_done = False
        self._close_wanted: wire.CloseRun | None = None
        self._requests = 0
        self._acknowledged = 0
        self._open: dict[int, wire.StoreCall | wire.AskMembers | wire.AskWaiting] = {}
        self._ends_s: dict[int, float] = {}
        """When an open call with a timeout has run out of time."""
        self._heartbeat_s = 1.0
        self._heard_s = 0.0
        self._beat = 0
        self._beat_heard_s = 0.0
        self._floor = Stamp()
        self.is_in_memory = False
        """Whether the run is kept in the memory of its coordinator's process, and ends with it."""
        self.led_s = 0.0
        """When a coordinator that holds its lease was last heard."""
        self._next_tick_s: float | None = None
        self._looks_again = False

    @property
    def number(self) -> int:
        """The number of the last round that the node had a seat in; 0 before the first."""
        return self.head.number if self.head else 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come: the run is closed or the node was refused."""
        return self.closed is not None or self.refused is not None

    @property
    def has_workers(self) -> bool:
        """Whether the node's workers run, as far as this knows: its round is on for it."""
        return self.desired is DesiredState.IN_ROUND and self.ended is None

    @property
    def beat_stood_still_s(self) -> float:
        """For how long the coordinator is known not to have renewed its lease, in seconds."""
        return self._beat_heard_s - self.led_s

    def is_open(self, request_id: int) -> bool:
        """Whether a request still waits for its answer."""
        return request_id in self._open

    # -- the connection ------------------------------------------------------------------------

    def connected(self, now_s: float, source: Address | None = None) -> list[Action]:
        """A connection to a coordinator is open. `source`: the address of this side's socket."""
        self._heard_s = now_s
        self._next_tick_s = now_s + self._tick_s()
        attach = wire.Attach(
            self.stamp,
            wire.VERSION,
            self.run_id,
            self.info,
            self.settings,
            self._software,
            reads_ledger=self._is_elected,
            source=source,
            resume_secret=self._resume_secret,
        )
        return [Send(attach)]

    def comes_again(self) -> None:
        """What refused this node had another run, and may be gone or replaced soon."""
        self.refused = None

    def disconnected(self) -> None:
        """The connection is closed. What is open stays so, and is said again on the next one."""
        self.is_attached = False
        self._next_tick_s = None

    def next_tick_s(self) -> float | None:
        """When `tick` has something to do; None while there is no connection."""
        return self._next_tick_s

    def tick(self, now_s: float) -> list[Action]:
        """Send a heartbeat; give up a coordinator that says nothing."""
        if self._next_tick_s is None or now_s < self._next_tick_s:
            return []
        late_s = now_s - self._next_tick_s
        if late_s > LATE_TICK_S:
            # This process did not run: the coordinator is not to blame.
            self._heard_s = min(now_s, self._heard_s + late_s)
        self._next_tick_s = now_s + self._tick_s()
        silent_s = now_s - self._heard_s
        if silent_s > self.silence_s and late_s > LATE_TICK_S and not self._looks_again:
            # What the coordinator said meanwhile may not have been read yet.
            self._looks_again, self._next_tick_s = True, now_s + LOOK_AGAIN_S
        elif silent_s > self.silence_s:
            return [Drop(f"the coordinator has said nothing for {silent_s:.1f} s")]
        else:
            self._looks_again = False
        return [Send(wire.Heartbeat(self.stamp))] if self.is_attached else []

    def _tick_s(self) -> float:
        """At least thrice per `silence_s`, so that heartbeats are what breaks the silence."""
        often_s = max(HEARTBEAT_MIN_S, self.silence_s / 3)
        return min(often_s, self._heartbeat_s) if self.is_attached else often_s

    # -- messages ------------------------------------------------------------------------------

    def received(self, message: wire.FromCoordinator, now_s: float) -> list[Action]:
        """One message of the coordinator."""
        self._heard_s = now_s
        if self._is_stale(message):
            # R5: the late words of an older term or round change nothing.
            return self._leave_replaced(message)
        if not isinstance(message, wire.Refused):
            self.stamp = message.stamp
        match message:
            case wire.Welcome():
                return self._on_welcome(message, now_s)
            case wire.Refused():
                return self._on_refused(message.refusal, message.stamp.ledger_id)
            case wire.Formed():
                return self._on_formed(message)
            case wire.Broken() | wire.CauseFound():
                return self._on_ended(message.change)
            case wire.Closed():
                return self._on_closed(message.close)
            case wire.Probe():
                return [Send(wire.Alive(self.stamp))]
            case wire.Standby():
                self.is_standby = message.standby
                return [PlacedOnStandby()] if message.standby else []
            case wire.StoreAnswer():
                return self._on_answer(message)
            case wire.Members() | wire.WaitingIs():
                return self._on_told(message)
            case wire.Beat():
                self._on_beat(message, now_s)
                return []

    def _is_stale(self, message: wire.FromCoordinator) -> bool:
        """A refusal answers this connection, and may come before the run was even looked at."""
        seen = self.stamp
        if isinstance(message, wire.Refused):
            if message.refusal.code in self._sends_away or not message.stamp.term:
                # To look again does no harm; and who has no term yet, or has none of this run,
                # refuses what needs none: a version, a size, another ledger.
                return False
            seen = Stamp(seen.ledger_id, seen.term, 0)
        stamp, floor = message.stamp, self._floor  # The floor has a term once a ledger was read.
        return stamp.is_older_than(seen) or (floor.term > 0 and stamp.is_older_than(floor))

    def _leave_replaced(self, message: wire.FromCoordinator) -> list[Action]:
        """A coordinator that has been replaced and does not know it lets this node in."""
        if not isinstance(message, wire.Welcome):
            return []
        term, floor = message.stamp.term, max(self.stamp.term, self._floor.term)
        return [Drop(f"this coordinator was replaced: its term is {term}, the run's {floor}")]

    def _on_beat(self, message: wire.Beat, now_s: float) -> None:
        """One whose beat stands still has lost its lease, or cannot reach its ledger."""
        self._beat_heard_s = now_s
        if message.beat != self._beat:
            self._beat, self.led_s = message.beat, now_s

    def _on_welcome(self, message: wire.Welcome, now_s: float) -> list[Action]:
        self.is_attached = True
        self.is_in_memory = message.in_memory
        self.led_s = self._beat_heard_s = now_s
        self._heartbeat_s = max(HEARTBEAT_MIN_S, message.heartbeat_s)
        self._next_tick_s = now_s + self._tick_s()
        self.is_standby = message.standing.standby
        actions: list[Action] = [Attached(), *self._catch_up(message)]
        return actions + [Send(each) for each in self._to_say_again(now_s)]

    def _catch_up(self, message: wire.Welcome) -> list[Action]:
        """What became of the node's last round while it could not be told."""
        standing, change = message.standing, message.standing.change
        if change is not None and change.round != self.number:
            self._miss(change.round)
            change = None  # It went later, from a round that it was never given.
        if self.head is None or standing.round == self.number:
            return []
        if self.ended is None:
            return self._on_ended(change or self._superseded(message))
        if change is not None and change.confirmed and not self.ended.confirmed:
            return self._on_ended(change)
        return []

    def _miss(self, number: int) -> None:
        """A round with this node was formed and has ended while it could not be told.

        It is ready for the next one (R7): named after an older round, that would be a repeat (R4).
        """
        self._missed_round = max(self._missed_round, number)
        if self._ready is not None and self._ready.leaving_round < number:
            self._ready = msgspec.structs.replace(self._ready, leaving_round=number)

    def _superseded(self, message: wire.Welcome) -> Change:
        """The run went on without this node while it could not be reached (R13)."""
        detail = f"the run went on without it to round {message.stamp.round}"
        return Change(ChangeKind.NODE_LOST, self.number, (self.info.name,), 1, detail)

    def _to_say_again(self, now_s: float) -> list[wire.Message]:
        """All that the node wants and has no answer to."""
        said: list[wire.Message] = []
        if self._failure is not None and self.ended is None:
            said.append(self._failure)  # first: it, and not being ready again, ends the round
        if self.desired is DesiredState.READY and self._ready is not None:
            self._ready = self._ready_message(self._ready.bootstrap, self._ready.workers)
            said.append(self._ready)
        if self.desired is DesiredState.DONE:
            said.append(wire.Done(self.stamp, self.number))
        if self.desired is DesiredState.DEPARTING:
            said.append(wire.Departing(self.stamp, self._departing_reason))
        if self.desired is DesiredState.GONE:
            # A coordinator that never heard that it was done would take it for a departure.
            goodbye = wire.Goodbye(self.stamp, self._goodbye_reason)
            return [wire.Done(self.stamp, self.number), goodbye] if self._was_done else [goodbye]
        if self._close_wanted is not None:
            said.append(self._close_wanted)
        self._ends_s = {i: ends_s for i, ends_s in self._ends_s.items() if i in self._open}
        return said + [self._with_time_left(each, now_s) for each in self._open.values()]

    def _with_time_left(
        self, asked: wire.StoreCall | wire.AskMembers | wire.AskWaiting, now_s: float
    ) -> wire.Message:
        """A coordinator knows nothing of how long a call has waited at another one (R9)."""
        ends_s = self._ends_s.get(asked.request_id)
        if ends_s is None or not isinstance(asked, wire.StoreCall):
            return asked
        return msgspec.structs.replace(asked, timeout_s=max(0.0, ends_s - now_s))

    def _on_refused(self, refusal: Refusal, ledger_id: str) -> list[Action]:
        if refusal.code in self._sends_away:
            return [SentAway(refusal.addresses, refusal.message)]
        if self.stamp.ledger_id and not self._is_final(refusal, ledger_id):
            return [Drop(refusal.message)]
        if refusal.code is RefusalCode.CLOSED and refusal.close is not None and self.stamp.term:
            return self._on_closed(refusal.close)
        self.refused = refusal
        return [WasRefused(refusal)]

    def _is_final(self, refusal: Refusal, ledger_id: str) -> bool:
        """Whether a node that was in the run need not come back.

        Who has another ledger cannot speak for the run. Where the coordinator has an address of its
        own, it answers in the place of the one that the run was lost with; a ledger may name an
        address that something else has taken meanwhile. A limit may be free again soon.
        """
        if ledger_id != self.stamp.ledger_id:
            return bool(ledger_id) and not self._is_elected
        return refusal.code is not RefusalCode.LIMIT

    def _on_formed(self, message: wire.Formed) -> list[Action]:
        # R4: a node takes no round that it is not ready for, nor the same one twice.
        if self.desired is not DesiredState.READY or message.head.number <= self.number:
            return []
        self.head, self.seat, self.ended = message.head, message.seat, None
        self.desired = DesiredState.IN_ROUND
        self.is_standby = False
        self._ready, self._failure = None, None
        return [RoundFormed(message.head, message.seat)]

    def _on_ended(self, change: Change) -> list[Action]:
        if change.round != self.number or self.head is None:
            return []
        self.ended = change
        self._ended_term = self.stamp.term
        self._failure = None
        self._open = {k: v for k, v in self._open.items() if not isinstance(v, wire.StoreCall)}
        return [RoundEnded(change)]

    def _on_closed(self, close: CloseRecord) -> list[Action]:
        if self.closed is not None:
            return []
        self.closed = close
        self._close_wanted = None
        actions: list[Action] = []
        if self.head is not None and self.ended is None:
            detail = reasons.describe_close(close)
            actions += self._on_ended(Change(ChangeKind.CLOSED, self.number, detail=detail))
        return [*actions, RunEnded(close)]

    def _on_answer(self, message: wire.StoreAnswer) -> list[Action]:
        if not isinstance(self._open.get(message.request_id), wire.StoreCall):
            return []
        self._ends_s.pop(message.request_id, None)
        del self._open[message.request_id]
        return [CallAnswered(message.request_id, message.result)]

    def _on_told(self, message: wire.Members | wire.WaitingIs) -> list[Action]:
        asked = wire.AskWaiting if isinstance(message, wire.WaitingIs) else wire.AskMembers
        if not isinstance(self._open.get(message.request_id), asked):
            return []
        del self._open[message.request_id]
        if isinstance(message, wire.WaitingIs):
            return [WaitingTold(message.request_id, message.waiting)]
        return [MembersTold(message.request_id, message.round, message.digest, message.members)]

    # -- what is found out without a coordinator -------------------------------------------------

    def found_closed(self, close: CloseRecord) -> list[Action]:
        """The ledger says that the run is over (R6)."""
        return self._on_refused(reasons.run_over(self.run_id, close), self.stamp.ledger_id)

    def found_replaced(self) -> list[Action]:
        """The ledger is another one now: what the run had is lost with the former."""
        message = f"run {self.run_id!r} was lost with its ledger: another one is in its place"
        hint = "start the run again: it will be begun anew in this ledger"
        return self._on_refused(Refusal(RefusalCode.RUN_LOST, message, hint), self.stamp.ledger_id)

    def found_term(self, floor: Stamp) -> None:
        """R5: the ledger says that no earlier term than this can be the run's any more."""
        if self._floor.ledger_id != floor.ledger_id or self._floor.is_older_than(floor):
            self._floor = floor

    def orphaned(self, alone_s: float) -> list[Action]:
        """There has been no coordinator for too long, or none that holds its lease: the node's
        round ends for it (R13)."""
        if self.head is None or self.ended is not None:
            return []
        what = "no coordinator that holds its lease" if self.is_attached else "no coordinator"
        detail = f"it has had {what} for {alone_s:.0f} s"
        change = Change(ChangeKind.NODE_LOST, self.number, (self.info.name,), 1, detail)
        actions = self._on_ended(change)
        self._ended_term = 0  # No coordinator knows of it yet.
        return actions

    # -- wishes --------------------------------------------------------------------------------

    def ready(self, bootstrap: Address, workers: int) -> list[Action]:
        """Want the next round, and leave the one the node is in, if it is in one.

        Once more, with another bootstrap or number of workers, before the round is formed: that
        replaces what was said.
        """
        if self.desired in (DesiredState.DEPARTING, DesiredState.GONE):
            return []
        said = self._ready if self.desired is DesiredState.READY else None
        if said is not None and (said.bootstrap, said.workers) == (bootstrap, workers):
            return []
        self.desired = DesiredState.READY
        self._ready = self._ready_message(bootstrap, workers)
        return self._say(self._ready)

    def _ready_message(self, bootstrap: Address, workers: int) -> wire.Ready:
        """With why the last round ended, for a coordinator that came after it."""
        is_known = self._ended_term == self.stamp.term
        change = None if is_known else self.ended
        leaving_round = max(self.number, self._missed_round)
        return wire.Ready(self.stamp, leaving_round, bootstrap, workers, change)

    def failed(self, failure: Failure) -> list[Action]:
        """A worker of this round failed."""
        if self.desired is not DesiredState.IN_ROUND:
            return []
        self._failure = wire.Failed(self.stamp, self.number, _bounded(failure))
        return self._say(self._failure)

    def done(self) -> list[Action]:
        """All workers of this round have finished."""
        if self.desired is not DesiredState.IN_ROUND:
            return []
        self.desired = DesiredState.DONE
        return self._say(wire.Done(self.stamp, self.number))

    def depart(self, reason: str) -> list[Action]:
        """The node was asked to leave, and begins to stop its workers."""
        if self.desired in (DesiredState.DONE, DesiredState.DEPARTING, DesiredState.GONE):
            return []
        self.desired = DesiredState.DEPARTING
        self._departing_reason = _text(reason)
        return self._say(wire.Departing(self.stamp, self._departing_reason))

    def goodbye(self, reason: str) -> list[Action]:
        """Nothing of the node runs any more. Its round, if it is in one, ends for it here."""
        if self.desired is DesiredState.GONE:
            return []
        was_in_round = self.desired is DesiredState.IN_ROUND and self.ended is None
        self._was_done = self.desired is DesiredState.DONE
        self.desired = DesiredState.GONE
        self._goodbye_reason = _text(reason)
        actions = self._say(wire.Goodbye(self.stamp, self._goodbye_reason))
        if was_in_round:
            left = Change(ChangeKind.NODE_LEFT, self.number, (self.info.name,), 1, reason)
            actions += self._on_ended(left)
        return actions

    def close(self, outcome: Outcome, reason: str) -> list[Action]:
        """End the run for all."""
        self._close_wanted = wire.CloseRun(self.stamp, outcome, _text(reason))
        return self._say(self._close_wanted)

    def call(
        self, op: StoreOp, timeout_s: float | None, now_s: float | None = None
    ) -> tuple[int, list[Action]]:
        """A call of the round's store. The request's number, and what to do.

        With `now_s` a call that is asked again has the time that is left of `timeout_s`.
        """
        self._requests += 1
        request_id = self._requests
        stamp = Stamp(self.stamp.ledger_id, self.stamp.term, self.number)
        acknowledged, still_open = self._acknowledgement()
        call = wire.StoreCall(stamp, request_id, op, timeout_s, acknowledged, still_open)
        self._open[request_id] = call
        if timeout_s is not None and now_s is not None:
            self._ends_s[request_id] = now_s + timeout_s
        return request_id, self._say(call)

    def cancel(self, request_id: int) -> list[Action]:
        """Nobody waits for this request any more."""
        asked = self._open.pop(request_id, None)
        self._ends_s.pop(request_id, None)
        is_call = isinstance(asked, wire.StoreCall)
        return self._say(wire.StoreCancel(self.stamp, request_id)) if is_call else []

    def ask_members(self) -> tuple[int, list[Action]]:
        """Ask for the member table."""
        return self._ask(wire.AskMembers)

    def ask_waiting(self) -> tuple[int, list[Action]]:
        """Ask why there is no round yet."""
        return self._ask(wire.AskWaiting)

    def _ask(self, kind: type[wire.AskMembers] | type[wire.AskWaiting]) -> tuple[int, list[Action]]:
        self._requests += 1
        message = kind(self.stamp, self._requests)
        self._open[self._requests] = message
        return self._requests, self._say(message)

    def _acknowledgement(self) -> tuple[int, tuple[int, ...]]:
        """Up to which request everything is answered, and the exceptions if they are few."""
        open_ids = tuple(self._open)
        if len(open_ids) <= STILL_OPEN_MAX:
            return self._requests - 1, open_ids
        return open_ids[0] - 1, ()

    def _say(self, message: wire.Message) -> list[Action]:
        return [Send(message)] if self.is_attached else []


def _text(text: str) -> str:
    """A text as the wire takes it: bounded, and without what is no Unicode (a file's odd name)."""
    return text[:TEXT_CHARACTERS_MAX].encode("utf-8", "replace").decode()


def _bounded(failure: Failure) -> Failure:
    lines = tuple(map(_text, failure.last_lines[-LINES_MAX:]))
    return msgspec.structs.replace(failure, message=_text(failure.message), last_lines=lines)
