"""What `rallypoint bench` prints, and what it refuses before it measures anything."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rallypoint.bench import driver, kill, meet, model, processes, report
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.processes import wait_until
from rallypoint.cli import api
from rallypoint.endpoints import parse_endpoint

from .conftest import COMMAND, Cli, Served

Snapshot = Callable[[str, str], None]

MACHINE = {
    "rallypoint": "1",
    "python": "3",
    "system": "Linux",
    "cores": 2,
    "load": 0.5,
    "event_loop": "uvloop 1",
}
WRONG = (
    ("meet", "--nodes", "eight"),
    ("meet", "--nodes", "1"),
    ("idle", "--run", "job"),
    ("meet", "--run", "job"),
    ("meet", "--of", "4000"),
    ("meet", "--run", "job", "--of", "4000"),
    ("meet", "--run", "job", "--of", "40", "--nodes", "8,16", "--at", "host0:29400"),
    ("meet", "--run", "job", "--of", "40", "--nodes", "41", "--at", "host0:29400"),
    ("meet", "--ddp"),
    ("store", "--runs", "5"),
    ("recover", "--nodes", "2"),
    ("recover", "--ways", "preload"),
    ("meet", "--ways", "cold"),
    ("agree", "--progress"),
    ("failover", "--at", "host0:29400"),
    ("kill", "--at", "host0:29400"),
    ("ledger-reads", "--at", "etcd"),
    ("model", "--nodes", "128"),
    ("meet", "--at", "etcd://host0:2379"),
    ("meet", "--nodes", "4", "--at", "127.0.0.1:PORT"),
    ("meet", "--plot", "nowhere/at/all.png"),
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that are always the same, and nothing is started."""

    def figures(plan: driver.Plan, nodes: int) -> list[Figure]:
        def one(name: str, unit: str, *values: float) -> Figure:
            return Figure(scenario="meet", name=name, nodes=nodes, unit=unit, values=values)

        return [
            one("warm", "ms", 0.0123 * nodes, 0.01 * nodes, 0.02 * nodes),
            one("warm / floor", "x", 1.87),
        ]

    def nothing() -> contextlib.AbstractContextManager[driver.Coordinator]:
        return contextlib.nullcontext(driver.NOWHERE)

    def costs(*_: object) -> list[model.Cost]:
        sizes = (128, 256, 512)
        return [
            model.fit("messages", "per round", "", {n: 3.0 * n for n in sizes}),
            model.fit("coordinator's CPU", "ms per s", "", {n: 1.5 + n / 80 for n in sizes}),
        ]

    monkeypatch.setattr(meet, "measure", figures)
    monkeypatch.setattr(model, "measure", costs)
    monkeypatch.setattr(driver, "served", nothing)
    monkeypatch.setattr(report, "machine", lambda: MACHINE)


@pytest.mark.usefixtures("measured")
def test_the_figures_are_a_table(cli: Cli, snapshot: Snapshot) -> None:
    snapshot("bench-meet", str(cli("bench", "meet", "--nodes", "8,1024,9000")))


@pytest.mark.usefixtures("measured")
def test_the_model_and_what_it_predicts(cli: Cli, snapshot: Snapshot) -> None:
    snapshot("bench-model", str(cli("bench", "model")))


def test_a_target_is_shown_and_judged(
    cli: Cli, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures(plan: driver.Plan, nodes: int) -> list[Figure]:
        def one(name: str, target: Target | None) -> Figure:
            values = (50.0, 60.0, 2_000.0)
            return Figure(
                scenario="kill", name=name, nodes=nodes, unit="ms", values=values, target=target
            )

        return [
            one("median in time", Target(100)),
            one("once too late", Target(100, worst=True)),
            one("nothing promised", None),
        ]

    monkeypatch.setattr(kill, "measure", figures)
    monkeypatch.setattr(report, "machine", lambda: MACHINE)
    snapshot("bench-targets", str(cli("bench", "kill")))
    told = json.loads(cli("bench", "kill", "--json").out)["figures"]
    assert [each["reached"] for each in told] == [True, False, None]
    assert told[1]["target"] == {"at_most": 100, "of": "max"}


@pytest.mark.usefixtures("measured")
def test_figures_may_be_json(cli: Cli) -> None:
    done = cli("bench", "meet", "--nodes", "8", "--json")
    body = json.loads(done.out)
    assert (done.code, body["machine"]) == (0, MACHINE)
    assert [each["name"] for each in body["figures"]] == ["warm", "warm / floor"]
    assert body["figures"][0]["median"] == pytest.approx(0.0984)
    assert len(body["figures"][0]["values"]) == 3
    body = json.loads(cli("bench", "model", "--json").out)
    assert body["exponent_wanted_at_most"] == 1.1
    assert all(each["is_prediction"] for cost in body["model"] for each in cost["predicted"])


@pytest.mark.sockets
def test_bad_options_are_refused(
    cli: Cli, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    said = []
    for line in WRONG:
        done = cli("bench", *(each.replace("PORT", str(free_port)) for each in line))
        text = str(done).replace(str(free_port), "PORT")
        said.append(f"$ rallypoint bench {' '.join(line)}\n{text}")
    snapshot("bench-errors", "\n".join(said))


@pytest.mark.processes
def test_a_refusal_of_the_coordinator_is_an_error(
    cli: Cli, serve: Callable[..., Served], tmp_path: Path
) -> None:
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(name * 5)
        (tmp_path / name).chmod(0o600)
    address = f"127.0.0.1:{serve('--token-file', str(tmp_path / 'right')).port}"
    for more in ([], ["--token-file", str(tmp_path / "wrong")]):
        done = cli("bench", "meet", "--nodes", "2", "--at", address, *more)
        assert done.code == 2
        assert "token" in done.err.splitlines()[0]
        assert done.err.splitlines()[-1].startswith("hint: ")
    right = ("--token-file", str(tmp_path / "right"), "--repeats", "1")
    assert cli("bench", "meet", "--nodes", "2", "--at", address, *right).code == 0


ANSWERS = (
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/1.1 404 Not Found\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",
    b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"runs": 1}',
)


@pytest.mark.sockets
@pytest.mark.parametrize("answer", ANSWERS)
def test_another_program_at_the_endpoint_is_named(
    cli: Cli, listener: Callable[[bytes | None], str], answer: bytes
) -> None:
    """An ordinary web server too, which says 200 to anything."""
    where = listener(answer)
    done = cli("bench", "meet", "--nodes", "2", "--at", where)
    assert done.code == 3
    assert f"the server at {where} is not a Rallypoint coordinator" in done.err
    assert done.err.splitlines()[-1].startswith("hint: check the host and the port")


@pytest.mark.sockets
def test_a_server_that_never_answers_is_named(
    cli: Cli, listener: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "TIMEOUT_S", 0.2)
    done = cli("bench", "meet", "--nodes", "2", "--at", listener(None))
    assert done.code == 3
    assert "no answer within 0.2 s" in done.err
    assert "--at" in done.err.splitlines()[-1]


def test_a_picture_needs_matplotlib(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = cli("bench", "meet", "--plot", "figures.png")
    assert done.code == 2
    assert "--plot needs matplotlib" in done.err
    assert "pip install" in done.err


draws = pytest.mark.processes
"""matplotlib runs fc-list when a user draws for the first time."""


@draws
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "it is a folder"),
        ("figures", "the suffix ''"),
        ("figures.docx", "the suffix '.docx'"),
        ("nowhere/figures.png", "does not exist"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_an_error(
    cli: Cli, tmp_path: Path, name: str, said: str
) -> None:
    pytest.importorskip("matplotlib")
    done = cli("bench", "meet", "--plot", str(tmp_path / name))
    assert done.code == 2
    assert said in done.err.splitlines()[0]
    assert done.err.splitlines()[-1].startswith("hint: ")
    assert list(tmp_path.iterdir()) == []


@draws
@pytest.mark.skipif(sys.platform != "linux", reason="where nobody may write, not even root: /proc")
@pytest.mark.parametrize("path", ["/proc/figures.png", "/proc/version.png"])
def test_a_picture_in_an_unwritable_place_is_an_error(cli: Cli, path: str) -> None:
    pytest.importorskip("matplotlib")
    done = cli("bench", "meet", "--plot", path)
    assert done.code == 2
    assert f"cannot draw to {path}: " in done.err
    assert "a folder where you may write" in done.err.splitlines()[-1]


@draws
@pytest.mark.usefixtures("measured")
def test_an_existing_picture_is_kept_until_the_new_one_is_drawn(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "figures.svg"
    path.write_text("the one of yesterday")
    assert cli("bench", "meet", "--nodes", "1", "--plot", str(path)).code == 2
    assert path.read_text() == "the one of yesterday"
    assert cli("bench", "meet", "--nodes", "2", "--plot", str(path)).code == 0
    assert "<svg" in path.read_text()


@draws
@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("scenario", ["meet", "model"])
def test_a_picture_is_drawn(cli: Cli, tmp_path: Path, scenario: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "figures.svg"
    done = cli("bench", scenario, "--plot", str(path))
    assert (done.code, done.err.splitlines()[-1]) == (0, f"rallypoint: drawn to {path}")
    assert "<svg" in path.read_text()


@pytest.mark.processes
def test_a_low_limit_of_open_files_is_an_error() -> None:
    done = subprocess.run(
        [*COMMAND, "bench", "meet", "--nodes", "500"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "500 nodes need 564 open files" in done.stderr
    assert "is 256" in done.stderr
    assert "ulimit -n 564" in done.stderr.splitlines()[-1]


@pytest.mark.usefixtures("measured")
def test_long_steps_are_announced(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([False, False, True])

    def waits(plan: driver.Plan, nodes: int) -> list[Figure]:
        wait_until(lambda: next(looks), "snow")
        return []

    monkeypatch.setattr(processes, "SAY_AFTER_S", 0.0)
    monkeypatch.setattr(meet, "measure", waits)
    done = cli("bench", "meet", "--nodes", "2")
    assert done.code == 0
    said = r"rallypoint: waiting for \d+ s by now: snow"
    assert re.fullmatch(said, done.err.splitlines()[1])


@pytest.mark.usefixtures("measured")
def test_too_few_ports_for_all_nodes_are_an_error(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = tmp_path / "ports"
    ports.write_text("40000\t40099\n")
    monkeypatch.setattr(driver, "PORTS", ports)
    assert cli("bench", "meet", "--nodes", "84").code == 0
    done = cli("bench", "meet", "--nodes", "8,85")
    assert done.code == 1
    assert "85 nodes need 101 ports" in done.err
    assert "net.ipv4.ip_local_port_range has 100 (40000 to 40099)" in done.err
    assert "sysctl -w net.ipv4.ip_local_port_range='40000 65535'" in done.err
    assert cli("bench", "runs", "--nodes", "10", "--runs", "9").code == 1


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_share_that_is_refused_says_why_and_what_to_do(serve: Callable[..., Served]) -> None:
    at = f"127.0.0.1:{serve().port}"
    share = ("bench", "meet", "--at", at, "--repeats", "1", "--nodes", "2")

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *share, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    first = start("--run", "shared", "--of", "4")
    wait_until(lambda: _attached(at, "shared") == 2, "the first share to be there")
    other = start("--run", "shared", "--of", "5")
    said = other.communicate(timeout=100)[1]
    assert other.returncode == 1
    assert "a node was refused: this node's settings differ" in said
    assert "max_nodes: the run has 4, this node 5" in said
    assert said.splitlines()[-1].startswith("hint: start every node of a run with the same")
    second = start("--run", "shared", "--of", "4")
    for each in (first, second):
        said = each.communicate(timeout=100)[1]
        assert each.returncode == 0, said
    again = start("--run", "shared", "--of", "4")
    said = again.communicate(timeout=100)[1]
    assert again.returncode == 1
    assert "a node was refused: run 'shared' was closed" in said
    assert said.splitlines()[-1] == "hint: start again under another run id"


def _attached(at: str, run_id: str) -> int:
    runs = api.runs(parse_endpoint(at), "")["runs"]
    return sum(each["attached"] for each in runs if each["run_id"] == run_id)


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.parametrize("scenario", ["meet", pytest.param("regroup", marks=pytest.mark.verify)])
def test_more_processes_than_nodes_are_allowed(cli: Cli, scenario: str) -> None:
    done = cli("bench", scenario, "--nodes", "2,5", "--processes", "5", "--repeats", "1")
    assert done.code == 0, done.err


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_several_machines_measure_their_own_share(serve: Callable[..., Served]) -> None:
    """Here two processes of one machine; they meet only in the run's rounds."""
    address = f"127.0.0.1:{serve().port}"

    def start(nodes: int, *more: str) -> subprocess.Popen[str]:
        line = ("bench", "meet", "--json", "--at", address, "--run", "shared", "--of", "7")
        return subprocess.Popen(
            [sys.executable, "-m", "rallypoint", *line, "--nodes", str(nodes), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    shares = [start(3, "--repeats", "4"), start(4, "--repeats", "4", "--processes", "5")]
    for process, nodes in zip(shares, (3, 4), strict=True):
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        figures = json.loads(out)["figures"]
        assert [each["name"] for each in figures] == ["warm, of 7", "told", "skew"]
        assert {each["nodes"] for each in figures} == {nodes}
        assert len(figures[0]["values"]) == 4
