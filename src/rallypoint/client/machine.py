"""The state machine of one node, without I/O: messages, ticks and requests in; actions out.

The desired state is stored, and sent again on every connection, with all requests that have no
answer yet. Repeats do no harm at the coordinator (R4, R11). So a lost connection, a lost message
and a new coordinator are handled alike. Tasks, timers and sockets belong to `node` and `connector`.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from rallypoint.client.actions import (
    Action,
    Attached,
    DrainTold,
    Drop,
    HostReportWanted,
    LeaveWanted,
    PlacedOnStandby,
    Redirected,
    RoundEnded,
    RoundFormed,
    RunEnded,
    Send,
    StacksWanted,
    StepDecided,
    WasRefused,
    WatchWanted,
)
from rallypoint.client.heartbeats import Heartbeats
from rallypoint.client.open_requests import OpenRequests
from rallypoint.client.progress import ProgressReports
from rallypoint.core import reasons
from rallypoint.core.orders import Order
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.store import StoreOp
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Drain,
    EndedOwner,
    Failure,
    HostReport,
    NodeInfo,
    Outcome,
    RoundHead,
    RunSettings,
    Seat,
    Stamp,
)
from rallypoint.wire import messages as wire

TEXT_CHARACTERS_MAX: Final = 2_000
"""Longer reasons and messages are cut, because a coordinator refuses a text longer than `Text`."""
LINES_MAX: Final = 64


_REDIRECTS: Final = frozenset({RefusalCode.ELSEWHERE, RefusalCode.MOVED})


class DesiredState(enum.StrEnum):
    """The state that the node wants in the run. Each change is sent to the coordinator."""

    NOTHING = "nothing"
    READY = "ready"
    IN_ROUND = "in_round"
    DONE = "done"
    DEPARTING = "departing"
    GONE = "gone"


class NodeMachine:
    """One node of one run: its desired state, its round, and how the run ended for it.

    It must not depend on when a coordinator counts as silent (`Heartbeats`) or how requests are
    numbered (`OpenRequests`). Not thread-safe: one owner.

    `silence_s`: the connection is dropped after this time without a message from the coordinator,
    or without being attached. `is_elected`: the coordinator is found through a ledger. Another
    run's coordinator may have its address by now, so a refusal because of another run does not end
    the node. `resume_secret`: drawn for this node, so that no other can resume as this node. It is
    in every `Attach`, including the first, so that the loss of an answer does no harm.
    `takes_orders`: an operator can ask the node to leave. `tells_stacks`: the coordinator can ask
    it where its workers stand. `hang_timeout_s`: see ProgressReports.
    `is_witness`: it can connect to the hosts of other members. All `now_s` are from one
    monotonic clock, in seconds.
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
        takes_orders: bool = False,
        tells_stacks: bool = False,
        hang_timeout_s: float | None = None,
        is_witness: bool = False,
    ) -> None:
        self.run_id = run_id
        self.info = info
        self.settings = settings
        self.heartbeats = Heartbeats(silence_s)
        self.requests = OpenRequests()
        self.progress = ProgressReports(hang_timeout_s)
        self.desired = DesiredState.NOTHING
        self.head: RoundHead | None = None
        self.number = 0
        """The number of the last round that the node had a seat in; 0 before the first."""
        self.seat: Seat | None = None
        self.ended: Change | None = None
        self.closed: CloseRecord | None = None
        self.refused: Refusal | None = None
        self.is_attached = False
        self.is_standby = False
        self.stays_out = ""
        """Why it has to stay out while it is on standby."""
        self.nodes_max = settings.max_nodes
        """How many nodes a round has at most, which an operator may have changed."""
        self.takes_unfit = False
        """Whether the coordinator keeps a node out whose check fails."""
        self.stamp = Stamp()
        self._software = software
        self._is_elected = is_elected
        self._resume_secret = resume_secret
        self._takes_orders = takes_orders
        self._tells_stacks = tells_stacks
        self._is_witness = is_witness
        self._redirects = _REDIRECTS | {RefusalCode.OTHER_RUN} if is_elected else _REDIRECTS
        self._ended_term = 0
        """The term of the coordinator that has reported why the last round ended."""
        self._ready: wire.Ready | None = None
        self._missed_round = 0
        self._failure: wire.Failed | None = None
        self._departing_reason = ""
        self._goodbye_reason = ""
        self._was_done = False
        self._close_wanted: wire.CloseRun | None = None
        self.agrees = False
        """Whether the coordinator understands drains."""
        self.drain: Drain | None = None
        """Who is going to leave the round, as far as this node was told."""
        self.step: int | None = None
        """The step at which all workers of the round stop, if it is decided."""
        self._takes_part = False
        self._promised: int | None = None
        self._drains: tuple[str, float] | None = None
        """Why this node is going to leave its round, and when at the latest."""
        self._floor = Stamp()
        self._ended_owner: EndedOwner | None = None
        self.is_in_memory = False
        """Whether the run is in the memory of the coordinator's process, and ends with it."""
        self.lease_ttl_s = 0.0
        """The ttl of the coordinator's lease; 0 if it has none or has not told it."""

    @property
    def is_over(self) -> bool:
        """Whether the run is closed, or the node was refused for good."""
        return self.closed is not None or self.refused is not None

    @property
    def has_workers(self) -> bool:
        """Whether the node's round is active, so that its workers run, as far as is known here."""
        return self.desired is DesiredState.IN_ROUND and self.ended is None

    @property
    def has_said_goodbye(self) -> bool:
        """Whether the node is leaving the run."""
        return self.desired is DesiredState.GONE

    @property
    def ledger_id(self) -> str:
        """The id of the run's ledger; "" before a coordinator has sent it."""
        return self.stamp.ledger_id

    @property
    def term(self) -> int:
        """The term of the last coordinator; 0 before the first one."""
        return self.stamp.term

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value without times, for tests."""
        return (
            (self.desired, self.head, self.seat, self.ended, self.closed, self.refused),
            (self.is_attached, self.is_standby, self.stamp, self._floor, self.is_in_memory),
            (self._ended_term, self._ready, self._missed_round, self._failure),
            (self._departing_reason, self._goodbye_reason, self._was_done, self._close_wanted),
            tuple(self.requests.open),
            (self.agrees, self.drain, self.step, self._takes_part, self._promised),
            self._drains and self._drains[0],
        )

    # -- the connection ------------------------------------------------------------------------

    def connected(self, now_s: float, source: Address | None = None) -> list[Action]:
        """A connection to a coordinator is open. `source`: the address of this side's socket."""
        self.heartbeats.connected(now_s)  # R9: silence counts from now, by this node's clock.
        attach = wire.Attach(
            self.stamp,  # R5: the newest stamp that this node has seen.
            wire.VERSION,
            self.run_id,
            self.info,
            self.settings,
            self._software,
            reads_ledger=self._is_elected,
            source=source,
            resume_secret=self._resume_secret,  # R4: only this node resumes as itself.
            ended=self._ended_owner,
            takes_orders=self._takes_orders,
            tells_stacks=self._tells_stacks,
            is_witness=self._is_witness,
            agrees=True,
        )
        return [Send(attach)]

    def found_ended(self, owner: EndedOwner) -> None:
        """The run's owner has ended, as far as this node has seen: tell the next coordinator."""
        self._ended_owner = owner

    def comes_again(self) -> None:
        """Forget a refusal because of another run, which may end soon."""
        self.refused = None

    def disconnected(self, now_s: float | None = None) -> None:
        """The connection is closed. Open requests are sent again on the next one.

        `now_s`: from then on, time does not count against the workers' progress.
        """
        if self.is_attached and now_s is not None:
            self.progress.detached(now_s)
        self.is_attached = False
        self.heartbeats.next_tick_s = None

    def tick(self, now_s: float) -> list[Action]:
        """Send a heartbeat, or drop a coordinator that has been silent for too long."""
        heartbeats = self.heartbeats
        if heartbeats.next_tick_s is None or now_s < heartbeats.next_tick_s:
            return []
        silent_s = heartbeats.tick(now_s)
        if silent_s is not None:
            return [Drop(f"the coordinator has been silent for {silent_s:.1f} s")]
        if not self.is_attached:
            return []
        progress = self.progress.news(now_s) if self.has_workers else None
        return [Send(wire.Heartbeat(self.stamp, progress))]

    # -- messages ------------------------------------------------------------------------------

    def received(self, message: wire.FromCoordinator, now_s: float) -> list[Action]:
        """Handle one message of the coordinator."""
        self.heartbeats.heard_s = now_s
        if self._is_stale(message):
            # R5: late messages of an older term or round change nothing.
            return self._leave_replaced(message)
        if not isinstance(message, wire.Refused):  # R5: the node remembers the newest stamp.
            self.stamp = message.stamp
        match message:
            case wire.Beat():
                # Set here, without a call, as every heartbeat is answered by this message.
                heartbeats = self.heartbeats
                heartbeats.beat_heard_s = now_s
                if message.beat != heartbeats.beat:  # The lease was renewed.
                    # R13: a coordinator renews the lease, so the round may go on.
                    heartbeats.beat, heartbeats.led_s = message.beat, now_s
                return []
            case wire.StoreAnswer():
                return self.requests.answered(message)
            case wire.Welcome():
                return self._on_welcome(message, now_s)
            case wire.Refused():
                return self._on_refused(message.refusal, message.stamp.ledger_id)
            case wire.Formed():
                return self._on_formed(message, now_s)
            case wire.Broken() | wire.CauseFound():
                return self._on_ended(message.change)
            case wire.Closed():
                return self._on_closed(message.close)
            case wire.Probe():
                return [Send(wire.Alive(self.stamp))]
            case wire.WatchHosts():
                return [WatchWanted(message.addresses)]
            case wire.AskWitness():
                return [HostReportWanted(message.question, message.host, message.stamp)]
            case wire.Standby():
                self.is_standby = message.standby
                self.nodes_max = message.nodes_max or self.nodes_max
                self.stays_out = message.reason
                return [PlacedOnStandby()] if message.standby else []
            case wire.AskedToLeave():
                return self._on_asked_to_leave(message)
            case wire.AskStacks():
                # R4: only workers of a round stand anywhere.
                if not (self.has_workers and self._tells_stacks):
                    return [Send(wire.StacksTold(self.stamp, message.request_id))]
                return [StacksWanted(message.request_id, message.bytes_max)]
            case wire.Drains():
                return self._on_drains(message)
            case wire.StopAt():
                return self._on_stop_at(message)
            case wire.Members() | wire.WaitingIs():
                return self.requests.told(message)

    def _is_stale(self, message: wire.FromCoordinator) -> bool:
        """Whether a message is of an older term or round than this node has seen (R5)."""
        seen = self.stamp
        if isinstance(message, wire.Refused):
            # R7: a redirect does no harm, whoever sends it.
            if message.refusal.code in self._redirects or not message.stamp.term:
                # A redirect does no harm. A coordinator without a term of this run refuses only for
                # reasons that need none: a version, a size, another ledger.
                return False
            seen = Stamp(seen.ledger_id, seen.term, 0)  # R7: a refusal is of no round.
        stamp, floor = message.stamp, self._floor  # The floor has a term if a ledger was read.
        # R5: older than a message before, or than the ledger.
        return stamp.is_older_than(seen) or (floor.term > 0 and stamp.is_older_than(floor))

    def _leave_replaced(self, message: wire.FromCoordinator) -> list[Action]:
        """Drop the coordinator if it attaches this node, but was replaced without noticing."""
        # R7: a node attached to a replaced coordinator looks for another.
        if not isinstance(message, wire.Welcome):
            return []
        term, floor = message.stamp.term, max(self.stamp.term, self._floor.term)
        return [
            Drop(f"this coordinator was replaced: its term is {term}, the run's term is {floor}")
        ]

    def _on_welcome(self, message: wire.Welcome, now_s: float) -> list[Action]:
        self.is_attached, self._ended_owner = True, None
        self.progress.attached(now_s)
        self.is_in_memory, self.lease_ttl_s = message.in_memory, message.lease_ttl_s
        self.takes_unfit = message.takes_unfit
        self.heartbeats.attached(message.heartbeat_s, now_s)
        self.is_standby, self.stays_out = message.standing.standby, ""
        self.nodes_max = message.nodes_max or self.nodes_max
        self.agrees = message.agrees
        actions: list[Action] = [Attached(), *self._catch_up(message)]
        # R11: requests without an answer are sent again.
        return actions + [Send(each) for each in self._to_say_again(now_s)]

    def _catch_up(self, message: wire.Welcome) -> list[Action]:
        """Handle what happened to the node's last round while it was not connected."""
        standing, change = message.standing, message.standing.change
        # R4: the end of a round that it never had.
        if change is not None and change.round != self.number:
            self._miss(change.round)
            change = None  # The node never received this later round.
        if self.head is None or standing.round == self.number:  # R13: its round still goes on.
            return []
        if self.ended is None:
            # R13: the run went on without this node while the node could not be reached.
            detail = f"the run continued without it, and is in round {message.stamp.round} now"
            name = (self.info.name,)
            lost = Change(ChangeKind.NODE_LOST, self.number, name, 1, detail)
            return self._on_ended(change or lost)
        if change is not None and change.confirmed and not self.ended.confirmed:
            return self._on_ended(change)
        return []

    def _miss(self, number: int) -> None:
        """Record a round with this node that was formed and has ended while it was not connected.

        The node is ready for the next one (R7). Its `Ready` must name the missed round as the one
        that it leaves, because the coordinator would treat an older number as a repeat (R4).
        """
        # R4: the last round that it could have been in.
        self._missed_round = max(self._missed_round, number)
        # R7: an older number would be ignored as a repeat.
        if self._ready is not None and self._ready.leaving_round < number:
            self._ready = msgspec.structs.replace(self._ready, leaving_round=number)

    def _to_say_again(self, now_s: float) -> list[wire.Message]:
        """All messages that are sent again on a new connection."""
        said: list[wire.Message] = []
        # R7: no coordinator has heard of this failure.
        if self._failure is not None and self.ended is None:
            # first, because the failure must end the round, and not the `Ready`
            said.append(self._failure)
        # R7: the next coordinator must know which nodes are ready.
        if self.desired is DesiredState.READY and self._ready is not None:
            ready = self._ready
            self._ready = self._ready_message(ready.bootstrap, ready.workers, ready.unfit)
            if self._may_ask(self._ready):
                said.append(self._ready)
        if self.has_workers and self.agrees:
            said += self._of_agreement(now_s)
        if self.desired is DesiredState.DONE:  # R7: it must also know which nodes are done.
            said.append(wire.Done(self.stamp, self.number))
        if self.desired is DesiredState.DEPARTING:
            said.append(wire.Departing(self.stamp, self._departing_reason))
        if self.desired is DesiredState.GONE:
            # A coordinator that has not got `Done` would treat the goodbye as a departure.
            goodbye = wire.Goodbye(self.stamp, self._goodbye_reason)
            return [wire.Done(self.stamp, self.number), goodbye] if self._was_done else [goodbye]
        if self._close_wanted is not None:
            said.append(self._close_wanted)
        return said + self.requests.to_send_again(now_s)  # R11: with the same ids.

    def _on_refused(self, refusal: Refusal, ledger_id: str) -> list[Action]:
        if refusal.code in self._redirects:
            return [Redirected(refusal.addresses, refusal.message)]
        # R7: a refusal that may pass does not end the node.
        if self.stamp.ledger_id and not self._is_final(refusal, ledger_id):
            return [Drop(refusal.message)]
        if refusal.code is RefusalCode.CLOSED and refusal.close is not None and self.stamp.term:
            return self._on_closed(refusal.close)
        if refusal.code is RefusalCode.NAME_TAKEN and self._has_been_replaced(ledger_id):
            refusal = reasons.superseded(self.info.name)
        self.refused = refusal
        return [WasRefused(refusal)]

    def _has_been_replaced(self, ledger_id: str) -> bool:
        """Whether another start can have this node's name only because this one was lost."""
        # R13: its round has ended without it, so its workers have to stop.
        return self.head is not None and ledger_id == self.stamp.ledger_id

    def _is_final(self, refusal: Refusal, ledger_id: str) -> bool:
        """Whether this refusal ends a node that was in the run before.

        A refusal because of another ledger is final only at a fixed address, where the run was lost
        with the earlier coordinator. An address from a ledger may now belong to another program's
        coordinator. A refusal because of a limit may end soon.
        """
        if ledger_id != self.stamp.ledger_id:  # R7: another program may have the address by now.
            return bool(ledger_id) and not self._is_elected
        return refusal.code is not RefusalCode.LIMIT

    def _on_formed(self, message: wire.Formed, now_s: float) -> list[Action]:
        # R4: a node accepts no round for which it is not ready, and no round twice.
        if self.desired is not DesiredState.READY or message.head.number <= self.number:
            return []
        self.head, self.seat, self.ended = message.head, message.seat, None
        self.number = message.head.number  # R13: its tokens grow.
        self.progress.begin_round(self.number, now_s)
        self.desired = DesiredState.IN_ROUND
        self.is_standby = False
        self._ready, self._failure = None, None
        # R14: an agreement is about one round.
        self.drain = self.step = self._promised = self._drains = None
        self._takes_part = False
        return [RoundFormed(message.head, message.seat)]

    def _on_ended(self, change: Change) -> list[Action]:
        # R4: the end of another round ends nothing here.
        if change.round != self.number or self.head is None:
            return []
        self.ended = change
        self._ended_term = self.stamp.term
        self._failure = None
        self.requests.drop_calls()  # R4: no call of this round reaches the next.
        return [RoundEnded(change)]

    def _on_asked_to_leave(self, message: wire.AskedToLeave) -> list[Action]:
        # R11: a repeat, or a node that leaves anyway.
        if self.desired in (DesiredState.DEPARTING, DesiredState.GONE, DesiredState.DONE):
            return []
        order = Order(self.info.id, _text(message.by), _text(message.reason))
        return [LeaveWanted(reasons.drained(order))]

    def _on_drains(self, message: wire.Drains) -> list[Action]:
        # R4: another round.
        if message.round != self.number or not self.has_workers:
            return []
        self.drain = message.drain
        return [DrainTold(message.drain)]

    def _on_stop_at(self, message: wire.StopAt) -> list[Action]:
        # R14: a step that was decided is never changed.
        if message.round != self.number or not self.has_workers or self.step is not None:
            return []
        self.step = message.step
        return [StepDecided(message.step)]

    def _of_agreement(self, now_s: float) -> list[wire.Message]:
        """What a coordinator must know for a decision: it may have taken the run over."""
        said: list[wire.Message] = []
        if self._takes_part:
            said.append(wire.TakesPart(self.stamp, self.number))
        # R14: the same promise, so that a successor decides no step that a worker has passed.
        if self._promised is not None:
            said.append(wire.Promise(self.stamp, self.number, self._promised))
        if self._drains is not None:
            reason, ends_s = self._drains
            left_s = max(0.0, ends_s - now_s)
            said.append(wire.Draining(self.stamp, self.number, reason, left_s))
        return said

    def _on_closed(self, close: CloseRecord) -> list[Action]:
        if self.closed is not None:  # R6: the first close counts.
            return []
        self.closed = close  # R6: this node joins no further round.
        self._close_wanted = None
        actions: list[Action] = []
        if self.head is not None and self.ended is None:  # R13: its workers have to stop.
            detail = str(close)
            actions += self._on_ended(Change(ChangeKind.CLOSED, self.number, detail=detail))
        return [*actions, RunEnded(close)]

    # -- news from the ledger and the clock --------------------------------------------------------

    def found_closed(self, close: CloseRecord) -> list[Action]:
        """The run is over, by the ledger (R6)."""
        return self._on_refused(reasons.run_over(self.run_id, close), self.stamp.ledger_id)

    def found_replaced(self) -> list[Action]:
        """The run's ledger was replaced by another one, so the run is lost."""
        lost = reasons.run_lost(self.run_id, "lost: another ledger has replaced its ledger")
        return self._on_refused(lost, self.stamp.ledger_id)

    def found_term(self, floor: Stamp) -> None:
        """By the ledger, the run cannot have an earlier term than this any more (R5)."""
        # R5: the floor only rises.
        if self._floor.ledger_id != floor.ledger_id or self._floor.is_older_than(floor):
            self._floor = floor

    def orphaned(self, alone_s: float) -> list[Action]:
        """End the round: for `alone_s` the node had no coordinator with a valid lease (R13)."""
        # R13: only workers of a round can be orphaned.
        if self.head is None or self.ended is not None:
            return []
        what = "no coordinator that holds its lease" if self.is_attached else "no coordinator"
        detail = f"this node had {what} for {alone_s:.0f} s"
        change = Change(ChangeKind.NODE_LOST, self.number, (self.info.name,), 1, detail)
        actions = self._on_ended(change)  # R13: its workers stop.
        self._ended_term = 0  # No coordinator has been told yet.
        return actions

    # -- requests ----------------------------------------------------------------------------------

    def ready(self, bootstrap: Address, workers: int, unfit: str = "") -> list[Action]:
        """Be ready for the next round, and leave the present one.

        Before the round is formed, a second call with another bootstrap address, number of workers
        or fitness replaces the first. `unfit`: why this node's own check failed.
        """
        # R4: a node that leaves asks for no round.
        if self.desired in (DesiredState.DEPARTING, DesiredState.GONE):
            return []
        said = self._ready if self.desired is DesiredState.READY else None
        asked = (bootstrap, workers, _text(unfit) if unfit else "")
        if said is not None and (said.bootstrap, said.workers, said.unfit) == asked:
            return []
        self.desired = DesiredState.READY
        ready = self._ready = self._ready_message(*asked)
        return self._say(ready) if not ready.unfit or self._may_ask(ready) else []

    def _may_ask(self, ready: wire.Ready) -> bool:
        """Whether this coordinator would not take an unfit node for a fit one."""
        return not ready.unfit or self.takes_unfit

    def fitness(self, unfit: str) -> list[Action]:
        """The node's check was repeated while it waits: why it failed, or "" if it passed."""
        said = self._ready
        if self.desired is not DesiredState.READY or said is None:
            return []
        return self.ready(said.bootstrap, said.workers, unfit)

    def reached_at(self, host: str, before: str) -> list[Action]:
        """Others reach this node at `host`: offer that for rank 0, if it has offered `before`."""
        said = self._ready
        if self.desired is not DesiredState.READY or said is None or said.bootstrap.host != before:
            return []
        return self.ready(Address(host, said.bootstrap.port), said.workers, said.unfit)

    def _ready_message(self, bootstrap: Address, workers: int, unfit: str) -> wire.Ready:
        """It has the reason why the last round ended, for a coordinator that was elected later."""
        # R13: a successor learns that the round has ended.
        is_known = self._ended_term == self.stamp.term
        change = None if is_known else self.ended
        leaving_round = max(self.number, self._missed_round)  # R4: the round that it leaves.
        return wire.Ready(self.stamp, leaving_round, bootstrap, workers, change, unfit)

    def failed(self, failure: Failure) -> list[Action]:
        """A worker of this round failed."""
        if self.desired is not DesiredState.IN_ROUND:  # R4: only a round that it is in can fail.
            return []
        self._failure = wire.Failed(self.stamp, self.number, _bounded(failure))
        return self._say(self._failure)

    def done(self) -> list[Action]:
        """All workers of this round have finished."""
        if self.desired is not DesiredState.IN_ROUND:  # R4: only a round that it is in can be done.
            return []
        self.desired = DesiredState.DONE
        return self._say(wire.Done(self.stamp, self.number))

    def takes_part(self) -> list[Action]:
        """Each worker of this round asks at each step whether it should stop (R14)."""
        if not self.has_workers or self._takes_part:
            return []
        self._takes_part = True
        return self._say_to_agree(wire.TakesPart(self.stamp, self.number))

    def promise(self, step: int) -> list[Action]:
        """No worker passes a later step than this before the decision. The first call counts."""
        # R14: a promise is never taken back.
        if not self.has_workers or self._promised is not None:
            return []
        self._promised = step
        return self._say_to_agree(wire.Promise(self.stamp, self.number, step))

    def drains(self, reason: str, left_s: float, now_s: float) -> list[Action]:
        """The node is going to leave its round, in `left_s` at the latest. The round goes on."""
        if not self.has_workers or self._drains is not None:
            return []
        reason = _text(reason)
        self._drains = (reason, now_s + left_s)
        return self._say_to_agree(wire.Draining(self.stamp, self.number, reason, left_s))

    @property
    def can_agree(self) -> bool:
        """Whether the workers of this round take part, and the coordinator understands that."""
        return self.has_workers and self._takes_part and self.agrees

    def depart(self, reason: str) -> list[Action]:
        """The node is going to leave the run, and begins to stop its workers."""
        if self.desired in (DesiredState.DONE, DesiredState.DEPARTING, DesiredState.GONE):
            return []
        self.desired = DesiredState.DEPARTING
        self._departing_reason = _text(reason)
        return self._say(wire.Departing(self.stamp, self._departing_reason))

    def goodbye(self, reason: str) -> list[Action]:
        """No worker of the node runs any more. Ends its round here, if it is in one."""
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
        """Make a call of the round's store. Returns the request's id and the actions.

        With `now_s`, a call that is sent again has the rest of `timeout_s`.
        """
        # R4: the call is of its own round, whatever it has heard since.
        stamp = Stamp(self.stamp.ledger_id, self.stamp.term, self.number)
        call = self.requests.call(stamp, op, timeout_s, now_s)
        return call.request_id, self._say(call)

    def stacks_told(
        self, request_id: int, stacks: tuple[WorkerStack, ...], now_s: float
    ) -> list[Action]:
        """Where this node's workers stand, as the coordinator has asked."""
        progress = self.progress.known(now_s) if self.has_workers else None
        return self._say(wire.StacksTold(self.stamp, request_id, stacks, progress))

    def cancel(self, request_id: int) -> list[Action]:
        """The caller of this request does not wait any more."""
        was_call = self.requests.drop(request_id)
        return self._say(wire.StoreCancel(self.stamp, request_id)) if was_call else []

    def testify(self, asked: HostReportWanted, report: HostReport) -> list[Action]:
        """Answer the coordinator's question whether a host answers."""
        by, now = asked.asked_by, self.stamp
        # R8: another coordinator counts its own questions, so this number means another host there.
        if (by.ledger_id, by.term) != (now.ledger_id, now.term):
            return []
        return self._say(wire.Witnessed(self.stamp, asked.question, report))

    def ask_members(self) -> tuple[int, list[Action]]:
        """Ask for the member table."""
        question = self.requests.ask(wire.AskMembers, self.stamp)
        return question.request_id, self._say(question)

    def ask_waiting(self) -> tuple[int, list[Action]]:
        """Ask why there is no round yet."""
        question = self.requests.ask(wire.AskWaiting, self.stamp)
        return question.request_id, self._say(question)

    def _say_to_agree(self, message: wire.Message) -> list[Action]:
        # A coordinator of an older release would refuse a message that it does not know.
        return self._say(message) if self.agrees else []

    def _say(self, message: wire.Message) -> list[Action]:
        return [Send(message)] if self.is_attached else []


def _text(text: str) -> str:
    """A text for the wire: cut, and without invalid Unicode (from a file name, for example)."""
    return text[:TEXT_CHARACTERS_MAX].encode("utf-8", "replace").decode()


def _bounded(failure: Failure) -> Failure:
    lines = tuple(map(_text, failure.last_lines[-LINES_MAX:]))
    return msgspec.structs.replace(failure, message=_text(failure.message), last_lines=lines)
