"""All runs and connections of one coordinator: it opens runs, passes on time, forgets idle runs.

It has no sockets and no asyncio. `Ownership` keeps the records of runs, in memory or on a ledger,
and decides whether this process owns a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol

from rallypoint.clock import TICK_S, StallProofClock
from rallypoint.coordinator import event_lines, hosted_run
from rallypoint.coordinator.admission import Admission
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.event_log import Events
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.idle_runs import IdleRuns
from rallypoint.coordinator.other_runs import looking_alike
from rallypoint.coordinator.outgoing import Outlet
from rallypoint.coordinator.session import Session
from rallypoint.coordinator.supervision import guarded
from rallypoint.coordinator.timers import ScheduledCall, Timers
from rallypoint.coordinator.turns import Turns
from rallypoint.core.budget import MemoryBudget
from rallypoint.core.election import Seen
from rallypoint.core.membership import Membership
from rallypoint.core.quotas import NOBODY
from rallypoint.core.tables import TABLE_BYTES_MAX
from rallypoint.core.values import Address, EndedOwner, Stamp
from rallypoint.security.roles import EVERYBODY, Denial, Principal
from rallypoint.wire import messages as wire

_log = logging.getLogger("rallypoint.coordinator")


class Ownership(hosted_run.Ownership, Protocol):
    """What a coordinator needs from the part that keeps its runs, besides what the runs need.

    In `memory_ownership` all runs are in this process and end with it. In `run_ownership` they are
    on a ledger that several coordinators share.
    """

    @property
    def ledger_id(self) -> str:
        """The id of the ledger; in memory, an id that is drawn for this process."""

    @property
    def process(self) -> str:
        """The name of this process's lease; "" in memory."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses in its lease, where nodes reach this process; none in memory."""

    @property
    def may_decide_now(self) -> bool:
        """Whether this process may decide for the runs that it owns: its lease is valid."""

    async def start(self, coordinator: Coordinator, addresses: tuple[Address, ...]) -> None:
        """Reach the ledger, and take the lease. Raises LedgerError."""

    async def before_close(self) -> None:
        """This coordinator is about to close its port. Bounded in time."""

    async def hand_over(self, timeout_s: float, reason: str) -> None:
        """This coordinator is ending: give up every run, within a bounded time."""

    async def aclose(self) -> None:
        """Stop. Idempotent."""

    def claim(self, run_id: str, seen: Seen | None = None, ended: EndedOwner | None = None) -> None:
        """A node has asked for the run: own it, or find its owner.

        `seen`: since when this process has seen the owner's lease unchanged. `ended`: the owner, if
        it has ended as far as a node has seen.
        """

    def forget(self, run_id: str) -> None:
        """The run is over, and its records can be removed."""


class Coordinator:
    """The runs and connections of one coordinator.

    Owned by one thread. The caller drives it: it calls `tick` at least every `clock.TICK_S` seconds
    and at `next_due_s`. `wake` is called when `next_due_s` may have become earlier.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        ownership: Ownership,
        *,
        clock: StallProofClock | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.ownership = ownership
        self.ledger_id = ownership.ledger_id
        self.table_bytes_max = TABLE_BYTES_MAX
        """The largest member table that the ledger keeps, in bytes."""
        self.budget = MemoryBudget(config.memory_bytes_max)
        """The memory of all runs together."""
        self.unattached = self.budget.share("connections that have not attached yet")
        self.people = self.budget.share("requests of people")
        self.events = Events(config.clock_host)
        """The events of all runs, for people."""
        self.events.sinks.append(event_lines.write_line)
        self.turns = Turns()
        self.unread: dict[int, Session] = {}
        """Connections with a backlog, by their ids."""
        self.put_off: dict[int, None] = {}
        """Connections whose input waits for its turn, by their ids."""
        self.sessions: dict[int, Session] = {}
        self.runs: dict[str, HostedRun] = {}
        self.clock = clock or StallProofClock()
        """R8: this clock leaves out the time for which the process slept."""
        self._timers = Timers()
        self._wake = wake
        self._last_connection_id = 0
        self._listening: list[tuple[float, int]] = []
        """When to check a session for silence: (time, connection id); a heap."""
        self._idle = IdleRuns(self.runs, config, self.now_s, is_in_memory=ownership.is_in_memory)
        self.admission = Admission(self, self._idle, is_in_memory=ownership.is_in_memory)
        self._next_round_s = 0.0
        self.floor_term = 0
        self.floor_number = 0
        """The highest term and round number of all runs that were forgotten here. New runs begin
        above them (R1, R13). Used only in memory, as a ledger has its own floor.
        """
        self.on_fewer: Callable[[], None] = lambda: None
        """Called when a connection has ended or a run has closed."""
        self.on_attach: Callable[[Address | None], None] | None = None
        self.on_denied: Callable[[Session, str, Denial], None] = lambda *denied: None
        """A node was refused because its token is not for the run."""
        """Called when a node attaches, with its address as it sees it."""

    # -- time ----------------------------------------------------------------------------------

    def now_s(self) -> float:
        """The coordinator's time in seconds, without the time for which the process slept (R8)."""
        return self.clock.now_s()

    def has_stalled_since(self, since_s: float) -> bool:
        """Whether this process stood still after `since_s`, or until a moment ago."""
        return self.clock.has_stalled_since(since_s)

    def call_at(self, due_s: float, callback: Callable[[], None]) -> ScheduledCall:
        """Call back at `due_s`, from `tick`."""
        before_s = self._timers.next_due_s()
        timer = self._timers.call_at(due_s, callback)
        if before_s is None or due_s < before_s:
            self._wake()
        return timer

    def next_due_s(self) -> float | None:
        """When the next callback is due, on this coordinator's clock; None if there is none."""
        return self._timers.next_due_s()

    def tick(self, until_s: float | None = None) -> None:
        """Do everything that was due at `until_s`, on this coordinator's clock; None: now."""
        now_s = self.now_s() if until_s is None else until_s
        self._timers.run_due(now_s)
        if now_s < self._next_round_s:
            return  # A loop over all runs for every timer of one of them would be O(runs²).
        self._next_round_s = now_s + TICK_S / 2
        self._check_silence(now_s)
        for connection_id in self.admission.take_overdue(now_s):
            self.sessions[connection_id].attach_overdue()
        self.turns.tick()
        for connection_id in list(self.put_off):
            if connection_id in self.sessions:
                self.sessions[connection_id].beat_unasked()
        for session in list(self.unread.values()):
            session.look(now_s)
        for run in self._idle.over(now_s):
            self.forget_run(run)

    def listen(self, session: Session, due_s: float) -> None:
        """Check at `due_s` whether the session was silent for too long."""
        heappush(self._listening, (due_s, session.connection_id))

    def _check_silence(self, now_s: float) -> None:
        """O(due sessions): idle runs and idle sessions add nothing to a tick."""
        while self._listening and self._listening[0][0] <= now_s:
            session = self.sessions.get(heappop(self._listening)[1])
            if session is not None and session.run is not None:
                run = session.run
                run.supervised(run.connections.check_silence, session, now_s)

    def stamp(self) -> Stamp:
        """The stamp for messages to a node that is in no run."""
        return Stamp(self.ledger_id, self._first_term, 0)

    @property
    def _first_term(self) -> int:
        """The term of runs in memory; on a ledger, their registers have it."""
        return 1 if self.ownership.is_in_memory else 0

    # -- connections and runs ------------------------------------------------------------------

    def connected(self, outlet: Outlet, principal: Principal = EVERYBODY) -> Session:
        """A new connection, of this principal."""
        self._last_connection_id += 1
        session = Session(self, self._last_connection_id, outlet, principal)
        self.sessions[session.connection_id] = session
        self.admission.connected(session.connection_id, session.account)
        return session

    def disconnected(self, session: Session) -> None:
        """The connection is closed."""
        self.put_off.pop(session.connection_id, None)
        if self.sessions.pop(session.connection_id, None) is not None:
            self.admission.disconnected(session.connection_id, session.account)
        self.on_fewer()

    def open_run(self, run_id: str) -> HostedRun:
        """The run of that name. It is begun if it does not exist."""
        run = self.runs.get(run_id)
        if run is None:
            membership = Membership(
                run_id,
                term=max(self._first_term, self.floor_term + 1),
                floor=self.floor_number,
                members_max=self.config.members_max,
                table_bytes_max=self.table_bytes_max,
                has_successor=not self.ownership.is_in_memory,
            )
            run = self.runs[run_id] = HostedRun(self, run_id, membership, self.ownership)
            self.admission.run_begun(run)
            self.run_is_idle(run)
        return run

    def run_for(self, session: Session, run_id: str) -> HostedRun:
        """The run of this name. It counts for the session's account if it had no account."""
        run = self.open_run(run_id)
        if self.on_attach is not None:
            self.on_attach(session.source)
        if run.account is NOBODY:
            self.admission.count_for(run, session.account)
        return run

    def begin_again(self, attach: wire.Attach) -> None:
        """Forget a closed run that never had a round, if this node may begin it again.

        For a node that was in it, the run stays closed (R6).
        """
        run = self.runs.get(attach.run_id)
        is_in_memory = self.ownership.is_in_memory
        if run is None or not run.is_closed or not is_in_memory or attach.stamp.ledger_id:
            return
        if run.membership.may_begin_again(attach.settings, self.now_s()):
            run.connections.close_all("the run was closed, and starts again with other nodes")
            self.forget_run(run)

    def other_runs(self, run: HostedRun) -> tuple[str, ...]:
        """Runs that may have the missing nodes of this one, if this one has had no round yet."""
        if run.membership.round is not None:
            return ()
        if self.config.only_run is not None:
            return self.admission.turned_away.recent(self.now_s())
        return looking_alike(run, reversed(self.runs.values()))

    def claim(self, run_id: str, ended: EndedOwner | None = None) -> None:
        """A node has asked for the run: own it, or find its owner.

        `ended`: the owner, if it has ended as far as the node has seen.
        """
        run = self.runs.get(run_id)
        if run is not None and not run.is_claimed:
            self.ownership.claim(run_id, ended=ended)

    def drop_run(self, run: HostedRun) -> None:
        """Forget the run: another coordinator owns it, or an error has ended it here."""
        if self.runs.get(run.run_id) is run:
            if self.ownership.is_in_memory:
                self._raise_floor(run)
            self._remove(run.run_id)
            self.on_fewer()

    def run_closed(self, run: HostedRun) -> None:
        """The run has closed."""
        self.on_fewer()

    # -- runs without nodes --------------------------------------------------------------------

    def run_is_idle(self, run: HostedRun) -> None:
        """No node is connected to the run, or an idle run has closed."""
        if self.runs.get(run.run_id) is run:
            self._idle.add(run)
            if len(self.runs) - len(self._idle) <= 1:
                self.turns.alone()

    def run_is_busy(self, run: HostedRun) -> None:
        """A node has connected to the run."""
        self._idle.remove(run)

    def forget_run(self, run: HostedRun) -> None:
        """Remove the run, and its records."""
        _log.info("run %s is removed", run.run_id)
        if run.membership.round is None and not run.is_closed:
            self.admission.may_begin_again(run.run_id)
        self._raise_floor(run)
        self._remove(run.run_id)
        self.ownership.forget(run.run_id)

    def _remove(self, run_id: str) -> None:
        run = self.runs.pop(run_id, None)
        if run is not None:
            self._idle.remove(run)
            self.admission.run_removed(run)
            run.forgotten()
            self.turns.forget(run)

    def _raise_floor(self, run: HostedRun) -> None:
        self.floor_term = max(self.floor_term, run.membership.term)
        self.floor_number = max(self.floor_number, run.membership.number)

    def close(self, reason: str) -> None:
        """Close every connection, and end the streams of events."""
        for session in list(self.sessions.values()):
            session.close(reason)
        self.events.is_over = True
        for run in list(self.runs.values()):
            guarded(self.events.failed, run.events.end)
