"""Hosts on one machine: each has its own network, name, /etc/hosts, processes and first process.

A host is a network namespace of tests/failover/netns.py, and in it UTS, mount and PID namespaces
that live as long as `init.py`. All hosts see the same files, as on a cluster with a shared disk.
`power_off` is what a power cut is: the cable says nothing more, and then every process is gone.
Whatever ends the process that holds the hosts, SIGKILL included, ends them.

What must not be here: Slurm, MPI, Kubernetes.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.agent.processes import SRC, Process
from tests.failover.netns import Host as NetworkHost
from tests.failover.netns import Network, skip_unless_possible
from tests.waiting import wait_until

HERE = Path(__file__).parent
PYTHON = (sys.executable, "-I", "-S")
INSIDE = """
hostname "$1" && for file in hosts resolv.conf nsswitch.conf; do
    mount --bind "$2/$file" "/etc/$file" || exit 1
done && shift 2 && exec "$@"
"""
NO_DNS = "nameserver 127.0.0.254\noptions timeout:1 attempts:1\n"
REQUIRED = "RALLYPOINT_TEST_CLUSTERS"
"""Where it is 1, a program that is missing fails a test instead of skipping it."""
COMMAND_S = 60.0


class Host:
    """One host. `power_off` ends it for good."""

    def __init__(self, network: Network, plug: NetworkHost, folder: Path) -> None:
        self.name = plug.name
        self.address = plug.address
        self._network, self.plug, self._folder = network, plug, folder
        self._init: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"{self.name} ({self.address})"

    @property
    def socket(self) -> Path:
        """Where init.py listens."""
        return self._folder / "init"

    @property
    def _log(self) -> Path:
        return self._folder / "boot.log"

    def boot(self) -> None:
        """Start its first process; /etc/hosts and the like are in its folder."""
        namespaces = ("--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        # To a file: an `unshare` whose child was killed complains about it.
        with self._log.open("wb") as log:
            self._init = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{self.plug.namespace}", "--", "unshare"),
                    *(*namespaces, "--", "sh", "-c", INSIDE, "sh", self.name, str(self._folder)),
                    *(*PYTHON, str(HERE / "init.py"), str(self.socket)),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    def is_up(self) -> bool:
        assert self._init is not None
        assert self._init.poll() is None, f"{self} did not start: {self._log.read_text()}"
        return self.socket.exists()

    def command(self, *argv: str) -> list[str]:
        """The command that runs this one on the host."""
        return [*PYTHON, str(HERE / "enter.py"), str(self.socket), *argv]

    def pids(self, *words: str) -> list[int]:
        """Its processes whose command line has all of these words, as this machine numbers them."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.plug.namespace], capture_output=True, check=True
        )
        return [pid for pid in map(int, listed.stdout.split()) if set(words) <= _words(pid)]

    def pull_cable(self) -> None:
        """Packets from and to it are lost, silently."""
        self._network.part(self.plug)

    def plug_in(self) -> None:
        """The cables of all hosts are in again."""
        self._network.heal()

    def power_off(self) -> None:
        """No word from it any more; then all its processes are gone."""
        self.pull_cable()
        self.halt()

    def halt(self) -> None:
        """End all its processes. Their kernel still says so to their peers."""
        if self._init is not None:
            # The kernel lets PID 1 end only when all others of its namespace are gone, so
            # `unshare`, which waits for it, ends after them.
            for child in (
                Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
            ):
                os.kill(int(child), signal.SIGKILL)
            assert self._init.stdin is not None
            self._init.stdin.close()
            self._init.wait(COMMAND_S)
            self._init = None


class Hosts:
    """Hosts on one switch. `env` is the environment of the commands that run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.env = _environment(folder)
        self._network = Network()
        self._guard = _guard(self._network)
        self._processes: list[Process] = []
        self._of: dict[str, Host] = {}

    def boot(self, names: Sequence[str]) -> None:
        """Make these hosts, and wait until they are up. Call it once."""
        for name in names:
            (self.folder / name).mkdir()
            self._of[name] = Host(self._network, self._network.host(name), self.folder / name)
        for host in self:
            self._write_names(host)
            host.boot()
        wait_until(lambda: all(host.is_up() for host in self))

    @property
    def network_id(self) -> str:
        """What the names of its network namespaces begin with."""
        return self._network.id

    def __iter__(self) -> Iterator[Host]:
        return iter(self._of.values())

    def __getitem__(self, name: str) -> Host:
        return self._of[name]

    def run(self, host: str, *argv: str) -> str:
        """Run a short command to its end; its stdout. Fails the test if the command fails."""
        done = subprocess.run(
            self[host].command(*argv),
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_S,
        )
        said = f"{host}: `{shlex.join(argv)}` ended with {done.returncode}:\n{done.stderr}"
        assert done.returncode == 0, said
        return done.stdout

    def start(self, host: str, *argv: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a command, and read what it says. It ends with the hosts."""
        at = self[host]
        process = Process(at.command(*argv), {**self.env, **(env or {})}, self.folder, argv[0])
        self._processes.append(process)
        return process

    def rsh(self) -> str:
        """A program that takes ssh's place: `rsh HOST COMMAND...`."""
        program = self.folder / "rsh"
        enter = shlex.join([*PYTHON, str(HERE / "enter.py")])
        program.write_text(
            f'#!/bin/sh\nhost=$1\nshift\nexec {enter} --shell {self.folder}/"$host"/init "$@"\n'
        )
        program.chmod(0o755)
        return str(program)

    def close(self) -> None:
        """End all."""
        for host in self:
            host.halt()
        for process in self._processes:
            process.close()
        self._network.close()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(COMMAND_S)

    def _write_names(self, host: Host) -> None:
        """Every host knows every host by name, as on a well-kept cluster."""
        names = ["127.0.0.1 localhost", *(f"{each.address} {each.name}" for each in self)]
        folder = self.folder / host.name
        (folder / "hosts").write_text("\n".join(names) + "\n")
        (folder / "resolv.conf").write_text(NO_DNS)
        (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")


@contextlib.contextmanager
def hosts(folder: Path, names: Sequence[str]) -> Iterator[Hosts]:
    """Hosts that are gone at the end. Skips the test where none can be made."""
    skip_unless_possible()
    made = Hosts(folder)
    try:
        made.boot(names)
        yield made
    finally:
        made.close()


def need(programs: Mapping[str, str]) -> None:
    """Skip, with a notice, where a program (of this Debian package) is missing."""
    missing = {name: package for name, package in programs.items() if not shutil.which(name)}
    if missing:
        text = f"there is no {', '.join(missing)} here (Debian: {', '.join(missing.values())})"
        assert os.environ.get(REQUIRED) != "1", f"{text}, and {REQUIRED} is 1"
        pytest.skip(text)


def _environment(folder: Path) -> dict[str, str]:
    """A user's environment: the same home on all hosts, and `rallypoint` in PATH."""
    keep = ("LANG", "LC_ALL", "XDG_CACHE_HOME")
    kept = {name: os.environ[name] for name in keep if name in os.environ}
    home = folder / "home"
    home.mkdir()
    programs = Path(sys.executable).parent
    path = f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return kept | {"PATH": path, "HOME": str(home), "PYTHONPATH": str(SRC), "USER": "root"}


def _guard(network: Network) -> subprocess.Popen[bytes]:
    """Removes the networks when this process is killed. Hosts end by themselves then."""
    remove = 'while read -r _; do :; done; ip netns list | cut -d" " -f1 | grep "^$1-" | '
    remove += "while read -r name; do ip netns delete $name; done"
    return subprocess.Popen(
        ["sh", "-c", remove, "sh", network.id],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _words(pid: int) -> set[str]:
    """The command line, word by word; of a path the last part."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return set()
    return {word.rsplit("/", 1)[-1] for word in line.split("\0")}
