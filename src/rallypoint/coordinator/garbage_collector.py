"""Removes old runs and old leases, so that a ledger does not grow without end.

A coordinator removes its own runs when they are over (`Coordinator`). This part removes the
registers of dead owners for which no node has asked again, and the leases of dead processes. It
compares no clocks of hosts (R9): a collector measures how long *it* has seen a register unchanged.

An unchanged register does not prove that a run is over: a round that lasts for weeks writes
nothing. So only closed runs are removed here. An open run is claimed, as if a node had asked for
it. If its owner is alive, nothing happens. Otherwise this coordinator becomes its owner, and
removes it like its other runs if no node attaches.

Coordinators inside nodes collect, too, for a ledger without `rallypoint serve`. Of the candidates
of a run only the owner collects, rarely, and only a part of the ledger each time. It can own no
other run. So it closes an open run that was unchanged for long and whose owner's lease has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Sequence
from typing import Final

import msgspec

from rallypoint import runtime
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.run_removal import closed_as_abandoned, delete_run
from rallypoint.core import election as e
from rallypoint.errors import LedgerCorruptError, LedgerError, LedgerFormatError
from rallypoint.ledger.contract import Ledger, Swapped, Versioned
from rallypoint.ledger.keys import (
    COORDINATORS,
    LOGS,
    MISTAKE,
    RUNS,
    lease_key,
    run_key,
    run_key_of_log,
)

_log = logging.getLogger("rallypoint.coordinator")

LOOK_S: Final = 60.0
"""How often a collector scans the ledger, in seconds: often, compared to the times in `Keeping`."""
ELECTED_LOOK_S: Final = 300.0
ELECTED_SAMPLE: Final = 64
"""How often a coordinator inside a node scans, and how many registers, as there may be many."""


class Keeping(msgspec.Struct, frozen=True, kw_only=True):
    """How long unchanged registers are kept, in seconds."""

    closed_run_s: float = 3_600.0
    open_run_s: float = 7 * 86_400.0
    lease_s: float = 3_600.0
    mistake_s: float = 600.0
    """While a mistake is kept, no lease is revoked early."""


def collector_for(
    ledger: Ledger,
    config: CoordinatorConfig,
    own: Container[str],
    claim: Callable[[str], None],
    may_decide: Callable[[str], bool],
) -> GarbageCollector:
    """The garbage collector of a coordinator with this configuration, that has its `own` runs."""
    keeping = Keeping(closed_run_s=config.closed_run_keep_s)
    own_run = config.only_run
    if own_run is None:
        return GarbageCollector(ledger, keeping, own.__contains__, claim, look_s=LOOK_S)
    return GarbageCollector(
        ledger,
        keeping,
        own.__contains__,
        None,
        look_s=ELECTED_LOOK_S,
        sample=ELECTED_SAMPLE,
        # Of the candidates of one run, only its owner collects.
        is_allowed=lambda: may_decide(own_run),
    )


class GarbageCollector:
    """Scans a ledger every `look_s`. `is_mine` returns whether this process has a run itself.

    `claim` claims a run that may have no coordinator any more. It is None in a coordinator that
    serves one run; then an unchanged open run whose owner's lease has ended is closed and removed.
    `is_allowed` is called before each scan. A scan reads at most `sample` registers of each kind,
    drawn at random; None: all of them.
    """

    def __init__(
        self,
        ledger: Ledger,
        keeping: Keeping,
        is_mine: Callable[[str], bool],
        claim: Callable[[str], None] | None,
        *,
        look_s: float = LOOK_S,
        sample: int | None = None,
        is_allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self._ledger = ledger
        self._keeping = keeping
        self._is_mine = is_mine
        self._claim = claim
        self._look_s = look_s
        self._sample = sample
        self._is_allowed = is_allowed
        self._seen: dict[str, tuple[int, float]] = {}
        self._leases = 0

    async def run(self) -> None:
        """Scan until cancelled. If the ledger does not answer, try again later."""
        while True:
            # A second of pause for each lease: all collectors together scan about once a second at
            # most.
            pause_s = max(self._look_s, 0.0 if self._sample is None else float(self._leases))
            await asyncio.sleep(pause_s * runtime.here().chance.uniform(0.9, 1.1))
            if not self._is_allowed():
                continue
            try:
                await self.sweep(asyncio.get_running_loop().time())
            except LedgerError as error:
                _log.info("only a part of the ledger was searched for old data: %s", error)

    async def sweep(self, now_s: float) -> None:
        """Scan once. Raises LedgerError. Registers that cannot be read are not touched."""
        leases = await self._ledger.keys(COORDINATORS)
        runs = await self._ledger.keys(RUNS)
        self._leases = len(leases)
        # Keep registers outside this sample, too: one with the same version later is unchanged.
        lost = await self._lost_logs(runs)
        there = {*leases, *runs, *lost, MISTAKE}
        self._seen = {key: seen for key, seen in self._seen.items() if key in there}
        for key in (*self._some(leases), *self._some(runs)):
            try:
                await self._look_at(key, now_s)
            except (e.UnreadableError, LedgerCorruptError, LedgerFormatError) as error:
                _log.debug("%s is left unchanged: %s", key, error)
        for log in lost:
            await self._look_at_lost_log(log, now_s)
        mistake = await self._ledger.read(MISTAKE)
        if mistake is None:
            return
        if self._stood_still_s(MISTAKE, mistake, now_s) >= self._keeping.mistake_s:
            await self._ledger.delete(MISTAKE, mistake.version)

    async def _lost_logs(self, runs: Sequence[str]) -> list[str]:
        """Remove logs without a run: a deposed coordinator may create one after a run was removed.

        Only if all registers are scanned, because the listing costs O(logs).
        """
        if not self._ledger.has_log or self._sample is not None:
            return []
        there = frozenset(runs)
        logs = await self._ledger.logs(LOGS)
        return [log for log in logs if run_key_of_log(log) not in there]

    async def _look_at_lost_log(self, log: str, now_s: float) -> None:
        _, since_s = self._seen.setdefault(log, (0, now_s))
        if now_s - since_s < self._keeping.closed_run_s:
            return
        # A run that begins again has logs of other names, as its term is higher.
        if await self._ledger.read(run_key_of_log(log)) is None:
            _log.info("log %s belongs to no run: removed from the ledger", log)
            await self._ledger.drop_log(log)

    def _some(self, keys: Sequence[str]) -> Sequence[str]:
        if self._sample is None or len(keys) <= self._sample:
            return keys
        return runtime.here().chance.sample(keys, self._sample)

    async def _look_at(self, key: str, now_s: float) -> None:
        if key.startswith(RUNS):
            await self._look_at_run(key, now_s)
        elif key.startswith(COORDINATORS):
            await self._look_at_lease(key, now_s)

    async def _look_at_run(self, key: str, now_s: float) -> None:
        current = await self._ledger.read(key)
        if current is None:
            return
        register = e.decode_run(current.value)
        run_id = register.run_id
        if key != run_key(run_id):
            raise e.UnreadableError(f"this is the register of run {run_id!r}")
        if self._is_mine(run_id):
            return
        stood_still_s = self._stood_still_s(key, current, now_s)
        if register.close is None and stood_still_s >= self._keeping.open_run_s:
            # If its owner is alive, the run is claimed again after the same time.
            self._seen[key] = (current.version, now_s)
            if self._claim is not None:
                self._claim(run_id)
            else:
                await self._end_abandoned(register, current.version)
        elif register.close is not None and stood_still_s >= self._keeping.closed_run_s:
            _log.info("run %s is removed from the ledger", run_id)
            await delete_run(self._ledger, register, current.version)

    async def _end_abandoned(self, register: e.RunRegister, version: int) -> None:
        """Seal and close a run whose owner has ended, then remove it.

        It is one swap on the version that was read, so it fails if a node has asked for the run
        since (R5).
        """
        if register.owner:
            lease = await self._ledger.read(lease_key(register.owner))
            if lease is not None and e.decode_lease(lease.value).state is e.LeaseState.SERVING:
                return
        closed = closed_as_abandoned(register)
        outcome = await self._ledger.swap(run_key(register.run_id), version, e.encode(closed))
        if isinstance(outcome, Swapped):
            _log.info(
                "run %s is removed from the ledger: no node has returned to it", register.run_id
            )
            await delete_run(self._ledger, closed, outcome.version)

    async def _look_at_lease(self, key: str, now_s: float) -> None:
        """Revoke a lease that is unchanged, and remove one that is final."""
        # Two steps, as a lease that is missing counts as that of a dead process.
        current = await self._ledger.read(key)
        if current is None:
            return
        lease = e.decode_lease(current.value)
        if self._stood_still_s(key, current, now_s) < max(self._keeping.lease_s, lease.ttl_s):
            return
        if lease.state is e.LeaseState.SERVING:
            revoked = e.revoked_by(lease, "a sweeper")
            await self._ledger.swap(key, current.version, e.encode(revoked))
        else:
            await self._ledger.delete(key, current.version)

    def _stood_still_s(self, key: str, current: Versioned, now_s: float) -> float:
        version, since_s = self._seen.get(key, (None, now_s))
        if version != current.version:
            since_s = now_s
        self._seen[key] = (current.version, since_s)
        return now_s - since_s
