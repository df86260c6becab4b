"""`rallypoint doctor`: each trouble is found, named, and comes with advice."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rallypoint import tokens
from rallypoint.client.blocking import portal
from rallypoint.doctor import examination, limits, names, proxies, room
from rallypoint.doctor.answering import Kind
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes, Verdict
from rallypoint.endpoints import parse_endpoint
from rallypoint.rendezvous._store_server import StoreServer
from rallypoint.security.authority import new_secret
from rallypoint.security.roles import Role
from rallypoint.security.state import State
from rallypoint.security.token_form import ca_of, parse, written
from rallypoint.settings import Endpoint, EndpointKind
from rallypoint.tokens import Keys, KnownToken, Origin
from tests.cli.conftest import Cli, Served
from tests.ledger.etcd_processes import EtcdCluster, etcd, programs
from tests.ports import free_port
from tests.rendezvous.store_servers import in_portal

pytestmark = pytest.mark.processes
Listener = Callable[[bytes | None], str]
Serve = Callable[..., Served]


def checked(cli: Cli, *arguments: str, code: int) -> dict[str, dict[str, Any]]:
    """The findings of `doctor --json` by their names."""
    done = cli("doctor", *arguments, "--json")
    assert done.code == code, done
    report = json.loads(done.out)
    assert [each["check"] for each in report["checks"]] == list(examination.ORDER)
    return {each["check"]: each for each in report["checks"]}


def test_a_machine_without_an_endpoint(cli: Cli) -> None:
    done = cli("doctor")
    assert done.code == 0, done
    assert "addresses" in done.out
    assert "there is no endpoint" in done.out


def test_usage_ends_with_two(cli: Cli) -> None:
    assert cli("doctor", "nowhere:99999999").code == 2


def http(body: bytes, status: str = "200 OK", more: bytes = b"") -> bytes:
    """An answer of HTTP."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n".encode()
    return head + more + b"\r\n" + body


# -- who answers ---------------------------------------------------------------------------------


def test_nothing_listens(cli: Cli) -> None:
    """A node may host its coordinator there, but `rallypoint serve` has to run already."""
    where = f"127.0.0.1:{free_port()}"
    found = checked(cli, where, code=0)["port"]
    assert "a node may host" in found["evidence"][0]
    found = checked(cli, f"http://{where}", code=1)["port"]
    assert found["verdict"] == "failed"
    assert found["facts"]["answers"][0]["kind"] == Kind.REFUSED
    assert "rallypoint serve" in found["what_to_do"][0]


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (None, Kind.MUTE, "answers nothing within"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Kind.OTHER, "not HTTP"),
        (http(b"", "404 Not Found", b"Server: nginx\r\n"), Kind.HTTP, "nginx"),
        (http(b'{"etcdserver": "3.5.99"}'), Kind.ETCD, "etcd 3.5.99"),
        (http(b'{"coordinator": {"software": "other 1.0"}}'), Kind.HTTP, "status 200"),
    ],
)
def test_a_stranger(cli: Cli, listener: Listener, said: bytes | None, kind: str, text: str) -> None:
    found = checked(cli, listener(said), code=1)["port"]
    assert found["facts"]["answers"][0]["kind"] == kind
    assert text in found["summary"]
    assert found["what_to_do"]


def test_a_store_of_torch_is_named(cli: Cli) -> None:
    torch = pytest.importorskip("torch")
    port = free_port()
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    found = checked(cli, f"127.0.0.1:{port}", code=1)["port"]
    del store
    assert found["facts"]["answers"][0]["kind"] == Kind.TCP_STORE
    assert "torchrun" in found["what_to_do"][0]


def test_a_store_of_the_static_backend_is_named(cli: Cli) -> None:
    server = StoreServer()
    portal().run(server.start(0))
    try:
        found = checked(cli, f"127.0.0.1:{server.port}", code=1)["port"]
    finally:
        in_portal(server.close)
    assert found["facts"]["answers"][0]["kind"] == Kind.STATIC_STORE


@pytest.fixture
def tls_listener(tmp_path: Path) -> Iterator[str]:
    """A program that only speaks TLS."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-keyout", str(key), "-out", str(cert), "-subj", "/CN=head"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as plain:

        def serve_all() -> None:
            while True:
                try:
                    sock, _ = plain.accept()
                    sock.settimeout(5)
                    with context.wrap_socket(sock, server_side=True) as secured:
                        secured.recv(1000)
                except ssl.SSLError:
                    sock.close()
                except OSError:
                    if plain.fileno() < 0:
                        return

        threading.Thread(target=serve_all, daemon=True).start()
        yield f"127.0.0.1:{port}"


def test_tls_is_named(cli: Cli, tls_listener: str) -> None:
    found = checked(cli, tls_listener, code=1)["port"]
    assert found["facts"]["answers"][0]["kind"] == Kind.TLS
    assert "uses TLS" in found["summary"]


def test_a_name_that_nobody_knows(cli: Cli) -> None:
    found = checked(cli, "no-such-host.invalid:29400", code=1)
    assert "no-such-host.invalid has no address here" in found["names"]["summary"]
    assert found["port"]["verdict"] == "failed"


def test_a_frozen_coordinator(cli: Cli, serve: Serve) -> None:
    served = serve("--insecure")
    os.kill(served.process.pid, signal.SIGSTOP)
    try:
        found = checked(cli, served.endpoint, code=1)["port"]
    finally:
        os.kill(served.process.pid, signal.SIGCONT)
    assert found["facts"]["answers"][0]["kind"] == Kind.MUTE
    assert "SIGSTOP" in found["what_to_do"][0]


# -- tokens, versions, clocks --------------------------------------------------------------------


def token_file(folder: Path, name: str) -> str:
    path = folder / name
    tokens.make_file(path)
    return str(path)


def test_a_coordinator_with_this_token(cli: Cli, serve: Serve, tmp_path: Path) -> None:
    path = token_file(tmp_path, "token")
    served = serve("--token-file", path)
    found = checked(cli, served.endpoint, "--token-file", path, code=0)
    assert found["port"]["facts"]["answers"][0]["kind"] == Kind.COORDINATOR
    assert found["token"]["facts"]["accepted"] is True
    assert found["wire"]["facts"]["accepted"] == {served.endpoint.removeprefix("https://"): [1, 1]}
    assert found["clock"]["verdict"] == "ok"
    # It was asked for its wire version, and no run has come of that.
    assert (
        cli("status", "--endpoint", served.endpoint, "--token-file", path).out.count("doctor") == 0
    )
    text = cli("doctor", served.endpoint, "--token-file", path)
    assert "which needs a token" in text.out
    assert list(found["versions"]["facts"]["coordinators"].values()) == [
        found["port"]["facts"]["answers"][0]["software"]
    ]
    assert " WARNING " not in served.stop()[1]
    assert Path(path).read_text().strip() not in str(text)


def test_two_tokens_that_differ(cli: Cli, serve: Serve, tmp_path: Path) -> None:
    own, theirs = token_file(tmp_path, "own"), token_file(tmp_path, "theirs")
    served = serve("--token-file", theirs)
    found = checked(cli, served.endpoint, "--token-file", own, code=1)
    summary = found["token"]["summary"]
    for path in (own, theirs):
        assert ca_of(Path(path).read_text().strip())[:16] in summary
    assert "nothing was said to it" in found["token"]["what_to_do"][0]


def test_two_tokens_of_one_authority_that_differ(cli: Cli, serve: Serve, tmp_path: Path) -> None:
    theirs, own = token_file(tmp_path, "theirs"), tmp_path / "own"
    parts = parse(Path(theirs).read_text().strip())
    assert parts is not None
    own.write_text(written(parts.ca, new_secret()))
    own.chmod(0o600)
    served = serve("--token-file", theirs)
    found = checked(cli, served.endpoint, "--token-file", str(own), code=1)
    for path in (own, Path(theirs)):
        assert tokens.fingerprint(path.read_text().strip()) in found["token"]["summary"]
    assert "--token-file" in found["token"]["what_to_do"][0]
    # Nothing is known of its wire version, so nothing is well with it.
    assert found["wire"]["verdict"] == "skipped"
    assert "was not asked, because it refuses the token" in found["wire"]["summary"]
    assert found["wire"]["facts"] == {}


@pytest.mark.parametrize(
    ("role", "days", "said"),
    [
        (Role.NODE, 0, ""),
        (Role.VIEWER, 0, "with this token no node can join"),
        (Role.NODE, -9, "expired at"),
        (Role.NODE, 9, "does not count before"),
    ],
)
def test_what_a_claim_says_and_whether_it_counts(
    cli: Cli, serve: Serve, tmp_path: Path, role: Role, days: int, said: str
) -> None:
    state, path = State(tmp_path / "state"), tmp_path / "claim"
    state.create()
    begins = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    claim, text = state.authority().claim((role,), "team-*", dt.timedelta(days=1), begins)
    tokens.make_file(path, text)
    served = serve("--state", str(state.folder))
    options = ("--token-file", str(path))
    found = checked(cli, served.endpoint, *options, code=1 if days else 0)["token"]
    assert found["facts"]["claim"] == claim.id
    assert said in found["summary"]
    assert any(f"claim {claim.id}: {role}, runs 'team-*'" in each for each in found["evidence"])
    assert found["facts"].get("accepted") is (not days)
    assert text not in json.dumps(found)


def test_a_coordinator_with_tls_and_no_token_here(cli: Cli, serve: Serve, tmp_path: Path) -> None:
    served = serve("--token-file", token_file(tmp_path, "theirs"))
    found = checked(cli, served.endpoint, code=1)["token"]
    assert "uses TLS, and there is no token here" in found["summary"]


def test_a_coordinator_in_clear_and_a_token_with_an_authority(
    cli: Cli, serve: Serve, tmp_path: Path
) -> None:
    served = serve("--insecure")
    found = checked(cli, served.endpoint, "--token-file", token_file(tmp_path, "own"), code=1)
    assert "uses no TLS, which this node's token asks for" in found["token"]["summary"]


def test_a_coordinator_that_admits_everybody(cli: Cli, serve: Serve, tmp_path: Path) -> None:
    served = serve("--insecure")
    own = tmp_path / "own"
    own.write_text(tokens.draw())
    own.chmod(0o600)
    found = checked(cli, served.endpoint, "--token-file", str(own), code=0)
    assert found["token"]["verdict"] == "warning"
    assert "rallypoint 0" in found["port"]["summary"]
    assert found["versions"]["facts"]["coordinators"]


def test_a_token_that_others_can_read(cli: Cli, tmp_path: Path) -> None:
    path = token_file(tmp_path, "token")
    Path(path).chmod(0o644)
    found = checked(cli, "--token-file", path, f"127.0.0.1:{free_port()}", code=0)["token"]
    assert found["verdict"] == "warning"
    assert found["what_to_do"] == [f"chmod 600 {path}"]


def test_a_token_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    found = checked(cli, "--token-file", str(tmp_path / "none"), "127.0.0.1:29400", code=1)["token"]
    assert "none" in found["summary"]


def test_a_clock_that_is_late(cli: Cli, listener: Listener) -> None:
    """An answer of a coordinator whose clock has another year."""
    body = b'{"coordinator": {"software": "rallypoint 9.9.0"}, "runs": []}'
    said = http(body, more=b"Date: Mon, 01 Jan 2035 00:00:00 GMT\r\n")
    found = checked(cli, listener(said), code=1)  # no node can attach to it
    assert "behind that of the coordinator" in found["clock"]["summary"]
    assert "NTP" in found["clock"]["what_to_do"][0]
    assert "release 9.9.0" in found["versions"]["summary"]
    assert found["wire"]["verdict"] == "failed"


# -- ledgers -------------------------------------------------------------------------------------


def test_a_ledger_in_a_folder(cli: Cli, serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    path = token_file(tmp_path, "token")
    before = checked(cli, f"file://{folder}", code=0)["ledger"]
    assert "there is no ledger yet" in " ".join(before["evidence"])
    assert not folder.exists()
    served = serve("--ledger", f"file:{folder}", "--token-file", path)
    found = checked(cli, f"file://{folder}", "--token-file", path, code=0)
    assert found["ledger"]["facts"]["fsync_s"] > 0
    assert found["ledger"]["facts"]["read_s"] > 0
    assert len(found["ledger"]["facts"]["coordinators"]) == 1
    answers = found["port"]["facts"]["answers"]
    assert {each["address"].rpartition(":")[2] for each in answers} == {str(served.port)}
    assert found["token"]["facts"]["accepted"] is True
    served.kill()
    after = checked(cli, f"file://{folder}", code=0)
    assert "was not renewed" in " ".join(after["ledger"]["evidence"])
    assert after["port"]["verdict"] == "skipped"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no/ledger", "there is no folder"),
        ("full", "is not empty"),
        ("file", "is not a folder"),
    ],
)
def test_a_folder_that_can_hold_no_ledger(cli: Cli, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    found = checked(cli, f"file://{tmp_path}/{name}", code=1)["ledger"]
    assert text in found["summary"]
    assert found["what_to_do"]
    assert [each.name for each in (tmp_path / "full").iterdir()] == ["thesis.tex"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(place)],
        capture_output=True,
        check=False,
        timeout=30,
    )
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=30)


def test_a_disk_that_is_full(cli: Cli, small_disk: Path) -> None:
    folder = small_disk / "ledger"
    folder.mkdir()
    (small_disk / "big").write_bytes(bytes(1_900_000))
    found = checked(cli, f"file://{folder}", code=1)["ledger"]
    assert found["verdict"] == "failed"
    assert "bytes free" in found["summary"] or "bytes free" in " ".join(found["evidence"])
    assert any("make room" in each for each in found["what_to_do"])
    assert list(folder.iterdir()) == []


def test_a_disk_that_is_read_only(cli: Cli, small_disk: Path) -> None:
    folder = small_disk / "ledger"
    folder.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=30)
    found = checked(cli, f"file://{folder}", code=1)["ledger"]
    assert "read-only" in " ".join([found["summary"], *found["evidence"]])


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    if not programs():
        pytest.skip("no etcd here")
    with etcd(programs()[0], size=3) as made:
        yield made


def test_a_cluster_of_etcd(cli: Cli, cluster: EtcdCluster) -> None:
    """With three members, then two, and then without a quorum."""
    where = f"etcd://{','.join(cluster.endpoints)}/doctor"
    found = checked(cli, where, code=0)["ledger"]
    assert found["facts"]["members_answered"] == 3
    assert found["facts"]["cluster_members"] == 3
    assert "there is no ledger yet" in " ".join(found["evidence"])
    roles = [each["role"] for each in found["facts"]["etcd"].values()]
    assert sorted(roles) == ["follower", "follower", "leader"]
    assert all("fsync_s" in each for each in found["facts"]["etcd"].values())
    gone = [each for each in cluster.members if each is not cluster.leader()]
    gone[0].kill()
    found = checked(cli, where, code=0)["ledger"]
    assert found["verdict"] == "warning"
    assert "2 of 3 members" in found["summary"]
    gone[1].kill()
    found = checked(cli, where, code=1)["ledger"]
    assert "1 of 3 members" in " ".join([found["summary"], *found["evidence"]])


def test_an_etcd_that_is_gone(cli: Cli) -> None:
    found = checked(cli, f"etcd://127.0.0.1:{free_port()}/doctor", code=1)["ledger"]
    assert "no endpoint of etcd answered" in found["summary"]


# -- this machine --------------------------------------------------------------------------------


def case(endpoint: str = "", **fields: Any) -> Case:
    where = parse_endpoint(endpoint) if endpoint else Endpoint(EndpointKind.LOCAL)
    return Case(endpoint=where, **fields)


def test_a_proxy_that_catches_the_endpoint() -> None:
    environ = {"http_proxy": "http://user:secret@proxy:3128", "no_proxy": "localhost,.cluster"}
    found = proxies.check(case("head:29400", environ=environ))
    assert found.verdict is Verdict.WARNING
    assert "secret" not in str(found)
    assert "no_proxy=localhost,.cluster,head" in found.what_to_do[0]
    assert proxies.check(case("head.cluster:29400", environ=environ)).verdict is Verdict.OK
    assert proxies.check(case("head:29400")).verdict is Verdict.OK


def machine(folder: Path, **files: str) -> Path:
    """A /proc with these files, `/` written as two underscores."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_ports_that_are_used_up(tmp_path: Path) -> None:
    rows = "\n".join(f"  0: 0100007F:{port:04X} 0100007F:1F90 06" for port in range(40_000, 40_090))
    root = machine(
        tmp_path,
        proc__sys__net__ipv4__ip_local_port_range="40000\t40099\n",
        proc__net__tcp=f"  sl  local_address rem_address st\n{rows}\n",
        proc__sys__net__core__somaxconn="128\n",
    )
    found = limits.check(case(), root)
    assert found.verdict is Verdict.FAILED
    assert found.facts["ports_left"] == 10
    assert found.facts["somaxconn"] == 128
    assert any("somaxconn=4096" in each for each in found.what_to_do)


def test_memory_that_is_used_up(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        proc__self__cgroup="0::/job\n",
        proc__self__mountinfo="1 2 0:1 / /cg rw - cgroup2 none rw\n",
        proc__meminfo="MemTotal: 99999999 kB\nMemAvailable: 99999999 kB\n",
        cg__job__memory__max="",
    )
    (root / "cg/job/memory").joinpath("max").unlink()
    (root / "cg/job/memory").rmdir()
    (root / "cg/job/memory.max").write_text(f"{4 << 30}\n")
    (root / "cg/job/memory.current").write_text(f"{(4 << 30) - (100 << 20)}\n")
    found = room.check(case(), root, tmp_path)
    assert found.facts["memory_bytes"] == 4 << 30
    assert "only 100 MiB" in " ".join([found.summary, *found.evidence])


def test_shared_memory_of_a_plain_container(small_disk: Path, tmp_path: Path) -> None:
    found = room.check(case(), shared=small_disk)
    assert found.verdict is Verdict.WARNING
    assert "--shm-size" in " ".join(found.what_to_do)


def test_a_check_that_hangs_is_reported_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never = threading.Event()

    def hang(case: Case) -> Finding:
        never.wait()
        raise AssertionError

    monkeypatch.setitem(examination._FIRST, names.CHECK, hang)
    began_s = time.monotonic()
    try:
        report = examination.examine(case(), within_s=2.0)
    finally:
        never.set()
    assert time.monotonic() - began_s < 10
    found = {each.check: each for each in report.checks}
    assert found["names"].verdict is Verdict.FAILED
    assert "has not ended within 2 s" in found["names"].summary
    assert found["limits"].verdict is not Verdict.FAILED
    assert report.verdict is Verdict.FAILED


def test_a_token_of_a_lease_is_shown_nowhere() -> None:
    keys = Keys(KnownToken("secret-of-a-lease", Origin.LEASE, "the lease"))
    assert "secret" not in repr(case("head:29400", keys=keys))


# -- nothing to look at ----------------------------------------------------------------------------


def test_what_could_not_be_looked_at_is_not_well() -> None:
    notes = Notes("a")
    notes.missed("the first one says nothing")
    notes.missed("nor does the second one")
    found = notes.finding("all is well")
    assert found.verdict is Verdict.SKIPPED
    assert found.summary == "the first one says nothing; and 1 more"
    assert "nor does the second one" in found.evidence
    notes.saw("the third one is well")
    found = notes.finding("those that answer are well")
    assert (found.verdict, found.summary) == (Verdict.OK, "those that answer are well")
    notes.fail("the fourth one is ill", "heal it")
    assert notes.finding("").verdict is Verdict.FAILED


def test_without_an_answer_nothing_about_a_coordinator_is_well(cli: Cli) -> None:
    found = checked(cli, f"127.0.0.1:{free_port()}", code=0)
    unseen = ("certificate", "token", "wire", "ledger", "clock")
    assert {name: found[name]["verdict"] for name in unseen} == dict.fromkeys(unseen, "skipped")
    assert all(found[name]["summary"] for name in unseen)
    for name in ("token", "wire", "clock"):
        assert "no coordinator has answered" in found[name]["summary"]
