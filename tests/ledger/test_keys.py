"""The layout of names: no name of one run is among those of another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.ledger import keys
from rallypoint.ledger.contract import KEY_BYTES_MAX, check_name

RUN_IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)
TRICKY = [
    "team",
    "team/job-42",
    "team%2Fjob-42",
    "team/",
    "/team",
    "..",
    ".",
    "a b",
    "é",
    "run~1",
    "\U0001f680" * 256,
    "\U0001f680" * 255,
    "x" * 256,
    "x" * 255 + "y",
    keys.quoted("x" * 256),
]


def names_of(run_id: str) -> list[str]:
    return [keys.run_key(run_id), keys.log_name(run_id, 7, 3, 0, 4), keys.chunk_key(run_id, 3, 4)]


@pytest.mark.parametrize("run_id", TRICKY)
def test_every_run_id_has_keys_that_every_engine_accepts(run_id: str) -> None:
    for name in names_of(run_id):
        check_name(name)
        # The file engine and etcd keep a log's name quoted once more.
        assert len(name.replace("%", "%25").encode()) < KEY_BYTES_MAX // 2


def test_different_ids_have_different_names() -> None:
    assert len({keys.run_key(each) for each in TRICKY}) == len(TRICKY)


@given(RUN_IDS, RUN_IDS)
def test_no_key_of_a_run_is_listed_for_another(one: str, other: str) -> None:
    if one == other:
        return
    assert keys.run_key(one) != keys.run_key(other)
    assert not keys.log_name(other, 1, 1, 0, 1).startswith(keys.log_prefix(one))
    assert not keys.chunk_key(other, 1, 1).startswith(keys.chunk_prefix(one))


@pytest.mark.parametrize("one", TRICKY)
def test_no_key_is_listed_for_an_id_that_begins_with_it(one: str) -> None:
    for other in TRICKY:
        if other != one:
            assert not keys.log_name(other, 1, 1, 0, 1).startswith(keys.log_prefix(one))


def test_a_plain_id_is_readable() -> None:
    assert keys.run_key("job-42.a_b") == "runs/job-42.a_b"
    assert keys.log_name("team/job-42", 3, 2, 0, 2) == "stores/team%2Fjob-42/3.2.0.2"


def test_a_key_can_be_parsed_back() -> None:
    assert keys.chunk_of(keys.chunk_key("team/7-8", 12, 3)) == (12, 3)
    assert keys.log_of(keys.log_name("9/10", 3, 2, 1, 5)) == (3, 2, 1, 5)
    assert keys.log_of("stores/run/7") == (7, 0, 0, 0)
    for odd in ("chunks/run/x-1", "chunks/run/1", "chunks/run/-", "stores/run/", "chunks/run/²-1"):
        assert keys.chunk_of(odd) is None
        assert keys.log_of(odd) is None or odd == "chunks/run/1"


@pytest.mark.parametrize("number", ["9" * 5_000, "", "-1", "1e3", "\u0663", "0x1", " 1", "1_0"])
def test_a_key_with_a_bad_number_is_none_of_ours(number: str) -> None:
    """A key of another program must not end a removal."""
    assert keys.chunk_of(f"chunks/run/{number}-1") is None
    assert keys.chunk_of(f"chunks/run/1-{number}") is None
    assert keys.log_of(f"stores/run/{number}") is None
    assert keys.log_of(f"stores/run/1.2.{number}.3") is None
