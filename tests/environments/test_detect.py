"""What is found in the environments of real launchers, and in broken ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rallypoint import environments, settings
from rallypoint.environments import Found
from rallypoint.errors import LauncherError

from .recorded import MPI_KEY, mpi_in_slurm, mpi_process, pod, pod_hosts, slurm_job, slurm_task


def nothing(path: str) -> str | None:
    return None


def detect(environ: dict[str, str], hosts: str | None = None) -> Found:
    return environments.detect(environ, {"/etc/hosts": hosts}.get)


def texts(found: Found) -> dict[str, str]:
    return {name: each.text for name, each in found.values.items()}


def test_without_a_launcher_nothing_is_found() -> None:
    assert detect({}) == environments.NOTHING
    assert detect({"HOSTNAME": "n1", "SLURM_CONF": "/etc/slurm.conf"}) == environments.NOTHING


@pytest.mark.parametrize("agent", ["RALLYPOINT_AGENT", "TORCHELASTIC_RUN_ID"])
@pytest.mark.parametrize("environ", [slurm_task(1), mpi_process(1), pod(1), {"PET_NNODES": "2"}])
def test_a_worker_of_an_agent_was_not_started_by_the_launcher(
    agent: str, environ: dict[str, str]
) -> None:
    assert detect(environ).launcher
    assert detect(environ | {agent: "x"}) == environments.NOTHING


@pytest.mark.parametrize(
    "environ",
    [
        slurm_task(1),
        mpi_in_slurm(1),
        pod(1),
        {"PET_NNODES": "2"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h"},
        {"PBS_NUM_NODES": "2"},
        {"PMIX_RANK": "0"},
    ],
)
def test_without_its_variables_a_launcher_is_not_found(environ: dict[str, str]) -> None:
    assert detect(environ).launcher
    rest = {name: text for name, text in environ.items() if not environments.is_launchers(name)}
    assert detect(rest) == environments.NOTHING


# -- workers of an agent -------------------------------------------------------------------------


def _worker_of(environ: dict[str, str]) -> dict[str, str]:
    """What a worker of `rallypoint run` has, and passes on to what it starts."""
    return environ | {
        "RALLYPOINT_LAUNCH": environments.launch_of(environ),
        "RALLYPOINT_AGENT": "/run/agent.sock",
        "RALLYPOINT_RUN_ID": "outer",
        "TORCHELASTIC_RUN_ID": "outer",
        "RANK": "3",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "h",
    }


NEXT_JOB = slurm_task(1) | {"SLURM_JOB_ID": "78", "SLURM_JOBID": "78"}


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ({}, NEXT_JOB),
        (slurm_task(1), NEXT_JOB),
        (slurm_job(), slurm_task(1)),
        (slurm_task(1), slurm_task(1, step=1)),
        (slurm_task(1), slurm_task(1, restarts=1)),
        (slurm_job(1), mpi_in_slurm(1)),
        (mpi_process(1), mpi_process(1) | {"OMPI_MCA_orte_precondition_transports": "other"}),
    ],
)
def test_an_agent_of_another_launch_hides_no_launcher(
    outer: dict[str, str], inner: dict[str, str]
) -> None:
    """sbatch, called in a worker, passes the worker's environment on to the next job."""
    passed_on = {**_worker_of(outer), **inner}
    assert detect(passed_on) == detect(inner) != environments.NOTHING
    assert "RALLYPOINT_RUN_ID" not in environments.without_stale(passed_on)
    mine = passed_on | {"RALLYPOINT_RUN_ID": "mine"}
    assert environments.without_stale(mine)["RALLYPOINT_RUN_ID"] == "mine"


@pytest.mark.parametrize("environ", [{}, slurm_job(), slurm_task(1), mpi_in_slurm(1), pod(1)])
def test_a_worker_of_this_launch_keeps_its_agent(environ: dict[str, str]) -> None:
    worker = _worker_of(environ)
    assert environments.without_stale(worker) is worker
    assert detect(worker) == environments.NOTHING
    # Programs remove variables of the launcher, to be alone.
    for prefix in ("SLURM", "SLURM_STEP", "OMPI_", "PMIX"):
        rest = {name: text for name, text in worker.items() if not name.startswith(prefix)}
        assert environments.without_stale(rest) is rest


def test_a_job_of_one_node_has_no_ranks_of_the_agent_that_submitted_it() -> None:
    assert detect(_worker_of({}) | slurm_job(1)) == environments.NOTHING


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (slurm_task(1), "SLURM_STEP_NUM_TASKS=4"),
        (slurm_job(), "SLURM_JOB_NUM_NODES=4"),
        (mpi_process(1), "OMPI_COMM_WORLD_SIZE=4"),
    ],
)
def test_a_node_is_not_alone_because_of_an_agent_that_tells_no_launch(
    environ: dict[str, str], told: str
) -> None:
    worker = environ | {"TORCHELASTIC_RUN_ID": "outer"}
    found = environments.detect(worker, nothing, is_node=True)
    assert set(found.problems) == {"nnodes"}
    problem = found.problems["nnodes"]
    assert told in problem.message
    assert "TORCHELASTIC_RUN_ID=outer" in problem.message
    assert "unset TORCHELASTIC_RUN_ID" in problem.hint
    assert "--nnodes 1" in problem.hint
    # A worker of torchrun, which joins.
    assert environments.detect(worker, nothing) == environments.NOTHING
    ours = _worker_of(environ)
    assert environments.detect(ours, nothing, is_node=True) == environments.NOTHING


def test_one_process_of_mpirun_in_each_of_several_tasks() -> None:
    one = {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}
    message = detect(slurm_task(1) | one).problems["nnodes"].message
    assert "OMPI_COMM_WORLD_SIZE=1 and SLURM_STEP_NUM_TASKS=4" in message
    assert detect(slurm_task(0, nodes=1) | one).nodes == 1
    assert detect(slurm_job() | one).nodes == 1


# -- Slurm ---------------------------------------------------------------------------------------


def test_a_task_of_slurm_knows_its_run() -> None:
    found = detect(slurm_task(1))
    assert found.launcher == "Slurm"
    assert not found.problems
    assert not found.labels
    assert found.nodes == 4
    assert texts(found) == {
        "nnodes": "4",
        "expected_nodes": "4",
        "run_id": "slurm-2.0",
        "endpoint": "n1,n2,n3,n4,10.77.0.1",
        "node_name": "n2",
        "node_index": "1",
        "rank_policy": "index",
        "host_coordinator": "no",
    }
    assert found.values["nnodes"].source == "launcher Slurm: SLURM_STEP_NUM_TASKS"
    assert found.values["run_id"].origin == "SLURM_JOB_ID, SLURM_STEP_ID"
    assert detect(slurm_task(0)).values["host_coordinator"].text == "yes"


def test_all_tasks_agree_on_the_run() -> None:
    all_found = [texts(detect(slurm_task(index))) for index in range(4)]
    for name in ("nnodes", "expected_nodes", "run_id", "endpoint"):
        assert len({each[name] for each in all_found}) == 1
    for name in ("node_name", "node_index"):
        assert len({each[name] for each in all_found}) == 4
    assert [each["host_coordinator"] for each in all_found] == ["yes", "no", "no", "no"]


def test_two_tasks_are_a_run_of_two() -> None:
    assert texts(detect(slurm_task(1, nodes=2)))["endpoint"] == "n1,n2,10.77.0.1"
    assert texts(detect(mpi_process(1, size=2)))["endpoint"].endswith(",n1,n2")


def test_a_requeued_job_and_another_step_are_other_runs() -> None:
    ids = [
        texts(detect(slurm_task(0, **more)))["run_id"]
        for more in ({}, {"restarts": 1}, {"restarts": 2}, {"step": 1})
    ]
    assert ids == ["slurm-2.0", "slurm-2.0-r1", "slurm-2.0-r2", "slurm-2.1"]


def test_jobs_of_two_clusters_with_one_ledger_are_two_runs() -> None:
    cluster = {"SLURM_CLUSTER_NAME": "a b"}
    found = detect(slurm_task(0, restarts=1) | cluster)
    assert texts(found)["run_id"] == "slurm-2.0-r1@a-b"
    assert found.values["run_id"].origin.endswith(", SLURM_CLUSTER_NAME")
    assert texts(detect(mpi_in_slurm(1) | cluster))["run_id"].startswith("mpi-slurm-2@a-b-")
    assert settings.resolve("run_id", None, slurm_task(0) | cluster).value == "slurm-2.0@a-b"


@pytest.mark.parametrize(
    ("text", "ends_at_s"), [("1796000000", 1_796_000_000), ("", None), ("0", None), ("soon", None)]
)
def test_the_end_of_the_job_is_known_where_slurm_tells_it(
    text: str, ends_at_s: float | None
) -> None:
    found = detect(slurm_task(0) | {"SLURM_JOB_END_TIME": text})
    assert (found.ends_at_s, found.problems) == (ends_at_s, {})


def test_tasks_that_share_a_node_have_names_of_their_own() -> None:
    found = detect(slurm_task(3, nodes=2, per_node=2))
    assert texts(found)["node_name"] == "n2-1"
    assert texts(found)["nnodes"] == "4"
    assert found.crowded is not None
    assert "SLURM_STEP_NUM_TASKS=4 on SLURM_STEP_NUM_NODES=2" in found.crowded.message
    assert "--nproc-per-node 1" in found.crowded.hint
    assert detect(slurm_task(3)).crowded is None


def test_a_step_of_one_task_is_one_node() -> None:
    found = detect(slurm_job(4) | slurm_task(0, nodes=1) | {"SLURM_JOB_NUM_NODES": "4"})
    assert texts(found) == {"nnodes": "1"}
    assert not found.problems


@pytest.mark.parametrize(
    "environ",
    [
        slurm_job(),
        {"SLURM_NNODES": "4"},
        # An interactive shell of salloc is a step of its own, with such an id.
        slurm_job() | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_a_job_without_a_step_needs_srun(environ: dict[str, str]) -> None:
    found = detect(environ)
    assert not found.values
    assert set(found.problems) == {"nnodes", "endpoint"}
    assert "NODES=4: the job has 4 nodes" in found.problems["nnodes"].message
    assert "put srun in front" in found.problems["nnodes"].hint
    assert "--nnodes 1" in found.problems["nnodes"].hint
    assert "--endpoint" in found.problems["endpoint"].hint


def test_a_job_of_one_node_needs_no_step() -> None:
    assert detect(slurm_job(1)) == environments.NOTHING


def test_the_switches_are_a_label() -> None:
    switches = {
        "SLURM_TOPOLOGY_ADDR": "s0.s3.n2",
        "SLURM_TOPOLOGY_ADDR_PATTERN": "switch.switch.node",
    }
    assert detect(slurm_task(1) | switches).labels["topology"].text == "s0.s3"


def test_all_nodes_on_one_host_meet_over_loopback() -> None:
    local = {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_SRUN_COMM_HOST": "127.0.0.1"}
    # The names may not resolve, and on other clusters the loopback address is another machine.
    assert texts(detect(slurm_task(0) | local))["endpoint"] == "n1,n2,n3,n4,127.0.0.1"


# -- Open MPI ------------------------------------------------------------------------------------


def test_a_process_of_open_mpi_knows_its_run() -> None:
    found = detect(mpi_process(2))
    assert found.launcher == "Open MPI"
    assert not found.problems
    assert texts(found) == {
        "nnodes": "4",
        "expected_nodes": "4",
        "run_id": "mpi-228917249-" + texts(found)["run_id"][-8:],
        "endpoint": "ctl,10.77.0.100,[fd77::100],n1,n2,n3,n4",
        "node_name": "n3",
        "node_index": "2",
        "rank_policy": "index",
        "host_coordinator": "no",
    }
    assert MPI_KEY not in str(found)
    other = detect(mpi_process(2) | {"OMPI_MCA_orte_precondition_transports": "another"})
    assert texts(other)["run_id"] != texts(found)["run_id"]


@pytest.mark.parametrize("environ", [mpi_process, mpi_in_slurm])
def test_all_processes_agree_on_the_run(environ: Callable[[int], dict[str, str]]) -> None:
    all_found = [detect(environ(rank)) for rank in range(4)]
    assert {each.launcher for each in all_found} == {"Open MPI"}
    for name in ("nnodes", "expected_nodes", "run_id"):
        assert len({texts(each)[name] for each in all_found}) == 1
    assert [texts(each)["node_index"] for each in all_found] == ["0", "1", "2", "3"]
    assert [texts(each)["node_name"] for each in all_found] == ["n1", "n2", "n3", "n4"]
    assert [texts(each)["host_coordinator"] for each in all_found] == ["yes", "no", "no", "no"]


def test_mpirun_wins_over_the_job_of_slurm_around_it() -> None:
    found = [texts(detect(mpi_in_slurm(rank))) for rank in range(4)]
    assert {each["endpoint"].split(",")[0] for each in found} == {"n1"}
    assert found[0]["run_id"].startswith("mpi-slurm-2-228917249-")
    again = texts(detect(mpi_in_slurm(0) | {"SLURM_RESTART_COUNT": "1"}))
    assert again["run_id"].startswith("mpi-slurm-2-r1-")


def test_processes_that_share_a_host_have_names_of_their_own() -> None:
    shared = {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    found = detect(mpi_process(1) | shared)
    assert texts(found)["node_name"] == "n2-1"
    assert found.crowded is not None
    assert "OMPI_COMM_WORLD_LOCAL_SIZE=2" in found.crowded.message


def test_without_any_host_the_endpoint_is_asked_for() -> None:
    names = ("OMPI_MCA_orte_node_regex", "OMPI_MCA_orte_hnp_uri")
    environ = {name: text for name, text in mpi_process(1).items() if name not in names}
    found = detect(environ)
    assert "on which host the first node is" in found.problems["endpoint"].message
    assert "--endpoint" in found.problems["endpoint"].hint


def test_pmix_alone_tells_no_number() -> None:
    found = detect({"PMIX_RANK": "0", "PMIX_NAMESPACE": "prun-1"})
    assert "PMIX_RANK=0" in found.problems["nnodes"].message
    assert "--nnodes" in found.problems["nnodes"].hint
    assert detect(slurm_task(1) | {"PMIX_RANK": "1"}).launcher == "Slurm"


# -- Kubernetes ----------------------------------------------------------------------------------


def test_a_pod_knows_its_index_and_the_first_pod() -> None:
    found = detect(pod(2), pod_hosts(2))
    assert found.launcher == "Kubernetes"
    assert texts(found) == {
        "node_index": "2",
        "rank_policy": "index",
        "host_coordinator": "no",
        "node_name": "train-2",
        "endpoint": "train-0.train.default.svc.cluster.local",
    }
    assert detect(pod(0), pod_hosts(0)).values["endpoint"].text == texts(found)["endpoint"]
    assert detect(pod(0), pod_hosts(0)).values["host_coordinator"].text == "yes"


def test_a_pod_is_told_the_lines_that_it_needs() -> None:
    problems = detect(pod(2), pod_hosts(2)).problems
    assert set(problems) == {"nnodes", "run_id"}
    assert "JOB_COMPLETION_INDEX=2" in problems["nnodes"].message
    for problem in problems.values():
        assert "RALLYPOINT_NNODES" in problem.hint
        assert "RALLYPOINT_RUN_ID" in problem.hint
    half = detect(pod(2) | {"RALLYPOINT_NNODES": "3"}, pod_hosts(2)).problems["run_id"]
    assert "RALLYPOINT_NNODES" not in half.hint
    assert "metadata.labels['batch.kubernetes.io/controller-uid']" in problems["run_id"].hint
    assert "restart-attempt" not in problems["run_id"].hint


def test_a_pod_of_a_jobset_is_told_the_lines_that_it_needs() -> None:
    job = "set-workers-0"
    found = detect(pod(3, job), pod_hosts(3, job, "set"))
    assert texts(found)["endpoint"] == "set-workers-0-0.set.default.svc.cluster.local"
    for what in ("jobset-uid", "job-index", "restart-attempt"):
        assert f"metadata.annotations['jobset.sigs.k8s.io/{what}']" in found.problems["run_id"].hint
    assert "replicas * completions" in found.problems["nnodes"].hint


JOBSET = {"JOBSET_UID": "u-1", "JOBSET_RESTART_ATTEMPT": "2"}


def jobset_pod(number: int, index: int, **variables: str) -> Found:
    job = f"set-workers-{number}"
    environ = pod(index, job) | JOBSET | {"JOBSET_JOB_INDEX": str(number)} | variables
    return detect(environ, pod_hosts(index, job, "set"))


def test_all_jobs_of_a_jobset_are_one_run() -> None:
    found = {(n, i): texts(jobset_pod(n, i)) for n in (0, 1, 10) for i in (0, 1)}
    assert {each["endpoint"] for each in found.values()} == {
        "set-workers-0-0.set.default.svc.cluster.local"
    }
    assert {each["run_id"] for each in found.values()} == {"set-workers-u-1-2"}
    hosts = [place for place, each in found.items() if each["host_coordinator"] == "yes"]
    assert hosts == [(0, 0)]
    places = [int(each["node_index"]) for each in found.values()]
    assert places == sorted(set(places))
    assert set(jobset_pod(1, 0).problems) == {"nnodes"}
    assert jobset_pod(1, 0).values["node_index"].origin == "JOBSET_JOB_INDEX, JOB_COMPLETION_INDEX"


def test_a_pod_of_a_later_job_of_a_jobset_does_not_begin_a_run_of_its_own() -> None:
    """Whatever is given beside its number: each Job of the JobSet has a pod 0."""
    job = "js-workers-3"
    given = {
        "RALLYPOINT_NNODES": "8",
        "RALLYPOINT_RUN_ID": "u",
        "RALLYPOINT_ENDPOINT": "http://h:1",
    }
    environ = pod(0, job) | given
    found = detect(environ, pod_hosts(0, job, "js"))
    problem = found.problems["node_index"]
    assert "js-workers-3" in problem.message
    for name in ("JOBSET_UID", "JOBSET_JOB_INDEX", "JOBSET_RESTART_ATTEMPT"):
        assert f"- name: {name}\n" in problem.hint
    assert "remove RALLYPOINT_RUN_ID" in problem.hint
    with pytest.raises(LauncherError, match="js-workers-3"):
        settings.node_settings(environ=environ, found=found)
    # A user says so: each Job is a run of its own.
    mine = {**environ, "RALLYPOINT_NODE_INDEX": "0"}
    assert settings.node_settings(environ=mine, found=found).node_index == 0


def test_a_job_whose_name_has_a_number_is_no_job_of_a_jobset() -> None:
    for job, subdomain in (("train-2", "train"), ("exp-lr-3", "exp-lr-3")):
        found = detect(pod(1, job), pod_hosts(1, job, subdomain))
        assert set(found.problems) == {"nnodes", "run_id"}
        assert "JOBSET" not in found.problems["run_id"].hint
    # The lines of a JobSet have no text there.
    empty = dict.fromkeys(("JOBSET_UID", "JOBSET_JOB_INDEX", "JOBSET_RESTART_ATTEMPT"), "")
    found = detect(pod(1, "exp-lr-3") | empty, pod_hosts(1, "exp-lr-3", "exp"))
    assert set(found.problems) == {"nnodes", "run_id"}
    assert "controller-uid" in found.problems["run_id"].hint
    assert texts(found)["endpoint"] == "exp-lr-3-0.exp.default.svc.cluster.local"


def test_what_a_jobset_does_not_tell_is_asked_for() -> None:
    old = jobset_pod(1, 0, JOBSET_UID="")
    assert "0.9" in old.problems["run_id"].hint
    wrong = jobset_pod(1, 0, JOBSET_JOB_INDEX="2")
    assert "JOBSET_JOB_INDEX=2" in wrong.problems["run_id"].message
    assert "contradict" in wrong.problems["run_id"].message
    job = "set-workers-1"
    alone = detect(pod(0, job) | {"JOBSET_JOB_INDEX": "1"}, pod_hosts(0, job, "set"))
    assert "- name: JOBSET_UID" in alone.problems["run_id"].hint
    assert "JOBSET_JOB_INDEX" not in alone.problems["run_id"].hint


@pytest.mark.parametrize("hosts", [None, pod_hosts(1, subdomain="")])
def test_a_pod_without_a_subdomain_is_told_of_the_service(hosts: str | None) -> None:
    problem = detect(pod(1), hosts).problems["endpoint"]
    assert "JOB_COMPLETION_INDEX=1" in problem.message
    assert "subdomain" in problem.hint


def test_a_pod_whose_host_name_is_its_full_name() -> None:
    full = {"HOSTNAME": "train-2.train.default.svc.cluster.local"}
    found = detect(pod(2) | full, pod_hosts(2))
    assert texts(found)["endpoint"] == "train-0.train.default.svc.cluster.local"
    assert texts(found)["node_name"] == "train-2"


# -- torchrun's variables ------------------------------------------------------------------------


def test_torchruns_variables_are_options() -> None:
    environ = {
        "PET_NNODES": "2:4",
        "PET_NPROC_PER_NODE": "8",
        "PET_RDZV_ENDPOINT": "host0:29401",
        "PET_RDZV_ID": "job",
        "PET_RDZV_BACKEND": "c10d",
        "PET_MAX_RESTARTS": "3",
        "PET_NODE_RANK": "1",
    }
    found = detect(environ)
    assert texts(found) == {
        "nnodes": "2:4",
        "nproc_per_node": "8",
        "endpoint": "host0:29401",
        "run_id": "job",
        "max_restarts": "3",
        "node_index": "1",
        "rank_policy": "index",
    }
    assert found.values["nnodes"].source == "launcher torchrun: PET_NNODES"


def test_a_static_rendezvous_has_the_first_node_as_its_host() -> None:
    environ = {"PET_NNODES": "2", "PET_MASTER_ADDR": "m", "PET_MASTER_PORT": "29500"}
    found = detect(environ | {"PET_NODE_RANK": "0"})
    assert texts(found)["endpoint"] == "m:29500"
    assert texts(found)["host_coordinator"] == "yes"
    assert found.is_id_of_endpoint


def test_torchruns_variables_are_laid_over_a_launchers() -> None:
    found = detect(slurm_task(1) | {"PET_NNODES": "2:4", "PET_RDZV_ID": "mine"})
    assert found.launcher == "torchrun, Slurm"
    assert texts(found)["nnodes"] == "2:4"
    assert texts(found)["expected_nodes"] == "4"
    assert texts(found)["run_id"] == "mine"
    assert texts(found)["endpoint"].startswith("n1,")
    assert texts(found)["host_coordinator"] == "no"
    elsewhere = detect(slurm_task(0) | {"PET_RDZV_ENDPOINT": "http://h:1"})
    assert "host_coordinator" not in elsewhere.values
    # Kubeflow's TrainJob: a JobSet, and all that torchrun needs.
    trainer = {"PET_NNODES": "4", "PET_MASTER_ADDR": "a-node-0-0.a", "PET_NODE_RANK": "2"}
    found = detect(pod(2, "a-node-0") | trainer, pod_hosts(2, "a-node-0", "a"))
    assert not found.problems
    assert texts(found)["node_name"] == "a-node-0-2"
    assert texts(found)["endpoint"] == "a-node-0-0.a:29400"


def test_torchruns_own_rendezvous_with_etcd_is_refused() -> None:
    found = detect({"PET_NNODES": "2", "PET_RDZV_BACKEND": "etcd", "PET_RDZV_ENDPOINT": "e:1"})
    assert "PET_RDZV_BACKEND='etcd'" in found.problems["endpoint"].message


def test_options_of_the_rendezvous_are_not_taken_over_in_silence() -> None:
    assert "PET_RDZV_CONF" in detect({"PET_NNODES": "2", "PET_RDZV_CONF": "a=b"}).warnings[0]
    assert "PET_RDZV_CONF" in detect({"PET_RDZV_CONF": "a=b"}).warnings[0]


RANKED = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456"}


def test_the_variables_of_a_process_group_are_enough() -> None:
    found = detect(RANKED)
    assert texts(found) == {
        "nnodes": "2",
        "expected_nodes": "2",
        "endpoint": "pod-0:23456",
        "run_id": "torch-23456",
        "node_index": "1",
        "rank_policy": "index",
        "host_coordinator": "no",
    }
    assert found.is_id_of_endpoint
    # A script for Slurm often sets them for its own program.
    assert detect(slurm_task(3) | RANKED).launcher == "Slurm"
    assert detect(RANKED | {"WORLD_SIZE": "1", "RANK": "0"}) == environments.NOTHING
    # An option of torchrun's for the endpoint: the id is not good for it.
    assert detect(RANKED | {"PET_NNODES": "2"}).is_id_of_endpoint
    elsewhere = detect(RANKED | {"PET_RDZV_ENDPOINT": "http://h:1"})
    assert "run_id" not in elsewhere.values
    named = detect(RANKED | {"PET_RDZV_ENDPOINT": "http://h:1", "PET_RDZV_ID": "j"})
    assert texts(named)["run_id"] == "j"
    assert not named.is_id_of_endpoint
    assert detect({"WORLD_SIZE": "8"}) == environments.NOTHING


# -- broken environments -------------------------------------------------------------------------


def _without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: text for name, text in environ.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (slurm_task(1) | {"SLURM_PROCID": "4"}, "SLURM_PROCID=4 and SLURM_STEP_NUM_TASKS=4"),
        (slurm_task(1) | {"SLURM_PROCID": "x"}, "SLURM_PROCID=x is not a number"),
        (slurm_task(1) | {"SLURM_STEP_NUM_TASKS": "1e9"}, "SLURM_STEP_NUM_TASKS=1e9"),
        (slurm_task(1) | {"SLURM_STEP_ID": "-1"}, "SLURM_STEP_ID=-1"),
        (slurm_task(1) | {"SLURM_HET_SIZE": "2"}, "SLURM_HET_SIZE=2"),
        (_without(slurm_task(1), "SLURM_PROCID"), "but SLURM_PROCID is not"),
        (_without(slurm_task(1), "SLURM_STEP_ID"), "but SLURM_STEP_ID is not"),
        (_without(slurm_task(1), "SLURM_STEP_NUM_NODES"), "but SLURM_STEP_NUM_NODES is not"),
        (_without(slurm_task(1), "SLURM_JOB_ID", "SLURM_JOBID"), "but SLURM_JOB_ID is not"),
        (mpi_process(1) | {"OMPI_COMM_WORLD_RANK": "9"}, "OMPI_COMM_WORLD_RANK=9"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "but OMPI_COMM_WORLD_RANK is not"),
        ({"OMPI_COMM_WORLD_RANK": "4"}, "but OMPI_COMM_WORLD_SIZE is not"),
        (pod(1) | {"JOB_COMPLETION_INDEX": "one"}, "JOB_COMPLETION_INDEX=one"),
        ({"PET_NODE_RANK": "one"}, "PET_NODE_RANK=one"),
        (RANKED | {"RANK": "2"}, "RANK=2 and WORLD_SIZE=2 contradict each other"),
    ],
)
def test_variables_that_contradict_each_other_are_named(environ: dict[str, str], told: str) -> None:
    found = detect(environ)
    assert set(found.problems) == {"nnodes", "endpoint", "run_id"}
    for problem in found.problems.values():
        assert told in problem.message
        assert "--nnodes, --endpoint and --run-id" in problem.hint


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (slurm_task(1) | {"SLURM_STEP_NODELIST": "n[1-"}, "SLURM_STEP_NODELIST=n[1- has a bracket"),
        (slurm_task(1) | {"SLURM_STEP_NODELIST": "n[1-3]"}, "n[1-3] has 3 nodes, and SLURM_STEP"),
        (slurm_task(1) | {"SLURM_STEP_NODELIST": "(null)"}, "SLURM_STEP_NODELIST=(null) has"),
        (mpi_process(1) | {"OMPI_MCA_orte_node_regex": "n[1:"}, "OMPI_MCA_orte_node_regex=n[1:"),
    ],
)
def test_a_node_list_that_cannot_be_read_is_a_problem_of_the_endpoint(
    environ: dict[str, str], told: str
) -> None:
    found = detect(environ)
    assert set(found.problems) == {"endpoint"}
    assert told in found.problems["endpoint"].message
    assert "--endpoint" in found.problems["endpoint"].hint
    assert "nnodes" in found.values


def test_a_value_and_a_problem_exclude_each_other() -> None:
    every: list[Any] = [slurm_task(1), slurm_job(), mpi_process(1), pod(1), RANKED]
    for environ in every:
        for more in ({}, {"PET_NNODES": "2"}, {"PET_RDZV_ID": "j", "PET_MASTER_ADDR": "a"}):
            found = detect(environ | more)
            assert not set(found.values) & set(found.problems)
