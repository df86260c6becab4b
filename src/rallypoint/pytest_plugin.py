"""The plugin of pytest: the fixture `rallypoint_cluster`.

pytest loads this file in each session of a Python that has Rallypoint. So it imports nothing else
until a test uses the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rallypoint.testing.cluster import Cluster


@pytest.fixture
def rallypoint_cluster() -> Iterator[Cluster]:
    """A coordinator without nodes, in this process: see rallypoint.testing.Cluster."""
    from rallypoint.testing.cluster import Cluster

    with Cluster() as cluster:
        yield cluster
