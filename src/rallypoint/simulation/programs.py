"""What the nodes of a job do: a small program stands in for the agent and its workers.

To add one: write an async function of (scene, started node) that lives until its node has ended,
tells the scene what it is given (`given`, `called`, `answered`), and keeps `is_working`,
`has_finished`, `is_over` and `end` of the started node right. Put it into `PROGRAMS`, under the
name that `Plan.program` gives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from rallypoint.client.node import Node
from rallypoint.client.waiting import left_run
from rallypoint.core.store import Add, CompareSet, Get, Set, StoreOp
from rallypoint.core.values import Address, Failure, FailureKind
from rallypoint.errors import CoordinatorError, JoinTimeoutError, LedgerError, RefusedError
from rallypoint.ledger.contract import Ledger
from rallypoint.settings import NodeSettings, parse_endpoint
from rallypoint.simulation.scene import Scene, StartedNode, Token

Program = Callable[[Scene, StartedNode], Coroutine[Any, Any, None]]
BOOTSTRAP: Final = Address("10.0.0.1", 29_500)


async def _native(scene: Scene, here: StartedNode) -> None:
    """The native API's node: takes rounds, calls the round's store, fails or finishes."""
    try:
        await _live(scene, here)
    except (CoordinatorError, LedgerError) as error:
        here.end = f"{type(error).__name__}: {error.message}"
        scene.say(here.name, here.end)
        is_fine = isinstance(error, JoinTimeoutError | RefusedError) or scene.is_chaotic
        if not is_fine:
            scene.broke("end", f"{here.name} gave up in peace: {here.end}")
    finally:
        here.is_over, here.is_working = True, False


async def opened_ledger(scene: Scene, here: StartedNode) -> Ledger:
    """The ledger of this node, once its engine answers."""
    ledger = scene.ledger.ledger(here.process)
    while True:
        try:
            await ledger.open()
        except LedgerError:
            await asyncio.sleep(1.0)
        else:
            return ledger


async def _live(scene: Scene, here: StartedNode) -> None:
    ledger = await opened_ledger(scene, here)
    settings = NodeSettings(
        endpoint=parse_endpoint(scene.ledger.endpoint),
        run_id=here.run_id,
        node_name=here.name,
        connect_timeout_s=600.0,
        join_timeout_s=600.0,
        lease_ttl_s=scene.plan.lease_ttl_s,
    )
    node = here.node = Node(settings, scene.run_settings, ledger=ledger)
    scene.tell(lambda oracle: oracle.joins(here, node))
    await node.open()
    try:
        while True:
            found = await node.next_round(BOOTSTRAP)
            if found is None:
                break
            token = (found.head.term, found.head.number)
            scene.say(here.name, f"is rank {found.seat.node_rank} in {token}")
            scene.given(here, token, found.head.digest)
            here.is_working = True
            has_finished = await _work(scene, here, node, token)
            here.is_working = False
            if has_finished:
                node.done()
                here.has_finished = True
                await _until_over(node)
                break
            if node.change is not None:
                scene.round_ended(here, node.change)
        here.end = str(node.closed)
        scene.say(here.name, f"ends: {here.end}")
        if node.closed is not None:
            scene.run_ended(here, node.closed)
    finally:
        node.goodbye("its program has ended")
        await node.aclose()
        if node.gone is not None and node.gone.message == left_run().message:
            scene.tell(lambda oracle: oracle.left(here))
        await ledger.aclose()


async def _until_over(node: Node) -> None:
    while node.closed is None and node.gone is None:  # noqa: ASYNC110 - it polls
        await asyncio.sleep(0.5)


async def _work(scene: Scene, here: StartedNode, node: Node, token: Token) -> bool:
    """Call the store until the round ends. True if the workers have finished."""
    draw = here.process.random
    while node.change is None and node.closed is None and node.gone is None:
        await asyncio.sleep(draw.expovariate(2.0))
        wants = draw.random()
        if scene.is_chaotic and wants < 0.02:
            scene.say(here.name, "its worker fails")
            node.failed(Failure(FailureKind.EXCEPTION, "boom"))
        elif not scene.is_chaotic and scene.plan.ends and wants < 0.1:
            scene.say(here.name, "its workers have finished")
            return True
        else:
            await _call(scene, here, node, token)
    if node.gone is not None:
        raise node.gone
    return False


async def _call(scene: Scene, here: StartedNode, node: Node, token: Token) -> None:
    draw, key = here.process.random, here.process.random.choice(("a", "b"))
    value = b"%d" % next(scene.serial)
    operation: StoreOp = draw.choice(
        (Add("n" + key, 1), Add("n" + key, 1), Set(key, value), CompareSet(key, b"", value))
    )
    limit_s = draw.choice((None, 2.0, 30.0))
    if draw.random() < 0.2:
        operation, limit_s = Get(key), 2.0  # It waits for a key that may never be set.
    call = next(scene.serial)
    scene.tell(lambda oracle: oracle.called(here, token, call, operation))
    result = await node.call(operation, limit_s)
    scene.tell(lambda oracle: oracle.answered(here, token, call, result))


PROGRAMS: Final[dict[str, Program]] = {"node": _native}
