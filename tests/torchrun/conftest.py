from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torchrun.jobs import Job


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """A run of torchrun agents. Nothing of it survives the test."""
    job = Job(tmp_path)
    yield job
    job.close()
