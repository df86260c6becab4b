"""The agent's local socket, over which workers call the round's store and learn of its end.

Workers do not connect to the coordinator: the agent passes their calls on. The socket is local to
this machine, and a worker sends the secret of its round, which is in its environment. So the agent
refuses workers of earlier rounds, and all other processes (R4).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from rallypoint import errors
from rallypoint.client.agent_client import socket_address
from rallypoint.client.node import Node, Round
from rallypoint.coordinator.listener import Listener, ListenerLimits
from rallypoint.core.store import BAD_REQUEST, ROUND_ENDED, StoreFailure, StoreResult
from rallypoint.core.values import Change, ChangeKind, CloseRecord, Drain, Failure, Outcome
from rallypoint.wire import local
from rallypoint.wire.messages import ANSWER_BYTES_MAX, MalformedError

BACKLOG_BYTES_MAX: Final = 64 * 1024**2
LISTEN_BACKLOG: Final = 128
STRANGERS_MAX: Final = 128
"""How many connections may be open without a hello."""
_UCRED: Final = struct.Struct("iII")
"""A process, its user and its group: `struct ucred` of Linux (unix(7))."""
HELLO_TIMEOUT_S: Final = 10.0
"""How many seconds a connected process may take to say hello."""


class Requests(msgspec.Struct, frozen=True):
    """The requests of workers to the agent itself.

    `progressed`: the worker of this local rank has come to this step. `dumps_stacks`: with this
    pid, it writes its stacks when it gets this signal, to the file that `stacks_file` names.
    `joined`, `parted`: it has a connection, or none any more. `asked`: it has left this round, and
    waits for the next one. `raised`: the block of its world has ended with this. `fails`: an
    exception has left the program of the worker with this pid. `explain_s`: see local.Admitted.
    """

    regroup: Callable[[], None]
    leave: Callable[[str], None]
    close: Callable[[Outcome, str], None]
    progressed: Callable[[int, int], None] = lambda local_rank, step: None
    dumps_stacks: Callable[[int, int, int], None] = lambda local_rank, pid, number: None
    stacks_file: Callable[[int], str] = lambda local_rank: ""
    yielded: Callable[[int], None] = lambda local_rank: None
    joined: Callable[[int], None] = lambda local_rank: None
    parted: Callable[[int], None] = lambda local_rank: None
    asked: Callable[[int, int], None] = lambda local_rank, number: None
    raised: Callable[[int, Failure], None] = lambda local_rank, failure: None
    fails: Callable[[int], None] = lambda pid: None
    explain_s: float | None = None


class Channel:
    """One agent's local socket. `begin_round` sets the round whose workers are admitted."""

    def __init__(self, node: Node, requests: Requests) -> None:
        self.requests = requests
        self.node = node
        self.round: Round | None = None
        self.secret = ""
        self.path = ""
        self.departing: local.Departing | None = None
        self.expelled: Change | None = None
        """Why this node is not in its round any more, if the coordinator has taken it out."""
        self.links: dict[WorkerLink, None] = {}
        self._taking_part: dict[WorkerLink, None] = {}
        """The connections of this round that take part, also if they have ended."""
        self._promises: dict[WorkerLink, int] = {}
        self._listener: Listener | None = None
        self._socket: socket.socket | None = None
        self._directory: Path | None = None

    async def start(self) -> None:
        """Open the socket. On Linux it has no file that could be left behind."""
        if sys.platform == "linux":
            self.path = f"@rallypoint-{os.getpid()}-{secrets.token_hex(6)}"
        else:
            self._directory = Path(tempfile.mkdtemp(prefix="rallypoint-"))
            self.path = str(self._directory / "agent.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(socket_address(self.path))
        self._socket.listen(LISTEN_BACKLOG)
        self._socket.setblocking(False)
        limits = ListenerLimits(strangers_max=STRANGERS_MAX, stranger_s=HELLO_TIMEOUT_S)
        self._listener = Listener(
            [self._socket],
            lambda: WorkerLink(self),
            lambda: len(self.links),
            limits,
            is_of_this_user,
        )
        self._listener.start()

    def admit(self, link: WorkerLink, transport: asyncio.Transport) -> None:
        """Admit the connection of a process that has sent the secret of the round."""
        self.links[link] = None
        if self._listener is not None:
            self._listener.admit(transport)

    def begin_round(self, found: Round, kept: Sequence[int] = ()) -> str:
        """Admit only the workers of this round. Returns the secret that they must send.

        Closes the connections of earlier workers, which may still live in their own sessions. Their
        late calls do not belong to this round (R4). `kept`: the local ranks of those that have left
        their round, and get this one by `go_on`.
        """
        waiting = [link for link in self.links if link.waits and link.local_rank in kept]
        for link in list(self.links):
            if link not in waiting:
                link.cut()
        self.links = dict.fromkeys(waiting)
        self._taking_part, self._promises = {}, {}
        self.round = found
        self.secret = secrets.token_hex(16)
        return self.secret

    def first_of(self, local_rank: int) -> WorkerLink | None:
        """The oldest connection of a worker; None if it has none."""
        return next((link for link in self.links if link.local_rank == local_rank), None)

    def go_on(self, variables: Mapping[int, dict[str, str]]) -> None:
        """Give the workers that were kept the round, with what changes in their environment."""
        for link in list(self.links):
            link.go_on(variables.get(link.local_rank, {}))

    def end_round(self, change: Change) -> None:
        """Tell the workers that their round has ended, or that its cause is known."""
        self._tell(local.Ended(change))

    def end_run(self, close: CloseRecord) -> None:
        """Tell the workers that the run has ended."""
        self._tell(local.RunClosed(close))

    def drain(self, drain: Drain) -> None:
        """Tell the workers that nodes of the round are going to leave it."""
        self._tell(local.Drains(drain))

    def stop_at(self, step: int) -> None:
        """Tell the workers at which step all workers of the round stop."""
        self._tell(local.StopAt(step))

    def takes_part(self, link: WorkerLink) -> None:
        """A worker takes part. The node does when all of its workers do (R14)."""
        self._taking_part[link] = None
        if self._do_all_take_part:
            self.node.takes_part()

    def promised(self, link: WorkerLink, step: int) -> None:
        """A worker has promised. The node promises the highest step when all have (R14)."""
        self._promises[link] = max(step, self._promises.get(link, 0))
        self.promise_if_all_have()

    def promise_if_all_have(self) -> None:
        """Promise the highest step, if no connection can pass a later one.

        A process may join twice as one worker, or have a child that does. So each connection that
        takes part has to promise. One that has ended passes no step.
        """
        living = [each for each in self._taking_part if each in self.links]
        have_all = self._do_all_take_part and all(each in self._promises for each in living)
        # R14: no worker of this node passes a later step.
        if have_all and self._promises:
            self.node.promise(max(self._promises.values()))

    @property
    def _do_all_take_part(self) -> bool:
        ranks = {each.local_rank for each in self._taking_part}
        return self.round is not None and ranks.issuperset(range(self.round.seat.workers))

    def depart(self, reason: str) -> None:
        """Tell the workers, also those that connect later, that this node is going to leave."""
        self.departing = local.Departing(reason)
        self._tell(self.departing)

    def expel(self, reason: str) -> None:
        """Tell the workers, also those that connect later, that this node is out of its round.

        Nobody tells the node that its round has ended: it has no coordinator any more.
        """
        if self.round is None:
            return
        number, who = self.round.head.number, (self.node.info.name,)
        self.expelled = Change(ChangeKind.NODE_LOST, number, who, 1, reason)
        self._tell(local.Ended(self.expelled))

    def _tell(self, message: local.LocalMessage) -> None:
        for link in list(self.links):
            link.send(message)

    async def aclose(self) -> None:
        """Close the socket and every connection. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            await listener.entered()
        if self._socket is not None:
            self._socket.close()
        for link in list(self.links):
            link.cut()
        if self._directory is not None:
            with contextlib.suppress(OSError):
                (self._directory / "agent.sock").unlink(missing_ok=True)
                self._directory.rmdir()


def is_of_this_user(connection: socket.socket) -> bool:
    """Whether the connected process is of this user or of root.

    Every user of the machine can connect to a socket without a file. On systems other than Linux
    the socket is in a directory of this user.
    """
    if sys.platform != "linux":
        return True
    _, user = _peer_of(connection)
    return user in (0, os.geteuid())


def _peer_of(connection: socket.socket) -> tuple[int, int]:
    """The pid and the user of the process that has connected, as the kernel saw it. Linux only."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, user, _ = _UCRED.unpack(credentials)
    return pid, user


class WorkerLink(asyncio.Protocol):
    """One worker's connection."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._unframer = local.Unframer(local.HELLO_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._round: Round | None = None
        self.local_rank = 0
        self.waits = False
        """Whether the worker has left its round, and waits for the next one."""
        self._has_asked = False
        """Whether the worker's process counts as waiting because of this connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A process has connected. Its hello must follow."""
        # uvloop's transports have these methods, but do not derive from asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        """The worker has ended: cancel its calls."""
        channel = self._channel
        if channel.links.pop(self, self) is None and self._round is channel.round:
            channel.promise_if_all_have()
            if self._has_asked or channel.first_of(self.local_rank) is None:
                channel.requests.parted(self.local_rank)
        for task in list(self._calls.values()):
            task.cancel()

    def data_received(self, data: bytes) -> None:
        """Handle the worker's messages. Malformed bytes end the connection."""
        try:
            for body in self._unframer.feed(data):
                self._take(local.decode_from_worker(body))
        except MalformedError as error:
            self.send(local.Denied(str(error)))
            self.cut()

    def send(self, message: local.LocalMessage) -> None:
        """Queue a message. Cuts off a worker that does not read."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(local.encode(message))
        if transport.get_write_buffer_size() > BACKLOG_BYTES_MAX:
            transport.abort()

    def cut(self) -> None:
        """Close, after the queued messages are sent."""
        if self._transport is not None:
            self._transport.close()

    def _take(self, message: local.FromWorker) -> None:
        if isinstance(message, local.Hello):
            self._admit(message)
        elif isinstance(message, local.Fails):
            self._pass_on_failure()
        elif self._round is None:
            self.send(local.Denied("the first message of a worker must be Hello"))
            self.cut()
        elif self._round is self._channel.round:
            self._do(message)

    def _admit(self, hello: local.Hello) -> None:
        channel = self._channel
        current = channel.round
        knows = hmac.compare_digest(hello.secret.encode(), channel.secret.encode())
        if current is None or not knows or hello.round != current.head.number:
            self.send(local.Denied(f"this agent no longer has a worker of round {hello.round}"))
            self.cut()
            return
        self.local_rank = hello.local_rank
        self._unframer.bytes_max = ANSWER_BYTES_MAX
        assert self._transport is not None
        channel.admit(self, self._transport)
        channel.requests.joined(hello.local_rank)
        self._tell_round(current, {})

    def _pass_on_failure(self) -> None:
        assert self._transport is not None
        if sys.platform == "linux":
            pid, _ = _peer_of(self._transport.get_extra_info("socket"))
            self._channel.requests.fails(pid)
        self.cut()

    def go_on(self, variables: dict[str, str]) -> None:
        """The worker was kept: it gets the present round."""
        for task in list(self._calls.values()):
            task.cancel()
        self.waits = self._has_asked = False
        assert self._channel.round is not None
        self._tell_round(self._channel.round, variables)

    def _tell_round(self, current: Round, variables: dict[str, str]) -> None:
        self._round = current
        channel, node = self._channel, self._channel.node
        ended = (node.change or channel.expelled) if node.round == current else None
        self.send(
            local.Admitted(
                node.info.name,
                current.head,
                current.seat,
                ended,
                node.ledger_id,
                takes_progress=True,
                stacks=channel.requests.stacks_file(self.local_rank),
                explain_s=channel.requests.explain_s,
                variables=variables,
            )
        )
        if node.closed is not None:
            self.send(local.RunClosed(node.closed))
        if ended is None and node.round == current:
            if node.drain is not None:
                self.send(local.Drains(node.drain))
            if node.step is not None:
                self.send(local.StopAt(node.step))
        if channel.departing is not None:
            self.send(channel.departing)

    def _do(self, message: local.FromWorker) -> None:
        match message:
            case local.Call():
                self._spawn(message.request_id, self._call(message))
            case local.AskMembers():
                self._spawn(message.request_id, self._members(message.request_id))
            case local.AskWaiting():
                self._spawn(message.request_id, self._waiting(message.request_id))
            case local.Cancel():
                task = self._calls.get(message.request_id)
                if task is not None:
                    task.cancel()
            case local.Regroup():
                self._channel.requests.regroup()
            case local.AskWorld(round=number):
                assert self._round is not None
                if number == self._round.head.number:
                    self.waits = True
                    # A child process that has joined as this worker does not speak for it.
                    if self._channel.first_of(self.local_rank) is self:
                        self._has_asked = True
                        self._channel.requests.asked(self.local_rank, number)
            case local.Raised(failure=failure):
                assert self._round is not None
                rank = self._round.seat.first_rank + self.local_rank
                here = {"rank": rank, "local_rank": self.local_rank}
                own = msgspec.structs.replace(failure, **here)
                self._channel.requests.raised(self.local_rank, own)
            case local.Leave():
                self._channel.requests.leave(message.reason)
            case local.Close():
                self._channel.requests.close(message.outcome, message.reason)
            case local.Progressed():
                self._channel.requests.progressed(self.local_rank, message.step)
            case local.DumpsStacks():
                self._channel.requests.dumps_stacks(self.local_rank, message.pid, message.signal)
            case local.TakesPart():
                self._channel.takes_part(self)
            case local.Promise():
                self._channel.promised(self, message.step)
            case local.Yielded():
                self._channel.requests.yielded(self.local_rank)
            case local.Hello() | local.Fails():
                """A second hello changes nothing. The other one needs none: see `_take`."""

    def _spawn(self, request_id: int, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._calls[request_id] = task
        task.add_done_callback(lambda _: self._calls.pop(request_id, None))

    async def _call(self, call: local.Call) -> None:
        node = self._channel.node
        result: StoreResult = StoreFailure(ROUND_ENDED, "the round has ended")
        if node.round == self._round:
            try:
                result = await node.call(call.op, call.timeout_s)
            except errors.UsageError as error:  # from a worker that does not check its own calls
                result = StoreFailure(BAD_REQUEST, error.message)
        self.send(local.Answer(call.request_id, result))

    async def _members(self, request_id: int) -> None:
        try:
            members = await self._channel.node.members()
        except errors.RallypointError as error:
            self.send(local.Members(request_id, (), error.message))
        else:
            self.send(local.Members(request_id, members))

    async def _waiting(self, request_id: int) -> None:
        node = self._channel.node
        try:
            waiting = await node.waiting() if node.is_connected else None
        except errors.RallypointError as error:
            self.send(local.WaitingIs(request_id, None, error.message))
        else:
            self.send(local.WaitingIs(request_id, waiting, node.looking))
