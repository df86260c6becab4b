"""What a worker of `rallypoint run` reads in its environment: its agent's socket, and its place."""

from __future__ import annotations

from typing import Final

import msgspec

from rallypoint.errors import UsageError
from rallypoint.settings.environment import Environ, variables
from rallypoint.settings.values import whole


class WorkerChannel(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker of `rallypoint run` needs: its agent's local socket, its rank and sizes."""

    agent: str
    secret: str
    run_id: str
    node: str
    round: int
    term: int
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    nodes: int

    def __repr__(self) -> str:
        return f"WorkerChannel({self.run_id!r}, round {self.round}, rank {self.rank})"


_WORKER_NUMBERS: Final = {
    "round": "RALLYPOINT_ROUND",
    "term": "RALLYPOINT_TERM",
    "rank": "RANK",
    "local_rank": "LOCAL_RANK",
    "world_size": "WORLD_SIZE",
    "local_world_size": "LOCAL_WORLD_SIZE",
    "node_rank": "GROUP_RANK",
    "nodes": "GROUP_WORLD_SIZE",
}
_OWN_LOCAL_RANK: Final = "RALLYPOINT_LOCAL_RANK"
AGENT_VARIABLE: Final = "RALLYPOINT_AGENT"
"""The address at which a worker reaches its agent."""
_WORKER_TEXTS: Final = {
    "agent": AGENT_VARIABLE,
    "secret": "RALLYPOINT_AGENT_SECRET",
    "run_id": "RALLYPOINT_RUN_ID",
    "node": "RALLYPOINT_NODE",
}


def worker_channel(environ: Environ | None = None) -> WorkerChannel | None:
    """How this worker reaches its agent; None if it was not started by `rallypoint run`.

    Raises UsageError if a variable of the agent is missing or was changed.
    """
    environment = variables(environ)
    if not environment.get("RALLYPOINT_AGENT"):
        return None
    texts = {name: _worker_text(environment, each) for name, each in _WORKER_TEXTS.items()}
    numbers = {name: _worker_number(environment, each) for name, each in _WORKER_NUMBERS.items()}
    # With --virtual-local-rank, LOCAL_RANK is 0 for all workers. Earlier agents set only that.
    if environment.get(_OWN_LOCAL_RANK):
        numbers["local_rank"] = _worker_number(environment, _OWN_LOCAL_RANK)
    for place, size in (("rank", "world_size"), ("local_rank", "local_world_size")):
        if numbers[place] >= numbers[size]:
            raise _worker_error(
                f"{_WORKER_NUMBERS[place]} is {numbers[place]} with "
                f"{_WORKER_NUMBERS[size]} {numbers[size]}"
            )
    return WorkerChannel(**texts, **numbers)  # type: ignore[arg-type]


def _worker_text(environment: Environ, variable: str) -> str:
    text = environment.get(variable)
    if not text:
        raise _worker_error(f"{variable} is not set")
    return text


def _worker_number(environment: Environ, variable: str) -> int:
    try:
        return whole(_worker_text(environment, variable))
    except UsageError:
        raise
    except ValueError as error:
        raise _worker_error(f"{variable} {error}") from None


def _worker_error(problem: str) -> UsageError:
    return UsageError(
        f"this process has RALLYPOINT_AGENT set as a worker of `rallypoint run`, but {problem}",
        hint="pass the agent's environment on unchanged, or unset RALLYPOINT_AGENT",
    )
