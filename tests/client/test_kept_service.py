"""A service is kept until its clients have left, and no longer than the program and a limit."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rallypoint.client.kept_service import keep, keep_beside, wait_for_end
from rallypoint.client.peer_sockets import ServicePort

pytestmark = [pytest.mark.sockets]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists descriptors")

WITHIN_S = 60.0
"""For what takes milliseconds."""
PROGRAM = """
import os, socket, sys, threading, time
from rallypoint.client.kept_service import keep_beside
from rallypoint.client.peer_sockets import ServicePort

def say(*words):
    # In one piece: print writes the end of a line on its own, and another thread comes between.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

last_s, thread_s = map(float, sys.argv[1:])
server = socket.create_server(("127.0.0.1", 0))
service = ServicePort(server.getsockname()[1])
say(server.getsockname()[1])
client, _ = server.accept()

def serve():
    client.recv(1)
    say("the client has left")
    client.close()

def work():
    threading.main_thread().join()
    time.sleep(thread_s)
    say("the last thread has ended")

threading.Thread(target=serve, daemon=True).start()
threading.Thread(target=work).start()
keep_beside(service, lambda: say("the service has ended"), last_s)
"""


class Service:
    """What a library would serve: it accepts one client, and notes its end."""

    def __init__(self, stack: ExitStack) -> None:
        self.server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = ServicePort(self.server.getsockname()[1])
        self.client = stack.enter_context(socket.create_connection(self.server.getsockname()))
        self.accepted = stack.enter_context(self.server.accept()[0])
        self.has_ended = threading.Event()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@linux
def test_it_ends_when_its_last_client_has_left(stack: ExitStack) -> None:
    service = Service(stack)
    keep_beside(service.port, service.has_ended.set, 0.0)
    assert wait_for_end(0.1), "none is kept"
    assert not service.has_ended.is_set()
    service.accepted.close()
    assert service.has_ended.wait(WITHIN_S)
    wait_for_end(WITHIN_S)
    assert not wait_for_end(0.0), "it is still kept"


def test_where_nobody_sees_who_is_connected_it_is_kept_for_the_limit(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rallypoint.client.peer_sockets._DESCRIPTORS", tmp_path / "none")
    service = Service(stack)
    keep(service.port, service.has_ended.set, 0.1)
    assert service.has_ended.is_set()


@pytest.fixture
def program(stack: ExitStack, request: pytest.FixtureRequest) -> tuple[subprocess.Popen[str], int]:
    """A program that ends while a client is connected to its service; and the port."""
    argv = [sys.executable, "-c", PROGRAM, *map(str, request.param)]
    process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@linux
@pytest.mark.processes
@pytest.mark.parametrize("program", [(10 * WITHIN_S, 0.0)], indirect=True)
def test_a_program_that_ends_waits_for_the_clients(
    program: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = program
    assert process.stdout is not None
    with socket.create_connection(("127.0.0.1", port)):
        assert process.stdout.readline() == "the last thread has ended\n"
    output, _ = process.communicate(timeout=WITHIN_S)
    assert output == "the client has left\nthe service has ended\n"
    assert process.returncode == 0


@linux
@pytest.mark.processes
@pytest.mark.parametrize("program", [(0.0, 0.5)], indirect=True)
def test_after_the_limit_the_clients_are_cut(program: tuple[subprocess.Popen[str], int]) -> None:
    """The limit begins when the program's last thread has ended, which may not be the main one."""
    process, port = program
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S) as client:
        assert client.recv(1) == b"", "the connection is kept"
        output, _ = process.communicate(timeout=WITHIN_S)
    said = output.splitlines()
    assert said.index("the last thread has ended") < said.index("the service has ended")
    assert process.returncode == 0
