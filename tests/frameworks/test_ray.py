"""Actors of Ray that join a run: one is killed, Ray starts it again, and all train on."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.examples.programs import Program, Programs
from tests.frameworks.environments import python_with
from tests.kinds import LONG

pytestmark = [
    pytest.mark.processes,
    pytest.mark.verify,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not LONG, reason="Ray has 274 MB: make verify LONG=1 runs it"),
]

RAY = ("ray==2.60.0",)
PROGRAM = str(Path(__file__).with_name("ray_program.py"))
BEGUN = r"round {}: rank {} of 2 has begun at step (\d+), pid (\d+)"


@pytest.fixture
def folder() -> Iterator[str]:
    """For Ray's files. Not in pytest's: a socket's path in it would be longer than 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        yield name


@contextlib.contextmanager
def ended(driver: Program) -> Iterator[None]:
    """End the driver, if the test fails, and all of its Ray: it would leave some processes."""
    try:
        yield
    finally:
        if driver.process.poll() is None:
            of_ray = processes_of(driver)
            driver.kill()
            for each in of_ray:
                with contextlib.suppress(psutil.Error):
                    each.kill()


def processes_of(driver: Program) -> list[psutil.Process]:
    return psutil.Process(driver.process.pid).children(recursive=True)


def test_a_lost_actor_is_started_again_and_trains_on(run: Programs, folder: str) -> None:
    run.interpreter = python_with(*RAY)
    serve = run.cli("serve", "--port", str(run.port))
    run.wait_for_coordinator()
    own = {
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": "0" * 64,  # without it, Ray writes one into the home
        "RAY_raylet_start_wait_time_s": "300",
        "RAY_worker_register_timeout_seconds": "300",
    }
    driver = run.python(PROGRAM, f"http://{run.endpoint}", folder, **own)
    with ended(driver):
        pids = [int(driver.wait_for(BEGUN.format(1, rank))[2]) for rank in (0, 1)]
        of_ray = processes_of(driver)
        psutil.Process(pids[1]).kill()

        survivor, replacement = (driver.wait_for(BEGUN.format(2, rank)) for rank in (0, 1))
        assert int(survivor[1]) == int(replacement[1]) >= 5
        assert int(survivor[2]) == pids[0]
        assert int(replacement[2]) not in pids
        driver.wait_for("trained to step")
        assert driver.end() == 0
    serve.process.terminate()
    serve.end()
    assert set(pids) < {each.pid for each in of_ray}
    assert psutil.wait_procs(of_ray, 60)[1] == []
