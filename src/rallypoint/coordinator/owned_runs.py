"""The hosted runs of a coordinator on a ledger, and the effects of claims and the lease on them.

`run_ownership` calls this part with the outcomes of the election. This part turns them into events
of the runs and refusals for their nodes. `takeover` reads the round and the log of a run's last
owner, and `log_writer` writes logs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.lease_manager import LeaseManager
from rallypoint.coordinator.log_records import UnreadableLogError
from rallypoint.coordinator.log_writer import LogWriter, suspend
from rallypoint.coordinator.supervision import Supervised
from rallypoint.coordinator.takeover import read_and_seal
from rallypoint.core import events as on
from rallypoint.core.election import Heard, Lease, Other, RunRegister, UnreadableError
from rallypoint.core.reasons import Refusal, RefusalCode, ledger_unreachable
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import Address, NodeId
from rallypoint.ledger.contract import Ledger

_log = logging.getLogger("rallypoint.coordinator")

NOBODY_HEARD: Final = Heard(working=0, minimum=1, in_round=0, is_alone=True)


class _TakeOver(msgspec.Struct, frozen=True):
    """A run that is being taken over."""

    term: int
    task: asyncio.Task[None]


class OwnedRuns:
    """The runs of one coordinator. `coordinator` is None until it has started.

    `check_lease` suspends all runs if the lease is not valid. `renewed` waits until a renewal was
    sent and confirmed. `may_decide` returns whether this process may decide for a run now.
    """

    def __init__(
        self,
        ledger: Ledger,
        lease: LeaseManager,
        config: CoordinatorConfig,
        check_lease: Callable[[], None],
        renewed: Callable[[], Awaitable[None]],
        may_decide: Callable[[str], bool],
    ) -> None:
        self.coordinator: Coordinator | None = None
        self._ledger = ledger
        self._lease = lease
        self._store_limits = config.store_limits
        self._own_node = config.own_node.name if config.own_node is not None else ""
        self._check_lease = check_lease
        self._renewed = renewed
        self._may_decide = may_decide
        self._tasks = Supervised()
        self.logs = LogWriter(ledger, self._tasks, self._task_failed, self._is_ours)
        self._taking_over: dict[str, _TakeOver] = {}
        self._unreadable: dict[str, str] = {}
        """Why runs could not be taken over, as last logged."""
        self._begun: dict[str, int] = {}
        """The term in which a run was last begun here."""

    async def aclose(self) -> None:
        """Cancel all takeovers that are under way. Idempotent."""
        await self._tasks.aclose()

    # -- the state of a run's claim ------------------------------------------------------------

    def won(self, run_id: str, register: RunRegister, former_host: NodeId | None) -> None:
        """This process owns the run: begin it. This may be called again until the run has begun."""
        taking = self._taking_over.get(run_id)
        # R5: one takeover for each term.
        if taking is not None and taking.term == register.term:
            return
        self.stop_taking_over(run_id)
        work = self._take_over(run_id, register, former_host)
        task = self._tasks.spawn(work, partial(self._task_failed, run_id))
        self._taking_over[run_id] = _TakeOver(register.term, task)

    def goes_on(self, register: RunRegister, former_host: NodeId | None) -> bool:
        """Whether this owned run is here, or begins now, if it could not be begun before.

        If not, it has been here in this term, and was deposed since: by a seal in its log, say.
        """
        run = self._run(register.run_id)
        if run is not None and run.is_claimed and run.membership.term == register.term:
            return True
        if self._begun.get(register.run_id) == register.term:
            return False
        self.won(register.run_id, register, former_host)
        return True

    def forget(self, run_id: str) -> None:
        """The claim to this run is dropped."""
        self._begun.pop(run_id, None)

    def stop_taking_over(self, run_id: str) -> None:
        """Cancel the takeover, so that an old term neither begins the run nor refuses its nodes."""
        taking = self._taking_over.pop(run_id, None)
        if taking is not None:
            # R5: an old term begins no run.
            taking.task.cancel()

    async def _take_over(
        self, run_id: str, register: RunRegister, former_host: NodeId | None
    ) -> None:
        """Read and seal the last owner's round, and begin. Cancelled if the run is lost."""
        assert self.coordinator is not None
        # Open the run, because its nodes may not be here yet: a claim waits for the owner's end
        # without them.
        run = self.coordinator.open_run(run_id)
        try:
            left = await read_and_seal(self._ledger, register, self._store_limits, self._renewed)
            # R5: only a run that still waits for this.
            if not run.is_forgotten and not run.is_claimed:
                # R5: it begins SUSPENDED if the lease is too old by now.
                self._post_outage(run)
                # R10: from the state that the last owner has left.
                run.begin(
                    left.state,
                    left.sealed,
                    former_host,
                    store_lost=left.store_lost,
                    unsure_s=register.unsure_s,
                    formers=register.formers,
                )
                self._begun[run_id] = register.term
                self._unreadable.pop(run_id, None)
        except (UnreadableError, UnreadableLogError) as error:
            self.unreadable(run_id, str(error))
        finally:
            taking = self._taking_over.get(run_id)
            if taking is not None and taking.task is asyncio.current_task():
                del self._taking_over[run_id]

    def _post_outage(self, run: HostedRun) -> None:
        """Begin the run SUSPENDED if the lease is no longer valid after a long takeover."""
        # R5: the takeover may have taken long.
        self._check_lease()
        lease = self._lease
        # R5: then nothing is decided yet.
        if lease.outage:
            away_s = lease.holder.renewed_ago_s(asyncio.get_running_loop().time())
            # R5: before the nodes that have attached meanwhile.
            run.post_first(on.LedgerLost(lease.outage, away_s, SuspensionCause.LEASE))

    def written(self, run_id: str, event: on.Committed | on.MarksWritten) -> None:
        """The last record or note is in the ledger."""
        run = self._run(run_id)
        if run is not None:
            # In this order, because a run that continues commits its unwritten record again.
            run.post(event)
            # R7: the ledger takes records again.
            run.post(on.LedgerRestored(SuspensionCause.COMMIT))

    def send_elsewhere(self, run_id: str, addresses: tuple[Address, ...]) -> None:
        """Another process owns the run: send its nodes there."""
        run = self._run(run_id)
        if run is None or run.is_claimed or self.coordinator is None:
            return
        listed = ", ".join(map(str, addresses))
        message = f"run {run_id!r} has its coordinator at {listed}"
        if not set(addresses).isdisjoint(self._lease.addresses):
            # The lease is that of a predecessor with the same addresses, which are now this
            # process's.
            message = (
                f"the coordinator at {listed} was started again, and takes over run {run_id!r} "
                "when the lease of its predecessor has expired"
            )
        run.turn_away(Refusal(RefusalCode.ELSEWHERE, message, addresses=addresses))
        self.coordinator.drop_run(run)

    def deposed(self, run_id: str, reason: str) -> None:
        """This process does not own the run any more."""
        # R5: nor does it begin later.
        self.stop_taking_over(run_id)
        run = self._run(run_id)
        if run is None:
            return
        if run.is_claimed:
            # R5: the run decides nothing any more.
            run.post(on.CommitRefused(reason))
        else:
            run.turn_away(Refusal(RefusalCode.MOVED, reason))
            assert self.coordinator is not None
            self.coordinator.drop_run(run)

    def not_taken(self, run_id: str, reason: str) -> None:
        """The ledger does not accept the run's record: show it like an outage, until Committed."""
        run = self._run(run_id)
        if run is not None and run.is_claimed:
            suspend(run, SuspensionCause.COMMIT, reason)

    def unreadable(self, run_id: str, reason: str) -> None:
        """The run's register or log cannot be read. Neither is changed."""
        run = self._run(run_id)
        if run is not None and run.is_claimed:
            suspend(run, SuspensionCause.COMMIT, f"its register cannot be read: {reason}")
        elif run is not None and self.coordinator is not None:
            message = f"run {run_id!r} cannot be taken over: {reason}"
            if self._unreadable.get(run_id) != reason:
                self._unreadable[run_id] = reason
                _log.error("%s", message)
            hint = "another release may have written it; look at the ledger before you clear it"
            run.turn_away(Refusal(RefusalCode.LIMIT, message, hint))
            self.coordinator.drop_run(run)

    def failed(self, run_id: str, error: Exception) -> bool:
        """An unexpected error in the work for one run. False: there is no run to end."""
        run = self._run(run_id)
        if run is None or run.has_failed:
            return False
        run.fail(error)
        return True

    def heard(self, run_id: str) -> Heard | None:
        """The nodes that are heard here; None if the run is over."""
        run = self._run(run_id)
        if run is None or not run.is_claimed:
            return NOBODY_HEARD
        if run.is_closed:
            return None
        membership, settings = run.membership, run.membership.settings
        roster, last, own = membership.roster, membership.round, self._own_node
        # R7: a node that waits for its name reaches this coordinator, too.
        hears_others = run.connections.hears_another_than(own)
        hears_others = hears_others or membership.has_another_waiting(own)
        return Heard(
            working=roster.awaited_count - len(roster.troubled_names),
            minimum=settings.min_nodes if settings is not None else 1,
            in_round=last.head.nodes if last is not None else 0,
            is_alone=not hears_others,
        )

    def others(self, run_id: str, leases: Sequence[tuple[Lease, int]]) -> list[Other]:
        """The processes that may take over a run, without those of nodes that are heard here."""
        run, others = self._run(run_id), []
        for lease, version in leases:
            name = lease.node.name if lease.node is not None else ""
            is_here = name and run is not None and run.connections.hears(name)
            if not is_here and (not name or name != self._own_node):
                others.append(Other(lease.process, version, waits=bool(name)))
        return others

    # -- the state of the lease ----------------------------------------------------------------

    def suspend_all(self, reason: str, away_s: float) -> None:
        """Suspend all runs: sessions stay, active rounds go on, and no member is judged."""
        _log.warning("suspended: %s", ledger_unreachable(away_s, reason))
        for run in self._claimed():
            # R5: no decision without a valid lease.
            run.post(on.LedgerLost(reason, away_s, SuspensionCause.LEASE))

    def send_nodes_away(self, away_s: float) -> None:
        """Send away the nodes that cannot read the ledger. They may reach another replica."""
        why = ledger_unreachable(away_s, self._lease.outage)
        for run in self._claimed():
            run.supervised(run.connections.send_away, Refusal(RefusalCode.MOVED, why))

    def hand_over_all(self) -> None:
        """Suspend all runs until the lease is handed over and the nodes are redirected."""
        for run in self._claimed():
            reason = "this coordinator is handing over its runs"
            # R5: others may take over at once.
            run.post(on.LedgerLost(reason, cause=SuspensionCause.LEASE))

    def restore_all(self) -> None:
        """The lease is valid again: let all runs continue."""
        _log.warning("the ledger answers again")
        for run in self._claimed():
            # R7: and held answers are sent.
            run.supervised(run.lease_confirmed)

    # -- helpers -------------------------------------------------------------------------------

    def _run(self, run_id: str) -> HostedRun | None:
        return self.coordinator.runs.get(run_id) if self.coordinator is not None else None

    def _claimed(self) -> list[HostedRun]:
        runs = self.coordinator.runs.values() if self.coordinator is not None else ()
        return [run for run in runs if run.is_claimed]

    async def _is_ours(self, run_id: str) -> bool:
        # R5: only a renewal from now on proves it.
        await self._renewed()
        # R5: and the claim.
        return self._may_decide(run_id)

    def _task_failed(self, run_id: str, error: Exception) -> None:
        """An unexpected error in a background task of the run ends the run here."""
        if self._run(run_id) is None:
            _log.error("run %s: an unexpected error", run_id, exc_info=error)
        self.failed(run_id, error)
