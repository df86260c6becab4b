"""The backend in etcd: what torch asks of every backend, and what comes of an etcd in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.rendezvous.api import (
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousStateError,
)
from rallypoint.rendezvous.dynamic_rendezvous import RendezvousBackend
from rallypoint.rendezvous.etcd_blocking import EtcdConnection
from rallypoint.rendezvous.etcd_rendezvous import create_rdzv_handler
from rallypoint.rendezvous.etcd_rendezvous_backend import EtcdRendezvousBackend, create_backend
from rallypoint.rendezvous.etcd_store import EtcdStore
from tests.ledger.etcd_certificates import make_certificates
from tests.ledger.etcd_processes import EtcdCluster, EtcdProcess, Program, etcd
from tests.ports import free_port
from tests.rendezvous.backends import takes_at_most
from tests.rendezvous.etcd_lines import lossy_line

pytestmark = pytest.mark.processes


@pytest.fixture
def backend(etcd_client: EtcdConnection, prefix: str) -> EtcdRendezvousBackend:
    return EtcdRendezvousBackend(etcd_client, "run", key_prefix=prefix)


def test_etcds_backend_is_a_backend(backend: EtcdRendezvousBackend) -> None:
    assert isinstance(backend, RendezvousBackend)
    assert backend.name == "etcd-v2"


def test_there_is_no_state_at_first(backend: EtcdRendezvousBackend) -> None:
    assert backend.get_state() is None


def test_a_state_is_created_if_there_is_none(backend: EtcdRendezvousBackend) -> None:
    created = backend.set_state(b"first")
    assert created is not None
    state, token, is_set = created
    assert (state, is_set) == (b"first", True)
    assert backend.get_state() == (b"first", token)


@pytest.mark.parametrize("none", [None, 0, ""])
def test_without_a_token_nothing_is_replaced(backend: EtcdRendezvousBackend, none: Any) -> None:
    first = backend.set_state(b"first")
    assert first is not None
    assert backend.set_state(b"second", none) == (b"first", first[1], False)


def test_with_its_token_a_state_is_replaced(backend: EtcdRendezvousBackend) -> None:
    first = backend.set_state(b"first")
    assert first is not None
    second = backend.set_state(b"second", first[1])
    assert second is not None
    assert (second[0], second[2]) == (b"second", True)
    assert second[1] != first[1]
    assert backend.get_state() == (b"second", second[1])


def test_a_token_may_come_as_text(backend: EtcdRendezvousBackend) -> None:
    first = backend.set_state(b"first")
    assert first is not None
    second = backend.set_state(b"second", str(first[1]))
    assert second is not None
    assert second[2]


def test_a_stale_token_changes_nothing(backend: EtcdRendezvousBackend) -> None:
    first = backend.set_state(b"first")
    assert first is not None
    second = backend.set_state(b"second", first[1])
    assert second is not None
    assert backend.set_state(b"third", first[1]) == (b"second", second[1], False)
    assert backend.get_state() == (b"second", second[1])


SENSELESS = [
    "text",
    "1.5",
    1.5,
    pytest.param(object(), id="an object"),
    (),
    (1,),
    b"1",
    -1,
    1 << 70,
    True,
]


@pytest.mark.parametrize("token", SENSELESS, ids=repr)
def test_a_senseless_token_changes_nothing(backend: EtcdRendezvousBackend, token: Any) -> None:
    if token:
        assert backend.set_state(b"first", token) is None
        assert backend.get_state() is None
    first = backend.set_state(b"first")
    assert first is not None
    assert backend.set_state(b"second", token) == (b"first", first[1], False)


@pytest.mark.parametrize("garbage", ["non_base64", "a", "é"])
def test_garbage_is_a_state_error(
    backend: EtcdRendezvousBackend,
    etcd_client: EtcdConnection,
    prefix: str,
    garbage: str,
) -> None:
    etcd_client.write(f"{prefix}/run", garbage)
    with pytest.raises(RendezvousStateError, match=f"{prefix}/run"):
        backend.get_state()
    with pytest.raises(RendezvousStateError, match=f"{prefix}/run"):
        backend.set_state(b"state")
    with pytest.raises(RendezvousStateError, match=f"{prefix}/run"):
        backend.set_state(b"state", "text")


def test_states_are_any_bytes_and_any_size_up_to_etcds(backend: EtcdRendezvousBackend) -> None:
    for state in (b"", bytes(range(256)), b"x" * 900_000):
        now = backend.get_state()
        done = backend.set_state(state, now[1] if now else None)
        assert done is not None
        assert (done[0], done[2]) == (state, True)


def test_its_arguments_are_checked(etcd_client: EtcdConnection) -> None:
    with pytest.raises(ValueError, match="run id"):
        EtcdRendezvousBackend(etcd_client, "")

    class Client:
        """As python-etcd's: it speaks v2."""

    with pytest.raises(TypeError, match=r"Client.*v2.*EtcdConnection\(host, port\)"):
        EtcdRendezvousBackend(Client(), "run")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="v2"):
        EtcdStore(Client(), "/prefix")  # type: ignore[arg-type]


async def _lease_ttl(client: EtcdConnection, key: str) -> tuple[int, int]:
    etcd = await client.client()
    lease = (await etcd.range(key.encode())).kvs[0].lease
    return lease, (await etcd.keepalive(lease)).TTL


def test_a_state_lives_for_its_ttl(etcd_client: EtcdConnection, prefix: str) -> None:
    for given, expected in ((None, 7200), (0, 7200), (-5, 7200), (100, 100)):
        name = f"run{given}"
        EtcdRendezvousBackend(etcd_client, name, key_prefix=prefix, ttl=given).set_state(b"state")
        assert etcd_client.run(_lease_ttl(etcd_client, f"{prefix}/{name}"))[1] == expected


def test_a_state_goes_at_its_ttl_and_the_next_write_makes_a_new_lease(
    etcd_client: EtcdConnection, prefix: str
) -> None:
    backend = EtcdRendezvousBackend(etcd_client, "run", key_prefix=prefix, ttl=1)
    first = backend.set_state(b"first")
    assert first is not None

    async def gone() -> None:
        etcd = await etcd_client.client()
        watch = etcd.watch(f"{prefix}/run".encode(), start_revision=first[1] + 1)
        async with contextlib.aclosing(watch) as changes:
            assert (await anext(changes))[0].type == "DELETE"

    etcd_client.run(etcd_client.within(20, gone()))
    assert backend.get_state() is None
    assert backend.set_state(b"late", first[1]) is None
    second = backend.set_state(b"second")
    assert second is not None
    assert second[2]


def test_a_write_renews_the_lease(etcd_client: EtcdConnection, prefix: str) -> None:
    """With a time to live of which each tenth is over at once, every write renews."""
    backend = EtcdRendezvousBackend(etcd_client, "run", key_prefix=prefix, ttl=8)
    now = backend.set_state(b"0")
    started = time.monotonic()
    writes = 0
    while time.monotonic() - started < 10:
        assert now is not None, f"gone after {writes} writes"
        now = backend.set_state(b"%d" % writes, now[1])
        writes += 1
    assert now is not None


# -- an etcd in trouble ---------------------------------------------------------------------------


def test_an_unreachable_etcd_is_an_error_with_place_and_reason(prefix: str) -> None:
    port = free_port()
    client = EtcdConnection("127.0.0.1", port, read_timeout=2)
    backend = EtcdRendezvousBackend(client, "run", key_prefix=prefix)
    for call in (backend.get_state, lambda: backend.set_state(b"x")):
        with takes_at_most(2), pytest.raises(RendezvousConnectionError) as told:
            call()
        assert str(told.value) == (
            "The connection to etcd has failed. See inner exception for details."
        )
        (note,) = told.value.__notes__
        for part in ("127.0.0.1", str(port), f"{prefix}/run", "refused"):
            assert part in note, part
        assert told.value.__cause__ is not None
    client.close()


def test_a_frozen_etcd_delays_no_call_past_its_deadline(
    failing_etcd: EtcdProcess, prefix: str
) -> None:
    client = EtcdConnection("127.0.0.1", failing_etcd.client_port, read_timeout=3)
    backend = EtcdRendezvousBackend(client, "run", key_prefix=prefix)
    first = backend.set_state(b"first")
    assert first is not None
    failing_etcd.freeze()
    for call in (backend.get_state, lambda: backend.set_state(b"second", first[1])):
        with takes_at_most(3), pytest.raises(RendezvousConnectionError):
            call()
    failing_etcd.thaw()
    now = backend.get_state()
    assert now is not None
    # The write was sent, and etcd may have done it when it went on.
    assert now[0] in (b"first", b"second")
    failing_etcd.kill()
    with pytest.raises(RendezvousConnectionError):
        backend.get_state()
    client.close()


def test_the_outcome_of_a_write_without_an_answer_is_read(
    one_etcd: EtcdCluster, prefix: str
) -> None:
    with lossy_line(one_etcd.endpoints[0]) as line:
        client = EtcdConnection("127.0.0.1", line.port)
        backend = EtcdRendezvousBackend(client, "run", key_prefix=prefix)
        line.lose = True
        first = backend.set_state(b"first")
        assert line.lost == 1
        assert first is not None
        assert (first[0], first[2]) == (b"first", True)
        assert backend.get_state() == first[:2]
        client.close()


def test_a_replaced_write_without_an_answer_must_be_read_again(
    one_etcd: EtcdCluster, etcd_client: EtcdConnection, prefix: str
) -> None:
    other = EtcdRendezvousBackend(etcd_client, "run", key_prefix=prefix)

    def replace() -> None:
        now = other.get_state()
        assert now is not None
        other.set_state(b"other's", now[1])

    with lossy_line(one_etcd.endpoints[0]) as line:
        client = EtcdConnection("127.0.0.1", line.port)
        backend = EtcdRendezvousBackend(client, "run", key_prefix=prefix)
        line.meanwhile, line.lose = replace, True
        assert backend.set_state(b"first") is None
        now = backend.get_state()
        assert now is not None
        assert now[0] == b"other's"
        client.close()


# -- create_backend -------------------------------------------------------------------------------


def _params(endpoint: str, run_id: str = "run", **config: Any) -> RendezvousParameters:
    return RendezvousParameters("etcd-v2", endpoint, run_id, 1, 1, **config)


def test_the_backend_is_created_from_parameters(one_etcd: EtcdCluster, prefix: str) -> None:
    where = one_etcd.endpoints[0]
    run_id = prefix.strip("/")
    backend, store = create_backend(_params(where, run_id, protocol=" hTTp ", read_timeout="10"))
    assert backend.name == "etcd-v2"
    assert isinstance(store, EtcdStore)
    assert store.client.protocol == "http"
    assert store.client.read_timeout == 10
    assert store.client.endpoints == (where,)
    done = backend.set_state(b"state")
    assert done is not None
    assert done[2]
    store.set(run_id, "value")
    assert store.get(run_id) == b"value"
    assert store.client.read(f"/torch/elastic/rendezvous/{run_id}") is not None
    assert store.delete_key(run_id)
    store.client.close()


def test_read_timeout_and_protocol_have_defaults(one_etcd: EtcdCluster) -> None:
    _, store = create_backend(_params(one_etcd.endpoints[0]))
    assert (store.client.read_timeout, store.client.protocol) == (60, "http")
    store.client.close()


def test_tls_works_with_certificates_on_both_sides(
    etcd_program: Program, tmp_path: Path, prefix: str
) -> None:
    """The newer and the older backend: their options have different names."""
    make_certificates(tmp_path)
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "client.pem", "client.key"))
    server = (
        f"--cert-file={tmp_path / 'server.pem'}",
        f"--key-file={tmp_path / 'server.key'}",
        f"--trusted-ca-file={ca}",
        "--client-cert-auth=true",
    )
    tls = EtcdOptions(endpoints=("unused",), tls=True, ca_file=ca, cert_file=cert, key_file=key)
    with etcd(etcd_program, options=server, tls=tls) as cluster:
        where = cluster.endpoints[0]
        given = {"ssl_cert": cert, "ssl_cert_key": key, "ca_cert": ca}
        backend, store = create_backend(_params(where, protocol="https", **given))
        done = backend.set_state(b"state")
        assert done is not None
        assert done[2]
        store.client.close()
        for wrong in ({"ca_cert": None}, {"ssl_cert": None}, {"ca_cert": str(tmp_path / "no.pem")}):
            options: dict[str, Any] = {**given, **wrong, "protocol": "https", "read_timeout": 1}
            with pytest.raises(RendezvousConnectionError, match=r"certificate|TLS"):
                create_backend(_params(where, **options))
        older = create_rdzv_handler(
            RendezvousParameters(
                "etcd", where, "run", 1, 1, local_addr="127.0.0.1", etcd_prefix=prefix,
                protocol="https", cacert=ca, cert=cert, key=key,
            )
        )  # fmt: skip
        assert older.next_rendezvous().world_size == 1
        assert older.shutdown()


def test_several_members_can_be_named(one_etcd: EtcdCluster) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    backend, store = create_backend(_params(f"{nobody}, {one_etcd.endpoints[0]}"))
    assert store.client.endpoints == (nobody, one_etcd.endpoints[0])
    backend.get_state()
    store.client.close()


@pytest.mark.parametrize("protocol", ["ftp", "http2", "x"])
def test_a_bad_protocol_is_refused(protocol: str) -> None:
    with pytest.raises(ValueError, match=r"^The protocol must be HTTP or HTTPS\.$"):
        create_backend(_params("localhost", protocol=protocol))


@pytest.mark.parametrize("read_timeout", ["0", "-10"])
def test_a_bad_read_timeout_is_refused(read_timeout: str) -> None:
    with pytest.raises(ValueError, match=r"^The read timeout must be a positive integer\.$"):
        create_backend(_params("localhost", read_timeout=read_timeout))


def test_options_that_do_not_parse_are_named() -> None:
    with pytest.raises(ValueError, match="read_timeout"):
        create_backend(_params("localhost", read_timeout="soon"))
    with pytest.raises(ValueError, match="port"):
        create_backend(_params("localhost:99999"))


def test_an_endpoint_without_a_port_has_etcds_port() -> None:
    port = 2379
    with pytest.raises(RendezvousConnectionError, match=f"192.0.2.1:{port}"):
        create_backend(_params("192.0.2.1", read_timeout="1"))


def test_an_unreachable_etcd_is_an_error_in_time() -> None:
    given = _params("no-such-host.invalid:1234", read_timeout="1")
    with (
        takes_at_most(1),
        pytest.raises(RendezvousConnectionError, match=r"no-such-host\.invalid:1234") as told,
    ):
        create_backend(given)
    assert "connect" in str(told.value)


def test_another_program_is_refused_as_no_etcd(prefix: str) -> None:
    async def not_found(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        writer.close()

    async def body() -> None:
        server = await asyncio.start_server(not_found, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RendezvousConnectionError, match="is not etcd"):
            await asyncio.to_thread(
                create_backend, _params(f"127.0.0.1:{port}", prefix, read_timeout="10")
            )
        server.close()
        await server.wait_closed()

    asyncio.run(body())
