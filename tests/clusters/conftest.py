"""Hosts and clusters, each for one test; gone at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clusters.hosts import Hosts, hosts
from tests.clusters.slurm import Slurm, slurm


@pytest.fixture
def make_hosts(tmp_path: Path) -> Iterator[Callable[..., Hosts]]:
    """Makes hosts of these names."""
    with ExitStack() as stack:
        yield lambda *names: stack.enter_context(hosts(tmp_path / "hosts", names))


@pytest.fixture
def make_slurm(tmp_path: Path) -> Iterator[Callable[[int], Slurm]]:
    """Makes a Slurm of this number of nodes."""
    with ExitStack() as stack:
        yield lambda nodes: stack.enter_context(slurm(tmp_path / "slurm", nodes))
