"""A pytest plugin that plants the bug named in RALLYPOINT_PLANTED, for tests of other kinds.

RALLYPOINT_PLANTED=NAME python -m pytest -p tests.simulation.planted.plugin FILE
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.simulation.planted import BUGS
from tests.simulation.planted.planting import planted


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """The bug is there while tests run, and not while they are collected."""
    name = os.environ.get("RALLYPOINT_PLANTED", "")
    with planted(BUGS[name]) if name else contextlib.nullcontext():
        return (yield)
