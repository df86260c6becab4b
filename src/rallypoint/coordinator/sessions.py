"""One connection of a node: from its first bytes to its end. Knows messages, not sockets.

A session outlives nothing: when the connection closes, it is over, and the node resumes on
another one. What must survive a broken connection is in the core and in the round's store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from rallypoint.core import endings, naming, reasons
from rallypoint.core import events as on
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.values import Address, ConnectionEnd, NodeId, secret_hash
from rallypoint.wire import messages as wire

if TYPE_CHECKING:
    from rallypoint.coordinator.hub import Hub
    from rallypoint.coordinator.runs import RunHost

_log = logging.getLogger("rallypoint.coordinator")


class Outlet(Protocol):
    """How a session's bytes leave: a WebSocket here, a simulated link elsewhere."""

    peer: str

    def send(self, payload: bytes) -> None:
        """Queue one message; never blocks."""

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
    """

    __slots__ = (
        "_asked",
        "_has_ended",
        "_hub",
        "_is_over",
        "_source",
        "good_host",
        "heard_s",
        "link",
        "node",
        "outlet",
        "reads_ledger",
        "run",
    )

    def __init__(self, hub: Hub, link: int, outlet: Outlet) -> None:
        self.link = link
        self.outlet = outlet
        self.run: RunHost | None = None
        self.node: NodeId | None = None
        self.reads_ledger = False
        self.heard_s = 0.0
        self.good_host: str | None = None
        self._hub = hub
        self._asked: on.NodeAttached | None = None
        self._source: Address | None = None
        self._is_over = False
        self._has_ended = False

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
            self._first(message)
        else:
            self._next(message)

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
        self._hub.disconnected(self)
        self._is_over = True
        run, asked = self.run, self._asked
        if run is not None and asked is not None:
            run.connection_lost(self, asked.node.id, how)
        self._hub.on_fewer()

    def _judge(self, end: ConnectionEnd, seen: Address | None) -> ConnectionEnd:
        if self.node is None:
            return end  # It was never let in: its end proves nothing of any member.
        has_stalled = self._hub.has_stalled_since(self.heard_s)
        return endings.judge(end, told=self._source, seen=seen, has_stalled=has_stalled)

    def _first(self, message: wire.FromNode) -> None:
        if not isinstance(message, wire.Attach):
            hint = "a connection begins with attach"
            self.refuse(Refusal(RefusalCode.MALFORMED, "the node has not attached", hint))
            return
        refusal = wire.version_refusal(message.version) or self._hub.refusal(message)
        if refusal is not None:
            self.refuse(refusal)
            return
        self._hub.introduced(self)
        self._source = message.source
        self.reads_ledger = message.reads_ledger
        # The secret itself goes no further than here.
        shown = secret_hash(message.resume_secret)
        self._asked = on.NodeAttached(message.node, message.settings, self.link, shown)
        self.run = self._hub.open_run(message.run_id)
        self.run.post(self._asked)
        self._hub.claim(self.run)

    def _next(self, message: wire.FromNode) -> None:
        run, node = self.run, self.node
        if run is None or node is None:
            return  # A rival waits for the probe of the older node; nothing it says counts yet.
        run.heard(self, node)
        handler = _HANDLERS.get(type(message))
        if handler is None:
            self.refuse(Refusal(RefusalCode.MALFORMED, "the node is attached already"))
        elif not run.has_failed:
            try:  # as RunHost.supervised, without its calls: this is done for every message
                handler(run, self, node, message)
            except Exception as error:  # noqa: BLE001 - it ends the run, and nothing else
                run.fail(error)

    # -- what the run sends --------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        """Queue one message. A consumer that is too slow is dropped; it resumes."""
        if self._is_over:
            return
        self.outlet.send(payload)
        if self.outlet.backlog_bytes() > self._hub.config.backlog_bytes_max:
            _log.warning("dropping the connection of %s: it does not read", self.outlet.peer)
            self.outlet.abort()

    def refuse(self, refusal: Refusal) -> None:
        """Say no, and close."""
        if self._is_over:
            return
        stamp = self.run.stamp() if self.run else self._hub.stamp()
        self.outlet.send(wire.encode(wire.Refused(stamp, refusal)))
        self.close(refusal.message)

    def close(self, reason: str) -> None:
        """Close the connection; nothing that still comes in counts."""
        if not self._is_over:
            self._is_over = True
            self.outlet.close(reason)


def _ready(run: RunHost, session: Session, node: NodeId, message: wire.Ready) -> None:
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


def _failed(run: RunHost, session: Session, node: NodeId, message: wire.Failed) -> None:
    run.post(on.WorkerFailed(node, message.round, reasons.tidy_failure(message.failure)))


def _done(run: RunHost, session: Session, node: NodeId, message: wire.Done) -> None:
    run.post(on.NodeDone(node, message.round))


def _departing(run: RunHost, session: Session, node: NodeId, message: wire.Departing) -> None:
    run.post(on.NodeDeparting(node, reasons.tidy(message.reason)))


def _goodbye(run: RunHost, session: Session, node: NodeId, message: wire.Goodbye) -> None:
    run.post(on.NodeLeft(node, reasons.tidy(message.reason)))


def _close_run(run: RunHost, session: Session, node: NodeId, message: wire.CloseRun) -> None:
    run.post(on.CloseRequested(node.name, message.outcome, reasons.tidy(message.reason)))


def _heartbeat(run: RunHost, session: Session, node: NodeId, message: wire.Heartbeat) -> None:
    session.send(wire.encode(wire.Beat(run.stamp(), run.beat())))


def _alive(run: RunHost, session: Session, node: NodeId, message: wire.Alive) -> None:
    run.post(on.ProbeAnswered(node))


def _store_call(run: RunHost, session: Session, node: NodeId, message: wire.StoreCall) -> None:
    run.store_call(session, node, message)


def _store_cancel(run: RunHost, session: Session, node: NodeId, message: wire.StoreCancel) -> None:
    run.store_cancel(node, message.request_id)


def _ask_members(run: RunHost, session: Session, node: NodeId, message: wire.AskMembers) -> None:
    session.send(run.members_message(node, message.request_id))


def _ask_waiting(run: RunHost, session: Session, node: NodeId, message: wire.AskWaiting) -> None:
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
