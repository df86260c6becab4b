"""What a node says while it waits, and how soon."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from rallypoint.client import network
from rallypoint.client.waiting import HOSTS, Why, while_waiting, why_it_waits
from rallypoint.core.reasons import Waiting, duration
from rallypoint.core.telling import Lines
from rallypoint.core.values import RunSettings
from tests.loops import BOOTSTRAP, node, opened, run_clean, run_virtual, served, until
from tests.ports import free_port

ALONE = Waiting(ready=1, minimum=2, maximum=4, ready_names=("a",))
TWO = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)


class Waiter:
    """A node that waits, for a reason that the test sets."""

    def __init__(self) -> None:
        self.is_connected = False
        self.hosts_run = False
        self.nodes_max = 4
        self.stays_out = ""
        self.left_s: float | None = 590.0
        self.looking = "the coordinator at host:1 does not answer"
        self.asked = 0
        self.kept_by: Waiting | None = ALONE

    async def waiting(self) -> Waiting | None:
        self.asked += 1
        return self.kept_by


def lines_of(waiter: Waiter, limit_s: float) -> list[tuple[float, str]]:
    """What is said in the first seconds."""
    said: list[tuple[float, str]] = []

    async def main() -> None:
        loop, lines = asyncio.get_running_loop(), Lines()
        began_s = loop.time()

        def told(why: Why) -> None:
            if lines.is_due(why.reason, loop.time()):
                said.append((loop.time() - began_s, why.text))

        async with while_waiting(waiter, told):
            await asyncio.sleep(limit_s)

    run_virtual(main())
    return said


def test_an_endpoint_without_an_answer_is_logged_at_once_with_the_reason() -> None:
    waiter = Waiter()
    waiter.looking += " (nohost: the name could not be resolved: Name or service not known)"
    (first,) = lines_of(waiter, 20.0)
    assert first[0] <= 2.0
    assert first[1] == f"waiting: {waiter.looking}; trying again for 9 min 50 s"
    assert waiter.asked == 0


def test_an_admitted_node_logs_the_ready_nodes_and_the_time_left() -> None:
    waiter = Waiter()
    waiter.is_connected = waiter.hosts_run = True
    (first,) = lines_of(waiter, 20.0)
    assert 1.0 < first[0] <= 5.0
    assert first[1] == (
        f"waiting: 1 of at least 2 nodes ready (at most 4): a; gives up in 9 min 50 s; {HOSTS}"
    )
    assert waiter.asked <= 5  # A large run asks as often for each of its nodes.


def test_a_short_wait_logs_nothing() -> None:
    for is_connected in (False, True):
        waiter = Waiter()
        waiter.is_connected = is_connected
        assert lines_of(waiter, 0.9) == []


def test_a_node_that_hosts_its_coordinator_logs_no_wait_for_it() -> None:
    waiter = Waiter()
    waiter.looking = ""
    assert lines_of(waiter, 20.0) == []


@pytest.mark.sockets
@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:{port}"])
def test_a_node_does_not_search_the_coordinator_that_it_hosts(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def main() -> None:
        coming = node(endpoint.format(port=free_port()), TWO)

        connect = network.SOCKETS.connect

        async def slow(*arguments: Any) -> Any:
            if coming.hosted is not None:
                seen.append(coming.looking)
            return await connect(*arguments)

        start = coming._connector.own._start

        async def starting(*arguments: Any) -> Any:
            seen.append(coming.looking)
            return await start(*arguments)

        monkeypatch.setattr(network.SOCKETS, "connect", slow)
        monkeypatch.setattr(coming._connector.own, "_start", starting)
        await coming.open()
        await coming.aclose()

    run_clean(main)
    assert seen[-1] == ""
    if endpoint:
        assert seen == ["", ""]


def test_the_line_of_a_standby_has_no_time_limit() -> None:
    waiter = Waiter()
    waiter.is_connected, waiter.kept_by = True, None
    (only,) = lines_of(waiter, 10.0)
    assert only[1] == (
        "a round of at most 4 nodes is running: this node is on standby until it has a place"
    )


def test_a_standby_of_a_run_for_one_node_gets_a_hint_about_nnodes() -> None:
    waiter = Waiter()
    waiter.is_connected, waiter.kept_by, waiter.nodes_max = True, None, 1
    (only,) = lines_of(waiter, 10.0)
    assert only[1].startswith("a round of at most 1 node is running:")


def test_passing_time_changes_the_text_but_not_the_reason() -> None:
    async def main() -> None:
        waiter = Waiter()
        waiter.looking = "ledger unreachable for 3.0 s: no answer"
        before = await why_it_waits(waiter, 1.0)
        waiter.looking, waiter.left_s = "ledger unreachable for 12.0 s: no answer", 3.0
        after = await why_it_waits(waiter, 1.0)
        assert (before.text != after.text, before.reason) == (True, after.reason)
        waiter.is_connected = True
        before = await why_it_waits(waiter, 1.0)
        waiter.kept_by = Waiting(1, 2, 4, since_s=9.0, stop_left_s=2.0, ready_names=("a",))
        waiter.left_s = 1.0
        after = await why_it_waits(waiter, 1.0)
        assert (before.text != after.text, before.reason) == (True, after.reason)

    run_virtual(main())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (590.0, "9 min 50 s"),
        (3600.0, "1 h"),
        (7500.0, "2 h 5 min"),
    ],
)
def test_a_duration_is_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- a real node -----------------------------------------------------------------------------------


def test_a_node_logs_what_it_tries_before_any_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def resolving(*_: object, **__: object) -> list[object]:
            asked.set()
            await asyncio.sleep(3600)
            return []

        coming = node("nohost.invalid:1", connect_timeout_s=500.0)
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolving)
        task = asyncio.create_task(coming.open())
        await asked.wait()
        assert coming.looking == (
            "the coordinator at nohost.invalid:1 does not answer "
            "(nohost.invalid: the name is being looked up)"
        )
        assert coming.left_s is not None
        assert 0 < coming.left_s <= 500.0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert coming.left_s is None

    run_clean(main)


def test_an_unresolvable_name_is_logged_while_the_node_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async def fails(*_: object, **__: object) -> list[object]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(network, "is_this_host", lambda host: False)
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fails)
        coming = node("nohost.invalid:1", TWO, connect_timeout_s=500.0)
        task = asyncio.create_task(coming.open())
        why = "(nohost.invalid: the name could not be resolved: Name or service not known)"
        await until(lambda: why in coming.looking, "the reason is not told")
        said = (await why_it_waits(coming, 1.0)).text
        assert said.startswith("waiting: the coordinator at nohost.invalid:1 does not answer (")
        assert "; trying again for " in said
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_clean(main)


@pytest.mark.sockets
def test_the_node_that_hosts_the_coordinator_logs_it() -> None:
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        async with opened(endpoint, TWO) as host, opened(endpoint, TWO) as guest:
            assert (host.hosts_run, guest.hosts_run) == (True, False)
            task = asyncio.create_task(host.next_round(BOOTSTRAP, timeout_s=500.0))
            await asyncio.sleep(0)
            said = (await why_it_waits(host, 60.0)).text
            assert f"1 of 2 nodes ready: {host.info.name}; " in said
            assert "; gives up in " in said
            assert said.endswith(f"; {HOSTS}")
            await guest.next_round(BOOTSTRAP)
            await task
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}", TWO) as guest:
            assert not guest.hosts_run

    run_clean(main)
