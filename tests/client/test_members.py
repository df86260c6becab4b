"""R2: the members of a node's round, as its coordinator tells them. Without connections."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rallypoint import errors
from rallypoint.client.actions import MembersTold
from rallypoint.client.node import Node
from rallypoint.core.values import Address, RoundHead
from tests.core.member_rows import members
from tests.loops import run_virtual

HEAD = RoundHead(3, 1, 2, 2, Address("host", 1), "digest")
ROWS = members(2)


class Asking(Node):
    """A node in this round, whose coordinator answers with the table of some round."""

    def __init__(self, head: RoundHead | None, number: int, digest: str) -> None:
        ended = None
        machine = SimpleNamespace(head=head, ended=ended, ask_members=lambda: (1, []))
        self._machine = machine  # type: ignore[assignment]
        self._answer = MembersTold(1, number, digest, ROWS)

    async def _ask(self, *_: Any) -> MembersTold:
        return self._answer


def test_r2_a_node_gets_the_table_of_its_round() -> None:
    assert run_virtual(Asking(HEAD, 3, "digest").members()) == ROWS


@pytest.mark.parametrize(
    ("head", "number", "digest"),
    [(HEAD, 4, "digest"), (HEAD, 2, "digest"), (HEAD, 3, "another"), (None, 3, "digest")],
)
def test_r2_a_node_takes_no_table_of_another_round(
    head: RoundHead | None, number: int, digest: str
) -> None:
    with pytest.raises(errors.RoundBrokenError):
        run_virtual(Asking(head, number, digest).members())
