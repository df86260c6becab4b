from __future__ import annotations

import msgspec
import pytest

from rallypoint.launch.worker_env import WorkerContext, changing_variables, worker_environment

CONTEXT = WorkerContext(
    run_id="job-42",
    rank=5,
    local_rank=1,
    world_size=8,
    local_world_size=2,
    node_rank=2,
    nodes=4,
    restart_count=1,
    max_restarts=3,
    master_addr="host0",
    master_port=29400,
    node_name="node-17",
    term=6,
    round_number=9,
    min_nodes=2,
    max_nodes=4,
    agent_path="/tmp/agent.sock",
    agent_secret="secret",
)
TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "2",
    "ROLE_RANK": "5",
    "ROLE_NAME": "default",
    "LOCAL_WORLD_SIZE": "2",
    "WORLD_SIZE": "8",
    "GROUP_WORLD_SIZE": "4",
    "ROLE_WORLD_SIZE": "8",
    "MASTER_ADDR": "host0",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "job-42",
    "TORCHELASTIC_USE_AGENT_STORE": "False",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "OMP_NUM_THREADS": "1",
}
OURS = {
    "PYTHONUNBUFFERED": "1",
    "RALLYPOINT_RUN_ID": "job-42",
    "RALLYPOINT_NODE": "node-17",
    "RALLYPOINT_TERM": "6",
    "RALLYPOINT_ROUND": "9",
    "RALLYPOINT_LOCAL_RANK": "1",
    "RALLYPOINT_MIN_NODES": "2",
    "RALLYPOINT_MAX_NODES": "4",
    "RALLYPOINT_AGENT": "/tmp/agent.sock",
    "RALLYPOINT_AGENT_SECRET": "secret",
    "RALLYPOINT_LAUNCH": "none",
}


def test_a_worker_gets_torchruns_names_and_ours_and_nothing_else() -> None:
    assert worker_environment(CONTEXT, {}) == {**TORCHRUN, **OURS}


def test_the_users_environment_is_passed_on() -> None:
    assert worker_environment(CONTEXT, {"A": "1"}) == {"A": "1", **TORCHRUN, **OURS}


@pytest.mark.parametrize("name", ["RANK", "MASTER_PORT", "RALLYPOINT_ROUND", "WORLD_SIZE"])
def test_the_user_cannot_override_a_fact(name: str) -> None:
    assert worker_environment(CONTEXT, {name: "x"})[name] != "x"


@pytest.mark.parametrize(
    "name", ["TORCH_NCCL_ASYNC_ERROR_HANDLING", "OMP_NUM_THREADS", "PYTHONUNBUFFERED"]
)
def test_a_default_gives_way_to_the_user(name: str) -> None:
    assert worker_environment(CONTEXT, {name: ""})[name] == ""
    assert worker_environment(CONTEXT, {name: "7"})[name] == "7"


def test_one_worker_alone_may_use_all_cores() -> None:
    alone = msgspec.structs.replace(CONTEXT, local_world_size=1)
    assert "OMP_NUM_THREADS" not in worker_environment(alone, {})


@pytest.mark.parametrize("name", ["RALLYPOINT_TOKEN", "RALLYPOINT_TOKEN_FILE"])
def test_tokens_are_not_passed_to_workers(name: str) -> None:
    environment = worker_environment(CONTEXT, {name: "hidden"})
    assert "hidden" not in environment.values()
    assert name not in environment


def test_the_error_file_belongs_to_this_worker() -> None:
    outer = {"TORCHELASTIC_ERROR_FILE": "/of/another/agent"}
    assert "TORCHELASTIC_ERROR_FILE" not in worker_environment(CONTEXT, outer)
    own = msgspec.structs.replace(CONTEXT, error_file="/own")
    assert worker_environment(own, outer)["TORCHELASTIC_ERROR_FILE"] == "/own"


def test_the_environment_of_the_agent_is_not_changed() -> None:
    base = {"RANK": "0", "RALLYPOINT_TOKEN": "hidden"}
    worker_environment(CONTEXT, base)
    assert base == {"RANK": "0", "RALLYPOINT_TOKEN": "hidden"}


@pytest.mark.parametrize(
    ("visible", "local_rank", "gpu"),
    [(None, 1, "1"), ("4, 6", 1, "6"), ("4,6", 2, ""), ("", 0, "")],
)
def test_a_virtual_local_rank_is_one_gpu(visible: str | None, local_rank: int, gpu: str) -> None:
    context = msgspec.structs.replace(CONTEXT, local_rank=local_rank, virtual_local_rank=True)
    base = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    env = worker_environment(context, base)
    assert (env["LOCAL_RANK"], env["CUDA_VISIBLE_DEVICES"]) == ("0", gpu)
    assert env["RALLYPOINT_LOCAL_RANK"] == str(local_rank)
    assert worker_environment(CONTEXT, base)["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(
    ("base", "local_rank", "cuda", "hip", "oneapi"),
    [
        ({}, 1, "1", "1", "level_zero:1"),
        ({"CUDA_VISIBLE_DEVICES": "4, 6"}, 1, "6", "6", "level_zero:1"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, 0, "GPU-a", "GPU-a", "level_zero:0"),
        ({"HIP_VISIBLE_DEVICES": "4,6"}, 1, "6", "6", "level_zero:1"),
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, 2, "", "", "level_zero:2"),
        ({"ONEAPI_DEVICE_SELECTOR": "opencl:2,3"}, 1, "1", "1", "opencl:3"),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:*"}, 1, "1", "1", "level_zero:1"),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:gpu;opencl:cpu"}, 1, "1", "1", "level_zero:1"),
        # HIP and oneAPI number what these leave, so they stay.
        ({"ROCR_VISIBLE_DEVICES": "2,3", "ZE_AFFINITY_MASK": "2,3"}, 1, "1", "1", "level_zero:1"),
    ],
)
def test_a_worker_may_see_its_own_device_alone(
    base: dict[str, str], local_rank: int, cuda: str, hip: str, oneapi: str
) -> None:
    context = msgspec.structs.replace(CONTEXT, local_rank=local_rank, sees_own_device=True)
    env = worker_environment(context, base)
    assert (env["CUDA_VISIBLE_DEVICES"], env["HIP_VISIBLE_DEVICES"]) == (cuda, hip)
    assert env["ONEAPI_DEVICE_SELECTOR"] == oneapi
    assert env["LOCAL_RANK"] == str(local_rank)
    for name in ("ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        assert env.get(name) == base.get(name)
    assert "ASCEND_RT_VISIBLE_DEVICES" not in env


def test_a_vendors_variable_is_narrowed_where_it_is_set() -> None:
    context = msgspec.structs.replace(CONTEXT, sees_own_device=True)
    env = worker_environment(context, {"ASCEND_RT_VISIBLE_DEVICES": "4,5"})
    assert env["ASCEND_RT_VISIBLE_DEVICES"] == "5"


def test_gloo_uses_the_interface_of_the_address_that_others_have() -> None:
    context = msgspec.structs.replace(CONTEXT, interface="eth1")
    env = worker_environment(context, {})
    assert env["GLOO_SOCKET_IFNAME"] == "eth1"
    assert "NCCL_SOCKET_IFNAME" not in env
    wanted = msgspec.structs.replace(context, is_interface_wanted=True)
    assert worker_environment(wanted, {})["NCCL_SOCKET_IFNAME"] == "=eth1"
    own = {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib"}
    assert worker_environment(wanted, own).items() >= own.items()


def test_a_role_has_the_variables_of_torchrun() -> None:
    env = worker_environment(msgspec.structs.replace(CONTEXT, role="trainer"), {})
    assert env["ROLE_NAME"] == "trainer"


def test_a_worker_that_is_kept_gets_what_differs_from_the_last_round() -> None:
    """What the program itself has set stays, such as the interface of its process group."""
    last = {"RANK": "0", "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "eth0", "HOME": "/a"}
    new = {"RANK": "1", "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "eth0", "HOME": "/b"}
    assert changing_variables(new, last) == {"RANK": "1"}
