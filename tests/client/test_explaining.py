"""What the end of a round can explain, and what it cannot: a program's own mistakes pass."""

from __future__ import annotations

import pytest

from rallypoint import errors
from rallypoint.client.run_client import is_programs_own
from rallypoint.core.values import Change, ChangeKind

LOST = Change(ChangeKind.NODE_LOST, 1, ("a",), 1)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes do not match"),
        KeyError("step"),
        TypeError("not callable"),
        ZeroDivisionError(),
        AssertionError(),
        MemoryError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    ],
)
def test_an_error_of_the_program_is_never_explained_by_the_round(error: Exception) -> None:
    assert is_programs_own(error)


@pytest.mark.parametrize(
    "error",
    [
        errors.RoundBrokenError(LOST),
        errors.StoreTimeoutError("1 of 2 ranks are not at the barrier"),
        ConnectionResetError(),
        TimeoutError(),
        RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer"),
        RuntimeError("something that a library says"),
        ValueError("Connection closed by peer [10.0.0.7]:34567"),
    ],
)
def test_an_error_that_a_peers_end_can_cause_may_be_explained(error: Exception) -> None:
    assert not is_programs_own(error)
