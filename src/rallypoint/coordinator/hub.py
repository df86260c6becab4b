"""All runs of one coordinator: opens them, ticks them, sweeps them. Without sockets or asyncio."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from rallypoint._version import __version__
from rallypoint.clock import TICK_S, StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.runs import Commit, RunHost
from rallypoint.coordinator.sessions import Outlet, Session
from rallypoint.coordinator.timers import Timer, Timers
from rallypoint.coordinator.turns import Turns
from rallypoint.core import naming
from rallypoint.core.budget import HOW_TO_RAISE, Budget
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.tables import TABLE_BYTES_MAX
from rallypoint.core.values import Phase, Stamp
from rallypoint.wire import messages as wire

if TYPE_CHECKING:
    from rallypoint.coordinator.office import Office
    from rallypoint.coordinator.shared import SharedRuns

_log = logging.getLogger("rallypoint.coordinator")


class Hub:
    """The runs and connections of one coordinator.

    Owned by one thread. Whoever drives it calls `tick` at least every `clock.TICK_S` seconds and
    at `next_due_s`; `wake` is called when that may have come nearer.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        *,
        ledger_id: str,
        commit: Commit,
        term: int = 1,
        clock: StallProofClock | None = None,
        wake: Callable[[], None] = lambda: None,
        forget: Callable[[str], None] = lambda run_id: None,
        shared: SharedRuns | None = None,
    ) -> None:
        self.config = config
        self.ledger_id = ledger_id
        self.term = term
        self.table_bytes_max = TABLE_BYTES_MAX
        """What the ledger keeps of one run's member table."""
        self.software = f"rallypoint {__version__}"
        self.budget = Budget(config.memory_bytes_max)
        """What is kept for all runs together."""
        self.unattached = self.budget.share("connections that have not attached yet")
        self.turns = Turns()
        self.unread: dict[int, Session] = {}
        """Connections whose peers have not read all that they were sent."""
        self.sessions: dict[int, Session] = {}
        self.runs: dict[str, RunHost] = {}
        self._commit = commit
        self.clock = clock or StallProofClock()
        """The coordinator's time: it stands still while the process did (R8)."""
        self._timers = Timers()
        self._wake = wake
        self._links = 0
        self._strangers: dict[int, float] = {}
        """Until when each link that has not said who it is has to."""
        self._beats = 0
        self._next_round_s = 0.0
        self._forget = forget
        self.floor_term = 0
        self.floor_number = 0
        """The highest term and round number of all runs that were forgotten here: new ones begin
        above them (R1, R13). Without a shared ledger; with one, its own floor holds."""
        self._shared = shared
        self.on_fewer: Callable[[], None] = lambda: None
        """Called when a connection has ended or a run has closed: for who waits for the last."""

    # -- time ----------------------------------------------------------------------------------

    def now_s(self) -> float:
        """The coordinator's time: it stands still while the process did (R8)."""
        return self.clock.now_s()

    def has_stalled_since(self, since_s: float) -> bool:
        """Whether this process stood still after `since_s`, or until a moment ago."""
        return self.clock.has_stalled_since(since_s)

    def call_at(self, due_s: float, callback: Callable[[], None]) -> Timer:
        """Call back at `due_s`, from `tick`."""
        before_s = self._timers.next_due_s()
        timer = self._timers.call_at(due_s, callback)
        if before_s is None or due_s < before_s:
            self._wake()
        return timer

    def next_due_s(self) -> float | None:
        """When `tick` has something to do, on this hub's clock."""
        return self._timers.next_due_s()

    def tick(self, until_s: float | None = None) -> None:
        """Do all that was due at `until_s`, on this hub's clock; None: by now."""
        now_s = self.now_s() if until_s is None else until_s
        self._timers.run_due(now_s)
        if now_s < self._next_round_s:
            return  # Going through all runs for every timer of one of them would be O(runs²).
        self._next_round_s = now_s + TICK_S / 2
        for run in list(self.runs.values()):
            run.supervised(run.check_silence, now_s)
        self._end_strangers(now_s)
        for session in list(self.unread.values()):
            session.look(now_s)
        self._sweep(now_s)

    @property
    def office(self) -> Office | None:
        """This coordinator's office; None: its runs are in its memory."""
        return self._shared.office if self._shared is not None else None

    @property
    def is_kept_here(self) -> bool:
        """Whether the runs are in this process's memory, and end with it."""
        return self._shared is None

    def beat(self) -> int:
        """A counter that advances while this coordinator is one: with its lease, if it has any."""
        if self._shared is not None:
            return self._shared.office.beat
        self._beats += 1
        return self._beats

    def stamp(self) -> Stamp:
        """What a message carries before its sender is in a run."""
        return Stamp(self.ledger_id, self.term, 0)

    # -- connections and runs ------------------------------------------------------------------

    def connected(self, outlet: Outlet) -> Session:
        """A new connection."""
        self._links += 1
        session = Session(self, self._links, outlet)
        self.sessions[session.link] = session
        self._strangers[session.link] = self.now_s() + self.config.attach_timeout_s
        return session

    def introduced(self, session: Session) -> None:
        """The connection has said who it is."""
        self._strangers.pop(session.link, None)

    def disconnected(self, session: Session) -> None:
        """The connection is closed."""
        self.introduced(session)
        self.sessions.pop(session.link, None)

    def _end_strangers(self, now_s: float) -> None:
        """All at once: a timer for each of 9,000 that connected would wake the loop as often."""
        for link in [link for link, due_s in self._strangers.items() if due_s <= now_s]:
            del self._strangers[link]
            self.sessions[link].attach_overdue()

    def open_run(self, run_id: str) -> RunHost:
        """The run of that name, begun if there is none."""
        run = self.runs.get(run_id)
        if run is None:
            run = self.runs[run_id] = RunHost(self, run_id, self._commit, self._shared)
        return run

    def claim(self, run: RunHost) -> None:
        """A node wants the run: on a shared ledger it has to be this coordinator's first."""
        if self._shared is not None and not run.is_claimed:
            self._shared.claim(run.run_id)

    def drop(self, run_id: str) -> None:
        """The run is another coordinator's; nothing of it is kept here."""
        run = self.runs.pop(run_id, None)
        if run is not None:
            run.end_timers()
            run.share.close()
        self.on_fewer()

    def run_lost(self, run: RunHost) -> None:
        """An unexpected error has ended a run that is kept in memory only: it is forgotten."""
        if self.runs.get(run.run_id) is run:
            self._raise_floor(run)
            self._forget(run.run_id)
            self.drop(run.run_id)

    def refusal(self, attach: wire.Attach) -> Refusal | None:
        """Why a node cannot attach here at all, if it cannot."""
        only = self.config.only_run
        if only is not None and attach.run_id != only:
            return Refusal(
                RefusalCode.OTHER_RUN,
                f"this coordinator belongs to run {only!r} and admits no node of {attach.run_id!r}",
                hint="start `rallypoint serve` to have one coordinator for several runs",
            )
        problem = naming.info_problem(attach.node)
        if not attach.run_id.isprintable():
            problem = "the run id has characters that cannot be printed"
        if problem:
            hint = "look at --node-name, --local-addr and --label of this node"
            return Refusal(RefusalCode.MALFORMED, problem, hint)
        hint = "start the run again: this coordinator will begin it anew"
        if attach.stamp.ledger_id and attach.stamp.ledger_id != self.ledger_id:
            lost = f"run {attach.run_id!r} was lost with the coordinator that kept it in memory"
            return Refusal(RefusalCode.RUN_LOST, lost, hint)
        if self.is_kept_here and attach.stamp.ledger_id and attach.run_id not in self.runs:
            # R5: begun anew under the same ledger, its rounds would look old to this node.
            swept = f"run {attach.run_id!r} was forgotten, as nobody was in it for too long"
            return Refusal(RefusalCode.RUN_LOST, swept, hint)
        if attach.run_id not in self.runs and len(self.runs) >= self.config.runs_max:
            return Refusal(RefusalCode.LIMIT, f"{self.config.runs_max} runs are open here already")
        if len(self.sessions) > self.config.sessions_max:
            return Refusal(RefusalCode.LIMIT, "the coordinator has too many connections")
        run = self.runs.get(attach.run_id)
        excess = run.no_room_for(attach.node.name) if run is not None else None
        return None if excess is None else Refusal(RefusalCode.LIMIT, str(excess), HOW_TO_RAISE)

    def _sweep(self, now_s: float) -> None:
        """Forget runs that nobody has anything to do with any more."""
        gone = [run_id for run_id, run in self.runs.items() if self._is_over(run, now_s)]
        for run_id in gone:
            _log.info("run %s is forgotten", run_id)
            run = self.runs.pop(run_id)
            run.end_timers()
            run.share.close()
            self._raise_floor(run)
            self._forget(run_id)

    def _raise_floor(self, run: RunHost) -> None:
        self.floor_term = max(self.floor_term, run.membership.term)
        self.floor_number = max(self.floor_number, run.membership.number)

    def _is_over(self, run: RunHost, now_s: float) -> bool:
        # Who is cut off from the ledger does not know whether another coordinator has the run.
        is_suspended = run.membership.phase is Phase.SUSPENDED
        if run.attached_count or not run.is_claimed or is_suspended:
            return False
        if run.is_closed:
            return run.membership.closed_ago_s(now_s) > self.config.closed_run_keep_s
        since_s = run.empty_since_s
        return since_s is not None and now_s - since_s > self.config.empty_run_keep_s

    def close(self, reason: str) -> None:
        """Close every connection."""
        for session in list(self.sessions.values()):
            session.close(reason)
