"""Reads the status of a coordinator on this machine over HTTP, for scenarios."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import Any

from rallypoint.bench.processes import ANSWER_S, BenchError
from rallypoint.wire.api_paths import RUNS, run_path
from rallypoint.wire.headers import ONLY_OWN


def runs(port: int) -> list[dict[str, Any]]:
    """The runs of this coordinator, without those of others. Raises BenchError."""
    found: list[dict[str, Any]] = _get(port, RUNS, {ONLY_OWN: "1"})["runs"]
    return found


def members(port: int, run_id: str, token: str = "") -> list[dict[str, Any]]:
    """The members of one run that the answer lists. Raises BenchError."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    found: list[dict[str, Any]] = _get(port, run_path(run_id), headers)["members"]
    return found


def _get(port: int, path: str, headers: dict[str, str]) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", path, headers=headers)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException) as error:
            raise BenchError(f"the coordinator has stopped answering: {error}") from error
    return answer
