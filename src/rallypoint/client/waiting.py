"""Why a node waits, in words: the same from `rallypoint run`, from `join` and under torchrun."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple, Protocol

from rallypoint import errors
from rallypoint.core.reasons import Waiting, duration

ON_STANDBY: Final = "on standby"
"""The reason of a node for which the round has no place now."""
CARRIES: Final = "this node carries the coordinator: the run ends with it"

UNREACHED_S: Final = 1.0
"""How long a node looks for its coordinator before it says what answers: nodes that start together
come before their host."""
FIRST_WORD_S: Final = 2.0
"""How long a node waits for a round before it says for what."""
LOOK_S: Final = 0.5
"""How often a node looks at what it knows itself."""
ASK_S: Final = 5.0
"""How often it asks the coordinator: 10,000 waiting nodes ask 2,000 times a second."""


class Waits(Protocol):
    """What is asked of a node. See client/node.py."""

    @property
    def is_connected(self) -> bool: ...

    @property
    def carries_run(self) -> bool: ...

    @property
    def looking(self) -> str: ...

    @property
    def nodes_max(self) -> int: ...

    @property
    def left_s(self) -> float | None: ...

    async def waiting(self) -> Waiting | None: ...


class Why(NamedTuple):
    """Why a node waits. `reason` stays equal as long as nothing but time passes."""

    text: str
    reason: object


@contextlib.asynccontextmanager
async def while_waiting(node: Waits, told: Callable[[Why], None]) -> AsyncIterator[None]:
    """Tell, inside this block, again and again why the node waits. Whether to say it: Lines."""
    telling = asyncio.get_running_loop().create_task(_tell(node, told))
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait({telling})


async def _tell(node: Waits, told: Callable[[Why], None]) -> None:
    loop = asyncio.get_running_loop()
    began_s, next_ask_s = loop.time(), loop.time() + FIRST_WORD_S
    while True:
        await asyncio.sleep(LOOK_S)
        now_s = loop.time()
        if not node.is_connected:
            if node.looking and now_s - began_s >= UNREACHED_S:
                told(_why_unreached(node))
        elif now_s >= next_ask_s:
            told(await why_it_waits(node, ASK_S))
            next_ask_s = loop.time() + ASK_S


def on_standby(nodes_max: int) -> Why:
    """Of a full round, and of one that lets newcomers in later: a node is not told which it is.

    The number is there for who forgot --nnodes: it is 1 then, and this node would wait for nothing.
    """
    most = f"{nodes_max} node" if nodes_max == 1 else f"{nodes_max} nodes"
    text = f"a round of at most {most} is on: this node is on standby, and steps in when it can"
    return Why(text, ON_STANDBY)


async def why_it_waits(node: Waits, timeout_s: float) -> Why:
    """Ask the coordinator why there is no round yet, for at most `timeout_s`."""
    if not node.is_connected:
        return _why_unreached(node)
    try:
        async with asyncio.timeout(timeout_s):
            waiting = await node.waiting()
    except (TimeoutError, errors.RallypointError):
        text = "waiting: the coordinator does not say why"
        return Why(text, text)
    if waiting is None:
        return on_standby(node.nodes_max)
    left_s = node.left_s
    left = f"; {duration(left_s)} left" if left_s is not None else ""
    carries = f"; {CARRIES}" if node.carries_run else ""
    return Why(f"waiting: {waiting}{left}{carries}", (waiting.without_times(), node.carries_run))


def _why_unreached(node: Waits) -> Why:
    left_s = node.left_s
    left = f" for {duration(left_s)}" if left_s is not None else ""
    return Why(f"waiting: {node.looking}; trying again{left}", _without_numbers(node.looking))


def _without_numbers(text: str) -> str:
    """Durations are in it, such as how long a ledger has been away."""
    return "".join(each for each in text if not each.isdigit())
