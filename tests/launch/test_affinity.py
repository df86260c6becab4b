"""The CPUs near a GPU: as torch defines them, and as this kind of machine tells them."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from rallypoint.errors import UsageError
from rallypoint.launch.affinity import AMD, NVIDIA, Mode, Topology, cpus_of, read_topology

UUID = "GPU-{:08d}-1111-2222-3333-444455556666"


def drawn(draw: random.Random) -> Topology:
    """A machine with threads, caches, NUMA nodes, sockets, and CPUs that are not allowed."""
    node_cpus, sockets, cores, caches = {}, {}, {}, {}
    cpu = 0
    for node in range(draw.choice((1, 2, 4))):
        cpus = []
        for _ in range(draw.choice((1, 2, 3))):
            first = cpu
            for _ in range(draw.choice((1, 2, 4))):
                core = cpu
                for _ in range(draw.choice((1, 2))):
                    sockets[cpu], cores[cpu], caches[cpu] = node // 2, core, first
                    cpus.append(cpu)
                    cpu += 1
        allowed = [each for each in cpus if draw.random() < 0.9] or cpus
        node_cpus[node] = frozenset(allowed)
    gpus = tuple(draw.choice(list(node_cpus)) for _ in range(draw.choice((1, 2, 4, 8))))
    return Topology(
        gpu_nodes=gpus, node_cpus=node_cpus, sockets=sockets, cores=cores, caches=caches
    )


@pytest.mark.torch
@pytest.mark.parametrize("mode", Mode)
def test_the_cpus_are_those_of_torchrun(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    binding = pytest.importorskip("torch.numa.binding")

    def same(lowest: dict[int, int], cpu: int) -> set[int]:
        return {each for each, first in lowest.items() if first == lowest[cpu]}

    for seed in range(200):
        machine = drawn(random.Random(seed))
        for name, answer in {
            "_get_gpu_count": lambda m=machine: len(m.gpu_nodes),
            "_get_numa_node_index_for_gpu_index": lambda gpu_index, m=machine: m.gpu_nodes[
                gpu_index
            ],
            "_get_allowed_logical_cpu_indices_for_numa_node": (
                lambda numa_node_index, m=machine: set(m.node_cpus[numa_node_index])
            ),
            "_get_logical_cpu_indices_sharing_same_physical_core_as": (
                lambda logical_cpu_index, m=machine: same(m.cores, logical_cpu_index)
            ),
            "_get_logical_cpus_sharing_same_max_level_cache_as": (
                lambda logical_cpu_index, m=machine: same(m.caches, logical_cpu_index)
            ),
            "_get_socket_index_for_cpu": lambda cpu_index, m=machine: m.sockets[cpu_index],
            "_get_systemwide_numa_node_indices": lambda m=machine: set(m.node_cpus),
        }.items():
            monkeypatch.setattr(binding, name, answer)
        options = binding.NumaOptions(binding.AffinityMode(mode.value))
        for gpu in range(len(machine.gpu_nodes)):
            try:
                theirs = binding._get_logical_cpus_to_bind_to(gpu_index=gpu, numa_options=options)
            except RuntimeError:
                with pytest.raises(UsageError, match="NUMA node"):
                    cpus_of(mode, gpu, machine)
            else:
                assert cpus_of(mode, gpu, machine) == theirs, (seed, gpu)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two NUMA nodes of two CPUs with one cache each; the GPUs are of nodes 1, 0 and none."""

    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    for node in range(2):
        write(f"sys/devices/system/node/node{node}/cpulist", f"{2 * node}-{2 * node + 1}\n")
    for cpu in range(4):
        first = cpu - cpu % 2
        at = f"sys/devices/system/cpu/cpu{cpu}"
        write(f"{at}/topology/physical_package_id", f"{cpu // 2}\n")
        write(f"{at}/topology/thread_siblings_list", f"{cpu}\n")
        for index, (level, kind, shared) in enumerate(
            [(1, "Data", f"{cpu}"), (3, "Unified", f"{first}-{first + 1}"), (9, "Instruction", "0")]
        ):
            write(f"{at}/cache/index{index}/level", f"{level}\n")
            write(f"{at}/cache/index{index}/type", f"{kind}\n")
            write(f"{at}/cache/index{index}/shared_cpu_list", f"{shared}\n")
    for index, (gpu, node) in enumerate((("0000:18:00.0", 1), ("0000:3b:00.0", 0), ("d:0.0", -1))):
        write(f"{NVIDIA}/{gpu}/information", f"Model: \t H200\nGPU UUID: \t {UUID.format(index)}\n")
        write(f"sys/bus/pci/devices/{gpu}/numa_node", f"{node}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("visible", "nodes"),
    [
        (None, (1, 0, 0)),
        ("1,0", (0, 1)),
        ("", ()),
        (UUID.format(1), (0,)),
        ("GPU-00000000", (1,)),
    ],
)
def test_a_machine_is_read(root: Path, visible: str | None, nodes: tuple[int, ...]) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert read_topology(environ, {0, 2, 3}, root) == Topology(
        gpu_nodes=nodes,
        node_cpus={0: frozenset({0}), 1: frozenset({2, 3})},
        sockets={0: 0, 2: 1, 3: 1},
        cores={0: 0, 2: 2, 3: 3},
        caches={0: 0, 2: 2, 3: 2},
    )


def test_gpus_of_amd_are_found_too(root: Path) -> None:
    (root / NVIDIA).rename(root / "gone")
    (root / AMD / "0000:18:00.0").mkdir(parents=True)
    (root / AMD / "0000:3b:00.0").mkdir()
    (root / AMD / "module").mkdir()
    assert read_topology({}, {0}, root).gpu_nodes == (1, 0)
    visible = {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}
    assert read_topology(visible, {0}, root).gpu_nodes == (0,)


def test_a_device_that_is_not_known_is_named(root: Path) -> None:
    with pytest.raises(UsageError, match="no GPU here is 'MIG-1'"):
        read_topology({"CUDA_VISIBLE_DEVICES": "MIG-1"}, {0}, root)


def test_a_node_without_usable_cpus_is_named(root: Path) -> None:
    with pytest.raises(UsageError, match="may use no CPU of NUMA node 1"):
        cpus_of(Mode.NODE, 0, read_topology({}, {0}, root))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds processes")
def test_this_machine_can_be_read() -> None:
    topology = read_topology({"CUDA_VISIBLE_DEVICES": ""})
    assert frozenset[int]().union(*topology.node_cpus.values()) == topology.sockets.keys()
