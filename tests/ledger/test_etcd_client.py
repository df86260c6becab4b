"""The client of etcd, with real etcd 3.4 and 3.5, and with servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from rallypoint.errors import (
    LedgerAccessError,
    LedgerError,
    LedgerForeignError,
    LedgerUnreachableError,
    UsageError,
)
from rallypoint.ledger.contract import Conflict, Created, Swapped, Unknown
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.ledger.etcd.txn import compare, compare_absent, delete, get, put
from rallypoint.ledger.etcd.wire import EtcdCompactedError, EtcdUnknownError, Event, prefix_end
from tests.ledger.etcd_certificates import make_certificates
from tests.ledger.etcd_processes import EtcdCluster, Program, etcd
from tests.ports import free_port, free_ports

pytestmark = pytest.mark.processes

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def _client(options: EtcdOptions) -> AsyncIterator[EtcdClient]:
    client = EtcdClient(options)
    await client.open()
    try:
        yield client
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def _listener(handler: Handler) -> AsyncIterator[str]:
    """A server on loopback. Yields its endpoint."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _prefer(client: EtcdClient, index: int) -> None:
    client._preferred = index


# -- what it does -------------------------------------------------------------------------------


def test_keys_and_transactions(one_etcd: EtcdCluster, prefix: str) -> None:
    async def body() -> None:
        async with _client(one_etcd.options) as client:
            start = prefix.encode() + b"/"
            end = prefix_end(start)
            first = await client.put(start + b"a", b"\0\xff")
            found = await client.range(start, end)
            assert [(each.key, each.value) for each in found.kvs] == [(start + b"a", b"\0\xff")]
            assert found.kvs[0].mod_revision == first.header.revision
            done = await client.txn(
                [compare(start + b"a", "mod_revision", first.header.revision)],
                [put(start + b"b", b"1"), delete(start + b"a")],
                [get(start + b"a")],
            )
            assert done.succeeded
            refused = await client.txn(
                [compare_absent(start, end)], [put(start + b"c", b"")], [get(start, end)]
            )
            assert not refused.succeeded
            assert [each.key for each in refused.range(0).kvs] == [start + b"b"]
            assert (await client.delete(start, end)).deleted == 1
            assert (await client.range(start, end)).kvs == ()
            assert prefix_end(b"a\xff\xff") == b"b"
            assert prefix_end(b"\xff") == b"\0"

    asyncio.run(body())


def test_a_lease_takes_its_keys_with_it(one_etcd: EtcdCluster, prefix: str) -> None:
    async def body() -> None:
        async with _client(one_etcd.options) as client:
            key = prefix.encode()
            lease = await client.grant(60)
            assert lease.TTL == 60
            await client.put(key, b"value", lease=lease.ID)
            assert (await client.range(key)).kvs[0].lease == lease.ID
            assert (await client.keepalive(lease.ID)).TTL == 60
            await client.revoke(lease.ID)
            assert (await client.range(key)).kvs == ()
            assert (await client.keepalive(lease.ID)).TTL == 0
            await client.revoke(lease.ID)

    asyncio.run(body())


def test_the_cluster_says_who_it_is(one_etcd: EtcdCluster) -> None:
    async def body() -> None:
        async with _client(one_etcd.options) as client:
            status = await client.status()
            assert status.version.startswith(one_etcd.members[0].program.release)
            members = await client.members()
            assert [member.name for member in members] == ["m0"]
            assert members[0].ID == status.leader == status.header.member_id

    asyncio.run(body())


async def _take(client: EtcdClient, key: bytes, start_revision: int, count: int) -> list[Event]:
    taken: list[Event] = []
    watch = client.watch(key, prefix_end(key), start_revision=start_revision)
    async with contextlib.aclosing(watch) as changes:
        async for events in changes:
            taken += events
            if len(taken) >= count:
                break
    return taken


def test_a_watch_tells_every_change_from_its_revision_on(one_etcd, prefix) -> None:
    async def body() -> None:
        async with _client(one_etcd.options) as client:
            key = prefix.encode()
            first = (await client.put(key, b"0")).header.revision
            watching = asyncio.ensure_future(_take(client, key, first, 5))
            for number in (1, 2, 3):
                await client.put(key, b"%d" % number)
            await client.delete(key)
            events = await watching
            assert [event.type for event in events] == ["PUT"] * 4 + ["DELETE"]
            assert [event.kv.value for event in events] == [b"0", b"1", b"2", b"3", b""]

    asyncio.run(body())


def test_a_watch_goes_on_after_silence_and_broken_connections(one_etcd, prefix) -> None:
    """A proxy cuts each connection. Every change is reported, and none twice."""

    async def body() -> None:
        async with _client(one_etcd.options) as direct, contextlib.AsyncExitStack() as stack:
            cut = asyncio.Event()
            proxy = await stack.enter_async_context(_listener(_proxy(one_etcd, cut=cut)))
            options = EtcdOptions(endpoints=(proxy,), watch_idle_s=0.05)
            client = await stack.enter_async_context(_client(options))
            key = prefix.encode()
            first = (await direct.put(key, b"0")).header.revision
            watching = asyncio.ensure_future(_take(client, key, first, 30))
            for number in range(1, 30):
                await direct.put(key, b"%d" % number)
                if number % 5 == 0:
                    cut.set()
                    await asyncio.sleep(0)
            values = [event.kv.value for event in await watching]
            assert values == [b"%d" % number for number in range(30)]

    asyncio.run(body())


def test_a_watch_from_before_a_compaction_is_told_so(one_etcd, prefix) -> None:
    async def body() -> None:
        async with _client(one_etcd.options) as client:
            key = prefix.encode()
            first = (await client.put(key, b"0")).header.revision
            last = (await client.put(key, b"1")).header.revision
            await client._call("kv/compaction", {"revision": str(last)}, object)
            with pytest.raises(EtcdCompactedError, match=str(last)):
                await _take(client, key, first, 1)

    asyncio.run(body())


# -- endpoints that fail --------------------------------------------------------------------------


def _proxy(
    cluster: EtcdCluster,
    *,
    cut: asyncio.Event | None = None,
    swallow: Callable[[bytes], bool] = lambda _request: False,
) -> Handler:
    """Passes bytes on to etcd. `cut` ends all connections; a request for which `swallow` is true

    reaches etcd, and its answer goes nowhere.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = cluster.endpoints[0].split(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        lost = asyncio.Event()

        async def up() -> None:
            while data := await reader.read(1 << 20):
                if swallow(data):
                    lost.set()
                up_writer.write(data)
                await up_writer.drain()

        async def down() -> None:
            while data := await up_reader.read(1 << 20):
                if lost.is_set():
                    return
                writer.write(data)
                await writer.drain()

        async def until_cut() -> None:
            if cut is None:
                await asyncio.Event().wait()
            else:
                await cut.wait()
                cut.clear()

        tasks = [asyncio.ensure_future(work()) for work in (up, down, until_cut)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            up_writer.close()

    return handle


async def _silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Reads everything and never answers, like a frozen member."""
    while await reader.read(1 << 16):
        pass


def test_a_silent_endpoint_costs_one_try_and_a_closed_one_nothing(one_etcd, prefix) -> None:
    async def body() -> None:
        closed = f"127.0.0.1:{free_port()}"
        asked = 0

        async def silent_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await _silent(reader, writer)

        async with _listener(silent_one) as silent:
            endpoints = (silent, closed, one_etcd.endpoints[0])
            options = EtcdOptions(endpoints=endpoints)
            async with _client(options) as client:
                _prefer(client, 0)
                started = time.monotonic()
                await client.range(prefix.encode())
                assert time.monotonic() - started >= options.try_timeout_s
                assert asked == 1
                # The one that answered is asked first from now on.
                await client.range(prefix.encode())
                assert asked == 1
                # A write may be lost at the silent one, and is never tried again by itself.
                _prefer(client, 0)
                with pytest.raises(EtcdUnknownError):
                    await client.put(prefix.encode(), b"value")
                # At the closed one it certainly was not done, so it goes on to the next.
                _prefer(client, 1)
                await client.put(prefix.encode(), b"value")

    asyncio.run(body())


ANSWER = b'{"header":{"cluster_id":"1","revision":"5"}}'


def _speaks(*parts: bytes, every_s: float = 0.0, size: int = len(ANSWER)) -> Handler:
    """Begins an answer of so many bytes and sends these parts of it. Then it is silent."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(every_s)
        await _silent(reader, writer)

    return speak


def test_an_answer_over_a_slow_line_is_no_silence() -> None:
    """A page of a log has 4 MB. On a slow line it takes longer than an attempt may be silent."""
    slow = _speaks(*(ANSWER[at : at + 7] for at in range(0, len(ANSWER), 7)), every_s=0.3)

    async def body() -> None:
        async with _listener(slow) as endpoint:
            options = EtcdOptions(endpoints=(endpoint,), try_timeout_s=1.0, timeout_s=10.0)
            async with _client(options) as client:
                assert (await client.range(b"key")).kvs == ()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("speaks", "why", "bound_s"),
    [
        (_speaks(), "no answer within 0.5 s", 5.0),
        (_speaks(ANSWER[:3]), "began to answer, and then was silent for 0.5 s", 5.0),
        (_speaks(*([b" "] * 900), every_s=0.02, size=1_000), "its answer was not complete", 10.0),
    ],
    ids=["nothing", "the-beginning", "without-end"],
)
def test_an_answer_that_does_not_end_is_left_in_time(
    speaks: Handler, why: str, bound_s: float
) -> None:
    async def body() -> None:
        async with _listener(speaks) as endpoint:
            # The whole call has 6 s, of which one attempt that hears nothing takes 0.5.
            options = EtcdOptions(endpoints=(endpoint,), try_timeout_s=0.5, timeout_s=6.0)
            async with _client(options) as client:
                began_s = time.monotonic()
                with pytest.raises(EtcdUnknownError, match=why):
                    await client.put(b"key", b"value")
                assert time.monotonic() - began_s < bound_s

    asyncio.run(body())


def test_a_write_that_a_member_never_took_up_goes_to_the_next() -> None:
    """No host has the first address, as if a machine is switched off: nothing was sent."""

    async def body() -> None:
        with socket.socket() as off, contextlib.ExitStack() as stack:
            off.bind(("127.0.0.1", 0))
            off.listen(0)
            for _ in range(3):  # Who comes now, when the queue is full, gets no answer.
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(off.getsockname())
            async with _listener(_speaks(ANSWER)) as endpoint:
                dead = f"127.0.0.1:{off.getsockname()[1]}"
                async with _client(EtcdOptions(endpoints=(dead, endpoint))) as client:
                    _prefer(client, 0)
                    await client.put(b"key", b"value")

    asyncio.run(body())


def test_a_watch_leaves_a_member_that_takes_it_up_and_never_answers() -> None:
    async def body() -> None:
        asked = asyncio.Event()

        async def next_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await _silent(reader, writer)

        async with _listener(_silent) as frozen, _listener(next_one) as endpoint:
            options = EtcdOptions(endpoints=(frozen, endpoint), try_timeout_s=0.5)
            async with _client(options) as client:
                _prefer(client, 0)
                watching = asyncio.ensure_future(_take(client, b"key", 1, 1))
                await asyncio.wait_for(asked.wait(), 20)
                watching.cancel()
                await asyncio.wait([watching])

    asyncio.run(body())


def test_the_ledger_finds_out_what_became_of_a_lost_answer(one_etcd, prefix) -> None:
    """etcd did the write and its answer was lost. The repeated write finds its own nonce."""

    async def body() -> None:
        losing = [b"\0"]

        def swallow(request: bytes) -> bool:
            if losing[0] in request:
                losing[0] = b"\0"
                return True
            return False

        async with _listener(_proxy(one_etcd, swallow=swallow)) as proxy:
            options = EtcdOptions(endpoints=(proxy, one_etcd.endpoints[0]), try_timeout_s=0.3)
            async with EtcdLedger(options, prefix) as ledger:
                for version in (None, 1):
                    now = await ledger.read("run")
                    _prefer(ledger._client, 0)
                    losing[0] = b"request_put"
                    outcome = await ledger.swap("run", now.version if now else version, b"same")
                    assert isinstance(outcome, Swapped)
                    assert losing == [b"\0"]
                    there = await ledger.read("run")
                    assert there is not None
                    assert outcome.version == there.version
                    if now is not None:
                        assert there.version > now.version
                _prefer(ledger._client, 0)
                losing[0] = b"request_put"
                assert await ledger.append("log", 0, b"same") == Created()
                assert losing == [b"\0"]
                _prefer(ledger._client, 0)
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

        async with _listener(hold) as frozen:
            # Long enough for etcd itself, whose answers here are not to be lost as well.
            endpoints = (frozen, one_etcd.endpoints[0])
            options = EtcdOptions(endpoints=endpoints, try_timeout_s=2.0, timeout_s=20.0)
            async with EtcdLedger(one_etcd.options, prefix) as other:
                ledger = EtcdLedger(options, prefix)
                _prefer(ledger._client, 1)
                async with ledger:
                    _prefer(ledger._client, 0)
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


def test_nobody_answers() -> None:
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


def test_a_ledger_that_went_away_makes_outcomes_unknown(etcd_program: Program) -> None:
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
            _prefer(ledger._client, 0)
            async with ledger:
                swapped = await ledger.swap("run", None, b"value")
                assert isinstance(swapped, Swapped)
                _prefer(ledger._client, 1)
                now = await ledger.read("run")
                assert now is not None
                assert now.value == b"value"
                _prefer(ledger._client, 1)
                assert (await ledger.changed("run", None, 5)) is not None
                first.members[0].kill()
                with pytest.raises(LedgerUnreachableError, match="belongs to cluster"):
                    await ledger.read("run")
                assert isinstance(await ledger.swap("run", None, b"value"), Unknown)
                assert await other.keys() == ()

    program = one_etcd.members[0].program
    with etcd(program) as first, etcd(program) as second:
        asyncio.run(body(first, second))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot Found",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["404", "html", "ssh"],
)
def test_something_else_listens_there(answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(answer)
        await writer.drain()

    async def body() -> None:
        async with _listener(speak) as endpoint:
            options = EtcdOptions(endpoints=(endpoint,))
            with pytest.raises(LedgerForeignError, match=endpoint) as told:
                await EtcdLedger(options).open()
            assert told.value.hint

    asyncio.run(body())


def test_no_endpoint_is_a_mistake_and_a_password_is_not_shown() -> None:
    with pytest.raises(UsageError):
        EtcdClient(EtcdOptions(endpoints=()))
    options = EtcdOptions(endpoints=("a:1",), user="u", password="hunter2")
    assert "hunter2" not in repr(options)
    assert "hunter2" not in str(options)


# -- users ----------------------------------------------------------------------------------------


async def _with_users(cluster: EtcdCluster) -> None:
    """Root, and a user who may use one prefix."""
    async with _client(cluster.options) as client:

        async def admin(path: str, **body: object) -> None:
            await client._call(f"auth/{path}", body, object)

        await admin("user/add", name="root", password="root-password")
        await admin("role/add", name="root")
        await admin("user/grant", user="root", role="root")
        await admin("user/add", name="ours", password="our-password")
        await admin("role/add", name="ours")
        permission = {"permType": "READWRITE", "key": b"/ours/", "range_end": b"/ours0"}
        await admin("role/grant", name="ours", perm=permission)
        await admin("user/grant", user="ours", role="ours")
        await admin("enable")


def test_users_and_passwords(etcd_program: Program) -> None:
    def options(cluster: EtcdCluster, user: str = "", password: str = "") -> EtcdOptions:
        return EtcdOptions(endpoints=cluster.endpoints, user=user, password=password)

    async def body(cluster: EtcdCluster) -> None:
        await _with_users(cluster)
        wrong: list[tuple[EtcdOptions, str, str]] = [
            (options(cluster), "/ours", "user"),
            (options(cluster, "ours", "wrong"), "/ours", "password"),
            (options(cluster, "nobody", "our-password"), "/ours", "password"),
            (options(cluster, "ours", "our-password"), "/theirs", "permission denied"),
        ]
        for each, prefix, said in wrong:
            with pytest.raises(LedgerAccessError, match=said) as told:
                await EtcdLedger(each, prefix).open()
            assert told.value.hint
            assert "our-password" not in str(told.value)
        async with EtcdLedger(options(cluster, "ours", "our-password"), "/ours") as ledger:
            first = await ledger.swap("run", None, b"1")
            assert isinstance(first, Swapped)
            # A token that has expired, or that its member forgot, is drawn anew.
            ledger._client._token = "expired.1"
            second = await ledger.swap("run", first.version, b"2")
            assert isinstance(second, Swapped)
            ledger._client._token = "expired.1"
            assert len(await ledger.keys()) == 1
            waiting = asyncio.ensure_future(ledger.changed("run", second.version, 30))
            ledger._client._token = "expired.1"
            assert isinstance(await ledger.swap("run", second.version, b"3"), Swapped)
            assert await waiting is not None

    with etcd(etcd_program) as cluster:
        asyncio.run(body(cluster))


def test_a_user_where_none_is_asked_for(one_etcd, prefix) -> None:
    async def body() -> None:
        options = EtcdOptions(endpoints=one_etcd.endpoints, user="any", password="any")
        async with EtcdLedger(options, prefix) as ledger:
            assert isinstance(await ledger.swap("run", None, b"1"), Swapped)

    asyncio.run(body())


# -- TLS ------------------------------------------------------------------------------------------


def test_tls_with_certificates_on_both_sides(etcd_program: Program, tmp_path: Path) -> None:
    make_certificates(tmp_path)

    def file(name: str) -> str:
        return str(tmp_path / name)

    server = [
        f"--cert-file={file('server.pem')}",
        f"--key-file={file('server.key')}",
        f"--trusted-ca-file={file('ca.pem')}",
        "--client-cert-auth=true",
    ]
    good = EtcdOptions(
        endpoints=("unused",),
        tls=True,
        ca_file=file("ca.pem"),
        cert_file=file("client.pem"),
        key_file=file("client.key"),
    )

    async def body(cluster: EtcdCluster) -> None:
        def options(**changes: object) -> EtcdOptions:
            values = {
                "endpoints": cluster.endpoints,
                "tls": True,
                "ca_file": good.ca_file,
                "cert_file": good.cert_file,
                "key_file": good.key_file,
            }
            return EtcdOptions(**{**values, **changes})  # type: ignore[arg-type]

        async with EtcdLedger(options()) as ledger:
            swapped = await ledger.swap("run", None, b"1")
            assert isinstance(swapped, Swapped)
            assert await ledger.changed("run", None, 5) is not None
        wrong: list[tuple[EtcdOptions, type[LedgerError]]] = [
            (options(ca_file=file("other-ca.pem")), LedgerAccessError),
            (options(ca_file=None), LedgerAccessError),
            (options(cert_file=None, key_file=None), LedgerAccessError),
            (options(ca_file=file("missing.pem")), LedgerAccessError),
            (options(key_file=file("ca.key")), LedgerAccessError),
            (options(tls=False), LedgerUnreachableError),
        ]
        for each, kind in wrong:
            with pytest.raises(kind) as told:
                await EtcdLedger(each).open()
            assert told.value.hint

    with etcd(etcd_program, options=server, tls=good) as cluster:
        asyncio.run(body(cluster))


def test_tls_to_a_port_without_it(one_etcd) -> None:
    async def body() -> None:
        options = EtcdOptions(endpoints=one_etcd.endpoints, tls=True, timeout_s=1.0)
        with pytest.raises(LedgerUnreachableError, match="does it speak TLS"):
            await EtcdLedger(options).open()

    asyncio.run(body())
