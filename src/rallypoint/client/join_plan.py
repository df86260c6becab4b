"""How a program joins its run: by `join`'s arguments, the environment, or its agent's channel."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any, get_type_hints

import msgspec

from rallypoint import errors, settings
from rallypoint.client.agent_client import AgentClient
from rallypoint.client.options import JoinOptions
from rallypoint.client.run_client import RunClient, open_node
from rallypoint.client.self_check import Check, SelfCheck
from rallypoint.client.waiting import StillWaiting
from rallypoint.core.values import STOP_S_MAX, RunSettings
from rallypoint.endpoints import parse_ledger
from rallypoint.settings import Endpoint, NodeSettings, WorkerChannel


class JoinPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What `join` will do: connect to an agent, or be a node."""

    channel: WorkerChannel | None = None
    node: NodeSettings | None = None
    run: RunSettings | None = None
    on_waiting: Callable[[StillWaiting], None] | None = None
    check: Check | None = None
    check_timeout_s: float = 0.0

    @property
    def join_timeout_s(self) -> float | None:
        return self.node.join_timeout_s if self.node is not None else None


NODE_OPTIONS = (
    "node_name",
    "node_index",
    "local_addr",
    "interface",
    "port_range",
    "token_file",
    "insecure",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "host_coordinator",
    "join_timeout_s",
    "connect_timeout_s",
    "coordinator_silence_s",
    "coordinator_lost_after_s",
    "drain_timeout_s",
    "goodbye_timeout_s",
    "linger_s",
    "orphan_s",
    "etcd_password",
    "candidates",
    "lease_ttl_s",
    "attach_grace_s",
    "yield_after_s",
    "stop_s",
    "hang_timeout_s",
    "share_lines",
)


def plan(
    run_id: str | None,
    endpoint: str | Endpoint | None,
    *,
    min_nodes: int | None,
    max_nodes: int | None,
    token: str | None,
    labels: Mapping[str, str] | None,
    options: Mapping[str, Any],
    ledger: str | None = None,
    on_waiting: Callable[[StillWaiting], None] | None = None,
) -> JoinPlan:
    """Decide how to join. Raises UsageError."""
    _check_types(
        run_id=(run_id, str),
        endpoint=(endpoint, str | Endpoint),
        min_nodes=(min_nodes, int),
        max_nodes=(max_nodes, int),
        token=(token, str),
        labels=(labels, Mapping),
        ledger=(ledger, str),
    )
    _check_callback(on_waiting)
    if ledger is not None:
        endpoint = _ledger_endpoint(ledger, endpoint)
    _check_options(options)
    nothing_said = run_id is None and endpoint is None and min_nodes is None and max_nodes is None
    channel = settings.worker_channel() if nothing_said else None
    if channel is not None:
        return JoinPlan(channel=channel)
    check, check_timeout_s = _check_of(options)
    options = {name: value for name, value in options.items() if name not in _OF_CHECKS}
    node_options: dict[str, Any] = {
        k: v for k, v in options.items() if k in NODE_OPTIONS and v is not None
    }
    run_options: dict[str, Any] = {
        k: v for k, v in options.items() if k not in NODE_OPTIONS and v is not None
    }
    found = settings.launched(
        endpoint=endpoint, run_id=run_id, min_nodes=min_nodes, max_nodes=max_nodes, **options
    )
    is_budget_set = settings.resolve("max_restarts", found=found).source != "default"
    if "max_restarts" not in run_options and not is_budget_set:
        # A program that fails ends its own process, and with it the node, so no budget is needed to
        # limit restarts. The other nodes go on without it.
        run_options["max_restarts"] = "any"
    if check is not None and "stop_s" not in node_options:
        # Its place is kept while it checks itself, as that of an agent.
        stop_s = settings.resolve("stop_s", found=found).value
        node_options["stop_s"] = min(STOP_S_MAX, stop_s + check_timeout_s)
    node = settings.node_settings(
        found=found,
        endpoint=endpoint,
        run_id=run_id,
        token=token,
        labels=labels,
        **node_options,
    )
    run = settings.run_settings(
        found=found, min_nodes=min_nodes, max_nodes=max_nodes, **run_options
    )
    return JoinPlan(
        node=node, run=run, on_waiting=on_waiting, check=check, check_timeout_s=check_timeout_s
    )


_OF_CHECKS = ("check", "check_timeout_s")


def _check_of(options: Mapping[str, Any]) -> tuple[Check | None, float]:
    """The program's check, or that of RALLYPOINT_CHECK; and how long it may take, in seconds."""
    check = options.get("check")
    limit_s = settings.resolve("check_timeout_s", options.get("check_timeout_s")).value
    if callable(check):
        return check, limit_s
    return settings.resolve("check", check).value, limit_s


def _ledger_endpoint(ledger: str, endpoint: str | Endpoint | None) -> Endpoint:
    if endpoint is not None:
        raise errors.UsageError(
            "join has both an endpoint and a ledger",
            hint="give one of them: a ledger is an endpoint",
        )
    return parse_ledger(ledger)


def _check_callback(on_waiting: object) -> None:
    if on_waiting is None or (callable(on_waiting) and not iscoroutinefunction(on_waiting)):
        return
    what = "a coroutine function" if callable(on_waiting) else _shown(on_waiting)
    raise errors.UsageError(
        f"on_waiting must be a function, not {what}",
        hint="it is called while the node waits, so it must be short; start a task in it",
    )


def _check_types(**given: tuple[object, Any]) -> None:
    for name, (value, kind) in given.items():
        if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
            continue
        what, hint = _KINDS.get(name, ("text", ""))
        raise errors.UsageError(f"{name} must be {what}, not {_shown(value)}", hint=hint)


_KINDS = {
    "endpoint": ("text", "a ledger is given by its place: file:///FOLDER or etcd://HOST:PORT"),
    "ledger": ("text", "a ledger is given by its place: file:DIR or etcd://HOST:PORT"),
    "min_nodes": ("a whole number", ""),
    "max_nodes": ("a whole number", ""),
    "labels": ("a mapping of names to texts", 'write labels={"rack": "7"}'),
}


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises UsageError for an unknown option or a value of a wrong type."""
    kinds = get_type_hints(JoinOptions)
    check = options.get("check")
    if not (check is None or isinstance(check, str) or callable(check)) or iscoroutinefunction(
        check
    ):
        what = "a coroutine function" if callable(check) else _shown(check)
        raise errors.UsageError(
            f"check must be a function or a command, not {what}",
            hint="it is called in a thread, and returns why the machine is unfit",
        )
    for name, value in options.items():
        if name == "check":
            continue
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else "`rallypoint env` lists all settings"
            raise errors.UsageError(f"join has no option {name!r}", hint=hint)
        if value is None:
            continue
        try:
            msgspec.convert(value, kinds[name], strict=True)
        except msgspec.ValidationError:
            number = "a number of seconds" if name.endswith("_s") else "a number"
            wanted = _WANTED.get(name) or (
                "text" if kinds[name] == str | None else f"{number}, or its text"
            )
            raise errors.UsageError(f"{name} must be {wanted}, not {_shown(value)}") from None


_WANTED = {"insecure": "True or False, or yes or no"}


def _shown(value: object) -> str:
    """Shows only the type of a wrong value, because it may be a secret."""
    return f"of type {type(value).__name__}"


async def open_client(planned: JoinPlan) -> RunClient:
    """Execute the plan. Raises CoordinatorError."""
    if planned.channel is not None:
        return await AgentClient.open(planned.channel)
    if planned.node is None or planned.run is None:
        raise errors.UsageError("there is no run to join", hint="pass a run id and an endpoint")
    return await open_node(planned.node, planned.run, planned.on_waiting, _self_check(planned))


def _self_check(planned: JoinPlan) -> SelfCheck | None:
    if planned.check is None:
        return None
    return SelfCheck(planned.check, planned.check_timeout_s)
