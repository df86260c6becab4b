"""One coordinator of the fleet: the shipped `Membership`, with the work of its shell as time.

What the shell does with an effect is written here once more, in a line or two each, because the
shell has sockets. A message takes time to be read and time to be sent (`costs`), and a coordinator
does one thing at a time. It must not decide anything about ranks or rounds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.blame import NO_BLAME, Blame
from rallypoint.core.election import RunState, Timing
from rallypoint.core.membership import Membership
from rallypoint.core.ranks import seats_of
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import (
    Change,
    CloseRecord,
    Marks,
    NodeId,
    RoundRecord,
    RunSettings,
    Seat,
    Stamp,
)
from rallypoint.simulation.fleet.costs import ATTACH, NETWORK, READ, TELL
from rallypoint.simulation.fleet.nodes import RUN, FleetNode
from rallypoint.simulation.fleet.schedule import Schedule
from rallypoint.wire import messages as wire

LEDGER_ID: Final = "ledger"
AT_ONCE: Final = 128
"""How many messages are read, or sent, in one step of the calendar."""
CONFIG: Final = CoordinatorConfig()

Parcel: TypeAlias = tuple[FleetNode, int, "wire.FromCoordinator | None"]
"""A node, its connection, and a message to it; None: the connection closes."""
Arrival: TypeAlias = tuple[FleetNode, int, "wire.Message | on.Event"]
NO_MARKS: Final = Marks()


class Register(msgspec.Struct):
    """What the ledger holds of the run. `away_until_s`: it does not answer before this time."""

    write_s: float
    away_until_s: float = 0.0
    term: int = 0
    settings: RunSettings | None = None
    round: RoundRecord | None = None
    close: CloseRecord | None = None
    restarts: int = 0
    marks: Marks = NO_MARKS
    blame: Blame = NO_BLAME

    def state(self) -> RunState:
        """What a new owner starts from."""
        return RunState(
            self.term,
            self.settings,
            self.round,
            self.close,
            self.restarts,
            0,
            self.marks,
            blame=self.blame,
        )


class Watcher(Protocol):
    """Those that follow what a coordinator does."""

    def deliver(self, parcels: list[Parcel]) -> None:
        """Messages arrive at their nodes."""

    def broke(self, change: Change) -> None:
        """The coordinator has ended a round."""

    def judged(self, change: Change) -> None:
        """The cause of a round's end is known."""

    def closed(self, close: CloseRecord) -> None:
        """The run is over."""


class FleetCoordinator:
    """One term of a coordinator. `host`: the machine whose node hosts it; None: one of its own."""

    def __init__(
        self,
        schedule: Schedule,
        register: Register,
        watcher: Watcher,
        *,
        host: int | None,
        has_successor: bool,
    ) -> None:
        register.term += 1
        self.host = host
        self.term = register.term
        self.is_alive = True
        self.membership = Membership(
            RUN, term=self.term, members_max=CONFIG.members_max, has_successor=has_successor
        )
        self.links: dict[int, FleetNode] = {}
        """All connections, by their numbers."""
        self.events = 0
        """How many events the core has taken."""
        self._schedule = schedule
        self._register = register
        self._watcher = watcher
        self._attached: dict[str, int] = {}
        """The connection of each attached node, by its name."""
        self._silent: dict[int, None] = {}
        self._inbox: deque[Arrival] = deque()
        self._is_serving = False
        self._busy_until_s = 0.0
        self._out: list[Parcel] = []
        self._writing: do.Commit | do.WriteMarks | None = None
        self._seats: dict[str, Seat] = {}
        self._seats_of = 0
        """The number of the round whose seats these are."""

    # -- in --------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether messages wait to be read or sent."""
        return self._is_serving or self._busy_until_s > self._schedule.now_s

    def take_over(self, *, attach_grace_s: float, former_host: NodeId | None) -> None:
        """Begin where the last owner left the run."""
        now_s = self._schedule.now_s
        state = msgspec.structs.replace(self._register.state(), term=self.term)
        self._do(
            self.membership.restore(
                state, attach_grace_s=attach_grace_s, now_s=now_s, former_host=former_host
            )
        )
        self._send()

    def arrive(self, arrivals: Iterable[Arrival]) -> None:
        """Messages of nodes, and what the shell sees of their connections."""
        if not self.is_alive:
            return
        self._inbox.extend(arrivals)
        if self._inbox and not self._is_serving:
            self._is_serving = True
            self._schedule.at(self._busy_until_s, self._serve)

    def end(self) -> None:
        """The process ends."""
        self.is_alive = False
        self._inbox.clear()

    def ledger_away(self, why: str, away_s: float) -> None:
        """The last renewal of the lease is too old to decide anything."""
        if self.is_alive:
            self._step(on.LedgerLost(why, away_s, SuspensionCause.LEASE))
            self._send()

    def ledger_back(self) -> None:
        """The lease is renewed again."""
        if self.is_alive:
            self._step(on.LedgerRestored(SuspensionCause.LEASE))
            self._send()

    def is_attached(self, node: FleetNode) -> bool:
        """Whether this connection of the node is the one of a member."""
        return self._attached.get(node.id.name) == node.connection_id != 0

    def _serve(self) -> None:
        if not self.is_alive:
            return
        inbox, took_s = self._inbox, 0.0
        for _ in range(min(AT_ONCE, len(inbox))):
            node, connection_id, what = inbox.popleft()
            took_s += ATTACH.seconds if isinstance(what, wire.Attach) else READ.seconds
            event = self._event(node, connection_id, what)
            if event is not None:
                self._step(event)
        self._busy_until_s = max(self._busy_until_s, self._schedule.now_s) + took_s
        self._is_serving = bool(inbox)
        self._send()
        # With nothing left to do, this step is only the moment at which it is idle again.
        self._schedule.at(self._busy_until_s, self._serve if self._is_serving else _idle)

    def _event(self, node: FleetNode, connection_id: int, what: Any) -> on.Event | None:
        """As the session does."""
        if self.links.get(connection_id) is not node:
            return None
        if isinstance(what, wire.Attach):
            return on.NodeAttached(what.node, what.settings, connection_id)
        if isinstance(what, on.ConnectionLost):
            self._forget_link(connection_id)
            return what
        if self._attached.get(node.id.name) != connection_id:
            return None
        if isinstance(what, on.NodeSilent):
            self._silent[connection_id] = None
            return what
        if self._silent:
            self._silent.pop(connection_id, None)
        found = _EVENT_OF.get(type(what))
        return found(node.id, what) if found is not None else None

    def heartbeat(self, node: FleetNode) -> None:
        """A node sends a heartbeat again after it stood still."""
        if node.connection_id in self._silent:
            self.arrive([(node, node.connection_id, on.NodeHeard(node.id))])

    # -- the core ----------------------------------------------------------------------------------

    def _step(self, event: on.Event) -> None:
        self.events += 1
        effects = self.membership.step(event, self._schedule.now_s)
        if effects:
            self._do(effects)

    def _fire(self, timer: do.Timer) -> None:
        if self.is_alive:
            self._step(on.TimerFired(timer))
            self._send()

    def _do(self, effects: list[do.Effect]) -> None:
        for effect in effects:
            _EXECUTE[type(effect)](self, effect)

    @property
    def _stamp(self) -> Stamp:
        return Stamp(LEDGER_ID, self.membership.term, self.membership.number)

    def _set_timer(self, effect: do.SetTimer) -> None:
        if not math.isinf(effect.delay_s):
            self._schedule.after(effect.delay_s, self._fire, effect.timer)

    def _write(self, effect: do.Commit | do.WriteMarks) -> None:
        if self._writing == effect:
            return  # It is asked for once more after an outage.
        self._writing = effect
        done_s = max(self._schedule.now_s, self._register.away_until_s) + self._register.write_s
        self._schedule.at(done_s, self._written, effect)

    def _written(self, effect: do.Commit | do.WriteMarks) -> None:
        register, membership = self._register, self.membership
        if not self.is_alive or register.term != self.term or self._writing is not effect:
            return
        if register.away_until_s > self._schedule.now_s:
            self._schedule.at(register.away_until_s, self._written, effect)
            return
        self._writing = None
        register.settings = membership.settings
        if isinstance(effect, do.WriteMarks):
            register.marks, register.restarts = effect.marks, effect.restarts
            register.blame = effect.blame
            self._step(on.MarksWritten(effect.serial))
        else:
            record = effect.record
            register.marks = membership.marks_with(record)
            register.restarts = membership.restart_count
            register.blame = membership.blame_with_record
            if isinstance(record, CloseRecord):
                register.close = record
            else:
                register.round = record
            self._step(on.Committed())
        self._send()

    # -- out ---------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Send what the last steps have given, one message after another."""
        out, self._out = self._out, []
        for first in range(0, len(out), AT_ONCE):
            parcels = out[first : first + AT_ONCE]
            self._busy_until_s = max(self._busy_until_s, self._schedule.now_s)
            self._busy_until_s += len(parcels) * TELL.seconds
            due_s = self._busy_until_s + NETWORK.seconds
            self._schedule.at(due_s, self._watcher.deliver, parcels)

    def _tell(self, name: str, message: wire.FromCoordinator) -> None:
        connection_id = self._attached.get(name)
        if connection_id is not None:
            self._out.append((self.links[connection_id], connection_id, message))

    def _tell_round(self, message: wire.FromCoordinator) -> None:
        record = self.membership.round
        for row in record.members if record is not None else ():
            self._tell(row.name, message)

    def _forget_link(self, connection_id: int) -> None:
        node = self.links.pop(connection_id, None)
        self._silent.pop(connection_id, None)
        if node is not None and self._attached.get(node.id.name) == connection_id:
            del self._attached[node.id.name]

    def _close(self, connection_id: int) -> None:
        node = self.links.get(connection_id)
        if node is not None:
            self._out.append((node, connection_id, None))
            self._forget_link(connection_id)

    def _welcome(self, effect: do.Welcome) -> None:
        node = self.links.get(effect.connection_id)
        if node is None:
            return
        before = self._attached.get(effect.node.name)
        if before is not None and before != effect.connection_id:
            self._close(before)
        self._attached[effect.node.name] = effect.connection_id
        settings, stamp, standing = self.membership.settings, self._stamp, effect.standing
        assert settings is not None
        heartbeat_s = settings.suspect_after_s / CONFIG.heartbeats_per_suspicion
        self._tell(effect.node.name, wire.Welcome(stamp, wire.VERSION, heartbeat_s, standing))
        record = self.membership.round
        if standing.round and record is not None:
            self._send_seat(effect.node, stamp, record)

    def _send_seat(self, node: NodeId, stamp: Stamp, record: RoundRecord) -> None:
        seat = self._seats_in(record).get(node.name)
        if seat is not None:
            self._tell(node.name, wire.Formed(stamp, record.head, seat))

    def _seats_in(self, record: RoundRecord) -> dict[str, Seat]:
        if self._seats_of != record.head.number:
            self._seats_of = record.head.number
            rows = zip(record.members, seats_of(record), strict=True)
            self._seats = {row.name: seat for row, seat in rows}
        return self._seats

    def _publish(self, effect: do.Publish) -> None:
        record, stamp = effect.record, self._stamp
        for name, seat in self._seats_in(record).items():
            self._tell(name, wire.Formed(stamp, record.head, seat))

    def _break(self, effect: do.Break) -> None:
        self._watcher.broke(effect.change)
        self._tell_round(wire.Broken(self._stamp, effect.change))

    def _verdict(self, effect: do.Verdict) -> None:
        self._watcher.judged(effect.change)
        self._tell_round(wire.CauseFound(self._stamp, effect.change))

    def _announce(self, effect: do.Announce) -> None:
        self._watcher.closed(effect.close)
        message = wire.Closed(self._stamp, effect.close)
        for name in self._attached:
            self._tell(name, message)

    def _probe_round(self, effect: do.ProbeRound) -> None:
        self._tell_round(wire.Probe(self._stamp))

    def _probe_node(self, effect: do.ProbeNode) -> None:
        self._tell(effect.node.name, wire.Probe(self._stamp))

    def _notify(self, effect: do.Notify) -> None:
        self._tell(effect.node.name, wire.Standby(self._stamp, effect.standby))

    def _refuse(self, effect: do.Refuse) -> None:
        node = self.links.get(effect.connection_id)
        if node is not None:
            message = wire.Refused(self._stamp, effect.refusal)
            self._out.append((node, effect.connection_id, message))
            self._close(effect.connection_id)

    def _supersede(self, effect: do.Supersede) -> None:
        connection_id = self._attached.get(effect.node.name)
        if connection_id is not None:
            self._refuse(do.Refuse(connection_id, effect.refusal))

    def _forget(self, effect: do.Forget) -> None:
        connection_id = self._attached.get(effect.node.name)
        if connection_id is None:
            return
        if effect.keeps_connection:
            del self._attached[effect.node.name]
        else:
            self._close(connection_id)

    def _dismiss(self, effect: do.Dismiss) -> None:
        self._close(effect.connection_id)

    def _step_down(self, effect: do.StepDown) -> None:
        refusal = Refusal(RefusalCode.MOVED, effect.reason)
        for connection_id in list(self.links):
            self._refuse(do.Refuse(connection_id, refusal))


def _idle() -> None:
    """Nothing happens. Those who look after each step see that the work is done."""


def silence_begins_s(ttl_s: float) -> float:
    """How long after its last renewal a coordinator may still decide."""
    timing = Timing.of(ttl_s)
    return timing.ttl_s - timing.margin_s


_EVENT_OF: Final[dict[type, Callable[[NodeId, Any], on.Event]]] = {
    wire.Ready: lambda node, m: on.NodeReady(
        node, m.leaving_round, m.bootstrap, m.workers, m.change
    ),
    wire.Failed: lambda node, m: on.WorkerFailed(node, m.round, m.failure),
    wire.Done: lambda node, m: on.NodeDone(node, m.round),
    wire.Departing: lambda node, m: on.NodeDeparting(node, m.reason),
    wire.Goodbye: lambda node, m: on.NodeLeft(node, m.reason),
    wire.CloseRun: lambda node, m: on.CloseRequested(node.name, m.outcome, m.reason),
    wire.Alive: lambda node, m: on.ProbeAnswered(node),
    on.NodeHeard: lambda node, m: on.NodeHeard(node),
}
_EXECUTE: Final[dict[type[do.Effect], Callable[..., None]]] = {
    do.SetTimer: FleetCoordinator._set_timer,
    do.Welcome: FleetCoordinator._welcome,
    do.Refuse: FleetCoordinator._refuse,
    do.Supersede: FleetCoordinator._supersede,
    do.Commit: FleetCoordinator._write,
    do.WriteMarks: FleetCoordinator._write,
    do.Dismiss: FleetCoordinator._dismiss,
    do.Publish: FleetCoordinator._publish,
    do.Break: FleetCoordinator._break,
    do.Verdict: FleetCoordinator._verdict,
    do.Announce: FleetCoordinator._announce,
    do.ProbeRound: FleetCoordinator._probe_round,
    do.ProbeNode: FleetCoordinator._probe_node,
    do.Notify: FleetCoordinator._notify,
    do.Forget: FleetCoordinator._forget,
    do.StepDown: FleetCoordinator._step_down,
}
