"""Real etcd for the rendezvous tests: the ledgers' fixtures, and a connection to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rallypoint.rendezvous.etcd_blocking import EtcdConnection
from tests.ledger.conftest import etcd_program, one_etcd, prefix
from tests.ledger.etcd_processes import EtcdCluster, EtcdProcess, Program, etcd

__all__ = ["etcd_client", "etcd_program", "failing_etcd", "one_etcd", "prefix"]


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
