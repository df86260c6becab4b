"""The comparison with peers: all that needs no peer, and one peer if it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kinds import only_long

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "peers" / "run.py"
if not SCRIPT.exists():
    pytest.skip("the source distribution has no benchmarks", allow_module_level=True)

from benchmarks import doc_tables, wait_idle  # noqa: E402
from benchmarks.peers import catalogue, common, harness, install, report, run  # noqa: E402

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


def peer(**changed: Any) -> catalogue.Peer:
    made: dict[str, Any] = {"name": "x", "title": "X", "module": "x", "does": "nothing"}
    return catalogue.Peer(**(made | changed))


def script(folder: Path, text: str) -> str:
    """A module that the harness can run: Python looks in PYTHONPATH and in this folder."""
    (folder / "a_peer.py").write_text(text, encoding="utf-8")
    return "a_peer"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's time begins when it has made the file `there`, however slowly it starts."""
    started = harness._started

    def started_and_there(*arguments: Any) -> subprocess.Popen[bytes]:
        process = started(*arguments)
        wait_until((here / "there").exists)
        return process

    monkeypatch.setattr(harness, "_started", started_and_there)


# -- running one -----------------------------------------------------------------------------------


@pytest.mark.processes
def test_the_last_json_line_counts_and_other_output_is_ignored(here: Path) -> None:
    answer = {"version": "x 1", "carried": "threads", "values": {"warm": [1.0, 2.0]}}
    module = script(
        here,
        'print("noise"); print(\'{"values": {}, "version": "", "carried": ""}\')\n'
        f'print({json.dumps(answer)!r}); print("{{not json"); print(\'{{"other": 1}}\')',
    )
    found = harness.run_script(sys.executable, module, (), 60.0)
    assert found == harness.Outcome({"warm": [1.0, 2.0]}, "", "x 1", "threads")


@pytest.mark.processes
def test_a_script_that_fails_gives_a_reason_and_no_figure(here: Path) -> None:
    found = harness.run_script(
        sys.executable, script(here, "raise OSError('no such thing')"), (), 60
    )
    assert found.values == {}
    assert found.why_not == "ended with exit code 1: OSError: no such thing"


@pytest.mark.processes
def test_a_peer_gives_its_own_reason_for_what_it_cannot_do(here: Path) -> None:
    module = script(here, 'print(\'{"cannot": "it has no death"}\')')
    assert harness.run_script(sys.executable, module, (), 60).why_not == "it has no death"


@pytest.mark.processes
@pytest.mark.usefixtures("there")
def test_a_peer_that_hangs_is_ended_with_its_processes_and_keeps_its_results(
    here: Path,
) -> None:
    module = script(
        here,
        "import os, signal, subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "os.kill(child.pid, signal.SIGSTOP)\n"
        "pathlib.Path('pid').write_text(str(child.pid))\n"
        'print(\'{"version": "x", "carried": "y", "values": {"cold": [7.0]}}\', flush=True)\n'
        "pathlib.Path('there').touch()\n"
        "time.sleep(600)\n",
    )
    began_s = time.monotonic()
    found = harness.run_script(sys.executable, module, (), 3.0)
    assert time.monotonic() - began_s < 100.0
    assert found.out_of_time
    assert found.why_not == "not within 3 s"
    assert found.values == {"cold": [7.0]}
    assert is_gone(int((here / "pid").read_text()))


@pytest.mark.processes
@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("ending", ["time.sleep(600)", "os.kill(os.getpid(), 9)", ""])
def test_the_files_of_a_peer_are_removed_however_it_ends(here: Path, ending: str) -> None:
    module = script(
        here,
        "import os, pathlib, subprocess, sys, tempfile, time\n"
        "folder = pathlib.Path(tempfile.mkdtemp(prefix='etcd-'))\n"
        "(folder / 'wal').write_bytes(b'x' * 4096)\n"
        "pathlib.Path('where').write_text(str(folder))\n"
        "writing = 'while True: open(sys.argv[1], \"w\").close(); time.sleep(0.001)'\n"
        "program = 'import sys, time; ' + 'exec(sys.argv[2])'\n"
        "again = str(folder / 'again')\n"
        "subprocess.Popen([sys.executable, '-c', program, again, writing])\n"
        "while not pathlib.Path(again).exists(): time.sleep(0.01)\n"
        "pathlib.Path('there').touch()\n"
        f"{ending}\n",
    )
    harness.run_script(sys.executable, module, (), 3.0)
    made = Path((here / "where").read_text())
    assert made.name.startswith("etcd-")
    assert not made.exists()
    assert made.parent.name.startswith("peers-"), "not in the folder that the harness has made"
    assert not made.parent.exists()


def a_peer_that_hangs(folder: Path) -> None:
    """Where TCPStore's environment would be: it makes a file, starts a process, and hangs."""
    environment = next(p.environment for p in catalogue.PEERS if p.name == "tcpstore")
    assert environment is not None
    python = folder / environment.name / "bin" / "python"
    python.parent.mkdir(parents=True)
    (folder / environment.name / install._STAMP).write_text(install._written(environment))
    python.write_text(
        f'#!/bin/sh\ncd {folder}\ntouch "$TMPDIR/left"\nsleep 600 &\n'
        'printf "%s\\n" $$ $! "$TMPDIR" > pids.new\nmv pids.new pids\nwait\n'
    )
    python.chmod(0o700)


@pytest.mark.verify
@pytest.mark.processes
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=only_long),
        pytest.param(signal.SIGINT, marks=only_long),
    ],
)
def test_a_signal_ends_all_processes_and_leaves_no_files(
    tmp_path: Path, number: signal.Signals
) -> None:
    a_peer_that_hangs(tmp_path)
    comparing = subprocess.Popen(
        [
            *(sys.executable, str(SCRIPT), "--here", "--no-deaths", "--only", "tcpstore"),
            *("--nodes", "2", "--environments", str(tmp_path)),
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(
            number, signal.SIG_DFL
        ),  # The signal may be ignored in this process.
    )
    try:
        pids_file = tmp_path / "pids"
        wait_until(pids_file.exists)
        pids, made = pids_file.read_text().split()[:2], Path(pids_file.read_text().split()[2])
        assert (made / "left").exists()
        comparing.send_signal(number)
        code = comparing.wait(100)
    finally:
        comparing.kill()
        comparing.wait()
    assert code == (-number if number is signal.SIGINT else 128 + number)
    assert all(is_gone(int(pid)) for pid in pids)
    assert not made.exists()


def wait_until(what: Callable[[], bool]) -> None:
    """For 60 s at most: a measurement first waits for a quiet machine."""
    ends_s = time.monotonic() + 60.0
    while not what():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether it has ended; an orphan that was not reaped yet has ended, too."""
    ends_s = time.monotonic() + 10.0
    while time.monotonic() < ends_s:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


# -- a quiet machine -------------------------------------------------------------------------------


class Machine:
    """The contents of /proc/loadavg at each read, on a clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.now_s = 100.0
        self._file = file
        self._busy: Callable[[float], int] = lambda now_s: 0
        monkeypatch.setattr(wait_idle, "_LOADAVG", file)
        monkeypatch.setattr(wait_idle, "time", self)

    def is_busy(self, busy: Callable[[float], int]) -> None:
        """How many other processes are ready to run, so many seconds after the beginning."""
        self._busy = busy
        self.sleep(0.0)

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        others = self._busy(self.now_s - 100.0)
        self._file.write_text(f"569.51 480.00 77.10 {others + 1}/93 2234\n", encoding="ascii")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch, tmp_path / "loadavg")


def test_the_wait_for_a_quiet_machine_counts_processes_not_the_load_average(
    machine: Machine,
) -> None:
    machine.is_busy(lambda now_s: 40 if now_s < 5.0 else 1)
    assert wait_idle.wait() == 1
    assert 5.0 + wait_idle.QUIET_S <= machine.now_s - 100.0 < 5.2 + wait_idle.QUIET_S


def test_the_machine_must_be_quiet_for_a_while(machine: Machine) -> None:
    machine.is_busy(lambda now_s: 2 if now_s % 0.5 < 0.1 and now_s < 7.0 else 0)
    assert wait_idle.wait() == 0
    assert machine.now_s - 100.0 >= 6.5 + wait_idle.QUIET_S


def test_the_wait_for_a_quiet_machine_is_bounded(machine: Machine) -> None:
    machine.is_busy(lambda now_s: 90 if now_s < 2.0 else 7)
    assert wait_idle.wait() == 7, "the most of the last second, not of all the time"
    assert wait_idle.WAIT_MAX_S <= machine.now_s - 100.0 < wait_idle.WAIT_MAX_S + 0.1


def test_nothing_waits_where_the_number_of_processes_cannot_be_read(machine: Machine) -> None:
    assert wait_idle.wait() is None
    assert machine.now_s == 100.0


def test_only_measurements_wait_for_a_quiet_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def wait() -> int:
        order.append("wait")
        return 3

    def run_script(*arguments: object) -> harness.Outcome:
        order.append("run")
        return harness.Outcome()

    monkeypatch.setattr(wait_idle, "wait", wait)
    monkeypatch.setattr(harness, "run_script", run_script)
    bench = harness.Bench(tmp_path, 1.0, 1)
    assert bench.meet(peer(), 2).busy == 3
    assert bench.death(peer(), "killed", 1, 60.0).busy == 3
    assert order == ["wait", "run", "wait", "run"]
    assert bench.death(peer(death="it cannot"), "killed", 1, 60.0).busy is None
    assert order == ["wait", "run", "wait", "run"]


def test_peers_with_a_process_a_node_come_last_at_each_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    class Bench:
        def __init__(self, *arguments: object) -> None:
            pass

        def meet(self, peer: catalogue.Peer, nodes: int) -> harness.Outcome:
            order.append((nodes, peer.name))
            return harness.Outcome()

    monkeypatch.setattr(run, "Bench", Bench)
    peers = [peer(name="b", a_process_each=True), peer(name="a"), peer(name="c")]
    run.measure(peers, run._options(["--no-deaths", "--nodes", "2,8"]), tmp_path, None)
    assert order == [(2, "a"), (2, "c"), (2, "b"), (8, "a"), (8, "c"), (8, "b")]


# -- what is fixed beforehand ----------------------------------------------------------------------


def test_a_peer_that_is_not_installed_is_not_run(tmp_path: Path) -> None:
    environment = catalogue.Environment(name="none", installs=(("nothing",),))
    bench = harness.Bench(tmp_path, 1.0, 1)
    assert bench.meet(peer(environment=environment), 2).why_not == harness.NOT_INSTALLED
    assert (
        bench.death(peer(environment=environment), "killed", 1, 60.0).why_not
        == harness.NOT_INSTALLED
    )


def test_the_versions_of_the_document_are_those_that_are_installed() -> None:
    path = ROOT / "docs" / "benchmarks.json"
    measured = {p["name"]: p for p in json.loads(path.read_text(encoding="utf-8"))["peers"]}
    for each in catalogue.PEERS:
        if each.environment is None or not measured[each.name]["version"]:
            continue
        packages = [p for call in each.environment.installs for p in call]
        pinned = {p.partition("[")[0] + p[p.find("==") :] for p in packages if "[" in p}
        pinned |= {*packages, *each.environment.unpacked}
        for named in measured[each.name]["version"].split(", "):
            assert named.replace(" ", "==") in pinned


def test_an_environment_written_for_other_versions_does_not_count(tmp_path: Path) -> None:
    environment = catalogue.Environment(name="one", installs=(("a==1",),))
    (tmp_path / "one").mkdir()
    stamp = tmp_path / "one" / install._STAMP
    stamp.write_text(install._written(environment), encoding="utf-8")
    assert install.python_of(environment, tmp_path) == tmp_path / "one" / "bin" / "python"
    newer = catalogue.Environment(name="one", installs=(("a==2",),))
    assert install.python_of(newer, tmp_path) is None


def test_after_a_timeout_no_larger_size_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def run_script(*arguments: object) -> harness.Outcome:
        runs.append(arguments)
        return harness.Outcome(why_not="not within 1 s", out_of_time=True)

    monkeypatch.setattr(harness, "run_script", run_script)
    monkeypatch.setattr("benchmarks.wait_idle.wait", lambda: 0.0)  # Nothing is measured here.
    bench = harness.Bench(tmp_path, 1.0, 1)
    assert bench.meet(peer(), 128).why_not == "not within 1 s"
    assert bench.meet(peer(), 256).why_not == "not tried: 128 nodes, not within 1 s"
    assert len(runs) == 1


def test_more_processes_than_fit_are_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "available_bytes", lambda: 10 * catalogue.PROCESS_BYTES)
    found = harness.Bench(tmp_path, 1.0, 1).meet(peer(a_process_each=True), 11)
    assert found.why_not == "11 processes do not fit into this machine's memory"


# -- what is made of it ----------------------------------------------------------------------------


def result(name: str, nodes: int, why_not: str = "", **values: list[float]) -> dict[str, Any]:
    return {"peer": name, "nodes": nodes, "values": values, "why_not": why_not, "load": 0.0}


def a_run() -> dict[str, Any]:
    described = {"does": "", "version": "", "carried": "", "no_server": "", "no_warm": ""}
    return {
        "method": {"sizes": [2, 1_024]},
        "peers": [
            {"name": "floor", "title": "floor", **described},
            {"name": "rallypoint", "title": "**Rallypoint**", **described},
            {"name": "other", "title": "other", **described, "no_server": "inside a node"},
        ],
        "results": [
            result("floor", 2, warm=[0.1]),
            result("floor", 1_024, warm=[10.0]),
            result("rallypoint", 2, warm=[0.2, 0.3, 9.0], server_cpu=[0.123]),
            result("rallypoint", 1_024, warm=[15.0]),
            result("other", 2, warm=[1_234.0]),
            result("other", 1_024, "not within 120 s"),
        ],
        "deaths": [
            {"peer": name, "kind": kind, "values": {kind: [1_200.0]}, "why_not": ""}
            for name in ("rallypoint", "other")
            for kind in (common.KILLED, common.SILENT)
        ]
        + [
            {"peer": "floor", "kind": kind, "values": {}, "why_not": "it has no protocol"}
            for kind in (common.KILLED, common.SILENT)
        ],
    }


def test_a_table_of_medians_with_a_reason_below_for_every_dash() -> None:
    assert report.table(a_run(), "warm").splitlines() == [
        "| nodes | 2 | 1,024 |",
        "|---|---:|---:|",
        "| floor | 0.1 | 10.0 |",
        "| **Rallypoint** | 0.3 | 15.0 |",
        "| – over the floor | 3.0 × | 1.5 × |",
        "| other | 1,230 | –<sup>a</sup> |",
        "",
        "<sup>a</sup> other: not within 120 s.  ",
    ]


def a_run_cut_off(**more: Any) -> dict[str, Any]:
    run = a_run()
    run["results"][-2] = result("other", 2, "not within 40 s", warm=[1_234.0, 9.0]) | more
    return run


def test_a_median_of_a_run_that_was_cut_off_says_of_how_many_values_it_is() -> None:
    rows = report.table(a_run_cut_off(wanted={"warm": 3, "cold": 3}), "warm").splitlines()
    assert "| other | 622<sup>a</sup> | –<sup>b</sup> |" in rows
    assert "<sup>a</sup> other: 2 of 3 values, then not within 40 s.  " in rows


def test_a_figure_that_had_all_its_values_before_the_run_was_cut_off_has_no_note() -> None:
    rows = report.table(a_run_cut_off(wanted={"warm": 2, "cold": 3}), "warm").splitlines()
    assert "| other | 622 | –<sup>a</sup> |" in rows


def test_a_note_of_an_older_run_says_how_many_values_it_has() -> None:
    rows = report.table(a_run_cut_off(), "warm").splitlines()
    assert "| other | 622<sup>a</sup> | –<sup>b</sup> |" in rows
    assert "<sup>a</sup> other: 2 values, then not within 40 s.  " in rows


def test_a_ratio_of_a_cell_with_a_note_has_the_note() -> None:
    run = a_run()
    run["results"][0] |= {"wanted": {"warm": 10}, "why_not": "not within 40 s"}
    rows = report.table(run, "warm").splitlines()
    assert "| floor | 0.1<sup>a</sup> | 10.0 |" in rows
    assert "| – over the floor | 3.0 ×<sup>a</sup> | 1.5 × |" in rows


def test_a_death_that_was_cut_off_says_so() -> None:
    run = a_run()
    run["deaths"][2] |= {"wanted": {"killed": 3}, "why_not": "not within 180 s"}
    rows = report.deaths(run).splitlines()
    assert "| other | 1.2<sup>b</sup> | 1.2 |" in rows
    assert "<sup>b</sup> other: 1 of 3 values, then not within 180 s.  " in rows


def test_a_row_that_was_measured_while_others_ran_says_so() -> None:
    run = a_run()
    run["results"][2]["busy"] = 1
    run["results"][3]["busy"] = 12
    run["results"][-1]["busy"] = 40
    run["deaths"][2]["busy"] = 5
    rows = report.table(run, "warm").splitlines()
    assert "| **Rallypoint** | 0.3 | 15.0<sup>a</sup> |" in rows
    assert "| – over the floor | 3.0 × | 1.5 ×<sup>a</sup> |" in rows
    assert "| other | 1,230 | –<sup>b, c</sup> |" in rows
    assert (
        "<sup>a</sup> Rallypoint: it was not quiet before it: 12 others were ready to run.  "
        in rows
    )
    assert "| other | 1.2<sup>b</sup> | 1.2 |" in report.deaths(run).splitlines()


def measured_on() -> dict[str, Any]:
    names = ("when", "cores", "processor", "memory", "system", "python", "network", "host_names")
    return dict.fromkeys(names, "x") | {"load_before": 0.27, "load_after": 16.2}


def test_the_first_table_has_the_command_the_event_loop_and_the_load() -> None:
    run = a_run() | {"machine": measured_on(), "command": "python benchmarks/peers/run.py --write"}
    run["method"] |= {"repeats": 10, "deadline_s": 40.0, "death_deadline_s": 180.0}
    run["method"]["quiet"] = {"runnable_max": 1, "wait_max_s": 30.0}
    run["peers"][1]["event_loop"] = "uvloop 0.22.1"
    run["results"][2] |= {"busy": 1, "load": 3.0}
    rows = report.described(run).splitlines()
    assert "| command | `python benchmarks/peers/run.py --write` |" in rows
    assert "| event loop | Rallypoint: uvloop 0.22.1 |" in rows
    assert (
        "| others that were ready to run | at most 1, right before any measurement; it waits up to "
        "30 s for 1 or none |"
    ) in rows
    assert any("0.27 before the first row; 3 at most before a row; 16.2 after" in r for r in rows)
    run["deaths"][0]["busy"] = 6
    assert "at most 6, right before" in report.described(run)
    assert "**Something else was running" in report.described(run)


def test_the_first_table_of_an_older_run_has_no_rows_for_missing_fields() -> None:
    run = a_run() | {"machine": measured_on()}
    run["method"] |= {"repeats": 10, "deadline_s": 40.0, "death_deadline_s": 40.0}
    rows = report.described(run).splitlines()
    for name in ("command", "event loop", "others that were ready to run"):
        assert f"| {name} | not recorded |" in rows


def test_a_command_is_shown_without_paths() -> None:
    options = ["--nodes", "2,8", "--environments", "/home/me/a b", "--output=/home/me/x", "--write"]
    assert run._command(options) == (
        "python benchmarks/peers/run.py --nodes 2,8 --environments DIR --output=FILE --write"
    )
    assert run._command([]) == "python benchmarks/peers/run.py"


def test_points_of_runs_that_were_cut_off_are_hollow() -> None:
    lines: list[dict[str, Any]] = []
    run = a_run_cut_off(wanted={"warm": 3})
    assert report._lines(run, "warm", lambda *xy, **look: lines.append(look | {"xy": xy}))
    assert [line["xy"] for line in lines if line.get("color") == "white"] == [((2,), (621.5,))]
    assert not report._lines(a_run(), "warm", lambda *xy, **look: None)


def test_a_server_within_a_node_is_marked() -> None:
    rows = report.table(a_run(), "server_cpu").splitlines()
    assert "| **Rallypoint** | 0.12 | –<sup>b</sup> |" in rows
    assert "<sup>c</sup> other: inside a node.  " in rows


def test_a_peer_that_was_skipped_is_named() -> None:
    run = a_run()
    run["results"][-2] = result("other", 2, harness.NOT_INSTALLED)
    rows = report.table(run, "warm").splitlines()
    assert f"<sup>a</sup> other: {harness.NOT_INSTALLED}.  " in rows


def test_deaths_are_in_seconds() -> None:
    assert "| other | 1.2 | 1.2 |" in report.deaths(a_run()).splitlines()


def test_numbers_are_rounded() -> None:
    numbers = {0.0712: "0.071", 3.24: "3.2", 9.96: "10.0", 45.26: "45.3", 1_166.0: "1,170"}
    assert {value: report.rounded(value) for value in numbers} == numbers


def test_a_round_is_from_the_first_call_to_the_last_answer() -> None:
    done = common.round_of([(10.0, 12.0), (10.5, 11.0), (10.25, 13.0)])
    assert done == common.Round(3.0, 0.5)


# -- the whole of it -------------------------------------------------------------------------------


@pytest.mark.verify
@pytest.mark.processes
@pytest.mark.timeout(300)
def test_missing_peers_are_skipped_by_name_and_the_others_are_measured(
    tmp_path: Path,
) -> None:
    """On a busy machine it waits for up to a minute in all: before each installed peer."""
    output = tmp_path / "run.json"
    done = subprocess.run(
        [
            *(
                sys.executable,
                str(SCRIPT),
                "--here",
                "--no-deaths",
                "--only",
                "floor,rallypoint,nvrx,jax",
            ),
            *("--nodes", "2", "--repeats", "1", "--environments", str(tmp_path)),
            *("--output", str(output)),
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "JAX coordination service: not installed" in done.stdout
    run = json.loads(output.read_text())
    values = {each["peer"]: each["values"] for each in run["results"]}
    assert values["jax"] == {}
    assert [each["peer"] for each in run["results"]] == ["floor", "rallypoint", "jax", "nvrx"]
    assert run["command"] == (
        "python benchmarks/peers/run.py --here --no-deaths --only floor,rallypoint,nvrx,jax "
        "--nodes 2 --repeats 1 --environments DIR --output FILE"
    )
    assert {"busy" in each for each in run["results"][:2]} == {sys.platform == "linux"}
    assert not any("busy" in each for each in run["results"][2:])
    assert [each["wanted"] for each in run["results"][:2]] == [{"cold": 1, "warm": 1}] * 2
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    loop = common.versions("uvloop") if has_uvloop else "asyncio's own"
    assert [each["event_loop"] for each in run["peers"]] == [loop, loop, "", ""]
    assert set(values["rallypoint"]) == {"warm", "cold", "skew", "server_cpu"}
    assert min(values["floor"]["warm"]) > 0


@pytest.mark.processes
def test_an_unknown_peer_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--only", "carrier-pigeon"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "there is no carrier-pigeon; there is floor, rallypoint, " in done.stderr


@needs_torch
@pytest.mark.processes
def test_two_nodes_meet_through_torchs_store() -> None:
    found = harness.run_script(
        sys.executable, "benchmarks.peers.tcpstore", ("meet", 2, 2), deadline_s=100.0
    )
    assert found.why_not == ""
    assert found.version.startswith("torch ")
    assert set(found.values) == {"cold", "warm", "skew", "server_cpu"}
    assert len(found.values["warm"]) == 2
    assert min(min(values) for values in found.values.values()) >= 0


@pytest.mark.processes
def test_processes_wait_for_each_other_and_can_be_frozen() -> None:
    processes = common.Processes(3, 2, lambda index: lambda: time.sleep(0.01 * index))
    pids = list(processes.pids.values())
    try:
        done = processes.round()
        assert done.span_s >= 0.02
        processes.kill(2, common.SILENT)
        processes.begin(0.0)
        assert len(processes.answers()) == 2
    finally:
        processes.end()
    assert all(is_gone(pid) for pid in pids)


def test_the_document_is_made_from_its_json() -> None:
    path = ROOT / "docs" / "benchmarks.md"
    run = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    document = path.read_text(encoding="utf-8")
    pictures = report.shown(path.parent / "images", path.parent)
    assert doc_tables.put(report.markdown(run, pictures), document, report.WRITER) == document
    assert len(pictures) == len(report.PICTURES)
