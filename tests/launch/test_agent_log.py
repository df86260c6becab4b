"""The agent's own lines: their levels and fields, on stderr and in its file."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from rallypoint import logs
from rallypoint.client.waiting import Why
from rallypoint.launch.agent_log import LARGE, AgentLog, LogOptions

STAMP = (2, 3)


class Lines:
    """A log, and where its lines went."""

    def __init__(self, *, nodes_max: int = 4, is_connected: bool = True, **options: object) -> None:
        self.shown: list[str] = []
        self.kept: list[str] = []
        self.log = AgentLog(
            logs.Place("job", "n1", lambda: STAMP),
            self.shown.append,
            keep=self.kept.append,
            options=LogOptions(**options),  # type: ignore[arg-type]
            nodes_max=nodes_max,
            is_connected=lambda: is_connected,
        )
        self.log.may_keep()


def test_a_line_has_its_node_on_the_console_and_all_fields_in_the_file() -> None:
    lines = Lines()
    lines.log.say("round 3: 4 nodes")
    lines.log.say("warning: no room")
    assert lines.shown == ["[n1] round 3: 4 nodes", "[n1] warning: no room"]
    first, second = lines.kept
    assert first.endswith(" INFO [run=job term=2 round=3 node=n1] round 3: 4 nodes")
    assert second.endswith(" WARNING [run=job term=2 round=3 node=n1] no room")


def test_json_is_one_object_a_line() -> None:
    lines = Lines(is_json=True)
    lines.log.say("error: this node cannot reach rank 0\x1b[2J")
    assert lines.shown == lines.kept
    found = json.loads(lines.shown[0])
    assert (found["run"], found["term"], found["round"], found["node"]) == ("job", 2, 3, "n1")
    assert found["level"] == "error"
    assert found["message"] == "this node cannot reach rank 0\\x1b[2J"


def test_quiet_hides_what_is_no_trouble_and_keeps_it() -> None:
    lines = Lines(level=logging.WARNING)
    lines.log.say("round 3: 4 nodes")
    lines.log.say("warning: no room")
    lines.log.say("run 'job' has failed", is_trouble=True)
    assert lines.shown == ["[n1] warning: no room", "[n1] run 'job' has failed"]
    assert len(lines.kept) == 3


def test_lines_from_before_the_test_of_the_folder_are_kept_afterwards() -> None:
    kept: list[str] = []
    log = AgentLog(logs.Place("job", "n1", lambda: STAMP), lambda line: None, keep=kept.append)
    log.say("early")
    assert kept == []
    log.may_keep()
    log.say("late")
    assert [each.rpartition(" ")[2] for each in kept] == ["early", "late"]


def test_the_records_of_loggers_are_lines() -> None:
    """Those of the coordinator in this node are for the file."""
    lines = Lines()
    with lines.log.with_loggers():
        logs.tidy("rallypoint.client").info("connected")
        logs.tidy("rallypoint.coordinator").info("run %s: round %d", "job", 3)
        logging.getLogger("aiohttp").info("an access")
        logging.getLogger("aiohttp").warning("an accident")
        try:
            raise ValueError("broken")
        except ValueError:
            logs.tidy("rallypoint.client").exception("it failed")
    first, second, third = lines.shown
    assert first == "[n1] connected"
    assert second == "[n1] warning: an accident"
    assert third.startswith("[n1] error: it failed\n  Traceback")
    assert "round 3" in lines.kept[1]
    assert logging.getLogger("rallypoint").level == logging.NOTSET


def test_what_the_coordinator_says_of_the_run_is_not_on_the_console_again() -> None:
    lines, extra = Lines(), logs.event("broken")
    with lines.log.with_loggers():
        logs.tidy("rallypoint.coordinator").warning("run %s: %s", "job", "over", extra=extra)
        own = logs.event("suspended")
        logs.tidy("rallypoint.coordinator").warning("run %s: %s", "job", "no disk", extra=own)
    assert lines.shown == ["[n1] warning: run job: no disk"]
    assert "run job: over" in lines.kept[0]


def test_verbose_shows_what_the_coordinator_in_this_node_does() -> None:
    lines = Lines(level=logging.DEBUG)
    with lines.log.with_loggers():
        logs.tidy("rallypoint.coordinator").debug("run %s: a detail", "job")
    assert lines.shown == ["[n1] run job: a detail"]


@pytest.mark.parametrize(
    ("nodes", "rank", "is_shown"),
    [(LARGE, 5, True), (LARGE + 1, 5, False), (LARGE + 1, 0, True)],
)
def test_in_a_large_run_rank_0_says_what_all_nodes_would_say(
    nodes: int, rank: int, is_shown: bool
) -> None:
    lines = Lines(nodes_max=nodes)
    lines.log.has_met(nodes, rank)
    lines.log.say("round 3: many nodes", is_common=True)
    lines.log.say("round 3: a worker of this node failed")
    assert len(lines.shown) == 1 + is_shown
    assert len(lines.kept) == 2


def test_few_nodes_of_a_large_run_say_why_they_wait() -> None:
    async def main() -> tuple[int, int]:
        attached = [Lines(nodes_max=2_000) for _ in range(2_000)]
        searching = [Lines(nodes_max=2_000, is_connected=False) for _ in range(20)]
        for each in (*attached, *searching):
            each.log.waits(Why("waiting: 1999 of 2000 nodes ready", "reason"))
        assert all(len(each.kept) == 1 for each in attached)
        return sum(len(each.shown) for each in attached), sum(len(s.shown) for s in searching)

    found, of_searching = asyncio.run(main())
    assert 0 < found < 60
    assert of_searching == 20
