"""A real etcd by EtcdServer: where it listens, what it leaves behind, and what goes wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rallypoint.rendezvous.api import RendezvousConnectionError
from rallypoint.rendezvous.etcd_blocking import EtcdConnection
from rallypoint.rendezvous.etcd_server import EtcdServer, find_free_port, stop_etcd
from tests.ledger.etcd_processes import Program

pytestmark = pytest.mark.processes
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture
def named(etcd_program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program that servers are to start."""
    monkeypatch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", etcd_program.path)
    return etcd_program


@pytest.fixture
def server(named: Program) -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start(stderr=subprocess.DEVNULL)
    yield server
    server.stop()


def test_the_server_has_its_endpoint(server: EtcdServer, named: Program) -> None:
    assert server.get_host() == "localhost"
    assert server.get_port() > 0
    assert server.get_endpoint() == f"localhost:{server.get_port()}"
    client = server.get_client()
    assert client.version.startswith(named.release)
    client.write("key", "value")
    found = client.read("key")
    assert found is not None
    assert found.value == b"value"
    assert client.delete("key") == 1
    client.close()


def test_two_servers_do_not_meet(server: EtcdServer) -> None:
    other = EtcdServer()
    other.start(stderr=subprocess.DEVNULL)
    try:
        assert other.get_port() != server.get_port()
        one, two = server.get_client(), other.get_client()
        one.write("key", "value")
        assert two.read("key") is None
        one.close()
        two.close()
    finally:
        other.stop()


def test_a_stopped_server_leaves_nothing_behind(named: Program) -> None:
    server = EtcdServer()
    assert server.get_port() == -1
    with pytest.raises(RuntimeError, match="start"):
        server.get_client()
    server.start(stderr=subprocess.DEVNULL)
    folder = server._temporary_dir
    client = EtcdConnection("127.0.0.1", server.get_port(), read_timeout=3)
    assert client.read("key") is None
    assert folder is not None
    assert Path(folder).is_dir()
    with pytest.raises(RuntimeError, match="already"):
        server.start()
    server.stop()
    server.stop()
    assert not Path(folder).exists()
    with pytest.raises(RendezvousConnectionError, match="refused"):
        client.read("key")
    client.close()
    server.start(stderr=subprocess.DEVNULL)
    server.stop()


def test_a_given_folder_stays_with_its_data(named: Program, tmp_path: Path) -> None:
    for expected in (None, b"value"):
        server = EtcdServer(str(tmp_path / "data"))
        server.start(stderr=subprocess.DEVNULL)
        client = server.get_client()
        found = client.read("key")
        assert (found.value if found else None) == expected
        client.write("key", "value")
        client.close()
        server.stop()


def test_without_a_program_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCHELASTIC_ETCD_BINARY_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="TORCHELASTIC_ETCD_BINARY_PATH"):
        EtcdServer().start()


def test_the_path_is_searched_if_the_variable_names_no_file(
    etcd_program: Program,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "etcd").symlink_to(etcd_program.path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", str(tmp_path / "gone"))
    server = EtcdServer()
    server.start(stderr=subprocess.DEVNULL)
    server.stop()
    assert str(tmp_path / "gone") in caplog.text


def test_a_free_port_is_reserved_until_it_is_closed() -> None:
    held = find_free_port()
    address = held.getsockname()[:2]
    assert address[0] in ("127.0.0.1", "::1")
    with socket.socket(held.family) as other, pytest.raises(OSError, match="in use"):
        other.bind(address)
    held.close()
    with socket.socket(held.family) as other:
        other.bind(address)


class NoSockets:
    """Makes socket.socket refuse at one step, for some families."""

    def __init__(self, step: str, *families: int) -> None:
        self._step, self._families = step, families
        self.made: list[socket.socket] = []

    def __call__(self, family: int, kind: int) -> socket.socket:
        if self._step == "socket" and family in self._families:
            raise OSError(97, "Address family not supported by protocol")
        made = RefusingSocket(family, kind)
        made.refused = self._step if family in self._families else ""
        self.made.append(made)
        return made


class RefusingSocket(socket.socket):
    __slots__ = ("refused",)
    refused: str

    def bind(self, address: object) -> None:
        if self.refused == "bind":
            raise OSError(99, "Cannot assign requested address")
        super().bind(address)  # type: ignore[arg-type]

    def listen(self, backlog: int = 0, /) -> None:
        if self.refused == "listen":
            raise OSError(98, "Address already in use")
        super().listen(backlog)


BOTH = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
]


@pytest.mark.parametrize("step", ["socket", "bind", "listen"])
def test_without_one_address_family_the_other_is_used(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    sockets = NoSockets(step, socket.AF_INET6)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: BOTH)
    monkeypatch.setattr(socket, "socket", sockets)
    with find_free_port() as held:
        assert held.family == socket.AF_INET
        assert held.getsockname()[1] > 0
    assert all(made.fileno() == -1 for made in sockets.made)


@pytest.mark.parametrize("step", ["socket", "bind", "listen"])
@pytest.mark.parametrize("resolves", [True, False])
def test_without_any_socket_the_error_is_torchs(
    monkeypatch: pytest.MonkeyPatch, step: str, resolves: bool
) -> None:
    def look_up(*_: object, **__: object) -> object:
        if not resolves:
            raise socket.gaierror(-2, "Name or service not known")
        return BOTH

    sockets = NoSockets(step, socket.AF_INET, socket.AF_INET6)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "socket", sockets)
    with pytest.raises(RuntimeError, match="Failed to create a socket") as caught:
        find_free_port()
    assert caught.value.args == ("Failed to create a socket",)
    assert "127.0.0.1: " in caught.value.__notes__[0]
    assert "::1: " in caught.value.__notes__[0]
    assert all(made.fileno() == -1 for made in sockets.made)


PROGRAMS = {
    "etcd Version: 3.3.25": "3.4 or later is needed",
    "something else": "instead of etcd's version",
    "etcd Version: 3.5.0": "exit code 3",
}


@pytest.mark.parametrize("says", PROGRAMS)
def test_an_unusable_program_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str
) -> None:
    program = tmp_path / "etcd"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{says}" && exit 0\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", str(program))
    server = EtcdServer()
    with pytest.raises(RuntimeError, match=PROGRAMS[says]):
        server.start(timeout=5, num_retries=2)
    assert server._temporary_dir is None


def test_a_server_that_never_answers_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "etcd"
    pid_file = tmp_path / "pid"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "etcd Version: 3.5.0" && exit 0\n'
        f"echo $$ > {pid_file}\nexec sleep 100\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", str(program))
    with pytest.raises(TimeoutError, match="within 3 s"):
        EtcdServer().start(timeout=3, num_retries=1)  # long enough for it to write its pid
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_the_server_is_stopped_at_the_end_of_its_process(named: Program) -> None:
    program = (
        "import subprocess\n"
        "from rallypoint.rendezvous.etcd_server import EtcdServer\n"
        "server = EtcdServer()\n"
        "server.start(stderr=subprocess.DEVNULL)\n"
        "print(server._process.pid, server._temporary_dir)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    pid, folder = done.stdout.split()
    assert not Path(folder).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), signal.SIGCONT)


def test_a_forked_child_does_not_stop_the_server(server: EtcdServer) -> None:
    client = server.get_client()
    client.write("key", "parent")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            server.stop()
            found = client.read("key")  # by connections of its own
            client.write("key", "child")
            code = 0 if found is not None and found.value == b"parent" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    found = client.read("key")
    assert found is not None
    assert found.value == b"child"
    client.close()


def test_torchs_helpers_reserve_a_port_and_end_a_process(tmp_path: Path) -> None:
    with find_free_port() as held:
        port = held.getsockname()[1]
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(("127.0.0.1", port))
    folder = tmp_path / "data"
    folder.mkdir()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    stop_etcd(sleeper, str(folder))
    assert sleeper.returncode == -signal.SIGTERM
    assert not folder.exists()
    stop_etcd(sleeper)
