"""What `rallypoint status` draws, from pictures made up for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from rallypoint.cli import output, status_view, watching
from rallypoint.coordinator import status
from rallypoint.core.printable import spans
from rallypoint.core.reasons import Waiting

SUMMARY: dict[str, Any] = {
    "run_id": "job-42",
    "phase": "gathering",
    "reason": (
        "1 of at least 3 nodes ready (at most 4); waiting for node1; "
        "waiting 3.2 s for more nodes (last call)"
    ),
    "round": 2,
    "nodes": 3,
    "size": 12,
    "attached": 3,
    "restart_count": 1,
    "waiting": {"ready": 1, "minimum": 3, "missing": ["node1"], "last_call_s": 3.2},
    "closed": None,
}


def _member(name: str, rank: int | None, ranks: list[int], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "host": f"{name}.example",
        "state": "active",
        "link": "connected",
        "troubled_s": 0.0,
        "node_rank": rank,
        "ranks": ranks,
        **more,
    }


DETAIL: dict[str, Any] = {
    **SUMMARY,
    "coordinator": {"software": "rallypoint 0.1.0", "connections": 3},
    "members": [
        _member("late", None, [], state="standby"),
        _member("node1", 1, [4, 5, 6, 7], link="silent", troubled_s=7.25),
        _member("node0", 0, [0, 1, 2, 3], state="ready"),
    ],
    "members_total": 70,
    "rounds": [
        {"number": 1, "nodes": 2, "size": 8, "gathering_s": 30.2, "active_s": 4000, "ended": "x"},
        {"number": 2, "nodes": 3, "size": 12, "gathering_s": 0.004, "active_s": None, "ended": ""},
    ],
    "shown_at": 1.0,
}


def _drawn(picture: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    output.show(*status_view.draw(picture))
    return capsys.readouterr().out


def test_the_status_of_one_run(
    snapshot: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot("status-run", _drawn(DETAIL, capsys))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, "coordinator: machine (rallypoint 0.1.0)"),
        ({"node": None}, "coordinator: machine (rallypoint 0.1.0)"),
        ({"node": "node0"}, "coordinator: machine, in node node0 (rallypoint 0.1.0)"),
    ],
)
def test_a_coordinator_is_shown_with_the_node_that_hosts_it(
    more: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A coordinator of an earlier release does not say it."""
    about = {**DETAIL["coordinator"], "host": "machine", **more}
    assert line in _drawn({**DETAIL, "coordinator": about}, capsys).splitlines()


def test_the_index_is_shown_if_a_node_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    members = [_member("node1", 1, [1], index=7), _member("node0", 0, [0])]
    lines = _drawn({**DETAIL, "members": members}, capsys).splitlines()
    heading, first, second = next(
        lines[at : at + 3] for at, line in enumerate(lines) if "member" in line
    )
    assert heading.split()[-1] == "index"
    assert first.split()[-1] == "node0.example"
    assert second.split()[-2:] == ["node1.example", "7"]


def _progress(step: int, **more: Any) -> dict[str, Any]:
    plain = {"step": step, "advanced_ago_s": 1.5, "steps_per_s": 3.1, "steps_behind": 0}
    return plain | {"is_behind": False} | more


def test_progress_and_nodes_that_drain_or_stay_out(capsys: pytest.CaptureFixture[str]) -> None:
    members = [
        _member("node0", 0, [0], progress=_progress(1842)),
        _member("node1", 1, [1], progress=_progress(1830, steps_behind=12, is_behind=True)),
        _member("node2", 2, [2], progress=_progress(7, steps_per_s=0.0, advanced_ago_s=90.0)),
        _member("node3", 3, [3], draining="spot notice", draining_left_s=28.0, drained="ann"),
        _member("node4", None, [], cooling="for 58 s: it broke 4", cooling_why="it broke 4"),
        _member("node5", None, [], cooling="x", cooling_why="y", cooling_left_s=58.0),
    ]
    run = {**DETAIL, "members": members, "members_total": 6, "behind": ["node1"]}
    run |= {"progress": {"in_words": "step 1,842, 3.1 steps/s"}, "behind_total": 1}
    lines = _drawn(run, capsys).splitlines()
    assert "progress: step 1,842, 3.1 steps/s" in lines
    assert "node1 stands behind the others" in lines
    said = {line.split()[0]: line for line in lines if " draining" in line or "stays out" in line}
    assert "leaves by" in said["node3"]
    assert said["node3"].endswith("(in 28.0 s): spot notice")
    assert said["node4"] == "node4 stays out: it broke 4"
    assert said["node5"].endswith("(in 58.0 s): y")
    let_in = {
        **run,
        "members": [_member("node6", 5, [5], cooling="x", cooling_why="its check failed")],
    }
    assert (
        "node6 is in the round for want of others, and should stay out: its check failed"
        in _drawn(let_in, capsys).splitlines()
    )
    rows = {line.split()[2]: line.split()[6:] for line in lines if "example" in line}
    assert " ".join(rows["node0"]) == "1,842 3.1 steps/s 1.5 s ago"
    assert " ".join(rows["node1"]) == "1,830 (12 behind) 3.1 steps/s 1.5 s ago"
    assert " ".join(rows["node2"]) == "7 stands still 1.5 min ago"


def test_steps_are_no_news_and_a_standstill_is() -> None:
    def key(step: int, *, still: bool = False, behind: bool = False) -> object:
        run = {"step": step, "in_words": f"step {step}", "advanced_ago_s": 1.0 + step}
        member = _member("a", 0, [0], progress=_progress(step, is_behind=behind))
        return status_view.key({"progress": run | {"is_still": still}, "members": [member]})

    assert key(1) == key(2)
    assert key(1) != key(1, still=True)
    assert key(1) != key(1, behind=True)


def test_the_status_of_all_runs(
    snapshot: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**SUMMARY, "run_id": "b", "phase": "active", "reason": "", "round": 1}
    runs = {"coordinator": DETAIL["coordinator"], "runs": [SUMMARY, other]}
    snapshot("status-runs", _drawn(runs, capsys))


def test_the_status_without_runs(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = _drawn({"coordinator": DETAIL["coordinator"], "runs": []}, capsys)
    assert drawn == "coordinator: rallypoint 0.1.0, 3 connections\nno runs\n"


def test_the_status_of_another_release_is_shown_as_far_as_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "run a" in _drawn({"run_id": "a", "members": [{}], "rounds": [{}]}, capsys)
    assert "coordinator" in _drawn({"runs": [{}]}, capsys)


def test_names_are_never_read_as_markup_or_control_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hostile = {**SUMMARY, "run_id": "[red]x[/red]\x1b[2J", "reason": "\r\n\x07"}
    drawn = _drawn({"runs": [hostile]}, capsys)
    assert "[red]x[/red]\\x1b[2J" in drawn
    assert "\x1b" not in drawn
    assert "\x07" not in drawn


def test_the_key_changes_with_events_but_not_with_time() -> None:
    later = copy.deepcopy(DETAIL)
    later["shown_at"] = 2.0
    later["reason"] = "...; waiting 2.2 s for more nodes (last call)"
    later["waiting"]["last_call_s"] = 2.2
    later["members"][1]["troubled_s"] = 8.25
    assert status_view.key(later) == status_view.key(DETAIL)
    later["members"][1]["link"] = "connected"
    assert status_view.key(later) != status_view.key(DETAIL)


DURATIONS = [
    name
    for kind in (status.RunStatus, status.MemberStatus, status.RoundStatus, Waiting)
    for name in kind.__struct_fields__
    if name.endswith("_s")
]


@pytest.mark.parametrize("name", DURATIONS)
def test_no_duration_of_a_status_is_news(name: str) -> None:
    keys = [status_view.key({"waiting": {name: value}}) for value in (1.0, 2.0, None)]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


@pytest.mark.parametrize(
    ("more", "head"),
    [
        ({}, "run job-42: gathering after round 2, 3 nodes attached, 1 restart"),
        ({"attached": None, "phase": "closed"}, "run job-42: closed after round 2, 1 restart"),
        ({"round": 0}, "run job-42: gathering, 3 nodes attached"),
        ({"phase": "active"}, "run job-42: active, round 2: 3 nodes, 12 workers, 1 restart"),
        ({"phase": "suspended"}, "run job-42: suspended, round 2: 3 nodes, 12 workers, 1 restart"),
        (
            {"phase": "suspended", "rounds": [{"number": 2, "ended": "x"}]},
            "run job-42: suspended after round 2, 1 restart",
        ),
    ],
)
def test_the_head_says_what_is_the_case_now(
    more: dict[str, Any], head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _drawn({**DETAIL, **more}, capsys).splitlines()[0] == head


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1, 2, 3], "0-3"), ([0, 1, 4, 6, 7], "0-1,4,6-7")],
)
def test_ranks_are_drawn_short(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.004, "4 ms"), (0.9996, "1.0 s"), (30.25, "30.2 s"), (90, "1.5 min")],
)
def test_durations_are_drawn_short(value: float | None, text: str) -> None:
    assert status_view.seconds(value) == text


def test_keys_that_are_typed_together_are_taken_one_by_one() -> None:
    typed = bytearray(b"s\x1b[Bx\x1b[5~q\x1b[99q")
    found = []
    while typed:
        found.append(watching.next_key(typed))
    assert found == ["sort", "down", "other", "page up", "quit", "other"]
    assert watching.next_key(bytearray()) == "quit"
