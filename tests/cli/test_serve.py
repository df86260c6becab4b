"""`rallypoint serve`, as a process."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import rallypoint
from rallypoint.cli import serve as serving
from rallypoint.coordinator.status import RunStatus
from rallypoint.endpoints import parse_endpoint
from rallypoint.errors import UsageError
from rallypoint.security.state import State
from tests.waiting import wait_until

from .conftest import COMMAND, Cli, Served, without_ports

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_prints_its_endpoint_and_ends_cleanly(
    serve: Callable[..., Served], number: int
) -> None:
    served = serve()
    assert served.endpoint.startswith("http://127.0.0.1:")
    code, err, took_s = served.stop(number)
    assert (code, took_s < 20) == (0, True)
    assert f"is ready at {served.endpoint}" in err
    assert f"{signal.Signals(number).name}: stopping the coordinator" in err
    assert "Traceback" not in err


def test_serve_ends_in_time_although_nodes_are_connected(serve: Callable[..., Served]) -> None:
    served = serve()
    with socket.create_connection(("127.0.0.1", served.port)) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(100)
        code, _, took_s = served.stop()
    assert (code, took_s < 20) == (0, True)


def test_serve_answers_requests(serve: Callable[..., Served]) -> None:
    with urllib.request.urlopen(f"{serve().endpoint}/healthz", timeout=10) as response:
        assert response.read() == b"ok\n"


@pytest.mark.parametrize("kept", ["memory", "file"])
def test_a_closed_run_is_kept_for_the_configured_time(
    serve: Callable[..., Served], cli: Cli, tmp_path: Path, kept: str
) -> None:
    ledger = ("--ledger", f"file:{tmp_path / 'ledger'}") if kept == "file" else ()
    endpoint = serve(*ledger, env={"RALLYPOINT_CLOSED_RUN_KEEP": "2s"}).endpoint
    with rallypoint.join("short", endpoint, min_nodes=1, max_nodes=1) as run:
        run.next_world()
        closing_s = time.monotonic()
        run.close("done")
    is_there = "short" in cli("status", "--endpoint", endpoint).out
    assert is_there or time.monotonic() - closing_s > 2.0
    ends_s = time.monotonic() + 60.0
    while "short" in cli("status", "--endpoint", endpoint).out:
        assert time.monotonic() < ends_s
        time.sleep(0.2)


def test_serve_listens_on_ipv6(serve: Callable[..., Served], cli: Cli) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")
    served = serve("--host", "::1")
    assert served.endpoint.startswith("http://[::1]:")
    assert cli("status", "--endpoint", served.endpoint).code == 0


def test_beyond_loopback_serve_starts_with_a_token_or_insecure(
    serve: Callable[..., Served], cli: Cli, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    assert cli("token", "new", str(token)).code == 0
    open_to_all = serve("--host", "0.0.0.0", "--insecure")
    guarded = serve("--host", "::", "--token-file", str(token))
    assert cli("status", "--endpoint", f"127.0.0.1:{open_to_all.port}").code == 0
    where = f"127.0.0.1:{guarded.port}"
    assert "uses TLS" in cli("status", "--endpoint", where).err
    assert cli("status", "--endpoint", where, "--token-file", str(token)).code == 0


def test_serve_with_a_state_admits_the_tokens_of_its_nodes(
    serve: Callable[..., Served], cli: Cli, tmp_path: Path
) -> None:
    state, node = tmp_path / "state", tmp_path / "node"
    assert cli("token", "new", "--state", str(state)).code == 0
    assert cli("token", "new", str(node), "--state", str(state)).code == 0
    served = serve("--host", "0.0.0.0", "--state", str(state))
    assert served.endpoint.startswith("https://")
    where = f"https://127.0.0.1:{served.port}"
    assert cli("status", "--endpoint", where, "--token-file", str(node)).code == 0
    assert cli("status", "--endpoint", where, "--token-file", str(state)).code == 0
    refused = cli("serve", "--token-file", str(node), "--port", "0")
    assert (refused.code, refused.out) == (2, "")
    assert "it is a node's token" in refused.err
    both = cli("serve", "--token-file", str(node), "--state", str(state))
    assert "give one of them" in both.err
    assert "there is no directory" in cli("serve", "--state", str(tmp_path / "x")).err


@pytest.mark.parametrize("token", ["a", "hunter2", "correct-horse", "a" * 64, "0123456789" * 3])
def test_beyond_loopback_a_token_that_can_be_guessed_is_refused(
    cli: Cli, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALLYPOINT_TOKEN", token)
    done = cli("serve", "--host", "0.0.0.0", "--port", "0")
    assert (done.code, done.out) == (2, "")
    assert "128 bits" in done.err
    assert "22 random characters of base64 or 32 random hexadecimal digits" in done.err
    assert "secrets.token_urlsafe(32)" in done.err.splitlines()[-1]
    assert f"{token}\n" not in done.err
    assert f"'{token}'" not in done.err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "*", "192.0.2.1"])
def test_beyond_loopback_serve_needs_a_token(cli: Cli, host: str) -> None:
    done = cli("serve", "--host", host, "--port", "0")
    assert (done.code, done.out) == (2, "")
    assert "can be reached from other machines, and there is no token" in done.err
    assert "--insecure" in done.err.splitlines()[-1]


def test_a_taken_port_is_an_error(
    serve: Callable[..., Served], cli: Cli, snapshot: Callable[[str, str], None]
) -> None:
    port = serve().port
    snapshot("serve-port-taken", without_ports(str(cli("serve", "--port", str(port)))))


def test_an_address_of_another_machine_is_an_error(cli: Cli) -> None:
    done = cli("serve", "--host", "192.0.2.1", "--port", "0", "--insecure")
    assert done.code == 2
    assert "192.0.2.1 is not an address of this machine" in done.err


def test_a_token_file_that_others_can_read_causes_a_warning(cli: Cli, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hunter2\n")
    token.chmod(0o644)
    done = cli("serve", "--host", "192.0.2.1", "--token-file", str(token))
    assert "warning: token file" in done.err
    assert "hunter2" not in done.err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_are_recognized(host: str) -> None:
    assert serving.is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "*", "192.0.2.1", "2001:db8::1"])
def test_addresses_beyond_loopback_are_recognized(host: str) -> None:
    assert not serving.is_loopback(host)


def test_a_name_with_one_address_beyond_loopback_counts_as_beyond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [(0, 0, 0, "", ("127.0.0.1", 0)), (0, 0, 0, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert not serving.is_loopback("both")


def test_an_unresolvable_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(UsageError, match="cannot resolve host 'nowhere'"):
        serving.is_loopback("nowhere")


def test_the_endpoint_of_every_address_names_this_machine() -> None:
    assert serving.endpoint_text("::", 5) == f"http://{socket.gethostname()}:5"
    assert serving.endpoint_text("0.0.0.0", 5) == f"http://{socket.gethostname()}:5"
    assert serving.endpoint_text("::1", 5) == "http://[::1]:5"
    assert serving.endpoint_text("localhost", 5) == "http://localhost:5"


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        ("127.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("0:0::1", "0:0::1"),
        ("fe80::1%lo", "fe80::1%lo"),
        ("localhost", "localhost"),
        ("node_0.example.", "node_0.example."),
        ("0", socket.gethostname()),
        ("0.0", socket.gethostname()),
        ("::0", socket.gethostname()),
        ("::ffff:0:0", socket.gethostname()),
        ("*", socket.gethostname()),
    ],
)
def test_the_printed_endpoint_can_be_parsed(host: str, meant: str) -> None:
    text = serving.endpoint_text(serving.written_out(host), 5, "192.0.2.7")
    assert (parse_endpoint(text).host, parse_endpoint(text).port) == (meant, 5)


def test_a_name_that_fits_no_endpoint_is_printed_as_its_address() -> None:
    assert serving.endpoint_text("knoten-ä", 5, "192.0.2.7") == "http://192.0.2.7:5"


@pytest.mark.parametrize("name", ["localhost", "my host", "-x"])
def test_a_machine_without_a_useful_name_is_printed_by_its_address(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setattr(serving, "source_towards", lambda host: "10.0.0.5")
    assert serving.endpoint_text("::", 5, "::") == "http://10.0.0.5:5"


def test_a_coordinator_on_loopback_says_that_others_cannot_reach_it() -> None:
    command = [*COMMAND, "serve", "--port", "0", "--ledger", "etcd://192.0.2.9:2379/p"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next((line for line in process.stderr if "warning" in line), "")
        process.kill()
        process.stderr.read()
    assert "warning: nodes on other machines cannot reach 127.0.0.1" in said
    assert "--advertise" in said


def test_a_short_form_of_an_address_is_bound(serve: Callable[..., Served], cli: Cli) -> None:
    served = serve("--host", "127.1")
    assert served.endpoint == f"http://127.0.0.1:{served.port}"
    assert cli("status", "--endpoint", served.endpoint).code == 0


def test_a_link_local_address_without_its_zone_is_refused(cli: Cli) -> None:
    done = cli("serve", "--host", "fe80::1", "--port", "0", "--insecure")
    assert (done.code, done.out) == (2, "")
    assert "fe80::1%eth0" in done.err.splitlines()[-1]


# -- a ledger --------------------------------------------------------------------------------------


def test_runs_are_found_through_the_ledger(
    serve: Callable[..., Served], cli: Cli, tmp_path: Path
) -> None:
    ledger = f"file:{tmp_path}/ledger"
    served = serve("--ledger", ledger)
    nobody = cli("status", "no-run", "--endpoint", f"file://{tmp_path}/ledger")
    assert nobody.code == 2
    assert "has no run 'no-run'" in nobody.err
    code, err, _ = served.stop()
    assert code == 0
    assert f"runs are kept in {ledger}" in err


def test_a_closed_run_is_shown_without_a_coordinator(cli: Cli, tmp_path: Path) -> None:
    where = ("--endpoint", f"file://{tmp_path}")
    trained = cli("run", "--nnodes", "1", "--run-id", "a", *where, "--no-python", "--", "true")
    assert trained.code == 0, trained.err
    one = cli("status", "a", *where)
    assert (one.code, one.out.splitlines()[:2]) == (
        0,
        [
            "run a: closed after round 1, 0 restarts",
            "ended: succeeded: all nodes have finished",
        ],
    )
    assert cli("status", *where).out.startswith("no coordinator serves a run now\n")
    told = json.loads(cli("status", *where, "--json").out)
    assert [each["closed"]["outcome"] for each in told["runs"]] == ["succeeded"]


def test_a_run_without_its_coordinator_has_the_same_fields(
    serve: Callable[..., Served], cli: Cli, tmp_path: Path
) -> None:
    where = ("--endpoint", f"file://{tmp_path}", "--json")
    served = serve("--ledger", f"file:{tmp_path}")
    agent = subprocess.Popen(
        [
            *(*COMMAND, "run", "--nnodes", "1", "--run-id", "a"),
            *("--endpoint", served.endpoint, "--no-python", "--", "sleep", "1000"),
        ]
    )

    def listed() -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = json.loads(cli("status", *where).out or '{"runs": []}')["runs"]
        return runs

    try:
        live = wait_until(lambda: [each for each in listed() if each["phase"] == "active"])
        # It has 2 s to hand the run over. A pause may take them: then once more.
        while "has not taken this coordinator's goodbye" in served.stop()[1]:
            served = serve("--ledger", f"file:{tmp_path}", "--port", str(served.port))
            wait_until(lambda: [each for each in listed() if each["phase"] == "active"])
        told = listed()
        one = cli("status", "a", *where)
        shown = cli("status", "a", *where[:2])
    finally:
        agent.terminate()
        agent.wait(60)
    assert (live[0]["phase"], told[0]["phase"]) == ("active", "unowned")
    assert set(told[0]) == set(live[0])
    assert told[0]["round"] == 1
    assert "try again in a few seconds" in told[0]["reason"]
    assert (one.code, "has no coordinator now" in one.err) == (3, True)
    detail = json.loads(one.out)
    msgspec.convert(detail, RunStatus)  # every field, and no other
    assert (detail["phase"], detail["source"], detail["owner"]) == ("unowned", "ledger", None)
    assert [each["number"] for each in detail["rounds"]] == [1]
    assert (shown.code, shown.err) == (3, one.err)
    assert shown.out.startswith("run a: unowned, round 1: 1 node, 1 worker, 0 restarts\n")


def test_an_unknown_run_has_the_same_fields(
    serve: Callable[..., Served], cli: Cli, tmp_path: Path
) -> None:
    served = serve("--ledger", f"file:{tmp_path}")
    for endpoint in (f"file://{tmp_path}", served.endpoint):
        done = cli("status", "nope", "--endpoint", endpoint, "--json")
        assert (done.code, "no run 'nope'" in done.err) == (2, True)
        told = msgspec.convert(json.loads(done.out), RunStatus)
        assert (told.run_id, told.phase, told.source) == ("nope", "unknown", None)
        assert "no run 'nope'" in told.reason


def test_a_replica_shows_and_closes_a_run_of_another(
    serve: Callable[..., Served], cli: Cli, tmp_path: Path
) -> None:
    ledger = ("--ledger", f"file:{tmp_path}")
    owner, other = serve(*ledger), serve(*ledger)
    where = ("--endpoint", other.endpoint)
    with rallypoint.join("a", owner.endpoint, min_nodes=1, max_nodes=1, node_name="n") as run:
        run.next_world()

        def is_shown() -> bool:
            # A coordinator that pauses for 3 s counts as one that does not answer.
            told = json.loads(cli("status", "a", *where, "--json").out or "{}")
            shown = [told.get(each) for each in ("phase", "source", "attached")]
            return shown == ["active", "coordinator", 1]

        wait_until(is_shown)
        assert "n" in cli("status", *where).out
        attempts = (cli("close", "a", *where) for _ in range(100))
        closed = next(each for each in attempts if each.code == 0)
        # Closed by an earlier attempt, if the owner paused before it answered that one.
        assert closed.out in ("run 'a' is closed\n", "run 'a' had already ended\n")
        assert list(run.worlds()) == []
    # The owner is killed: status shows its last record, and that no coordinator answers.
    with rallypoint.join("b", owner.endpoint, min_nodes=1, max_nodes=1) as run:
        run.next_world()
        owner.kill()
        for endpoint in (other.endpoint, f"file://{tmp_path}"):
            done = cli("status", "b", "--endpoint", endpoint, "--json")
            told = json.loads(done.out)
            msgspec.convert(told, RunStatus)
            assert (done.code, told["phase"], told["source"]) == (3, "unreachable", "ledger")
            assert f":{owner.port}" in told["reason"]
            assert "Connection refused" in told["reason"]
            assert (told["rounds"][-1]["number"], told["rounds"][-1]["ended"]) == (1, "")


def test_status_creates_no_ledger(cli: Cli, tmp_path: Path) -> None:
    done = cli("status", "--endpoint", f"file://{tmp_path}/none")
    error, hint = done.err.splitlines()
    assert (done.code, error) == (
        2,
        f"error: there is no ledger at file://{tmp_path}/none: no such folder",
    )
    assert hint.startswith("hint: check the path, and that the folder is mounted")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--ledger", "node0:1"), "is not a ledger"),
        (("--advertise", "node0"), "no ledger is given"),
        (("--ledger", "file:x", "--advertise", "a b"), "--advertise must be"),
        (("--ledger", "etcd://a?user=me"), "user 'me' has no password"),
    ],
)
def test_a_bad_ledger_is_reported_before_serve_listens(
    cli: Cli, options: tuple[str, ...], told: str
) -> None:
    done = cli("serve", "--port", "0", *options)
    assert done.code == 2
    assert told in done.err


def test_the_log_may_be_json(serve: Callable[..., Served]) -> None:
    served = serve("--log-format", "json", "--insecure")
    with socket.create_connection(("127.0.0.1", served.port), 10) as sock:
        sock.sendall(b"GET /nowhere HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n")
        assert sock.recv(1000)
    code, err, _ = served.stop()
    assert code == 0
    lines = [json.loads(line) for line in err.splitlines()]
    assert any("is ready at" in each["message"] for each in lines)
    assert {each["level"] for each in lines} <= {"info", "warning"}


def test_quiet_says_only_what_is_wrong(serve: Callable[..., Served]) -> None:
    served = serve("-q", env={"RALLYPOINT_INSECURE": "yes"})
    assert "ready" not in served.stop()[1]


def test_verbose_and_quiet_contradict_each_other(cli: Cli) -> None:
    assert "contradict" in cli("serve", "-v", "-q").err


@pytest.mark.parametrize("kept", ["memory", "file"])
def test_a_token_that_is_revoked_is_refused_within_seconds(
    serve: Callable[..., Served], cli: Cli, tmp_path: Path, kept: str
) -> None:
    """By a change of the state directory, or for all replicas by the ledger."""
    state, other, viewer = tmp_path / "state", tmp_path / "copy", tmp_path / "viewer"
    place = f"file:{tmp_path / 'ledger'}"
    ledger = ("--ledger", place) if kept == "file" else ()
    assert cli("token", "new", "--state", str(state)).code == 0
    shutil.copytree(state, other)
    assert cli("token", "new", str(viewer), "--state", str(state), "--role", "viewer").code == 0
    [claim] = State(state).issued()
    # The other replica has a copy of the directory, in which the claim is not revoked.
    folders = (state, other) if ledger else (state,)
    endpoints = [serve("--state", str(each), *ledger).endpoint for each in folders]

    def answers() -> list[int]:
        found = [cli("status", "--endpoint", e, "--token-file", str(viewer)) for e in endpoints]
        assert all(each.code == 0 or "was revoked" in each.err for each in found), found
        return [each.code for each in found]

    assert not any(answers())
    assert cli("token", "revoke", claim.id, "--state", str(state), *ledger).code == 0
    wait_until(lambda: all(answers()), says="it is still accepted")


def test_its_end_names_the_runs_that_end_with_it(
    serve: Callable[..., Served], cli: Cli, tmp_path: Path
) -> None:
    """With a ledger they go on. A closed run and a run without nodes are not named."""
    alone, kept = serve(), serve("--ledger", f"file:{tmp_path / 'ledger'}")
    for served in (alone, kept):
        with rallypoint.join("over", served.endpoint, min_nodes=1, max_nodes=1) as run:
            run.next_world()
            run.close("done")
    program = ("--no-python", "--", "sleep", "1000")
    agents = [
        subprocess.Popen(
            [
                *(*COMMAND, "run", "--nnodes", "1", "--run-id", "job", "--node-name", "n1"),
                *("--endpoint", served.endpoint, *program),
            ],
            stderr=subprocess.DEVNULL,
        )
        for served in (alone, kept)
    ]
    try:
        for served in (alone, kept):
            where = ("--endpoint", served.endpoint, "--for", "active", "--timeout", "60")
            assert cli("wait", "job", *where).code == 0
        lost, goes_on = (" ".join(served.stop()[1].split()) for served in (alone, kept))
    finally:
        for agent in agents:
            agent.terminate()
        for agent in agents:
            agent.wait(60)
    assert "run 'job' ends with this coordinator, as it has no ledger: n1" in lost
    place = f"file:{tmp_path / 'ledger'}"
    assert f"run 'job' goes on: the next coordinator of {place} takes over" in goes_on
    assert "'over'" not in lost + goes_on
