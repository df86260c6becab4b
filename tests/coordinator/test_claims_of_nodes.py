"""Nodes and commands with a signed claim at a coordinator with TLS; each problem is an error."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from rallypoint import errors
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.security import token_form as form
from rallypoint.security.authority import Authority, new_secret
from rallypoint.security.roles import Role
from tests.coordinator.replica import Replica
from tests.loops import BOOTSTRAP, node, opened, run_clean, served

pytestmark = pytest.mark.sockets

AUTHORITY, OTHER = Authority.new(), Authority.new()
HOST = form.written(AUTHORITY.ca, new_secret(), AUTHORITY.identity())
CONFIG = CoordinatorConfig(token=HOST)
DAY = dt.timedelta(days=1)


def claim(role: Role = Role.NODE, runs: str = "team-*", days: float = 0.0, **more: Any) -> str:
    """A claim that counts for a day, from `days` on."""
    now = dt.datetime.now(dt.UTC) + days * DAY
    return more.get("by", AUTHORITY).claim((role,), runs, DAY, now)[1]


def test_a_node_joins_and_a_viewer_reads_by_claims() -> None:
    async def main() -> None:
        async with served(CONFIG) as (server, port):
            endpoint = f"https://127.0.0.1:{port}"
            async with opened(endpoint, run_id="team-1", token=claim()) as a:
                assert await a.next_round(BOOTSTRAP) is not None
                one = Replica(server, port)
                assert (await one.ask("/api/v1/runs/team-1", token=claim(Role.VIEWER)))[0] == 200
                assert (await one.ask("/api/v1/runs/team-1", token=claim(runs="x")))[0] == 403

    run_clean(main)


def damaged() -> str:
    head, _, signature = claim().rpartition(".")
    return f"{head}.{signature[:-4]}AAAA"


@pytest.mark.parametrize(
    ("token", "kind", "said", "hint"),
    [
        (lambda: claim(days=-9), errors.TokenError, "expired at ", "token new FILE --state"),
        (lambda: claim(days=9), errors.TokenError, "does not count before", "run `date`"),
        (lambda: claim(runs="job-1"), errors.TokenError, "'job-1', and 'team-1' does", "run's id"),
        (lambda: claim(Role.VIEWER), errors.TokenError, "(viewer) may not join", "role node"),
        (damaged, errors.TokenError, "this claim is damaged", "copy it again"),
        (
            lambda: claim(by=OTHER),
            errors.UntrustedCoordinatorError,
            "and this token names",
            "token",
        ),
    ],
)
def test_each_problem_is_an_error_at_once_that_says_what_to_do(
    token: Any, kind: type[errors.CoordinatorError], said: str, hint: str
) -> None:
    async def main() -> None:
        async with served(CONFIG) as (server, port):
            endpoint = f"https://127.0.0.1:{port}"
            with pytest.raises(kind) as caught:
                await node(endpoint, run_id="team-1", token=token()).open()
            assert said in caught.value.message
            assert hint in caught.value.hint
            assert not server.coordinator.runs

    run_clean(main)


def test_claims_of_an_old_and_a_new_authority_count_together() -> None:
    both = CoordinatorConfig(
        token=HOST, more_tokens=(form.written(OTHER.ca, new_secret(), OTHER.identity()),)
    )

    async def main() -> None:
        async with served(both) as (_, port):
            endpoint = f"https://127.0.0.1:{port}"
            async with (
                opened(endpoint, run_id="team-1", token=claim(), node_name="a"),
                opened(endpoint, run_id="team-1", token=claim(by=OTHER), node_name="b"),
            ):
                pass

    run_clean(main)
