"""No silent world of one: what shows that there are more nodes is refused, if it does not suffice.

And its reverse: what a single node has by right is not refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint import environments
from rallypoint.environments import Found

from .recorded import hydra_process, mpi5_process, mpi_process, pod, slurm_job, slurm_task

Environ = dict[str, str]


def detect(environ: Mapping[str, str], **files: str) -> Found:
    return environments.detect(environ, {f"/{name}": text for name, text in files.items()}.get)


def without(environ: Environ, *names: str) -> Environ:
    return {name: text for name, text in environ.items() if name not in names}


def refuses(found: Found, *told: str) -> None:
    """The number of nodes is refused, with these texts, and with what overrides it."""
    problem = found.problems["nnodes"]
    for each in told:
        assert each in problem.message
    assert "--nnodes 1" in problem.hint
    assert "RALLYPOINT_NNODES" in problem.hint
    assert "nnodes" not in found.values


SHOW_SEVERAL = {
    "SLURM_JOB_NUM_NODES SLURM_NNODES SLURM_JOB_NODELIST SLURM_NODELIST SLURM_NTASKS SLURM_NPROCS "
    "SLURM_PROCID SLURM_NODEID SLURM_STEP_ID SLURM_STEP_NUM_NODES SLURM_STEP_NUM_TASKS "
    "SLURM_STEP_NODELIST SLURM_STEP_TASKS_PER_NODE": slurm_task(1),
    "OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK PMIX_RANK": mpi_process(1),
    "PMI_SIZE PMI_RANK": hydra_process(1),
    "RANK": {"WORLD_SIZE": "4", "RANK": "1", "MASTER_ADDR": "n1"},
    "PET_NNODES PET_NODE_RANK": {"PET_NNODES": "4", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "n1"},
    "JOB_COMPLETION_INDEX": pod(1),
}
"""Which variables of the second one of four nodes show that there are others."""


@pytest.mark.parametrize("names", SHOW_SEVERAL)
@given(st.data())
def test_no_part_of_a_nodes_variables_makes_it_run_alone(names: str, data: st.DataObject) -> None:
    """As in a container that gets only some of them."""
    environ = SHOW_SEVERAL[names]
    sign = data.draw(st.sampled_from(names.split()))
    kept = data.draw(st.sets(st.sampled_from(sorted(environ)))) | {sign}
    found = detect({name: environ[name] for name in kept})
    assert "nnodes" in found.problems or found.values["nnodes"].text == "4"


# -- a script's own variables, and torchrun's ----------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"WORLD_SIZE": "4", "RANK": "1"}, "WORLD_SIZE=4, RANK=1, but MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "4", "RANK": "0"}, "WORLD_SIZE=4, RANK=0, but MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "4", "MASTER_ADDR": "n1"}, "MASTER_ADDR=n1, but RANK is not set"),
        ({"RANK": "1"}, "RANK=1, but WORLD_SIZE and MASTER_ADDR are not set"),
        ({"RANK": "1", "MASTER_ADDR": "n1"}, "RANK=1, MASTER_ADDR=n1, but WORLD_SIZE is not"),
        ({"RANK": "3", "WORLD_SIZE": "1"}, "WORLD_SIZE=1, RANK=3"),
        ({"NNODES": "4", "NODE_RANK": "1"}, "NNODES=4, NODE_RANK=1, but WORLD_SIZE"),
        ({"NNODES": "4", "NODE_RANK": "0"}, "NNODES=4, NODE_RANK=0"),
        ({"NNODES": "4"}, "NNODES=4"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1"),
        ({"NNODES": "four"}, "NNODES=four is not a number"),
        ({"WORLD_SIZE": "x", "RANK": "0"}, "WORLD_SIZE=x is not a number"),
        ({"WORLD_SIZE": "1", "RANK": "3", "MASTER_ADDR": "n1"}, "RANK=3 and WORLD_SIZE=1"),
        ({"PET_NODE_RANK": "2"}, "PET_NODE_RANK=2, but PET_NNODES is not set"),
        ({"PET_NODE_RANK": "2", "PET_RDZV_ENDPOINT": "h"}, "PET_NODE_RANK=2, but PET_NNODES"),
        ({"PET_NODE_RANK": "4", "PET_NNODES": "4"}, "PET_NODE_RANK=4 and PET_NNODES=4 contradict"),
        ({"PET_NODE_RANK": "4", "PET_NNODES": "2:4"}, "PET_NODE_RANK=4 and PET_NNODES=2:4"),
    ],
)
def test_a_part_of_torchs_variables_is_refused(environ: Environ, told: str) -> None:
    refuses(detect(environ), told)


@pytest.mark.parametrize(
    "environ",
    [
        {"WORLD_SIZE": "8"},
        {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"},
        {"RANK": "0"},
        {"RANK": "captain"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"NNODES": "1", "NODE_RANK": "0"},
        {"NODE_RANK": "0"},
        # The parent of processes of one host, and a usual line in batch scripts.
        {"WORLD_SIZE": "8", "MASTER_ADDR": "localhost"},
        slurm_job(1) | {"WORLD_SIZE": "8", "MASTER_ADDR": "n1"},
    ],
)
def test_torchs_variables_of_one_node_are_not_refused(environ: Environ) -> None:
    assert detect(environ) == environments.NOTHING


def test_a_number_of_nodes_of_any_length_is_left_to_the_setting() -> None:
    text = "9" * 5000
    assert detect({"PET_NNODES": text, "PET_NODE_RANK": "1"}).values["nnodes"].text == text


def test_the_number_of_nodes_may_come_from_elsewhere() -> None:
    rank = {"PET_NODE_RANK": "2"}
    assert not detect(slurm_task(2) | rank).problems
    assert not detect(rank | {"PET_NNODES": "4"}).problems
    assert detect({"PET_NODE_RANK": "0"}).problems == {}
    # A script's variables below those of torchrun.
    assert not detect({"PET_NNODES": "2", "NNODES": "4"}).problems


@pytest.mark.parametrize("nnodes", ["2", "4", "1:16"])
def test_torchruns_count_wins_over_a_number_of_workers(nnodes: str) -> None:
    """Operators set both, and WORLD_SIZE may count workers."""
    environ = {"PET_NNODES": nnodes, "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "m"}
    found = detect(environ | {"WORLD_SIZE": "16", "RANK": "1", "MASTER_ADDR": "m"})
    assert found.values["nnodes"].text == nnodes
    assert not found.problems


# -- Slurm, outside of a step --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-4]"}, "SLURM_JOB_NODELIST=n[1-4]: the"),
        ({"SLURM_NODELIST": "n1,n2"}, "SLURM_NODELIST=n1,n2: the job has 2 nodes"),
        ({"SLURM_TASKS_PER_NODE": "1(x4)"}, "SLURM_TASKS_PER_NODE=1(x4): the job has 4 nodes"),
        ({"SLURM_TASKS_PER_NODE": "2,1(x2)"}, "the job has 3 nodes"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, "SLURM_PROCID=1: this is not the first"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "SLURM_NTASKS=4: the job has 4 tasks"),
        ({"SLURM_NODEID": "1"}, "SLURM_NODEID=1"),
        ({"SLURM_STEP_NODELIST": "n[1-4]"}, "SLURM_STEP_NODELIST=n[1-4]: the job has 4 nodes"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, "SLURM_STEP_TASKS_PER_NODE=1(x4): the job has 4"),
        ({"SLURM_LOCALID": "1"}, "SLURM_LOCALID=1"),
        (slurm_job(1) | {"SLURM_PROCID": "1"}, "SLURM_PROCID=1"),
    ],
)
def test_a_job_without_a_step_needs_srun(environ: Environ, told: str) -> None:
    found = detect(environ)
    refuses(found, told, "in no step of it")
    assert "put srun in front" in found.problems["nnodes"].hint


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"SLURM_JOB_NODELIST": "n[1-"}, "SLURM_JOB_NODELIST=n[1- has a bracket"),
        ({"SLURM_TASKS_PER_NODE": "many"}, "SLURM_TASKS_PER_NODE=many is not a list"),
        ({"SLURM_NTASKS": "x"}, "SLURM_NTASKS=x is not a number"),
    ],
)
def test_a_job_whose_variables_cannot_be_read_is_refused(environ: Environ, told: str) -> None:
    refuses(detect(environ), told)


@pytest.mark.parametrize("environ", [slurm_job(1), slurm_task(0, nodes=1), slurm_task(1)])
def test_a_job_of_several_components_is_told_what_holds(environ: Environ) -> None:
    more = {"SLURM_HET_SIZE": "2", "SLURM_JOB_NUM_NODES_HET_GROUP_1": "3"}
    found = detect(environ | more)
    refuses(found, "SLURM_HET_SIZE=2: this is a job of several components")
    assert "srun --het-group=0,1), and give --nnodes" in found.problems["nnodes"].hint
    assert detect(environ | {"SLURM_HET_SIZE": "1"}).problems == detect(environ).problems


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_JOB_ID": "7"},
        # Its tasks are its processors.
        slurm_job(1) | {"SLURM_NTASKS": "8", "SLURM_NPROCS": "8", "SLURM_TASKS_PER_NODE": "8"},
    ],
)
def test_a_job_of_one_node_needs_no_step(environ: Environ) -> None:
    assert detect(environ) == environments.NOTHING


# -- Slurm, inside of a step ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
            "SLURM_STEP_NUM_TASKS=1 and SLURM_STEP_NUM_NODES=4 contradict each other",
        ),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2 and SLURM_STEP_NUM_NODES=4"),
        ({"SLURM_JOB_NUM_NODES": "2"}, "SLURM_STEP_NUM_NODES=4 and SLURM_JOB_NUM_NODES=2"),
        ({"SLURM_NODEID": "9"}, "SLURM_NODEID=9 and SLURM_STEP_NUM_NODES=4"),
        ({"SLURMD_NODENAME": "x1"}, "SLURMD_NODENAME=x1 and SLURM_STEP_NODELIST=n[1-4]"),
        ({"SLURM_JOBID": "8"}, "SLURM_JOB_ID=2 and SLURM_JOBID=8"),
        # Another mpirun has started this process, and other ones: Intel MPI, PRRTE, Flux.
        ({"PMI_SIZE": "8"}, "PMI_SIZE=8, SLURM_STEP_NUM_TASKS=4 and SLURM_PROCID=1 contradict"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "PMI_SIZE=2, PMI_RANK=1, SLURM_STEP_NUM_TASKS=4"),
        ({"PMI_SIZE": "4", "PMI_RANK": "3"}, "PMI_SIZE=4, PMI_RANK=3, SLURM_STEP_NUM_TASKS=4"),
        ({"PMI_SIZE": "four"}, "PMI_SIZE=four is not a number"),
        ({"PMIX_RANK": "2"}, "PMIX_RANK=2, SLURM_STEP_NUM_TASKS=4 and SLURM_PROCID=1"),
        ({"FLUX_JOB_SIZE": "8", "FLUX_TASK_RANK": "1"}, "FLUX_JOB_SIZE=8, FLUX_TASK_RANK=1"),
    ],
)
def test_a_step_whose_variables_cannot_be_true_is_refused(change: Environ, told: str) -> None:
    found = detect(slurm_task(1) | change)
    refuses(found, told)
    assert set(found.problems) == {"nnodes", "endpoint", "run_id"}


ONE = slurm_task(0, nodes=1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (hydra_process(0, 8, 8), "PMI_SIZE=8, PMI_RANK=0, SLURM_STEP_NUM_TASKS=1"),
        ({"FLUX_JOB_SIZE": "4"}, "FLUX_JOB_SIZE=4, SLURM_STEP_NUM_TASKS=1"),
        ({"SLURM_JOBID": "8"}, "SLURM_JOB_ID=2 and SLURM_JOBID=8"),
        # A loop in the batch script: one step for each node.
        (
            {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "n1"},
            "RANK=1 and SLURM_STEP_NUM_TASKS=1",
        ),
        ({"NODE_RANK": "1", "NNODES": "4"}, "NODE_RANK=1 and SLURM_STEP_NUM_TASKS=1"),
    ],
)
def test_a_step_of_one_task_among_others_is_refused(change: Environ, told: str) -> None:
    assert detect(ONE).nodes == 1
    refuses(detect(ONE | change), told)


@pytest.mark.parametrize(
    ("text", "told"), [("n[1-", "n[1- has a bracket"), ("n[1-2]", "n[1-2] has 2 nodes, and")]
)
def test_a_node_list_must_be_right_for_one_task_too(text: str, told: str) -> None:
    found = detect(ONE | {"SLURM_STEP_NODELIST": text, "SLURMD_NODENAME": "n1"})
    assert f"SLURM_STEP_NODELIST={told}" in found.problems["endpoint"].message
    assert "--endpoint" in found.problems["endpoint"].hint


@pytest.mark.parametrize(
    "change",
    [
        {"PMI_SIZE": "4", "PMI_RANK": "1"},  # srun --mpi=pmi2
        {"PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.2.0"},  # srun --mpi=pmix
        {"PALS_RANKID": "1", "PMI_SIZE": "4", "PMI_RANK": "1"},  # srun --mpi=cray_shasta
        {"PMI_SIZE": "1", "PMI_RANK": "0"},  # mpiexec -n 1 in each task
        {"WORLD_SIZE": "32", "MASTER_ADDR": "n1", "NNODES": "4", "NODE_RANK": "1"},
        {"SLURM_JOB_NUM_NODES": "8"},
        {"SLURM_NODEID": ""},
        {"SLURMD_NODENAME": ""},
    ],
)
def test_a_step_that_can_be_true_is_not_refused(change: Environ) -> None:
    found = detect(slurm_task(1) | change)
    assert found.nodes == 4
    assert not found.problems


@pytest.mark.parametrize(
    "change",
    [{}, {"PMI_SIZE": "1", "PMI_RANK": "0"}, {"WORLD_SIZE": "8", "RANK": "0", "MASTER_ADDR": "n1"}],
)
def test_a_step_of_one_task_is_one_node(change: Environ) -> None:
    found = detect(without(ONE, "SLURM_STEP_NODELIST") | change)
    assert (found.nodes, found.problems) == (1, {})


def test_nodes_with_numbers_for_names_are_told() -> None:
    names = {"SLURM_STEP_NODELIST": "[1-4]", "SLURMD_NODENAME": "2"}
    launchers = ("SLURM_LAUNCH_NODE_IPADDR", "SLURM_SRUN_COMM_HOST")
    problem = detect(without(slurm_task(1), *launchers) | names).problems["endpoint"]
    assert "SLURM_STEP_NODELIST=[1-4] does not say" in problem.message
    assert "1 is not the name of a host" in problem.message
    assert "--endpoint" in problem.hint


# -- Open MPI ------------------------------------------------------------------------------------

STALE = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_MCA_orte_node_regex": "login[1:1-4]@0(4)",
    "PMIX_HOSTNAME": "login1",
}


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (slurm_task(1) | STALE, "PMIX_HOSTNAME=login1 and SLURMD_NODENAME=n2"),
        (mpi_process(1) | {"PMIX_RANK": "3"}, "OMPI_COMM_WORLD_RANK=1 and PMIX_RANK=3"),
        (
            mpi_process(1) | {"OMPI_COMM_WORLD_LOCAL_SIZE": "5"},
            "OMPI_COMM_WORLD_LOCAL_SIZE=5 and OMPI_COMM_WORLD_SIZE=4",
        ),
        (
            mpi_process(1) | {"OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            "OMPI_COMM_WORLD_LOCAL_RANK=1 and OMPI_COMM_WORLD_LOCAL_SIZE=1",
        ),
    ],
)
def test_variables_of_a_former_mpirun_are_refused(environ: Environ, told: str) -> None:
    found = detect(environ)
    refuses(found, told, "contradict each other")
    assert "unset " in found.problems["nnodes"].hint
    assert set(found.problems) == {"nnodes", "endpoint", "run_id"}


def test_a_machine_may_have_another_name_than_slurm_gives_to_the_node() -> None:
    host = {"PMIX_HOSTNAME": "vm", "PMIX_RANK": "2"}
    environ = slurm_task(1) | STALE | host
    assert "nnodes" in detect(environ).problems
    own = {"/proc/sys/kernel/hostname": "vm.example\n"}
    assert not environments.detect(environ, own.get).problems
    full = slurm_task(1) | STALE | {"PMIX_HOSTNAME": "n2.example"}
    assert not detect(full).problems


def test_open_mpi_5_has_the_host_of_mpirun_in_its_namespace() -> None:
    found = [detect(mpi5_process(rank)) for rank in range(4)]
    assert {each.values["endpoint"].text for each in found} == {"n1"}
    assert {each.values["endpoint"].origin for each in found} == {"PMIX_NAMESPACE"}
    assert {each.values["run_id"].text for each in found} == {"mpi-prterun-n1-18230@1"}
    assert not any(each.problems for each in found)
    other = mpi5_process(1) | {"PMIX_NAMESPACE": "prterun-gpu-a-7-18230@2"}
    assert detect(other).values["endpoint"].text == "gpu-a-7"


@pytest.mark.parametrize("namespace", ["", "228917249", "slurm.pmix.7.0", "prterun-18230@1"])
def test_without_a_host_open_mpi_says_what_is_missing(namespace: str) -> None:
    problem = detect(mpi5_process(1) | {"PMIX_NAMESPACE": namespace}).problems["endpoint"]
    for name in ("OMPI_MCA_orte_node_regex", "OMPI_MCA_orte_hnp_uri"):
        assert name in problem.message
    assert f"PMIX_NAMESPACE={namespace} has no host" in problem.message
    assert "--endpoint HOST (RALLYPOINT_ENDPOINT)" in problem.hint


# -- other launchers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (hydra_process(1), "PMI_SIZE=4: there are several processes"),
        ({"PMI_SIZE": "four", "PMI_RANK": "1"}, "PMI_SIZE=four is not a number"),
        ({"PMI_RANK": "3"}, "PMI_RANK=3: there may be several"),
        ({"PMI_RANK": "0"}, "PMI_RANK=0: there may be several"),
        ({"PMI_RANK": "3", "PMI_SIZE": "1"}, "PMI_RANK=3 and PMI_SIZE=1 contradict"),
        ({"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"}, "MPI_LOCALNRANKS=2"),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "OMPI_COMM_WORLD_LOCAL_SIZE=2: there are several"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE=2"),
        (
            {"FLUX_JOB_SIZE": "4", "FLUX_JOB_NNODES": "1"},
            "FLUX_JOB_SIZE=4: there are several tasks",
        ),
        ({"FLUX_JOB_NNODES": "3"}, "FLUX_JOB_NNODES=3: there are several nodes"),
        ({"FLUX_TASK_RANK": "1"}, "FLUX_TASK_RANK=1"),
        ({"PALS_RANKID": "1"}, "PALS_RANKID=1"),
        ({"PALS_RANKID": "0"}, "PALS_RANKID=0"),
        ({"JSM_NAMESPACE_SIZE": "4", "JSM_NAMESPACE_RANK": "1"}, "JSM_NAMESPACE_SIZE=4"),
        ({"JSM_NAMESPACE_RANK": "1"}, "JSM_NAMESPACE_RANK=1"),
        ({"LSB_DJOB_NUMPROC": "4", "LSB_HOSTS": "a a b b"}, "LSB_HOSTS=a a b b: the job has 2"),
        ({"LSB_MCPU_HOSTS": "a 2 b 2"}, "LSB_MCPU_HOSTS=a 2 b 2: the job has 2 hosts"),
        ({"NHOSTS": "4", "NSLOTS": "8"}, "NHOSTS=4: there are several hosts"),
        (
            {"LWS_GROUP_SIZE": "4", "LWS_WORKER_INDEX": "0"},
            "LWS_GROUP_SIZE=4: there are several pods",
        ),
        ({"LWS_WORKER_INDEX": "1"}, "LWS_WORKER_INDEX=1"),
        ({"PBS_NUM_NODES": "3"}, "PBS_NUM_NODES=3: there are several nodes"),
        ({"PBS_NODENUM": "1"}, "PBS_NODENUM=1"),
        ({"AWS_BATCH_JOB_NUM_NODES": "2"}, "AWS_BATCH_JOB_NUM_NODES=2"),
        ({"SKYPILOT_NUM_NODES": "2"}, "SKYPILOT_NUM_NODES=2"),
        ({"AZUREML_NODE_COUNT": "2"}, "AZUREML_NODE_COUNT=2"),
    ],
)
def test_a_launcher_that_is_not_known_is_not_overlooked(environ: Environ, told: str) -> None:
    found = detect(environ)
    refuses(found, told)
    assert set(found.problems) == {"nnodes"}


def test_a_node_file_with_several_hosts_is_not_overlooked() -> None:
    """OpenPBS sets no number of nodes."""
    job = {"PBS_NODEFILE": "/nodes", "PBS_JOBID": "7"}
    refuses(detect(job, nodes="n1\nn1\nn2\n"), "PBS_NODEFILE=/nodes: the job has 2 hosts")
    assert detect(job, nodes="n1\nn1\n") == environments.NOTHING
    assert detect(job) == environments.NOTHING


@pytest.mark.parametrize(
    "environ",
    [
        hydra_process(0, 1),
        {"LSB_DJOB_NUMPROC": "4", "LSB_HOSTS": "a a a a", "LSB_MCPU_HOSTS": "a 4"},
        {"NHOSTS": "1", "NSLOTS": "8"},
        {"FLUX_JOB_SIZE": "1", "FLUX_JOB_NNODES": "1", "FLUX_TASK_RANK": "0"},
        {"PBS_NUM_NODES": "1", "PBS_NODENUM": "0"},
        {"LWS_GROUP_SIZE": "1", "LWS_WORKER_INDEX": "0"},
        {"AWS_BATCH_JOB_NUM_NODES": "1", "AWS_BATCH_JOB_NODE_INDEX": "0"},
    ],
)
def test_one_node_of_such_a_launcher_is_not_refused(environ: Environ) -> None:
    assert detect(environ) == environments.NOTHING


@pytest.mark.parametrize("environ", [slurm_task(1), mpi_process(1), pod(1)])
def test_a_known_launcher_is_asked_first(environ: Environ) -> None:
    assert detect(environ | {"NHOSTS": "4"}) == detect(environ)
