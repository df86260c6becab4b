"""`rallypoint wait` and `rallypoint coordinators`, with real coordinators."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rallypoint
from tests.waiting import wait_until

from .conftest import COMMAND, Cli, Served

pytestmark = pytest.mark.processes
Serve = Callable[..., Served]


def join(endpoint: str) -> rallypoint.Run:
    return rallypoint.join("job", endpoint, min_nodes=1, max_nodes=1, last_call_s=0.01)


def waiting(endpoint: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "wait", "job", "--endpoint", endpoint, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_begins_and_ends(serve: Serve) -> None:
    """Those who wait started before the run did."""
    endpoint = serve("--insecure").endpoint
    for_active, for_closed = waiting(endpoint), waiting(endpoint, "--for", "closed")
    try:
        for process in (for_active, for_closed):
            assert process.stderr is not None
            assert "there is no run 'job' yet" in process.stderr.readline()
        with join(endpoint) as run:
            next(iter(run.worlds()))
            out, _ = for_active.communicate(timeout=60)
            assert (for_active.returncode, out) == (0, "run 'job': active: round 1 with 1 nodes\n")
            assert for_closed.poll() is None
            run.close("trained")
        out, _ = for_closed.communicate(timeout=60)
        assert for_closed.returncode == 0
        assert "trained" in out
    finally:
        for process in (for_active, for_closed):
            process.kill()
            process.communicate()


def test_a_run_that_fails(serve: Serve, cli: Cli) -> None:
    endpoint = serve("--insecure").endpoint
    with join(endpoint) as run:
        next(iter(run.worlds()))
        run.close("diverged", failed=True)
    for state in ("closed", "active"):
        done = cli("wait", "job", "--for", state, "--endpoint", endpoint)
        assert done.code == 1
        assert "diverged" in done.out


def test_not_in_time(serve: Serve, cli: Cli, free_port: int) -> None:
    endpoint = serve("--insecure").endpoint
    done = cli("wait", "job", "--endpoint", endpoint, "--timeout", "0.1s")
    assert done.code == 3
    assert "is not active after 0.1 s: there is no run 'job' yet" in done.err
    nobody = f"http://127.0.0.1:{free_port}"
    done = cli("wait", "job", "--endpoint", nobody, "--timeout", "0.1s")
    assert done.code == 3
    assert "nothing listens" in done.err


def test_usage(cli: Cli) -> None:
    assert cli("wait", "job", "--for", "lunch", "--endpoint", "h:1").code == 2
    assert cli("wait", "job", "--timeout", "soon", "--endpoint", "h:1").code == 2


def test_a_wrong_token_ends_the_wait(
    serve: Serve, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = serve(env={"RALLYPOINT_TOKEN": "hunter2"}).endpoint
    monkeypatch.setenv("RALLYPOINT_TOKEN", "hunter3")
    done = cli("wait", "job", "--endpoint", endpoint)
    assert done.code == 2
    assert "the token is wrong" in done.err


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return f"file://{tmp_path}/ledger"


def test_a_run_in_a_ledger(cli: Cli, ledger: str) -> None:
    """Its coordinator is elected, and ends with it."""
    with join(ledger) as run:
        next(iter(run.worlds()))
        assert cli("wait", "job", "--endpoint", ledger, "--timeout", "60s").code == 0
        run.close("trained")
    done = cli("wait", "job", "--for", "closed", "--endpoint", ledger, "--timeout", "60s")
    assert done.code == 0, done
    assert "trained" in done.out


def rows_of(cli: Cli, ledger: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        cli("coordinators", "--endpoint", ledger, "--json").out
    )["coordinators"]
    return found


def test_the_coordinators_of_a_ledger(serve: Serve, cli: Cli, ledger: str) -> None:
    """One that is alive, and one that was killed."""
    assert "no coordinator" in cli("coordinators", "--endpoint", ledger).out
    killed = serve("--insecure", "--ledger", ledger)
    wait_until(lambda: rows_of(cli, ledger), says="it has no lease")
    killed.kill()
    alive = serve("--insecure", "--ledger", ledger)
    with rallypoint.join("job", alive.endpoint, min_nodes=1, max_nodes=1, last_call_s=0.01) as run:
        next(iter(run.worlds()))
        rows = rows_of(cli, ledger)
    [up] = [each for each in rows if each["is_renewed"]]
    [down] = [each for each in rows if not each["is_renewed"]]
    assert up["software"] == f"rallypoint {rallypoint.__version__}"
    assert (up["runs"], up["problem"]) == (1, None)
    assert {each.rpartition(":")[2] for each in up["addresses"]} == {str(alive.port)}
    assert "not renewed for" in down["problem"]


def test_the_coordinator_at_an_address(serve: Serve, cli: Cli) -> None:
    endpoint = serve("--insecure").endpoint
    done = cli("coordinators", "--endpoint", endpoint)
    assert done.code == 0
    assert rallypoint.__version__ in done.out


def test_no_color_is_obeyed() -> None:
    """Where a terminal is forced, NO_COLOR still takes the colours away (no-color.org)."""
    colours = (f"\x1b[{number}m" for number in range(30, 50))
    told = {}
    for name, more in (("with", {}), ("without", {"NO_COLOR": "1"})):
        told[name] = subprocess.run(
            [sys.executable, "-c", FORCED],
            env={"PATH": "/usr/bin", "TERM": "xterm", "FORCE_COLOR": "1", **more},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
    assert "\x1b[32m" in told["with"]
    assert not any(each in told["without"] for each in colours)


FORCED = """
from rallypoint.cli import output
output.show(output.cell("fine", "green"))
"""
