"""What a coordinator is told when it starts: limits, and whom it admits."""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from rallypoint._version import __version__
from rallypoint.core.budget import BYTES_DEFAULT
from rallypoint.core.store import DEFAULT_LIMITS, StoreLimits
from rallypoint.core.values import NodeId, repr_without

SOFTWARE: Final = f"rallypoint {__version__}"
"""What nodes and people are told of the release of this coordinator."""


class CoordinatorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one coordinator process. Durations in seconds, sizes in bytes.

    `token`: what is asked for; "" lets everybody in. `more_tokens` are accepted beside it.
    `runs_max`, `sessions_max`: runs and connections, of all accounts together. `new_runs_per_s`:
    how fast one account may begin runs, once it has begun many. See core/quotas.py.
    `empty_run_keep_s`: how long a run is kept that nobody is in, unless it is closed;
    `unformed_run_keep_s`: the same if it never had a round, nor more than one node.
    `only_run`: the one run that an embedded coordinator admits; None admits any.
    `heartbeats_per_suspicion`: how often a node is heard, at least, before its silence counts.
    `strangers_max`: how many connections may be open that have not shown a token (where there is
    one, else: have made no request); more wait until some of them have, or their time is over.
    `attach_timeout_s`: how long a connection may take to say who it is.
    `backlog_bytes_max`: what may wait to be sent to one node that does not read; beyond it the
    connection is dropped, and the node resumes. Large answers count with what the store does not
    hold of them, which is little.
    `attach_grace_s`: how long the members of a run that was taken over have to attach here.
    `lease_ttl_s`: how long this coordinator's lease may stand still; the lease says it.
    `own_node`: the node that hosts this coordinator; it proves nothing by reaching it. The lease
    names it.
    `token_origin`: whose the token is, in a word (tokens.Origin); "" where that is not told.
    `lease_token`: the same as `token`, if nodes that have none may find it in the ledger; else "".
    `memory_bytes_max`: what is kept for all peers together: see core/budget.py.
    `hosts`: names of this coordinator beside those of its machine, such as an endpoint's host. One
    without a token answers to no other name.
    `clock_host`: whose wall clock the times of day are that people are shown.
    `yield_after_s`: after how long a coordinator that hears no other node lets another that stands
    by try; None: never.
    """

    token: str = ""
    only_run: str | None = None
    runs_max: int = 10_000
    members_max: int = 100_000
    sessions_max: int = 200_000
    strangers_max: int = 512
    attach_timeout_s: float = 10.0
    backlog_bytes_max: int = 16 * 1024**2
    heartbeats_per_suspicion: int = 3
    closed_run_keep_s: float = 3_600.0
    empty_run_keep_s: float = 600.0
    unformed_run_keep_s: float = 10.0
    new_runs_per_s: float = 100.0
    rounds_remembered: int = 50
    store_limits: StoreLimits = DEFAULT_LIMITS
    memory_bytes_max: int = BYTES_DEFAULT
    attach_grace_s: float = 15.0
    lease_ttl_s: float = 5.0
    yield_after_s: float | None = None
    lease_token: str = ""
    own_node: NodeId | None = None
    hosts: tuple[str, ...] = ()
    more_tokens: tuple[str, ...] = ()
    clock_host: str = msgspec.field(default_factory=socket.gethostname)
    token_origin: str = ""

    def __repr__(self) -> str:
        return repr_without(self, "token", "lease_token", "more_tokens")
