"""Which of several failures is the cause."""

from __future__ import annotations

from rallypoint.core.values import Failure, FailureKind
from rallypoint.launch.failures import outranks, worst_first


def failure(kind: FailureKind, message: str = "") -> Failure:
    return Failure(kind, message)


def test_failures_are_ordered_by_precedence_and_then_by_time() -> None:
    kinds = (
        FailureKind.COMMUNICATION,
        FailureKind.EXCEPTION,
        FailureKind.SIGNAL,
        FailureKind.EXCEPTION,
    )
    found = worst_first([failure(kind, str(i)) for i, kind in enumerate(kinds)])
    assert [each.message for each in found] == ["2", "1", "3", "0"]


def test_only_a_more_specific_failure_outranks() -> None:
    exception = failure(FailureKind.EXCEPTION)
    assert outranks(exception, [])
    assert outranks(exception, [failure(FailureKind.COMMUNICATION)])
    assert not outranks(exception, [exception])
    assert not outranks(exception, [failure(FailureKind.SIGNAL)])
