"""`rallypoint demo`: the story it tells, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import re
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rallypoint.cli import demo
from rallypoint.cli.demo_story import Story
from rallypoint.cli.demo_view import show_timeline
from rallypoint.core import reasons
from tests.examples.programs import ROOT, Program, Programs, programs
from tests.kinds import only_long

from .conftest import Cli


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Programs]:
    yield from programs(tmp_path)


def files_left(run: Programs) -> list[str]:
    return [path.name for path in run.directory.iterdir()]


# -- the story -----------------------------------------------------------------------------------


def a_round(number: int, members: list[str], formed_at: float, **more: Any) -> dict[str, Any]:
    common = {
        "number": number,
        "nodes": len(members),
        "size": len(members),
        "members": members,
        "formed_at": formed_at,
        "gathering_s": 0.25,
        "committing_s": 0.0,
        "published": True,
        "active_s": None,
        "ended_at": None,
        "ended": "",
        "change": None,
    }
    return common | more


def a_status(*rounds: dict[str, Any]) -> dict[str, Any]:
    return {
        "phase": "active",
        "rounds": list(rounds),
        "members": [
            {"name": name, "state": "active", "node_rank": rank, "ranks": [rank]}
            for rank, name in enumerate(rounds[-1]["members"])
        ],
    }


def told(story: Story) -> list[str]:
    return [f"{event.at_s:.1f} {event.text}" for event in story.events]


def test_the_story_of_a_loss(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story()
    for name in "abcd":
        story.started(name)
    first = a_round(1, ["a", "b", "c", "d"], 10.0)
    story.take_status(a_status(first))
    story.take_line("[a:0] round 1: 4 workers go on from epoch 0 of 9", 11.0)
    story.take_line("[a:0] epoch 5 of 9: loss 0.1234", 12.0)
    story.killed("c", 13.0, "c killed")
    assert [(row.name, row.state) for row in story.nodes()][2] == ("c", "killed, not noticed yet")

    change = {"kind": "node_lost", "nodes": ["c"], "detail": reasons.NOT_RESUMED}
    # The coordinator stalled for a while, and does not count that time.
    first |= {"active_s": 1.5, "ended_at": 14.0}
    first |= {"ended": f"c lost: {reasons.NOT_RESUMED}", "change": change}
    second = a_round(2, ["a", "b", "d"], 14.25)
    story.take_status(a_status(first, second))
    story.take_status(a_status(first, second))  # the same again is no news
    story.take_line("[a:0] round 2: 3 workers go on from epoch 5 of 9", 15.0)

    assert told(story) == [
        "10.0 round 1 formed with 4 nodes: a, b, c and d have ranks 0 to 3",
        "11.0 training begins",
        "12.0 epoch 5 of 9, loss 0.123",
        "13.0 c killed",
        "14.0 noticed after 1.00 s: c lost: its connection closed and was not resumed",
        "14.2 a, b and d have stopped their workers and are ready again after 0.25 s; their "
        "agents kept running",
        "14.2 round 2 formed with 3 nodes: a and b keep their ranks, d moves from rank 3 to 2",
        "15.0 training continues from the checkpoint of epoch 5",
    ]
    assert [(row.name, row.state) for row in story.nodes()][2] == ("c", "killed")
    kill = story.kill
    assert kill is not None
    assert (kill.noticed_s, kill.formed_s, kill.trained_s) == (14.0, 14.25, 15.0)
    show_timeline(story)
    noticed = "1.00 s  until the coordinator noticed: its connection closed and was not resumed"
    assert noticed in capsys.readouterr().out


def test_the_story_of_a_newcomer_and_the_end() -> None:
    story = Story()
    first = a_round(1, ["a", "b"], 10.0, ended_at=15.0, ended="c joined", change={"kind": "x"})
    second = a_round(2, ["a", "b", "c"], 15.5)
    story.take_status(a_status(first, second))
    story.take_line("[a:0] test accuracy 0.9712", 20.0)
    assert told(story)[1:] == [
        "15.0 round 1 ends: c joined",
        "15.5 a and b have stopped their workers and are ready again after 0.25 s; their "
        "agents kept running",
        "15.5 round 2 formed with 3 nodes: a and b keep their ranks, c is new and has rank 2",
    ]
    assert story.accuracy == 0.9712


# -- what it needs -------------------------------------------------------------------------------


def test_missing_libraries_are_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = cli("demo")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [
        "error: the demo needs numpy and scikit-learn; not installed: numpy, scikit-learn",
        "hint: pip install 'rallypoint[examples]'",
    ]


def test_there_is_one_copy_of_the_training_and_a_wheel_carries_it() -> None:
    assert demo.script() == ROOT / "examples" / "train_digits.py"
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    carried = build["targets"]["wheel"]["force-include"]
    assert carried == {"examples/train_digits.py": "rallypoint/cli/_demo_train.py"}


# -- the whole of it -----------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_four_nodes_train_and_lose_one(run: Programs) -> None:
    pytest.importorskip("sklearn")
    shown = run.cli("demo")
    shown.wait_for("training begins")
    run.note_agents_of(shown)
    assert shown.end(200) == 0, shown.text
    story = [
        r"4 nodes start",
        r"round 1 formed with 4 nodes: node-0, node-1, node-2 and node-3 have ranks 0 to 3",
        r"training begins",
        r"node-2 killed",
        r"noticed after \d\.\d\d s: node-2 lost: its process ended",
        r"node-0, node-1 and node-3 have stopped their workers",
        r"round 2 formed with 3 nodes: node-0 and node-1 keep their ranks",
        r"training continues from the checkpoint of epoch ([6-9]|1\d)",
        r"node-4 starts",
        r"round 2 ends: node-4 joined",
        r"round 3 formed with 4 nodes: .*node-4 is new",
        r"epoch 25 of 25",
        r"^round +nodes",
        r"node-2 killed, to the new round: \d+\.\d\d s",
        r"test accuracy 0\.9[5-9]\d+",
    ]
    remaining = iter(shown.lines)
    for sentence in story:
        is_told = any(re.search(sentence, line) for line in remaining)
        assert is_told, f"{sentence}\n{shown.text}"
    assert "\x1b" not in shown.text
    assert files_left(run) == []


@pytest.mark.verify
@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGINT, "nodes start"),
        pytest.param(signal.SIGINT, "epoch 5 of 25", marks=only_long),
        (signal.SIGTERM, "node-2 killed"),
    ],
)
def test_a_demo_that_is_ended_leaves_nothing_behind(
    run: Programs, number: signal.Signals, when: str
) -> None:
    pytest.importorskip("sklearn")
    shown = run.cli("demo")
    shown.wait_for(when)
    run.note_agents_of(shown)
    shown.process.send_signal(number)
    assert shown.end(100) == 128 + number, shown.text
    assert shown.lines[-1] == f"rallypoint: {number.name}: all nodes were stopped"
    run.assert_nothing_left()
    assert files_left(run) == []


@pytest.mark.verify
@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_node_that_fails_fails_the_demo(run: Programs) -> None:
    pytest.importorskip("sklearn")
    shown = run.cli("demo", "--nodes", "3")
    shown.wait_for("training begins")
    run.note_agents_of(shown)
    agent_of(shown, "node-2").kill()
    assert shown.end(100) == 1, shown.text
    assert "error: the demo has failed: node-2 ended with exit code -9" in shown.text
    assert "hint: " in shown.text
    (kept,) = run.directory.glob("rp-demo-*")
    assert f"the nodes' output: {kept}" in shown.text
    assert (kept / "node-2.log").exists()


def agent_of(shown: Program, name: str) -> psutil.Process:
    """The demo's own agent of this name."""
    agents = psutil.Process(shown.process.pid).children()
    return next(each for each in agents if name in each.cmdline())
