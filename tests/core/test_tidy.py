"""A node's text is escaped before it is kept and sent, and must still be accepted then."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.core import reasons
from rallypoint.core.election import records
from rallypoint.core.values import (
    TEXT_LENGTH_MAX,
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    FailureKind,
    Marks,
    Outcome,
    Stamp,
)
from rallypoint.wire import messages as wire

LONG = ("\x1b" * TEXT_LENGTH_MAX, "\t" * TEXT_LENGTH_MAX, "\U000e0001" * TEXT_LENGTH_MAX)
TEXTS = st.text(max_size=TEXT_LENGTH_MAX) | st.sampled_from(LONG)


def a_failure(text: str) -> Failure:
    """The longest failure that a node may report."""
    return Failure(FailureKind.EXCEPTION, text, 0, 0, 1, None, (text,) * 64)


@pytest.mark.parametrize("text", LONG, ids=["escapes", "tabs", "tags"])
def test_nodes_and_successors_can_read_the_longest_failure(text: str) -> None:
    told = reasons.tidy_change(
        Change(ChangeKind.WORKER_FAILED, 1, (text,) * 9, 9, text, failure=a_failure(text))
    )
    close = CloseRecord(Outcome.FAILED, reasons.tidy(text), cause=told)
    for message in (wire.Broken(Stamp(), told), wire.Closed(Stamp(), close)):
        assert wire.decode_from_coordinator(wire.encode(message)) == message
    register = records.RunRegister(
        2, "ledger", "run", 1, "process", marks=Marks(1, ended=told), close=close, as_read=()
    )
    assert records.decode_run(records.encode(register)) == register


@given(TEXTS)
def test_a_cleaned_text_is_one_bounded_line(text: str) -> None:
    tidied = reasons.tidy(text)
    assert tidied.isprintable()
    assert len(tidied) <= TEXT_LENGTH_MAX
    if text.isprintable():
        assert tidied == text
    failure = reasons.tidy_failure(a_failure(text))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(failure), type=Failure) == failure
