"""The connections that a library has opened are told from others, and only they are shut down."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from rallypoint.client.peer_sockets import PeerSockets

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
    host, port = server.getsockname()
    return f"{host}:{port}"


def test_only_connections_between_the_listed_ports_are_shut_down(stack: ExitStack) -> None:
    elsewhere = listening(stack)
    earlier = connected(stack, elsewhere)
    sockets = PeerSockets()
    own, peers = listening(stack), listening(stack)
    idle = stack.enter_context(socket.socket())
    foreign = connected(stack, elsewhere)
    accepted, dialled = connected(stack, own), connected(stack, peers)
    assert sorted(sockets.listening()) == sorted([text(own), text(peers)])
    # All ends are in this process, so each connection counts twice.
    assert sockets.keep([text(own), text(peers)]) == 4
    later = connected(stack, own)

    assert sockets.shut_down() >= 2  # the first end to be shut down may take the other with it
    assert [is_open(each) for each in (accepted, dialled)] == [False, False]
    assert [is_open(each) for each in (earlier, foreign, later)] == [True, True, True]
    assert idle.fileno() >= 0
    assert is_open(connected(stack, own)), "a listening socket was shut down"


def test_a_descriptor_that_is_used_again_is_another_socket(stack: ExitStack) -> None:
    sockets = PeerSockets()
    server = listening(stack)
    old = connected(stack, server)
    assert sockets.keep([text(server)]) == 2
    numbers = {each.fileno() for each in old}
    for each in old:
        each.close()
    new = connected(stack, server)
    assert {each.fileno() for each in new} == numbers
    assert sockets.shut_down() == 0
    assert is_open(new)


def test_where_the_system_lists_no_descriptors_nothing_is_shut_down(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr("rallypoint.client.peer_sockets._DESCRIPTORS", tmp_path / "none")
    sockets = PeerSockets()
    server = listening(stack)
    pair = connected(stack, server)
    assert (sockets.listening(), sockets.keep([text(server)]), sockets.shut_down()) == ([], 0, 0)
    assert is_open(pair)
