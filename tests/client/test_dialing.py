"""Finding a coordinator, or being it: what answers, what does not, and how long that may take."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from rallypoint import errors, net, runtime
from rallypoint.client import dialing, fixed, network
from rallypoint.client.dialing import Attempts, dial_first
from rallypoint.client.hosting import EmbeddedCoordinator
from rallypoint.coordinator.admission import Admission
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.values import Address, RunSettings
from rallypoint.endpoints import parse_endpoint
from rallypoint.security.access import Access
from tests.loops import BOOTSTRAP, needs_ipv6, node, opened, run_clean, served, until
from tests.ports import free_port

pytestmark = pytest.mark.sockets

TWO = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(talk: Talk, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """A server that is no coordinator, and its port."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await talk(reader, writer)

    server = await asyncio.start_server(serve, host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()


async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
    writer.close()


def answering(*statuses: str) -> Talk:
    """One status for each connection in turn, the last one again and again."""
    left = list(statuses)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status = left.pop(0) if len(left) > 1 else left[0]
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    return talk


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1024):
        writer.write(data)


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    await reader.read()


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def answer_unavailable(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    writer.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "PROXY_READY_S", 0.2)


@pytest.fixture
def last_try_is_patient(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error tells what the last try has brought: an answer, though this machine pauses."""
    monkeypatch.setattr(fixed, "DIAL_MIN_S", 60.0)
    monkeypatch.setattr(dialing, "ADDRESS_TIMEOUT_S", 60.0)


async def fails(endpoint: str, kind: type[errors.CoordinatorError], **own: Any) -> str:
    """The error of a node that cannot be opened, and that it came in time."""
    loop = asyncio.get_running_loop()
    # An error that waiting cannot mend comes long before this limit.
    limit_s = 60.0 if kind is errors.NotACoordinatorError else 0.4
    began_s = loop.time()
    with pytest.raises(kind) as caught:
        await node(endpoint, **({"connect_timeout_s": limit_s} | own)).open()
    assert loop.time() - began_s < 20.0
    assert caught.value.hint
    return caught.value.message


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("talk", [answer_http, echo, greet], ids=lambda talk: talk.__name__)
def test_another_program_at_the_address_is_reported(talk: Talk):
    async def main() -> None:
        async with listening(talk) as port:
            for endpoint in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
                message = await fails(endpoint, errors.NotACoordinatorError)
                assert f"the server at 127.0.0.1:{port} is not a Rallypoint coordinator" in (
                    message
                )

    run_clean(main)


def test_a_slow_address_gets_more_time_each_time(monkeypatch: pytest.MonkeyPatch):
    """A coordinator that admits thousands must not work for nodes that have given up."""
    monkeypatch.setattr(dialing, "ADDRESS_TIMEOUT_S", 0.05)
    monkeypatch.setattr(dialing, "ADDRESS_TIMEOUT_MAX_S", 0.12)

    async def main() -> None:
        async with listening(say_nothing) as port:
            target = Address("127.0.0.1", port)
            attempts = Attempts(target)
            given_s = []
            for _ in range(4):
                assert await dialing.dial(target, Access(), attempts) is None
                words = attempts.answers[str(target)]
                given_s.append(float(words.removeprefix("no answer within ").removesuffix(" s")))
            assert given_s[0] == 0.05
            assert 0.08 <= given_s[1] <= 0.1
            assert given_s[2:] == [0.12, 0.12]

    run_clean(main)


def test_a_machine_that_does_not_answer_has_the_options_of_a_firewall_in_its_error() -> None:
    """Not an address of this machine: no firewall is in between."""
    for target in (
        Address("10.0.0.1", 1),
        parse_endpoint("10.0.0.1,10.0.0.2"),
        parse_endpoint("file:///x"),
    ):
        tried = Attempts(target)
        tried.answers = {"10.0.0.1:1": "no answer within 5 s from 10.0.0.9 (eth0)"}
        assert "another network" not in tried.error(1.0).hint
        tried.silent = [Address("127.0.0.1", 1)]
        assert not tried.is_cut_off
        tried.silent = [Address("10.0.0.1", 1)]
        error = tried.error(1.0)
        assert "10.0.0.1:1: no answer within 5 s from 10.0.0.9 (eth0)" in error.message
        assert "(--port-range, or that of --endpoint)" in error.hint
        assert "(--interface)" in error.hint


def test_a_listener_that_stays_silent_is_reported():
    async def main() -> None:
        async with listening(say_nothing) as port:
            message = await fails(f"127.0.0.1:{port}", errors.UnreachableError)
            assert "no answer within 0." in message

    run_clean(main)


@pytest.mark.usefixtures("last_try_is_patient")
@pytest.mark.parametrize(
    ("talk", "why"),
    [
        (hang_up, "closed the connection without an answer"),
        (answer_unavailable, "HTTP status 503 Service Unavailable"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_listener_that_does_not_answer_is_reported(talk: Talk, why: str):
    async def main() -> None:
        async with listening(talk) as port:
            message = await fails(f"127.0.0.1:{port}", errors.UnreachableError)
            assert why in message

    run_clean(main)


@pytest.mark.usefixtures("last_try_is_patient")
@pytest.mark.parametrize("status", ["404 Not Found", "429 Too Many Requests", "500 Internal"])
def test_a_proxy_without_a_coordinator_is_awaited_and_named(status: str):
    async def main() -> None:
        async with listening(answering(status)) as port:
            message = await fails(f"http://127.0.0.1:{port}", errors.NotACoordinatorError)
            assert (
                f"127.0.0.1:{port} is not a Rallypoint coordinator: HTTP status {status}" in message
            )
            coming = node(f"http://127.0.0.1:{port}", connect_timeout_s=0.1)
            with pytest.raises(errors.NotACoordinatorError, match=status):
                await coming.open()

    run_clean(main)


@pytest.mark.parametrize("status", ["200 OK", "301 Moved", "400 Bad", "403 Forbidden"])
def test_a_final_http_status_is_reported_at_once(status: str):
    async def main() -> None:
        async with listening(answering(status)) as port:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            await fails(f"http://127.0.0.1:{port}", errors.NotACoordinatorError)
            assert loop.time() - began_s < fixed.PROXY_READY_S

    run_clean(main)


@contextlib.asynccontextmanager
async def behind_a_proxy(port: int) -> AsyncIterator[tuple[int, list[str], Callable[[], None]]]:
    """A port that leads to `port`, or answers a status while there is one; and what cuts it."""
    statuses: list[str] = []
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if statuses:
            await answering(statuses[0])(reader, writer)
            return
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, back))
        await asyncio.gather(pump(reader, back), pump(there, writer))

    def cut() -> None:
        for each in writers:
            each.transport.abort()
        writers.clear()

    async with listening(talk) as front:
        yield front, statuses, cut
        cut()


@pytest.mark.parametrize(
    "status",
    [
        "404 Not Found",
        "429 Too Many",
        "500 No",
        "503 No",
        "401 Unauthorized",
        "200 OK",
        "302 There",
    ],
)
def test_no_http_status_is_final_for_an_attached_node(status: str):
    async def main() -> None:
        async with (
            served() as (_, port),
            behind_a_proxy(port) as (front, statuses, cut),
            opened(f"http://127.0.0.1:{front}", coordinator_lost_after_s=60.0) as a,
        ):
            assert await a.next_round(BOOTSTRAP) is not None
            statuses.append(status)
            cut()
            why = "token" if status.startswith("401") else status
            await until(lambda: not a.is_connected and why in a.looking, "not told why")
            await asyncio.sleep(0.3)
            assert a.gone is None
            statuses.clear()
            await until(lambda: a.is_connected, "it did not come back")
            assert a.change is None

    run_clean(main)


def test_an_address_without_a_listener_is_reported():
    async def main() -> None:
        port = free_port()
        with pytest.raises(errors.UnreachableError) as caught:
            await node(f"http://127.0.0.1:{port}", connect_timeout_s=0.3).open()
        assert caught.value.attempts == ((f"127.0.0.1:{port}", "Connection refused"),)
        text = rf"no coordinator answered at 127\.0\.0\.1:{port} for \d+\.\d s "
        assert re.match(text, caught.value.message)

    run_clean(main)


def test_an_unknown_name_is_reported(monkeypatch):
    def unknown(*args: object, **more: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    async def main() -> None:
        message = await fails("http://no-such-host.invalid:29400", errors.UnreachableError)
        assert "no-such-host.invalid: the name could not be resolved: Name or service" in message

    run_clean(main)


def resolving(monkeypatch, *addresses: str) -> None:
    """Let `several.example` resolve to these addresses."""
    original = socket.getaddrinfo

    def found(host: str, port: int, *args: object, **more: object) -> list[object]:
        if host != "several.example":
            return original(host, port, *args, **more)  # type: ignore[arg-type, return-value]
        if more.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        return [each for a in addresses for each in original(a, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_all_addresses_of_a_name_are_tried_and_reported(monkeypatch):
    resolving(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")

    async def main() -> None:
        message = await fails(f"http://several.example:{free_port()}", errors.UnreachableError)
        assert message.count("Connection refused") == 3
        async with served() as (_, port), opened(f"http://several.example:{port}") as a:
            assert await a.next_round(BOOTSTRAP) is not None

    run_clean(main)


@pytest.mark.usefixtures("impatient")
def test_another_program_at_one_address_does_not_hide_a_coordinator(monkeypatch):
    resolving(monkeypatch, "127.0.0.2", "127.0.0.1")

    async def main() -> None:
        # A port that is free at 127.0.0.1 too.
        async with listening(answer_http, "127.0.0.2", free_port()) as port:
            await fails(f"http://several.example:{port}", errors.NotACoordinatorError)
            hosted = await EmbeddedCoordinator.start("run", "", "127.0.0.1", port)
            async with opened(f"http://several.example:{port}") as a:
                assert a.is_connected
            await hosted.aclose()

    run_clean(main)


NOWHERE = "127.9.9.9"
"""Where these tests let a dial hang, as in a network that drops packets."""


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """NOWHERE does not answer, and is no address of this machine."""
    connect, is_this_host = network.SOCKETS.connect, net.is_this_host

    async def connecting(address: Address, *args: Any) -> Any:
        if address.host == NOWHERE:
            await asyncio.sleep(3_600)
        return await connect(address, *args)

    async def refuses(self: object, address: Address, limit_s: float) -> bool | None:
        return None if address.host == NOWHERE else await net.refuses(address, limit_s)

    monkeypatch.setattr(network.SOCKETS, "connect", connecting, raising=False)
    monkeypatch.setattr(runtime.SystemRuntime, "refuses", refuses)
    monkeypatch.setattr(net, "is_this_host", lambda host: host != NOWHERE and is_this_host(host))
    monkeypatch.setattr(network, "is_this_host", net.is_this_host)


@pytest.mark.usefixtures("silent")
def test_an_address_that_is_silent_delays_the_others_only_a_little(monkeypatch) -> None:
    resolving(monkeypatch, NOWHERE, "127.0.0.1")

    async def main() -> None:
        async with served() as (_, port):
            target = Address("several.example", port)
            async with asyncio.timeout(dialing.ADDRESS_TIMEOUT_S):
                found = await dialing.dial(target, Access(), Attempts(target))
            assert found is not None
            assert found.address == Address("127.0.0.1", port)
            found.abort("the test is over")

    run_clean(main)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_elected_coordinator_is_reached_at_any_of_its_addresses(
    monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    monkeypatch.setattr(network, "is_this_host", lambda host: False)  # another machine's

    async def main() -> None:
        async with served() as (_, port):
            both = (Address(NOWHERE, port), Address("127.0.0.1", port))
            attempts = Attempts(both[0])
            found = await dialing.dial_elected(
                [both[each] for each in order], Access(), attempts, 60.0
            )
            assert found is not None
            assert found.target == both[1]
            found.abort("the test is over")

    run_clean(main)


@pytest.mark.parametrize(
    ("own", "dialled"),
    [
        ((), ("10.0.0.1", "10.0.1.1", "172.17.0.1")),
        (("172.17.0.1",), ("10.0.0.1", "10.0.1.1", "172.17.0.1")),
        (("10.0.0.1",), ("10.0.1.1", "172.17.0.1", "10.0.0.1")),
        (("10.0.0.1", "172.17.0.1"), ("10.0.1.1", "10.0.0.1", "172.17.0.1")),
        (("10.0.0.1", "10.0.1.1", "172.17.0.1"), ("10.0.0.1", "10.0.1.1", "172.17.0.1")),
    ],
)
def test_an_address_of_this_machine_is_dialled_last(
    monkeypatch: pytest.MonkeyPatch, own: tuple[str, ...], dialled: tuple[str, ...]
) -> None:
    """A bridge of guests may have another coordinator on each machine. But if the others of the
    lease have left their interfaces, this machine may still be the coordinator's.
    """
    asked: list[str] = []

    async def connecting(address: Address, *args: Any) -> Any:
        asked.append(address.host)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(network.SOCKETS, "connect", connecting, raising=False)
    monkeypatch.setattr(network, "is_this_host", lambda host: host in own)
    places = [Address(each, 29400) for each in ("10.0.0.1", "10.0.1.1", "172.17.0.1")]

    async def main() -> None:
        attempts = Attempts(places[0])
        assert await dialing.dial_elected(places, Access(), attempts, 1.0) is None
        assert attempts.only_refused
        assert tuple(each.host for each in attempts.refusals) == tuple(asked) == dialled

    run_clean(main)


@pytest.mark.usefixtures("silent")
def test_a_stale_address_of_the_name_does_not_stop_hosting(monkeypatch) -> None:
    monkeypatch.setattr(dialing, "ADDRESS_TIMEOUT_S", 0.2)
    resolving(monkeypatch, NOWHERE, "127.0.0.1")

    async def main() -> None:
        endpoint = f"several.example:{free_port()}"
        async with opened(endpoint, TWO, insecure=True) as host:
            assert host.hosted is not None

    run_clean(main)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(("chosen", "hosts"), [("auto", False), ("yes", True)])
def test_a_name_with_stale_addresses_alone_is_hosted_only_if_asked_for(
    monkeypatch, chosen: str, hosts: bool
) -> None:
    """Such as that of a pod with a new address."""
    monkeypatch.setattr(dialing, "ADDRESS_TIMEOUT_S", 0.2)
    resolving(monkeypatch, NOWHERE)
    monkeypatch.setattr(net, "is_own_name", lambda host: True)

    async def main() -> None:
        port = free_port()
        endpoint = f"several.example:{port}"
        if not hosts:
            message = await fails(endpoint, errors.UnreachableError, insecure=True)
            assert f"{NOWHERE}:{port}: no answer" in message
            return
        async with opened(endpoint, TWO, insecure=True, host_coordinator=chosen) as host:
            assert host.hosted is not None

    run_clean(main)


def test_a_name_that_is_known_late_is_hosted_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a pod's own: it is asked for again at each try."""
    tries: list[str] = []

    def known_late(host: str) -> bool:
        tries.append(host)
        return len(tries) > 3

    monkeypatch.setattr(network, "is_this_host", known_late)
    resolving(monkeypatch, "127.0.0.1")

    async def main() -> None:
        async with opened(f"several.example:{free_port()}", TWO, insecure=True) as host:
            assert host.hosted is not None
            assert tries[:4] == ["several.example"] * 4

    run_clean(main)


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_name_of_both_families_is_reached_over_either(host: str, monkeypatch):
    resolving(monkeypatch, "::1", "127.0.0.1")

    async def main() -> None:
        async with served(host=host) as (_, port), opened(f"http://several.example:{port}") as a:
            assert await a.next_round(BOOTSTRAP) is not None

    run_clean(main)


@needs_ipv6
def test_an_ipv6_endpoint_is_reached():
    async def main() -> None:
        async with served(host="::1") as (_, port), opened(f"http://[::1]:{port}") as a:
            found = await a.next_round(BOOTSTRAP)
            assert found is not None
            assert a.bootstrap_host == "127.0.0.1"

    run_clean(main)


# -- being it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", pytest.param("[::1]", marks=needs_ipv6), "127.0.0.2"]
)
def test_nodes_that_race_for_a_port_have_one_coordinator(host: str):
    async def main() -> None:
        endpoint = f"{host}:{free_port()}"
        nodes = [node(endpoint, TWO) for _ in range(2)]
        await asyncio.gather(*(each.open() for each in nodes))
        assert sum(each.hosted is not None for each in nodes) == 1
        rounds = await asyncio.gather(*(each.next_round(BOOTSTRAP) for each in nodes))
        assert [found.head.nodes for found in rounds if found] == [2, 2]
        for each in nodes:
            each.goodbye("done")
        await asyncio.gather(*(each.aclose() for each in nodes))

    run_clean(main)


@needs_ipv6
def test_every_spelling_of_an_endpoint_leads_to_one_port():
    async def main() -> None:
        port = free_port()
        nodes = [node(f"{host}:{port}", TWO) for host in ("127.0.0.1", "[::1]", "localhost")]
        await asyncio.gather(*(each.open() for each in nodes))
        assert sum(each.hosted is not None for each in nodes) == 1
        for each in nodes:
            each.goodbye("done")
        await asyncio.gather(*(each.aclose(linger=False) for each in nodes))

    run_clean(main)


def test_this_machines_own_name_is_hosted_on_every_address():
    async def main() -> None:
        async with opened(f"{socket.gethostname()}:{free_port()}") as a:
            assert a.hosted is not None
            assert await a.next_round(BOOTSTRAP) is not None

    run_clean(main)


def test_a_node_that_may_not_host_does_not_host():
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        message = await fails(endpoint, errors.UnreachableError, host_coordinator="no")
        assert "Connection refused" in message

    run_clean(main)


def test_the_error_says_why_this_node_could_not_host(monkeypatch):
    async def fail(*args: object, **more: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(EmbeddedCoordinator, "start", fail)

    async def main() -> None:
        message = await fails(f"127.0.0.1:{free_port()}", errors.UnreachableError)
        assert "hosting a coordinator here: Permission denied" in message

    run_clean(main)


def test_this_host_is_recognized():
    for own in ("localhost", "127.0.0.1", socket.gethostname(), socket.gethostname().upper()):
        assert net.is_this_host(own)
    for other in ("192.0.2.1", "no-such-host.invalid"):
        assert not net.is_this_host(other)


# -- going in the middle ---------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(0, 40, 2))
def test_a_cancel_while_becoming_the_host_leaves_nothing_open(turns: int):
    async def main() -> None:
        a = node(f"127.0.0.1:{free_port()}")
        opening = asyncio.create_task(a.open())
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await opening
        await a.aclose(linger=False)

    run_clean(main)


@pytest.mark.parametrize("turns", range(0, 24, 2))
def test_a_cancel_while_attaching_leaves_nothing_open(turns: int):
    async def main() -> None:
        async with served() as (server, port):
            a = node(f"http://127.0.0.1:{port}")
            opening = asyncio.create_task(a.open())
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await opening
            if not opening.cancelled():  # it was quicker
                await a.aclose()
            await until(lambda: not server.coordinator.sessions, "a connection is left")

    run_clean(main)


@pytest.mark.parametrize("turns", range(0, 12, 2))
def test_a_cancel_while_leaving_leaves_nothing_open(turns: int):
    async def main() -> None:
        a = node(f"127.0.0.1:{free_port()}")
        await a.open()
        await a.next_round(BOOTSTRAP)
        a.goodbye("done")
        going = asyncio.create_task(a.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        going.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await going
        await a.aclose(linger=False)

    run_clean(main)


def test_a_cancel_while_waiting_leaves_nothing_open():
    async def main() -> None:
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}", TWO) as a:
            waits = (a.next_round(BOOTSTRAP), a.cause(60.0))
            for wait in waits:
                task = asyncio.create_task(wait)
                await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    run_clean(main)


def test_a_node_pauses_if_coordinators_redirect_it_in_circles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As by a `serve` that was started again, and waits for its predecessor's lease to run out."""
    caplog.set_level("INFO", "rallypoint.client")

    async def main() -> None:
        loop, asked = asyncio.get_running_loop(), 0
        async with served() as (_, port):
            itself = Address("127.0.0.1", port)
            until_s = math.inf

            def refusal(admission: Admission, *of: object) -> Refusal | None:
                nonlocal asked, until_s
                asked += 1
                until_s = min(until_s, loop.time() + 2.0)
                if loop.time() > until_s:
                    return None
                return Refusal(RefusalCode.ELSEWHERE, "it is there", addresses=(itself,))

            monkeypatch.setattr(Admission, "refusal", refusal)
            async with opened(f"http://127.0.0.1:{port}"):
                assert asked < 15

    run_clean(main)
    told = [each.getMessage() for each in caplog.records]
    assert sum("redirected" in each for each in told) == 1
    assert any("without a coordinator" in each for each in told)


# -- several coordinators, of which most may be dead -----------------------------------------------


def test_one_live_replica_among_dead_ones_is_found_soon():
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=512) as mute:
            nowhere = (Address("127.0.0.1", mute.getsockname()[1]),)
            async with served() as (_, port):
                there = (Address("127.0.0.1", port),)
                places = [(nowhere, Access())] * 15 + [(there, Access())]
                attempts = Attempts(Address("replicas", 1))
                loop = asyncio.get_running_loop()
                began_s = loop.time()
                connection = await dial_first(places, attempts, 20.0)
                assert connection is not None
                assert connection.address.port == port
                # One after another they would take 300 s.
                assert loop.time() - began_s < 15.0
                connection.close("the test is over")
                await connection.wait_closed()

    run_clean(main)


def test_after_a_refusal_the_next_address_is_dialed_at_once():
    async def main() -> None:
        # A socket that is bound and does not listen refuses, and nobody else gets its port.
        with contextlib.ExitStack() as held:
            bound = [held.enter_context(socket.socket()) for _ in range(3)]
            for each in bound:
                each.bind(("127.0.0.1", 0))
            refusing = [((Address(*each.getsockname()),), Access()) for each in bound]
            attempts = Attempts(Address("replicas", 1))
            assert await dial_first(refusing, attempts, 5.0) is None
        assert len(attempts.answers) == 3
        assert set(attempts.answers.values()) == {"Connection refused"}
        assert await dial_first([], attempts, 5.0) is None

    run_clean(main)


def test_of_two_answers_one_connection_is_kept():
    async def main() -> None:
        async with served() as (one, port), served() as (other, other_port):
            places = [((Address("127.0.0.1", each),), Access()) for each in (port, other_port)]
            for _ in range(5):
                connection = await dial_first(places, Attempts(Address("replicas", 1)), 5.0)
                assert connection is not None
                connection.close("the test is over")
                await connection.wait_closed()
            await until(
                lambda: not (one.coordinator.sessions or other.coordinator.sessions),
                "one was left open",
            )

    run_clean(main)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("record", [b"\x15\x03\x01\x00\x02\x02\x46", b"\x16\x03\x03\x00\x7a\x02"])
def test_a_port_that_speaks_tls_is_named_as_one(record: bytes):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(record)
        writer.close()

    async def main() -> None:
        async with listening(talk) as port:
            message = await fails(f"http://127.0.0.1:{port}", errors.NotACoordinatorError)
            assert f"the server at 127.0.0.1:{port} uses TLS, and there is no token" in message

    run_clean(main)
