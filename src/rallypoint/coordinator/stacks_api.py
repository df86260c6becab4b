"""Where the workers of a run stand, on demand: the coordinator asks the nodes of the round.

It changes nothing. It needs the right of an operator, because stacks show names of a program's
code, and each request costs all nodes some work. So it is in the audit log, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from aiohttp import web

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.http_api import answer, json_error
from rallypoint.core import stacks
from rallypoint.core.roster import Bucket
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.values import Phase, named

ANSWERS_WITHIN_S: Final = 2.5
"""How long the nodes have. A command waits 5 s for its answer."""


async def told(run: HostedRun, only: str) -> web.Response:
    """The answer: who stands where. `only`: the name of one node; "" for all of the round."""
    membership = run.membership
    if membership.phase_of_work is not Phase.ACTIVE:
        what = f"run {run.run_id!r} has no active round, so no worker runs"
        return json_error(409, what, "`rallypoint status` says what it waits for")
    names = [member.name for member in membership.roster.members(Bucket.IN_ROUND)]
    if only:
        if only not in names:
            what = f"node {only!r} has no worker in round {membership.number}"
            return json_error(409, what, "`rallypoint status` lists the nodes of the round")
        names = [only]
    request_id, question = run.stacks.ask(run.stamp, names)
    try:
        if question.waits_for:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWERS_WITHIN_S):
                    await question.is_answered.wait()
    finally:
        run.stacks.close(request_id)
    progress = membership.progress
    is_known = bool(progress.nodes) and progress.round == membership.number
    silent = [*question.waits_for, *question.cannot]
    nodes = [
        {"node": name, "workers": [_worker(each) for each in question.told[name]]}
        for name in names
        if name in question.told
    ]
    return answer(
        {
            "run_id": run.run_id,
            "round": membership.number,
            "summary": stacks.summary(question.told, silent),
            "step": progress.step if is_known else None,
            "nodes": nodes,
            "silent": list(question.waits_for),
            "cannot": list(question.cannot),
        }
    )


def _worker(each: WorkerStack) -> dict[str, Any]:
    return named(each)
