from __future__ import annotations

import msgspec

from rallypoint.client.node import Round
from rallypoint.core.addresses import OwnAddress
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    FailureKind,
    Outcome,
    RoundHead,
    Seat,
)
from rallypoint.launch import agent_messages

OPEN = Change(
    ChangeKind.WORKER_FAILED,
    3,
    ("a",),
    1,
    failure=Failure(FailureKind.COMMUNICATION, "reset", rank=2, exit_code=1),
    confirmed=False,
)


def test_a_verdict_is_printed_once_and_only_if_it_is_new() -> None:
    assert agent_messages.of_change(OPEN, None).endswith("; looking for the cause")
    confirmed = msgspec.structs.replace(OPEN, confirmed=True)
    assert agent_messages.of_change(confirmed, OPEN) == ""
    lost = Change(ChangeKind.NODE_LOST, 3, ("b",), 1, "it fell silent")
    expected = "round 3 has ended: the cause was: b lost: it fell silent"
    assert agent_messages.of_change(lost, OPEN) == expected
    assert agent_messages.of_change(confirmed, msgspec.structs.replace(OPEN, round=2)) != ""


def test_the_end_names_the_failed_worker_and_shows_its_last_lines() -> None:
    failure = Failure(FailureKind.EXCEPTION, "E: x", rank=2, exit_code=1, last_lines=("one", "E"))
    cause = msgspec.structs.replace(OPEN, failure=failure)
    text = agent_messages.of_end("run", CloseRecord(Outcome.FAILED, "because", cause=cause))
    assert text.splitlines()[1:] == ["the last lines of rank 2 on a:", "  | one", "  | E"]
    assert agent_messages.of_end("run", CloseRecord(Outcome.FAILED, "because")).count("\n") == 0


def test_shown_text_cannot_move_the_cursor() -> None:
    assert agent_messages.shown("a\n\tb é") == "a\n        b é"
    assert "\x1b" not in agent_messages.shown("\x1b[2J")


def test_the_bootstrap_address_is_printed_after_a_communication_error() -> None:
    head = RoundHead(3, 1, 2, 4, Address("10.0.0.5", 29500), "digest")
    first, second = Round(head, Seat(0, 0, 2)), Round(head, Seat(1, 2, 2))
    own = OwnAddress("10.0.0.5", "eth0")
    close = CloseRecord(Outcome.FAILED, "because", cause=OPEN)
    here = agent_messages.of_meeting(first, own, close)
    assert here.startswith(
        "hint: the workers met at 10.0.0.5:29500, an address of this node by its interface eth0; "
    )
    assert "--local-addr" in here
    there = agent_messages.of_meeting(second, own, close)
    assert "10.0.0.5:29500, an address of the node of rank 0; " in there
    assert "an address of this node; " in agent_messages.of_meeting(first, None, close)
    programs = msgspec.structs.replace(OPEN, failure=Failure(FailureKind.EXCEPTION, "x", rank=2))
    for other in (programs, None):
        ended = msgspec.structs.replace(close, cause=other)
        assert agent_messages.of_meeting(first, own, ended) == ""
    alone = msgspec.structs.replace(head, nodes=1)
    assert agent_messages.of_meeting(Round(alone, Seat(0, 0, 4)), own, close) == ""


def test_the_loss_of_the_coordinator_names_when_the_workers_are_stopped() -> None:
    lost = "warning: gone; the workers continue, but no other round can form"
    assert agent_messages.of_loss("gone", None) == lost
    stopped = " This node stops them in 10 min unless they finish before (setting: orphan)"
    assert agent_messages.of_loss("gone", 600.0) == f"{lost}.{stopped}"
