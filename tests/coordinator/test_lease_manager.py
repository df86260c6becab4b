"""The lease of a process, beside those of others. Without connections."""

from __future__ import annotations

from rallypoint.coordinator.lease_manager import LeaseManager
from rallypoint.core import election as e
from rallypoint.ledger.keys import lease_key
from rallypoint.ledger.memory import MemoryLedger
from tests.core.claimant import TIMING, moving, revoked, serving
from tests.loops import run_virtual


def test_r7_only_another_process_that_serves_can_take_a_run_over() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        manager = LeaseManager(ledger, TIMING)
        leases = (serving(manager.process), serving("other"), moving("moving"), revoked("revoked"))
        for lease in leases:
            await ledger.swap(lease_key(lease.process), None, e.encode(lease))
        await ledger.swap(lease_key("damaged"), None, b"not a lease")
        found = await manager.others("run")
        assert found is not None
        assert [lease for lease, _ in found] == [serving("other")]

    run_virtual(main())
