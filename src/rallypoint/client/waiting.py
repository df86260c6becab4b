"""Why a node waits, in words: the same in `rallypoint run`, in `join` and under torchrun."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

import msgspec

from rallypoint import errors, runtime
from rallypoint.core.reasons import Waiting, duration

_log = logging.getLogger("rallypoint.client")

WAITING: Final = "waiting: "
"""How the text of a reason begins."""
ON_STANDBY: Final = "on standby"
"""The reason of a node for which the round has no place now."""
HOSTS: Final = "this node hosts the coordinator: the run ends with it"

UNREACHED_S: Final = 1.0
"""How many seconds a node searches before it logs that nobody answers. When nodes start together,
most of them are ready before their host.
"""
FIRST_WORD_S: Final = 2.0
"""How many seconds a node waits for a round before it logs why."""
LOOK_S: Final = 0.5
"""How often a node checks its own state, in seconds."""
ASK_S: Final = 5.0
"""How often it asks the coordinator, in seconds: 10,000 waiting nodes ask 2,000 times a second."""


class Waits(Protocol):
    """A node that waits for a coordinator or a round. See client/node.py."""

    @property
    def is_connected(self) -> bool: ...

    @property
    def hosts_run(self) -> bool: ...

    @property
    def looking(self) -> str: ...

    @property
    def nodes_max(self) -> int: ...

    @property
    def stays_out(self) -> str: ...

    @property
    def left_s(self) -> float | None: ...

    async def waiting(self) -> Waiting | None: ...


class Why(msgspec.Struct, frozen=True):
    """Why a node waits. `reason` stays equal while only times change."""

    text: str
    reason: object
    waiting: Waiting | None = None


class StillWaiting(msgspec.Struct, frozen=True):
    """That a program's node waits, and why: the argument of `on_waiting`. str() is its text.

    `waited_s`: how long it has waited. `text`: the reason in one line, in the words of `rallypoint
    status`. `waiting`: the coordinator's reason as data; None if there is no coordinator yet, or if
    the node is on standby. `left_s`: how long it will wait still; None: without a limit. Durations
    are in seconds.
    """

    waited_s: float
    text: str
    waiting: Waiting | None = None
    left_s: float | None = None

    def __str__(self) -> str:
        return self.text


@contextlib.asynccontextmanager
async def while_waiting(node: Waits, told: Callable[[Why], None]) -> AsyncIterator[None]:
    """In this block, call `told` regularly with the reason why the node waits."""
    telling = runtime.spawn(_tell(node, told), _telling_failed)
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait({telling})


def _telling_failed(error: Exception) -> None:
    """An unexpected error ends only the messages: the node waits on."""
    _log.error("the reason why this node waits cannot be shown", exc_info=error)


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


def on_standby(nodes_max: int, stays_out: str = "") -> Why:
    """Why a standby waits: the round is full, or newcomers are let in later.

    The text has the maximum, which is 1 for users who forgot --nnodes. `stays_out`: why this node
    is kept out for a while, and for how long; "" if it is not.
    """
    if stays_out:
        text = f"a round is running, and this node stays out of it, {stays_out}"
        return Why(text, (ON_STANDBY, stays_out))
    most = f"{nodes_max} node" if nodes_max == 1 else f"{nodes_max} nodes"
    text = f"a round of at most {most} is running: this node is on standby until it has a place"
    return Why(text, ON_STANDBY)


def join_timeout(
    run_id: str, limit_s: float, waiting: Waiting | None, *, looking: str, hint: str
) -> errors.JoinTimeoutError:
    """The error of a node that had no round in `limit_s`.

    `waiting`: the coordinator's reason, if it answered. `looking`: why the node has no coordinator.
    `hint`: the address where other nodes may be unable to reach this one.
    """
    why = str(waiting) if waiting else looking or "the coordinator gave no reason"
    hint = (waiting.hint if waiting is not None else "") or hint
    shown_s = round(limit_s, 1) or limit_s
    return errors.JoinTimeoutError(
        f"no round of run {run_id!r} was formed within {shown_s:g} s: {why}",
        hint=hint
        or "start the missing nodes, lower the minimum (--nnodes, min_nodes), or wait longer "
        "(--join-timeout, join_timeout_s)",
        waiting=waiting,
    )


def left_run() -> errors.CoordinatorLostError:
    """The error of a call that waits while its node leaves the run."""
    return errors.CoordinatorLostError(
        "this node has left the run", hint="make no more calls then, or join again"
    )


def close_unconfirmed(who: str, limit_s: float) -> errors.CoordinatorLostError:
    """The error of a close that `who` (the coordinator, or an agent) has not confirmed."""
    return errors.CoordinatorLostError(
        f"{who} did not confirm within {limit_s:g} s that the run is closed",
        hint="the run may still be open: `rallypoint status` shows it, `rallypoint close` ends it",
    )


async def why_it_waits(node: Waits, timeout_s: float) -> Why:
    """Ask the coordinator why there is no round yet, for at most `timeout_s`."""
    if not node.is_connected:
        return _why_unreached(node)
    try:
        async with asyncio.timeout(timeout_s):
            waiting = await node.waiting()
    except (TimeoutError, errors.RallypointError):
        text = f"{WAITING}the coordinator gave no reason"
        return Why(text, text)
    if waiting is None:
        return on_standby(node.nodes_max, node.stays_out)
    left_s = node.left_s
    left = f"; gives up in {duration(left_s)}" if left_s is not None else ""
    hosts = f"; {HOSTS}" if node.hosts_run else ""
    reason = (waiting.without_times(), node.hosts_run)
    return Why(f"{WAITING}{waiting}{left}{hosts}", reason, waiting)


def _why_unreached(node: Waits) -> Why:
    left_s = node.left_s
    left = f" for {duration(left_s)}" if left_s is not None else ""
    return Why(f"{WAITING}{node.looking}; trying again{left}", _without_numbers(node.looking))


def _without_numbers(text: str) -> str:
    """The text without its durations, such as how long a ledger has not answered."""
    return "".join(each for each in text if not each.isdigit())
