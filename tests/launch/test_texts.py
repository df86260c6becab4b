from __future__ import annotations

import msgspec

from rallypoint.core.values import Change, ChangeKind, CloseRecord, Failure, FailureKind, Outcome
from rallypoint.launch import texts

OPEN = Change(
    ChangeKind.WORKER_FAILED,
    3,
    ("a",),
    1,
    failure=Failure(FailureKind.COMMUNICATION, "reset", rank=2, exit_code=1),
    confirmed=False,
)


def test_a_verdict_is_said_once_and_only_if_it_is_news() -> None:
    assert texts.of_change(OPEN, None).endswith("; looking for the cause")
    confirmed = msgspec.structs.replace(OPEN, confirmed=True)
    assert texts.of_change(confirmed, OPEN) == ""
    lost = Change(ChangeKind.NODE_LOST, 3, ("b",), 1, "it fell silent")
    expected = "round 3 has ended: the cause was: b lost: it fell silent"
    assert texts.of_change(lost, OPEN) == expected
    assert texts.of_change(confirmed, msgspec.structs.replace(OPEN, round=2)) != ""


def test_the_end_names_who_failed_and_shows_its_last_lines() -> None:
    failure = Failure(FailureKind.EXCEPTION, "E: x", rank=2, exit_code=1, last_lines=("one", "E"))
    cause = msgspec.structs.replace(OPEN, failure=failure)
    text = texts.of_end("run", CloseRecord(Outcome.FAILED, "because", cause=cause))
    assert text.splitlines()[1:] == ["the last lines of rank 2 on a:", "  | one", "  | E"]
    assert texts.of_end("run", CloseRecord(Outcome.FAILED, "because")).count("\n") == 0


def test_nothing_that_is_shown_moves_the_cursor() -> None:
    assert texts.shown("a\n\tb é") == "a\n\tb é"
    assert "\x1b" not in texts.shown("\x1b[2J")
