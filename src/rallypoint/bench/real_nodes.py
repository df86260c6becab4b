"""Real nodes of one run, in processes that are forked from this one and can be killed separately.

    python -m rallypoint.bench.real_nodes FILE SPECIFICATION

SPECIFICATION is a `Specification` in JSON. Each process has one node or more. It logs the `pid` of
each node; its nodes log their events (logged_node.py), `met` when they have a round, and `gone`
when they have given up. They stay until stdin ends or they are killed. SIGUSR1 makes a worker of
each node of a process fail, like a worker after the loss of a peer.

A process is forked after everything is imported, and before there is an event loop or a socket. So
a hundred of them start within seconds and share the memory of what they have imported, and the
kernel closes each one's connection when the process ends. Virtual nodes (virtual.py) cannot be used
here: they have one address, and do not look for another coordinator.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from rallypoint.bench import child
from rallypoint.bench.counting import loop_name, new_event_loop
from rallypoint.bench.event_log import EventWriter
from rallypoint.bench.logged_node import logged
from rallypoint.client.node import Node
from rallypoint.core.values import Address, Failure, FailureKind, RunSettings
from rallypoint.errors import RallypointError
from rallypoint.settings import NodeSettings, parse_endpoint

RUN_ID: Final = "failover"
BOOTSTRAP: Final = Address("127.0.0.1", 1)
"""Nothing listens there."""


class Specification(msgspec.Struct, frozen=True, kw_only=True):
    """Which nodes there are, with `per_process` of them in each process, and what they do.

    `may_host`: a node may host the run's coordinator. `regroups`: a node asks for the next round
    as soon as its round has ended, as if its workers stopped at once; otherwise it logs `ended`.
    `local_addr`: where other nodes reach them. `run`: further settings of the run.
    """

    endpoint: str
    names: tuple[str, ...]
    min_nodes: int
    max_nodes: int
    per_process: int = 1
    run_id: str = RUN_ID
    may_host: bool = False
    regroups: bool = False
    local_addr: str = "127.0.0.1"
    run: dict[str, Any] = {}


def regrouping(
    endpoint: str, names: tuple[str, ...], run_id: str, nodes: int, **more: Any
) -> Specification:
    """Some of the `nodes` nodes of a run, which ask for the next round whenever a round has ended.

    The first round has all nodes, and begins when all are ready. `more`: other fields.
    """
    return Specification(
        endpoint=endpoint,
        names=names,
        run_id=run_id,
        max_nodes=nodes,
        regroups=True,
        run={"expected_nodes": nodes},
        **more,
    )


def node(
    kind: type[Node],
    name: str,
    run_id: str,
    total: int,
    endpoint: str,
    *,
    least: int | None = None,
    may_host: bool = False,
    local_addr: str = "127.0.0.1",
    run: dict[str, Any] | None = None,
) -> Node:
    """One node of a run with at most `total` and at least `least` nodes (default: `total`)."""
    settings = NodeSettings(
        endpoint=parse_endpoint(endpoint),
        run_id=run_id,
        node_name=name,
        local_addr=local_addr,
        host_coordinator="auto" if may_host else "no",
    )
    least = total if least is None else least
    chosen = {"min_nodes": least, "max_nodes": total, "max_restarts": None, **(run or {})}
    return kind(settings, RunSettings(**chosen))


class _Lives:
    """The nodes of one process."""

    def __init__(self, log: EventWriter, what: Specification, names: Sequence[str]) -> None:
        self._log, self._what = log, what
        kind = logged(log)
        self._nodes = [
            node(
                kind,
                name,
                what.run_id,
                what.max_nodes,
                what.endpoint,
                least=what.min_nodes,
                may_host=what.may_host,
                local_addr=what.local_addr,
                run=what.run,
            )
            for name in names
        ]

    async def live(self) -> None:
        """Run the nodes until stdin ends, which is the end of the measurement."""
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), os._exit, 0)
        loop.add_signal_handler(signal.SIGUSR1, self._fail)
        for each in self._nodes:
            self._log.write("pid", name=each.info.name, pid=os.getpid())
        await asyncio.gather(*(self._live(each) for each in self._nodes))
        await asyncio.Event().wait()

    async def _live(self, one: Node) -> None:
        name = one.info.name
        is_news = asyncio.Event()
        one.on_ended = lambda change: is_news.set()
        one.on_gone = lambda error: is_news.set()
        one.on_closed = lambda close: is_news.set()
        try:
            await one.open()
            while True:
                formed = await one.next_round(BOOTSTRAP)
                if formed is None:
                    self._log.write("gone", name=name, why=f"closed: {one.closed}")
                    return
                self._log.write("met", name=name, round=formed.head.number)
                while one.change is None and one.gone is None and one.closed is None:
                    is_news.clear()
                    await is_news.wait()
                if not self._what.regroups:
                    why = one.gone or one.closed or one.change
                    self._log.write("ended", name=name, why=str(why))
                    return
        except RallypointError as error:
            self._log.write("gone", name=name, why=str(error))

    def _fail(self) -> None:
        failure = Failure(FailureKind.COMMUNICATION, "a peer closed the connection")
        for each in self._nodes:
            if each.round is not None and each.change is None:
                each.failed(failure)


def _be_one(path: str, what: Specification, names: Sequence[str], parent: int) -> None:
    child.end_with(parent)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_Lives(EventWriter(path), what, names).live())


def main(path: str, specification: str) -> None:
    """See above."""
    what = msgspec.json.decode(specification, type=Specification)
    loop_name()  # Load uvloop once, because every child needs it.
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # A killed child leaves no zombie.
    parent = os.getpid()
    for first in range(0, len(what.names), what.per_process):
        if os.fork() == 0:
            try:
                _be_one(path, what, what.names[first : first + what.per_process], parent)
            finally:
                os._exit(1)  # The loop below is the parent's.
    # The children's event loops may have set the pipe to non-blocking for all that share it.
    stdin = sys.stdin.fileno()
    is_open = True
    while is_open:
        select.select([stdin], [], [])
        is_open = bool(os.read(stdin, 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
