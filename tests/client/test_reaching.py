"""Whether rank 0's machine can be reached, though nothing listens there yet."""

from __future__ import annotations

import asyncio
import random
import socket
from pathlib import Path

import pytest

from rallypoint.client.bootstrap_port import reserve_port
from rallypoint.client.reaching import a_kernel_port, unreached
from rallypoint.core.values import Address
from rallypoint.settings import PortRange

pytestmark = pytest.mark.sockets


def test_a_reserved_port_is_reached_and_stays_reserved() -> None:
    with reserve_port() as reservation:
        address = Address("127.0.0.1", reservation.port)
        assert asyncio.run(unreached(address, 20)) is None
        reservation.hand_over()
        assert asyncio.run(unreached(address, 20)) is None
        with socket.create_server(("127.0.0.1", reservation.port)):
            assert asyncio.run(unreached(address, 20)) is None


def test_a_name_that_nobody_knows_is_said() -> None:
    address = Address("no-such-host.invalid", 1)
    found = asyncio.run(unreached(address, 20))
    assert found is not None
    assert found.address == address
    assert found.problem


def test_an_address_without_a_way_to_it_is_said_with_the_interface() -> None:
    async def never(*_: object) -> None:
        await asyncio.sleep(3600)

    async def scenario() -> None:
        asyncio.get_running_loop().sock_connect = never  # type: ignore[method-assign,assignment]
        found = await unreached(Address("127.0.0.1", 9), 0.1)
        assert found is not None
        assert (found.problem, found.interface) == ("no answer within 0.1 s", "lo")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("told", "ports", "found"),
    [
        ("32768\t60999\n", PortRange(29_400, 29_410), range(32_768, 61_000)),
        ("29400\t29411\n", PortRange(29_400, 29_410), range(29_411, 29_412)),
        ("29399\t29410\n", PortRange(29_400, 29_410), range(29_399, 29_400)),
        ("29402\t29408\n", PortRange(29_400, 29_410), range(0)),
        ("40000 40001\n", PortRange(1, 39_999), range(40_000, 40_002)),
        ("another system", PortRange(29_400, 29_410), range(0)),
    ],
)
def test_a_port_of_the_kernels_is_outside_of_the_range(
    tmp_path: Path, told: str, ports: PortRange, found: range
) -> None:
    chance, path = random.Random(1), tmp_path / "range"
    path.write_text(told)
    drawn = {a_kernel_port(ports, chance, str(path)) for _ in range(64)}
    assert drawn <= set(found) if found else drawn == {None}
    assert a_kernel_port(ports, chance, str(tmp_path / "none")) is None
