"""The CPUs of each worker: those near its GPU, as torchrun's --numa-binding defines them.

Source: torch/numa/binding.py of torch 2.13, which says the same of each mode. It asks CUDA for the
GPUs; an agent must not load CUDA, so it asks the driver and the system. `cpus_of` is pure.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.errors import UsageError

NVIDIA: Final = "proc/driver/nvidia/gpus"
AMD: Final = "sys/bus/pci/drivers/amdgpu"
_HINT: Final = (
    "leave --numa-binding out, or give each worker a GPU of its own (--nproc-per-node gpu)"
)


class Mode(enum.StrEnum):
    """Which CPUs a worker gets."""

    NODE = "node"
    """All of the NUMA node of its GPU."""
    SOCKET = "socket"
    """All of the socket of its GPU."""
    EXCLUSIVE = "exclusive"
    """Its part of the cores of the NUMA node, which the GPUs of that node share out."""
    CORE_COMPLEX = "core-complex"
    """The cores of one cache of the NUMA node, another one for each GPU as far as possible."""


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """What is near to what. CPUs are logical ones, by their numbers.

    `gpu_nodes`: the NUMA node of each GPU that the workers see, in the order of their indices.
    `node_cpus`: the CPUs of each NUMA node on which this process may run. `sockets`, `cores`,
    `caches`: of each of these CPUs, its socket, and the lowest CPU of its core and of its largest
    cache.
    """

    gpu_nodes: tuple[int, ...]
    node_cpus: dict[int, frozenset[int]]
    sockets: dict[int, int]
    cores: dict[int, int]
    caches: dict[int, int]


def parse(text: str) -> Mode:
    """The mode of `--numa-binding`. Raises UsageError."""
    try:
        return Mode(text)
    except ValueError:
        raise UsageError(
            f"--numa-binding must be {', '.join(Mode)}, not {text!r}",
            hint="node is the best choice in most cases, as in torchrun",
        ) from None


def cpus_of(mode: Mode, local_rank: int, topology: Topology) -> frozenset[int]:
    """The CPUs for the worker of this local rank. Raises UsageError if there are none."""
    gpus = len(topology.gpu_nodes)
    if local_rank >= gpus:
        raise UsageError(
            f"--numa-binding {mode}: there is no GPU for local rank {local_rank}; the workers see "
            f"{gpus} GPUs",
            hint=_HINT,
        )
    node = topology.gpu_nodes[local_rank]
    cpus = topology.node_cpus.get(node, frozenset())
    if not cpus:
        raise UsageError(
            f"--numa-binding {mode}: this process may use no CPU of NUMA node {node}, to which the "
            f"GPU of local rank {local_rank} belongs",
            hint=_HINT,
        )
    neighbours = [index for index in range(gpus) if topology.gpu_nodes[index] == node]
    place = neighbours.index(local_rank)
    match mode:
        case Mode.NODE:
            return cpus
        case Mode.SOCKET:
            return _of_socket(topology.sockets[min(cpus)], topology)
        case Mode.EXCLUSIVE:
            return _share(_grouped(cpus, topology.cores), place, len(neighbours), node)
        case Mode.CORE_COMPLEX:
            complexes = _grouped(cpus, topology.caches)
            complexes.sort(key=lambda each: (-len(each), min(each)))
            return complexes[place % len(complexes)]


def _of_socket(socket: int, topology: Topology) -> frozenset[int]:
    """The CPUs of all NUMA nodes of a socket."""
    nodes = [cpus for cpus in topology.node_cpus.values() if cpus]
    return frozenset[int]().union(
        *(cpus for cpus in nodes if topology.sockets[min(cpus)] == socket)
    )


def _grouped(cpus: Iterable[int], lowest: Mapping[int, int]) -> list[frozenset[int]]:
    """The CPUs in groups, in the order of their lowest ones."""
    groups: dict[int, set[int]] = {}
    for cpu in sorted(cpus):
        groups.setdefault(lowest[cpu], set()).add(cpu)
    return [frozenset(groups[first]) for first in sorted(groups)]


def _share(cores: list[frozenset[int]], place: int, sharers: int, node: int) -> frozenset[int]:
    """The part of a GPU. The first ones get one core more if the number does not divide."""
    if len(cores) < sharers:
        raise UsageError(
            f"--numa-binding exclusive: NUMA node {node} has {len(cores)} cores for this process, "
            f"and {sharers} GPUs",
            hint="--numa-binding node lets the workers share the cores",
        )
    each, more = divmod(len(cores), sharers)
    first = place * each + min(place, more)
    part = cores[first : first + each + (place < more)]
    return frozenset[int]().union(*part)


# -- this machine --------------------------------------------------------------------------------


def read_topology(
    environ: Mapping[str, str], allowed: Iterable[int] | None = None, root: Path = Path("/")
) -> Topology:
    """The topology of this machine. Raises UsageError where it cannot be found out."""
    if allowed is None:
        if not hasattr(os, "sched_getaffinity"):
            raise UsageError("--numa-binding works only on Linux", hint=_HINT)
        allowed = os.sched_getaffinity(0)
    usable = frozenset(allowed)
    try:
        nodes = {
            int(each.name.removeprefix("node")): _numbers(each / "cpulist") & usable
            for each in sorted((root / "sys/devices/system/node").glob("node[0-9]*"))
        }
        cpus = {cpu: root / f"sys/devices/system/cpu/cpu{cpu}" for cpu in sorted(usable)}
        return Topology(
            gpu_nodes=tuple(_node_of(root, each) for each in _visible_gpus(environ, root)),
            node_cpus=nodes,
            sockets={
                cpu: int((path / "topology/physical_package_id").read_text())
                for cpu, path in cpus.items()
            },
            cores={
                cpu: min(_numbers(path / "topology/thread_siblings_list"))
                for cpu, path in cpus.items()
            },
            caches={cpu: min(_largest_cache(path, cpu)) for cpu, path in cpus.items()},
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--numa-binding: the system does not tell which CPUs are near to a GPU: {error}",
            hint=_HINT,
        ) from error


def _visible_gpus(environ: Mapping[str, str], root: Path) -> list[str]:
    """The PCI addresses of the GPUs that the workers see, in the order of their indices."""
    nvidia = sorted(each.name for each in (root / NVIDIA).glob("*:*"))
    if nvidia:
        return _chosen(nvidia, environ.get("CUDA_VISIBLE_DEVICES"), root)
    gpus = sorted(each.name for each in (root / AMD).glob("*:*"))
    # HIP numbers the GPUs that ROCR leaves, and takes CUDA's variable if its own is not set.
    gpus = _chosen(gpus, environ.get("ROCR_VISIBLE_DEVICES"), root)
    visible = environ.get("HIP_VISIBLE_DEVICES", environ.get("CUDA_VISIBLE_DEVICES"))
    return _chosen(gpus, visible, root)


def _chosen(gpus: list[str], visible: str | None, root: Path) -> list[str]:
    if visible is None:
        return gpus
    chosen = []
    for entry in filter(None, (each.strip() for each in visible.split(","))):
        if entry.isdigit() and int(entry) < len(gpus):
            chosen.append(gpus[int(entry)])
        else:
            named = [gpu for gpu in gpus if _uuid(root, gpu).startswith(entry)]
            if len(named) != 1:
                raise ValueError(f"no GPU here is {entry!r}, one of the devices that are visible")
            chosen += named
    return chosen


def _uuid(root: Path, gpu: str) -> str:
    for line in (root / NVIDIA / gpu / "information").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "GPU UUID":
            return value.strip()
    return ""


def _node_of(root: Path, gpu: str) -> int:
    # A machine with one NUMA node often says -1.
    return max(0, int((root / "sys/bus/pci/devices" / gpu / "numa_node").read_text()))


def _largest_cache(cpu: Path, number: int) -> frozenset[int]:
    """The CPUs that share the cache of the highest level with this one."""
    best, found = -1, frozenset({number})
    for index in sorted((cpu / "cache").glob("index[0-9]*")):
        level = int((index / "level").read_text())
        if (index / "type").read_text().strip() in ("Unified", "Data") and level > best:
            best, found = level, _numbers(index / "shared_cpu_list")
    return found


def _numbers(path: Path) -> frozenset[int]:
    """The numbers of a list such as 0-2,4,6-7."""
    found: set[int] = set()
    for part in filter(None, path.read_text().strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
