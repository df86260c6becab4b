"""A native program whose node is taken out of the run learns it at once, with the cause."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rallypoint import ChangeKind, errors
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.net import bind
from rallypoint.security.hashed import HashedToken, hash_of
from rallypoint.security.roles import Role
from tests.api.adapters import together

OURS, THEIRS = "the-token-of-all-others", "the-token-that-is-revoked"
LISTED = (HashedToken("leaky", hash_of(THEIRS), (Role.NODE,)),)
OPTIONS: dict[str, Any] = {"min_nodes": 1, "max_nodes": 2, "last_call_s": 5.0, "max_restarts": 3}
WAIT_S = 30.0


class Guarded:
    """A coordinator with two tokens, in a thread of its own."""

    def __init__(self) -> None:
        self._sock = bind("127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    async def _serve(self) -> None:
        config = CoordinatorConfig(token=OURS, hashed_tokens=LISTED)
        async with CoordinatorServer(config) as self._server:
            await self._server.start([self._sock])
            self._ready.set()
            await self._over.wait()

    def revoke(self) -> None:
        by = {"leaky": "ann@host7"}
        replace = self._server.replace_tokens
        revoked = frozenset({"leaky"})
        self._loop.call_soon_threadsafe(lambda: replace((OURS,), LISTED, revoked, revoked_by=by))

    def evict(self, node: str) -> None:
        body = json.dumps({"node": node, "reason": "hot"}).encode()
        headers = {"Authorization": f"Bearer {OURS}"}
        url = f"{self.endpoint}/api/v1/runs/job/evict"
        urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=WAIT_S)

    def texts(self) -> list[str]:
        url = f"{self.endpoint}/api/v1/runs/job/events"
        headers = {"Authorization": f"Bearer {OURS}"}
        with urllib.request.urlopen(urllib.request.Request(url, None, headers)) as answer:
            return [each["text"] for each in json.load(answer)["events"]]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self._loop.close()


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    found = Guarded()
    yield found
    found.close()


def revoked(guarded: Guarded, node: str) -> None:
    guarded.revoke()


def evicted(guarded: Guarded, node: str) -> None:
    guarded.evict(node)


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("takes_out", "error", "cause"),
    [
        (revoked, errors.TokenError, "token leaky was revoked by ann@host7"),
        (evicted, errors.EvictedError, "evicted by operator at 127.0.0.1: hot"),
    ],
)
def test_its_world_ends_without_a_call_and_the_next_call_says_why(
    api: Any,
    guarded: Guarded,
    takes_out: Callable[[Guarded, str], None],
    error: type[Exception],
    cause: str,
) -> None:
    stay = api.join("job", guarded.endpoint, token=OURS, node_name="stays", **OPTIONS)
    go = api.join("job", guarded.endpoint, token=THEIRS, node_name="goes", **OPTIONS)
    world, other = together(go.next_world, stay.next_world)
    told, others_told = threading.Event(), threading.Event()
    world.on_change(lambda change: told.set())
    other.on_change(lambda change: others_told.set())
    with world:
        takes_out(guarded, "goes")
        assert told.wait(WAIT_S), "the program was not told"
        assert world.change.kind is ChangeKind.NODE_LOST
        assert world.change.nodes == ("goes",)
        assert cause in world.change.detail
        raise ConnectionResetError("the peer is gone")  # as a library does, once it is told
    with pytest.raises(error, match=cause.partition(":")[0]):
        go.next_world()
    assert others_told.wait(WAIT_S), "the other node was not told"
    again = stay.next_world()
    assert (again.number, again.size) == (2, 1)
    assert cause in other.change.detail
    lost = [each for each in guarded.texts() if each.startswith(("goes lost", "goes evicted"))]
    assert len(lost) == 1
    assert "hot" in lost[0] or cause in lost[0]
    stay.close("done")
    stay.leave()
    for each in (go, stay):
        each.__exit__(None, None, None)


@pytest.mark.sockets
def test_a_mistake_of_the_program_is_raised_though_its_node_is_out(
    api: Any, guarded: Guarded
) -> None:
    go = api.join("job", guarded.endpoint, token=THEIRS, node_name="goes", min_nodes=1, max_nodes=1)
    world = go.next_world()
    told = threading.Event()
    world.on_change(lambda change: told.set())

    def program() -> None:
        with world:
            guarded.revoke()
            assert told.wait(WAIT_S), "the program was not told"
            raise KeyError("a typo")

    with pytest.raises(KeyError):
        program()
    go.__exit__(None, None, None)
