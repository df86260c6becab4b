"""Counts how far a reader of the two journeys in docs/journey.md has to jump.

    python -m tools.journey             the table "all calls" of that page
    python -m tools.journey --calls     also each call, in order, under the name of its file

Each journey runs with a coordinator, a node and its program in this process. A profile function
logs each call of a Python function of `rallypoint`. A file is entered when a call of a thread goes
to it from another file. An entry into a file that was entered before is a return. The calls are
taken thread by thread, because the order between threads differs from run to run. The smallest of
several runs counts, because a timer may be in one of them.

This file must not have limits for the counts; tests/test_journey.py has them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import rallypoint
from rallypoint.client.agent_client import AgentClient
from rallypoint.client.blocking import Portal, Store
from rallypoint.client.node import Node
from rallypoint.client.run_client import open_node
from rallypoint.client.world import Run
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.values import Address, RunSettings
from rallypoint.launch.channel import Channel, Requests
from rallypoint.ledger.file import FileLedger
from rallypoint.net import bind
from rallypoint.settings import NodeSettings, WorkerChannel, parse_endpoint

RUNS = 5
LIMIT_S = 60.0
"""For one run of a journey, which takes less than a second on an idle machine."""
_PACKAGE = f"{Path(rallypoint.__file__).parent}/"


@dataclass(frozen=True)
class Call:
    thread: int
    file: str  # as client/node.py
    function: str


class Recorder:
    """Logs the calls of all threads that start after it, while `recording`."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._is_on = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[Recorder]:
        """Hook the calls of this thread, and of threads that start in this context."""
        before, threads_before = sys.getprofile(), threading.getprofile()
        threading.setprofile(self._heard)
        sys.setprofile(self._heard)
        try:
            yield self
        finally:
            sys.setprofile(before)
            threading.setprofile(threads_before)

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """The calls in this context."""
        self._calls, self._is_on = [], True
        try:
            yield self._calls
        finally:
            self._is_on = False

    def _heard(self, frame: FrameType, event: str, argument: object) -> None:
        if self._is_on and event == "call":
            code = frame.f_code
            file = code.co_filename.removeprefix(_PACKAGE)
            if file != code.co_filename:
                self._calls.append(Call(threading.get_ident(), file, code.co_qualname))


@dataclass(frozen=True)
class Journey:
    """The calls of one run of a journey, in the order of their time."""

    calls: list[Call]

    def by_thread(self) -> list[tuple[str, list[Call]]]:
        """Each file that is entered, as often as it is, with the calls there until it is left.

        The thread with the first call comes first.
        """
        first: dict[int, int] = {}
        for number, call in enumerate(self.calls):
            first.setdefault(call.thread, number)
        ordered = sorted(self.calls, key=lambda call: first[call.thread])
        places = groupby(ordered, key=lambda call: (call.thread, call.file))
        return [(file, list(calls)) for (_, file), calls in places]

    def entered(self) -> list[str]:
        """Each file that is entered, as often as it is."""
        return [file for file, _ in self.by_thread()]

    @property
    def files(self) -> int:
        return len(set(self.entered()))

    @property
    def returns(self) -> int:
        return len(self.entered()) - self.files


@contextlib.asynccontextmanager
async def _coordinator(folder: str | None) -> AsyncIterator[tuple[NodeSettings, RunSettings]]:
    """A coordinator, and the settings of the only node of its run.

    The run is kept in memory, or in a ledger in the folder.
    """
    ledger = FileLedger(folder) if folder is not None else None
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    async with CoordinatorServer(ledger=ledger) as server:
        await server.start([listening], (Address("127.0.0.1", port),))
        own = NodeSettings(
            run_id="job", node_name="node", endpoint=parse_endpoint(f"http://127.0.0.1:{port}")
        )
        yield own, RunSettings(min_nodes=1, max_nodes=1)


async def ready(recorder: Recorder) -> Journey:
    """A program that is a node asks for its next World."""
    async with _coordinator(None) as (own, limits), Run(await open_node(own, limits)) as run:
        with recorder.recording() as calls:
            world = await run.next_world()
        assert world is not None
        assert (world.rank, world.size) == (0, 1)
    return Journey(calls)


async def store_set(recorder: Recorder, portal: Portal, folder: str | None = None) -> Journey:
    """A worker calls `store.set`. Its agent's node and channel are in this process, too."""
    async with contextlib.AsyncExitStack() as opened:
        own, limits = await opened.enter_async_context(_coordinator(folder))
        node = Node(own, limits)
        opened.push_async_callback(node.aclose, linger=False)
        await node.open()
        found = await node.next_round(Address("127.0.0.1", 1))
        assert found is not None
        channel = Channel(node, Requests(lambda: None, lambda reason: None, lambda how, why: None))
        opened.push_async_callback(channel.aclose)
        await channel.start()
        secret = channel.begin_round(found)
        agent = WorkerChannel(
            agent=channel.path,
            secret=secret,
            run_id=own.run_id,
            node="node",
            round=found.head.number,
            term=found.head.term,
            rank=0,
            local_rank=0,
            world_size=1,
            local_world_size=1,
            node_rank=0,
            nodes=1,
        )
        run = await opened.enter_async_context(Run(await AgentClient.open(agent)))
        world = await run.next_world()
        assert world is not None
        store = Store(portal, world.store)
        with recorder.recording() as calls:
            await asyncio.to_thread(store.set, "key", b"value")
    return Journey(calls)


def journeys() -> Iterator[tuple[str, Journey]]:
    """The name of each journey in docs/journey.md, and its smallest run. Takes some seconds."""
    recorder = Recorder()
    with recorder.installed():
        portal = Portal()

        def smallest(travel: Callable[[], Coroutine[Any, Any, Journey]]) -> Journey:
            # The first run imports modules and fills caches.
            runs = [portal.run(travel(), LIMIT_S) for _ in range(1 + RUNS)][1:]
            return min(runs, key=lambda run: (run.files, run.returns))

        yield "`ready` to a rank, in memory", smallest(lambda: ready(recorder))
        yield "`store.set`, in memory", smallest(lambda: store_set(recorder, portal))
        with tempfile.TemporaryDirectory() as root:
            folders = (f"{root}/{number}" for number in itertools.count())
            travel = partial(store_set, recorder, portal)
            yield "`store.set`, on a folder", smallest(lambda: travel(next(folders)))


def main() -> None:
    """Print the table, and each call if that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", action="store_true", help="print each call, too")
    shows_calls = parser.parse_args().calls
    logging.disable(logging.CRITICAL)
    found = list(journeys())
    for name, journey in found if shows_calls else ():
        print(name)
        for file, calls in journey.by_thread():
            print(f"  {file}")
            print("".join(f"      {call.function}\n" for call in calls), end="")
        print()
    print("| all calls | files | returns |")
    print("| --- | ---: | ---: |")
    for name, journey in found:
        print(f"| {name} | {journey.files} | {journey.returns} |")


if __name__ == "__main__":
    main()
