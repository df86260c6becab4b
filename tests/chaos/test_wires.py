"""Each trouble of the network does what it says, and is over when it is removed."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.ground import skip_unless_possible
from tests.chaos.wires import Trouble, Wires, wires
from tests.failover.netns import Host
from tests.waiting import wait_until

PORT = 7000
GIVES_UP_S = 1.0

pytestmark = [pytest.mark.processes, pytest.mark.sockets, pytest.mark.verify]


@pytest.fixture(scope="module")
def net() -> Iterator[Wires]:
    skip_unless_possible()
    with wires(1) as made, contextlib.ExitStack() as stack:
        for name in ("near", "far", "third"):
            stack.enter_context(echo(made.host(name)))
        yield made


@contextlib.contextmanager
def echo(host: Host) -> Iterator[None]:
    """A server there that answers each connection once."""
    with host.inside():
        server = socket.create_server(("0.0.0.0", PORT))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(connection.recv(1))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()


def ask(net: Wires, near: str, far: str) -> str:
    """What becomes of a call from one host to another: ok, silence or refused."""
    with net.by_name[near].inside():
        caller = socket.socket()
    with caller:
        caller.settimeout(GIVES_UP_S)
        try:
            caller.connect((net.by_name[far].address, PORT))
            caller.sendall(b"x")
            return "ok" if caller.recv(1) == b"x" else "closed"
        except TimeoutError:
            return "silence"
        except ConnectionError:
            return "refused"
        except OSError as error:
            # What the kernel makes of a neighbour that has been silent for three seconds.
            return "silence" if error.errno == errno.EHOSTUNREACH else str(error)


@pytest.mark.parametrize(
    ("kind", "near_to_far", "third_to_near"),
    [
        ("cut", "silence", "silence"),
        ("deafen", "silence", "silence"),
        ("mute", "silence", "silence"),
        ("reset", "refused", "refused"),
        ("down", "silence", "silence"),
    ],
)
def test_a_trouble_of_one_host(net: Wires, kind: str, near_to_far: str, third_to_near: str) -> None:
    trouble = Trouble(kind, ("near",))
    net.add(trouble)
    assert ask(net, "near", "far") == near_to_far
    assert ask(net, "third", "near") == third_to_near
    assert ask(net, "third", "far") == "ok"
    net.remove(trouble)
    wait_until(lambda: ask(net, "near", "far") == "ok")
    wait_until(lambda: ask(net, "third", "near") == "ok")


def test_a_deaf_host_is_still_heard_and_a_mute_one_still_hears(net: Wires) -> None:
    with net.by_name["near"].inside():
        near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with net.by_name["far"].inside():
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with near, far:
        for each, name in ((near, "near"), (far, "far")):
            each.bind((net.by_name[name].address, PORT))
            each.settimeout(GIVES_UP_S)
        to_far, to_near = ((net.by_name[name].address, PORT) for name in ("far", "near"))
        # Both know the other's hardware address, or even a datagram would need an answer.
        near.sendto(b"hello", to_far)
        assert far.recv(9) == b"hello"
        far.sendto(b"hello", to_near)
        assert near.recv(9) == b"hello"
        for kind, sender, receiver, to in (
            ("deafen", near, far, to_far),
            ("mute", far, near, to_near),
        ):
            trouble = Trouble(kind, ("near",))
            net.add(trouble)
            sender.sendto(b"one way", to)
            assert receiver.recv(9) == b"one way"
            other, back = (far, to_near) if kind == "deafen" else (near, to_far)
            with contextlib.suppress(PermissionError):  # the kernel may tell a mute sender
                other.sendto(b"lost", back)
            with pytest.raises(TimeoutError):
                (near if kind == "deafen" else far).recv(9)
            net.remove(trouble)


def test_hosts_that_are_cut_off_together_reach_each_other(net: Wires) -> None:
    trouble = Trouble("cut", ("near", "far"))
    net.add(trouble)
    assert ask(net, "near", "third") == "silence"
    wait_until(lambda: ask(net, "near", "far") == "ok")
    net.remove(trouble)
    wait_until(lambda: ask(net, "near", "third") == "ok")


def test_a_slow_line_takes_its_time(net: Wires) -> None:
    trouble = Trouble("slow", ("near",), 0.1)
    net.add(trouble)
    wait_until(lambda: ask(net, "near", "far") == "ok")
    began_s = time.monotonic()
    assert ask(net, "near", "far") == "ok"
    # Two packets to and two back, each by half of the delay at least.
    assert time.monotonic() - began_s >= 4 * 0.05
    net.remove(trouble)
    wait_until(lambda: ask(net, "near", "far") == "ok")


def test_a_line_that_loses_everything_is_silent(net: Wires) -> None:
    trouble = Trouble("lossy", ("near",), 1.0)
    net.add(trouble)
    assert ask(net, "near", "far") == "silence"
    net.remove(trouble)
    wait_until(lambda: ask(net, "near", "far") == "ok")


def test_troubles_add_up(net: Wires) -> None:
    first, second = Trouble("deafen", ("near",)), Trouble("cut", ("far", "near"))
    net.add(first)
    net.add(second)
    net.remove(second)
    assert ask(net, "far", "near") == "silence"
    net.remove(first)
    wait_until(lambda: ask(net, "far", "near") == "ok")
