"""`rallypoint status` and `rallypoint close`, against real coordinators and what is none."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rallypoint
from rallypoint.cli import api
from rallypoint.settings import parse_endpoint

from .conftest import COMMAND, Cli, Served, make_plain, without_ports

Listener = Callable[[bytes | None], str]


def joined(endpoint: str) -> rallypoint.Run:
    return rallypoint.join(
        "a/b c", endpoint, min_nodes=1, max_nodes=2, node_name="node0", last_call_s=0.01
    )


@pytest.fixture
def run(serve: Callable[..., Served]) -> Iterator[tuple[str, rallypoint.Run]]:
    """The endpoint of a coordinator, and a run there with one node in a round."""
    endpoint = serve().endpoint
    with joined(endpoint) as it:
        next(iter(it.worlds()))
        yield endpoint, it


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Such a coordinator and run, for all tests that only look."""
    with pytest.MonkeyPatch.context() as patch:
        make_plain(patch, tmp_path_factory)
        served = Served("--port", "0")
        node = joined(served.endpoint)
    try:
        with node:
            next(iter(node.worlds()))
            yield served.endpoint
    finally:
        served.kill()


# -- what is there -------------------------------------------------------------------------------


@pytest.mark.processes
def test_the_only_run_is_shown_in_detail(cli: Cli, endpoint: str) -> None:
    done = cli("status", "--endpoint", endpoint)
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert lines[0] == "run a/b c: active, round 1: 1 node, 1 worker, 0 restarts"
    assert lines[1].startswith("coordinator: ")
    assert lines[1].endswith(f" by the clock of {socket.gethostname()}")
    assert lines[4].split()[:5] == ["0", "0", "node0", "active", "connected"]
    assert lines[7].split()[0] == "1"
    assert re.fullmatch(r"\d\d:\d\d:\d\d", lines[7].split()[1])
    assert cli("status", "a/b c", "--endpoint", endpoint).out.splitlines()[0] == lines[0]


@pytest.mark.processes
def test_the_endpoint_may_be_host_and_port_or_a_variable(
    cli: Cli, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALLYPOINT_ENDPOINT", endpoint.removeprefix("http://"))
    assert "run a/b c: active" in cli("status").out


@pytest.mark.processes
def test_the_json_has_one_shape_for_any_number_of_runs(cli: Cli, endpoint: str) -> None:
    everything = json.loads(cli("status", "--endpoint", endpoint, "--json").out)
    assert [each["run_id"] for each in everything["runs"]] == ["a/b c"]
    one = json.loads(cli("status", "a/b c", "--endpoint", endpoint, "--json").out)
    assert one["members"][0]["name"] == "node0"
    none = json.loads(
        cli("status", "a/b c", "--endpoint", endpoint, "--json", "--members", "0").out
    )
    assert (none["members"], none["members_total"]) == ([], 1)


@pytest.mark.processes
def test_close_ends_the_run_for_all(cli: Cli, run: tuple[str, rallypoint.Run]) -> None:
    endpoint, joined = run
    done = cli("close", "a/b c", "--endpoint", endpoint, "--reason", "enough")
    assert str(done) == "run 'a/b c' is closed\nexit code 0\n"
    assert list(joined.worlds()) == []
    shown = cli("status", "a/b c", "--endpoint", endpoint).out
    assert "run a/b c: closed after round 1" in shown
    assert "ended: stopped: enough" in shown
    assert "had already ended" in cli("close", "a/b c", "--endpoint", endpoint).out


@pytest.mark.processes
def test_an_unknown_run_exits_with_2(cli: Cli, endpoint: str) -> None:
    for command in (["status", "nope"], ["close", "nope"]):
        done = cli(*command, "--endpoint", endpoint)
        assert (done.code, done.out) == (2, "")
        assert done.err == ("error: no run 'nope' here\nhint: runs on this coordinator: a/b c\n")


@pytest.mark.processes
def test_a_watch_prints_each_change_once_and_ends_with_the_run(
    cli: Cli, run: tuple[str, rallypoint.Run]
) -> None:
    watch = subprocess.Popen(
        [*COMMAND, "status", "a/b c", "--endpoint", run[0], "--watch"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watch.stdout is not None
        first = watch.stdout.readline()
        cli("close", "a/b c", "--endpoint", run[0])
        rest, _ = watch.communicate(timeout=60)
    finally:
        watch.kill()
        watch.wait()
    heads = [line for line in (first + rest).splitlines() if line.startswith("run ")]
    assert watch.returncode == 0
    states = ["run a/b c: active", "run a/b c: closed after round 1"]
    assert [head.partition(",")[0] for head in heads] == states
    times = [line for line in (first + rest).splitlines() if line.startswith("-- ")]
    assert len(times) == len(heads)
    assert first == f"{times[0]}\n"


# -- the token -----------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("command", [["status"], ["close", "job"]])
def test_a_missing_or_wrong_token_is_an_error(
    serve: Callable[..., Served],
    cli: Cli,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint = serve(env={"RALLYPOINT_TOKEN": "hunter2"}).endpoint
    missing = cli(*command, "--endpoint", endpoint)
    assert missing.code == 2
    assert "needs a token, and the request has none" in missing.err
    monkeypatch.setenv("RALLYPOINT_TOKEN", "hunter3")
    wrong = cli(*command, "--endpoint", endpoint)
    assert wrong.code == 2
    compared = (
        "the coordinator uses a token from its own settings; "
        "you sent a token (environment RALLYPOINT_TOKEN)"
    )
    assert wrong.err.startswith(f"error: the token is wrong: {compared}\nhint: ")
    assert "hunter" not in wrong.err
    assert "hunter" not in wrong.err
    right = tmp_path / "token"
    right.write_text("hunter2")
    right.chmod(0o600)
    done = cli(*command, "--endpoint", endpoint, "--token-file", str(right))
    assert "token" not in done.err


# -- what is no coordinator ----------------------------------------------------------------------


def test_a_missing_endpoint_is_an_error(cli: Cli, snapshot: Callable[[str, str], None]) -> None:
    snapshot("status-no-endpoint", str(cli("status")))


def test_a_malformed_endpoint_is_an_error(
    cli: Cli, snapshot: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = str(cli("status", "--endpoint", "::1"))
    monkeypatch.setenv("RALLYPOINT_ENDPOINT", "node0:99999")
    snapshot("status-malformed-endpoint", said + str(cli("close", "job")))


@pytest.mark.processes
@pytest.mark.parametrize("stdout", ["/dev/full", "a pipe that nobody reads"])
def test_a_close_counts_even_if_stdout_fails(run: tuple[str, rallypoint.Run], stdout: str) -> None:
    command = [*COMMAND, "close", "a/b c", "--endpoint", run[0]]
    for how in ("is closed", "had already ended"):
        with _unwritable(stdout) as out:
            done = subprocess.run(
                command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False
            )
        assert done.returncode == 0
        assert f"run 'a/b c' {how} (stdout cannot be written: " in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.processes
@pytest.mark.parametrize("options", [["--json"], [], ["a/b c"], ["a/b c", "--watch", "--json"]])
@pytest.mark.parametrize(("stdout", "code"), [("/dev/full", 1), ("a pipe that nobody reads", 141)])
def test_an_output_that_cannot_be_written_is_no_success(
    endpoint: str, options: list[str], stdout: str, code: int
) -> None:
    with _unwritable(stdout) as out:
        done = subprocess.run(
            [*COMMAND, "status", *options, "--endpoint", endpoint],
            stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == code
    assert ("the output cannot be written" in done.stderr) == (code == 1)
    assert "Traceback" not in done.stderr


@contextlib.contextmanager
def _unwritable(name: str) -> Iterator[int]:
    if name.startswith("/"):
        out = os.open(name, os.O_WRONLY)
    else:
        unread, out = os.pipe()
        os.close(unread)
    try:
        yield out
    finally:
        os.close(out)


@pytest.mark.sockets
def test_an_old_address_may_have_been_a_nodes(cli: Cli, free_port: int) -> None:
    """host:port is most often a run's own coordinator, which cannot be started again."""
    served = cli("status", "--endpoint", f"http://127.0.0.1:{free_port}").err.splitlines()[-1]
    hosted = cli("close", "job", "--endpoint", f"127.0.0.1:{free_port}").err.splitlines()[-1]
    assert served == "hint: start `rallypoint serve` there, or check --endpoint"
    assert "ends with its run" in hosted


@pytest.mark.sockets
def test_a_refused_connection_is_an_error(
    cli: Cli, snapshot: Callable[[str, str], None], free_port: int
) -> None:
    done = cli("status", "--endpoint", f"127.0.0.1:{free_port}")
    snapshot("status-refused", without_ports(str(done)))


def test_an_unresolvable_host_is_an_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    done = cli("status", "--endpoint", "nowhere.example:1")
    assert done.code == 3
    assert done.err == (
        "error: cannot resolve host 'nowhere.example': Name or service not known\n"
        "hint: check the name, or give an address\n"
    )


def _http(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "its answer is not HTTP"),
        (b"\x00\xff\x00\xff", "its answer is not HTTP"),
        (b"", "closed the connection without an answer"),
        (_http("200 OK", b"<html>hello</html>"), "status 200 and no JSON"),
        (_http("404 Not Found", b"nothing here"), "status 404 and no JSON"),
        (_http("200 OK", b"[1, 2]"), "status 200 and no JSON"),
        (_http("200 OK", b"\xff\xfe"), "status 200 and no JSON"),
        (_http("200 OK", b"[" * 100_000), "status 200 and no JSON"),
        (_http("200 OK", b'{"pods": []}'), "its answer lists no runs"),
        (_http("500 Oops", b'{"code": 1}'), "it answers with status 500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "status 200 and no JSON"),
    ],
)
def test_another_program_at_the_endpoint_is_named(
    cli: Cli, listener: Listener, answer: bytes, why: str
) -> None:
    where = listener(answer)
    done = cli("status", "--endpoint", where)
    assert done.code == 3
    assert f"the server at {where} is not a Rallypoint coordinator: " in done.err
    assert why in done.err
    assert done.err.splitlines()[-1].startswith("hint: ")


@pytest.mark.sockets
def test_a_server_that_never_answers_is_named(
    cli: Cli, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "TIMEOUT_S", 0.2)
    where = listener(None)
    done = cli("close", "job", "--endpoint", where)
    assert done.code == 3
    assert f"cannot reach {where}: no answer within 0.2 s" in done.err


@pytest.mark.sockets
@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"", b"HTTP/1.1 "]
)
def test_a_server_that_answers_too_slowly_is_given_up(
    monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    """Drops of the body, of the status line, of what is no HTTP at all."""
    monkeypatch.setattr(api, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        ended = threading.Event()
        dripping = threading.Thread(target=_drip, args=(sock, ended, head))
        dripping.start()
        endpoint = parse_endpoint(f"127.0.0.1:{sock.getsockname()[1]}")
        try:
            with pytest.raises(rallypoint.UnreachableError, match="no answer within"):
                api.runs(endpoint, "")
        finally:
            ended.set()
            dripping.join()


def _drip(sock: socket.socket, ended: threading.Event, head: bytes) -> None:
    connection, _ = sock.accept()
    with connection:
        connection.sendall(head)
        try:
            while not ended.wait(0.05):
                connection.sendall(b".")
        except OSError:
            pass  # the other side has given up, as it should


# -- on a terminal -------------------------------------------------------------------------------


def _on_terminal(until: bytes, *arguments: str) -> tuple[int, bytes]:
    """Type it on a terminal without colour, Ctrl-C once `until` is shown: exit code and output."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen([*COMMAND, *arguments], env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while until not in shown and select.select([ours], [], [], 60)[0]:
            shown += os.read(ours, 65_536)
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return code, shown


@pytest.mark.processes
def test_a_watch_on_a_terminal_ends_with_ctrl_c(serve: Callable[..., Served]) -> None:
    code, shown = _on_terminal(b"no runs", "status", "--endpoint", serve().endpoint, "--watch")
    assert code == 0
    assert b"coordinator: rallypoint" in shown
    assert b"\x1b[3" not in shown  # NO_COLOR: the cursor may move, no colour is set


@pytest.mark.processes
def test_keys_sort_and_end_a_watch_on_a_terminal(endpoint: str) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "LINES": "8", "COLUMNS": "120"}
    command = [*COMMAND, "status", "a/b c", "--endpoint", endpoint, "--watch"]
    process = subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        with contextlib.suppress(OSError):  # It has ended.
            while text not in shown and select.select([ours], [], [], 60)[0]:
                shown += os.read(ours, 65_536)
        assert text in shown

    try:
        until(b"s sorts (by rank)")
        os.write(ours, b"s")
        until(b"s sorts (by name)")
        os.write(ours, b"\x1b[B")
        os.write(ours, b"q")
        until(b"\x1b[?1049l")  # The screen is as before, and what was shown last is on it.
        shown = shown.rpartition(b"\x1b[?1049l")[2]
        until(b"round 1: 1 node")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
