"""`rallypoint serve` with certificates of one's own authority, as a user starts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import rallypoint
from tests.cli.conftest import Cli, Served
from tests.security.pki import DAY, Issuer
from tests.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.sockets]


@pytest.fixture
def own(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "own")


def options(own: Issuer, name: str = "server") -> list[str]:
    cert, key = own.issue(
        name, "127.0.0.1", "localhost", uris=("spiffe://rallypoint/host",), ends=DAY
    )
    return ["--tls-cert", str(cert), "--tls-key", str(key), "--client-ca", str(own.file)]


def show(own: Issuer, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = own.issue(role.partition("/")[0], common_name=role)
    monkeypatch.setenv("RALLYPOINT_TLS_CA", str(own.file))
    monkeypatch.setenv("RALLYPOINT_TLS_CERT", str(cert))
    monkeypatch.setenv("RALLYPOINT_TLS_KEY", str(key))


def join(served: Served, name: str) -> rallypoint.Run:
    return rallypoint.join(
        "job-1", served.endpoint, nnodes="1", node_name=name, host_coordinator="no"
    )


def test_nodes_and_commands_need_nothing_but_certificates(
    own: Issuer, serve: Callable[..., Served], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(*options(own))
    assert served.endpoint.startswith("https://")
    show(own, "node/job-*", monkeypatch)
    with join(served, "a") as run:
        assert run.next_world() is not None
        assert cli("close", "job-1", "--endpoint", served.endpoint, "--reason", "no").code != 0
        show(own, "operator/job-*", monkeypatch)
        shown = cli("status", "--endpoint", served.endpoint)
        assert "job-1" in shown.out
        done = cli("close", "job-1", "--endpoint", served.endpoint, "--reason", "the test is over")
        assert done.code == 0, done


def test_a_replica_asks_another_by_its_certificate(
    own: Issuer,
    serve: Callable[..., Served],
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ledger = ("--ledger", f"file:{tmp_path / 'ledger'}", "--advertise", "127.0.0.1")
    first = serve(*options(own), *ledger)
    second = serve(*options(own, "second"), *ledger)
    show(own, "node", monkeypatch)
    with join(first, "a") as run:
        assert run.next_world() is not None
        show(own, "viewer", monkeypatch)
        shown = cli("status", "job-1", "--endpoint", second.endpoint)
        assert "a" in shown.out, shown
        refused = cli("close", "job-1", "--endpoint", second.endpoint, "--reason", "no")
        assert "may not change a run" in refused.err, refused
        show(own, "operator", monkeypatch)
        done = cli("close", "job-1", "--endpoint", second.endpoint, "--reason", "the test is over")
        assert done.code == 0, done


def test_a_renewed_certificate_is_used_without_a_restart(
    own: Issuer, serve: Callable[..., Served], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = own.issue("server", "elsewhere.example")
    served = serve("--tls-cert", str(cert), "--tls-key", str(key), "--client-ca", str(own.file))
    show(own, "viewer", monkeypatch)
    refused = cli("status", "--endpoint", served.endpoint)
    assert "for elsewhere.example, and not for '127.0.0.1'" in refused.err
    new, new_key = own.issue("renewed", "127.0.0.1")
    new_key.replace(key)
    new.replace(cert)
    wait_until(lambda: cli("status", "--endpoint", served.endpoint).code == 0, every_s=0.5)


def test_the_systems_authorities_are_trusted_for_https(
    own: Issuer, serve: Callable[..., Served], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = own.issue("server", "127.0.0.1")
    token = own.file.parent / "token"
    token.write_text("a-token-that-names-no-authority-1234567890")
    token.chmod(0o600)
    served = serve("--tls-cert", str(cert), "--tls-key", str(key), "--token-file", str(token))
    asked = ("status", "--endpoint", served.endpoint, "--token-file", str(token))
    assert "by an authority that is not trusted here: the authorities of this" in cli(*asked).err
    monkeypatch.setenv("SSL_CERT_FILE", str(own.file))
    done = cli(*asked)
    assert done.code == 0, done


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--client-ca", "CA"], "--client-ca is given without --tls-cert"),
        (["--tls-key", "KEY"], "tls_key is given without tls_cert"),
        (["--tls-cert", "/nowhere"], "'/nowhere' cannot be read"),
        (["--tls-cert", "CERT", "--tls-key", "OTHER"], "does not belong to the private key"),
        (["--tls-cert", "CERT", "--tls-key", "KEY", "--host", "0.0.0.0"], "there is no token"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    own: Issuer, cli: Cli, given: list[str], said: str
) -> None:
    cert, key = own.issue("server", "127.0.0.1")
    _, other = own.issue("other", "127.0.0.1")
    files = {"CA": own.file, "CERT": cert, "KEY": key, "OTHER": other}
    done = cli("serve", *[str(files.get(each, each)) for each in given])
    assert done.code == 2
    assert said in done.err
