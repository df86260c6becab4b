"""Frozen, validated settings, and the only reader of the environment.

Everything that a user can set has one entry in `SETTINGS`. An explicit argument wins over the
environment, that over what the launcher says, and that over the default.

    values.py       how the text of each setting is read
    table.py        every setting with its variable, default and help
    environment.py  the only reader of the environment
    launcher.py     what the launcher says, beside what the user says
    resolution.py   argument, environment, launcher or default
    credentials.py  tokens and passwords
    node.py, run.py, worker.py  the settings of a node, of a run, of a worker

Everything here must be quick to import: every command and every `import rallypoint` pays for it.
"""

from __future__ import annotations

from rallypoint.endpoints import DEFAULT_PORT, Endpoint, EndpointKind, parse_endpoint
from rallypoint.environments import NOTHING as NO_LAUNCHER
from rallypoint.environments import Found
from rallypoint.settings.credentials import (
    DRAW_A_TOKEN,
    TOKEN_BITS_MIN,
    TOKENS_MAX,
    Accepted,
    check_token,
    check_token_strength,
    etcd_password,
    is_folder,
    is_readable_by_others,
    resolve_accepted,
    resolve_token,
    resolve_tokens,
    token_bits,
)
from rallypoint.settings.environment import (
    WITHHELD_PREFIXES,
    Environ,
    check_platform,
    etcd_binary,
    home,
    process_environment,
    set_variables,
    shares_torch_store,
    unknown_variables,
    visible_gpus,
    withhold_secrets,
)
from rallypoint.settings.launcher import launched
from rallypoint.settings.node import (
    ATTACH_MARGIN_S,
    FOUND_PORTS,
    LABELS_BYTES_MAX,
    LABELS_MAX,
    LEASE_TTL_MAX_S,
    LEASE_TTL_MIN_S,
    LOST_ORPHAN_S,
    NEW_TOKEN,
    NodeSettings,
    attach_grace_s,
    certificates,
    certificates_for,
    certificates_of_command,
    check_certificates,
    check_duration_s,
    check_lease_ttl_s,
    check_own_token,
    check_stop_s,
    node_settings,
    with_ports,
)
from rallypoint.settings.resolution import Resolved, read, resolve
from rallypoint.settings.run import run_settings
from rallypoint.settings.table import SETTINGS, Setting, setting
from rallypoint.settings.values import (
    CANDIDATES_MAX,
    MEMORY_BYTES_MAX,
    SHARE_LINES_MAX,
    TOKEN_LENGTH_MAX,
    WORKERS_MAX,
    HangRule,
    NodeRange,
    PortRange,
    parse_duration_s,
    parse_nnodes,
    parse_port_range,
    parse_workers,
)
from rallypoint.settings.worker import WorkerChannel, worker_channel

__all__ = [
    "ATTACH_MARGIN_S",
    "CANDIDATES_MAX",
    "DEFAULT_PORT",
    "DRAW_A_TOKEN",
    "FOUND_PORTS",
    "LABELS_BYTES_MAX",
    "LABELS_MAX",
    "LEASE_TTL_MAX_S",
    "LEASE_TTL_MIN_S",
    "LOST_ORPHAN_S",
    "MEMORY_BYTES_MAX",
    "NEW_TOKEN",
    "NO_LAUNCHER",
    "SETTINGS",
    "SHARE_LINES_MAX",
    "TOKENS_MAX",
    "TOKEN_BITS_MIN",
    "TOKEN_LENGTH_MAX",
    "WITHHELD_PREFIXES",
    "WORKERS_MAX",
    "Accepted",
    "Endpoint",
    "EndpointKind",
    "Environ",
    "Found",
    "HangRule",
    "NodeRange",
    "NodeSettings",
    "PortRange",
    "Resolved",
    "Setting",
    "WorkerChannel",
    "attach_grace_s",
    "certificates",
    "certificates_for",
    "certificates_of_command",
    "check_certificates",
    "check_duration_s",
    "check_lease_ttl_s",
    "check_own_token",
    "check_platform",
    "check_stop_s",
    "check_token",
    "check_token_strength",
    "etcd_binary",
    "etcd_password",
    "home",
    "is_folder",
    "is_readable_by_others",
    "launched",
    "node_settings",
    "parse_duration_s",
    "parse_endpoint",
    "parse_nnodes",
    "parse_port_range",
    "parse_workers",
    "process_environment",
    "read",
    "resolve",
    "resolve_accepted",
    "resolve_token",
    "resolve_tokens",
    "run_settings",
    "set_variables",
    "setting",
    "shares_torch_store",
    "token_bits",
    "unknown_variables",
    "visible_gpus",
    "with_ports",
    "withhold_secrets",
    "worker_channel",
]
