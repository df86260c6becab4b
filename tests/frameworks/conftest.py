"""Programs with real frameworks, and a coordinator that none of them hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples import programs


@pytest.fixture
def run(tmp_path: Path) -> Iterator[programs.Programs]:
    """Programs of one test's run; that nothing is left of them is a part of every test."""
    yield from programs.programs(tmp_path)
