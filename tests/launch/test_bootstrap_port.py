from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import socket
import struct
import subprocess
import sys

import pytest

from rallypoint.client.bootstrap_port import reserve_port

pytestmark = pytest.mark.sockets

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can hold a port so")
has_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)

# Takes the port over as rank 0 does, and speaks to itself through it.
TCP_STORE = """
import sys, datetime
from torch.distributed import TCPStore
timeout = datetime.timedelta(seconds=60)
store = TCPStore("127.0.0.1", int(sys.argv[1]), 1, True, timeout, wait_for_workers=False)
store.set("key", "value")
assert store.get("key") == b"value"
print("served")
"""


@linux
@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_a_server_takes_the_port_over(host: str) -> None:
    reservation = reserve_port()
    reservation.hand_over()
    with socket.create_server((host, reservation.port)) as server:
        reservation.close()  # the listener is still there
        with socket.create_connection(("127.0.0.1", reservation.port)) as client:
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(b"x")
            assert client.recv(1) == b"x"


@linux
@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_a_server_of_both_families_takes_the_port_over() -> None:
    with reserve_port() as reservation:
        reservation.hand_over()
        address = ("::", reservation.port)
        with socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True):
            for host in ("127.0.0.1", "::1"):
                socket.create_connection((host, reservation.port)).close()


@linux
@pytest.mark.processes
@has_torch
def test_torchs_store_takes_the_port_over() -> None:
    with reserve_port() as reservation:
        reservation.hand_over()
        done = subprocess.run(
            [sys.executable, "-c", TCP_STORE, str(reservation.port)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr


@linux
@pytest.mark.parametrize("host", ["", "127.0.0.1"])
@pytest.mark.parametrize("is_handed_over", [False, True])
def test_a_plain_bind_is_refused(host: str, is_handed_over: bool) -> None:
    taken = pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE))
    with reserve_port() as reservation, socket.socket() as other, taken:
        if is_handed_over:
            reservation.hand_over()
        other.bind((host, reservation.port))


@linux
@pytest.mark.parametrize("options", [("SO_REUSEADDR",), ("SO_REUSEADDR", "SO_REUSEPORT")])
@pytest.mark.parametrize("host", ["", "127.0.0.1", "127.0.0.9", "::", "::1"])
def test_until_the_handover_no_process_can_bind_the_port(
    options: tuple[str, ...], host: str
) -> None:
    """Whatever the other sets: Linux compares users only where both set SO_REUSEPORT."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if family is socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    taken = pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE))
    with reserve_port() as reservation, socket.socket(family) as other:
        for each in options:
            other.setsockopt(socket.SOL_SOCKET, getattr(socket, each), 1)
        with taken:
            other.bind((host, reservation.port))
        reservation.hand_over()
        other.bind((host, reservation.port))
        other.listen()
        with taken, socket.socket(family) as third:
            third.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            third.bind((host, reservation.port))


@linux
@pytest.mark.parametrize("reuse", [0, 1])
@pytest.mark.parametrize("host", ["", "127.0.0.1"])
@pytest.mark.parametrize("is_handed_over", [False, True])
def test_the_kernel_never_assigns_the_port(host: str, reuse: int, is_handed_over: bool) -> None:
    with reserve_port() as reservation, contextlib.ExitStack() as opened:
        if is_handed_over:
            reservation.hand_over()
        for _ in range(300):
            other = opened.enter_context(socket.socket())
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            other.bind((host, 0))
            assert other.getsockname()[1] != reservation.port
        other = opened.enter_context(socket.socket())
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        if _offer_only(other, reservation.port):  # as if every other port were taken
            with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
                other.bind((host, 0))


@linux
@pytest.mark.parametrize("is_handed_over", [False, True])
def test_no_outgoing_connection_takes_the_port(is_handed_over: bool) -> None:
    with (
        reserve_port() as reservation,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket() as client,
    ):
        if is_handed_over:
            reservation.hand_over()
        if not _offer_only(client, reservation.port):
            pytest.skip("this kernel cannot be told which ports to choose from")
        with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
            client.connect(server.getsockname())


def _offer_only(sock: socket.socket, port: int) -> bool:
    """Lets the kernel choose no other port for this socket; False before Linux 6.3."""
    ip_local_port_range = 51
    try:
        sock.setsockopt(socket.IPPROTO_IP, ip_local_port_range, struct.pack("I", port | port << 16))
    except OSError:
        return False
    return True


def test_reservations_differ_and_a_closed_one_is_free() -> None:
    first, second = reserve_port(), reserve_port()
    assert first.port != second.port
    second.close()
    first.close()
    first.close()  # again: nothing happens
    with socket.socket() as other:
        other.bind(("", first.port))


@linux
def test_a_port_that_somebody_listens_on_is_refused() -> None:
    taken = pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE))
    with socket.create_server(("127.0.0.1", 0)) as server, taken:
        reserve_port(server.getsockname()[1])


def test_without_ipv6_the_port_is_bound_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with reserve_port() as reservation:
        assert reservation.port > 0


@linux
def test_the_port_is_not_inherited() -> None:
    with reserve_port() as reservation:
        assert reservation._socket is not None
        assert not reservation._socket.get_inheritable()
