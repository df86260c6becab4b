"""Which connections and which new runs a coordinator accepts.

`core/quotas` has the arithmetic of the limits, and `core/admission` decides whether a node may join
a run that exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.idle_runs import IdleRuns
from rallypoint.coordinator.other_runs import TurnedAway
from rallypoint.core import naming, reasons
from rallypoint.core.budget import HOW_TO_RAISE, MemoryGroup
from rallypoint.core.quotas import NOBODY, Account, Holdings, Paces
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.wire import messages as wire

FORGOTTEN_MAX: Final = 4_096
"""How many names to keep of runs that were forgotten before they had a round."""


class Host(Protocol):
    """What admission needs of its coordinator."""

    config: CoordinatorConfig
    ledger_id: str

    @property
    def runs(self) -> Mapping[str, HostedRun]:
        """All runs, by their names."""

    def now_s(self) -> float:
        """The coordinator's time."""

    def call_at(self, due_s: float, callback: Callable[[], None]) -> object:
        """Call back at that time."""

    def forget_run(self, run: HostedRun) -> None:
        """Remove the run, and its records."""


class Admission:
    """Counts what each account uses, and refuses connections, nodes and runs above a limit.

    It counts connections and runs by account, limits how fast an account begins runs, and keeps the
    deadline by which each connection must attach. It must not open, change or close a run or a
    connection; the coordinator does that. Only `refusal` makes the coordinator forget an idle run,
    as room for another.
    """

    def __init__(self, host: Host, idle: IdleRuns, *, is_in_memory: bool) -> None:
        self.turned_away = TurnedAway()
        self.descriptors_max = host.config.sessions_max
        """How many connections this process can have."""
        self._sessions_max = host.config.sessions_max
        self._host = host
        self._idle = idle
        self._is_in_memory = is_in_memory
        self._attach_due_s: dict[int, float] = {}
        """The deadline of each connection that has not attached yet, by connection id."""
        self._held_sessions = Holdings()
        self._held_runs = Holdings()
        self._paces = Paces(host.config.new_runs_per_s)
        self._paces_of_members = Paces(host.config.new_runs_per_s, max(1, host.config.runs_max))
        """For nodes that were in a run before, which all attach at once after a takeover."""
        self._begins_at_s: dict[str, float] = {}
        """When each run for which nodes wait may begin, by its name."""
        self._groups: dict[str, MemoryGroup] = {}
        """The memory of the runs of each token, by the account's name of it."""
        self._never_formed: dict[str, None] = {}
        """Runs that were forgotten before they had a round. A node may begin them again."""

    def limit_descriptors(self, descriptors_max: int) -> None:
        """Set the most connections that this process can have."""
        self.descriptors_max = descriptors_max
        self._sessions_max = min(self._host.config.sessions_max, descriptors_max)

    # -- connections ---------------------------------------------------------------------------

    def session_refusal(self, account: Account) -> Refusal | None:
        """Why this account cannot have another connection; None if it can."""
        if self._held_sessions.is_at_limit(account, self._host.config.token_sessions_max):
            return self._too_many_of_token()
        if self._held_sessions.has_room(account, self._sessions_max):
            return None
        return reasons.too_many_sessions(self._sessions_max, self._held_sessions.total)

    def connected(self, connection_id: int, account: Account) -> None:
        """Count a new connection, and set its deadline to attach."""
        self._held_sessions.take(account)
        due_s = self._host.now_s() + self._host.config.attach_timeout_s
        self._attach_due_s[connection_id] = due_s

    def disconnected(self, connection_id: int, account: Account) -> None:
        """Stop counting a connection. Call it once for each."""
        self._attach_due_s.pop(connection_id, None)
        self._held_sessions.give_back(account)

    def take_overdue(self, now_s: float) -> list[int]:
        """The ids of connections that have not attached in time. Each is returned once."""
        # One timer for all: with a timer each, 9,000 connections would wake the loop 9,000 times.
        overdue = [i for i, due_s in self._attach_due_s.items() if due_s <= now_s]
        for connection_id in overdue:
            del self._attach_due_s[connection_id]
        return overdue

    # -- nodes that attach ---------------------------------------------------------------------

    def refusal(self, attach: wire.Attach, account: Account = NOBODY) -> Refusal | None:
        """Why the node cannot attach; None if it can."""
        host = self._host
        only = host.config.only_run
        if only is not None and attach.run_id != only:
            self.turned_away.record(attach.run_id, host.now_s())
            return reasons.other_run(only, attach.run_id)
        problem = naming.info_problem(attach.node)
        hint = "check --node-name, --local-addr and --label of this node"
        if not problem:
            problem = naming.run_id_problem(attach.run_id)
            hint = "give every node another --run-id"
        if problem:
            return Refusal(RefusalCode.MALFORMED, problem, hint)
        if attach.stamp.ledger_id and attach.stamp.ledger_id != host.ledger_id:
            why = "lost with the coordinator that kept it in memory"
            return reasons.run_lost(attach.run_id, why)
        run = host.runs.get(attach.run_id)
        was_forgotten = self._is_in_memory and attach.stamp.ledger_id and run is None
        if was_forgotten and attach.run_id not in self._never_formed:
            # R5: if the run began again on the same ledger, its rounds would look old to this node.
            return reasons.run_lost(attach.run_id, "removed: it had no nodes for too long")
        if not self._held_sessions.has_room(account, self._sessions_max, more=0):
            return reasons.too_many_sessions(self._sessions_max, self._held_sessions.total)
        if run is None:
            most = host.config.token_runs_max
            if most is not None and not self._has_token_room_for_run(account, most):
                variable = "RALLYPOINT_TOKEN_RUNS_MAX"
                return reasons.too_many_of_token("runs", most, variable)
            if self._has_room_for_run(account):
                return None
            return reasons.too_many_runs(host.config.runs_max, self._held_runs.total)
        excess = run.memory.no_room_for(attach.node.name)
        return None if excess is None else Refusal(RefusalCode.LIMIT, str(excess), HOW_TO_RAISE)

    def admit(self, connection_id: int, attach: wire.Attach, account: Account) -> float | None:
        """In how many seconds the node may enter its run; None: the wait would be too long.

        An account that begins many runs has to wait. All nodes of one run wait for the same moment.
        """
        wait_s: float | None = 0.0
        if attach.run_id not in self._host.runs:
            was_in_it = bool(attach.stamp.ledger_id)
            wait_s = self.wait_s(attach.run_id, account, was_in_it=was_in_it)
        if wait_s is not None:
            self._attach_due_s.pop(connection_id, None)
        return wait_s

    def wait_s(self, run_id: str, account: Account, *, was_in_it: bool = False) -> float | None:
        """How long a node of this account has to wait for a new run, in seconds; None: too long.

        `was_in_it`: the node reports that it was in the run at another coordinator.
        """
        now_s = self._host.now_s()
        if run_id in self._begins_at_s:
            return max(0.0, self._begins_at_s[run_id] - now_s)
        paces = self._paces_of_members if was_in_it else self._paces
        wait_s = paces.wait_s(account, now_s)
        if wait_s:
            self._begins_at_s[run_id] = now_s + wait_s
            self._host.call_at(now_s + wait_s, partial(self._forget_wait, run_id))
        return wait_s

    def _forget_wait(self, run_id: str) -> None:
        self._begins_at_s.pop(run_id, None)

    # -- runs ----------------------------------------------------------------------------------

    def run_begun(self, run: HostedRun) -> None:
        """Count a new run for its account."""
        self._held_runs.take(run.account)
        run.share.join(self._group_of(run.account))
        self._never_formed.pop(run.run_id, None)

    def count_for(self, run: HostedRun, account: Account) -> None:
        """Count the run for this account from now on."""
        self._held_runs.give_back(run.account)
        self._held_runs.take(account)
        run.account = account
        run.share.join(self._group_of(account))

    def run_removed(self, run: HostedRun) -> None:
        """Stop counting a run."""
        self._held_runs.give_back(run.account)
        if not self._held_runs.of_token(run.account):
            self._groups.pop(run.account.token, None)

    def may_begin_again(self, run_id: str) -> None:
        """A run without any round was forgotten: a node that was in it may begin it again."""
        self._never_formed[run_id] = None
        while len(self._never_formed) > FORGOTTEN_MAX:
            del self._never_formed[next(iter(self._never_formed))]

    def _too_many_of_token(self) -> Refusal:
        most = self._host.config.token_sessions_max
        assert most is not None
        return reasons.too_many_of_token("connections", most, "RALLYPOINT_TOKEN_SESSIONS_MAX")

    def _group_of(self, account: Account) -> MemoryGroup | None:
        """The memory of the runs of this token, if it is limited."""
        bytes_max = self._host.config.token_bytes_max
        if bytes_max is None or not account.token:
            return None
        return self._groups.setdefault(account.token, MemoryGroup(bytes_max))

    def _has_token_room_for_run(self, account: Account, most: int) -> bool:
        """Whether its token may have one more run, perhaps in place of an idle one."""
        if not self._held_runs.is_at_limit(account, most):
            return True
        for run in self._idle.evictable():
            if run.account.token == account.token:
                self._host.forget_run(run)
                return True
        return False

    def _has_room_for_run(self, account: Account) -> bool:
        held, runs_max = self._held_runs, self._host.config.runs_max
        if held.has_room(account, runs_max):
            return True
        if held.total > runs_max:
            return False
        may_take_any = held.total == runs_max and held.is_small(account, runs_max)
        for run in self._idle.evictable():
            # If the run is the account's own, its number of runs stays the same.
            if may_take_any or run.account == account:
                self._host.forget_run(run)
                return True
        return False
