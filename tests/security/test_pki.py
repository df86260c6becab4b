"""A coordinator and its nodes with certificates of one's own authority."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from rallypoint.cli import api
from rallypoint.client.transport import connect
from rallypoint.coordinator import guard
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.values import Address, RunSettings
from rallypoint.endpoints import Endpoint, parse_endpoint
from rallypoint.errors import (
    TokenError,
    UnreachableError,
    UntrustedCoordinatorError,
    UsageError,
)
from rallypoint.security import claims, pki
from rallypoint.security.access import Access, CertificateFileError, Certificates
from rallypoint.security.authority import new_host_token
from rallypoint.security.client_certificates import UnknownClientError, principal_of
from rallypoint.security.hashed import check_id
from rallypoint.security.roles import Denial, Principal, Right, Role
from rallypoint.security.token_form import credential
from rallypoint.settings import certificates_of_command, node_settings
from rallypoint.tokens import NONE, Keys
from rallypoint.wire.messages import ATTACH_PATH
from tests.loops import BOOTSTRAP, opened, run_clean, served
from tests.security.pki import DAY, Issuer

pytestmark = pytest.mark.sockets
ONE = RunSettings(min_nodes=1, max_nodes=1, max_restarts=None)
PLAIN = "a-token-without-an-authority"


@pytest.fixture
def own(tmp_path: Path) -> Issuer:
    """The authority of coordinators and clients."""
    return Issuer(tmp_path / "own")


def config(files: tuple[Path, Path], client_ca: Path | None = None, **more: Any) -> Any:
    shown = Certificates(cert=str(files[0]), key=str(files[1]))
    clients = None if client_ca is None else str(client_ca)
    return CoordinatorConfig(certificates=shown, client_ca=clients, **more)


def at(port: int, host: str = "127.0.0.1") -> str:
    return f"https://{host}:{port}"


async def dialled(port: int, access: Access) -> None:
    connection = await connect(
        Address("127.0.0.1", port), ("127.0.0.1", port), socket.AF_INET, access
    )
    connection.close("the test is over")
    await connection.wait_closed()


@contextlib.asynccontextmanager
async def serving(own: Issuer, *hosts: str, **how: Any) -> AsyncIterator[int]:
    async with served(config(own.issue("server", *hosts), **how)) as (_, port):
        yield port


def trusting(issuer: Issuer, name: str = "127.0.0.1", token: str = PLAIN) -> Access:
    return Access(token, Certificates(str(issuer.file)), name)


# -- the coordinator's certificate -----------------------------------------------------------------


def test_nodes_and_commands_trust_the_authority_of_a_file(
    own: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(own, "127.0.0.1", token=PLAIN) as port:
            async with opened(at(port), ONE, token=PLAIN, tls_ca=str(own.file)) as node:
                made = await node.next_round(BOOTSTRAP)
                assert made is not None
            monkeypatch.setenv("RALLYPOINT_TLS_CA", str(own.file))
            found = await asyncio.to_thread(api.runs, parse_endpoint(at(port)), PLAIN)
            assert [run["run_id"] for run in found["runs"]] == ["run"]

    run_clean(main)


def test_nodes_of_a_token_meet_beside_those_of_the_pki(own: Issuer) -> None:
    token = new_host_token()

    async def main() -> None:
        async with serving(own, "127.0.0.1", token=token) as port:
            nodes = credential(token)
            async with (
                opened(at(port), ONE, token=nodes),
                opened(at(port), ONE, "other", token=nodes, tls_ca=str(own.file)),
            ):
                pass

    run_clean(main)


def test_a_certificate_of_another_authority_is_told_with_both_fingerprints(
    own: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Issuer(tmp_path / "other", "Other CA")

    async def main() -> None:
        async with serving(own, "127.0.0.1", token=PLAIN) as port:
            shown = pki.fingerprint(der(own.file.parent / "server.pem"))[:16]
            trusted = pki.fingerprint(der(other.file))[:16]
            with pytest.raises(UntrustedCoordinatorError) as caught:
                await dialled(port, trusting(other))
            assert shown in caught.value.message
            assert trusted in caught.value.message
            assert "--tls-ca" in caught.value.hint
            monkeypatch.setenv("RALLYPOINT_TLS_CA", str(other.file))
            with pytest.raises(UntrustedCoordinatorError) as caught:
                await asyncio.to_thread(api.runs, parse_endpoint(at(port)), PLAIN)
            assert shown in caught.value.message

    run_clean(main)


def der(file: Path) -> bytes:
    import ssl

    return ssl.PEM_cert_to_DER_cert(file.read_text())


def test_a_certificate_for_another_host_is_told_with_its_names(own: Issuer) -> None:
    async def main() -> None:
        async with serving(own, "rally.example", "10.1.2.3", token=PLAIN) as port:
            with pytest.raises(UntrustedCoordinatorError) as caught:
                await dialled(port, trusting(own))
            assert "rally.example, 10.1.2.3, and not for '127.0.0.1'" in caught.value.message
            await dialled(port, trusting(own, "rally.example"))

    run_clean(main)


@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [(-2, -1, "has expired"), (1, 2, "is not valid yet")],
    ids=["expired", "early"],
)
def test_a_certificate_of_another_time_is_told(
    own: Issuer, begins: int, ends: int, said: str
) -> None:
    files = own.issue("server", "127.0.0.1", begins=begins * DAY, ends=ends * DAY)

    async def main() -> None:
        async with served(config(files, token=PLAIN)) as (_, port):
            with pytest.raises(UntrustedCoordinatorError, match=f"which {said}") as caught:
                await dialled(port, trusting(own))
            shown = pki.fingerprint(der(files[0]))[:16]
            assert shown in caught.value.message
            assert "--state" not in caught.value.hint  # It has no state directory.

    run_clean(main)


def test_a_coordinator_of_a_token_tells_a_node_without_one_what_it_needs() -> None:
    async def main() -> None:
        async with served(CoordinatorConfig(token=new_host_token())) as (_, port):
            with pytest.raises(UntrustedCoordinatorError, match="of a token's authority") as caught:
                await dialled(port, Access("", Certificates(), "127.0.0.1"))
            assert caught.value.needs_token

    run_clean(main)


def test_a_renewed_certificate_is_shown_without_a_restart(own: Issuer) -> None:
    files = own.issue("server", "old.example")

    async def main() -> None:
        async with served(config(files, token=PLAIN)) as (server, port):
            assert isinstance(server, CoordinatorServer)
            await dialled(port, trusting(own, "old.example"))
            own.issue("server", "new.example")
            server.replace_tokens((PLAIN,))
            await dialled(port, trusting(own, "new.example"))
            files[0].write_text("damaged")
            with pytest.raises(CertificateFileError):
                server.replace_tokens((PLAIN,))
            await dialled(port, trusting(own, "new.example"))

    run_clean(main)


def test_the_files_can_be_read_in_a_thread_before_they_are_used(own: Issuer) -> None:
    # A file system may hang, and the event loop must not wait for it.
    files = own.issue("server", "old.example")

    async def main() -> None:
        async with served(config(files, token=PLAIN)) as (server, port):
            own.issue("server", "new.example")
            prepared = await asyncio.to_thread(server.prepare, (PLAIN,))
            for each in files:
                each.unlink()
            await dialled(port, trusting(own, "old.example"))
            server.replace_tokens((PLAIN,), identities=prepared)
            await dialled(port, trusting(own, "new.example"))

    run_clean(main)


# -- clients' certificates -------------------------------------------------------------------------


def shown_by(own: Issuer, uri: str = "", **how: Any) -> Certificates:
    cert, key = own.issue("client", uris=(uri,) if uri else (), **how)
    return Certificates(str(own.file), str(cert), str(key))


def test_a_role_runs_and_node_of_a_certificate_count(own: Issuer) -> None:
    async def main() -> None:
        async with serving(own, "127.0.0.1", client_ca=own.file) as port:
            cert, key = own.issue("a", uris=("spiffe://rallypoint/node/team-*/a",))
            mine = {"tls_ca": str(own.file), "tls_cert": str(cert), "tls_key": str(key)}
            async with opened(at(port), ONE, "team-1", node_name="a", **mine) as node:
                assert await node.next_round(BOOTSTRAP) is not None
            for name, run_id, said in (
                ("a", "other", "runs that match 'team-\\*'"),
                ("b", "team-2", "of node 'a', and not of 'b'"),
            ):
                with pytest.raises(TokenError, match=said):
                    async with opened(at(port), ONE, run_id, node_name=name, **mine):
                        pass
            viewer = shown_by(own, "spiffe://rallypoint/viewer")
            with pytest.raises(TokenError, match="may not join a run"):
                await dialled(port, Access("", viewer, "127.0.0.1"))

    run_clean(main)


def test_a_certificate_that_is_revoked_is_refused_and_its_connection_ends(own: Issuer) -> None:
    async def main() -> None:
        files = own.issue("server", "127.0.0.1")
        async with served(config(files, client_ca=own.file)) as (server, port):
            cert, key = own.issue("a", uris=("spiffe://rallypoint/node",))
            mine = {"tls_ca": str(own.file), "tls_cert": str(cert), "tls_key": str(key)}
            async with opened(at(port), ONE, "team-1", node_name="a", **mine) as node:
                [session] = server.coordinator.sessions.values()
                name = session.principal.id
                assert check_id(name).startswith("certificate-")
                server.replace_tokens((), (), frozenset({name}))
                with pytest.raises(TokenError, match=f"{name} was revoked"):
                    await node.next_round(BOOTSTRAP)
            with pytest.raises(TokenError, match=f"{name} was revoked"):
                async with opened(at(port), ONE, "team-1", node_name="a", **mine):
                    pass

    run_clean(main)


def ask(endpoint: Endpoint, files: Certificates, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RALLYPOINT_TLS_CA", files.ca)
    monkeypatch.setenv("RALLYPOINT_TLS_CERT", files.cert or "")
    monkeypatch.setenv("RALLYPOINT_TLS_KEY", files.key or "")
    assert certificates_of_command(endpoint, "") == files
    return asyncio.to_thread(api.runs, endpoint, "")


def test_commands_show_a_certificate(own: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(own, "127.0.0.1", client_ca=own.file) as port:
            endpoint = parse_endpoint(at(port))
            viewer = shown_by(own, common_name="viewer")
            assert (await ask(endpoint, viewer, monkeypatch))["runs"] == []
            with pytest.raises(TokenError, match="names 'cook', which is no role"):
                await ask(endpoint, shown_by(own, common_name="cook"), monkeypatch)

    run_clean(main)


def test_commands_are_told_why_their_certificate_does_not_count(
    own: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = shown_by(own, common_name="viewer", begins=-2 * DAY, ends=-DAY)
    cert, key = Issuer(tmp_path / "other", "Other CA").issue("client", common_name="viewer")
    foreign = Certificates(str(own.file), str(cert), str(key))

    async def main() -> None:
        async with serving(own, "127.0.0.1", client_ca=own.file) as port:
            endpoint = parse_endpoint(at(port))
            with pytest.raises(UntrustedCoordinatorError, match="it has expired, on") as caught:
                await ask(endpoint, expired, monkeypatch)
            assert "--client-ca" in caught.value.hint
            with pytest.raises(UnreachableError, match="its log says why") as other:
                await ask(endpoint, foreign, monkeypatch)
            assert "--client-ca" in other.value.hint

    run_clean(main)


@pytest.mark.parametrize("token", ["", PLAIN], ids=["certificates only", "tokens, too"])
def test_who_needs_a_certificate_is_not_asked_for_a_token(
    own: Issuer, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(own, "127.0.0.1", client_ca=own.file, token=token) as port:
            endpoint = parse_endpoint(at(port))
            with pytest.raises(TokenError) as refused:
                await ask(endpoint, shown_by(own, common_name="cook"), monkeypatch)
            told = Keys(NONE).explained(refused.value)
            assert "names 'cook', which is no role" in told.message
            assert "you sent none" not in told.message
            assert "--tls-cert" in told.hint
            if token:
                return
            monkeypatch.delenv("RALLYPOINT_TLS_CERT")
            monkeypatch.delenv("RALLYPOINT_TLS_KEY")
            with pytest.raises(TokenError) as refused:
                await asyncio.to_thread(api.runs, endpoint, "")
            told = Keys(NONE).explained(refused.value)
            assert "you sent none" not in told.message
            assert "--tls-cert" in told.hint

    run_clean(main)


def test_a_page_of_another_site_cannot_use_the_certificate_of_its_reader(own: Issuer) -> None:
    """A browser shows a certificate by itself, unlike a token."""

    async def main() -> None:
        async with serving(own, "127.0.0.1", client_ca=own.file) as port:
            context = ssl.create_default_context(cafile=str(own.file))
            context.load_cert_chain(*own.issue("operator", common_name="operator"))
            url = f"{at(port)}/api/v1/runs/none/close"
            async with aiohttp.ClientSession() as http:
                for origin, code in (
                    ("https://elsewhere.example", 403),
                    ("null", 403),
                    (at(port), 404),
                ):
                    shown = {"Origin": origin}
                    async with http.post(url, headers=shown, ssl=context) as answer:
                        assert answer.status == code, await answer.text()

    run_clean(main)


def test_a_client_without_a_certificate_is_refused(own: Issuer) -> None:
    async def main() -> None:
        async with serving(own, "127.0.0.1", client_ca=own.file) as port:
            for token in ("", PLAIN):
                with pytest.raises(TokenError):
                    await dialled(port, trusting(own, token=token))

    run_clean(main)


def test_a_clients_certificate_that_has_expired_is_told(
    own: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    mine = shown_by(own, common_name="viewer", begins=-2 * DAY, ends=-DAY)

    async def main() -> None:
        async with serving(own, "127.0.0.1", client_ca=own.file) as port:
            with pytest.raises(UntrustedCoordinatorError, match="it has expired, on") as caught:
                await dialled(port, Access("", mine, "127.0.0.1"))
            assert "--client-ca" in caught.value.hint
            assert "its certificate is not accepted: certificate has expired" in caplog.text

    run_clean(main)


def test_a_clients_certificate_of_another_authority_is_told(
    own: Issuer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = Issuer(tmp_path / "other", "Other CA").issue("client", common_name="viewer")
    mine = Certificates(str(own.file), str(cert), str(key))

    async def main() -> None:
        async with serving(own, "127.0.0.1", client_ca=own.file) as port:
            with pytest.raises(ConnectionResetError, match="its log says why"):
                await dialled(port, Access("", mine, "127.0.0.1"))
            assert "127.0.0.1 was refused: its certificate is not accepted" in caplog.text

    run_clean(main)


@pytest.mark.parametrize(
    ("certificate", "role", "runs", "node"),
    [
        ({"subject": ((("commonName", "operator"),),)}, Role.OPERATOR, (), None),
        (
            {"subjectAltName": (("DNS", "x"), ("URI", "spiffe://rallypoint/node/a%2Fb/n%20"))},
            Role.NODE,
            ("a/b",),
            "n ",
        ),
        ({"subjectAltName": (("URI", "spiffe://rallypoint/viewer/*"),)}, Role.VIEWER, (), None),
        (
            {
                "subject": ((("commonName", "operator"),),),
                "subjectAltName": (("URI", "Spiffe://Rallypoint/viewer/Team"),),
            },
            Role.VIEWER,
            ("Team",),
            None,
        ),
    ],
)
def test_what_a_certificate_names(
    certificate: dict[str, Any], role: Role, runs: tuple[str, ...], node: str | None
) -> None:
    found = principal_of(certificate)
    assert (found.roles, found.runs, found.node) == ((role,), runs, node)


@pytest.mark.parametrize(
    "name", ["", "root", "node/a/b/c", "node/%ff", "node//", "Node", "node/" + "x" * 300]
)
def test_a_certificate_that_names_no_role(name: str) -> None:
    if name == "node//":
        assert principal_of({"subject": ((("commonName", name),),)}).node is None
        return
    with pytest.raises(UnknownClientError, match="which is no role"):
        principal_of({"subject": ((("commonName", name),),)})


@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        ({"subject": ((("commonName", "viewer"), ("commonName", "operator")),)}, "several roles"),
        ({"subject": ((("commonName", "viewer"),), (("commonName", "viewer"),))}, "several roles"),
        (
            {
                "subject": ((("commonName", "operator"),),),
                "subjectAltName": (("DNS", "web"), ("URI", "spiffe://example.org/web")),
            },
            "names 'nothing', which is no role",
        ),
        (
            {
                "subjectAltName": (
                    ("URI", "spiffe://rallypoint/viewer"),
                    ("URI", "SPIFFE://rallypoint/operator"),
                )
            },
            "several roles",
        ),
    ],
)
def test_a_certificate_that_is_for_something_else_names_no_role(
    certificate: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnknownClientError, match=said):
        principal_of(certificate)


def test_a_certificate_ends_on_an_open_connection_too() -> None:
    now_s = time.time()
    for ends_at, ended in ((now_s + 3_600.0, False), (now_s - 60.0, True)):
        shown = {
            "subject": ((("commonName", "viewer"),),),
            "notAfter": time.strftime("%b %d %H:%M:%S %Y GMT", time.gmtime(ends_at)),
        }
        found = guard.of_certificate(shown, make_mocked_request("GET", "/"))
        assert isinstance(found, Denial) is ended
        assert not isinstance(found, Denial) or found.reason == "expired"


@pytest.mark.parametrize(
    ("source", "late_s", "ended"),
    [
        (claims.SOURCE, claims.LEEWAY_S - 1.0, False),
        (claims.SOURCE, claims.LEEWAY_S + 1.0, True),
        ("tokens.toml", 1.0, True),
        ("tokens.toml", -1.0, False),
    ],
)
def test_what_was_accepted_ends_when_a_login_would(source: str, late_s: float, ended: bool) -> None:
    found = Principal("id", ends_at=1_000.0, source=source)
    assert claims.has_ended(found, 1_000.0 + late_s) is ended
    assert not claims.has_ended(Principal("id", source=source), 1e12)


def test_the_id_of_a_certificate_names_its_issuer_too() -> None:
    ids = set()
    for issuer in ("One CA", "Another CA"):
        shown = {
            "subject": ((("commonName", "viewer"),),),
            "issuer": ((("countryName", "CH"),), (("commonName", issuer),)),
            "serialNumber": "0A" * 20,
        }
        ids.add(check_id(principal_of(shown).id))
    assert len(ids) == 2
    assert {each.rpartition("-")[2] for each in ids} == {"0a" * 20}


FORWARDED = {"Sec-Rallypoint-Client": "coordinator", "Rallypoint-Only-Own": "1"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "may_act"),
    [
        ("POST", "/api/v1/runs/{run_id}/close", FORWARDED, True),
        ("POST", "/api/v1/runs/{run_id}/close", {"Rallypoint-Limits": "operator;"}, False),
        ("POST", "/api/v1/runs/{run_id}/close", {"Rallypoint-Only-Own": "1"}, False),
        (
            "POST",
            "/api/v1/runs/{run_id}/close",
            FORWARDED | {"Sec-Rallypoint-Client": "command"},
            False,
        ),
        ("GET", ATTACH_PATH, FORWARDED | {"Rallypoint-Limits": "node;"}, False),
    ],
)
def test_a_hosts_certificate_has_all_roles_only_for_what_it_forwards(
    method: str, path: str, headers: dict[str, str], may_act: bool
) -> None:
    certificate = {"subjectAltName": (("URI", "spiffe://rallypoint/host/job-*/n1"),)}

    async def handler(_: web.Request) -> web.Response:
        return web.Response()

    async def main() -> None:
        app = web.Application()
        app.router.add_route(method, path, handler)
        request = make_mocked_request(method, path.replace("{run_id}", "job-1"), headers, app=app)
        request._match_info = await app.router.resolve(request)
        found = guard.of_certificate(certificate, request)
        assert isinstance(found, Principal)
        assert found.has(Right.ACT) is may_act
        assert found.node == "n1"
        assert found.runs == ("job-*",)
        assert found.node_denial("n2") is not None

    asyncio.run(main())


# -- files and settings ----------------------------------------------------------------------------


def test_files_that_cannot_be_used_are_told(own: Issuer, tmp_path: Path) -> None:
    cert, _ = map(str, own.issue("a", "127.0.0.1"))
    _, other = map(str, own.issue("b", "127.0.0.1"))
    _, locked = map(str, own.issue("c", "127.0.0.1", password=b"secret"))
    text = tmp_path / "text"
    text.write_text("no PEM")
    for files, said in (
        (Certificates(str(tmp_path / "nowhere")), "cannot be read: No such file"),
        (Certificates(str(text)), "no certificates in PEM"),
        (Certificates(cert=str(text)), "cannot be used"),
        (Certificates(cert=cert, key=other), "does not belong to the private key"),
        (Certificates(cert=cert, key=str(tmp_path / "gone")), "cannot be read: No such file"),
        (Certificates(cert=cert, key=locked), "private key.* cannot be used|is encrypted"),
    ):
        with pytest.raises(CertificateFileError, match=said):
            pki.check(files)


def test_a_nodes_certificates_are_for_a_served_coordinator(own: Issuer) -> None:
    node = node_settings(endpoint="host0:29400", run_id="r", tls_ca=str(own.file))
    from rallypoint.settings import check_own_token

    with pytest.raises(UsageError, match="a node hosts it"):
        check_own_token(node)
    alone = node_settings(endpoint="https://host0:29400", run_id="r", tls_key="key.pem")
    with pytest.raises(UsageError, match="tls_key is given without tls_cert"):
        check_own_token(alone)
