"""Real etcd for the rendezvous tests: the ledgers' fixtures, and a connection to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from rallypoint.rendezvous.etcd_blocking import EtcdConnection
from tests.ledger.conftest import etcd_program, one_etcd, prefix
from tests.ledger.etcd_processes import EtcdCluster, EtcdProcess, Program, etcd

__all__ = ["etcd_client", "etcd_program", "failing_etcd", "one_etcd", "prefix"]


LEFT_BEHIND_S = 30.0


@pytest.fixture(autouse=True, scope="module")
def calls_left_behind_have_ended() -> Iterator[None]:
    """What a deadline gave up (threads.py) ends before the next file's tests begin.

    torch's C++ prints when it does, and that would be in the output of a test that reads its own.
    """
    yield
    for thread in threading.enumerate():
        if thread.name == "rallypoint-call":
            thread.join(LEFT_BEHIND_S)
            assert not thread.is_alive()


@pytest.fixture
def etcd_client(one_etcd: EtcdCluster) -> Iterator[EtcdConnection]:
    client = EtcdConnection(endpoints=one_etcd.endpoints, read_timeout=10)
    yield client
    client.close()


@pytest.fixture
def failing_etcd(etcd_program: Program) -> Iterator[EtcdProcess]:
    """One that a test may kill or freeze."""
    with etcd(etcd_program) as cluster:
        yield cluster.members[0]
        cluster.members[0].thaw()
