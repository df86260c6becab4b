"""The configuration of a coordinator: limits, tokens, how long things are kept."""

from __future__ import annotations

from typing import Final

import msgspec

from rallypoint import runtime
from rallypoint._version import __version__
from rallypoint.core.budget import BYTES_DEFAULT
from rallypoint.core.store import DEFAULT_LIMITS, StoreLimits
from rallypoint.core.values import NodeId, repr_without
from rallypoint.security.access import Certificates
from rallypoint.security.hashed import HashedToken

SOFTWARE: Final = f"rallypoint {__version__}"
"""The release of this coordinator, for nodes and people."""


class CoordinatorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one coordinator process. Durations in seconds, sizes in bytes.

    `token`: required from every peer; "" admits all peers. `more_tokens` are accepted as well.
    `hashed_tokens`: more of them, each with its roles and runs. `revoked_tokens`: the ids of tokens
    that count no more. `certificates`: of a PKI, by which it proves itself; `client_ca`: a file
    with the authorities of clients' certificates.
    `runs_max`, `sessions_max`: limits for the runs and connections of all accounts together.
    `token_runs_max`, `token_sessions_max`, `token_bytes_max`: the same for one token, and the
    memory of its runs; None: no limit.
    `new_runs_per_s`: how fast one account may begin runs, after a number at once. See
    core/quotas.py. `empty_run_keep_s`: how long a run without members is kept, unless it is closed;
    `unformed_run_keep_s`: the same for a run that never had a round, nor more than one node.
    `only_run`: the one run that an embedded coordinator admits; None admits any.
    `heartbeats_per_suspicion`: how many heartbeats a node sends within `suspect_after_s`.
    `strangers_max`: how many connections may be open without a token (without a request, if no
    token is required); more wait in the kernel. `attach_timeout_s`: a connection must attach within
    this time. `backlog_bytes_max`: how much may wait for one node that does not read. Above it the
    connection is closed, and the node resumes. Values that the store holds anyway do not count.
    `attach_grace_s`: how long the members of a run have to attach here after a takeover.
    `lease_ttl_s`: the ttl of this coordinator's lease; the lease contains it. `own_node`: the node
    that hosts this coordinator, which is named in the lease. Its messages do not prove that other
    nodes can reach this process. `token_origin`: where the token comes from (tokens.Origin); "" if
    it is not to be shown. `lease_token`: the same as `token`, if nodes without one may find it in
    the ledger; else "". `memory_bytes_max`: the memory for all peers together: see core/budget.py.
    `hosts`: names of this coordinator besides those of its machine, such as an endpoint's host. A
    coordinator without a token answers to no other name. `clock_host`: the host whose wall clock
    gives the times of day that are shown to people. `yield_after_s`: a coordinator that has heard
    no other node for this time resigns in favour of another candidate; None: never.
    """

    token: str = ""
    only_run: str | None = None
    runs_max: int = 10_000
    members_max: int = 100_000
    sessions_max: int = 200_000
    token_runs_max: int | None = None
    token_sessions_max: int | None = None
    token_bytes_max: int | None = None
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
    hashed_tokens: tuple[HashedToken, ...] = ()
    revoked_tokens: frozenset[str] = frozenset()
    revoked_by: dict[str, str] = {}
    certificates: Certificates | None = None
    client_ca: str | None = None
    clock_host: str = msgspec.field(default_factory=lambda: runtime.here().host_name)
    token_origin: str = ""

    def __repr__(self) -> str:
        hidden = (
            "token",
            "lease_token",
            "more_tokens",
            "hashed_tokens",
            "revoked_tokens",
            "revoked_by",
        )
        return repr_without(self, *hidden)
