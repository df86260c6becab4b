"""What launchers put into the environment: the variables that matter, as real ones set them.

Recorded with Slurm 22.05 (srun in a batch script, on four hosts), Open MPI 4.1.4 (mpirun -N 1 on
four hosts, and inside a job of Slurm) and 5.0.11, MPICH 5 and Intel MPI 2021 on one host, and as
Kubernetes 1.29 documents a pod of an Indexed Job.
"""

from __future__ import annotations

from typing import Final

MPI_KEY: Final = "e44d6f8ae3796fb5-f1066a0aeb5c71e9"


def slurm_job(nodes: int = 4, job: int = 2) -> dict[str, str]:
    """The batch script of a job, on its first node."""
    listed = f"n[1-{nodes}]" if nodes > 1 else "n1"
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOBID": str(job),
        "SLURM_JOB_NODELIST": listed,
        "SLURM_NODELIST": listed,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes),
        "SLURM_NPROCS": str(nodes),
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURMD_NODENAME": "n1",
        "SLURM_TOPOLOGY_ADDR": "n1",
        "SLURM_TOPOLOGY_ADDR_PATTERN": "node",
    }


def slurm_task(
    index: int, nodes: int = 4, *, per_node: int = 1, step: int = 0, restarts: int = 0
) -> dict[str, str]:
    """A task of `srun` in that script."""
    node = index // per_node
    listed = f"n[1-{nodes}]" if nodes > 1 else "n1"
    found = slurm_job(nodes) | {
        "SLURM_STEP_ID": str(step),
        "SLURM_STEPID": str(step),
        "SLURM_STEP_NODELIST": listed,
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_NUM_TASKS": str(nodes * per_node),
        "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})",
        "SLURM_LAUNCH_NODE_IPADDR": "10.77.0.1",
        "SLURM_SRUN_COMM_HOST": "10.77.0.1",
        "SLURM_PROCID": str(index),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(index % per_node),
        "SLURMD_NODENAME": f"n{node + 1}",
        "SLURM_TOPOLOGY_ADDR": f"n{node + 1}",
    }
    if restarts:
        found["SLURM_RESTART_COUNT"] = str(restarts)
    return found


def mpi_process(rank: int, size: int = 4) -> dict[str, str]:
    """A process of `mpirun -N 1` over ssh, called on a host that has none of them."""
    return {
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
        "OMPI_MCA_ess_base_jobid": "228917249",
        "OMPI_MCA_orte_hnp_uri": ("228917248.0;tcp://10.77.0.100:57959;tcp6://[fd77::100]:41407"),
        "OMPI_MCA_orte_node_regex": f"ctl,n[1:1-{size}]@0({size + 1})",
        "OMPI_MCA_orte_precondition_transports": MPI_KEY,
        "PMIX_NAMESPACE": "228917249",
        "PMIX_RANK": str(rank),
        "PMIX_HOSTNAME": f"n{rank + 1}",
    }


def mpi_in_slurm(rank: int) -> dict[str, str]:
    """A process of `mpirun -N 1` in a batch script: srun has started its daemon, but for rank 0."""
    processes = mpi_process(rank)
    if rank == 0:
        del processes["OMPI_MCA_orte_node_regex"], processes["OMPI_MCA_orte_hnp_uri"]
        return slurm_job() | processes
    return slurm_task(rank) | {
        "SLURM_PROCID": str(rank - 1),
        "SLURM_NODEID": str(rank - 1),
        "SLURM_NNODES": "3",
        "SLURM_NTASKS": "3",
        "SLURM_STEP_NUM_NODES": "3",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "n[2-4]",
        **processes,
        "OMPI_MCA_orte_node_regex": "n[1:1-4]@0(4)",
        "OMPI_MCA_orte_hnp_uri": "228917248.0;tcp://10.77.0.1:57959",
    }


def pod(index: int, job: str = "train") -> dict[str, str]:
    """A pod of an Indexed Job."""
    return {
        "JOB_COMPLETION_INDEX": str(index),
        "HOSTNAME": f"{job}-{index}",
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    }


def pod_hosts(index: int, job: str = "train", subdomain: str = "train") -> str:
    """The file /etc/hosts that kubelet writes for it."""
    name = f"{job}-{index}"
    full = f"{name}.{subdomain}.default.svc.cluster.local\t" if subdomain else ""
    return (
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n"
        f"10.244.0.{index + 5}\t{full}{name}\n"
    )


def mpi5_process(rank: int, size: int = 4) -> dict[str, str]:
    """A process of Open MPI 5's `mpirun -N 1`, called on n1. Recorded with 5.0.11."""
    return {
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
        "PMIX_HOSTNAME": f"n{rank + 1}",
        "PMIX_NAMESPACE": "prterun-n1-18230@1",
        "PMIX_RANK": str(rank),
        "PMIX_SERVER_URI2": f"prterun-n1-18230@0.{rank};tcp4://127.0.0.1:47313",
    }


def hydra_process(rank: int, size: int = 4, per_host: int = 1) -> dict[str, str]:
    """A process of mpiexec of MPICH 5 or Intel MPI 2021. Recorded with both."""
    return {
        "MPI_LOCALNRANKS": str(per_host),
        "MPI_LOCALRANKID": str(rank % per_host),
        "PMI_FD": "9",
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(size),
    }
