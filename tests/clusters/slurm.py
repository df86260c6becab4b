"""A real Slurm over hosts: slurmctld and munged on `ctl`, a slurmd on each of n1, n2, ...

Its settings are Slurm's defaults but for what takes long: a lost host is known after 10 s instead
of 300, and a requeued job may start after 6 s instead of 120 (`cred_expire`).

What must not be here: what a test asserts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.agent.processes import Process
from tests.clusters.hosts import Hosts, hosts, need
from tests.clusters.programs import STEADY
from tests.waiting import wait_until

PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "munged": "munge",
}
OVER = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
POLL_S = 0.1
"""Each question to Slurm is a process."""
CONFIGURATION = """
ClusterName=test
SlurmctldHost=ctl({ctl})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmdTimeout=8
MessageTimeout=5
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PropagateResourceLimitsExcept=ALL
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


class Slurm:
    """A cluster that is up when this is made. `hosts.env` has SLURM_CONF."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.folder = hosts.folder
        self._nodes = [host for host in hosts if host.name != "ctl"]
        self._configure()
        hosts.start("ctl", "munged", "--foreground", "--force", *self._munge())
        wait_until((self.folder / "munge/socket").exists)
        daemons = [hosts.start("ctl", "slurmctld", "-D")]
        daemons += [hosts.start(each.name, "slurmd", "-D", "-N", each.name) for each in self._nodes]
        wait_until(lambda: self._are_idle(daemons), every_s=POLL_S)

    @property
    def steady(self) -> str:
        """A program that works until `finish`."""
        path = self.folder / "steady.py"
        path.write_text(STEADY)
        return str(path)

    def finish(self) -> None:
        """Programs of `steady` end their run."""
        (self.folder / "finish").touch()

    def submit(self, script: str | Path, *arguments: str, options: Sequence[str] = ()) -> Job:
        """Queue a batch script: its text, or its path. Its output is in a file."""
        name = f"job-{len(list(self.folder.glob('job-*.sh')))}"
        path, output = self.folder / f"{name}.sh", self.folder / f"{name}.out"
        path.write_text(script if isinstance(script, str) else script.read_text())
        where = ("--output", str(output), "--open-mode", "append", "--job-name", name)
        said = self.hosts.run(
            "ctl", "sbatch", "--parsable", *where, *options, str(path), *arguments
        )
        return Job(self, said.strip(), output)

    def show(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says, by name."""
        said = self.hosts.run("ctl", "scontrol", "--oneliner", "show", "job", job_id)
        return dict(each.split("=", 1) for each in said.split() if "=" in each)

    def _are_idle(self, daemons: list[Process]) -> bool:
        for each in daemons:
            assert each.popen.poll() is None, f"{each.name} did not start:\n{each.text}"
        with contextlib.suppress(AssertionError):  # slurmctld does not listen yet
            said = self.hosts.run("ctl", "sinfo", "--noheader", "--states", "idle", "-o", "%D")
            return sum(map(int, said.split())) == len(self._nodes)
        return False

    def _configure(self) -> None:
        for name in ("state", "munge", *(f"spool-{each.name}" for each in self._nodes)):
            (self.folder / name).mkdir()
        nodes = [f"NodeName={e.name} NodeAddr={e.address} CPUs=4" for e in self._nodes]
        text = CONFIGURATION.format(
            ctl=self.hosts["ctl"].address, folder=self.folder, nodes="\n".join(nodes)
        )
        path = self.folder / "slurm.conf"
        path.write_text(text)
        self.hosts.env["SLURM_CONF"] = str(path)

    def _munge(self) -> list[str]:
        folder = self.folder / "munge"
        (folder / "key").write_bytes(bytes(range(256)))
        (folder / "key").chmod(0o400)
        names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        names["log-file"] = "log"
        return [f"--{option}={folder / name}" for option, name in names.items()]


class Job:
    """A job of sbatch."""

    def __init__(self, slurm: Slurm, id: str, output: Path) -> None:
        self.id = id
        self._slurm, self._output = slurm, output

    @property
    def text(self) -> str:
        """All that it has said so far."""
        return self._output.read_text() if self._output.exists() else ""

    @property
    def state(self) -> str:
        """As Slurm names it: RUNNING, COMPLETED, ..."""
        return self._slurm.show(self.id)["JobState"]

    def says(self, text: str, within_s: float = 60.0) -> None:
        """Wait until its output has this."""
        wait_until(lambda: text in self.text, within_s, says=lambda: f"{text!r}{self._all()}")

    def ends(self, state: str, within_s: float = 60.0) -> str:
        """Its output, once it has ended so."""
        wait_until(lambda: self.state in OVER, within_s, says=self._all, every_s=POLL_S)
        assert self.state == state, f"it is not {state}{self._all()}"
        return self.text

    def _all(self) -> str:
        return f" in job {self._slurm.show(self.id)}, which said:\n{self.text}"


@contextlib.contextmanager
def slurm(folder: Path, nodes: int) -> Iterator[Slurm]:
    """A cluster of hosts n1, n2, ... that is gone at the end. Skips where none can be made."""
    need(PROGRAMS)
    with hosts(folder, ["ctl", *(f"n{number}" for number in range(1, nodes + 1))]) as made:
        yield Slurm(made)
