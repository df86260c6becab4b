"""`rallypoint events`, against real coordinators."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rallypoint
from rallypoint.cli import events as command
from rallypoint.coordinator import run_events
from tests.waiting import wait_until

from .conftest import COMMAND, Cli, Served

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]


def joined(endpoint: str, **more: Any) -> rallypoint.Run:
    chosen: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 2,
        "node_name": "node0",
        "last_call_s": 0.01,
    }
    return rallypoint.join("job-42", endpoint, **chosen | more)


@pytest.fixture
def endpoint(serve: Callable[..., Served]) -> Iterator[str]:
    """A coordinator with a run in its first round."""
    endpoint = serve().endpoint
    with joined(endpoint) as run:
        next(iter(run.worlds()))
        yield endpoint


def test_the_events_are_lines_with_their_times(cli: Cli, endpoint: str) -> None:
    done = cli("events", "job-42", "--endpoint", endpoint)
    assert (done.code, done.err) == (0, "")
    day, *lines = done.out.splitlines()
    assert day.startswith("-- 20")
    texts = [line.partition("  ")[2] for line in lines]
    assert texts[0] == "the run began"
    assert texts[1].startswith("node0 attached")
    assert texts[-1] == "round 1 formed with 1 node"
    assert all(line[2] == line[5] == ":" and line[8] == "." for line in lines)


def test_json_is_a_line_for_each_event(cli: Cli, endpoint: str) -> None:
    done = cli("events", "job-42", "--endpoint", endpoint, "--json")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [each["seq"] for each in found] == list(range(1, len(found) + 1))
    assert set(found[0]) == {"id", "text", *run_events.RunEvent.__struct_fields__}


def test_since_leaves_out_what_is_older(cli: Cli, endpoint: str) -> None:
    assert "formed" in cli("events", "job-42", "--endpoint", endpoint, "--since", "10m").out
    done = cli("events", "job-42", "--endpoint", endpoint, "--since", "0s")
    assert (done.code, done.out) == (0, "")
    wrong = cli("events", "job-42", "--endpoint", endpoint, "--since", "soon")
    assert wrong.code == 2
    assert "--since must be a duration such as" in wrong.err


def test_an_unknown_run_is_an_error_with_the_nearest_name(cli: Cli, endpoint: str) -> None:
    for name in ("events", "status", "close"):
        done = cli(name, "jb-42", "--endpoint", endpoint)
        assert done.code == 2, name
        assert "hint: did you mean 'job-42'?" in done.err


def test_follow_shows_each_event_and_ends_with_the_run(
    endpoint: str, cli: Cli, tmp_path: Path
) -> None:
    arguments = ["events", "job-42", "--follow", "--json", "--endpoint", endpoint]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        kinds: list[str] = []
        while "formed" not in kinds:
            kinds.append(json.loads(following.stdout.readline())["kind"])
        assert cli("close", "job-42", "--endpoint", endpoint, "--reason", "enough").code == 0
        out, err = following.communicate(timeout=30)
    closed = [json.loads(line) for line in out.splitlines()][-1]
    assert closed["kind"] == "closed"
    assert "enough" in closed["text"]
    assert (following.returncode, err) == (0, "")


def test_the_events_of_a_closed_run_are_read_from_the_ledger(cli: Cli, tmp_path: Path) -> None:
    ledger = f"file://{tmp_path}/ledger"
    with joined(ledger) as run:
        next(iter(run.worlds()))
        run.close("trained")
    done = cli("events", "job-42", "--endpoint", ledger)
    assert done.code == 0
    assert "round 1 formed with 1 node" in done.out
    assert "the run was closed: succeeded: trained" in done.out
    followed = cli("events", "job-42", "--endpoint", ledger, "--follow")
    assert followed.out == done.out
    unknown = cli("events", "jo-42", "--endpoint", ledger)
    assert "hint: did you mean 'job-42'?" in unknown.err


def test_the_command_knows_the_numbers_of_late_events() -> None:
    assert command.FROM_HEAD == run_events.FROM_HEAD


def metrics(endpoint: str) -> str:
    with urllib.request.urlopen(f"{endpoint}/metrics", timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def test_follow_goes_on_when_the_coordinator_was_killed(
    cli: Cli, serve: Callable[..., Served], tmp_path: Path
) -> None:
    ledger = f"file://{tmp_path}/ledger"
    first = serve("--ledger", ledger)
    with joined(ledger, host_coordinator="no") as run:
        next(iter(run.worlds()))
        arguments = ["events", "job-42", "--follow", "--json", "--endpoint", ledger]
        with subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as following:
            assert following.stdout is not None
            found: list[dict[str, Any]] = []
            while not any(each["kind"] == "formed" for each in found):
                found.append(json.loads(following.stdout.readline()))
            serve("--ledger", ledger)
            # It writes once a second, and what it has not written is lost with it.
            wait_until(lambda: "\nrallypoint_events_waiting_bytes 0.0\n" in metrics(first.endpoint))
            first.stop(signal.SIGKILL)
            while not any(each["kind"] == "took_over" for each in found):
                found.append(json.loads(following.stdout.readline()))
            assert cli("close", "job-42", "--endpoint", ledger).code == 0
            out, err = following.communicate(timeout=60)
        found += [json.loads(line) for line in out.splitlines()]
    assert following.returncode == 0
    assert found[-1]["kind"] == "closed"
    # Each event once, and in order.
    places = [(each["term"], each["seq"]) for each in found]
    assert places == sorted(set(places))
    assert {each["term"] for each in found} == {1, 2}
    assert err.startswith("rallypoint: ")
    whole = cli("events", "job-42", "--endpoint", ledger, "--json").out.splitlines()
    kinds = [json.loads(line)["kind"] for line in whole]
    assert kinds[:2] == ["began", "attached"]
    assert "closed" in kinds
    again = cli("events", "job-42", "--endpoint", ledger, "--json", "--follow")  # It ends at once.
    assert again.code == 0


def test_the_last_lines_of_a_failure_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    shower = command._Shower(False, None)
    failed, other = ["Traceback", "ValueError: boom"], ["Segmentation fault"]
    told: list[tuple[str, int, list[str]]] = [
        ("worker_failed", 1, failed),
        ("broken", 1, failed),
        ("ready", 1, []),
        ("worker_failed", 1, other),
        ("formed", 2, []),
        ("cause", 1, failed),
        ("worker_failed", 2, failed),
    ]
    for seq, (kind, number, lines) in enumerate(told, 1):
        event = {"id": f"1.{seq}", "seq": seq, "text": kind, "round": number, "last_lines": lines}
        shower.show(event, 0.0)
    shown = [line.strip(" |") for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        *("worker_failed", *failed, "broken", "ready"),
        *("worker_failed", *other, "formed", "cause", "worker_failed", *failed),
    ]


FIRST, SECOND = "rank 1 exited with code 1 (ValueError: boom)", "rank 2 was killed by SIGKILL"


@pytest.mark.parametrize("several", [False, True])
def test_the_failure_behind_an_end_is_told_once(
    several: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several, the words say which one was the cause."""
    cause = f"a worker failed on b: {FIRST}"
    told = [
        ("worker_failed", 3, cause, FIRST),
        *([("worker_failed", 3, f"a worker failed on b: {SECOND}", SECOND)] if several else []),
        ("broken", 3, f"round 3 has ended: {cause}", cause),
        ("formed", 4, "round 4 formed with 2 nodes", ""),
        ("cause", 3, f"round 3 has ended: the cause was: {cause}", cause),
        ("closed", 3, f"the run was closed: failed: {cause}; no restarts", f"failed: {cause}"),
        ("cause", 4, f"round 4 has ended: the cause was: {cause}", cause),
    ]
    shower = command._Shower(False, None)
    for seq, (kind, number, text, detail) in enumerate(told, 1):
        event = {"id": f"1.{seq}", "seq": seq, "kind": kind, "text": text, "detail": detail}
        shower.show({**event, "round": number}, 0.0)
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    if several:
        assert shown == [text for _, _, text, _ in told]
        return
    assert shown == [
        f"a worker failed on b: {FIRST}",
        "round 3 has ended: a worker failed on b",
        "round 4 formed with 2 nodes",
        "round 3 has ended: the cause was: a worker failed on b",
        "the run was closed: failed: a worker failed on b; no restarts",
        f"round 4 has ended: the cause was: {cause}",
    ]
