"""Rendezvous backends as a user may write them: one that keeps every promise, and worse ones.

And handlers over them in threads of one process, for the tests of what the nodes make of it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from rallypoint.rendezvous import RendezvousConnectionError, RendezvousInfo
from rallypoint.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousBackend,
    RendezvousTimeout,
    Token,
)

WITHIN_S = 30.0
LATE_S = 10.0
"""How much later than its deadline a call may end on a busy machine: far below what it would take
without one."""


class UsersBackend(RendezvousBackend):
    """A value in memory and a count of its writings, which is the token."""

    def __init__(self) -> None:
        self.state: bytes | None = None
        self.count = 0
        self.calls = 0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return "users"

    def get_state(self) -> tuple[bytes, Token] | None:
        with self._lock:
            self.calls += 1
            return None if self.state is None else (self.state, self.count)

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        with self._lock:
            self.calls += 1
            is_set = token == (None if self.state is None else self.count)
            if is_set:
                self.state, self.count = state, self.count + 1
            return None if self.state is None else (self.state, self.count, is_set)


class SaysNothing(UsersBackend):
    """Sets, and returns None."""

    def set_state(self, state: bytes, token: Token | None = None) -> None:
        super().set_state(state, token)


class LosesWrites(UsersBackend):
    """Drops every third write and calls it done."""

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        if self.calls % 3 == 0:
            self.calls += 1
            return None
        return super().set_state(state, token)


class KeepsNothing(UsersBackend):
    """Answers None to everything."""

    def get_state(self) -> None:
        return None

    def set_state(self, state: bytes, token: Token | None = None) -> None:
        return None


class Troubled(UsersBackend):
    """As `trouble` says, before each call."""

    trouble: Callable[[], None] = staticmethod(lambda: None)

    def get_state(self) -> tuple[bytes, Token] | None:
        self.trouble()
        return super().get_state()

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        self.trouble()
        return super().set_state(state, token)


def raises() -> None:
    raise RendezvousConnectionError("the server is down for maintenance")


@contextlib.contextmanager
def hanging(backend: Troubled) -> Iterator[None]:
    """The backend does not come back, until the block is left."""
    over = threading.Event()

    def wait() -> None:
        over.wait(120)

    backend.trouble = wait
    try:
        yield
    finally:
        over.set()
        backend.trouble = lambda: None


class Bomb:
    """An object that sets `went_off` when it is unpickled."""

    went_off = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _explode, ()


def _explode() -> None:
    Bomb.went_off = True


def bomb() -> bytes:
    return pickle.dumps(Bomb())


@contextlib.contextmanager
def takes_at_most(limit_s: float) -> Iterator[None]:
    began_s = time.monotonic()
    yield
    took_s = time.monotonic() - began_s
    assert took_s < limit_s + LATE_S, f"{took_s:.1f} s"


def freeze(process: subprocess.Popen[str]) -> None:
    """Stop a child of this process, all of its threads, until SIGCONT."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


class Group:
    """Handlers of one run, in this process. `start`ed calls run in threads of their own."""

    def __init__(self, backend: Any = None, store: Any = None) -> None:
        self.backend = UsersBackend() if backend is None else backend
        self.store = store
        self._pool = ThreadPoolExecutor(16)
        self._made: list[DynamicRendezvousHandler] = []

    def handler(
        self, least: int = 2, most: int = 2, *, backend: Any = None, **given: Any
    ) -> DynamicRendezvousHandler:
        timeouts = {
            name: timedelta(seconds=given.pop(name, default))
            for name, default in (("join", WITHIN_S), ("last_call", 1), ("close", 10))
        }
        handler = DynamicRendezvousHandler.from_backend(
            "run",
            self.store,
            self.backend if backend is None else backend,
            least,
            most,
            **{"local_addr": "127.0.0.1", "timeout": RendezvousTimeout(**timeouts), **given},
        )
        self._made.append(handler)
        return handler

    def start(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._pool.submit(call, *arguments)

    def meet(self, *handlers: DynamicRendezvousHandler) -> list[RendezvousInfo]:
        """All ask for the next round; returns what each of them gets, in their order."""
        calls = [self.start(each.next_rendezvous) for each in handlers]
        return [call.result(WITHIN_S) for call in calls]

    def vanish(self, handler: DynamicRendezvousHandler) -> None:
        """As when its machine is lost: its connection ends without a word, for good."""
        node, door = handler._node, handler._portal
        assert node is not None
        assert door is not None
        self._made.remove(handler)
        door.run(node.aclose(linger=False))

    def close(self) -> None:
        for call in [self.start(each.shutdown) for each in self._made]:
            call.result(WITHIN_S)
        self._pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def group_over(backend: Any = None, store: Any = None) -> Iterator[Group]:
    group = Group(backend, store)
    try:
        yield group
    finally:
        group.close()


def addresses(infos: list[RendezvousInfo]) -> set[tuple[str, int]]:
    """The addresses of the workers' store that nodes got: one, if all is well."""
    found = [info.bootstrap_store_info for info in infos]
    return {(each.master_addr, each.master_port) for each in found if each is not None}
