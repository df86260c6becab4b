"""The simulated etcd keeps what the real one promises: the ledger's own suite runs on it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.simulation.etcd import Cluster
from rallypoint.simulation.world import Process, World
from rallypoint.testing.ledger_suite import Connect, LedgerSuite

T = TypeVar("T")


def run_in(world: World, process: Process, main: Coroutine[Any, Any, T], limit_s: float) -> T:
    """Run a coroutine in a simulated process, for at most so many seconds of the world."""
    task = process.start(main)
    assert world.run_until(world.now_s + limit_s, task.done), "it has not ended in time"
    return task.result()


class TestSuite(LedgerSuite):
    @pytest.fixture
    def connect(self, monkeypatch: pytest.MonkeyPatch) -> Connect:
        world = World(7)
        process = world.process("test")
        cluster = Cluster(world, members=3)
        hosts = tuple(url.removeprefix("http://") for url in cluster.urls)

        def run(main: Coroutine[Any, Any, T]) -> T:
            return run_in(world, process, main, 600.0)

        monkeypatch.setattr(asyncio, "run", run)
        return lambda: EtcdLedger(EtcdOptions(endpoints=hosts), gateway=cluster.gateway(process))
