"""`rallypoint close` of a run that this coordinator does not own. Without connections."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request

from rallypoint.coordinator import actions_api
from rallypoint.coordinator.ledger_view import Kept
from rallypoint.core.values import CloseRecord
from tests.core.claimant import CLOSE, register
from tests.loops import run_virtual


@pytest.mark.parametrize("close", [CLOSE, None])
def test_r6_a_closed_run_stays_closed_though_nobody_owns_it(
    close: CloseRecord | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[str] = []

    async def look(_: str) -> Kept:
        return Kept(register(close=close), None)

    async def taken_over(_: Any, run_id: str) -> bool:
        claimed.append(run_id)
        return True

    monkeypatch.setattr(actions_api, "replicas_of", lambda _: SimpleNamespace(look=look))
    monkeypatch.setattr(actions_api, "taken_over", taken_over)
    request = make_mocked_request("POST", "/api/v1/runs/run/close")
    close_action = actions_api.ACTIONS[0]
    asking = actions_api.elsewhere(close_action, request, cast(Any, None), "run", b"")
    answer = run_virtual(asking)
    assert (answer is None) is (close is None)
    assert claimed == ([] if close else ["run"])
