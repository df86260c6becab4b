"""R8: which end of a connection proves that the node's process has ended."""

import pytest

from rallypoint.core import endings
from rallypoint.core.values import Address, ConnectionEnd

HERE = Address("10.0.0.7", 40_000)


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("10.0.0.7", "::ffff:10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("::1", "::1"),
        ("::1", "0:0:0:0:0:0:0:1"),
        ("2001:db8::a", "2001:DB8:0::A"),
        ("fe80::1%eth0", "fe80::1%3"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_the_same_address_in_two_spellings_is_direct(told: str, seen: str) -> None:
    assert endings.is_direct(Address(told, 40_000), Address(seen, 40_000))


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        (HERE, Address("10.0.0.7", 40_001)),  # a proxy that keeps the address
        (HERE, Address("10.0.0.8", 40_000)),  # an address translator that keeps the port
        (Address("::1", 40_000), Address("127.0.0.1", 40_000)),
        (Address("10.0.0.7", 0), Address("10.0.0.7", 0)),
        (Address("", 40_000), Address("", 40_000)),
        (Address("node7", 40_000), Address("node7", 40_000)),
        (None, HERE),
        (HERE, None),
        (None, None),
    ],
)
def test_a_connection_through_a_proxy_is_not_direct(
    told: Address | None, seen: Address | None
) -> None:
    assert not endings.is_direct(told, seen)


@pytest.mark.parametrize("end", ConnectionEnd)
@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize("has_stalled", [True, False])
def test_r8_only_a_direct_fin_without_a_stall_is_proof(
    end: ConnectionEnd, is_direct: bool, has_stalled: bool
) -> None:
    told = HERE if is_direct else Address("192.168.0.1", 40_000)
    judged = endings.judge(end, told=told, seen=HERE, has_stalled=has_stalled)
    proves = end is ConnectionEnd.FIN and is_direct and not has_stalled
    assert judged is (ConnectionEnd.PROCESS_ENDED if proves else end)
