"""A node says nothing to a server that cannot prove that it is its token's coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from rallypoint.cli import api
from rallypoint.client.transport import connect
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.values import Address, RunSettings
from rallypoint.endpoints import parse_endpoint
from rallypoint.errors import NotACoordinatorError, TokenError, UntrustedCoordinatorError
from rallypoint.line_limits import LIMITS
from rallypoint.security import first_look, tls
from rallypoint.security.access import Access
from rallypoint.security.authority import Authority, new_host_token, new_secret
from rallypoint.security.identities import Identities, NoIdentityError
from rallypoint.security.state import State
from rallypoint.security.token_form import Identity, credential, parse, with_identity, written
from tests.loops import BOOTSTRAP, needs_ipv6, opened, run_clean, served

pytestmark = pytest.mark.sockets
TWO = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)
DAY = dt.timedelta(days=1)
Reach = Callable[[int, str], Awaitable[None]]


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(first_look, "_known", {})


async def dialled(port: int, token: str) -> None:
    connection = await connect(
        Address("127.0.0.1", port), ("127.0.0.1", port), socket.AF_INET, Access(token)
    )
    connection.close("the test is over")
    await connection.wait_closed()


@contextlib.asynccontextmanager
async def shows(identity: Identity) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server with this identity, and what it hears."""
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            heard.append(await reader.read(1000))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(hear, "127.0.0.1", 0, ssl=tls.server_context(identity))
    async with server:
        yield server.sockets[0].getsockname()[1], heard


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_nodes_of_one_token_meet_by_tls(host: str) -> None:
    token = new_host_token()

    async def main() -> None:
        async with served(CoordinatorConfig(token=token), host) as (server, port):
            where = f"http://{Address(host, port)}"
            nodes = credential(token)
            async with (
                opened(where, TWO, token=nodes) as a,
                opened(where, TWO, token=token) as b,
            ):
                rounds = await asyncio.gather(a.next_round(BOOTSTRAP), b.next_round(BOOTSTRAP))
                assert all(each is not None and each.head.size == 2 for each in rounds)
                for session in server.coordinator.sessions.values():
                    found = session.outlet._transport.get_extra_info("ssl_object")  # type: ignore[attr-defined]
                    assert found.version() == "TLSv1.3"
            found = await asyncio.to_thread(api.runs, parse_endpoint(where), nodes)
            assert [run["run_id"] for run in found["runs"]] == ["run"]

    run_clean(main)


def test_a_server_of_another_authority_hears_nothing() -> None:
    mine, other = new_host_token(), Authority.new()

    async def main() -> None:
        async with shows(other.identity()) as (port, heard):
            # First without knowing the authority's certificate, then with it.
            for token in (credential(mine), mine):
                with pytest.raises(UntrustedCoordinatorError) as caught:
                    await dialled(port, token)
                parts = parse(mine)
                assert parts is not None
                assert parts.ca[:16] in caught.value.message
                assert other.ca[:16] in caught.value.message
                endpoint = parse_endpoint(f"http://127.0.0.1:{port}")
                with pytest.raises(UntrustedCoordinatorError, match=other.ca[:16]):
                    await asyncio.to_thread(api.runs, endpoint, token)
            assert b"".join(heard) == b""

    run_clean(main)


def test_a_server_that_repeats_the_authoritys_certificate_hears_nothing() -> None:
    """It is public. Only who has a key that the authority has signed can finish the handshake."""
    authority, thief = Authority.new(), Authority.new()
    stolen = thief.identity()
    pretended = Identity(authority.der, stolen.leaf, stolen.key)
    token = written(authority.ca, new_secret())

    async def main() -> None:
        async with shows(pretended) as (port, heard):
            with pytest.raises(UntrustedCoordinatorError):
                await dialled(port, token)
            with pytest.raises(UntrustedCoordinatorError):
                await asyncio.to_thread(api.runs, parse_endpoint(f"http://127.0.0.1:{port}"), token)
            assert b"".join(heard) == b""

    run_clean(main)


def _with_other_names(authority: Authority, signer: Authority | None = None) -> Authority:
    """The authority with another certificate for its key. `signer`: not itself, but this one."""
    _, key = map(load_pem, authority.pem())
    by = key if signer is None else load_pem(signer.pem()[1])
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "other names")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, now - DAY, now + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(by, hashes.SHA256())
    )
    return Authority(certificate, key)


def load_pem(text: bytes) -> Any:
    if b"CERTIFICATE" in text:
        return x509.load_pem_x509_certificate(text)
    return serialization.load_pem_private_key(text, None)


async def fetched(port: int, token: str) -> None:
    """As one coordinator asks another one."""
    parts = parse(token)
    assert parts is not None

    async def where() -> dict[str, Any]:
        return {"host": "127.0.0.1", "port": port}

    async with aiohttp.ClientSession() as http:
        url = f"https://127.0.0.1:{port}/healthz"
        answer = await first_look.dial(parts, where, lambda c: http.get(url, **c.options))
        answer.close()


async def commanded(port: int, token: str) -> None:
    await asyncio.to_thread(api.runs, parse_endpoint(f"http://127.0.0.1:{port}"), token)


WAYS = pytest.mark.parametrize("reach", [dialled, commanded, fetched])


@WAYS
def test_a_certificate_is_kept_only_once_a_handshake_has_proved_it(reach: Reach) -> None:
    """A server can put the authority's public key into a certificate of its own."""
    authority, thief = Authority.new(), Authority.new()
    stolen = thief.identity()
    pretended = Identity(_with_other_names(authority, thief).der, stolen.leaf, stolen.key)
    token = written(authority.ca, new_secret(), authority.identity())

    async def main() -> None:
        async with shows(pretended) as (port, heard):
            with pytest.raises((UntrustedCoordinatorError, ssl.SSLCertVerificationError)):
                await reach(port, credential(token))
            assert b"".join(heard) == b""
        async with served(CoordinatorConfig(token=token)) as (_, port):
            await reach(port, credential(token))

    run_clean(main)


@WAYS
def test_a_new_certificate_for_the_same_key_is_looked_at(reach: Reach) -> None:
    authority = Authority.new()
    renewed = _with_other_names(authority)
    secret = new_secret()

    async def main() -> None:
        for each in (authority, renewed, authority):
            token = written(each.ca, secret, each.identity())
            async with served(CoordinatorConfig(token=token)) as (_, port):
                for _ in range(2):
                    await reach(port, credential(token))

    run_clean(main)


@pytest.mark.parametrize(
    ("begins", "valid", "said"),
    [
        (-10 * DAY, DAY, "its certificate has expired"),
        (10 * DAY, DAY, "its certificate is not valid yet"),
    ],
)
def test_a_certificate_counts_in_its_time_only(
    begins: dt.timedelta, valid: dt.timedelta, said: str
) -> None:
    authority = Authority.new()
    identity = authority.identity(valid, dt.datetime.now(dt.UTC) + begins)

    async def main() -> None:
        async with shows(identity) as (port, heard):
            with pytest.raises(UntrustedCoordinatorError, match=said) as caught:
                await dialled(port, written(authority.ca, new_secret()))
            assert "date" in caught.value.hint
            assert b"".join(heard) == b""

    run_clean(main)


def test_clocks_that_differ_by_minutes_agree() -> None:
    """The certificate's maker may be ahead of the node by LEEWAY, or behind it (R9)."""
    authority = Authority.new()
    now = dt.datetime.now(dt.UTC)

    async def main() -> None:
        for identity in (
            authority.identity(DAY, now + dt.timedelta(minutes=4)),
            authority.identity(DAY, now - DAY - dt.timedelta(minutes=4)),
        ):
            token = with_identity(written(authority.ca, new_secret()), identity)
            async with served(CoordinatorConfig(token=token)) as (_, port):
                await dialled(port, credential(token))

    run_clean(main)


def test_a_coordinator_with_two_authorities_shows_each_to_who_trusts_it() -> None:
    first, second = new_host_token(), new_host_token()
    config = CoordinatorConfig(token=first, more_tokens=(second,))

    async def main() -> None:
        async with served(config) as (_, port):
            for token in (first, second, credential(first), credential(second)):
                await dialled(port, token)
            with pytest.raises(UntrustedCoordinatorError):
                await dialled(port, new_host_token())

    run_clean(main)


def test_a_secret_that_differs_is_refused_by_the_right_coordinator() -> None:
    authority = Authority.new()
    token = with_identity(written(authority.ca, new_secret()), authority.identity())

    async def main() -> None:
        async with served(CoordinatorConfig(token=token)) as (_, port):
            with pytest.raises(TokenError, match="the token is wrong"):
                await dialled(port, written(authority.ca, new_secret()))

    run_clean(main)


def test_clear_and_tls_do_not_meet_and_are_told() -> None:
    token = new_host_token()

    async def main() -> None:
        async with served(CoordinatorConfig(token=token)) as (_, port):
            for other in ("", "VQ2t9qk0X5cM1sB7nJ4eRw"):
                with pytest.raises(UntrustedCoordinatorError, match="uses TLS") as caught:
                    await dialled(port, other)
                assert caught.value.needs_token
                endpoint = parse_endpoint(f"http://127.0.0.1:{port}")
                with pytest.raises(UntrustedCoordinatorError, match="uses TLS"):
                    await asyncio.to_thread(api.runs, endpoint, other)
        async with served() as (_, port):
            with pytest.raises(NotACoordinatorError, match=r"does not speak TLS 1\.3") as told:
                await dialled(port, token)
            assert "started without a token" in told.value.hint

    run_clean(main)


@pytest.mark.parametrize("has_tls", [False, True])
def test_a_client_that_speaks_tls_or_not_as_the_port_does_not_is_logged(
    has_tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Once in a while: a health check repeats it. A client of ours has its own error."""
    LIMITS.reset()
    caplog.set_level("INFO", "rallypoint")

    async def main() -> None:
        config = CoordinatorConfig(token=new_host_token()) if has_tls else CoordinatorConfig()
        async with served(config) as (_, port):
            context = None if has_tls else tls.looking_context()
            for _ in range(3):
                with contextlib.suppress(ssl.SSLError, ConnectionError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                    writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
                    assert await reader.read() == b""
                    writer.close()

    run_clean(main)
    LIMITS.reset()
    said = [each for each in caplog.messages if each.startswith("a client at 127.0.0.1 speaks")]
    right = "this port speaks TLS: use https://" if has_tls else "speaks plain HTTP: use http://"
    assert len(said) == 1
    assert right in said[0]


def test_older_versions_of_tls_are_refused() -> None:
    token = new_host_token()

    async def main() -> None:
        async with served(CoordinatorConfig(token=token)) as (_, port):
            old = tls.looking_context()
            old.minimum_version = ssl.TLSVersion.TLSv1_2
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await asyncio.open_connection("127.0.0.1", port, ssl=old)
            await dialled(port, token)

    run_clean(main)


def test_who_has_a_nodes_token_cannot_be_a_coordinator() -> None:
    token = credential(new_host_token())
    with pytest.raises(NoIdentityError):
        Identities([token])
    with pytest.raises(NoIdentityError):
        CoordinatorServer(CoordinatorConfig(token=token))


def test_a_stranger_that_begins_a_handshake_and_stops_is_cut() -> None:
    async def main() -> None:
        config = CoordinatorConfig(token=new_host_token(), attach_timeout_s=0.3)
        async with served(config) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\x16\x03\x01")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    run_clean(main)


def test_an_identity_whose_key_is_anothers_is_refused() -> None:
    good, other = Authority.new().identity(), Authority.new().identity()
    with pytest.raises(ValueError, match="is not usable"):
        tls.server_context(Identity(good.ca, good.leaf, other.key))


def test_another_program_can_check_the_certificate_by_its_name(tmp_path: Path) -> None:
    """As Prometheus and curl do: the authority's certificate, and a name to expect."""
    state = State(tmp_path / "state")
    state.create()
    [token] = state.host_tokens()

    async def main() -> None:
        context = ssl.create_default_context(cafile=str(state.folder / "ca.crt"))
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
        async with served(CoordinatorConfig(token=token)) as (_, port):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="rallypoint"
            )
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
            writer.close()
            with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
                await asyncio.open_connection(
                    "127.0.0.1", port, ssl=context, server_hostname="another"
                )

    run_clean(main)


def test_a_damaged_token_in_a_lease_is_an_error_that_names_the_address() -> None:
    async def main() -> None:
        async with served() as (_, port):
            with pytest.raises(NotACoordinatorError, match=f"127.0.0.1:{port}.* is not complete"):
                await dialled(port, "rlp1.damaged")

    run_clean(main)
