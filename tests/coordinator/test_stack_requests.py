"""Where workers stand: what the coordinator does with the answers of nodes."""

from __future__ import annotations

from typing import cast

import pytest

from rallypoint.coordinator import stack_requests
from rallypoint.coordinator.connections import Connections
from rallypoint.coordinator.stack_requests import StackRequests
from rallypoint.core import events as on
from rallypoint.core.membership import Membership
from rallypoint.core.stacks import STACK_CHARACTERS_MAX, WorkerStack
from rallypoint.core.values import NodeId, Stamp
from rallypoint.wire import messages as wire

NODE = NodeId("a", 1)
STAMP = Stamp("L", 1, 1)


def test_an_answer_to_no_question_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node may send megabytes of texts, as often as it likes."""
    read: list[WorkerStack] = []
    original = stack_requests._tidy

    def tidy(each: WorkerStack, characters_max: int) -> WorkerStack:
        read.append(each)
        return original(each, characters_max)

    monkeypatch.setattr(stack_requests, "_tidy", tidy)
    membership = Membership("run")
    posted: list[on.Event] = []
    requests = StackRequests(membership, cast(Connections, None), posted.append)
    for request_id in (1, 0, -7):
        requests.told(NODE, wire.StacksTold(STAMP, request_id, (WorkerStack(0, text="x" * 9),)))
    assert (read, posted) == ([], [])
    membership.progress.ask(["a"])
    for _ in range(2):
        requests.told(NODE, wire.StacksTold(STAMP, 1, (WorkerStack(0, text="a\tb"),)))
        membership.progress.unanswered.clear()
    assert [each.text for each in read] == ["a\tb"]
    first, repeat = posted
    assert isinstance(first, on.StacksTold)
    assert isinstance(repeat, on.StacksTold)
    assert (len(first.stacks), len(repeat.stacks)) == (1, 0)


@pytest.mark.parametrize("text", ["\n", "\t", "\x01\n", "\u2028", "x"])
def test_a_node_that_sends_more_than_it_was_asked_for_is_cut(text: str) -> None:
    """Its message may have megabytes, and all other runs wait while the texts are read."""
    large = text * (STACK_CHARACTERS_MAX // len(text))
    found = stack_requests._tidied(tuple(WorkerStack(rank, text=large) for rank in range(128)))
    assert len(found) == 128
    assert sum(len(each.text) for each in found) <= stack_requests.NODE_BYTES_MAX
    assert all(each.text.replace("\n", "").isprintable() for each in found)
