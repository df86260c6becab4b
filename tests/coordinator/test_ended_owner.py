"""Whether an owner with several addresses has ended: what the addresses answer together."""

from __future__ import annotations

import pytest

from rallypoint import runtime
from rallypoint.coordinator.ended_owner import has_ended
from rallypoint.core.election import FORMAT, Lease, LeaseState, encode
from rallypoint.core.values import Address, EndedOwner
from rallypoint.ledger.contract import Swapped
from rallypoint.ledger.keys import lease_key
from rallypoint.ledger.memory import MemoryLedger
from tests.loops import run_virtual

ADDRESSES = tuple(Address(f"10.0.{number}.1", 29400) for number in range(3))


@pytest.mark.parametrize(
    ("answers", "own", "ended"),
    [
        ((True, True, True), (), True),
        ((True, None, None), (), True),
        ((None, True, None), (), True),
        ((True, False, True), (), False),
        ((None, None, None), (), False),
        ((False, None, None), (), False),
        # A bridge of guests, which this machine has as well, tells nothing.
        ((None, None, True), (2,), False),
        ((True, None, False), (2,), True),
        ((True, True, None), (0, 1, 2), True),
    ],
)
def test_an_owner_has_ended_if_an_address_refuses_and_none_accepts(
    monkeypatch: pytest.MonkeyPatch,
    answers: tuple[bool | None, ...],
    own: tuple[int, ...],
    ended: bool,
) -> None:
    async def refuses(self: object, address: Address, limit_s: float) -> bool | None:
        return answers[ADDRESSES.index(address)]

    async def is_own(self: object, host: str) -> bool:
        return any(ADDRESSES[each].host == host for each in own)

    monkeypatch.setattr(runtime.SystemRuntime, "refuses", refuses)
    monkeypatch.setattr(runtime.SystemRuntime, "is_own", is_own)

    async def main() -> None:
        ledger = MemoryLedger()
        lease = Lease(FORMAT, "process", 1, state=LeaseState.SERVING, addresses=ADDRESSES)
        written = await ledger.swap(lease_key("process"), None, encode(lease))
        assert isinstance(written, Swapped)
        owner = EndedOwner("process", written.version)
        assert await has_ended(ledger, owner) is ended
        for refused, answer in zip(ADDRESSES, answers, strict=True):
            told = EndedOwner("process", written.version, refused)
            tells = ADDRESSES.index(refused) not in own or len(own) == len(ADDRESSES)
            assert await has_ended(ledger, told) is (ended and tells and answer is True)

    run_virtual(main())
