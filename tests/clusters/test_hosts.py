"""The hosts of these tests are what they claim to be, and none of them survives its test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clusters.hosts import Hosts, need
from tests.failover.netns import skip_unless_possible
from tests.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.verify]
Make = Callable[..., Hosts]

HOLDER = """
import sys, time
from pathlib import Path
from tests.clusters.hosts import Hosts
made = Hosts(Path(sys.argv[1]))
made.boot(["n1", "n2"])
made.start("n1", "sleep", "1000")
print(made.network_id, flush=True)
time.sleep(1000)
"""

SERVE = """
import socket
server = socket.create_server(("", 5000))
print("up", flush=True)
server.accept()[0].recv(1)
"""
ASK = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 5000))
print("met", flush=True)
connection.recv(1)
print("it ended", flush=True)
"""


def test_a_host_has_a_name_and_an_address_of_its_own(make_hosts: Make) -> None:
    made = make_hosts("n1", "n2")
    assert made.run("n2", "hostname").strip() == "n2"
    assert made.run("n1", "getent", "hosts", "n2").split() == [made["n2"].address, "n2"]
    assert made["n2"].address in made.run("n2", "ip", "-brief", "address")
    pid, name = made.run("n1", "cat", "/proc/1/stat").split()[:2]
    assert (pid, "python" in name) == ("1", True), "init.py is PID 1"


def test_a_command_has_its_code_its_signals_and_its_streams(make_hosts: Make) -> None:
    made = make_hosts("n1")
    trap = made.start(
        "n1", "sh", "-c", "trap 'echo told; exit 7' TERM; echo up; while :; do sleep 0.01; done"
    )
    trap.line("up")
    trap.signal(signal.SIGTERM)
    trap.line("told")
    assert trap.code() == 7
    killed = made.start("n1", "sh", "-c", "kill -9 $$")
    assert killed.code() == 128 + 9
    missing = made.start("n1", "no-such-program")
    missing.line("no-such-program: .*No such file")
    assert missing.code() == 127


def test_rsh_takes_the_place_of_ssh(make_hosts: Make) -> None:
    made = make_hosts("n1", "n2")
    assert made.run("n1", made.rsh(), "n2", "hostname;", "echo", "$((1 + 1))").split() == [
        "n2",
        "2",
    ]


def test_orphans_are_reaped(make_hosts: Make) -> None:
    made = make_hosts("n1")
    made.run("n1", "sh", "-c", "(sleep 0.01 & echo) > /dev/null")
    states = ("ps", "-e", "-o", "state=,args=")
    wait_until(
        lambda: "Z" not in made.run("n1", *states) and "sleep" not in made.run("n1", *states)
    )


def test_what_runs_on_a_host_ends_with_it(make_hosts: Make) -> None:
    made = make_hosts("n1", "n2")
    process = made.start("n1", "sh", "-c", "setsid sleep 1000 & echo up; wait")
    process.line("up")
    [sleep] = wait_until(lambda: made["n1"].pids("sleep"))
    made["n1"].power_off()
    assert not Path(f"/proc/{sleep}").exists()
    assert process.code() == 255, "as ssh has it"
    assert made.run("n2", "hostname").strip() == "n2"


def test_a_host_that_is_powered_off_says_nothing_more(make_hosts: Make) -> None:
    """The kernel of a host that only halts ends its connections; a power cut does not."""
    made = make_hosts("n1", "n2", "n3")
    asking = {}
    for name in ("n1", "n2"):
        made.start(name, sys.executable, "-c", SERVE).line("up")
        asking[name] = made.start("n3", sys.executable, "-c", ASK, name)
        asking[name].line("met")
    made["n1"].power_off()
    made["n2"].halt()
    asking["n2"].line("it ended")
    assert asking["n1"].popen.poll() is None
    assert "it ended" not in asking["n1"].text


def test_hosts_end_with_the_process_that_holds_them(tmp_path: Path) -> None:
    skip_unless_possible()
    root = Path(__file__).parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "hosts")],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    network_id = holder.stdout.readline().strip()
    assert network_id, "the hosts are up"
    assert f"{network_id}-n1" in _networks()
    inits = _processes(str(tmp_path))
    assert inits
    holder.kill()
    holder.wait()
    holder.stdout.close()
    wait_until(lambda: network_id not in _networks(), says="the networks are gone")
    wait_until(lambda: not _processes(str(tmp_path)), says="the hosts are gone")


def test_a_program_that_is_missing_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    need({"sh": "dash"})
    monkeypatch.delenv("RALLYPOINT_TEST_CLUSTERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no no-such-program here \(Debian: nothing\)"):
        need({"no-such-program": "nothing"})
    monkeypatch.setenv("RALLYPOINT_TEST_CLUSTERS", "1")
    with pytest.raises(AssertionError, match="RALLYPOINT_TEST_CLUSTERS is 1"):
        need({"no-such-program": "nothing"})


def _networks() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout


def _processes(text: str) -> list[int]:
    """Those whose command line has this text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in line and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found
