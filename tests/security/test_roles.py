"""What each role may do, and for which runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.security.roles import (
    ALL_ROLES,
    EVERYBODY,
    LIMITS_CHARACTERS_MAX,
    PATTERNS_MAX,
    RIGHTS,
    Principal,
    Right,
    Role,
    _compiled,
    check_pattern,
    matches,
)

MAY = {
    Role.NODE: {Right.NOTHING, Right.ATTACH, Right.READ},
    Role.VIEWER: {Right.NOTHING, Right.READ, Right.MEASURE},
    Role.OPERATOR: {Right.NOTHING, Right.READ, Right.MEASURE, Right.ACT},
    Role.HOST: {Right.NOTHING, Right.ATTACH, Right.READ},
}


@pytest.mark.parametrize("role", list(Role))
def test_each_role_has_its_rights_and_no_more(role: Role) -> None:
    principal = Principal("id", (role,))
    assert {each for each in Right if principal.has(each)} == MAY[role]
    assert set(RIGHTS) == set(Role)


def test_who_has_no_role_may_nothing_but_what_everybody_may() -> None:
    nobody = Principal("id", ())
    assert [each for each in Right if nobody.has(each)] == [Right.NOTHING]
    denied = nobody.denial(Right.READ)
    assert denied is not None
    assert denied.message == "this token (no role) may not read runs"


def test_a_lone_token_has_all_rights_in_all_runs() -> None:
    assert EVERYBODY.is_unlimited
    assert all(EVERYBODY.denial(each, "any") is None for each in Right)


@pytest.mark.parametrize(
    ("pattern", "run_id", "is_so"),
    [
        ("team-*", "team-1", True),
        ("team-*", "team-", True),
        ("team-*", "other-team-1", False),
        ("team-*", "Team-1", False),
        ("job-4?", "job-42", True),
        ("job-4?", "job-420", False),
        ("job-[12]", "job-2", True),
        ("job-42", "job-42", True),
        ("job-42", "job-42\n", False),
        ("*", "any/thing", True),
        ("*a*a*a*a*a*a*a*a*a*b", "a" * 1_000, False),
    ],
)
def test_a_run_matches_a_pattern(pattern: str, run_id: str, is_so: bool) -> None:
    assert matches(pattern, run_id) is is_so


def test_the_answer_about_a_run_names_the_pattern_and_not_whether_the_run_exists() -> None:
    principal = Principal("id", (Role.VIEWER,), ("team-*",))
    denied = principal.denial(Right.READ, "job-1")
    assert denied is not None
    assert denied.message == "this token is for runs that match 'team-*', and 'job-1' does not"
    assert denied.reason == "run"
    assert principal.denial(Right.READ, "team-1") is None
    wrong_role = principal.denial(Right.ACT, "job-1")
    assert wrong_role is not None
    assert wrong_role.message == "this token (viewer) may not change a run"
    assert wrong_role.hint == "use a token of the role operator"


PRINCIPALS = st.builds(
    Principal,
    st.just("id"),
    st.sets(st.sampled_from(ALL_ROLES)).map(lambda found: tuple(sorted(found))),
    st.lists(st.text(min_size=1, max_size=8).filter(str.isprintable), max_size=2).map(tuple),
)


@given(PRINCIPALS, PRINCIPALS, st.text(max_size=8))
def test_a_forwarded_request_has_no_right_that_only_one_has(
    sender: Principal, forwarder: Principal, run_id: str
) -> None:
    limits = sender.limits()
    assert limits.isascii()
    assert limits.isprintable()
    found = forwarder.narrowed(limits)
    for right in Right:
        assert not found.has(right) or (sender.has(right) and forwarder.has(right))
        assert EVERYBODY.narrowed(limits).has(right) is sender.has(right)
    assert found.sees(run_id) is (sender.sees(run_id) and forwarder.sees(run_id))


@given(st.text(max_size=40))
def test_no_header_adds_a_right(text: str) -> None:
    viewer = Principal("id", (Role.VIEWER,), ("team-*",))
    found = viewer.narrowed(text)
    assert set(found.roles) <= {Role.VIEWER}
    assert not found.sees("job-1")


@pytest.mark.parametrize("text", ["king;", "viewer;%ff", "viewer,operator,king;*"])
def test_limits_that_cannot_be_read_leave_no_right(text: str) -> None:
    assert EVERYBODY.narrowed(text).roles == ()


@pytest.mark.parametrize(
    "text",
    [
        "viewer;" + " ".join(f"*[!{number}]*" for number in range(PATTERNS_MAX + 1)),
        "viewer;" + "x" * 201,
        "viewer;a%0Ab",
        "viewer;%E2%80%8B",
        "viewer;*" + " " * LIMITS_CHARACTERS_MAX,
    ],
)
def test_limits_that_cost_too_much_leave_no_right(text: str) -> None:
    found = EVERYBODY.narrowed(text)
    assert found.roles == ()
    assert len(found.runs) <= 1


def test_limits_that_are_named_again_and_again_stay_few() -> None:
    found = Principal("id", (Role.VIEWER,), ("team-*",))
    for number in (1, 2, 3, 3, 3):
        found = found.narrowed(f"viewer;*{number}* *")
    assert found.roles == (Role.VIEWER,)
    assert found.runs == ("team-*", "*1*", "*2*", "*3*")
    assert found.narrowed("viewer;*4*").roles == ()


def test_a_request_compiles_each_of_its_patterns_once_for_all_runs() -> None:
    text = "viewer;" + " ".join(f"*[!{number}]*" for number in range(PATTERNS_MAX))
    found = EVERYBODY.narrowed(text)
    _compiled.cache_clear()
    assert all(found.sees(f"team-{number}") for number in range(1_000))
    assert _compiled.cache_info().misses == PATTERNS_MAX


@pytest.mark.parametrize("pattern", ["", "a\nb", "x" * 201])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"must be|has more"):
        check_pattern(pattern)
