"""What bare nodes do: a small program stands in for the agent (see `agents`) and its workers.

To add one: write an async function of (scene, started node) that lives until its node has ended,
tells the scene what it is given (`given`, `called`, `answered`), and keeps `is_working`,
`has_finished`, `is_over` and `end` of the started node right. Put it into `PROGRAMS`, under the
name that `Plan.program` gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from rallypoint.client import network
from rallypoint.client.node import Node
from rallypoint.client.waiting import left_run
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.core.values import Address, RunSettings
from rallypoint.errors import (
    CoordinatorError,
    EvictedError,
    JoinTimeoutError,
    LaunchError,
    LedgerError,
    NameTakenError,
    RoundBrokenError,
    RunClosedError,
    SettingsConflictError,
    SupersededError,
)
from rallypoint.ledger.contract import Ledger
from rallypoint.settings import NodeSettings, parse_endpoint
from rallypoint.simulation.calls import Drawn, drawn, drawn_wait, make, vain_wait
from rallypoint.simulation.older import make_older
from rallypoint.simulation.plan import ISOLATED
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token
from rallypoint.simulation.steps import LEFT_S, StepWorkers, drain

Program = Callable[[Scene, StartedNode], Coroutine[Any, Any, None]]
BOOTSTRAP_PORT: Final = 29_500
IMPATIENT: Final = 0.3
"""In which part of the jobs about stores workers withdraw their waits."""
LOST_AFTER_S: Final = 60.0
"""A node without workers gives up after so many seconds without a coordinator."""

QUIET_S: Final = 5.0
"""How often workers that call nothing look whether their round has ended."""


async def _native(scene: Scene, here: StartedNode) -> None:
    """The native API's node: takes rounds, calls the round's store, leaves or finishes."""
    try:
        await _live(scene, here)
    except (CoordinatorError, LedgerError, JoinTimeoutError) as error:
        here.end = f"{type(error).__name__}: {error.message}"
        scene.say(here.name, here.end)
        judge(scene, here, error)
        if isinstance(error, NameTakenError | SettingsConflictError):
            # An older start of the name, which may be dead by now, was not yet known to be. Who had
            # other settings than the run is started again.
            scene.start_again(here.index, 5.0)
    finally:
        here.is_over, here.is_working = True, False


def judge(scene: Scene, here: StartedNode, error: Exception) -> None:
    """Whether this end is one that a user can understand: R7 promises rounds once there is peace.

    A run may be closed, a name may be taken, a node may have waited since before the peace, and an
    agent may have found no memory for its workers before it.
    """
    is_refused = isinstance(error, RunClosedError | NameTakenError | SupersededError | EvictedError)
    # Nodes that brought other settings may have been the first of the run.
    is_refused |= scene.plan.has_unlike and isinstance(error, SettingsConflictError)
    is_late = scene.world.now_s > scene.peace_s + LOST_AFTER_S
    is_refused = is_refused or (isinstance(error, LaunchError) and not is_late)
    if not (is_refused or scene.is_chaotic or (is_late and isinstance(error, JoinTimeoutError))):
        scene.broke("R7", f"{here.name} gave up though all is well: {here.end}")


async def opened_ledger(scene: Scene, here: StartedNode) -> Ledger:
    """The ledger of this process, once its engine answers."""
    ledger = scene.ledger.ledger(here.process)
    if here.process.sees is not None:
        make_older(ledger)
    while True:
        try:
            await ledger.open()
        except LedgerError:
            await asyncio.sleep(1.0)
        else:
            return ledger


def settings_of(scene: Scene, here: StartedNode) -> NodeSettings:
    """The settings of a node. In some plans each node has its own."""
    plan, draw = scene.plan, here.process.random
    mixed: dict[str, Any] = {"coordinator_silence_s": 2.0} if plan.is_store else {}
    if plan.silence_s is not None:
        mixed["coordinator_silence_s"] = plan.silence_s
    if plan.is_mixed:
        mixed = {
            "lease_ttl_s": draw.choice((1.0, 2.0, 5.0, 10.0)),
            "coordinator_silence_s": draw.choice((2.0, 5.0, 8.0)),
            "candidates": draw.choice((1, 3, 5)),
            "attach_grace_s": draw.choice((None, 8.0, 30.0)),
            "yield_after_s": draw.choice((10.0, 60.0)),
        }
    return NodeSettings(
        endpoint=parse_endpoint(scene.ledger.endpoint),
        run_id=here.run_id,
        node_name=_name_of(scene, here),
        host_coordinator=plan.hosts,
        connect_timeout_s=600.0,
        join_timeout_s=600.0,
        # Nodes that nobody reaches have no coordinator for long, and must not give up before.
        coordinator_lost_after_s=600.0 if plan.lasting == ISOLATED else LOST_AFTER_S,
        stop_s=plan.stop_s,
        orphan_s=plan.orphan_s,
        hang_timeout_s=plan.hang_timeout_s or None,
        **{"lease_ttl_s": plan.lease_ttl_s, **mixed},
    )


def _name_of(scene: Scene, here: StartedNode) -> str | None:
    """The name that a user gives to a node; None: it makes one."""
    draw = random.Random(f"{scene.world.seed}/{here.name}/name")
    if scene.plan.has_unnamed and draw.random() < 0.7:
        return None
    return f"node-{here.index}" if scene.plan.same_names else here.name


def run_settings_of(scene: Scene, here: StartedNode) -> RunSettings:
    """The settings of the run that a node brings. In some plans a few nodes bring others."""
    settings = scene.run_settings
    if not (scene.plan.has_unlike and scene.is_chaotic) or here.process.random.random() < 0.6:
        return settings
    more = min(settings.max_nodes, settings.min_nodes + 1)
    unlike = here.process.random.choice(
        ({"min_nodes": more}, {"settle_s": 0.1}, {"last_call_s": settings.last_call_s + 0.5})
    )
    return msgspec.structs.replace(settings, **unlike)


async def _live(scene: Scene, here: StartedNode) -> None:
    ledger = await opened_ledger(scene, here)
    workers = 1 + here.index % scene.plan.workers_max
    settings = settings_of(scene, here)
    run = here.settings = run_settings_of(scene, here)
    node = here.node = Node(
        settings,
        run,
        workers=workers,
        ledger=ledger,
        on_asked_to_leave=lambda reason: _wanted_to_leave(scene, here, reason),
    )
    scene.tell(Oracle.joins, here, node)
    try:
        await node.open()
        while True:
            found = await node.next_round(Address(here.host, BOOTSTRAP_PORT))
            if found is None:
                break
            token = (found.head.term, found.head.number)
            scene.say(here.name, f"is rank {found.seat.node_rank} in {token}")
            scene.given(here, token, found.head.digest)
            here.is_working = True
            if scene.plan.has_steps:
                has_finished = await _take_steps(scene, here, node, token)
            else:
                has_finished = await _work(scene, here, node, token)
            here.is_working = False
            if has_finished:
                scene.say(here.name, "its workers have finished")
                node.done()
                here.has_finished = True
                if not scene.plan.leaves:
                    await _until_over(node)
                break
            if node.change is not None:
                scene.round_ended(here, node.change)
            if here.drains_until_s is not None:
                # It has stopped at the step on which all agreed, or its round has ended before.
                break
            hangs_s, here.hangs_s = here.hangs_s, 0.0
            await asyncio.sleep(here.process.random.random() * scene.plan.stop_s + hangs_s)
        here.end = str(node.closed)
        scene.say(here.name, f"ends: {here.end}")
        if node.closed is not None:
            scene.run_ended(here, node.closed)
    finally:
        node.goodbye("its program has ended")
        await node.aclose()
        if node.gone is not None and node.gone.message == left_run().message:
            scene.tell(Oracle.left, here)
        await ledger.aclose()


async def _take_steps(scene: Scene, here: StartedNode, node: Node, token: Token) -> bool:
    """Train until the round ends, or all workers have stopped. True if they have finished."""
    loop = asyncio.get_running_loop()
    training = loop.create_task(StepWorkers(scene, here, node, token).run())
    calling = loop.create_task(_make_calls(scene, here, node, token))
    try:
        await asyncio.wait({training, calling}, return_when=asyncio.FIRST_COMPLETED)
        if training.done():
            training.result()
        return calling.done() and calling.result()
    finally:
        training.cancel()
        calling.cancel()


def _wanted_to_leave(scene: Scene, here: StartedNode, reason: str) -> None:
    """Agree on a step with the others, if all take part; else leave at once."""
    left_s = here.process.random.uniform(*LEFT_S)
    if here.drains_until_s is not None:
        return
    if not drain(scene, here, left_s, reason):
        _asked_to_leave(here, reason)
        if scene.plan.has_steps:
            scene.start_again(here.index, 5.0)
        return
    loop = asyncio.get_running_loop()
    loop.call_later(left_s, _asked_to_leave, here, reason)
    scene.start_again(here.index, left_s + 5.0)


def _asked_to_leave(here: StartedNode, reason: str) -> None:
    """As an agent: say at once that it departs, and leave when the workers have stopped."""
    if here.node is not None and not here.is_leaving:
        here.node.depart(reason)
        here.is_leaving = True
        here.process.soon(here.task.cancel if here.task is not None else lambda: None)


async def _until_over(node: Node) -> None:
    while node.closed is None and node.gone is None:  # noqa: ASYNC110 - it polls
        await asyncio.sleep(0.5)


async def _work(scene: Scene, here: StartedNode, node: Node, token: Token) -> bool:
    """Call the store until the round ends. True if the workers have finished."""
    waits, plan = None, scene.plan
    if plan.is_store or plan.has_long_calls:
        wait = vain_wait if plan.has_long_calls else drawn_wait
        beside = _wait_beside(scene, here, node, token, wait)
        waits = asyncio.get_running_loop().create_task(beside)
    try:
        return await _make_calls(scene, here, node, token)
    finally:
        if waits is not None:
            waits.cancel()


async def _wait_beside(
    scene: Scene,
    here: StartedNode,
    node: Node,
    token: Token,
    wait: Callable[[random.Random], Drawn],
) -> None:
    """Another worker of the node waits for keys, one wait after the other."""
    seed = scene.world.seed
    patience = random.Random(f"{seed}/{here.name}/patience")
    draw = random.Random(f"{seed}/patience")
    is_impatient = scene.plan.is_store and draw.random() < IMPATIENT
    while node.round is not None and node.change is None and node.gone is None:
        await asyncio.sleep(here.process.random.random())
        limit_s = patience.choice((0.01, 0.3, 1.0)) if is_impatient else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await make(scene, here, node, token, wait(here.process.random))


async def _make_calls(scene: Scene, here: StartedNode, node: Node, token: Token) -> bool:
    draw = here.process.random
    if draw.random() < 0.2:
        await _look_at_members(scene, here, node, token)
    while node.change is None and node.closed is None and node.gone is None:
        if scene.is_quiet:
            await asyncio.sleep(QUIET_S)
            continue
        await asyncio.sleep(draw.expovariate(scene.plan.calls_per_s))
        ends = not scene.is_chaotic and scene.plan.ends and draw.random() < 0.1
        if ends or here.should_finish:
            return True
        await make(scene, here, node, token, drawn(scene, here, node))
    if node.gone is not None:
        raise node.gone
    return False


async def _look_at_members(scene: Scene, here: StartedNode, node: Node, token: Token) -> None:
    """Ask for the table of the round, as World.members does."""
    try:
        members = await node.members(5.0)
    except (CoordinatorError, RoundBrokenError):
        return
    given = node.round
    if given is not None and (given.head.term, given.head.number) == token:
        scene.tell(Oracle.members_told, here, token, given, members)


async def serve(scene: Scene, here: StartedNode) -> None:
    """A replica: it serves coordinators on the ledger, for all runs, until it is killed."""
    while True:
        ledger = await opened_ledger(scene, here)
        config = CoordinatorConfig(
            lease_ttl_s=scene.plan.lease_ttl_s,
            yield_after_s=60.0,
            closed_run_keep_s=scene.plan.closed_run_keep_s,
            empty_run_keep_s=scene.plan.empty_run_keep_s,
        )
        try:
            front = await network.here().serve(config, ledger=ledger, advertised=(here.host,))
        except LedgerError as error:
            scene.say(here.name, f"cannot serve yet: {error.message}")
            await ledger.aclose()
            await asyncio.sleep(1.0)
            continue
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            here.is_over = True
            await front.aclose()
            await ledger.aclose()


PROGRAMS: Final[dict[str, Program]] = {"node": _native}
