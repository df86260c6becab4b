"""The backend `rallypoint`: Rallypoint itself, for torchrun and for this package's registry.

    torchrun --rdzv-backend=rallypoint --rdzv-endpoint=host0:29400 --rdzv-id=job --nnodes=2:4 ...

The endpoint is any that Rallypoint has: HOST:PORT, http://HOST:PORT, etcd://..., file:///FOLDER, or
none for one machine. Options (torchrun's --rdzv-conf) are Rallypoint's settings by name, and
options of torch's backends with the same meaning. `OPTIONS` lists them all.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from rallypoint import errors, settings
from rallypoint.core.values import RunSettings
from rallypoint.endpoints import EndpointKind, asks_for_any_port
from rallypoint.rendezvous import _torch_bridge
from rallypoint.rendezvous._node_handler import HandlerPlan, NodeRendezvousHandler, stop_s
from rallypoint.rendezvous._telling import show_on_stderr
from rallypoint.rendezvous.api import RendezvousHandlerCreator, RendezvousParameters
from rallypoint.settings import Found, NodeSettings

_log = logging.getLogger("rallypoint.rendezvous")

__all__ = ["OPTIONS", "create_handler", "torchrun_handler"]

BACKEND: Final = "rallypoint"

_GIVEN_OTHERWISE: Final = frozenset(
    {"endpoint", "run_id", "local_addr", "min_nodes", "max_nodes"}  # by torchrun's own options
    # Only from a file or the environment, because every user of the machine can read a command
    # line.
    | {"token", "token_place", "etcd_password"}
    | {"labels", "max_restarts"}
    | {"share_lines"}  # torchrun does not send its workers' output to other nodes
    # torchrun counts failures, and starts and stops workers, by itself.
    | {"early_s", "restart_window_s", "same_failure", "no_restart_exit_codes"}
    | {"max_restarts_per_node", "cooldown_s", "cooldown_max_s", "hang_timeout_s", "drain_timeout_s"}
)
_NODE_OPTIONS: Final = tuple(
    name for name in NodeSettings.__struct_fields__ if name not in _GIVEN_OTHERWISE
)
_RUN_OPTIONS: Final = tuple(
    name for name in RunSettings.__struct_fields__ if name not in _GIVEN_OTHERWISE
)
_TORCH_NAMES: Final = {
    "join_timeout": "join_timeout_s",
    "last_call_timeout": "last_call_s",
    "read_timeout": "connect_timeout_s",
}
"""Options of torch's backends, in seconds, and the settings with the same meaning."""
_OTHERS: Final = ("token_file", "quiet")
"""Options of this backend that are no settings. `quiet`: see `create_handler`."""
_TORCH_OWN: Final = ("timeout", "close_timeout", "is_host", "rank")
"""Options of torch that are no settings and are ignored, as in torch's c10d. torchrun always passes
`timeout`, for backends that have no other one. `rank` is for `static`.
"""

OPTIONS: Final = tuple(
    sorted(
        {name.removesuffix("_s") for name in (*_NODE_OPTIONS, *_RUN_OPTIONS)}
        | {*_TORCH_NAMES, *_TORCH_OWN, *_OTHERS}
    )
)
"""All options of the backend."""
CLOSE_TIMEOUT_S: Final = 30.0


def torchrun_handler() -> RendezvousHandlerCreator:
    """The entry point `rallypoint` of the group `torchrun.handlers`.

    torch's registry calls it, and then calls its result with the parameters. See `create_handler`.
    """
    return _create_for_torchrun


def _create_for_torchrun(params: RendezvousParameters) -> NodeRendezvousHandler:
    handler = create_handler(params, ends_process=True)
    # torch's agent gives each worker a copy of this process's environment.
    settings.withhold_secrets()
    return handler


def create_handler(
    params: RendezvousParameters, *, ends_process: bool = False
) -> NodeRendezvousHandler:
    """A handler for these parameters. torch's RendezvousParameters works as well.

    The handler connects at its first call. Environment variables (RALLYPOINT_...) set options that
    are not given. `ends_process`: see HandlerPlan; the node's lines are shown on stderr then (see
    `_telling.show_on_stderr`), unless the option `quiet` is true.

    Raises ValueError for an option that is unknown, wrong, or contradicts another, and for a wrong
    endpoint. The text names it, and lists the known options for an unknown one.
    """
    _refuse_unknown(params.config)
    given = _settings_of(params)
    # torch documents HOST:0 for a single node, where no other node needs the port.
    is_any_port = params.max_nodes == 1 and asks_for_any_port(params.endpoint or "")
    endpoint = "" if is_any_port else params.endpoint or None
    found = _launched(params, endpoint, given, is_node=ends_process)
    _refuse_if_crowded(found)
    min_nodes, max_nodes = _nodes(params, endpoint, found)
    node = settings.node_settings(
        found=found,
        endpoint=endpoint,
        run_id=_run_id(params, endpoint, found, given, is_agent=ends_process),
        local_addr=params.local_addr,
        token_file=_token_file(params.config),
        stop_s=stop_s(given.pop("stop_s", None)),
        **{name: given[name] for name in _NODE_OPTIONS if name in given},
    )
    if node.endpoint.kind is EndpointKind.LOCAL and max_nodes > 1:
        raise errors.UsageError(
            f"a run of up to {max_nodes} nodes needs an endpoint at which they meet",
            hint="give every node the same --rdzv-endpoint, such as HOST:29400",
        )
    run = settings.run_settings(
        found=found,
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        # torchrun counts restarts itself, on each node, and does not report whose fault they were.
        max_restarts="any",
        **{name: given[name] for name in _RUN_OPTIONS if name in given},
    )
    close_timeout_s = _seconds(params.config, "close_timeout")
    if ends_process and not params.get_as_bool("quiet"):
        show_on_stderr()
    _tell_warnings(params, node, max_nodes, found)
    return NodeRendezvousHandler(
        HandlerPlan(
            backend=params.backend,
            node=node,
            run=run,
            close_timeout_s=CLOSE_TIMEOUT_S if close_timeout_s is None else close_timeout_s,
            ends_process=ends_process,
        )
    )


_NO_ID: Final = "none"
"""torchrun's --rdzv-id if none is given."""


def _launched(
    params: RendezvousParameters, endpoint: str | None, given: dict[str, Any], *, is_node: bool
) -> Found:
    """What the launcher says beside torchrun's options."""
    is_default = _is_default(params, endpoint)
    return settings.launched(
        is_node=is_node,
        endpoint=endpoint,
        run_id=None if params.run_id == _NO_ID else params.run_id or None,
        min_nodes=None if is_default else params.min_nodes,
        max_nodes=None if is_default else params.max_nodes,
        **{name: given[name] for name in (*_NODE_OPTIONS, *_RUN_OPTIONS) if name in given},
    )


def _is_default(params: RendezvousParameters, endpoint: str | None) -> bool:
    """Whether torchrun was given no endpoint and no number of nodes, for which it says 1."""
    return endpoint is None and params.min_nodes == params.max_nodes == 1


def _nodes(params: RendezvousParameters, endpoint: str | None, found: Found) -> tuple[int, int]:
    if not _is_default(params, endpoint):
        return params.min_nodes, params.max_nodes
    nodes = settings.resolve("nnodes", None, None, found).value
    return nodes.min, nodes.max


def _refuse_if_crowded(found: Found) -> None:
    """Raises LauncherError if several agents of a host start several workers each."""
    workers = _torch_bridge.workers_of_torchrun() if found.crowded is not None else None
    if found.crowded is not None and workers is not None and workers > 1:
        raise errors.LauncherError(found.crowded.message, hint=found.crowded.hint)


def _tell_warnings(
    params: RendezvousParameters, node: NodeSettings, max_nodes: int, found: Found
) -> None:
    for warning in found.warnings:
        if not warning.startswith(_READ_BY_TORCHRUN):
            _log.warning("%s", warning)
    if found.crowded is not None and _torch_bridge.workers_of_torchrun() is None:
        _log.warning("%s (%s)", found.crowded.message, found.crowded.hint)
    if node.run_id == _NO_ID == params.run_id and max_nodes > 1:
        _log.warning(
            "this run has torchrun's default id, %r: all nodes at %s without --rdzv-id are one "
            "job, whatever they run",
            _NO_ID,
            node.endpoint,
        )


_READ_BY_TORCHRUN: Final = "PET_"
"""torchrun reads these variables itself, and passes their values on as options."""


def _run_id(
    params: RendezvousParameters,
    endpoint: str | None,
    found: Found,
    given: dict[str, Any],
    *,
    is_agent: bool,
) -> str | None:
    if params.run_id != _NO_ID:
        return params.run_id or None
    if settings.resolve("run_id", None, None, found).value is not None:
        return None
    ports = settings.resolve("port_range", given.get("port_range")).value
    place = settings.with_ports(settings.resolve("endpoint", endpoint, None, found), ports)
    # Other jobs without an id may meet at the same place: two of them must not become one. At one
    # port there is one job, as in torch's c10d, and a user of torchrun can give an id. A user of
    # `accelerate launch` has no option for it.
    is_shared = place.kind in (EndpointKind.SERVED, EndpointKind.LEDGER) or place.has_choice
    is_of_another = is_agent and not _torch_bridge.is_torchrun()
    if place.kind is EndpointKind.LOCAL or not (is_shared or is_of_another):
        return _NO_ID
    raise errors.UsageError(
        f"a run that meets at {place} needs a run id: torchrun's default, {_NO_ID!r}, is the same "
        "in all jobs, so two of them would become one",
        hint="give every node the same --rdzv-id; or, as with `accelerate launch`, which has no "
        "option for it, the same RALLYPOINT_RUN_ID",
    )


def _refuse_unknown(config: dict[str, Any]) -> None:
    unknown = sorted(name for name in config if _plain(name) not in OPTIONS)
    if unknown:
        raise errors.UsageError(
            f"the rendezvous backend {BACKEND!r} has no option {', '.join(map(repr, unknown))}",
            hint=f"its options are {', '.join(OPTIONS)}",
        )


def _plain(name: str) -> str:
    """An option's name in OPTIONS. The name of a setting may have its unit."""
    is_setting = name in (*_NODE_OPTIONS, *_RUN_OPTIONS)
    return name.removesuffix("_s") if is_setting else name


def _settings_of(params: RendezvousParameters) -> dict[str, Any]:
    """The options that are settings, as values by the settings' names."""
    found: dict[str, Any] = {}
    said: dict[str, str] = {}
    for option, value in params.config.items():
        name = _TORCH_NAMES.get(option) or _name_of_setting(option)
        if name is None or value is None:
            continue
        if name in said:
            raise errors.UsageError(f"options {said[name]!r} and {option!r} are the same")
        said[name] = option
        found[name] = settings.read(settings.setting(name), str(value), f"option {option!r}")
    is_host = params.get_as_bool("is_host")
    if is_host is not None:
        found.setdefault("host_coordinator", "yes" if is_host else "no")
    return found


def _name_of_setting(option: str) -> str | None:
    for name in (*_NODE_OPTIONS, *_RUN_OPTIONS):
        if option in (name, name.removesuffix("_s")):
            return name
    return None


def _token_file(config: dict[str, Any]) -> str | None:
    value = config.get("token_file")
    if value is None or isinstance(value, str):
        return value
    raise errors.UsageError(f"option 'token_file' must be a path, not of type {_kind(value)}")


def _kind(value: object) -> str:
    return type(value).__name__


def _seconds(config: dict[str, Any], option: str) -> float | None:
    value = config.get(option)
    if value is None:
        return None
    seconds: float = settings.read(
        settings.setting("join_timeout_s"), str(value), f"option {option!r}"
    )
    if not seconds > 0:
        raise errors.UsageError(f"option {option!r} must be more than 0 s")
    return seconds
