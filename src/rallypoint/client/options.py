"""The further options of `join`, with their types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict


class JoinOptions(TypedDict, total=False):
    """The further keyword arguments of `join`: the settings that `rallypoint env` lists.

    Durations are in seconds. A str is read like the value of a variable ("90s", "any").
    """

    # this node's own
    node_name: str | None
    node_index: int | str | None
    local_addr: str | None
    interface: str | None
    port_range: str | None
    token_file: str | None
    insecure: bool | str | None
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    host_coordinator: str | None
    join_timeout_s: float | str | None
    connect_timeout_s: float | str | None
    coordinator_silence_s: float | str | None
    coordinator_lost_after_s: float | str | None
    drain_timeout_s: float | str | None
    goodbye_timeout_s: float | str | None
    linger_s: float | str | None
    orphan_s: float | str | None
    etcd_password: str | None
    candidates: int | str | None
    lease_ttl_s: float | str | None
    attach_grace_s: float | str | None
    yield_after_s: float | str | None
    stop_s: float | str | None
    hang_timeout_s: float | str | None
    share_lines: int | str | None
    # why this machine is unfit for a round ("" or None: it is fit); or a command: see --check
    check: Callable[[], str | None] | str | None
    check_timeout_s: float | str | None
    # the run's, on which its nodes must agree
    nnodes: str | None
    expected_nodes: int | str | None
    max_restarts: int | str | None
    restart_window_s: float | str | None
    early_s: float | str | None
    same_failure: int | str | None
    no_restart_exit_codes: tuple[int, ...] | str | None
    max_restarts_per_node: int | str | None
    cooldown_s: float | str | None
    cooldown_max_s: float | str | None
    rank_policy: str | None
    last_call_s: float | str | None
    settle_s: float | str | None
    scale_up_delay_s: float | str | None
    reconnect_grace_s: float | str | None
    suspect_after_s: float | str | None
    probe_s: float | str | None
    lost_after_s: float | str | None
    mass_min: int | str | None
    mass_fraction: float | str | None
    mass_grace_s: float | str | None
