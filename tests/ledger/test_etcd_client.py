"""The client of etcd: keys, leases, watches, users and certificates, with real etcd 3.4 and 3.5."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from rallypoint.errors import (
    LedgerAccessError,
    LedgerError,
    LedgerUnreachableError,
)
from rallypoint.ledger.contract import Swapped
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.ledger.etcd.txn import compare, compare_absent, delete, get, put
from rallypoint.ledger.etcd.wire import EtcdCompactedError, prefix_end
from tests.ledger.etcd_certificates import make_certificates
from tests.ledger.etcd_endpoints import client_of, listening, proxy_of, take
from tests.ledger.etcd_processes import EtcdCluster, Program, etcd
from tests.ledger.etcd_users import require_users

pytestmark = pytest.mark.processes


# -- what it does -------------------------------------------------------------------------------


def test_keys_and_transactions_work(one_etcd: EtcdCluster, prefix: str) -> None:
    async def body() -> None:
        async with client_of(one_etcd.options) as client:
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
        async with client_of(one_etcd.options) as client:
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


def test_the_client_reads_status_and_members(one_etcd: EtcdCluster) -> None:
    async def body() -> None:
        async with client_of(one_etcd.options) as client:
            status = await client.status()
            assert status.version.startswith(one_etcd.members[0].program.release)
            members = await client.members()
            assert [member.name for member in members] == ["m0"]
            assert members[0].ID == status.leader == status.header.member_id

    asyncio.run(body())


def test_a_watch_reports_every_change_from_its_revision_on(one_etcd, prefix) -> None:
    async def body() -> None:
        async with client_of(one_etcd.options) as client:
            key = prefix.encode()
            first = (await client.put(key, b"0")).header.revision
            watching = asyncio.ensure_future(take(client, key, first, 5))
            for number in (1, 2, 3):
                await client.put(key, b"%d" % number)
            await client.delete(key)
            events = await watching
            assert [event.type for event in events] == ["PUT"] * 4 + ["DELETE"]
            assert [event.kv.value for event in events] == [b"0", b"1", b"2", b"3", b""]

    asyncio.run(body())


def test_a_watch_continues_after_silence_and_broken_connections(one_etcd, prefix) -> None:
    """A proxy cuts each connection. Every change is reported, and none twice."""

    async def body() -> None:
        async with client_of(one_etcd.options) as direct, contextlib.AsyncExitStack() as stack:
            cut = asyncio.Event()
            proxy = await stack.enter_async_context(listening(proxy_of(one_etcd, cut=cut)))
            options = EtcdOptions(endpoints=(proxy,), watch_idle_s=0.05)
            client = await stack.enter_async_context(client_of(options))
            key = prefix.encode()
            first = (await direct.put(key, b"0")).header.revision
            watching = asyncio.ensure_future(take(client, key, first, 30))
            for number in range(1, 30):
                await direct.put(key, b"%d" % number)
                if number % 5 == 0:
                    cut.set()
                    await asyncio.sleep(0)
            values = [event.kv.value for event in await watching]
            assert values == [b"%d" % number for number in range(30)]

    asyncio.run(body())


def test_a_watch_from_before_a_compaction_is_an_error(one_etcd, prefix) -> None:
    async def body() -> None:
        async with client_of(one_etcd.options) as client:
            key = prefix.encode()
            first = (await client.put(key, b"0")).header.revision
            last = (await client.put(key, b"1")).header.revision
            await client._call("kv/compaction", {"revision": str(last)}, object)
            with pytest.raises(EtcdCompactedError, match=str(last)):
                await take(client, key, first, 1)

    asyncio.run(body())


def test_users_and_passwords_are_checked(etcd_program: Program) -> None:
    def options(cluster: EtcdCluster, user: str = "", password: str = "") -> EtcdOptions:
        return EtcdOptions(endpoints=cluster.endpoints, user=user, password=password)

    async def body(cluster: EtcdCluster) -> None:
        await require_users(cluster)
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
            # A token that has expired, or that its member forgot, is fetched again.
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


def test_an_etcd_without_users_ignores_a_user(one_etcd, prefix) -> None:
    async def body() -> None:
        options = EtcdOptions(endpoints=one_etcd.endpoints, user="any", password="any")
        async with EtcdLedger(options, prefix) as ledger:
            assert isinstance(await ledger.swap("run", None, b"1"), Swapped)

    asyncio.run(body())


# -- TLS ------------------------------------------------------------------------------------------


def test_tls_works_with_certificates_on_both_sides(etcd_program: Program, tmp_path: Path) -> None:
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


def test_tls_to_a_port_without_tls_is_an_error(one_etcd) -> None:
    async def body() -> None:
        options = EtcdOptions(endpoints=one_etcd.endpoints, tls=True, timeout_s=1.0)
        with pytest.raises(LedgerUnreachableError, match="uses TLS there"):
            await EtcdLedger(options).open()

    asyncio.run(body())
