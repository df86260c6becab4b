"""The client of etcd, with endpoints that fail, lie, are slow or belong to another cluster."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest

from rallypoint.errors import (
    LedgerForeignError,
    LedgerUnreachableError,
    UsageError,
)
from rallypoint.ledger.contract import Conflict, Created, Swapped, Unknown
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.ledger.etcd.wire import EtcdUnknownError
from tests.ledger.etcd_endpoints import (
    ANSWER,
    Handler,
    answers_in_parts,
    client_of,
    listening,
    never_answers,
    prefer,
    proxy_of,
    take,
)
from tests.ledger.etcd_processes import EtcdCluster, Program, etcd
from tests.ports import free_port, free_ports

pytestmark = pytest.mark.processes


def test_a_silent_endpoint_costs_one_attempt_and_a_closed_one_none(one_etcd, prefix) -> None:
    async def body() -> None:
        closed = f"127.0.0.1:{free_port()}"
        asked = 0

        async def silent_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await never_answers(reader, writer)

        async with listening(silent_one) as silent:
            endpoints = (silent, closed, one_etcd.endpoints[0])
            options = EtcdOptions(endpoints=endpoints)
            async with client_of(options) as client:
                prefer(client, 0)
                started = time.monotonic()
                await client.range(prefix.encode())
                assert time.monotonic() - started >= options.try_timeout_s
                assert asked == 1
                # The one that answered is asked first from now on.
                await client.range(prefix.encode())
                assert asked == 1
                # A write may be lost at the silent one, and is never tried again by itself.
                prefer(client, 0)
                with pytest.raises(EtcdUnknownError):
                    await client.put(prefix.encode(), b"value")
                # At the closed one it certainly was not done, so it goes on to the next.
                prefer(client, 1)
                await client.put(prefix.encode(), b"value")

    asyncio.run(body())


def test_a_slow_answer_is_no_silence() -> None:
    """A page of a log has 4 MB. On a slow line it takes longer than an attempt may be silent."""
    slow = answers_in_parts(*(ANSWER[at : at + 7] for at in range(0, len(ANSWER), 7)), every_s=0.3)

    async def body() -> None:
        async with listening(slow) as endpoint:
            options = EtcdOptions(endpoints=(endpoint,), try_timeout_s=1.0, timeout_s=10.0)
            async with client_of(options) as client:
                assert (await client.range(b"key")).kvs == ()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("speaks", "why", "bound_s"),
    [
        (answers_in_parts(), "no answer within 0.5 s", 5.0),
        (answers_in_parts(ANSWER[:3]), "began to answer, then sent nothing for 0.5 s", 5.0),
        (
            answers_in_parts(*([b" "] * 900), every_s=0.02, size=1_000),
            "its answer was not complete",
            10.0,
        ),
    ],
    ids=["nothing", "the-beginning", "without-end"],
)
def test_an_endless_answer_is_given_up_in_time(speaks: Handler, why: str, bound_s: float) -> None:
    async def body() -> None:
        async with listening(speaks) as endpoint:
            # The whole call has 6 s, of which one attempt that hears nothing takes 0.5.
            options = EtcdOptions(endpoints=(endpoint,), try_timeout_s=0.5, timeout_s=6.0)
            async with client_of(options) as client:
                began_s = time.monotonic()
                with pytest.raises(EtcdUnknownError, match=why):
                    await client.put(b"key", b"value")
                assert time.monotonic() - began_s < bound_s

    asyncio.run(body())


def test_a_write_that_a_member_did_not_accept_goes_to_the_next() -> None:
    """No host has the first address, as if a machine is switched off: nothing was sent."""

    async def body() -> None:
        with socket.socket() as off, contextlib.ExitStack() as stack:
            off.bind(("127.0.0.1", 0))
            off.listen(0)
            for _ in range(
                3
            ):  # A connection that comes now, when the queue is full, gets no answer.
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(off.getsockname())
            async with listening(answers_in_parts(ANSWER)) as endpoint:
                dead = f"127.0.0.1:{off.getsockname()[1]}"
                async with client_of(EtcdOptions(endpoints=(dead, endpoint))) as client:
                    prefer(client, 0)
                    await client.put(b"key", b"value")

    asyncio.run(body())


def test_a_watch_leaves_a_member_that_never_answers() -> None:
    async def body() -> None:
        asked = asyncio.Event()

        async def next_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await never_answers(reader, writer)

        async with listening(never_answers) as frozen, listening(next_one) as endpoint:
            options = EtcdOptions(endpoints=(frozen, endpoint), try_timeout_s=0.5)
            async with client_of(options) as client:
                prefer(client, 0)
                watching = asyncio.ensure_future(take(client, b"key", 1, 1))
                await asyncio.wait_for(asked.wait(), 20)
                watching.cancel()
                await asyncio.wait([watching])

    asyncio.run(body())


def test_the_ledger_reads_the_outcome_after_a_lost_answer(one_etcd, prefix) -> None:
    """etcd did the write and its answer was lost. The repeated write finds its own nonce."""

    async def body() -> None:
        losing = [b"\0"]

        def swallow(request: bytes) -> bool:
            if losing[0] in request:
                losing[0] = b"\0"
                return True
            return False

        async with listening(proxy_of(one_etcd, swallow=swallow)) as proxy:
            options = EtcdOptions(endpoints=(proxy, one_etcd.endpoints[0]), try_timeout_s=0.3)
            async with EtcdLedger(options, prefix) as ledger:
                for version in (None, 1):
                    now = await ledger.read("run")
                    prefer(ledger._client, 0)
                    losing[0] = b"request_put"
                    outcome = await ledger.swap("run", now.version if now else version, b"same")
                    assert isinstance(outcome, Swapped)
                    assert losing == [b"\0"]
                    there = await ledger.read("run")
                    assert there is not None
                    assert outcome.version == there.version
                    if now is not None:
                        assert there.version > now.version
                prefer(ledger._client, 0)
                losing[0] = b"request_put"
                assert await ledger.append("log", 0, b"same") == Created()
                assert losing == [b"\0"]
                prefer(ledger._client, 0)
                losing[0] = b"request_delete_range"
                await ledger.delete("run")
                assert await ledger.read("run") is None

    asyncio.run(body())


def test_a_write_that_arrives_late_changes_nothing(one_etcd, prefix) -> None:
    """A request is held back, as in the socket of a frozen member, until a repeat was done."""

    async def body() -> None:
        held: list[bytes] = []
        release, arrived = asyncio.Event(), asyncio.Event()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await reader.read(1 << 20)
            held.append(request)
            while b"request_put" not in b"".join(held) and not reader.at_eof():
                held.append(await reader.read(1 << 20))
            await release.wait()
            host, port = one_etcd.endpoints[0].split(":")
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
            up_writer.write(b"".join(held))
            await up_writer.drain()
            assert b"200 OK" in await up_reader.read(1 << 20)
            up_writer.close()
            arrived.set()

        async with listening(hold) as frozen:
            # Long enough for etcd itself, whose answers here are not to be lost as well.
            endpoints = (frozen, one_etcd.endpoints[0])
            options = EtcdOptions(endpoints=endpoints, try_timeout_s=2.0, timeout_s=20.0)
            async with EtcdLedger(one_etcd.options, prefix) as other:
                ledger = EtcdLedger(options, prefix)
                prefer(ledger._client, 1)
                async with ledger:
                    prefer(ledger._client, 0)
                    first = await ledger.swap("run", None, b"first")
                    assert isinstance(first, Swapped)
                    second = await other.swap("run", first.version, b"second")
                    assert isinstance(second, Swapped)
                    release.set()
                    await asyncio.wait_for(arrived.wait(), 20)
                    now = await other.read("run")
                    assert now is not None
                    assert (now.value, now.version) == (b"second", second.version)
                    assert isinstance(await ledger.swap("run", first.version, b"x"), Conflict)

    asyncio.run(body())


def test_without_an_answer_the_ledger_is_unreachable() -> None:
    async def body() -> None:
        endpoints = tuple(f"127.0.0.1:{port}" for port in free_ports(2))
        options = EtcdOptions(endpoints=endpoints, try_timeout_s=0.2, timeout_s=0.5)
        started = time.monotonic()
        with pytest.raises(LedgerUnreachableError) as told:
            await EtcdLedger(options).open()
        assert time.monotonic() - started < EtcdOptions(endpoints=endpoints).timeout_s
        assert isinstance(told.value, OSError)
        assert all(endpoint in told.value.message for endpoint in endpoints)
        assert told.value.hint

    asyncio.run(body())


def test_an_outage_makes_outcomes_unknown(etcd_program: Program) -> None:
    async def body(cluster: EtcdCluster) -> None:
        # Five calls wait so long in vain; what etcd answers takes less, on a busy machine too.
        options = EtcdOptions(endpoints=cluster.endpoints, timeout_s=2.0)
        async with EtcdLedger(options) as ledger:
            cluster.members[0].kill()
            outcome = await ledger.swap("run", None, b"value")
            assert isinstance(outcome, Unknown)
            assert isinstance(outcome.error, LedgerUnreachableError)
            assert isinstance(await ledger.append("log", 0, b"value"), Unknown)
            for call in (ledger.read("run"), ledger.keys(), ledger.changed("run", None, 5)):
                with pytest.raises(LedgerUnreachableError):
                    await call
            cluster.members[0].start()
            await asyncio.to_thread(cluster.wait_until_ready)
            assert await ledger.read("run") is None

    with etcd(etcd_program) as cluster:
        asyncio.run(body(cluster))


def test_endpoints_of_two_clusters_are_not_mixed(one_etcd, prefix) -> None:
    """Also if the second cluster has the same keys at the same revisions."""

    async def body(first: EtcdCluster, second: EtcdCluster) -> None:
        endpoints = (first.endpoints[0], second.endpoints[0])
        options = EtcdOptions(endpoints=endpoints, timeout_s=3.0)
        async with EtcdLedger(EtcdOptions(endpoints=endpoints[1:])) as other:
            ledger = EtcdLedger(options)
            prefer(ledger._client, 0)
            async with ledger:
                swapped = await ledger.swap("run", None, b"value")
                assert isinstance(swapped, Swapped)
                prefer(ledger._client, 1)
                now = await ledger.read("run")
                assert now is not None
                assert now.value == b"value"
                prefer(ledger._client, 1)
                assert (await ledger.changed("run", None, 5)) is not None
                first.members[0].kill()
                with pytest.raises(LedgerUnreachableError, match="belongs to cluster"):
                    await ledger.read("run")
                assert isinstance(await ledger.swap("run", None, b"value"), Unknown)
                assert await other.keys() == ()

    program = one_etcd.members[0].program
    with etcd(program) as first, etcd(program) as second:
        asyncio.run(body(first, second))


def test_an_attempt_that_the_end_cuts_short_hides_no_earlier_answer() -> None:
    """The first connection is ended, and the second one is silent until the time is over."""
    came = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        if came > 1:
            await reader.read()  # until the client gives up
        writer.close()

    async def main() -> None:
        async with listening(speak) as url:
            client = EtcdClient(EtcdOptions(endpoints=(url,), timeout_s=1.0, try_timeout_s=60.0))
            await client.open()
            with pytest.raises(LedgerUnreachableError) as caught:
                await client.status()
            await client.aclose()
        assert came == 2, caught.value.message
        assert "no answer within" not in caught.value.message

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot Found",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["404", "html", "ssh"],
)
def test_another_program_at_the_endpoint_is_refused(answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(answer)
        await writer.drain()

    async def body() -> None:
        async with listening(speak) as endpoint:
            options = EtcdOptions(endpoints=(endpoint,))
            with pytest.raises(LedgerForeignError, match=endpoint) as told:
                await EtcdLedger(options).open()
            assert told.value.hint

    asyncio.run(body())


def test_an_endpoint_is_required_and_a_password_is_not_shown() -> None:
    with pytest.raises(UsageError):
        EtcdClient(EtcdOptions(endpoints=()))
    options = EtcdOptions(endpoints=("a:1",), user="u", password="hunter2")
    assert "hunter2" not in repr(options)
    assert "hunter2" not in str(options)
