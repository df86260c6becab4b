"""From the options of `rallypoint run` to what the agent is given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest
import typer

from rallypoint import settings
from rallypoint.cli import main
from rallypoint.cli.run_config import build_config, program_argv
from rallypoint.core.values import RUN_OPTIONS, RunSettings
from rallypoint.errors import EndpointError, ProgramNotFoundError, UsageError
from rallypoint.launch import affinity
from rallypoint.launch.agent import AgentConfig
from rallypoint.launch.console_rule import SHOW_ALL, STDERR, STDOUT
from rallypoint.launch.warm_starts import Preload
from rallypoint.settings import EndpointKind, parse_endpoint
from rallypoint.settings.launcher import FROM_LAUNCHER
from tests.environments.recorded import mpi_process, pod, slurm_job, slurm_task


def _config(script: str, environ: dict[str, str] | None = None, **options: Any) -> AgentConfig:
    options.setdefault("program", [script, "--lr", "0.1"])
    return build_config(options, environ=environ or {}, note=_no_note)


def _no_note(text: str) -> None:
    raise AssertionError(f"nothing was to be said: {text}")


def test_no_options_are_one_worker_on_this_machine(script: str) -> None:
    config = _config(script)
    assert config.run == RunSettings()
    assert config.node.endpoint.kind is EndpointKind.LOCAL
    assert config.argv == (sys.executable, "-u", script, "--lr", "0.1")
    assert (config.workers, config.stop_timeout_s, config.regroup_stop_timeout_s) == (1, 25, 5)
    assert (config.log_dir, config.console, config.prefix) == (None, SHOW_ALL, True)
    assert config.node.stop_s == 5


def test_all_options_arrive(script: str) -> None:
    config = _config(
        script,
        nnodes="2:4",
        nproc_per_node="8",
        endpoint="node0:1",
        run_id="job",
        node_name="me",
        local_addr="10.0.0.1",
        host_coordinator="no",
        join_timeout="1h",
        last_call="1m",
        expected_nodes="3",
        rank_policy="natural",
        max_restarts="any",
        stop_timeout="10",
        regroup_stop_timeout="500ms",
        log_dir="/logs",
        tee=False,
        prefix=False,
        label=["rack=7", "note=a=b"],
        set=["lost_after=1m", "mass-min=5", "coordinator_silence_s=9"],
    )
    node, run = config.node, config.run
    assert node.endpoint == parse_endpoint("node0:1")
    assert (node.run_id, node.node_name, node.local_addr) == ("job", "me", "10.0.0.1")
    assert (node.host_coordinator, node.join_timeout_s) == ("no", 3600)
    assert node.coordinator_silence_s == 9
    assert node.labels == {"rack": "7", "note": "a=b"}
    assert (run.min_nodes, run.max_nodes, run.expected_nodes) == (2, 4, 3)
    assert (run.last_call_s, run.rank_policy, run.max_restarts) == (60, "natural", None)
    assert (run.lost_after_s, run.mass_min) == (60, 5)
    assert (config.workers, config.stop_timeout_s, config.regroup_stop_timeout_s) == (8, 10, 0.5)
    assert (config.log_dir, config.console.tee, config.prefix) == ("/logs", False, False)
    assert config.node.stop_s == 0.5


def test_a_nodes_stop_time_is_at_most_a_minute(script: str) -> None:
    config = _config(script, regroup_stop_timeout="5m")
    assert (config.regroup_stop_timeout_s, config.node.stop_s) == (300, 60)


def test_an_option_wins_over_the_environment(script: str) -> None:
    environ = {
        "RALLYPOINT_ENDPOINT": "theirs:1",
        "RALLYPOINT_RUN_ID": "job",
        "RALLYPOINT_MAX_RESTARTS": "3",
        "RALLYPOINT_NPROC_PER_NODE": "2",
        "RALLYPOINT_STOP_TIMEOUT": "7",
        "RALLYPOINT_TOKEN": "t",
    }
    config = _config(script, environ, endpoint="mine:1", max_restarts="any")
    assert config.node.endpoint.host == "mine"
    assert (config.run.max_restarts, config.workers, config.stop_timeout_s) == (None, 2, 7)
    assert config.node.token == "t"


def test_standalone_is_this_machine_whatever_the_environment_says(script: str) -> None:
    environ = {"RALLYPOINT_ENDPOINT": "theirs:1", "RALLYPOINT_NNODES": "4"}
    config = _config(script, environ, standalone=True, nproc_per_node="4")
    assert config.node.endpoint.kind is EndpointKind.LOCAL
    assert (config.run.min_nodes, config.run.max_nodes, config.workers) == (1, 1, 4)


def test_a_token_file_is_read(script: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("hunter2\n")
    assert _config(script, token_file=str(path)).node.token == "hunter2"


# -- torchrun ------------------------------------------------------------------------------------


def test_options_of_torchrun_have_the_same_meaning(script: str) -> None:
    config = _config(
        script,
        nnodes="2",
        rdzv_backend="c10d",
        rdzv_endpoint="node0:29500",
        rdzv_id="456",
        rdzv_conf="join_timeout=60,last_call_timeout=5,is_host=true",
    )
    assert config.node.endpoint == parse_endpoint("node0:29500")
    assert (config.node.run_id, config.node.join_timeout_s) == ("456", 60)
    assert (config.run.last_call_s, config.node.host_coordinator) == (5, "yes")


def test_empty_options_of_torchrun_count_as_not_given(script: str) -> None:
    assert _config(script, rdzv_backend="", rdzv_endpoint="", rdzv_conf="") is not None


def test_options_without_effect_are_reported(script: str) -> None:
    notes: list[str] = []
    options = {
        "program": [script],
        "monitor_interval": "0.1",
        "rdzv_conf": "keep_alive_interval=5",
    }
    build_config(options, environ={}, note=notes.append)
    assert [note.partition(" has no effect")[0] for note in notes] == [
        "--rdzv-conf keep_alive_interval",
        "--monitor-interval",
    ]


@pytest.mark.parametrize(
    ("options", "told", "hint"),
    [
        ({"nnodes": "4:2"}, "--nnodes must be MIN:MAX with MIN not above MAX", "MIN:MAX"),
        ({"nnodes": "0"}, "--nnodes must be at least one node", "MIN:MAX"),
        ({"nproc_per_node": "0"}, "--nproc-per-node must be at least one worker", "auto"),
        ({"nproc_per_node": "-1"}, "--nproc-per-node must be", "auto"),
        (
            {"nnodes": "2"},
            "up to 2 nodes need --endpoint: they have no place to meet",
            "--endpoint",
        ),
        (
            {"nnodes": "1:2"},
            "up to 2 nodes need --endpoint: they have no place to meet",
            "--endpoint",
        ),
        ({"endpoint": "node0:1", "nnodes": "2"}, "needs a run id", "--run-id"),
        ({"run_id": ""}, "--run-id must have 1 to 256", ""),
        ({"max_restarts": "-1"}, "--max-restarts must be a number of restarts", ""),
        ({"join_timeout": "0"}, "join_timeout_s must be more than 0", "--join-timeout sets it"),
        ({"set": ["probe=9999w"]}, "probe_s must be within", "--set probe sets it"),
        (
            {"set": ["lost_after=1"]},
            "lost_after_s (1) must not be below suspect_after_s (5)",
            "--set lost_after, --set suspect_after=... set them",
        ),
        ({"rank_policy": "best"}, "--rank-policy must be one of", ""),
        ({"host_coordinator": "x"}, "--host-coordinator must be one of auto, yes, no", ""),
        (
            {"expected_nodes": "2"},
            "expected_nodes (2) must be within min_nodes (1) and max_nodes (1)",
            "--expected-nodes, --nnodes set them",
        ),
        ({"token_file": "/nonexistent"}, "cannot read token file '/nonexistent'", "chmod"),
        ({"label": ["rack"]}, "--label must be NAME=TEXT, not 'rack'", ""),
        ({"label": ["=7"]}, "--label must be NAME=TEXT, not '=7'", ""),
        ({"set": ["lost_after"]}, "--set must be NAME=VALUE", ""),
        ({"set": ["nonsense=1"]}, "no setting 'nonsense'", "rallypoint env"),
        ({"set": ["lost_after=soon"]}, "--set lost_after must be a duration", ""),
        ({"set": ["token=hunter2"]}, "a token on a command line", "--token-file"),
        ({"last_call": "1", "set": ["last_call=2"]}, "--last-call and --set last_call", "one"),
        ({"standalone": True, "endpoint": "a:1"}, "--standalone uses no endpoint", ""),
        ({"standalone": True, "rdzv_endpoint": "a:1"}, "--standalone uses no endpoint", ""),
        ({"standalone": True, "nnodes": "2"}, "--standalone is one node", ""),
        ({"endpoint": "a:1", "rdzv_endpoint": "b:1"}, "contradict each other", "one of them"),
        ({"rdzv_backend": "etcd"}, "--rdzv-backend etcd is not supported", "--endpoint"),
        ({"rdzv_conf": "is_host=perhaps"}, "--rdzv-conf is_host must be true or false", ""),
        ({"rdzv_conf": "nonsense=1"}, "no setting 'nonsense'", "rallypoint env"),
        ({"rdzv_conf": "join_timeout"}, "--rdzv-conf must be K=V", ""),
        ({"node_rank": "0"}, "--node-rank alone is not enough", "--endpoint"),
        ({"master_addr": "x"}, "--master-addr alone is not enough", "--endpoint"),
        ({"master_port": "1"}, "--master-port alone is not enough", "--endpoint"),
        ({"redirects": "4"}, "--redirects must be 0 to 3", "RANK:N"),
        ({"tee_streams": "0:1,1"}, "--tee must be 0 to 3", "RANK:N"),
        ({"local_ranks_filter": "a"}, "--local-ranks-filter must be local ranks", "0,1,2"),
        ({"stdin": "1"}, "--stdin must be a local rank below 1, or none", ""),
        ({"stdin": "x"}, "--stdin must be a local rank", ""),
        ({"role": ""}, "--role must be a printable name", ""),
        ({"shutdown_timeout": "5", "stop_timeout": "6"}, "contradict each other", "one of them"),
        ({"endpoint": "node0:0", "nnodes": "2", "run_id": "j"}, "--endpoint: endpoint", ""),
        ({"program": []}, "no program to run", "train.py"),
        ({"no_python": True, "module": True}, "cannot be given together", ""),
    ],
)
def test_impossible_options_are_refused_with_a_reason(
    script: str, options: dict[str, Any], told: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        _config(script, **options)
    assert told in caught.value.message
    assert hint in f"{caught.value.message} {caught.value.hint}"
    assert "hunter2" not in str(caught.value)


def test_a_bad_endpoint_is_refused_by_its_option(script: str) -> None:
    with pytest.raises(EndpointError, match="--rdzv-endpoint: endpoint 'a:0'"):
        _config(script, rdzv_endpoint="a:0", nnodes="2")


def test_a_bad_variable_is_named(script: str) -> None:
    with pytest.raises(UsageError, match="RALLYPOINT_NPROC_PER_NODE must be at least one worker"):
        _config(script, {"RALLYPOINT_NPROC_PER_NODE": "0"})


# -- one node, or several ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ",
    [
        {"PET_NNODES": "2"},
        {"PET_NNODES": "1:4"},
        slurm_job(),
        slurm_job() | {"SLURM_STEP_NUM_NODES": "2"},
        slurm_task(1) | {"TORCHELASTIC_RUN_ID": "outer"},
        slurm_task(1) | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"SLURM_NNODES": "4", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"PMI_SIZE": "2"},
        {"FLUX_JOB_NNODES": "3"},
        {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "pod-0"},
        pod(1),
    ],
)
def test_a_world_of_one_among_several_is_refused(script: str, environ: dict[str, str]) -> None:
    """Each of four machines would train alone and end well."""
    with pytest.raises(UsageError) as caught:
        _config(script, environ)
    if "PET_NNODES" not in environ:
        assert any(f"{name}={text}" in caught.value.message for name, text in environ.items())
    # An explicit number of one node is accepted.
    assert _config(script, environ, nnodes="1").run.max_nodes == 1
    assert _config(script, environ, standalone=True).run.max_nodes == 1
    assert _config(script, {**environ, "RALLYPOINT_NNODES": "1"}).run.max_nodes == 1
    assert _config(script, environ, nnodes="4", endpoint="a:1", run_id="j").run.max_nodes == 4


@pytest.mark.parametrize(
    "environ",
    [
        {"PET_NNODES": "1", "SLURM_NNODES": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        slurm_job() | slurm_task(0, nodes=1),
        {"PET_NNODES": "", "PMI_SIZE": "1"},
        {"WORLD_SIZE": "8"},
        # A worker of another agent, which starts a job of its own.
        {"WORLD_SIZE": "8", "RANK": "0", "MASTER_ADDR": "a", "TORCHELASTIC_RUN_ID": "j"},
    ],
)
def test_one_node_is_one_node(script: str, environ: dict[str, str]) -> None:
    assert _config(script, environ).run.max_nodes == 1


def test_the_launcher_gives_what_is_not_given(script: str) -> None:
    config = _config(script, slurm_task(1))
    assert (config.run.min_nodes, config.run.max_nodes, config.run.expected_nodes) == (4, 4, 4)
    hosts = [each.host for each in config.node.endpoint.hosts]
    assert hosts == ["n1", "n2", "n3", "n4", "10.77.0.1"]
    assert config.node.endpoint.spare_ports == 15
    assert (config.node.run_id, config.node.node_name) == ("slurm-2.0", "n2")
    assert config.node.host_coordinator == "no"
    assert (config.node.node_index, config.run.rank_policy) == (1, "index")
    assert _config(script, slurm_task(0)).node.host_coordinator == "yes"


def test_a_job_that_a_worker_has_submitted_is_a_run_of_its_own(script: str) -> None:
    """sbatch passes on what the agent of another job has set."""
    outer = {
        "RALLYPOINT_LAUNCH": "slurm/1",
        "RALLYPOINT_AGENT": "/run/agent.sock",
        "RALLYPOINT_RUN_ID": "slurm-1.0",
        "TORCHELASTIC_RUN_ID": "slurm-1.0",
    }
    config = _config(script, slurm_task(1) | outer)
    assert (config.node.run_id, config.run.min_nodes) == ("slurm-2.0", 4)


def test_a_range_of_nodes_leaves_the_rest_to_the_launcher(script: str) -> None:
    config = _config(script, slurm_task(1), nnodes="3:4")
    assert (config.run.min_nodes, config.run.max_nodes, config.run.expected_nodes) == (3, 4, 4)
    # What exceeds the maximum are spares.
    assert _config(script, slurm_task(1), nnodes="2:3").run.expected_nodes == 3


def test_a_users_own_run_has_nothing_of_the_launchers(script: str) -> None:
    config = _config(script, slurm_task(1), endpoint="http://a:1", run_id="mine", nnodes="2:8")
    assert config.run.expected_nodes is None
    assert (config.node.run_id, config.node.host_coordinator) == ("mine", "auto")
    # The run is the launcher's, in a place of the user's.
    config = _config(script, slurm_task(1), endpoint="file:///shared/folder", nnodes="3:4")
    assert (config.node.run_id, config.run.expected_nodes) == ("slurm-2.0", 4)
    assert config.node.host_coordinator == "auto"


def test_a_run_of_one_node_has_nothing_of_the_other_nodes(script: str) -> None:
    config = _config(script, slurm_task(1), nnodes="1")
    assert config.node.endpoint.kind is EndpointKind.LOCAL
    assert config.node.run_id.startswith("local-")
    assert config.run.expected_nodes is None


def test_too_few_nodes_for_the_run_are_an_error_at_once(script: str) -> None:
    with pytest.raises(UsageError) as caught:
        _config(script, slurm_task(1), nnodes="60:64")
    assert "SLURM_STEP_NUM_TASKS=4: Slurm has started 4 nodes" in caught.value.message
    assert "--nnodes MIN:MAX" in caught.value.hint
    # Others may come from elsewhere to a place of the user's.
    assert _config(script, slurm_task(1), nnodes="60:64", endpoint="h:1").run.min_nodes == 60


def test_the_end_of_the_job_is_used_unless_the_user_gives_a_stop_time(script: str) -> None:
    environ = slurm_task(1) | {"SLURM_JOB_END_TIME": "1796000000"}
    assert _config(script, environ).ends_at_s == 1_796_000_000
    assert _config(script, environ, nnodes="1").ends_at_s == 1_796_000_000
    assert _config(script, slurm_task(1)).ends_at_s is None
    assert _config(script, environ, stop_timeout="25").ends_at_s is None
    assert _config(script, environ | {"RALLYPOINT_STOP_TIMEOUT": "25"}).ends_at_s is None


def test_a_worker_sees_all_devices_or_its_own(script: str) -> None:
    assert not _config(script, {}).sees_own_device
    assert not _config(script, {}, visible_devices="all").sees_own_device
    assert _config(script, {}, visible_devices="own").sees_own_device
    with pytest.raises(UsageError, match="must be all or own, not 'mine'"):
        _config(script, {}, visible_devices="mine")


def test_workers_are_bound_near_their_gpus(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    topology = affinity.Topology(
        gpu_nodes=(1, 0),
        node_cpus={0: frozenset({0, 1}), 1: frozenset({2, 3})},
        sockets=dict.fromkeys(range(4), 0),
        cores={cpu: cpu for cpu in range(4)},
        caches={cpu: cpu for cpu in range(4)},
    )
    monkeypatch.setattr(affinity, "read_topology", lambda environ: topology)
    config = _config(script, {}, nproc_per_node="2", numa_binding="node")
    assert config.cpus == (frozenset({2, 3}), frozenset({0, 1}))
    assert _config(script, {}, nproc_per_node="2").cpus == ()
    with pytest.raises(UsageError, match="no GPU for local rank 2; the workers see 2 GPUs"):
        _config(script, {}, nproc_per_node="3", numa_binding="node")
    with pytest.raises(UsageError, match="must be node, socket, exclusive, core-complex, not 'x'"):
        _config(script, {}, numa_binding="x")


def test_several_tasks_on_a_node_may_not_have_several_workers(script: str) -> None:
    environ = slurm_task(1, nodes=2, per_node=2)
    with pytest.raises(UsageError, match="several tasks on a node") as caught:
        _config(script, environ, nproc_per_node="2")
    assert "--ntasks-per-node=1" in caught.value.hint
    assert _config(script, environ).run.max_nodes == 4
    assert _config(script, environ, nnodes="1", nproc_per_node="2").workers == 2


def test_a_node_list_that_cannot_be_read_is_overridden_by_an_endpoint(script: str) -> None:
    environ = slurm_task(1) | {"SLURM_STEP_NODELIST": "n[1-"}
    with pytest.raises(UsageError, match=r"SLURM_STEP_NODELIST=n\[1- has a bracket"):
        _config(script, environ)
    assert _config(script, environ, endpoint="n1").node.endpoint.host == "n1"


@pytest.mark.parametrize(
    ("variable", "text", "override"),
    [
        ("PET_NNODES", "abc", "--nnodes (RALLYPOINT_NNODES) overrides it"),
        ("PET_NPROC_PER_NODE", "abc", "--nproc-per-node (RALLYPOINT_NPROC_PER_NODE) overrides it"),
        ("PET_RDZV_ENDPOINT", "h:x", "--endpoint (RALLYPOINT_ENDPOINT) overrides it"),
        ("PET_RDZV_ID", " a\x07", "--run-id (RALLYPOINT_RUN_ID) overrides it"),
    ],
)
def test_a_value_of_torchrun_that_cannot_be_read_names_its_variable_and_the_option(
    script: str, variable: str, text: str, override: str
) -> None:
    environ = {"PET_NNODES": "2", "PET_RDZV_ENDPOINT": "h:1", "PET_RDZV_ID": "r", variable: text}
    with pytest.raises(UsageError, match=variable) as caught:
        _config(script, environ)
    assert override in caught.value.hint


def test_each_setting_names_an_option_that_there_is() -> None:
    """And one that has an option of its own names that."""
    run = cast(Any, typer.main.get_command(main.app)).commands["run"]
    options = {each for param in run.params for each in param.opts if not param.hidden}
    named = {each.name: each.option for each in settings.SETTINGS}
    for name, option in {**named, **RUN_OPTIONS}.items():
        stem = name.removesuffix("_s")
        own = f"--{stem.replace('_', '-')}"
        if option == f"--set {stem}=...":
            assert own not in options
        else:
            assert option in options
    assert {*RUN_OPTIONS} <= {*RunSettings.__struct_fields__}


def test_each_setting_that_a_launcher_gives_has_the_option_that_overrides_it(script: str) -> None:
    texts = {"host_coordinator": "yes", "rank_policy": "index", "nnodes": "2", "endpoint": "h:1"}
    base = {"nnodes": "2", "endpoint": "h:1", "run_id": "r"}
    for name in sorted(FROM_LAUNCHER):
        option = settings.setting(name).option
        text = texts.get(name, "2")
        if option.startswith("--set "):
            given: dict[str, Any] = {"set": [option.removeprefix("--set ").replace("...", text)]}
        else:
            given = {option.removeprefix("--").replace("-", "_"): text}
        _config(script, **base | given)


@pytest.mark.parametrize(
    "alone", [{"PET_NNODES": "1"}, {"PET_NNODES": "1:1"}, {"PET_STANDALONE": "1"}]
)
@pytest.mark.parametrize("launcher", [slurm_task(1), slurm_job(), mpi_process(1), pod(1)])
def test_one_node_by_torchruns_variables_is_alone_in_any_launcher(
    script: str, alone: dict[str, str], launcher: dict[str, str]
) -> None:
    """As with the option --nnodes 1: it must not wait for the others' coordinator."""
    config = _config(script, launcher | alone)
    by_option = _config(script, launcher, nnodes="1")
    for made in (config, by_option):
        assert made.run.max_nodes == 1
        assert made.node.endpoint.kind is EndpointKind.LOCAL
        assert made.node.run_id.startswith("local-")
        assert made.node.host_coordinator == "auto"
    assert (
        _config(script, launcher | alone, nnodes="2", endpoint="h:1", run_id="r").run.max_nodes == 2
    )
    own = alone | {"PET_RDZV_ENDPOINT": "127.0.0.1:1", "PET_RDZV_ID": "r"}
    if "PET_NNODES" in alone:
        assert _config(script, launcher | own).node.endpoint.port == 1


def test_what_has_no_effect_is_noted(script: str) -> None:
    said: list[str] = []
    environ = {"PET_NNODES": "1", "PET_RDZV_CONF": "timeout=3"}
    build_config({"program": [script]}, environ=environ, note=said.append)
    assert said == ["warning: PET_RDZV_CONF has no effect: give its options by --rdzv-conf"]


def test_one_node_may_have_any_port_and_no_run_id(script: str) -> None:
    config = _config(script, rdzv_endpoint="localhost:0", nnodes="1")
    assert config.node.endpoint.kind is EndpointKind.LOCAL
    config = _config(script, rdzv_endpoint="localhost:29477", nnodes="1")
    assert (config.node.endpoint.port, config.node.run_id[:6]) == (29477, "local-")
    assert _config(script, standalone=True, rdzv_endpoint="localhost:0").run.max_nodes == 1


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "[::]"])
def test_an_endpoint_that_differs_on_each_machine_causes_a_warning(script: str, host: str) -> None:
    said: list[str] = []
    options = {"program": [script], "endpoint": f"{host}:29400", "nnodes": "2", "run_id": "j"}
    build_config(options, environ={}, note=said.append)
    assert len(said) == 1
    assert said[0].startswith(f"warning: {host.strip('[]')} means each machine itself")


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({}, 0),
        ({"nproc_per_node": "2"}, None),
        ({"nproc_per_node": "2", "stdin": "1"}, 1),
        ({"stdin": "none"}, None),
    ],
)
def test_a_lone_worker_reads_stdin(script: str, options: dict[str, Any], rank: int | None) -> None:
    assert _config(script, **options).stdin == rank


# -- torchrun's options --------------------------------------------------------------------------


def test_streams_have_the_names_of_torchrun(script: str) -> None:
    rule = _config(
        script, redirects="3", tee_streams="0:3,1:2", local_ranks_filter="0,1", log_dir="/logs"
    ).console
    shown = {(rank, s) for rank in range(3) for s in (STDOUT, STDERR) if rule.shows(rank, s)}
    assert shown == {(0, STDOUT), (0, STDERR), (1, STDERR)}
    assert rule.needs_files
    only_errors = _config(script, redirects="1", log_dir="/logs").console
    assert (only_errors.shows(5, STDOUT), only_errors.shows(5, STDERR)) == (False, True)
    assert not _config(script, redirects="0", tee_streams="0").console.needs_files


def test_output_without_a_file_is_shown(script: str) -> None:
    assert _config(script, tee=False).console.shows(0, STDOUT)


def test_roles_and_timeouts_of_torchrun(script: str) -> None:
    config = _config(
        script, role="trainer", shutdown_timeout="7", virtual_local_rank=True,
        log_line_prefix_template="[${role_name}]",
    )  # fmt: skip
    assert (config.role, config.stop_timeout_s, config.virtual_local_rank) == ("trainer", 7, True)
    assert config.prefix_template == "[${role_name}]"


def test_each_option_without_effect_gets_a_line(script: str) -> None:
    said: list[str] = []
    without = ("monitor_interval", "start_method", "signals_to_handle", "event_log_handler")
    more = ("logs_specs", "duplicate_stdout_filters", "duplicate_stderr_filters")
    agreed = ("node_rank", "master_addr", "master_port")
    options: dict[str, Any] = dict.fromkeys((*without, *more, *agreed), "1")
    options |= {"program": [script], "endpoint": "a:1", "run_id": "j", "run_path": True}
    build_config(options, environ={}, note=said.append)
    assert len(said) == len(options) - 3
    assert all("has no effect: " in line for line in said)


# -- the program ---------------------------------------------------------------------------------


def test_an_export_comes_before_the_program(script: str) -> None:
    before = (sys.executable, "-m", "rallypoint.launch.exports")
    assert _config(script, export="tf").argv == (
        *before,
        sys.executable,
        "-u",
        *_config(script).argv[2:],
    )
    with pytest.raises(UsageError, match="--export must be tf, not 'jax'"):
        _config(script, export="jax")


def test_a_module_and_an_executable() -> None:
    assert program_argv({"program": ["pkg.train", "-x"], "module": True}) == (
        *(sys.executable, "-u", "-m"),
        *("pkg.train", "-x"),
    )
    assert program_argv({"program": ["sh", "-c", "true"], "no_python": True}) == (
        *("sh", "-c", "true"),
    )


def test_modules_to_preload_are_named_or_learned(script: str) -> None:
    assert _config(script).preload is None
    assert _config(script, preload=True).preload == Preload(modules=(), learn_after_s=60.0)
    named = _config(script, preload_modules="torch, my.module,torch").preload
    assert named == Preload(modules=("torch", "my.module"), learn_after_s=60.0)
    quick = _config(script, preload=True, set=["preload_after=5s"]).preload
    assert quick == Preload(modules=(), learn_after_s=5.0)


@pytest.mark.parametrize("names", ["", "torch,", "my-module", "a b", "../x", "a..b"])
def test_what_is_no_name_of_a_module_cannot_be_preloaded(script: str, names: str) -> None:
    with pytest.raises(UsageError, match="--preload must be names of modules such as"):
        _config(script, preload_modules=names)


@pytest.mark.parametrize(
    ("program", "hint"),
    [
        (["torch", "train.py"], "to name modules, write --preload=torch"),
        (["torch,my.module", "-m", "train"], "to name modules, write --preload=torch,my.module"),
        (["no/such/train", "train.py"], "check the path"),
        (["trian"], "check the path"),
    ],
)
def test_names_of_modules_after_a_space_are_taken_for_the_program(
    program: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProgramNotFoundError) as caught:
        _config("", program=program, preload=True)
    assert caught.value.hint.startswith(hint)
    with pytest.raises(ProgramNotFoundError) as caught:
        _config("", program=program)
    assert "--preload" not in caught.value.hint


def test_the_program_itself_cannot_be_preloaded(script: str) -> None:
    for names in ("pkg.train", "torch,pkg.train.__main__"):
        with pytest.raises(UsageError, match="--preload names the program itself"):
            _config(script, program=["pkg.train"], module=True, preload_modules=names)


def test_a_program_that_cannot_be_forked_starts_cold_with_the_reason(script: str) -> None:
    other = "/bin/sh"
    for options, why in (
        ({"no_python": True, "program": ["sh"]}, "with --no-python, the program need not"),
        ({"python": other}, f"--python {other} is another interpreter than the agent's"),
        ({"export": "tf"}, "with --export tf, another program starts each worker"),
    ):
        preload = _config(script, preload=True, **options).preload
        assert preload is not None
        assert preload.problem.startswith(why) or sys.platform != "linux"
    same = _config(script, preload=True, python=sys.executable).preload
    assert same is not None
    assert same.problem == "" or sys.platform != "linux"


def test_another_python_and_a_directory(tmp_path: Path) -> None:
    argv = program_argv({"program": [str(tmp_path)], "python": sys.executable})
    assert argv == (sys.executable, "-u", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"program": ["/nonexistent/train.py"]}, "check the path; -m runs a module"),
        ({"program": ["sh"]}, "put --no-python before it"),
        ({"program": ["/nonexistent/a.out"], "no_python": True}, "executable"),
        ({"program": [__file__], "python": "/nonexistent/python"}, "--python"),
    ],
)
def test_a_missing_program_is_an_error(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(ProgramNotFoundError) as caught:
        program_argv(options)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2
