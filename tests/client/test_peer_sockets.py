"""The connections that a library has opened are told from others, and only they are shut down."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from rallypoint.client.peer_sockets import PeerSockets, ServicePort

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lists descriptors"),
]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listening(stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0)))


def connected(stack: ExitStack, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A connection to it: the end that dialled, and that which accepted."""
    dialled = stack.enter_context(socket.create_connection(server.getsockname()))
    accepted, _ = server.accept()
    for each in (dialled, accepted):
        each.settimeout(60)
    return dialled, stack.enter_context(accepted)


def is_open(pair: tuple[socket.socket, socket.socket]) -> bool:
    try:
        pair[0].sendall(b"x")
        return pair[1].recv(1) == b"x"
    except OSError:
        return False


def text(server: socket.socket) -> str:
    host, port = server.getsockname()[:2]
    return f"{host}:{port}"


def test_only_connections_at_ports_of_the_library_are_shut_down(stack: ExitStack) -> None:
    elsewhere = listening(stack)
    earlier = connected(stack, elsewhere)
    sockets = PeerSockets()
    own, peers = listening(stack), listening(stack)
    idle = stack.enter_context(socket.socket())
    foreign = connected(stack, elsewhere)
    accepted = connected(stack, own)
    assert sorted(sockets.listening()) == sorted([text(own), text(peers)])
    assert sockets.shut_down() == 0, "no port is known yet"
    sockets.learn([text(own), text(peers)])
    dialled = connected(stack, peers)

    assert sockets.shut_down() >= 2  # the first end to be shut down may take the other with it
    assert [is_open(each) for each in (accepted, dialled)] == [False, False]
    assert [is_open(each) for each in (earlier, foreign)] == [True, True]
    assert idle.fileno() >= 0
    assert is_open(connected(stack, own)), "a listening socket was shut down"


def test_a_default_timeout_of_the_program_changes_no_socket(stack: ExitStack) -> None:
    """A library's blocking calls would fail with "Resource temporarily unavailable"."""
    server = listening(stack)
    pair = connected(stack, server)
    for each in pair:
        each.settimeout(None)
    stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
    socket.setdefaulttimeout(30)
    sockets = PeerSockets()
    own = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
    own.setblocking(True)
    assert sockets.listening() == [text(own)]
    sockets.shut_down()
    assert all(os.get_blocking(each.fileno()) for each in (own, *pair))


def test_each_worker_learns_the_ports_of_all(stack: ExitStack) -> None:
    class Told(dict[str, str]):
        set = dict.__setitem__

        def multi_get(self, keys: Sequence[str]) -> list[bytes]:
            return [self[each].encode() for each in keys]

    server = listening(stack)
    sockets = PeerSockets()  # here nothing listens since
    told = Told({"job/listening/1": json.dumps([text(server)])})
    sockets.meet(told, "job", 0, 2)
    assert told["job/listening/0"] == "[]"
    pair = connected(stack, server)
    assert sockets.shut_down() >= 1
    assert not is_open(pair)


def test_where_the_system_lists_no_descriptors_nothing_is_shut_down(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr("rallypoint.client.peer_sockets._DESCRIPTORS", tmp_path / "none")
    sockets = PeerSockets()
    server = listening(stack)
    pair = connected(stack, server)
    sockets.learn([text(server)])
    assert (sockets.listening(), sockets.shut_down()) == ([], 0)
    assert is_open(pair)


def test_only_what_the_library_dialled_at_the_service_is_hung_up(stack: ExitStack) -> None:
    server = listening(stack)
    port = server.getsockname()[1]
    elsewhere = stack.enter_context(socket.create_server(("127.0.0.2", port)))
    earlier = connected(stack, server)
    service = ServicePort(port)
    foreign = connected(stack, listening(stack))
    library = connected(stack, server)
    service.learn()
    later = connected(stack, elsewhere), connected(stack, server)

    service.hang_up()
    assert [is_open(each) for each in (earlier, foreign, library)] == [True, True, False]
    assert [is_open(each) for each in later] == [True, False], "the library may dial again"


def test_a_service_is_used_while_a_client_is_connected(stack: ExitStack) -> None:
    server = listening(stack)
    service = ServicePort(server.getsockname()[1])
    assert not service.is_used(), "it only listens"
    dialled, accepted = connected(stack, server)
    assert service.is_used()
    accepted.close()
    assert not service.is_used()
    dialled.close()

    pair = connected(stack, server)
    service.cut()
    assert not is_open(pair)
    assert is_open(connected(stack, server)), "a listening socket was shut down"
