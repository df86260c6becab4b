"""A trace of failures: what is read, and what each refusal names."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rallypoint.errors import UsageError
from rallypoint.simulation.fleet import trace
from rallypoint.simulation.fleet.failures import Failure


def read(text: str) -> trace.Trace:
    return trace.read(text.splitlines(), "t.csv")


def test_rows_of_events() -> None:
    found = read("time,node,event,kind\n10,b,down,process\n40,b,up,\n50,a,down,\n")
    assert found.nodes == ("a", "b")
    assert found.failures == [
        Failure(10.0, "process", (1,), 30.0),
        Failure(50.0, "host", (0,), math.inf),
    ]
    assert found.last_s == 50


def test_rows_of_outages_that_begin_together_are_one_failure() -> None:
    found = read("node,start,end\nn10,5,25\nn9,5,25\n")
    assert found.nodes == ("n9", "n10")
    assert found.failures == [Failure(5.0, "host", (0, 1), 20.0)]


def test_columns_of_the_other_layout_are_left_out() -> None:
    both = "start,end,node,event\n60,90,n1,FAILED\n"
    assert trace.read(both.splitlines(), "t.csv") == trace.read(
        "start,end,node\n60,90,n1\n".splitlines(), "t.csv"
    )


def test_dates_count_from_the_first() -> None:
    found = read(
        "timestamp,machine id,event type\n2026-03-01T12:00:00Z,m,ADD\n"
        "2026-03-01T13:00:00Z,m,REMOVE\n2026-03-01T13:10:00+00:00,m,ADD\n"
    )
    assert found.failures == [Failure(3_600.0, "host", (0,), 600.0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time,node,event,colour\n", "unknown column 'colour'"),
        ("time,node\n", "no column 'event'"),
        ("time,node,event\n-1,a,down\n", "line 2: it has the time '-1'"),
        ("time,node,event\nnan,a,down\n", "the time 'nan'"),
        ("time,node,event\nsoon,a,down\n", "the time 'soon'"),
        ("time,node,event\n1,a,down\n2,a,down\n", "line 3: it has node 'a' fail again"),
        ("time,node,event\n5,a,down\n2,a,up\n", "come back before it failed (line 2)"),
        ("time,node,event\n5,a,sideways\n", "unknown event 'sideways'"),
        ("time,node,event,kind\n5,a,down,meteor\n", "unknown kind 'meteor'"),
        ("time,node,event\n5,,down\n", "has no node"),
        ("start,end,node\n5,4,a\n", "ends before it starts"),
        ("start,end,node\n5,9,a\n7,10,a\n", "line 3: it has node 'a' fail again before"),
        ("time,time_s,node,event\n", "two columns for 'time'"),
        ("", "no column"),
        ("time,node,event\n", "has no events"),
        (
            "time,node,event\n2026-03-01T12:00:00,a,down\n2026-03-01T11:00:00,a,up\n",
            "before the first date",
        ),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as found:
        read(text)
    assert says in found.value.message
    assert "t.csv" in found.value.message
    assert found.value.hint


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        trace.load(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        trace.load(tmp_path / "x.csv")
