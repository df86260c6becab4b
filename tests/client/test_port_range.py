"""`port_range`: coordinators take the first free port, rank 0 one from the end, and no other."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from rallypoint import errors, settings
from rallypoint.client import port_range
from rallypoint.client.bootstrap_port import reserve_for_rank_0, reserve_port
from rallypoint.client.port_range import PortsTakenError, holder, reserve_in, serve_in
from rallypoint.core.values import RunSettings
from rallypoint.settings import PortRange, parse_endpoint, with_ports
from tests.loops import BOOTSTRAP, node, opened, run_clean, until
from tests.ports import free_port

pytestmark = pytest.mark.sockets
linux = pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's /proc")

ONE = RunSettings(min_nodes=1, max_nodes=2, max_restarts=None, last_call_s=0.1)


def held_by_others(*ports: int):
    """A bind that finds these ports taken, and returns the others."""

    def bind(port: int) -> int:
        if port in ports:
            raise OSError(98, "Address already in use")
        return port

    return bind


@pytest.mark.parametrize(
    ("taken", "last", "port"),
    [
        ((), None, 30003),
        ((30003, 30002), None, 30001),
        ((), 30003, 30002),
        ((30002,), 30003, 30001),
        ((), 30000, 30003),
        ((30001, 30002, 30003), 30000, 30000),
        ((), 40000, 30003),
    ],
)
def test_rank_0_gets_the_next_free_port_from_the_end(
    taken: tuple[int, ...], last: int | None, port: int
) -> None:
    assert reserve_in(PortRange(30000, 30003), held_by_others(*taken), last) == port


def test_a_coordinator_gets_the_first_free_port() -> None:
    async def serve(port: int) -> int:
        return held_by_others(30000, 30001)(port)

    assert asyncio.run(serve_in(PortRange(30000, 30003), serve)) == 30002


def test_another_error_than_a_port_that_is_taken_is_passed_on() -> None:
    def bind(port: int) -> int:
        raise OSError(24, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        reserve_in(PortRange(30000, 30003), bind, None)


@linux
def test_the_holders_of_ports_are_named() -> None:
    own = f"{Path('/proc/self/comm').read_text().strip()}, pid {os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as listens, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        assert holder(listens.getsockname()[1]) == own
        assert holder(silent.getsockname()[1]) == "a process that does not listen yet"
        port = listens.getsockname()[1]
        assert port_range.holders(range(port, port + 20)).endswith("; and 12 more")


def test_a_range_that_is_used_up_is_named_with_its_holders() -> None:
    first = free_port()
    with (
        socket.create_server(("0.0.0.0", first)),
        pytest.raises(errors.LaunchError) as caught,
    ):
        reserve_for_rank_0(PortRange(first, first), None)
    assert f"port {first} is taken on this machine ({first}: " in caught.value.message
    assert "--port-range A:B" in caught.value.hint
    ends = PortsTakenError(PortRange(1, 2), "1: x; 2: y").strerror
    assert ends == "ports 1:2 are all taken on this machine (1: x; 2: y)"


def test_a_candidate_listens_in_the_range(tmp_path: Path) -> None:
    async def main() -> None:
        first = free_port()
        ports = PortRange(first, first + 3)
        where = f"file://{tmp_path}/ledger"
        with socket.create_server(("0.0.0.0", first)):
            async with opened(where, ONE, port_range=ports, local_addr="127.0.0.1") as found:
                assert await found.next_round(BOOTSTRAP)
                assert found.hosted is not None
                assert found.hosted.advertised[0].port == first + 1

    run_clean(main)


def test_a_candidate_without_a_free_port_names_the_range(tmp_path: Path) -> None:
    async def main() -> None:
        first = free_port()
        where = f"file://{tmp_path}/ledger"
        ports = PortRange(first, first)
        with (
            socket.create_server(("0.0.0.0", first)),
            pytest.raises(errors.UnreachableError) as caught,
        ):
            await node(
                where, ONE, local_addr="127.0.0.1", port_range=ports, connect_timeout_s=1.0
            ).open()
        assert f"(hosting a coordinator here: port {first} is taken on this machine (" in (
            caught.value.message
        )
        assert caught.value.hint.startswith("--port-range A:B (RALLYPOINT_PORT_RANGE) gives other")

    run_clean(main)


def test_a_candidate_without_a_free_port_says_so_while_it_waits(tmp_path: Path) -> None:
    async def main() -> None:
        first = free_port()
        ports = PortRange(first, first)
        where = f"file://{tmp_path}/ledger"
        with socket.create_server(("0.0.0.0", first)):
            coming = node(where, ONE, local_addr="127.0.0.1", port_range=ports)
            task = asyncio.create_task(coming.open())
            why = f"this node cannot host it: port {first} is taken on this machine ("
            await until(lambda: why in coming.looking, "the reason is not told")
            assert coming.looking.endswith("; see --port-range")
            task.cancel()
            await asyncio.wait({task})

    run_clean(main)


@linux
def test_what_holds_all_ports_is_told_only_if_something_listens_at_each() -> None:
    first = free_port()
    with socket.create_server(("127.0.0.1", first)), socket.socket() as bound:
        held = port_range.all_held([first])
        assert held == f"{first}: {holder(first)}"
        bound.bind(("127.0.0.1", 0))
        assert port_range.all_held([first, bound.getsockname()[1]]) == ""
    assert port_range.all_held([]) == ""


def test_the_range_is_for_an_endpoint_without_a_port() -> None:
    ports = PortRange(30000, 30003)
    resolved = {
        text: settings.Resolved("endpoint", parse_endpoint(text), source)
        for text, source in (
            ("n1,n2", "argument"),
            ("n1:5", "argument"),
            ("n3", "launcher Slurm: SLURM_STEP_NODELIST"),
            ("http://n1", "argument"),
        )
    }
    found = {text: with_ports(each, ports) for text, each in resolved.items()}
    shown = {text: (str(each.hosts[0]), each.spare_ports) for text, each in found.items()}
    assert shown == {
        "n1,n2": ("n1:30000", 3),
        "n1:5": ("n1:5", 0),
        "n3": ("n3:30000", 3),
        "http://n1": ("n1:29400", 0),
    }
    alone = {text: with_ports(each, None) for text, each in resolved.items()}
    assert alone["n1,n2"].spare_ports == 0
    assert (alone["n3"].port, alone["n3"].spare_ports) == (29400, 15)


def test_settings_have_the_range_in_the_endpoint() -> None:
    found = settings.node_settings(
        environ={}, endpoint="n1", run_id="r", port_range="30000:30003", node_name="a"
    )
    assert found.port_range == PortRange(30000, 30003)
    assert (found.endpoint.port, found.endpoint.spare_ports) == (30000, 3)


@linux
def test_a_reserved_port_is_held_from_others() -> None:
    with reserve_port() as one, pytest.raises(errors.LaunchError, match="is taken"):
        reserve_for_rank_0(PortRange(one.port, one.port), one.port)
