"""What the launcher says beside the user: in settings, in join(), in torchrun's backend."""

from __future__ import annotations

from typing import Any

import pytest

from rallypoint import settings
from rallypoint.client.join_plan import JoinPlan, plan
from rallypoint.endpoints import EndpointKind
from rallypoint.environments import Found
from rallypoint.errors import LauncherError, UsageError
from rallypoint.rendezvous._node_handler import HandlerPlan
from rallypoint.rendezvous.api import RendezvousParameters
from rallypoint.rendezvous.rallypoint_rendezvous import create_handler, torchrun_handler

from .recorded import pod, slurm_job, slurm_task


def joined(*names: str | None, **options: Any) -> JoinPlan:
    run_id, endpoint = (*names, None, None)[:2]
    bounds = {name: options.pop(name, None) for name in ("min_nodes", "max_nodes")}
    return plan(
        run_id, endpoint, token=None, labels=options.pop("labels", None), options=options, **bounds
    )


def handled(endpoint: str, run_id: str, least: int, most: int, **config: Any) -> HandlerPlan:
    made = create_handler(
        RendezvousParameters("rallypoint", endpoint, run_id, least, most, **config)
    )
    return made._plan


def start_as(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in environ.items():
        monkeypatch.setenv(name, text)


# -- which source wins ---------------------------------------------------------------------------


def test_argument_environment_launcher_default() -> None:
    launcher = slurm_task(1)
    both = launcher | {"RALLYPOINT_NODE_NAME": "mine"}
    sources = [
        settings.resolve("node_name", "other", both),
        settings.resolve("node_name", None, both),
        settings.resolve("node_name", None, launcher),
        settings.resolve("node_name", None, {}),
    ]
    assert [each.value for each in sources] == ["other", "mine", "n2", None]
    assert [each.source for each in sources] == [
        "argument",
        "environment RALLYPOINT_NODE_NAME",
        "launcher Slurm: SLURMD_NODENAME",
        "default",
    ]


def test_a_problem_is_raised_only_where_the_value_is_needed() -> None:
    environ = slurm_job()
    assert settings.resolve("nnodes", "2", environ).value.max == 2
    assert settings.resolve("join_timeout_s", None, environ).source == "default"
    with pytest.raises(LauncherError, match="SLURM_JOB_NUM_NODES=4") as caught:
        settings.resolve("nnodes", None, environ)
    assert caught.value.source == "launcher Slurm"


@pytest.mark.parametrize(
    ("given", "has"),
    [
        (
            {},
            "endpoint run_id nnodes expected_nodes host_coordinator rank_policy node_index "
            "node_name",
        ),
        ({"endpoint": "h"}, "run_id nnodes expected_nodes rank_policy node_index node_name"),
        (
            {"run_id": "r"},
            "endpoint nnodes expected_nodes host_coordinator rank_policy node_index node_name",
        ),
        ({"endpoint": "h", "run_id": "r"}, "nnodes node_index"),
        ({"max_nodes": 1}, ""),
        ({"nnodes": "1"}, ""),
        (
            {"min_nodes": 2, "max_nodes": 4},
            "endpoint run_id expected_nodes host_coordinator rank_policy node_index node_name",
        ),
        (
            {"nnodes": "x"},
            "endpoint run_id expected_nodes host_coordinator rank_policy node_index node_name",
        ),
    ],
)
def test_what_the_user_says_replaces_what_belongs_to_it(given: dict[str, Any], has: str) -> None:
    found = settings.launched(slurm_task(1), **given)
    assert set(found.values) == set(has.split())
    # Variables count as much as arguments.
    if not {"min_nodes", "max_nodes"} & set(given):
        variables = {f"RALLYPOINT_{name.upper()}": text for name, text in given.items()}
        assert settings.launched(slurm_task(1) | variables).values == found.values


def test_nodes_from_elsewhere_can_join_a_users_own_run() -> None:
    """One that is started by hand, and a second step on the same host."""
    own: dict[str, Any] = {"endpoint": "h:1", "run_id": "r"}
    found = settings.launched(slurm_task(1), **own)
    run = settings.run_settings(environ=slurm_task(1), found=found)
    by_hand = settings.run_settings(environ={}, nnodes="4")
    assert run.rank_policy == by_hand.rank_policy
    assert settings.node_settings(environ=slurm_task(1), **own).node_name is None
    # Pods are told no run id, so that one that is given is that of all of them.
    pods = settings.launched(pod(1), **own)
    assert {"rank_policy", "node_name"} <= set(pods.values)


def test_an_id_that_holds_for_one_endpoint_is_not_used_for_another() -> None:
    environ = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert settings.node_settings(environ=environ).run_id == "torch-1"
    with pytest.raises(UsageError, match="needs a run id"):
        settings.node_settings(environ=environ, endpoint="http://a:1")


def test_the_launchers_labels_are_beside_the_users() -> None:
    names = {"SLURM_TOPOLOGY_ADDR": "s0.n2", "SLURM_TOPOLOGY_ADDR_PATTERN": "switch.node"}
    environ = slurm_task(1) | names
    assert settings.node_settings(environ=environ).labels == {"topology": "s0"}
    both = settings.node_settings(environ=environ, labels={"a": "b", "topology": "t"})
    assert both.labels == {"topology": "t", "a": "b"}


def test_the_nodes_of_a_launcher_may_all_be_on_this_machine() -> None:
    local = {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_SRUN_COMM_HOST": "127.0.0.1"}
    environ = slurm_task(1) | local
    assert [each.host for each in settings.node_settings(environ=environ).endpoint.hosts] == [
        *("n1", "n2", "n3", "n4"),
        "127.0.0.1",
    ]
    # A user's list with this machine is a mistake.
    with pytest.raises(UsageError, match=r"127.0.0.1 means each machine itself"):
        settings.resolve("endpoint", None, environ | {"RALLYPOINT_ENDPOINT": "n1,127.0.0.1"})


# -- join() --------------------------------------------------------------------------------------


def test_a_program_joins_the_launchers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    start_as(slurm_task(1), monkeypatch)
    planned = joined()
    assert planned.node is not None
    assert planned.run is not None
    assert planned.node.run_id == "slurm-2.0"
    assert (planned.run.min_nodes, planned.run.max_nodes) == (4, 4)
    assert planned.run.max_restarts is None
    planned = joined(min_nodes=2)
    assert planned.run is not None
    assert (planned.run.min_nodes, planned.run.max_nodes, planned.run.expected_nodes) == (2, 4, 4)


def test_a_program_joins_its_own_run(monkeypatch: pytest.MonkeyPatch) -> None:
    start_as(slurm_task(1), monkeypatch)
    planned = joined("mine", "http://h:1", min_nodes=2, max_nodes=8)
    assert planned.node is not None
    assert planned.run is not None
    assert (planned.node.run_id, planned.node.host_coordinator) == ("mine", "auto")
    assert planned.run.expected_nodes is None
    alone = joined(max_nodes=1)
    assert alone.node is not None
    assert alone.node.endpoint.kind is EndpointKind.LOCAL
    assert alone.node.run_id.startswith("local-")


def test_a_program_in_no_step_does_not_run_alone_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start_as(slurm_job(), monkeypatch)
    with pytest.raises(LauncherError, match="in no step"):
        joined()
    assert joined("job", "h:1", min_nodes=1, max_nodes=2).run is not None
    monkeypatch.setenv("RALLYPOINT_NNODES", "1")
    assert joined().run is not None


# -- torchrun's backend --------------------------------------------------------------------------


def test_torchrun_without_options_has_the_launchers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    start_as(slurm_task(1), monkeypatch)
    made = handled("", "none", 1, 1)
    assert (made.run.min_nodes, made.run.max_nodes, made.run.expected_nodes) == (4, 4, 4)
    assert made.node.endpoint.host == "n1"
    assert (made.node.run_id, made.node.host_coordinator) == ("slurm-2.0", "no")


def test_torchruns_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    start_as(slurm_task(1), monkeypatch)
    made = handled("", "mine", 3, 4)
    assert (made.run.min_nodes, made.run.max_nodes, made.run.expected_nodes) == (3, 4, 4)
    assert made.node.run_id == "mine"
    made = handled("h:1", "none", 1, 1)
    assert (made.node.endpoint.host, made.run.max_nodes) == ("h", 1)
    assert made.node.host_coordinator == "auto"
    assert handled("localhost:0", "x", 1, 1).node.endpoint.kind is EndpointKind.LOCAL


def test_torchrun_in_a_pod_is_told_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    start_as(pod(1), monkeypatch)
    with pytest.raises(LauncherError) as caught:
        handled("", "none", 1, 1)
    assert "RALLYPOINT_NNODES" in caught.value.hint
    with pytest.raises(LauncherError) as caught:
        handled("h:1", "none", 2, 2)
    assert "RALLYPOINT_RUN_ID" in caught.value.hint


def test_several_agents_of_torchrun_on_a_host_have_one_worker_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch")
    start_as(slurm_task(1, nodes=2, per_node=2), monkeypatch)
    for options in (["--nproc-per-node=2"], ["--nproc_per_node", "2"], ["--nproc-per-node", "cpu"]):
        monkeypatch.setattr("sys.argv", ["/usr/bin/torchrun", *options, "train.py", "--x"])
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
        with pytest.raises(LauncherError, match="several tasks on a node") as caught:
            handled("", "none", 1, 1)
        assert "srun --ntasks-per-node=1" in caught.value.hint
    monkeypatch.setattr("sys.argv", ["torchrun", "train.py", "--nproc-per-node=2"])
    assert handled("", "none", 1, 1).run.max_nodes == 4
    monkeypatch.setenv("PET_NPROC_PER_NODE", "2")
    with pytest.raises(LauncherError, match="several tasks on a node"):
        handled("", "none", 1, 1)
    assert handled("h:1", "r", 1, 1).run.max_nodes == 1


def test_what_torchruns_backend_cannot_know_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start_as(slurm_task(1, nodes=2, per_node=2), monkeypatch)
    # torchrun has read it.
    monkeypatch.setenv("PET_RDZV_CONF", "last_call=1")
    handled("", "none", 1, 1)
    [warning] = caplog.messages
    assert "several tasks on a node" in warning
    assert "srun --ntasks-per-node=1" in warning


def test_a_launchers_warning_is_shown_by_torchruns_backend(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = Found(launcher="Some", warnings=("SOME_SIZE is odd",))
    monkeypatch.setattr("rallypoint.environments.detect", lambda *_, **__: found)
    handled("", "none", 1, 1)
    assert caplog.messages == ["SOME_SIZE is odd"]


def test_an_agent_of_torchrun_in_a_worker_that_tells_no_launch_is_no_silent_run_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start_as(slurm_task(1) | {"TORCHELASTIC_RUN_ID": "outer"}, monkeypatch)
    with pytest.raises(LauncherError, match="TORCHELASTIC_RUN_ID=outer"):
        torchrun_handler()(RendezvousParameters("rallypoint", "", "none", 1, 1))


def test_torchrun_without_a_launcher_is_as_before() -> None:
    made = handled("", "none", 1, 1)
    assert (made.node.run_id, made.run.max_nodes) == ("none", 1)
    assert made.node.endpoint.kind is EndpointKind.LOCAL
