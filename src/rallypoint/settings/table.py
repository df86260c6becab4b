"""Every setting: its name, its variable, how its text is read, its default and its help.

Where a value comes from is in resolution.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from rallypoint.core.ranks import POLICIES
from rallypoint.core.values import RUN_OPTIONS, RunSettings
from rallypoint.endpoints import Endpoint, EndpointKind, parse_endpoint
from rallypoint.errors import UsageError
from rallypoint.settings.values import (
    NodeRange,
    one_of,
    parse_address,
    parse_at_least_one,
    parse_candidates,
    parse_check,
    parse_duration_s,
    parse_exit_codes,
    parse_fraction,
    parse_hang,
    parse_interface,
    parse_memory,
    parse_name,
    parse_nnodes,
    parse_node_index,
    parse_orphan,
    parse_password,
    parse_path,
    parse_port_range,
    parse_restarts,
    parse_run_id,
    parse_same_failure,
    parse_share_lines,
    parse_stop_s,
    parse_token,
    parse_workers,
    parse_yes_no,
    shortened,
    whole,
)


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be set. `parse` turns text into its value, or raises ValueError."""

    name: str
    variable: str
    parse: Callable[[str], Any]
    default: Any
    help: str

    @property
    def secret(self) -> bool:
        """Whether its value must never be shown."""
        return self.name in SECRETS

    @property
    def is_expert(self) -> bool:
        """Whether few users need it, so that `rallypoint env` shows it only if it is set."""
        return self.name not in USUAL

    @property
    def option(self) -> str:
        """The option of `rallypoint run` that sets it."""
        if self.name in RUN_OPTIONS:
            return RUN_OPTIONS[self.name]
        stem = self.name.removesuffix("_s")
        return f"--{stem.replace('_', '-')}" if stem in _NODE_OPTIONS else f"--set {stem}=..."


_NODE_OPTIONS: Final = frozenset(
    {
        *("nnodes", "nproc_per_node", "endpoint", "run_id", "node_name", "local_addr"),
        *("interface", "port_range", "host_coordinator", "token_file", "insecure"),
        *("tls_ca", "tls_cert", "tls_key", "join_timeout", "stop_timeout", "drain_timeout"),
        *("regroup_stop_timeout", "check", "check_timeout", "hang", "hang_timeout"),
        *("log_dir", "log_format", "share_lines"),
    }
)
"""Settings that have an option of their own, besides those in RUN_OPTIONS."""
SECRETS: Final = ("token", "etcd_password")
USUAL: Final = frozenset(
    {
        *("endpoint", "run_id", "nnodes", "nproc_per_node", "node_name", "host_coordinator"),
        *("local_addr", "interface", "port_range", "token_file", "token", "insecure"),
        *("tls_ca", "tls_cert", "tls_key", "join_timeout_s", "stop_timeout_s", "last_call_s"),
        *("max_restarts", "lost_after_s", "rank_policy", "log_dir", "log_format", "memory"),
    }
)
"""The settings that most users may need."""


def _setting(name: str, parse: Callable[[str], Any], default: Any, help: str) -> Setting:
    variable = f"RALLYPOINT_{name.removesuffix('_s').upper()}"
    return Setting(name=name, variable=variable, parse=parse, default=default, help=help)


_RUN_DEFAULTS: Final = RunSettings()


def _run_setting(name: str, parse: Callable[[str], Any], help: str) -> Setting:
    """A setting of the run itself, whose default is in core."""
    return _setting(name, parse, getattr(_RUN_DEFAULTS, name), help)


SETTINGS: Final = (
    _setting(
        "endpoint",
        parse_endpoint,
        Endpoint(EndpointKind.LOCAL),
        "where the nodes meet: HOST:PORT,..., http(s)://HOST:PORT, etcd://HOST:PORT,... or "
        "file:///FOLDER",
    ),
    # No default: two jobs with the same default would meet each other at a shared coordinator. Only
    # a run that no other process can reach gets a random name.
    _setting("run_id", parse_run_id, None, "the run's name; required with an endpoint"),
    _setting(
        "nnodes",
        parse_nnodes,
        NodeRange(_RUN_DEFAULTS.min_nodes, _RUN_DEFAULTS.max_nodes),
        "how many nodes: N or MIN:MAX",
    ),
    _run_setting("expected_nodes", whole, "how many nodes were started, if known"),
    _setting("nproc_per_node", parse_workers, 1, "workers on this node: N, auto, gpu or cpu"),
    _setting(
        "node_name", parse_name, None, "this node's name; made from host and process if unset"
    ),
    _setting(
        "node_index",
        parse_node_index,
        None,
        "this node's place among those that were started, from 0 on; for the rank policy index",
    ),
    _setting("local_addr", parse_address, None, "the address at which other nodes reach this one"),
    _setting(
        "interface",
        parse_interface,
        None,
        "the interface or the network, as NAME or CIDR, by which other nodes reach this one",
    ),
    _setting(
        "port_range",
        parse_port_range,
        None,
        "the ports A:B for this node's coordinator and for rank 0; if unset, the endpoint's port, "
        "or any",
    ),
    _setting("token_file", parse_path, None, "a file whose first line is the coordinator's token"),
    _setting("token", parse_token, "", "the coordinator's token; a file is safer"),
    _setting(
        "tls_ca",
        parse_path,
        None,
        "whose certificates to trust in place of the token's authority: a PEM file, or `system`",
    ),
    _setting("tls_cert", parse_path, None, "a PEM file with this process's own certificate"),
    _setting("tls_key", parse_path, None, "its private key; if unset, it is in the same file"),
    _setting(
        "client_ca",
        parse_path,
        None,
        "for `rallypoint serve`: a PEM file with the authorities of clients' certificates",
    ),
    _setting(
        "insecure",
        parse_yes_no,
        False,
        "whether a node at HOST:PORT uses no token if none is given: everybody can join",
    ),
    _setting(
        "host_coordinator",
        one_of("auto", "yes", "no"),
        "auto",
        "whether this node hosts the coordinator: auto, yes or no",
    ),
    _setting("join_timeout_s", parse_duration_s, 600.0, "how long to wait for a round"),
    _setting(
        "connect_timeout_s",
        parse_duration_s,
        60.0,
        "how long to try an endpoint where nothing answers",
    ),
    _setting(
        "coordinator_silence_s",
        parse_duration_s,
        6.0,
        "silence after which a node reconnects to the coordinator",
    ),
    _setting(
        "coordinator_lost_after_s",
        parse_duration_s,
        60.0,
        "how long a node without running workers looks for a lost coordinator",
    ),
    _setting(
        "drain_timeout_s",
        parse_duration_s,
        20.0,
        "how long a node that is to leave may take to agree on a last step with the others",
    ),
    _setting("goodbye_timeout_s", parse_duration_s, 5.0, "how long a goodbye may take"),
    _setting(
        "linger_s",
        parse_duration_s,
        30.0,
        "how long a node that hosts the coordinator waits for the others at the end",
    ),
    _setting(
        "orphan_s",
        parse_orphan,
        None,
        "how long workers run without a coordinator before they are stopped, or never; "
        "if unset, 10 min after the run is known to be lost",
    ),
    _setting("etcd_password", parse_password, "", "the password of an etcd endpoint's user"),
    _setting(
        "candidates",
        parse_candidates,
        3,
        "about how many nodes are candidates at once where a ledger elects a coordinator",
    ),
    _setting(
        "lease_ttl_s",
        parse_duration_s,
        5.0,
        "the length of the lease of an elected coordinator",
    ),
    _setting(
        "attach_grace_s",
        parse_duration_s,
        None,
        "how long a new coordinator waits for the nodes of its predecessor; "
        "if unset, 7 s and 4/3 of coordinator_silence",
    ),
    _setting(
        "yield_after_s",
        parse_duration_s,
        10.0,
        "after how long an elected coordinator that no node reaches resigns",
    ),
    _setting(
        "closed_run_keep_s",
        parse_duration_s,
        3_600.0,
        "how long `serve` keeps a closed run, in its ledger too",
    ),
    _setting(
        "memory",
        parse_memory,
        None,
        "how much memory a coordinator uses for all its runs; if unset, half of the memory of its "
        "cgroup or machine, and inside a node at most 1 GiB",
    ),
    _setting(
        "runs_max",
        parse_at_least_one,
        10_000,
        "how many runs `serve` keeps; the last eighth is for addresses that have few",
    ),
    _setting(
        "sessions_max",
        parse_at_least_one,
        200_000,
        "how many connections of nodes `serve` accepts, if its limit on open files allows; the "
        "last eighth is for addresses that have few",
    ),
    _setting(
        "token_runs_max",
        parse_at_least_one,
        None,
        "how many runs of one token `serve` keeps; if unset, all of runs_max but an eighth",
    ),
    _setting(
        "token_sessions_max",
        parse_at_least_one,
        None,
        "how many connections of nodes of one token `serve` accepts; if unset, all of sessions_max "
        "but an eighth",
    ),
    _setting(
        "token_memory",
        parse_memory,
        None,
        "how much memory `serve` uses for the runs of one token; if unset, as for any run",
    ),
    _setting(
        "new_run_rate",
        parse_at_least_one,
        100,
        "how many new runs a second `serve` accepts from one token at one address, after the first "
        "1,000",
    ),
    _setting(
        "stop_timeout_s",
        parse_duration_s,
        25.0,
        "the time from the first signal to a worker until SIGKILL",
    ),
    _setting(
        "regroup_stop_timeout_s", parse_duration_s, 5.0, "the same for workers that stop to regroup"
    ),
    _setting(
        "stop_s",
        parse_stop_s,
        5.0,
        "how long this node takes to stop its work when a round ends; its place is kept for that "
        "time",
    ),
    _setting(
        "preload_after_s",
        parse_duration_s,
        60.0,
        "how long a worker of the first round imports modules before --preload loads the same ones",
    ),
    _setting(
        "unwind_s",
        parse_duration_s,
        5.0,
        "with --keep-workers, how long a worker has after the end of its round to ask for the next "
        "world; then it is stopped and started again",
    ),
    _setting(
        "hang_timeout_s",
        parse_duration_s,
        None,
        "after how long without progress of any worker a round ends as a hang; if unset, never, or "
        "10 min with --hang",
    ),
    _setting(
        "hang",
        parse_hang,
        None,
        "what shows that a worker advances: a regular expression over its output, output, or "
        "file:PATH",
    ),
    _setting(
        "check",
        parse_check,
        None,
        "a command that says before each round whether this node is fit: 0 is yes, and its last "
        "line says why not",
    ),
    _setting("check_timeout_s", parse_duration_s, 30.0, "how long the check may take"),
    _setting("log_dir", parse_path, None, "a directory for the output of each worker"),
    _setting(
        "log_format",
        one_of("text", "json"),
        "text",
        "the form of the log of `run` and `serve`: text or json",
    ),
    _setting(
        "audit",
        parse_path,
        None,
        "a file for the audit log of `serve`: who changed a run, and who was refused; - is stderr",
    ),
    _setting(
        "share_lines",
        parse_share_lines,
        20,
        "how many last lines of a failed worker all nodes and the coordinator see; 0: none",
    ),
    _run_setting(
        "max_restarts",
        parse_restarts,
        "how many rounds may end by a failure of the program, or any",
    ),
    _run_setting(
        "restart_window_s",
        parse_duration_s,
        "for how long a failure counts against max_restarts; if unset, to the end of the run",
    ),
    _run_setting(
        "early_s",
        parse_duration_s,
        "a failure of the program so soon after the start of a round counts double",
    ),
    _run_setting(
        "same_failure",
        parse_same_failure,
        "how many equal failures of the program in a row end the run; if unset, any number",
    ),
    _run_setting(
        "no_restart_exit_codes",
        parse_exit_codes,
        "exit codes of workers, such as 2,78, that end the run at once",
    ),
    _run_setting(
        "max_restarts_per_node",
        parse_restarts,
        "how many rounds one node may break before it stays out for a while, or any",
    ),
    _run_setting(
        "cooldown_s",
        parse_duration_s,
        "how long a node stays out that breaks too many rounds; twice as long each time",
    ),
    _run_setting("cooldown_max_s", parse_duration_s, "the longest time for which it stays out"),
    _run_setting(
        "last_call_s", parse_duration_s, "the wait for more nodes once the minimum is there"
    ),
    _run_setting("settle_s", parse_duration_s, "the wait for simultaneous arrivals"),
    _run_setting("scale_up_delay_s", parse_duration_s, "the wait before newcomers are announced"),
    _run_setting(
        "reconnect_grace_s", parse_duration_s, "how long a node may be without a connection"
    ),
    _run_setting("suspect_after_s", parse_duration_s, "silence after which a node is suspect"),
    _run_setting("probe_s", parse_duration_s, "how long a suspect may take to answer"),
    _run_setting("lost_after_s", parse_duration_s, "silence after which a node is lost"),
    _run_setting("mass_min", whole, "how many nodes may be missing before it counts as an outage"),
    _run_setting("mass_fraction", parse_fraction, "the same as a fraction of all nodes"),
    _run_setting("mass_grace_s", parse_duration_s, "how long no node is lost in an outage"),
    _run_setting(
        "rank_policy", one_of(*POLICIES), f"how ranks are assigned: {', '.join(POLICIES)}"
    ),
)
"""All settings, in the order in which `rallypoint env` shows them."""

BY_NAME: Final = {each.name: each for each in SETTINGS}


def setting(name: str) -> Setting:
    """The setting of that name, also without its unit or with dashes. Raises UsageError."""
    plain = name.replace("-", "_").lower()
    found = BY_NAME.get(plain) or BY_NAME.get(f"{plain}_s")
    if found is None:
        raise UsageError(
            f"there is no setting {shortened(name)!r}", hint="`rallypoint env` lists all settings"
        )
    return found
