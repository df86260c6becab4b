"""What the agent says: the sentences, from values. Pure; written for somebody at 3 a.m.

Sentences that other parts say too are in core/reasons.py.
"""

from __future__ import annotations

import signal

from rallypoint.client.node import Round
from rallypoint.core import reasons
from rallypoint.core.values import Change, CloseRecord


def of_round(found: Round) -> str:
    """That a round has begun, and this node's place in it."""
    return reasons.describe_round(found.head, found.seat)


def of_change(change: Change, before: Change | None) -> str:
    """That a round has ended, or what the cause was; "" if that has been said (`before`)."""
    return reasons.describe_end_of_round(change, before)


def of_departure(number: int, grace_s: float) -> str:
    """That a signal ends this node's part."""
    name = signal.Signals(number).name
    return f"got {name}: leaving the run; the workers have {grace_s:g} s to stop"


def of_end(run_id: str, close: CloseRecord) -> str:
    """The same on every node: the outcome, and the cause with the last lines of who failed."""
    return reasons.describe_end_of_run(run_id, close)


def shown(text: str) -> str:
    """Without what a terminal would obey: some of it comes from other machines."""
    return reasons.printable(text)
