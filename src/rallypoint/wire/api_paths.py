"""The paths of a coordinator's HTTP API, for both sides. Loads little: every command imports it."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from rallypoint.errors import UsageError

RUNS: Final = "/api/v1/runs"
"""The list of runs; GET."""
ME: Final = "/api/v1/me"
"""What the token of the request may do; GET."""
PAGE: Final = "/page/"
"""The beginning of the paths of the web page's files; GET."""
COORDINATORS: Final = "/api/v1/coordinators"
"""The leases of the coordinators in the ledger; GET."""


def run_path(run_id: str) -> str:
    """One run in detail; GET. Raises UsageError for an empty id, which is no part of a path."""
    if not run_id:
        raise UsageError("the id of the run is empty", hint="`rallypoint status` lists the runs")
    return f"{RUNS}/{quoted(run_id)}"


def action_path(run_id: str, action: str) -> str:
    """What an operator does to a run: close, scale, drain, evict, admit; POST."""
    return f"{run_path(run_id)}/{action}"


def events_path(run_id: str) -> str:
    """The events of a run; GET."""
    return f"{run_path(run_id)}/events"


def quoted(run_id: str) -> str:
    """A run id as a part of a path, or as a value in a query."""
    return quote(run_id, safe="")
