"""The hosts of rallypoint/bench/hosts.py, for tests, which are skipped where none can be made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from rallypoint.bench import hosts
from rallypoint.bench.hosts import CommandError as CommandError
from rallypoint.bench.hosts import Host as Host
from rallypoint.bench.hosts import Network as Network
from rallypoint.bench.hosts import run as run


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network that is gone at the end. Skips the test where none can be made."""
    skip_unless_possible()
    with hosts.network() as made:
        yield made


def skip_unless_possible() -> None:
    """Skip, with the reason, where this user or system can have no network namespaces."""
    problem = hosts.why_not()
    if problem:
        pytest.skip(problem)
