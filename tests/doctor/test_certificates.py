"""`rallypoint doctor` looks at the certificates of a coordinator, and at this node's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rallypoint.security import pki
from rallypoint.security.authority import new_host_token
from rallypoint.security.token_form import ca_of
from tests.cli.conftest import Cli, Served
from tests.doctor.test_doctor import checked
from tests.security.pki import DAY, Issuer

pytestmark = pytest.mark.processes
Serve = Callable[..., Served]


@pytest.fixture
def own(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "own")


def served_by_pki(own: Issuer, serve: Serve, *hosts: str, days: int = 30) -> Served:
    cert, key = own.issue("server", *hosts, ends=days * DAY)
    return serve("--tls-cert", str(cert), "--tls-key", str(key), "--client-ca", str(own.file))


def show(own: Issuer, monkeypatch: pytest.MonkeyPatch, days: int = 30) -> None:
    cert, key = own.issue("a", common_name="node", ends=days * DAY)
    monkeypatch.setenv("RALLYPOINT_TLS_CA", str(own.file))
    monkeypatch.setenv("RALLYPOINT_TLS_CERT", str(cert))
    monkeypatch.setenv("RALLYPOINT_TLS_KEY", str(key))


def test_that_of_a_token(cli: Cli, serve: Serve, tmp_path: Path) -> None:
    token, path = new_host_token(), tmp_path / "token"
    path.write_text(token)
    path.chmod(0o600)
    served = serve("--token-file", str(path))
    found = checked(cli, served.endpoint, "--token-file", str(path), code=0)["certificate"]
    assert found["verdict"] == "ok"
    fact = found["facts"][f"127.0.0.1:{served.port}"]
    assert fact["authority"] == ca_of(token)
    assert fact["sha256"][:16] in found["evidence"][0]


def test_those_of_a_pki(
    cli: Cli, serve: Serve, own: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = served_by_pki(own, serve, "127.0.0.1")
    show(own, monkeypatch)
    found = checked(cli, served.endpoint, code=0)
    assert found["certificate"]["verdict"] == "ok"
    assert any("it is trusted, by" in each for each in found["certificate"]["evidence"])
    assert found["port"]["facts"]["answers"][0]["kind"] == "coordinator"
    assert found["wire"]["verdict"] == "ok"


def test_one_for_another_host_fails(
    cli: Cli, serve: Serve, own: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = served_by_pki(own, serve, "elsewhere.example")
    show(own, monkeypatch)
    found = checked(cli, served.endpoint, code=1)["certificate"]
    assert "for elsewhere.example, and not for '127.0.0.1'" in found["summary"]


def test_one_that_ends_soon_is_a_warning(
    cli: Cli, serve: Serve, own: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = served_by_pki(own, serve, "127.0.0.1", days=1)
    show(own, monkeypatch, days=2)
    found = checked(cli, served.endpoint, code=0)["certificate"]
    assert found["verdict"] == "warning"
    assert sum("ends soon, at" in each for each in found["evidence"]) == 2
    assert "the certificate of this coordinator ends at" in served.stop()[1]


def test_own_files_that_do_not_fit_fail(
    cli: Cli, serve: Serve, own: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = served_by_pki(own, serve, "127.0.0.1")
    show(own, monkeypatch)
    _, other = own.issue("b", common_name="node")
    monkeypatch.setenv("RALLYPOINT_TLS_KEY", str(other))
    found = checked(cli, served.endpoint, code=1)["certificate"]
    assert "does not belong to the private key" in found["summary"]


def test_without_tls_there_is_nothing_to_look_at(cli: Cli, serve: Serve) -> None:
    served = serve("--insecure")
    assert checked(cli, served.endpoint, code=0)["certificate"]["verdict"] == "skipped"


def test_the_fingerprint_is_that_of_openssl(own: Issuer) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    from rallypoint.security.access import Certificates
    from rallypoint.security.der import validity

    cert, key = own.issue("server", "127.0.0.1")
    found = x509.load_pem_x509_certificate(cert.read_bytes())
    shown = pki.own_certificate(Certificates(cert=str(cert), key=str(key)))
    assert pki.fingerprint(shown) == found.fingerprint(hashes.SHA256()).hex().upper()
    ends = (found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())
    assert validity(shown) == ends
