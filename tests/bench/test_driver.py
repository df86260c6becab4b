"""How the driver starts processes, waits for them, and spreads nodes over them."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest

from rallypoint.bench import driver, meet, processes
from rallypoint.bench.processes import BenchError, spread, tail_of, wait_until

SILENT = ("-c", "import sys; sys.stdout.write('half a line'); sys.stdout.flush(); input()")


@pytest.mark.parametrize(
    ("nodes", "among", "least", "shares"),
    [
        (9, 2, 1, [5, 4]),
        (2, 4, 1, [1, 1]),
        (2, 4, 2, [2]),
        (4, 4, 2, [2, 2]),
        (7, 3, 2, [3, 2, 2]),
        (1, 3, 2, [1]),
    ],
)
def test_no_process_is_without_nodes(nodes: int, among: int, least: int, shares: list[int]) -> None:
    assert spread(nodes, among, least) == shares


def test_enough_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = tmp_path / "ports"
    monkeypatch.setattr(driver, "PORTS", ports)
    driver.check_ports(10**6)  # no Linux
    ports.write_text("32768 60999\n")
    driver.check_ports(60_999 - 32_768 + 1 - driver.SPARE_PORTS)
    with pytest.raises(BenchError, match="has 28232") as raised:
        driver.check_ports(28_232)
    assert "ip_local_port_range='32768 65535'" in raised.value.hint
    with pytest.raises(BenchError) as raised:
        driver.check_ports(60_000)
    assert "ip_local_port_range='5520 65535'" in raised.value.hint
    with pytest.raises(BenchError) as raised:
        driver.check_ports(70_000)
    assert "at most 64,512" in raised.value.hint


def test_the_end_of_the_output(tmp_path: Path) -> None:
    path = tmp_path / "said"
    path.write_bytes(b"x" * 10_000 + b" the end\n")
    with path.open("rb") as said:
        assert tail_of(said).endswith("x the end")
        assert len(tail_of(said)) < processes.TAIL_BYTES
    path.write_bytes(b"short")
    with path.open("rb") as said:
        assert tail_of(said) == "short"


# -- waiting for a process -------------------------------------------------------------------------


@pytest.fixture
def silent():
    process = driver.Process(SILENT)
    yield process
    process.end()


@pytest.mark.processes
def test_a_silent_process_is_a_timeout(silent: driver.Process) -> None:
    with pytest.raises(BenchError, match=r"not within 0\.3 s: it: a whole line"):
        silent.line("it", "a whole line", 0.3)


@pytest.mark.processes
def test_a_process_that_ends_before_its_line(silent: driver.Process) -> None:
    silent.let_go()
    with pytest.raises(BenchError, match="it ended, with exit code 1"):
        silent.line("it")


@pytest.mark.processes
def test_lines_that_arrive_together_are_read_one_by_one() -> None:
    process = driver.Process(("-c", "print('one\\ntwo\\nthree')"))
    assert [process.line("it") for _ in range(3)] == [b"one", b"two", b"three"]
    with pytest.raises(BenchError, match="exit code 0"):
        process.line("it")
    process.end()


@pytest.mark.processes
def test_an_ended_fleet_raises_bench_error_not_broken_pipe() -> None:
    with driver.fleets(1) as fleets:
        process = fleets.each[0].process
        process.kill()
        wait_until(lambda: process.code is not None, "its end")
        with pytest.raises(BenchError, match="a process of nodes ended, with exit code -9"):
            fleets.each[0].send("settle")


class _Thaw(logging.Handler):
    """Continues a frozen process as soon as a line of the log says that the wait is long."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid = pid
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        os.kill(self.pid, signal.SIGCONT)


@pytest.mark.processes
def test_a_long_wait_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SAY_AFTER_S", 0.3)
    # One process of nodes, and only one wait that can be long: on a slow machine a second process
    # would make other waits long, too.
    with driver.served() as at, driver.fleets(1) as fleets:
        fleets.connect(at, run_id="job", nodes=4, settings=meet.settings(4), ready=True)
        assert at.process is not None
        thaw = _Thaw(at.process.pid)
        fleets.ask("settle")
        fleets.ask("expect_end")
        os.kill(at.process.pid, signal.SIGSTOP)
        fleets.each[0].ask("again", index=0)
        logging.getLogger(processes.__name__).addHandler(thaw)
        try:
            fleets.ask("ended")
        finally:
            logging.getLogger(processes.__name__).removeHandler(thaw)
            os.kill(at.process.pid, signal.SIGCONT)
    [said] = thaw.said
    assert said.startswith("waiting for ")
    assert said.endswith("a process of nodes: all nodes to be notified that the round has ended")
