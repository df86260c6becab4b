"""One connection of a node, from its first message to its end.

A session decodes messages, turns them into events of its run, and sends the run's messages. It must
not use sockets (`Outlet` has them) or decide about members or rounds. It ends with its connection;
the node resumes on another one. State that must survive that is in the core and in the round's
store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Final, Protocol

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.outgoing import UNREAD_S, Backlog, Outlet, Pins
from rallypoint.coordinator.turns import InputTurns, Turns
from rallypoint.core import endings, naming, reasons
from rallypoint.core import events as on
from rallypoint.core.addresses import plain
from rallypoint.core.budget import HOW_TO_RAISE, MemoryShare
from rallypoint.core.progress import Progress
from rallypoint.core.quotas import Account
from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.sizes import size_text
from rallypoint.core.store import LIMIT, StoreFailure, StoreValue
from rallypoint.core.values import Address, ConnectionEnd, EndedOwner, NodeId, Stamp, secret_hash
from rallypoint.security.roles import EVERYBODY, Denial, Principal, Right
from rallypoint.wire import messages as wire
from rallypoint.wire import parts

_log = logging.getLogger("rallypoint.coordinator")

CONNECTION_BYTES: Final = 16 * 1024
"""The memory of a connection besides its waiting messages, in bytes: the objects of its socket and
its tasks, and messages too small to be counted.
"""
BEFORE_ATTACH_BYTES_MAX: Final = 256 * 1024
"""The largest message of a connection that is not in a run yet."""
CLOSE_S: Final = 2.0
"""How long a closing connection waits for its peer to read the rest of a message, in seconds."""

_ATTACHED_TWICE: Final = Refusal(
    RefusalCode.MALFORMED,
    "the node is attached already",
    "a connection is for one node: open another one for another node",
)
_SIZED: Final = (bytes, tuple)
"""The types of a value that can make an answer large."""


class Store(Protocol):
    """What a session needs of its run's store."""

    def call(self, session: Session, node: NodeId, call: wire.StoreCall) -> None:
        """Apply one call, and answer it now or later."""

    def cancel(self, node: NodeId, request_id: int) -> None:
        """Drop a call for which the caller does not wait any more."""


class Connections(Protocol):
    """What a session needs of its run's connections."""

    def heard(self, session: Session, node: NodeId) -> None:
        """A message of the node has arrived."""

    def check_silence(self, session: Session, now_s: float) -> None:
        """Check whether the node has been silent for too long."""


class Run(Hashable, Protocol):
    """What a session needs of its run."""

    share: MemoryShare
    pins: Pins
    has_failed: bool
    stamp: Stamp

    @property
    def connections(self) -> Connections:
        """The connections of the run."""

    @property
    def store(self) -> Store:
        """The store of the run's present round."""

    def post(self, event: on.Event) -> None:
        """Give the core an event."""

    def fail(self, error: Exception) -> None:
        """End the run on this coordinator."""

    def supervised(self, work: Callable[..., None], *args: Any) -> None:
        """Do some work. An unexpected error in it ends only this run."""

    def connection_lost(
        self, session: Session, node: NodeId, how: ConnectionEnd, why: str = ""
    ) -> None:
        """The connection has ended."""

    def beat(self) -> int:
        """A counter that advances while this coordinator may decide for the run."""

    def waiting(self, sees: Callable[[str], bool]) -> Waiting | None:
        """Why there is no round yet. It names other runs only if `sees` says so."""

    def send_members(self, session: Session, node: NodeId, request_id: int) -> None:
        """Send the member table of the last round."""

    def progressed(self, node: NodeId, progress: Progress) -> None:
        """The node has said how far its workers are."""

    def stacks_told(self, node: NodeId, told: wire.StacksTold) -> None:
        """The node has told where its workers stand."""


class Admission(Protocol):
    """What a session needs of its coordinator's admission."""

    def refusal(self, attach: wire.Attach, account: Account) -> Refusal | None:
        """Why the node cannot attach; None if it can."""

    def admit(self, connection_id: int, attach: wire.Attach, account: Account) -> float | None:
        """In how many seconds the node may enter its run; None: the wait would be too long."""


class Host(Protocol):
    """What a session needs of its coordinator."""

    config: CoordinatorConfig
    turns: Turns
    unattached: MemoryShare
    unread: dict[int, Session]
    """Connections with a backlog, by their ids. Sessions add and remove themselves."""
    put_off: dict[int, None]
    """Connections whose input waits for its turn. Sessions add and remove themselves."""
    on_denied: Callable[[Session, str, Denial], None]
    """A node was refused because its token is not for the run of this id."""

    @property
    def admission(self) -> Admission:
        """Which connections and runs the coordinator accepts."""

    def now_s(self) -> float:
        """The coordinator's time."""

    def has_stalled_since(self, since_s: float) -> bool:
        """Whether this process stood still after `since_s`, or until a moment ago."""

    def call_at(self, due_s: float, callback: Callable[[], None]) -> object:
        """Call back at that time."""

    def stamp(self) -> Stamp:
        """The stamp for messages to a node that is in no run."""

    def begin_again(self, attach: wire.Attach) -> None:
        """Forget a closed run that never had a round, if this node may begin it again."""

    def run_for(self, session: Session, run_id: str) -> Run:
        """The run. If it does not exist, it is begun for the account of this session."""

    def claim(self, run_id: str, ended: EndedOwner | None = None) -> None:
        """A node has asked for the run: own it, or find its owner.

        `ended`: the owner, if it has ended as far as the node has seen.
        """

    def disconnected(self, session: Session) -> None:
        """The connection has ended."""


class Session:
    """One connection. `run` and `node` are None until the node was welcomed.

    `connection_id` numbers the connections of a coordinator. `reads_ledger`: the node reads the
    ledger to find another coordinator. `tells_stacks`: it understands `AskStacks`.
    `agrees`: it understands drains. `good_host`: the
    last valid bootstrap host, which is not checked again, as a node repeats it in each round.
    `attach_bytes`: the size of the first message. `principal`: what its token allows.

    The memory of a connection counts for its run (core/budget.py). `_backlog` has the messages that
    the peer has not read. It is None while the peer reads everything at once.
    """

    __slots__ = (
        "_asked",
        "_backlog",
        "_has_ended",
        "_host",
        "_is_over",
        "_kept",
        "_share",
        "_source",
        "_turns",
        "_why",
        "account",
        "agrees",
        "attach_bytes",
        "connection_id",
        "good_host",
        "heard_s",
        "input_turns",
        "node",
        "outlet",
        "principal",
        "reads_ledger",
        "run",
        "tells_stacks",
    )

    def __init__(
        self, host: Host, connection_id: int, outlet: Outlet, principal: Principal = EVERYBODY
    ) -> None:
        self.connection_id = connection_id
        self.outlet = outlet
        self.run: Run | None = None
        self.node: NodeId | None = None
        self.reads_ledger = False
        self.tells_stacks = False
        self.agrees = False
        self.heard_s = 0.0
        self.good_host: str | None = None
        self.account = outlet.account
        self.principal = principal
        self.attach_bytes = 0
        self._host = host
        self._asked: on.NodeAttached | None = None
        self._source: Address | None = None
        self._turns = host.turns
        self.input_turns = InputTurns(host.turns, host.put_off, connection_id)
        self._is_over = False
        self._has_ended = False
        self._why = ""
        self._share = host.unattached
        self._kept = 0
        self._backlog: Backlog | None = None
        self._keep(CONNECTION_BYTES)

    # -- input of the connection ---------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Handle one message, given its bytes."""
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
            # Another node of its name is probed first. Until it is decided, this one is ignored.
            return
        run.connections.heard(self, node)
        handler = _HANDLERS.get(type(message))
        if handler is None:
            self.refuse(_ATTACHED_TWICE)
        elif not run.has_failed:
            try:  # Like Run.supervised, but without its calls, because this runs for every message.
                handler(run, self, node, message)
            except Exception as error:  # noqa: BLE001 - it ends the run, and nothing else
                run.fail(error)

    def attach_overdue(self) -> None:
        """The node has not attached in time."""
        self._refuse_first("the node did not attach in time")

    def connection_lost(
        self, end: ConnectionEnd = ConnectionEnd.UNKNOWN, seen: Address | None = None
    ) -> None:
        """The connection is closed, by either side. Only the first call counts.

        `end`: how it ended, as the transport saw it, after all input was given to `received`.
        `seen`: the peer's address as this side sees it.
        """
        if self._has_ended:
            return
        self._has_ended = True
        how = end
        if self._is_over:
            how = ConnectionEnd.OURS
        # The end of a connection that has not attached proves nothing about a member.
        elif self.node is not None:
            has_stalled = self._host.has_stalled_since(self.heard_s)
            how = endings.judge(end, told=self._source, seen=seen, has_stalled=has_stalled)
        self._host.disconnected(self)
        self._is_over = True
        self._let_all_go()
        run, asked = self.run, self._asked
        if run is not None and asked is not None:
            run.connection_lost(self, asked.node.id, how, self._why)

    def _refuse_first(self, problem: str) -> None:
        hint = "the first message of a connection must be Attach"
        self.refuse(Refusal(RefusalCode.MALFORMED, problem, hint))

    def _first(self, message: wire.FromNode) -> None:
        if not isinstance(message, wire.Attach):
            self._refuse_first("the node has not attached")
            return
        host = self._host
        refusal = wire.version_refusal(message.version) or self._not_allowed(message)
        refusal = refusal or host.admission.refusal(message, self.account)
        if refusal is not None:
            self.refuse(refusal)
            return
        host.begin_again(message)
        wait_s = host.admission.admit(self.connection_id, message, self.account)
        if wait_s is None:
            self.refuse(reasons.begins_too_many(host.config.new_runs_per_s))
            return
        self._source = message.source
        self.reads_ledger = message.reads_ledger
        self.tells_stacks = message.tells_stacks
        self.agrees = message.agrees
        # Only the hash is passed on, and not the secret itself.
        shown = secret_hash(message.resume_secret)
        asked = on.NodeAttached(
            message.node,
            message.settings,
            self.connection_id,
            shown,
            message.takes_orders,
            # R8: an address that both sides see is that of the node's host, and of no proxy.
            address=self._direct_address(),
            is_beside=self.outlet.is_beside,
            is_witness=message.is_witness,
            agrees=message.agrees,
        )
        self._asked = asked
        if not wait_s:
            self._enter(message, asked)
        else:
            host.call_at(host.now_s() + wait_s, partial(self._enter_in_turn, message, asked))

    def _direct_address(self) -> Address | None:
        """The address of the node's side, if both sides see the same."""
        seen = self.outlet.seen
        if seen is None or not endings.is_direct(self._source, seen):
            return None
        return Address(plain(seen.host), seen.port)

    def _not_allowed(self, message: wire.Attach) -> Refusal | None:
        """Why the node's token is not for this run; None if it is."""
        denied = self.principal.denial(Right.ATTACH, message.run_id)
        denied = denied or self.principal.node_denial(message.node.id.name)
        if denied is None:
            return None
        self._host.on_denied(self, message.run_id, denied)
        return Refusal(RefusalCode.TOKEN, denied.message, denied.hint)

    @property
    def source(self) -> Address | None:
        """The address of the node's side, as the node sees it; None before it has told one."""
        return self._source

    def _enter_in_turn(self, message: wire.Attach, asked: on.NodeAttached) -> None:
        if self._is_over:
            return
        refusal = self._host.admission.refusal(
            message, self.account
        )  # Checked again, because there may be less room by now.
        if refusal is not None:
            self.refuse(refusal)
        else:
            self._enter(message, asked)

    def _enter(self, message: wire.Attach, asked: on.NodeAttached) -> None:
        run_id = message.run_id
        self.run = self.input_turns.run = run = self._host.run_for(self, run_id)
        self._count_for(run)
        run.post(asked)
        self._host.claim(run_id, message.ended)

    # -- messages of the run -------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        """Queue one message."""
        if self._is_over:
            return
        if self._backlog is None:
            self.outlet.send(payload)
        else:
            self._wait(self._backlog, payload)

    def answer(self, message: wire.StoreAnswer) -> None:
        """Queue the answer to a call. A large answer is encoded as the peer reads it."""
        if self._is_over:
            return
        result = message.result
        # Most answers are to a write, and have no value that could be large.
        if type(result) is StoreValue and type(result.value) in _SIZED and parts.is_large(result):
            self.send_parts(parts.answer_parts(message))
        elif self._backlog is None:
            self.outlet.send(wire.encode(message))
        else:
            self._wait(self._backlog, wire.encode(message))

    def send_parts(self, message: parts.Parts) -> None:
        """Queue a large message."""
        if self._is_over:
            return
        backlog = self._begin_backlog()
        self._wait(backlog, message)
        backlog.go_on()

    def beat(self, run: Run) -> None:
        """Answer a heartbeat. A peer that does not read gets only the last answer."""
        if self._backlog is None:
            self.send(wire.encode(wire.Beat(run.stamp, run.beat())))
        else:
            self._backlog.owes_beat = True

    def refuse(self, refusal: Refusal, why: str = "") -> None:
        """Send the refusal, and close. `why`: see ConnectionLost."""
        if self._is_over:
            return
        self._why = why
        stamp = self.run.stamp if self.run else self._host.stamp()
        payload = wire.encode(wire.Refused(stamp, refusal))
        if self._backlog is None:
            self.outlet.send(payload)
        else:
            self._backlog.drop()
            self._backlog.put(payload)
        self.close(refusal.message)

    def close(self, reason: str) -> None:
        """Close the connection. Later input is ignored."""
        if self._is_over:
            return
        self._is_over = True
        if not self._backlog:
            self.outlet.close(reason)
            return
        # First send the rest of the present message. Without it, the peer could not read what
        # follows.
        self._backlog.closing = reason
        self._host.call_at(self._host.now_s() + CLOSE_S, self._close_now)

    def _close_now(self) -> None:
        if not self._has_ended and self._backlog:
            self.outlet.abort()

    # -- backlog and turns (websocket.Intake) --------------------------------------------------

    def paused(self) -> None:
        """The transport's buffer is full: further messages wait here."""
        if not self._has_ended:
            self._begin_backlog().paused(self._host.now_s())

    def resumed(self) -> None:
        """The transport's buffer has room again."""
        backlog = self._backlog
        if not self._has_ended and backlog is not None and backlog.is_paused:
            backlog.resumed()

    def beat_unasked(self) -> None:
        """Send an answer without a heartbeat, as the node's heartbeats wait with its input."""
        if self.run is not None and self.node is not None:
            self.beat(self.run)

    def look(self, now_s: float) -> None:
        """Close the connection if its peer has read nothing for too long."""
        backlog = self._backlog
        if backlog is not None and not self._is_over and backlog.is_stuck(now_s):
            self._end_unread(f"it has read nothing for {UNREAD_S:.0f} s")

    def _begin_backlog(self) -> Backlog:
        backlog = self._backlog
        if backlog is None:
            pins = self.run.pins if self.run is not None else Pins(self._keep)
            caught_up = self._has_caught_up
            backlog = Backlog(self.outlet, self._turns, self.run, self._keep, pins, caught_up)
            self._backlog = backlog
            self._host.unread[self.connection_id] = self
        return backlog

    def _wait(self, backlog: Backlog, message: bytes | parts.Parts) -> None:
        """Add a message to the backlog, if there is room."""
        backlog.put(message)
        bytes_max = self._host.config.backlog_bytes_max
        if backlog.waiting_bytes > bytes_max:
            self._end_unread(f"more than {size_text(bytes_max)} are waiting for it")
        elif backlog.is_paused and (excess := self._share.excess(0)) is not None:
            self._end_unread(f"{excess}; {HOW_TO_RAISE}")

    def _end_unread(self, why: str) -> None:
        what = f"this node does not read its messages: {why}"
        _log.warning("closing the connection of %s: %s", self.outlet.peer, what)
        hint = "check why this node does not read: it may be stopped, or its network too slow"
        self.refuse(Refusal(RefusalCode.LIMIT, what, hint))

    def _has_caught_up(self) -> None:
        """The whole backlog has been sent."""
        backlog, self._backlog = self._backlog, None
        self._host.unread.pop(self.connection_id, None)
        assert backlog is not None
        if backlog.closing is not None:
            self.outlet.close(backlog.closing)
            return
        if backlog.owes_pong is not None:
            self.outlet.pong(backlog.owes_pong)
        if backlog.owes_beat and self.run is not None:
            self.beat(self.run)

    # -- memory of input (websocket.Intake) ----------------------------------------------------

    def announced(self, size: int) -> bool:
        """A message of `size` bytes begins. True if it is accepted; otherwise `skipped` follows."""
        if self._is_over or (self.node is None and size > BEFORE_ATTACH_BYTES_MAX):
            return False
        if self._share.is_near_fair(size) and self._share.excess(size) is not None:
            return False
        self._keep(size)
        return True

    def arrived(self, size: int) -> None:
        """A message that was announced does not need its memory any more."""
        if not self._has_ended:
            self._keep(-size)

    def skipped(self, start: bytes, size: int) -> None:
        """A message without room has passed. If it was a call of the store, answer it.

        The answer follows the whole message, because a connection that is closed with unread input
        is reset, and the peer might never read the reason.
        """
        if self._is_over:
            return
        run, node, request_id = self.run, self.node, parts.request_id_of(start)
        if run is None or node is None or request_id is None:
            self.refuse(Refusal(RefusalCode.LIMIT, self._why_not(size), HOW_TO_RAISE))
            return
        run.connections.heard(self, node)
        full = StoreFailure(LIMIT, f"{self._why_not(size)}; {HOW_TO_RAISE}")
        self.answer(wire.StoreAnswer(run.stamp, request_id, full))

    def _why_not(self, size: int) -> str:
        if self.node is None and size > BEFORE_ATTACH_BYTES_MAX:
            most = size_text(BEFORE_ATTACH_BYTES_MAX)
            return f"a message of {size_text(size)}; at most {most} are allowed before Attach"
        return str(self._share.excess(size) or "there was no memory for this message")

    def pinged(self, payload: bytes) -> None:
        """The peer, or a proxy, sent a ping with this payload."""
        if self._backlog is not None:
            self._backlog.owes_pong = payload
        elif not self._is_over:
            self.outlet.pong(payload)

    def keeps(self, size: int) -> None:
        """`size` more bytes of input wait to be read, or fewer if negative."""
        if not self._has_ended:
            self._keep(size)

    # -- the memory of the connection ----------------------------------------------------------

    def _keep(self, size: int) -> None:
        self._kept += size
        self._share.add(size)

    def _count_for(self, run: Run) -> None:
        """The connection has attached: count its memory for its run."""
        self._share.add(-self._kept)
        self._share = run.share
        run.share.add(self._kept)
        if self._backlog is not None:
            self._backlog.run = run

    def _let_all_go(self) -> None:
        backlog, self._backlog = self._backlog, None
        if backlog is not None:
            backlog.close()
            self._host.unread.pop(self.connection_id, None)
        self._keep(-self._kept)


def _ready(run: Run, session: Session, node: NodeId, message: wire.Ready) -> None:
    # Checked because it becomes MASTER_ADDR of every worker on all nodes.
    host = message.bootstrap.host
    if host != session.good_host:
        problem = naming.host_problem("bootstrap host", host)
        if problem:
            hint = "check --interface and --local-addr of this node"
            session.refuse(Refusal(RefusalCode.MALFORMED, problem, hint))
            return
        session.good_host = host
    change = None if message.change is None else reasons.tidy_change(message.change)
    unfit = reasons.tidy(message.unfit, UNFIT_MAX) if message.unfit else ""
    leaving, workers = message.leaving_round, message.workers
    run.post(on.NodeReady(node, leaving, message.bootstrap, workers, change, unfit))


UNFIT_MAX: Final = 200
"""The most characters of why a node's check failed."""


def _failed(run: Run, session: Session, node: NodeId, message: wire.Failed) -> None:
    run.post(on.WorkerFailed(node, message.round, reasons.tidy_failure(message.failure)))


def _done(run: Run, session: Session, node: NodeId, message: wire.Done) -> None:
    run.post(on.NodeDone(node, message.round))


def _departing(run: Run, session: Session, node: NodeId, message: wire.Departing) -> None:
    run.post(on.NodeDeparting(node, reasons.tidy(message.reason)))


def _takes_part(run: Run, session: Session, node: NodeId, message: wire.TakesPart) -> None:
    run.post(on.NodeTakesPart(node, message.round))


def _draining(run: Run, session: Session, node: NodeId, message: wire.Draining) -> None:
    reason = reasons.tidy(message.reason)
    run.post(on.NodeDraining(node, message.round, reason, message.left_s))


def _promise(run: Run, session: Session, node: NodeId, message: wire.Promise) -> None:
    run.post(on.StepPromised(node, message.round, message.step))


def _goodbye(run: Run, session: Session, node: NodeId, message: wire.Goodbye) -> None:
    run.post(on.NodeLeft(node, reasons.tidy(message.reason)))


def _close_run(run: Run, session: Session, node: NodeId, message: wire.CloseRun) -> None:
    run.post(on.CloseRequested(node.name, message.outcome, reasons.tidy(message.reason)))


def _heartbeat(run: Run, session: Session, node: NodeId, message: wire.Heartbeat) -> None:
    session.beat(run)
    if message.progress is not None:
        run.progressed(node, message.progress)


def _stacks_told(run: Run, session: Session, node: NodeId, message: wire.StacksTold) -> None:
    run.stacks_told(node, message)


def _alive(run: Run, session: Session, node: NodeId, message: wire.Alive) -> None:
    run.post(on.ProbeAnswered(node))


def _witnessed(run: Run, session: Session, node: NodeId, message: wire.Witnessed) -> None:
    run.post(on.HostReported(node, message.question, message.report))


def _store_call(run: Run, session: Session, node: NodeId, message: wire.StoreCall) -> None:
    run.store.call(session, node, message)


def _store_cancel(run: Run, session: Session, node: NodeId, message: wire.StoreCancel) -> None:
    run.store.cancel(node, message.request_id)


def _ask_members(run: Run, session: Session, node: NodeId, message: wire.AskMembers) -> None:
    run.send_members(session, node, message.request_id)


def _ask_waiting(run: Run, session: Session, node: NodeId, message: wire.AskWaiting) -> None:
    answer = wire.WaitingIs(run.stamp, message.request_id, run.waiting(session.principal.sees))
    session.send(wire.encode(answer))


_Handler = Callable[[Run, Session, NodeId, Any], None]

_HANDLERS: dict[type[wire.Message], _Handler] = {
    wire.Ready: _ready,
    wire.Failed: _failed,
    wire.Done: _done,
    wire.Departing: _departing,
    wire.TakesPart: _takes_part,
    wire.Draining: _draining,
    wire.Promise: _promise,
    wire.Goodbye: _goodbye,
    wire.CloseRun: _close_run,
    wire.Heartbeat: _heartbeat,
    wire.Alive: _alive,
    wire.Witnessed: _witnessed,
    wire.StoreCall: _store_call,
    wire.StoreCancel: _store_cancel,
    wire.AskMembers: _ask_members,
    wire.AskWaiting: _ask_waiting,
    wire.StacksTold: _stacks_told,
}
