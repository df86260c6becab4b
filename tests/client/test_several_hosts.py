"""An endpoint with several addresses: a node joins where its run is, whatever the others answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from rallypoint import errors
from rallypoint.client import fixed, network
from rallypoint.client.hosting import EmbeddedCoordinator
from rallypoint.client.node import Node
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.core.values import RunSettings
from rallypoint.settings import NodeSettings, parse_endpoint
from tests.loops import BOOTSTRAP, node, opened, run_clean, served, until
from tests.ports import free_port, free_ports

from .test_dialing import greet, listening, say_nothing

pytestmark = pytest.mark.sockets

TWO = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)
TOKENS = ("VQ2t9qk0X5cM1sB7nJ4eRw", "Wm0yC3hU8dK6pZ1xQ9vTaE")


def at(*ports: int) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports)


def over(first: int, last: int, **own: object) -> Node:
    """A node whose endpoint has a range of ports."""
    endpoint = parse_endpoint("127.0.0.1").over(first, last)
    own.setdefault("insecure", not own.get("token"))
    return Node(NodeSettings(endpoint=endpoint, **own), TWO)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def carried(run_id: str, port: int, token: str = "") -> AsyncIterator[EmbeddedCoordinator]:
    coordinator = await EmbeddedCoordinator.start(run_id, token, "127.0.0.1", port)
    try:
        yield coordinator
    finally:
        await coordinator.aclose()


def test_a_node_passes_a_stranger_another_run_and_another_token() -> None:
    async def main() -> None:
        nothing, other, guarded, ours = free_ports(4)
        async with (
            listening(greet) as stranger,
            carried("job-41", other, TOKENS[0]),
            carried("job-42", guarded, TOKENS[1]),
            carried("job-42", ours, TOKENS[0]),
        ):
            endpoint = at(nothing, stranger, other, guarded, ours)
            no = {"host_coordinator": "no", "token": TOKENS[0]}
            async with opened(endpoint, TWO, "job-42", **no) as found:
                assert found.is_connected
                assert found._connector.connection is not None
                assert found._connector.connection.target.port == ours

    run_clean(main)


def test_a_node_with_a_token_passes_a_coordinator_that_admits_everybody() -> None:
    async def main() -> None:
        ours = free_port()
        async with served() as (_, everybody), carried("job-42", ours, TOKENS[0]):
            no = {"host_coordinator": "no", "token": TOKENS[0]}
            async with opened(at(everybody, ours), TWO, "job-42", **no) as found:
                assert found._connector.connection is not None
                assert found._connector.connection.target.port == ours

    run_clean(main)


def test_a_node_passes_a_coordinator_that_admits_any_run() -> None:
    """A `rallypoint serve` at a listed host, whether it asks for no token or for this node's."""

    async def main(token: str) -> None:
        ours = free_port()
        config = CoordinatorConfig(token=token)
        async with served(config) as (_, of_any), carried("job-ü 42", ours, token):
            no = {"host_coordinator": "no", "token": token}
            async with opened(at(of_any, ours), TWO, "job-ü 42", **no) as found:
                assert found._connector.connection is not None
                assert found._connector.connection.target.port == ours

    run_clean(lambda: main(""))
    run_clean(lambda: main(TOKENS[0]))


def test_a_host_takes_the_next_port_beside_one_that_admits_any_run() -> None:
    async def main() -> None:
        async with served() as (_, taken):
            host, other = (
                over(taken, taken + 3, run_id="job-42", host_coordinator=each)
                for each in ("yes", "no")
            )
            await asyncio.gather(host.open(), other.open())
            assert host.hosted is not None
            assert taken < host.hosted.address.port <= taken + 3
            await other.aclose(linger=False)
            await host.aclose(linger=False)

    run_clean(main)


def test_the_error_says_how_to_use_one_that_admits_any_run() -> None:
    async def main() -> None:
        async with served() as (_, of_any):
            no = {"host_coordinator": "no", "connect_timeout_s": 1.0}
            coming = node(at(of_any, free_port()), TWO, "job-42", **no)
            with pytest.raises(errors.UnreachableError) as caught:
                await coming.open()
            assert f"--endpoint http://127.0.0.1:{of_any}" in str(caught.value)

    run_clean(main)


def test_a_coordinator_of_a_stranger_does_not_get_the_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent.append(await reader.readuntil(b"\r\n\r\n"))
        body = b'{"error": "no token", "fingerprint": "0123456789ab"}'
        head = f"HTTP/1.1 401 Unauthorized\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()

    async def main() -> None:
        ours = free_port()
        async with listening(refuse) as stranger, carried("job-42", ours, TOKENS[0]):
            no = {"host_coordinator": "no", "token": TOKENS[0]}
            async with opened(at(stranger, ours), TWO, "job-42", **no) as found:
                assert found._connector.connection is not None
                assert found._connector.connection.target.port == ours
        assert sent
        assert not any(TOKENS[0].encode() in each for each in sent)
        said = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert not any("was refused" in each.getMessage() for each in said)

    run_clean(main)


def test_a_node_waits_for_the_host_of_its_run_beside_another_run() -> None:
    async def main() -> None:
        other, ours = free_ports(2)
        endpoint = at(other, ours)
        async with carried("job-41", other):
            coming = node(endpoint, TWO, "job-42", host_coordinator="no")
            task = asyncio.create_task(coming.open())
            await until(lambda: "it runs 'job-41'" in coming.looking, "it was not told")
            assert "this node asked for 'job-42'" in coming.looking
            async with opened(endpoint, TWO, "job-42", host_coordinator="yes") as host:
                await task
                assert host.hosted is not None
                assert host.hosted.address.port == ours
                rounds = await asyncio.gather(
                    host.next_round(BOOTSTRAP), coming.next_round(BOOTSTRAP)
                )
                assert all(rounds)
                await coming.aclose(linger=False)

    run_clean(main)


def test_the_error_shows_what_each_address_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "DIAL_MIN_S", 60.0)

    async def main() -> None:
        nothing, other, guarded = free_ports(3)
        async with (
            listening(greet) as stranger,
            carried("job-41", other, TOKENS[0]),
            carried("job-42", guarded, TOKENS[1]),
        ):
            endpoint = at(nothing, stranger, other, guarded)
            own = {"host_coordinator": "no", "token": TOKENS[0], "connect_timeout_s": 2.0}
            coming = node(endpoint, TWO, "job-42", **own)
            with pytest.raises(errors.UnreachableError) as caught:
                await coming.open()
            said = dict(caught.value.attempts)
            assert set(said) == {f"127.0.0.1:{p}" for p in (nothing, stranger, other, guarded)}
            assert said[f"127.0.0.1:{nothing}"] == "Connection refused"
            assert said[f"127.0.0.1:{other}"] == "it runs 'job-41'; this node asked for 'job-42'"
            assert "token" in said[f"127.0.0.1:{guarded}"]
            assert f"no coordinator answered at {endpoint}" in caught.value.message
            for where, answer in said.items():
                assert f"{where}: {answer}" in caught.value.message

    run_clean(main, 120.0)


def test_two_runs_over_one_range_of_ports_take_one_port_each() -> None:
    async def main() -> None:
        first = free_port()
        runs = [
            [over(first, first + 3, run_id=run_id, host_coordinator=each) for each in ("no", "yes")]
            for run_id in ("job-41", "job-42")
        ]
        every = [each for run in runs for each in run]
        await asyncio.gather(*(each.open() for each in every))
        rounds = await asyncio.gather(*(each.next_round(BOOTSTRAP) for each in every))
        assert all(rounds)
        ports = {run[1].hosted.address.port for run in runs if run[1].hosted is not None}
        assert ports == {first, first + 1}
        for each in every:
            each.goodbye("the test is over")
            await each.aclose(linger=False)

    run_clean(main)


def test_a_node_joins_its_run_at_a_later_port_though_an_earlier_one_is_free_by_now() -> None:
    async def main() -> None:
        first = free_port()
        ports = range(first, first + 4)

        def one(**own: object) -> Node:
            return over(ports[0], ports[-1], run_id="job-42", host_coordinator="yes", **own)

        async with carried("job-41", first):
            host = one()
            await host.open()
        # Another program that listens there, and says nothing, is no obstacle.
        async with listening(say_nothing, port=ports[-1]):
            sibling = one()
            await sibling.open()
        assert host.hosted is not None
        assert host.hosted.address.port > first
        assert host.hosted is not None
        assert sibling.hosted is None
        assert all(await asyncio.gather(*(e.next_round(BOOTSTRAP) for e in (host, sibling))))
        for each in (sibling, host):
            each.goodbye("the test is over")
            await each.aclose(linger=False)

    run_clean(main)


def test_only_one_process_says_that_it_hosts_a_run() -> None:
    first = network.here().claim("job-42")
    assert first is not None
    assert network.here().claim("job-42") is None
    other = network.here().claim("job-43")
    assert other is not None
    other.close()
    first.close()
    again = network.here().claim("job-42")
    assert again is not None
    again.close()


def test_without_a_free_descriptor_nobody_says_that_it_hosts_a_run() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert network.here().claim("job-42") is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_node_that_is_alone_on_its_machine_does_not_dial_other_programs() -> None:
    """Such as the worker of another job that waits for one connection."""
    dialled: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.append(await reader.read(1))

    async def main() -> None:
        first = free_port()
        async with listening(note, port=first + 1), carried("job-41", first + 2):
            host = over(first, first + 3, run_id="job-42", host_coordinator="yes")
            await host.open()
            assert host.hosted is not None
            assert host.hosted.address.port == first
            host.goodbye("the test is over")
            await host.aclose(linger=False)
        assert dialled == []

    run_clean(main)


BOTH_DIAL_FIRST = """
import sys
import rallypoint
from rallypoint.client.own_coordinator import OwnCoordinator

serve, waited = OwnCoordinator.serve_endpoint, []


async def serve_later(*args):
    if not waited:
        waited.append(True)
        print("refused", flush=True)
        sys.stdin.readline()
    return await serve(*args)


OwnCoordinator.serve_endpoint = serve_later
name, ports = sys.argv[1:]
with rallypoint.join(
    "job-42", "127.0.0.1", min_nodes=2, max_nodes=2, port_range=ports, node_name=name,
    join_timeout_s=60,
) as run:
    print(run.next_world().size, flush=True)
"""


def test_two_processes_that_start_together_host_one_run_and_not_two() -> None:
    """Both find nothing at the first port; then one binds it."""
    first = free_port()
    command = [sys.executable, "-c", BOTH_DIAL_FIRST]
    with contextlib.ExitStack() as ended:
        both = []
        for name in "ab":
            each = subprocess.Popen(
                [*command, name, f"{first}:{first + 3}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            ended.callback(each.communicate)
            ended.callback(each.kill)
            both.append(each)
        for each in both:
            assert each.stdout is not None
            assert each.stdout.readline() == "refused\n"
        for each in both:
            assert each.stdin is not None
            each.stdin.write("go on\n")
            each.stdin.flush()
        assert [each.communicate(timeout=60)[0] for each in both] == ["2\n", "2\n"]


def test_a_range_that_is_used_up_is_an_error_that_names_what_holds_its_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fixed, "DIAL_MIN_S", 60.0)

    async def main() -> None:
        first = free_port()
        async with carried("job-41", first):
            with socket.socket() as held:
                held.bind(("127.0.0.1", first + 1))
                own = {"run_id": "job-42", "host_coordinator": "yes", "connect_timeout_s": 1.0}
                with pytest.raises(errors.UnreachableError) as caught:
                    await over(first, first + 1, **own).open()
        said = caught.value.message
        assert f"ports {first} to {first + 1} of this machine are all taken" in said
        assert f"{first}: it runs 'job-41'; this node asked for 'job-42'" in said
        assert f"{first + 1}: Address already in use" in said
        assert "--port-range A:B" in caught.value.hint

    run_clean(main, 120.0)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's /proc")
def test_a_range_that_silent_programs_hold_is_told_before_a_dial_has_ended() -> None:
    async def main() -> None:
        first = free_port()
        with (
            socket.create_server(("127.0.0.1", first)),
            socket.create_server(("127.0.0.1", first + 1)),
        ):
            coming = over(first, first + 1, run_id="job-42", connect_timeout_s=500.0)
            task = asyncio.create_task(coming.open())
            why = f"this node cannot host it: ports {first} to {first + 1} of this machine are all"
            # The first dial takes 5 s.
            await until(lambda: why in coming.looking, "the reason is not told", 4.0)
            assert f"{first + 1}: " in coming.looking
            assert coming.looking.endswith("; see --port-range")
            task.cancel()
            await asyncio.wait({task})

    run_clean(main)


def test_ranks_follow_the_indexes_of_a_scheduler() -> None:
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        run = RunSettings(min_nodes=3, max_nodes=3, rank_policy="index", max_restarts=None)
        names = {"c": 0, "a": 1, "b": 2}
        every = [
            node(endpoint, run, node_name=name, node_index=index) for name, index in names.items()
        ]
        await asyncio.gather(*(each.open() for each in every))
        rounds = await asyncio.gather(*(each.next_round(BOOTSTRAP) for each in every))
        assert [found.seat.node_rank for found in rounds if found is not None] == [0, 1, 2]
        for each in every:
            each.goodbye("the test is over")
            await each.aclose(linger=False)

    run_clean(main)
