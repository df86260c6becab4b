"""Listening sockets, free ports and name look-ups."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from rallypoint import net
from rallypoint.net import bind, bind_loopback
from tests.ports import free_port


@pytest.mark.sockets
def test_a_name_of_both_families_is_bound_if_one_is_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `localhost` in a container without IPv6."""
    absent = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))
    found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [absent, found])
    with bind("localhost", 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found, absent])
    with bind("localhost", 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [absent])
    with pytest.raises(OSError, match=r"[Cc]annot assign|not supported"):
        bind("localhost", 0)


@pytest.mark.sockets
def test_every_address_is_one_socket_of_both_families() -> None:
    with bind(None, 0) as sock:
        port = sock.getsockname()[1]
        for host in ("127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])):
            with socket.create_connection((host, port), timeout=60):
                pass


@pytest.mark.sockets
@pytest.mark.parametrize("number", net._ABSENT)
def test_without_ipv6_every_address_is_ipv4(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Switched(socket.socket):
        def __init__(self, family: int = -1, *more: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(number, "no IPv6")
            super().__init__(family, *more)

    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: True)
    monkeypatch.setattr(socket, "socket", Switched)
    for make in (bind(None, 0), net.reserve(0)):
        with make as sock:
            assert sock.getsockname()[0] == "0.0.0.0"


@pytest.mark.sockets
def test_loopback_binds_all_of_its_addresses_or_none() -> None:
    port = free_port()
    sockets = bind_loopback("127.0.0.3", port)
    hosts = [sock.getsockname()[0] for sock in sockets]
    for sock in sockets:
        sock.close()
    assert hosts[0] == "127.0.0.1"
    assert hosts[-1] == "127.0.0.3"
    with socket.create_server(("127.0.0.3", port)):
        with pytest.raises(OSError, match="in use"):
            bind_loopback("127.0.0.3", port)
        with bind("127.0.0.1", port):  # nothing of the first attempt is left
            pass


@pytest.mark.sockets
def test_a_taken_port_is_an_error_and_leaves_no_socket() -> None:
    with bind(None, 0) as sock, pytest.raises(OSError, match="in use") as caught:
        bind("127.0.0.1", sock.getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.sockets
def test_a_reserved_port_is_held_and_a_free_one_is_not() -> None:
    with net.reserve() as held, pytest.raises(OSError, match="in use"):
        bind("127.0.0.1", held.getsockname()[1])
    with bind(None, net.free_port()):
        pass


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("::1", "::1"),
        ("localhost", None),
        ("*", None),
        ("nobody.invalid", None),
        ("a" * 300, None),
    ],
)
def test_an_address_in_any_spelling(host: str, expected: str | None) -> None:
    assert net.numeric(host) == expected


def test_a_number_is_looked_up_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def hangs(*_: object, **__: object) -> list[object]:
            await asyncio.sleep(3600)
            return []

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", hangs)
        found = await net.look_up("127.0.0.1", 7, 60)
        assert [(each.host, each.scope, each.sockaddr[1]) for each in found] == [
            ("127.0.0.1", 0, 7)
        ]
        with pytest.raises(TimeoutError):
            await net.look_up("localhost", 7, 0.01)

    asyncio.run(main())


def test_the_scope_is_the_zone_of_an_ipv6_address() -> None:
    assert net.SocketAddress(socket.AF_INET6, ("fe80::1", 7, 0, 3)).scope == 3


def test_each_address_once() -> None:
    found = net.resolve("localhost", 7)
    assert len(found) == len({(each.family, each.sockaddr) for each in found}) >= 1
