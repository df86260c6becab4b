"""The cause of a round's end, and what it costs: precedence, verdicts and the restart budget."""

import itertools

import pytest

from rallypoint.core.blame import is_covered
from rallypoint.core.causes import Case, failed, happened
from rallypoint.core.values import NAMES_SHOWN_MAX, ChangeKind, Failure, FailureKind

SIGNAL, OOM, EXCEPTION, COMMUNICATION = FailureKind
LOSS = happened(ChangeKind.NODE_LOST, 1, ["c"])


def failure(kind: FailureKind) -> Failure:
    return Failure(kind, f"{kind} failure")


def case_of(*kinds: FailureKind) -> Case:
    """A case opened by the first of these failures, on nodes a, b, ..."""
    case = Case(failed(1, "a", failure(kinds[0])))
    for name, kind in zip("bcd", kinds[1:], strict=False):
        case.add_failure(name, failure(kind))
    return case


@pytest.mark.parametrize(
    ("kinds", "blamed"),
    [
        ([EXCEPTION], "a"),
        ([EXCEPTION, EXCEPTION], "a"),
        ([COMMUNICATION, EXCEPTION], "b"),
        ([EXCEPTION, COMMUNICATION], "a"),
        ([COMMUNICATION, COMMUNICATION, EXCEPTION, SIGNAL], "d"),
        ([EXCEPTION, OOM, SIGNAL], "b"),
        ([SIGNAL, OOM], "a"),
        ([SIGNAL, EXCEPTION], "a"),
    ],
)
def test_the_worst_kind_is_the_cause_and_within_a_kind_the_first(
    kinds: list[FailureKind], blamed: str
) -> None:
    change = case_of(*kinds).close(unresolved=0)
    assert change.nodes == (blamed,)
    assert change.charged
    assert change.confirmed


@pytest.mark.parametrize("kinds", list(itertools.product(FailureKind, repeat=2)))
def test_a_loss_outranks_every_failure_and_is_never_charged(kinds: list[FailureKind]) -> None:
    case = case_of(*kinds)
    case.add_loss(LOSS)
    case.add_loss(happened(ChangeKind.NODE_LOST, 1, ["d"]))
    change = case.close(unresolved=0)
    assert change.kind is ChangeKind.NODE_LOST
    assert change.nodes == ("c",)
    assert not change.charged


@pytest.mark.parametrize(
    ("kind", "unresolved", "charged"),
    [
        (COMMUNICATION, 0, True),
        (COMMUNICATION, 1, False),
        (EXCEPTION, 0, True),
        (EXCEPTION, 1, True),
        (SIGNAL, 1, True),
        (OOM, 1, True),
    ],
)
def test_a_missing_member_explains_only_a_communication_error(
    kind: FailureKind, unresolved: int, charged: bool
) -> None:
    assert case_of(kind).close(unresolved).charged is charged


def test_only_a_communication_error_needs_time() -> None:
    assert [kind for kind in FailureKind if case_of(kind).needs_time()] == [COMMUNICATION]
    assert not case_of(COMMUNICATION, EXCEPTION).needs_time()


@pytest.mark.parametrize("kind", [kind for kind in ChangeKind if kind != "worker_failed"])
def test_only_a_failure_leaves_a_case_open(kind: ChangeKind) -> None:
    case = Case(happened(kind, 1, ["a"]))
    assert case.closed
    case.add_failure("b", failure(SIGNAL))
    case.add_loss(LOSS)
    assert case.change.nodes == ("a",)


def test_a_report_after_the_verdict_changes_nothing() -> None:
    case = case_of(COMMUNICATION)
    verdict = case.close(unresolved=0)
    case.add_failure("b", failure(SIGNAL))
    case.add_loss(LOSS)
    assert case.change.nodes == verdict.nodes


@pytest.mark.parametrize(
    ("limit", "bears"), [(0, [False]), (1, [True, False, False]), (None, [True] * 5)]
)
def test_the_restart_budget_is_charged(limit: int | None, bears: list[bool]) -> None:
    spent = 0
    for is_borne in bears:
        assert is_covered(spent, 1, limit) is is_borne
        spent += is_borne


def test_a_change_names_a_bounded_number_of_nodes() -> None:
    change = happened(ChangeKind.NODE_LOST, 1, [f"n{number}" for number in range(1000)])
    assert len(change.nodes) == NAMES_SHOWN_MAX
    assert change.count == 1000


DEPARTURE = happened(ChangeKind.NODE_LEFT, 1, ["b"], "its agent got SIGTERM")


@pytest.mark.parametrize("kind", FailureKind)
def test_a_departure_explains_communication_errors_and_nothing_else(kind: FailureKind) -> None:
    """A scheduler signals workers first, so their peers fail before the departure is known."""
    case = case_of(kind)
    case.add_departure(DEPARTURE)
    case.add_departure(happened(ChangeKind.NODE_LEFT, 1, ["c"]))
    assert not case.needs_time()
    change = case.close(unresolved=0)
    if kind is COMMUNICATION:
        assert (change.kind, change.nodes, change.charged) == (ChangeKind.NODE_LEFT, ("b",), False)
    else:
        assert (change.kind, change.nodes, change.charged) == (
            ChangeKind.WORKER_FAILED,
            ("a",),
            True,
        )


def test_a_loss_outranks_a_departure() -> None:
    case = case_of(COMMUNICATION)
    case.add_departure(DEPARTURE)
    case.add_loss(LOSS)
    assert case.close(unresolved=0).kind is ChangeKind.NODE_LOST


@pytest.mark.parametrize("kind", FailureKind)
def test_an_early_clean_exit_is_named_with_a_communication_error(kind: FailureKind) -> None:
    case = Case(failed(1, "a", failure(kind)), finished="z")
    change = case.close(unresolved=0)
    assert change.charged
    assert change.failure is not None
    is_told = "z had finished before" in change.failure.message
    assert is_told == (kind is COMMUNICATION)
