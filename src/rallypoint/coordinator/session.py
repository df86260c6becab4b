"""One connection of a node: from its first bytes to its end. Knows messages, not sockets.

A session outlives nothing: when the connection closes, it is over, and the node resumes on
another one. What must survive a broken connection is in the core and in the round's store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from rallypoint.coordinator.outgoing import Begin, Outgoing, Pins, Whole
from rallypoint.coordinator.turns import Work
from rallypoint.core import endings, naming, reasons
from rallypoint.core import events as on
from rallypoint.core.budget import HOW_TO_RAISE, MemoryShare
from rallypoint.core.quotas import NOBODY, Account
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.sizes import size_text
from rallypoint.core.store import LIMIT, StoreFailure, StoreValue
from rallypoint.core.values import Address, ConnectionEnd, NodeId, secret_hash
from rallypoint.wire import messages as wire
from rallypoint.wire import parts

if TYPE_CHECKING:
    from rallypoint.coordinator.coordinator import Coordinator
    from rallypoint.coordinator.hosted_run import HostedRun

_log = logging.getLogger("rallypoint.coordinator")

CONNECTION_BYTES: Final = 16 * 1024
"""What a connection takes besides what waits for it: its sockets' and tasks' objects, and messages
that are too small to be counted."""
BEFORE_ATTACH_BYTES_MAX: Final = 256 * 1024
"""The largest message of a connection that has not been let into a run."""
UNREAD_S: Final = 60.0
"""How long a peer may read nothing of what waits for it."""
TURN_BYTES: Final = 128 * 1024
"""How much of large messages is sent on one connection before the others have their turn."""
CLOSE_S: Final = 2.0
"""How long a connection that is to be closed waits for its peer to read the rest of a message."""


_SIZED: Final = (bytes, tuple)
"""What an answer's value may be that can be large."""


class Outlet(Protocol):
    """How a session's bytes leave: a WebSocket here, a simulated link elsewhere.

    It may have an `account`: whose the connection is. Else it is nobody's.
    """

    @property
    def peer(self) -> str:
        """Who is at the other end, for people."""

    def send(self, payload: bytes) -> None:
        """Queue one message; never blocks."""

    def begin(self, size: int) -> None:
        """Queue the beginning of a message of so many bytes; `part` brings them."""

    def part(self, piece: bytes | memoryview) -> None:
        """Queue more of the message that was begun."""

    def pong(self, payload: bytes) -> None:
        """Queue the answer to a ping. Not within a message."""

    def backlog_bytes(self) -> int:
        """How much is queued and has not left."""

    def close(self, reason: str) -> None:
        """Close the connection once everything queued has left, within a bounded time."""

    def abort(self) -> None:
        """Close the connection now."""


class Session:
    """One connection. `link` numbers it; `run` and `node` are None until it was welcomed.

    `reads_ledger`: its node finds another coordinator by itself. `good_host`: the last bootstrap
    host that was looked at and is one; a node says the same for each round.

    What the connection takes in memory counts for its run (see core/budget.py). What its peer does
    not read waits in `_outgoing`, which is None as long as the peer reads all.
    """

    __slots__ = (
        "_asked",
        "_buffered",
        "_closing",
        "_coordinator",
        "_has_ended",
        "_has_turn",
        "_is_over",
        "_is_paused",
        "_kept",
        "_outgoing",
        "_owes_beat",
        "_owes_pong",
        "_read_s",
        "_share",
        "_source",
        "_turns",
        "_unread",
        "account",
        "attach_bytes",
        "connection_id",
        "good_host",
        "heard_s",
        "node",
        "outlet",
        "reads_ledger",
        "run",
    )

    def __init__(self, coordinator: Coordinator, connection_id: int, outlet: Outlet) -> None:
        self.connection_id = connection_id
        self.outlet = outlet
        self.run: HostedRun | None = None
        self.node: NodeId | None = None
        self.reads_ledger = False
        self.heard_s = 0.0
        self.good_host: str | None = None
        self.account: Account = getattr(outlet, "account", NOBODY)
        self._coordinator = coordinator
        self._asked: on.NodeAttached | None = None
        self._source: Address | None = None
        self._turns = coordinator.turns
        self._is_over = False
        self._has_ended = False
        self.attach_bytes = 0
        self._share = coordinator.unattached
        self._kept = 0
        self._outgoing: Outgoing | None = None
        self._is_paused = False
        self._closing: str | None = None
        self._owes_beat = False
        self._owes_pong: bytes | None = None
        self._buffered = 0
        self._unread = 0
        self._has_turn = False
        self._read_s = 0.0
        self._keep(CONNECTION_BYTES)

    # -- what the connection brings ------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """One message's bytes."""
        if self._is_over:
            return
        try:
            message = wire.decode_from_node(data)
        except wire.MalformedError as error:
            self.refuse(error.refusal)
            return
        if self._asked is None:
            self.attach_bytes = len(data)
            self._first(message)
            return
        run, node = self.run, self.node
        if run is None or node is None:
            return  # A rival waits for the probe of the older node; nothing it says counts yet.
        run.heard(self, node)
        handler = _HANDLERS.get(type(message))
        if handler is None:
            self.refuse(Refusal(RefusalCode.MALFORMED, "the node is attached already"))
        elif not run.has_failed:
            try:  # as HostedRun.supervised, without its calls: this is done for every message
                handler(run, self, node, message)
            except Exception as error:  # noqa: BLE001 - it ends the run, and nothing else
                run.fail(error)

    def attach_overdue(self) -> None:
        """It has had its time to say who it is."""
        hint = "a connection begins with attach"
        self.refuse(Refusal(RefusalCode.MALFORMED, "the node did not attach in time", hint))

    def connection_lost(
        self, end: ConnectionEnd = ConnectionEnd.UNKNOWN, seen: Address | None = None
    ) -> None:
        """The connection is closed, whoever closed it. Only the first call counts.

        `end`: how, as the transport saw it, after all input was given to `received`. `seen`: the
        peer's address as this side sees it.
        """
        if self._has_ended:
            return
        self._has_ended = True
        how = ConnectionEnd.OURS if self._is_over else self._judge(end, seen)
        self._coordinator.disconnected(self)
        self._is_over = True
        self._let_all_go()
        run, asked = self.run, self._asked
        if run is not None and asked is not None:
            run.connection_lost(self, asked.node.id, how)
        self._coordinator.on_fewer()

    def _judge(self, end: ConnectionEnd, seen: Address | None) -> ConnectionEnd:
        if self.node is None:
            return end  # It was never let in: its end proves nothing of any member.
        has_stalled = self._coordinator.has_stalled_since(self.heard_s)
        return endings.judge(end, told=self._source, seen=seen, has_stalled=has_stalled)

    def _first(self, message: wire.FromNode) -> None:
        if not isinstance(message, wire.Attach):
            hint = "a connection begins with attach"
            self.refuse(Refusal(RefusalCode.MALFORMED, "the node has not attached", hint))
            return
        coordinator = self._coordinator
        refusal = wire.version_refusal(message.version) or coordinator.refusal(
            message, self.account
        )
        if refusal is not None:
            self.refuse(refusal)
            return
        coordinator.begin_anew(message)
        was_in_it = bool(message.stamp.ledger_id)
        wait_s = coordinator.wait_s(message.run_id, self.account, was_in_it=was_in_it)
        if wait_s is None:
            self.refuse(reasons.begins_too_many(coordinator.config.new_runs_per_s))
            return
        coordinator.introduced(self)
        self._source = message.source
        self.reads_ledger = message.reads_ledger
        # The secret itself goes no further than here.
        shown = secret_hash(message.resume_secret)
        asked = on.NodeAttached(message.node, message.settings, self.connection_id, shown)
        self._asked = asked
        if not wait_s:
            self._enter(message.run_id, asked)
        else:
            coordinator.call_at(
                coordinator.now_s() + wait_s, partial(self._enter_in_turn, message, asked)
            )

    def _enter_in_turn(self, message: wire.Attach, asked: on.NodeAttached) -> None:
        if self._is_over:
            return
        refusal = self._coordinator.refusal(message, self.account)  # There may be less room by now.
        if refusal is not None:
            self.refuse(refusal)
        else:
            self._enter(message.run_id, asked)

    def _enter(self, run_id: str, asked: on.NodeAttached) -> None:
        self.run = self._coordinator.open_run(run_id)
        self._coordinator.begun_by(self.run, self.account)
        self._count_for(self.run.share)
        self.run.post(asked)
        self._coordinator.claim(self.run)

    # -- what the run sends --------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        """Queue one message."""
        if self._is_over:
            return
        if self._outgoing is None:
            self.outlet.send(payload)
        else:
            self._wait(payload)

    def answer(self, message: wire.StoreAnswer) -> None:
        """Queue the answer to a call. A large one is made as the peer takes it."""
        if self._is_over:
            return
        result = message.result
        # Most are of a write, and have no value that could be large.
        if type(result) is StoreValue and type(result.value) in _SIZED and parts.is_large(result):
            self.send_parts(parts.answer_parts(message))
        elif self._outgoing is None:
            self.outlet.send(wire.encode(message))
        else:
            self._wait(wire.encode(message))

    def send_parts(self, message: parts.Parts) -> None:
        """Queue a large message."""
        if self._is_over:
            return
        self._begin_to_wait()
        self._wait(message)
        self._go_on()

    def beat(self, run: HostedRun) -> None:
        """Answer a heartbeat. Who does not read needs no more than the last answer."""
        if self._outgoing is None:
            self.send(wire.encode(wire.Beat(run.stamp(), run.beat())))
        else:
            self._owes_beat = True

    def refuse(self, refusal: Refusal) -> None:
        """Say no, and close."""
        if self._is_over:
            return
        stamp = self.run.stamp() if self.run else self._coordinator.stamp()
        payload = wire.encode(wire.Refused(stamp, refusal))
        if self._outgoing is None:
            self.outlet.send(payload)
        else:
            self._outgoing.drop()
            self._outgoing.put(payload)
        self.close(refusal.message)

    def close(self, reason: str) -> None:
        """Close the connection; nothing that still comes in counts."""
        if self._is_over:
            return
        self._is_over = True
        if not self._outgoing:
            self.outlet.close(reason)
            return
        # The end of the message that is under way comes first, or nothing after it can be read.
        self._closing = reason
        self._coordinator.call_at(self._coordinator.now_s() + CLOSE_S, self._close_now)

    def _close_now(self) -> None:
        if not self._has_ended and self._outgoing:
            self.outlet.abort()

    # -- what waits for the peer (frames.Intake) -----------------------------------------------

    def paused(self) -> None:
        """The peer reads more slowly than is written: what follows waits here."""
        if self._has_ended:
            return
        self._is_paused = True
        self._begin_to_wait()
        self._buffered = self._unread = self.outlet.backlog_bytes()
        self._read_s = self._coordinator.now_s()
        self._keep(self._buffered)

    def resumed(self) -> None:
        """It has caught up."""
        if self._has_ended or not self._is_paused:
            return
        self._is_paused = False
        self._keep(-self._buffered)
        self._buffered = 0
        self._go_on()

    def _go_on(self) -> None:
        # Where runs share the turns, those whose peers read at once do not send at once.
        if not self._has_turn and (self._turns.is_shared or self._take_turn()):
            self._has_turn = True
            self._turns.later(self.run, self._take_turn)

    def _take_turn(self) -> bool:
        self._has_turn = self._send_more()
        return self._has_turn

    def later(self, work: Work) -> None:
        """Do this when the others have had their turn."""
        self._coordinator.put_off[self.connection_id] = self
        self._coordinator.turns.later(self.run, work)

    @property
    def is_put_off(self) -> bool:
        """Whether what its peer says waits here for its turn."""
        return self.connection_id in self._coordinator.put_off

    def beat_unasked(self) -> None:
        """What the peer says waits here, its heartbeats too: it must not give this side up."""
        if self.run is not None and self.node is not None:
            self.beat(self.run)

    def had_its_turn(self) -> None:
        """Nothing that came is put off any more."""
        self._coordinator.put_off.pop(self.connection_id, None)

    def slice_s(self) -> float | None:
        """How long this connection may be read now: see Turns."""
        turns, run = self._turns, self.run
        if run is turns.last and not turns.is_shared:
            return None  # as slice_s says, which is asked for every message
        return turns.slice_s(run)

    def clock_s(self) -> float:
        """The clock that slices are measured on."""
        return self._coordinator.turns.used_s()

    def spent(self, took_s: float) -> None:
        """So long was read, at one go."""
        self._coordinator.turns.spent(self.run, took_s)

    def look(self, now_s: float) -> None:
        """Close the connection if its peer has read nothing for too long."""
        if not self._is_paused or self._is_over:
            return
        unread = self.outlet.backlog_bytes()
        if unread < self._unread:
            self._unread, self._read_s = unread, now_s
        elif now_s - self._read_s > UNREAD_S:
            self._end_unread(f"it has read nothing for {UNREAD_S:.0f} s")

    def _begin_to_wait(self) -> None:
        if self._outgoing is None:
            pins = self.run.pins if self.run is not None else Pins(self._keep)
            self._outgoing = Outgoing(self._keep, pins)
            self._coordinator.unread[self.connection_id] = self

    def _wait(self, message: bytes | parts.Parts) -> None:
        """Let a message wait, if there is room for one more."""
        outgoing = self._outgoing
        assert outgoing is not None
        outgoing.put(message)
        bytes_max = self._coordinator.config.backlog_bytes_max
        if outgoing.bytes > bytes_max:
            self._end_unread(f"more than {size_text(bytes_max)} wait for it")
        elif self._is_paused and (excess := self._share.excess(0)) is not None:
            self._end_unread(f"{excess}; {HOW_TO_RAISE}")

    def _end_unread(self, why: str) -> None:
        what = f"this connection does not read what it is sent, and {why}"
        _log.warning("closing the connection of %s: %s", self.outlet.peer, what)
        self.refuse(Refusal(RefusalCode.LIMIT, what))

    def _send_more(self) -> bool:
        """Send of what waits as much as the peer takes, and one turn allows. Whether to go on."""
        outgoing, left = self._outgoing, TURN_BYTES
        if outgoing is None or self._has_ended:
            return False
        while not self._is_paused:
            if left <= 0:
                return True
            match outgoing.next():
                case None:
                    self._has_caught_up()
                    return False
                case Begin(size):
                    self.outlet.begin(size)
                case Whole(payload):
                    left -= len(payload)
                    self.outlet.send(payload)
                case piece:
                    left -= len(piece)
                    self.outlet.part(piece)
        return False

    def _has_caught_up(self) -> None:
        """All that waited has been sent."""
        self._outgoing = None
        self._coordinator.unread.pop(self.connection_id, None)
        if self._closing is not None:
            self.outlet.close(self._closing)
            return
        owes_beat, self._owes_beat = self._owes_beat, False
        pong, self._owes_pong = self._owes_pong, None
        if pong is not None:
            self.outlet.pong(pong)
        if owes_beat and self.run is not None:
            self.beat(self.run)

    # -- what comes, as far as it takes memory (frames.Intake) ---------------------------------

    def announced(self, size: int) -> bool:
        """A message of so many bytes begins to come; whether it may. If not, `skipped` follows."""
        if self._is_over or (self.node is None and size > BEFORE_ATTACH_BYTES_MAX):
            return False
        if self._share.is_near_fair(size) and self._share.excess(size) is not None:
            return False
        self._keep(size)
        return True

    def arrived(self, size: int) -> None:
        """It is not kept any more."""
        if not self._has_ended:
            self._keep(-size)

    def skipped(self, start: bytes, size: int) -> None:
        """There was no room for a message, and it has passed: a call of the store is answered so.

        Only now, as a connection that is closed with unread input is reset, and its peer may never
        read why.
        """
        if self._is_over:
            return
        run, node, request_id = self.run, self.node, parts.request_id_of(start)
        if run is None or node is None or request_id is None:
            self.refuse(Refusal(RefusalCode.LIMIT, self._why_not(size), HOW_TO_RAISE))
            return
        run.heard(self, node)
        full = StoreFailure(LIMIT, f"{self._why_not(size)}; {HOW_TO_RAISE}")
        self.answer(wire.StoreAnswer(run.stamp(), request_id, full))

    def _why_not(self, size: int) -> str:
        if self.node is None and size > BEFORE_ATTACH_BYTES_MAX:
            most = size_text(BEFORE_ATTACH_BYTES_MAX)
            return f"a message of {size_text(size)}, where {most} are allowed before the node is in"
        return str(self._share.excess(size) or "there was no room for this message")

    def pinged(self, payload: bytes) -> None:
        """The peer, or a proxy, wants this back."""
        if self._outgoing is not None:
            self._owes_pong = payload
        elif not self._is_over:
            self.outlet.pong(payload)

    def keeps(self, size: int) -> None:
        """So many bytes more, or fewer, wait until they are looked at."""
        if not self._has_ended:
            self._keep(size)

    # -- what the connection takes -------------------------------------------------------------

    def _keep(self, size: int) -> None:
        self._kept += size
        self._share.add(size)

    def _count_for(self, share: MemoryShare) -> None:
        """The connection has attached: what it takes is its run's."""
        self._share.add(-self._kept)
        self._share = share
        share.add(self._kept)

    def _let_all_go(self) -> None:
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.close()
            self._coordinator.unread.pop(self.connection_id, None)
        self._keep(-self._kept)


def _ready(run: HostedRun, session: Session, node: NodeId, message: wire.Ready) -> None:
    # It becomes MASTER_ADDR of every worker, on all nodes.
    host = message.bootstrap.host
    if host != session.good_host:
        problem = naming.host_problem("bootstrap host", host)
        if problem:
            hint = "look at --local-addr of this node"
            session.refuse(Refusal(RefusalCode.MALFORMED, problem, hint))
            return
        session.good_host = host
    change = None if message.change is None else reasons.tidy_change(message.change)
    run.post(on.NodeReady(node, message.leaving_round, message.bootstrap, message.workers, change))


def _failed(run: HostedRun, session: Session, node: NodeId, message: wire.Failed) -> None:
    run.post(on.WorkerFailed(node, message.round, reasons.tidy_failure(message.failure)))


def _done(run: HostedRun, session: Session, node: NodeId, message: wire.Done) -> None:
    run.post(on.NodeDone(node, message.round))


def _departing(run: HostedRun, session: Session, node: NodeId, message: wire.Departing) -> None:
    run.post(on.NodeDeparting(node, reasons.tidy(message.reason)))


def _goodbye(run: HostedRun, session: Session, node: NodeId, message: wire.Goodbye) -> None:
    run.post(on.NodeLeft(node, reasons.tidy(message.reason)))


def _close_run(run: HostedRun, session: Session, node: NodeId, message: wire.CloseRun) -> None:
    run.post(on.CloseRequested(node.name, message.outcome, reasons.tidy(message.reason)))


def _heartbeat(run: HostedRun, session: Session, node: NodeId, message: wire.Heartbeat) -> None:
    session.beat(run)


def _alive(run: HostedRun, session: Session, node: NodeId, message: wire.Alive) -> None:
    run.post(on.ProbeAnswered(node))


def _store_call(run: HostedRun, session: Session, node: NodeId, message: wire.StoreCall) -> None:
    run.store_call(session, node, message)


def _store_cancel(
    run: HostedRun, session: Session, node: NodeId, message: wire.StoreCancel
) -> None:
    run.store_cancel(node, message.request_id)


def _ask_members(run: HostedRun, session: Session, node: NodeId, message: wire.AskMembers) -> None:
    run.send_members(session, node, message.request_id)


def _ask_waiting(run: HostedRun, session: Session, node: NodeId, message: wire.AskWaiting) -> None:
    answer = wire.WaitingIs(run.stamp(), message.request_id, run.waiting())
    session.send(wire.encode(answer))


_Handler = Callable[[Any, Session, NodeId, Any], None]

_HANDLERS: dict[type[wire.Message], _Handler] = {
    wire.Ready: _ready,
    wire.Failed: _failed,
    wire.Done: _done,
    wire.Departing: _departing,
    wire.Goodbye: _goodbye,
    wire.CloseRun: _close_run,
    wire.Heartbeat: _heartbeat,
    wire.Alive: _alive,
    wire.StoreCall: _store_call,
    wire.StoreCancel: _store_cancel,
    wire.AskMembers: _ask_members,
    wire.AskWaiting: _ask_waiting,
}
