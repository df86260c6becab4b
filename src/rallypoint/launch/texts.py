"""What the agent says: the sentences, from values. Pure; written for somebody at 3 a.m."""

from __future__ import annotations

import signal

from rallypoint.client.node import Round
from rallypoint.core import reasons
from rallypoint.core.values import Change, CloseRecord, Outcome


def of_round(found: Round) -> str:
    """That a round has begun, and this node's place in it."""
    head, seat = found.head, found.seat
    last = seat.first_rank + seat.workers - 1
    ranks = f"rank {last}" if seat.workers == 1 else f"ranks {seat.first_rank} to {last}"
    return (
        f"round {head.number}: {_count(head.nodes, 'node')}, {_count(head.size, 'worker')}; "
        f"this is node {seat.node_rank} with {ranks}"
    )


def of_change(change: Change, before: Change | None) -> str:
    """That a round has ended, or what the cause was; "" if that has been said (`before`)."""
    why = reasons.describe(change)
    if before is not None and before.round == change.round:
        is_known = reasons.describe(before) == why
        return "" if is_known else f"round {change.round} has ended: the cause was: {why}"
    text = f"round {change.round} has ended: {why}"
    return text if change.confirmed else f"{text}; looking for the cause"


def of_departure(number: int, grace_s: float) -> str:
    """That a signal ends this node's part."""
    name = signal.Signals(number).name
    return f"got {name}: leaving the run; the workers have {grace_s:g} s to stop"


def of_end(run_id: str, close: CloseRecord) -> str:
    """The same on every node: the outcome, and the cause with the last lines of who failed."""
    if close.outcome is Outcome.SUCCEEDED:
        return f"run {run_id!r} has succeeded: {close.reason}"
    text = f"error: run {run_id!r} has ended: {reasons.describe_close(close)}"
    cause = close.cause
    if cause is None or cause.failure is None or not cause.failure.last_lines:
        return text
    who = f"rank {cause.failure.rank} on {reasons.some(cause.nodes)}"
    lines = "\n".join(f"  | {line}" for line in cause.failure.last_lines)
    return f"{text}\nthe last lines of {who}:\n{lines}"


def shown(text: str) -> str:
    """Without what a terminal would obey: some of it comes from other machines."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
