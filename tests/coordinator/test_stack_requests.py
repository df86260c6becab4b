"""Where workers stand: what the coordinator does with the answers of nodes."""

from __future__ import annotations

from typing import cast

import pytest

from rallypoint.coordinator import stack_requests
from rallypoint.coordinator.connections import Connections
from rallypoint.coordinator.stack_requests import StackRequests
from rallypoint.core import events as on
from rallypoint.core.membership import Membership
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.values import NodeId, Stamp
from rallypoint.wire import messages as wire

NODE = NodeId("a", 1)
STAMP = Stamp("L", 1, 1)


def test_an_answer_to_no_question_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node may send megabytes of texts, as often as it likes."""
    read: list[WorkerStack] = []
    original = stack_requests._tidy

    def tidy(each: WorkerStack) -> WorkerStack:
        read.append(each)
        return original(each)

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
