"""The warning before a certificate of the coordinator ends."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging

import pytest

from rallypoint.coordinator import certificate_end
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.security.authority import new_host_token
from tests.loops import run_clean, run_virtual, served, until

DAY_S = 86_400.0


@pytest.mark.parametrize(("valid", "warns"), [(2.0, True), (30.0, False)])
@pytest.mark.sockets
def test_only_one_that_ends_soon_is_told(
    valid: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    token = new_host_token(dt.timedelta(days=valid))

    async def main() -> None:
        async with served(CoordinatorConfig(token=token)) as (server, _):
            assert server.tallies.certificate_ends_at is not None
            if warns:
                await until(lambda: "the certificate of this coordinator ends" in caplog.text, "it")

    run_clean(main)
    assert ("the certificate of this coordinator ends" in caplog.text) is warns


def test_it_is_told_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    ends_at = [2.0]  # in 1970

    async def main() -> None:
        task = asyncio.create_task(certificate_end.warn(lambda: ends_at[0]))
        await asyncio.sleep(DAY_S)
        task.cancel()
        await asyncio.wait([task])

    with caplog.at_level(logging.WARNING):
        run_virtual(main())
    told = [each.getMessage() for each in caplog.records if "has ended at" in each.getMessage()]
    assert len(told) == 1  # All of it took no real time, and a line of this kind comes every 6 h.


def test_what_is_told() -> None:
    assert certificate_end.told(0.0, 1.0).startswith(
        "the certificate of this coordinator has ended at 1970-01-01 00:00 UTC"
    )
    assert "ends at 1970-01-02" in certificate_end.told(DAY_S, 1.0)
