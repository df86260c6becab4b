"""Several nodes and their coordinator in one process, for tests of programs that use Rallypoint.

Each node has its own thread with its own event loop and its own connection, and the coordinator is
the one of `rallypoint serve`. So a node can be killed and frozen as a process can: its connection
ends without a goodbye, or stays open while nothing is read and no heartbeat is sent.

What must not be here: a second implementation of a node, and anything that needs pytest.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future, wait
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from rallypoint import errors
from rallypoint.client import blocking
from rallypoint.client import world as aio
from rallypoint.client.run_client import NodeRunClient
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.values import Change, ChangeKind, RunSettings
from rallypoint.net import bind
from rallypoint.settings import NodeSettings, parse_endpoint

T = TypeVar("T")

TIMEOUT_S: Final = 30.0
"""How long the calls of a cluster wait by default, in seconds."""
LAST_CALL_S: Final = 60.0
"""So that a slow start does not make a round without some of the nodes."""
NODES_MAX: Final = 64
_LOOK_S: Final = 0.01
_END_S: Final = 10.0


class NodeKilledError(errors.RallypointError):
    """A call of a node that `ClusterNode.kill` has killed. In a process, no code would run."""


class _Thread(blocking.Portal):
    """The thread and event loop of one node, or of the coordinator. It can end."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.is_killed = False
        self._lock = threading.Lock()
        """Between a call that begins and the death of the node: it is known, or is not begun."""
        self._open: set[Future[Any]] = set()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """See Portal.run. Raises NodeKilledError if the node is killed, also meanwhile."""
        try:
            return super().run(work, timeout_s)
        except CancelledError:
            if self.is_killed:
                raise self._killed() from None
            raise

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """See Portal.start. Raises NodeKilledError."""
        with self._lock:
            if self.is_killed:
                work.close()
                raise self._killed()
            future = super().start(work)
            self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def mark_killed(self) -> None:
        """No call begins from now on."""
        with self._lock:
            self.is_killed = True

    def cancel_all(self) -> None:
        """End the calls that wait. For the thread itself."""
        for future in list(self._open):
            future.cancel()

    def apart(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Like `start`, but `cancel_all` does not end it."""
        return super().start(work)

    def end(self) -> None:
        """End the thread. Its work must have ended."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_S)
        if not self._thread.is_alive():
            self._loop.close()

    def _killed(self) -> NodeKilledError:
        return NodeKilledError(f"node {self.name!r} was killed by the test")


class _Connections:
    """A SocketKeeper that has the connections of one node, to end them as the kernel would."""

    def __init__(self) -> None:
        self._open: list[Any] = []

    def keep(self, connection: socket.socket) -> Callable[[], None]:
        """See SocketKeeper."""
        self._open.append(connection)
        return lambda: self._open.remove(connection)

    def end(self) -> None:
        """Send a FIN on each: a coordinator sees the end of a process."""
        for sock in self._open:
            sock.ends_in_order = True
            sock.shutdown(socket.SHUT_RDWR)


class ClusterNode:
    """One node of a cluster. `run`: its Run, as `rallypoint.join` returns it.

    Any thread may call.
    """

    run: blocking.Run

    def __init__(self, name: str, settings: NodeSettings, run: RunSettings) -> None:
        """For Cluster."""
        self.name = name
        self._thread = _Thread(name)
        self._connections = _Connections()
        self._client = NodeRunClient(settings, run, self._connections)
        self._aio = aio.Run(self._client)
        self._thaw: threading.Event | None = None

    def __repr__(self) -> str:
        state = "killed" if self.is_killed else "frozen" if self.is_frozen else "alive"
        return f"<ClusterNode {self.name} ({state})>"

    @property
    def is_killed(self) -> bool:
        """Whether `kill` was called."""
        return self._thread.is_killed

    @property
    def is_frozen(self) -> bool:
        """Whether the node is frozen now."""
        return self._thaw is not None

    @property
    def world(self) -> blocking.World | None:
        """The node's last world, from `run` or from `Cluster.meet`."""
        return self.run.world

    def kill(self) -> None:
        """End the node as SIGKILL ends a process: at once, without a goodbye. Idempotent.

        Calls that wait, and all later ones, raise NodeKilledError. The node's own world has ended
        then, so that a program that waits for its end goes on to such a call.
        """
        if self.is_killed:
            return
        self._thread.mark_killed()
        if self._thaw is None:
            self._thread.apart(self._die()).result(_END_S)
        else:
            self.thaw()  # It dies there, before it does anything else.
        blocking.forget(self.run)

    def freeze(self) -> None:
        """Stop the node as SIGSTOP stops a process. Its connection stays open. Idempotent.

        Calls that need the coordinator wait until `thaw`.
        """
        if self.is_killed:
            raise errors.UsageError(f"node {self.name!r} is killed, so it cannot be frozen")
        if self._thaw is None:
            self._thaw, stopped = threading.Event(), Future[None]()
            self._frozen = self._thread.apart(self._stand_still(stopped, self._thaw))
            stopped.result(_END_S)

    def thaw(self) -> None:
        """Let a frozen node go on. Idempotent."""
        thaw, self._thaw = self._thaw, None
        if thaw is not None:
            thaw.set()
            self._frozen.result(_END_S)

    def close(self) -> None:
        """Leave the run in order, and end the thread. Idempotent."""
        self.thaw()
        try:
            self.run.aclose()
        finally:
            self._thread.end()

    async def _stand_still(self, stopped: Future[None], thaw: threading.Event) -> None:
        """Block the event loop: neither timers nor messages are served."""
        stopped.set_result(None)
        thaw.wait()
        if self.is_killed:
            await self._die()

    async def _die(self) -> None:
        # Up to the first await nothing else runs in this thread: nothing is sent, and no search for
        # the coordinator begins.
        self._connections.end()
        self._thread.cancel_all()
        world = self._aio.world
        if world is not None and world.change is None:
            killed = "this node was killed by the test"
            world._ended(Change(ChangeKind.NODE_LOST, world.number, (self.name,), 1, killed))
        await self._client.drop()

    # -- for Cluster ------------------------------------------------------------------------------

    def opening(self) -> Future[None]:
        """Start to join."""
        return self._thread.start(self._client.open())

    def opened(self) -> None:
        """The node has joined."""
        self.run = blocking.Run(self._thread, self._aio)

    def meeting(self) -> Future[aio.World | None]:
        """Ask for the next world."""
        return self._thread.start(self._aio.next_world())

    def abandon(self) -> None:
        """End a node that has not joined."""
        self._thread.apart(self._die()).result(_END_S)
        self._thread.end()


class Cluster:
    """A coordinator and its nodes, in this process. Use it as `with Cluster() as cluster:`.

    `endpoint` and `run_id`: for programs that join by themselves.
    """

    def __init__(self, run_id: str = "") -> None:
        self.run_id = run_id or f"test-{secrets.token_hex(4)}"
        self.nodes: list[ClusterNode] = []
        """All nodes in the order in which they joined, also those that are killed."""
        self._settings = RunSettings()
        self._host = _Thread("coordinator")
        sock = bind("127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self._server = self._host.run(_served(sock))

    def __repr__(self) -> str:
        return f"<Cluster {self.run_id} at {self.endpoint}: {len(self.alive)} nodes alive>"

    @property
    def alive(self) -> list[ClusterNode]:
        """The nodes that are not killed. Some of them may be frozen."""
        return [each for each in self.nodes if not each.is_killed]

    def start(self, count: int, *, timeout_s: float = TIMEOUT_S, **settings: Any) -> None:
        """Let the first nodes join, all at once, and wait until they have.

        Args:
            count: the number of nodes. The first round waits for all of them.
            timeout_s: how long this may take, in seconds.
            settings: the fields of RunSettings, such as `min_nodes` (without it 1), `max_nodes`
                (64) and `lost_after_s`. Durations are in seconds. `max_restarts` is unlimited
                unless it is given.

        Raises:
            TimeoutError: not all have joined.
            UsageError: the cluster has nodes already.
            ValueError: a setting is not allowed.
        """
        if self.nodes:
            raise errors.UsageError("the cluster has started", hint="add a node with `join`")
        defaults: dict[str, Any] = {
            "max_nodes": NODES_MAX,
            "max_restarts": None,
            "expected_nodes": count if count >= settings.get("min_nodes", 1) else None,
            "last_call_s": LAST_CALL_S,
            "scale_up_delay_s": 0.05,
        }
        self._settings = RunSettings(**defaults | settings)
        self._join(count, timeout_s)

    def join(self, *, timeout_s: float = TIMEOUT_S) -> ClusterNode:
        """Let one more node join. If a round is active, its members learn of it soon.

        Raises TimeoutError.
        """
        return self._join(1, timeout_s)[0]

    def meet(
        self, nodes: Sequence[ClusterNode] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> list[blocking.World]:
        """Ask for the next world on each of these nodes, and wait for all of them.

        Args:
            nodes: None: those that are neither killed nor frozen.
            timeout_s: how long it may take, in seconds.

        Returns the world of each node, in the same order.

        Raises:
            TimeoutError: not all have a world; the text says why.
            RallypointError: a node cannot have one.
        """
        asked = self._able() if nodes is None else list(nodes)
        futures = [each.meeting() for each in asked]
        _, late = wait(futures, timeout_s)
        if late:
            problem = self._problem("no round was formed", timeout_s)
            for future in futures:
                future.cancel()
            raise problem
        found = [future.result() for future in futures]
        worlds = [
            each.run._given(world)
            for each, world in zip(asked, found, strict=True)
            if world is not None
        ]
        if len(worlds) < len(asked):
            closed = next((str(each.run.closed) for each in asked if each.run.closed), "left")
            raise errors.UsageError(f"there is no other world: the run is over: {closed}")
        return worlds

    def wait_round(
        self, size: int | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> list[blocking.World]:
        """Wait until all nodes that are neither killed nor frozen are in one active round.

        For nodes whose programs ask for their worlds themselves. `size`: how many workers the round
        must have; None: any number. Returns the world of each node.

        Raises:
            TimeoutError: it did not come to that; the text says why.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            worlds = [each.world for each in self._able()]
            active = [each for each in worlds if each is not None and each.change is None]
            rounds = {(each.term, each.number, each.size) for each in active}
            if len(active) == len(worlds) and len(rounds) == 1 and size in (None, active[0].size):
                return active
            if time.monotonic() > deadline_s:
                raise self._problem("the nodes are not in one round", timeout_s)
            time.sleep(_LOOK_S)

    def close(self) -> None:
        """End all nodes and the coordinator. Idempotent."""
        nodes, self.nodes = self.nodes, []
        for node in nodes:
            node.close()
        server, self._server = self._server, None
        if server is not None:
            self._host.run(server.aclose(), _END_S)
            self._host.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _able(self) -> list[ClusterNode]:
        return [each for each in self.alive if not each.is_frozen]

    def _join(self, count: int, timeout_s: float) -> list[ClusterNode]:
        first = len(self.nodes)
        found = [
            ClusterNode(name, self._node_settings(name, timeout_s), self._settings)
            for name in (f"node-{first + index}" for index in range(count))
        ]
        futures = [each.opening() for each in found]
        wait(futures, timeout_s)
        problem = next((e for f in futures if f.done() and (e := f.exception())), None)
        if problem is None and not all(future.done() for future in futures):
            problem = TimeoutError(f"not all of {count} nodes have joined within {timeout_s:g} s")
        if problem is not None:
            for node in found:
                node.abandon()
            raise problem
        for node in found:
            node.opened()
        self.nodes += found
        return found

    def _node_settings(self, name: str, timeout_s: float) -> NodeSettings:
        return NodeSettings(
            endpoint=parse_endpoint(self.endpoint),
            run_id=self.run_id,
            node_name=name,
            insecure=True,
            connect_timeout_s=max(timeout_s, 1.0),
        )

    def _problem(self, what: str, timeout_s: float) -> TimeoutError:
        """The error of a wait, with what the coordinator says of it."""
        why = "no node can ask for the reason"
        for node in self._able():
            try:
                waiting = node.run.waiting
            except errors.RallypointError as error:
                why = f"{node.name}: {error.message}"
            else:
                why = str(waiting) if waiting else f"{node.name} is in a round"
                break
        return TimeoutError(f"{what} within {timeout_s:g} s: {why}")


async def _served(sock: socket.socket) -> CoordinatorServer | None:
    server = CoordinatorServer()
    await server.start([sock])
    return server
