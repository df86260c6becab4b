"""A worker's environment: torchrun's names with torchrun's values, and some of Rallypoint's.

Programs for torchrun read these names, so they are exactly those that torchrun 2.13 sets
(`_start_workers` of torch/distributed/elastic/agent/server/local_elastic_agent.py, and run.py for
OMP_NUM_THREADS). Everything except `inherited_environment` is pure. This file reads no setting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from rallypoint.core.values import repr_without
from rallypoint.environments import LAUNCH, launch_of
from rallypoint.launch import devices

ROLE = "default"

# Workers connect only to their agent. Secrets for the coordinator or the ledger (RALLYPOINT_TOKEN,
# or a file with it) must not reach a user's program, its logs and its crash reports.
_KEPT_FROM_WORKERS_PREFIXES = ("RALLYPOINT_TOKEN", "RALLYPOINT_ETCD_PASSWORD")
# The variables of an outer agent (torchrun in a worker of Rallypoint, or the reverse) are not for
# this worker.
_OF_ANOTHER_AGENT = ("TORCHELASTIC_ERROR_FILE",)
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class WorkerContext(msgspec.Struct, frozen=True, kw_only=True):
    """The place of one worker in its round. Ranks and world sizes count workers, not nodes.

    `virtual_local_rank`: the worker can use only one GPU and has LOCAL_RANK 0, as in torchrun.
    `sees_own_device`: the worker sees one device, that of its local rank. `interface`: has the
    address that this node tells the others; "" if unknown. `is_interface_wanted`: whether the user
    has chosen it.
    """

    run_id: str
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    nodes: int
    restart_count: int
    max_restarts: int
    master_addr: str
    master_port: int
    node_name: str
    term: int
    round_number: int
    min_nodes: int
    max_nodes: int
    agent_path: str
    agent_secret: str
    error_file: str | None = None
    role: str = ROLE
    virtual_local_rank: bool = False
    sees_own_device: bool = False
    interface: str = ""
    is_interface_wanted: bool = False

    def __repr__(self) -> str:
        return repr_without(self, "agent_secret")


def inherited_environment() -> dict[str, str]:
    """A copy of the agent's environment, the base for that of workers and helpers."""
    return dict(os.environ)


def worker_environment(context: WorkerContext, base: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a worker. `base` replaces defaults, but never ranks and sizes."""
    kept = {name: value for name, value in base.items() if not _is_kept_back(name)}
    facts = {**_torchrun(context), **_rallypoint(context), LAUNCH: launch_of(base)}
    if context.sees_own_device:
        facts |= devices.own(context.local_rank, base)
    if context.virtual_local_rank:
        gpu = devices.nth(context.local_rank, base.get("CUDA_VISIBLE_DEVICES"))
        facts |= {"LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": gpu}
    defaults = _defaults(context.local_world_size) | _interfaces(context)
    return {**defaults, **kept, **facts}


def preloader_environment(base: Mapping[str, str], local_world_size: int) -> dict[str, str]:
    """The environment of the workers' preloader: a worker's, without what differs between them.

    Libraries read some of it when they are loaded, such as OMP_NUM_THREADS.
    """
    own = set(worker_variables()) - set(devices.NAMES)
    kept = {n: text for n, text in base.items() if not _is_kept_back(n) and n not in own}
    return {**_defaults(local_world_size), LAUNCH: launch_of(base), **kept}


def worker_variables() -> list[str]:
    """The variables that may differ from worker to worker, or from round to round."""
    context = WorkerContext(
        **dict.fromkeys(WorkerContext.__struct_fields__, 0)  # type: ignore[arg-type]
    )
    facts = {**_torchrun(context), **_rallypoint(context)}
    return sorted({*facts, *_OF_ANOTHER_AGENT, *_INTERFACES, *devices.NAMES})


def changing_variables(environment: Mapping[str, str], last: Mapping[str, str]) -> dict[str, str]:
    """What a worker that is kept has to set for a new round: all that differs from the last one.

    The others stay, also where the program has set another value. So do its devices.
    """
    names = set(worker_variables()) - set(devices.NAMES)
    return {
        name: environment[name]
        for name in sorted(names)
        if name in environment and environment[name] != last.get(name)
    }


def _is_kept_back(name: str) -> bool:
    return name.startswith(_KEPT_FROM_WORKERS_PREFIXES) or name in _OF_ANOTHER_AGENT


def _defaults(local_world_size: int) -> dict[str, str]:
    defaults = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        # its output is a pipe: without this, output arrives only in blocks of 8 KiB
        "PYTHONUNBUFFERED": "1",
    }
    if local_world_size > 1:
        defaults["OMP_NUM_THREADS"] = "1"
    return defaults


def _interfaces(context: WorkerContext) -> dict[str, str]:
    if not context.interface:
        return {}
    gloo, nccl = _INTERFACES
    # gloo takes the address of the host's name, which may be 127.0.1.1, or none.
    variables = {gloo: context.interface}
    if context.is_interface_wanted:
        # NCCL searches well by itself, and may use several. "=": the exact name, no prefix.
        variables[nccl] = f"={context.interface}"
    return variables


def _torchrun(context: WorkerContext) -> dict[str, str]:
    names = {
        "RANK": str(context.rank),
        "LOCAL_RANK": str(context.local_rank),
        "GROUP_RANK": str(context.node_rank),
        "ROLE_RANK": str(context.rank),  # there is one role, so its ranks are those of the world
        "ROLE_NAME": context.role,
        "LOCAL_WORLD_SIZE": str(context.local_world_size),
        "WORLD_SIZE": str(context.world_size),
        "GROUP_WORLD_SIZE": str(context.nodes),
        "ROLE_WORLD_SIZE": str(context.world_size),
        "MASTER_ADDR": context.master_addr,
        "MASTER_PORT": str(context.master_port),
        "TORCHELASTIC_RESTART_COUNT": str(context.restart_count),
        "TORCHELASTIC_MAX_RESTARTS": str(context.max_restarts),
        "TORCHELASTIC_RUN_ID": context.run_id,
        # Rank 0 hosts torch's store itself, on the port that its agent has reserved.
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }
    if context.error_file is not None:
        names["TORCHELASTIC_ERROR_FILE"] = context.error_file
    return names


def _rallypoint(context: WorkerContext) -> dict[str, str]:
    return {
        "RALLYPOINT_RUN_ID": context.run_id,
        "RALLYPOINT_NODE": context.node_name,
        # R13: (term, round) is the fencing token that a program can pass to its own storage.
        "RALLYPOINT_TERM": str(context.term),
        "RALLYPOINT_ROUND": str(context.round_number),
        # LOCAL_RANK is 0 for all workers with --virtual-local-rank.
        "RALLYPOINT_LOCAL_RANK": str(context.local_rank),
        "RALLYPOINT_MIN_NODES": str(context.min_nodes),
        "RALLYPOINT_MAX_NODES": str(context.max_nodes),
        "RALLYPOINT_AGENT": context.agent_path,
        "RALLYPOINT_AGENT_SECRET": context.agent_secret,
    }
