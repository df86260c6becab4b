"""Why a node waits, in words: the same sentence from `rallypoint run` and under torchrun."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple, Protocol

from rallypoint import errors
from rallypoint.core.reasons import Waiting

ON_STANDBY: Final = "a round is on: this node is on standby, and steps in when it can"
"""Of a full round, and of one that lets newcomers in later: a node is not told which it is."""


class Waits(Protocol):
    """What is asked of a node. See client/node.py."""

    @property
    def is_connected(self) -> bool: ...

    @property
    def ledger_problem(self) -> str: ...

    async def waiting(self) -> Waiting | None: ...


class Why(NamedTuple):
    """Why a node waits. `reason` stays equal as long as nothing but time passes."""

    text: str
    reason: object


async def why_it_waits(node: Waits, where: object, timeout_s: float) -> Why:
    """Ask the coordinator why there is no round yet, for at most `timeout_s`.

    `where`: the endpoint, for the message where no coordinator answers.
    """
    if not node.is_connected:
        if node.ledger_problem:
            return Why(f"waiting: {node.ledger_problem}; trying again", "no ledger")
        text = f"waiting: the coordinator at {where} does not answer; trying again"
        return Why(text, text)
    try:
        async with asyncio.timeout(timeout_s):
            waiting = await node.waiting()
    except (TimeoutError, errors.RallypointError):
        text = "waiting: the coordinator does not say why"
        return Why(text, text)
    if waiting is None:
        return Why(ON_STANDBY, ON_STANDBY)
    return Why(f"waiting: {waiting}", waiting.without_times())
