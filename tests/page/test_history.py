"""What the page makes of a run's events: page/history.js, called in a real Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from tests.page.conftest import Coordinator

pytestmark = [pytest.mark.verify, pytest.mark.processes, pytest.mark.sockets]

BASE = 1_800_000_000.0
Take = Callable[..., dict[str, Any]]

TAKE = """async (batches) => {
  const { History } = await import("/page/history.js");
  const history = new History();
  const fresh = batches.map((each) =>
    typeof each === "number" ? history.missed(each) : history.take(each).map((one) => one.id));
  const tracks = Object.fromEntries([...history.tracks.values()].map((track) => [track.name, {
    segments: track.segments.map((each) => [each.kind, each.from, each.to]),
    marks: track.marks.map((each) => each.kind), unheard: track.unheard.map((each) => [each.from, each.to]),
  }]));
  const rounds = history.allRounds([]).map((each) => ({
    number: each.number, since: each.since, formed: each.formed, ended: each.ended, cause: each.cause,
    waits: each.waits.length, lines: each.lines,
  }));
  return {
    fresh, tracks, rounds, gaps: history.gaps, dropped: history.dropped, closed: history.closed?.t ?? null,
    ids: history.events.map((each) => each.id), times: history.events.map((each) => each.t),
    changed: history.wasChanged, withLines: history.events.filter((each) => each.hasNewLines).map((each) => each.id),
  };
}"""  # noqa: E501


@pytest.fixture(scope="module")
def take(chromium: Any) -> Iterator[Take]:
    """Give batches of events to a new History, and get what it has made of them."""
    coordinator = Coordinator(CoordinatorConfig())
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{coordinator.url}/page/text.js")  # its modules, without the page itself

    def give(*batches: Any) -> dict[str, Any]:
        found: dict[str, Any] = page.evaluate(TAKE, list(batches))
        return found

    yield give
    context.close()
    coordinator.close()


def event(term: int, seq: int, kind: str, offset_s: float, **more: Any) -> dict[str, Any]:
    """An event as JSON has it; `at` follows from the offset unless it is given."""
    plain = {"node": "", "nodes": [], "count": 0, "seconds": None, "cause": "", "detail": ""}
    plain |= {"last_lines": [], "is_late": False, "phases": {}, "round": 0, "on": "h", "text": kind}
    plain |= {"at": BASE + offset_s, "id": f"{term}.{seq}"}
    return plain | {"term": term, "seq": seq, "kind": kind, "offset_s": offset_s} | more


def two_rounds() -> list[dict[str, Any]]:
    return [
        event(1, 1, "began", 0),
        event(1, 2, "attached", 0, node="a"),
        event(1, 3, "attached", 1, node="b"),
        event(1, 4, "ready", 2, node="a"),
        event(1, 5, "ready", 7, node="b"),
        event(1, 6, "waited", 7, node="b", seconds=5),
        event(1, 7, "formed", 8, round=1, nodes=["a", "b"], count=2, seconds=8.0),
        event(1, 8, "suspect", 20, round=1, node="b", seconds=3.0),
        event(1, 9, "lost", 25, round=1, node="b", seconds=8.0),
        event(1, 10, "broken", 25, round=1, cause="node_lost", seconds=17.0, detail="b lost"),
        event(1, 11, "ready", 26, round=1, node="a"),
        event(1, 12, "formed", 27, round=2, nodes=["a"], count=1, seconds=2.0),
    ]


def test_rounds_and_the_states_of_nodes(take: Take) -> None:
    found = take(two_rounds())
    first, second = found["rounds"]
    assert (first["since"], first["formed"], first["ended"]) == (BASE, BASE + 8, BASE + 25)
    assert (first["cause"], first["waits"]) == ("node_lost", 1)
    assert (second["since"], second["formed"], second["ended"]) == (BASE + 25, BASE + 27, None)
    a, b = found["tracks"]["a"], found["tracks"]["b"]
    assert [kind for kind, _, _ in a["segments"]] == [
        "starting", "waiting", "active", "stopping", "waiting", "active",
    ]  # fmt: skip
    assert a["segments"][-1] == ["active", BASE + 27, None]
    assert b["segments"][-1] == ["active", BASE + 8, BASE + 25]
    assert b["marks"] == ["last", "lost"]
    assert b["unheard"] == [[BASE + 17, BASE + 25]]


def test_a_hang_is_a_mark_of_the_node_that_keeps_the_others_waiting(take: Take) -> None:
    said = "b: rank 1 hangs (no worker has advanced for 10 min: 7 of 8 in all_reduce)"
    hang = {"cause": "hang", "nodes": ["b"], "count": 1, "seconds": 600.0, "detail": said}
    found = take(two_rounds()[:7], [event(1, 8, "broken", 608, round=1, **hang)])
    assert found["rounds"][0]["cause"] == "hang"
    assert found["tracks"]["b"]["marks"] == ["last", "hung"]
    assert found["tracks"]["a"]["marks"] == []


def test_a_takeover_by_a_host_with_a_late_clock_comes_after_what_was_before(take: Take) -> None:
    late = {"on": "other", "at": BASE + 5}
    found = take(two_rounds(), [event(2, 1, "took_over", 0.5, **late), event(2, 2, "ready", 3.5)])
    assert found["times"][-2] == BASE + 27
    # Within a term, differences are exact.
    assert found["times"][-1] - found["times"][-2] == pytest.approx(3.0)


def test_missing_events_are_gaps(take: Take) -> None:
    more = [event(1, 40, "dropped", 60, count=27, text="27 not kept"), event(1, 41, "ready", 61)]
    found = take(two_rounds(), more, 9, [event(1, 51, "ready", 90, node="a")])
    assert found["dropped"] == 36
    assert [(each["from"], each["to"]) for each in found["gaps"]] == [
        (BASE + 27, BASE + 60),
        (BASE + 61, BASE + 90),
    ]


def test_known_events_are_not_taken_twice(take: Take) -> None:
    whole = two_rounds()
    found = take(whole, whole[3:], whole)
    assert found["fresh"][1:] == [[], []]
    assert found["ids"] == [each["id"] for each in whole]
    assert found["changed"] is False


def test_a_coordinator_in_memory_that_was_started_again_begins_anew(take: Take) -> None:
    again = [event(1, 1, "began", 100), event(1, 2, "attached", 101, node="c")]
    found = take(two_rounds(), again)
    assert (found["ids"], list(found["tracks"])) == (["1.1", "1.2"], ["c"])
    assert found["changed"] is True


def test_the_coordinator_s_events_take_the_place_of_those_of_the_head(take: Take) -> None:
    head = event(1, 1_000_000_001, "formed", 8, is_late=True, round=1, count=2, seconds=8.0)
    whole = two_rounds()
    found = take(whole[:3], [head], whole[3:])
    assert found["ids"] == [each["id"] for each in whole]
    assert [each["number"] for each in found["rounds"]] == [1, 2]


def test_the_end_of_a_run_ends_all(take: Take) -> None:
    found = take([*two_rounds(), event(1, 13, "closed", 40, round=2, detail="succeeded")])
    assert found["closed"] == BASE + 40
    assert found["rounds"][-1]["ended"] == BASE + 40
    assert found["tracks"]["a"]["segments"][-1] == ["active", BASE + 27, BASE + 40]


def test_of_a_large_run_only_what_events_name_is_known(take: Take) -> None:
    names = [f"n{number}" for number in range(8)]
    found = take(
        [
            event(1, 1, "attached", 0, node="n900"),
            event(1, 2, "ready", 2, nodes=names[:2], count=1_000),
            event(1, 3, "formed", 3, round=1, nodes=names, count=1_000, seconds=3.0),
            event(1, 4, "broken", 9, round=1, cause="ready_again", seconds=6.0),
        ]
    )
    assert found["tracks"]["n900"]["segments"] == [["starting", BASE, BASE + 3]]
    # Whether and when it has stopped its workers is not in the events.
    assert found["tracks"]["n7"]["segments"] == [["active", BASE + 3, BASE + 9]]


def test_a_page_that_is_open_for_days_keeps_the_newest_events(take: Take) -> None:
    many = [event(1, number, "ready", number, node=f"n{number % 7}") for number in range(1, 4_102)]
    found = take(many[:4_000], many[4_000:])
    assert (len(found["ids"]), found["ids"][-1]) == (2_500, "1.4101")
    assert found["gaps"][0]["from"] is None


def test_the_last_lines_of_a_failure_are_shown_with_the_first_event_that_has_them(
    take: Take,
) -> None:
    failed = event(1, 1, "worker_failed", 1.0, round=1, node="a", last_lines=["boom"])
    broken = event(1, 2, "broken", 1.1, round=1, nodes=["a"], last_lines=["boom"])
    other = event(1, 3, "worker_failed", 1.2, round=1, node="b", last_lines=["bang"])
    formed = event(1, 4, "formed", 1.3, round=2, nodes=["a", "b"])
    cause = event(1, 5, "cause", 1.4, round=1, nodes=["a"], last_lines=["boom"])
    again = event(1, 6, "worker_failed", 2.0, round=2, node="a", last_lines=["boom"])
    found = take([failed, broken], [other, formed, cause], [again])
    assert found["withLines"] == ["1.1", "1.3", "1.6"]
    assert [each["lines"] for each in found["rounds"]] == [["boom"], []]
