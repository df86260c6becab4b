"""Ledgers that cannot be used, as a user meets them. Each is an error with its cause and a hint, at
the start if it can be known then, and nothing that was acknowledged is lost.

Through the command line, with real etcd (users, certificates, quotas) and real mounts. Where this
process may not mount, the tests that need a full or a read-only disk are skipped.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rallypoint.errors import ExitCode
from rallypoint.ledger import record_format
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.ledger.file.ledger import FileLedger
from tests.failover.fleet import Fleet
from tests.failover.refusals import (
    AT_ONCE_S,
    UNREACHABLE_WITHIN_S,
    check,
    command,
    is_refused,
    one_etcd,
    run,
    serve,
)
from tests.ledger.etcd_certificates import _openssl, make_certificates
from tests.ledger.etcd_processes import EtcdCluster
from tests.ledger.etcd_users import require_users
from tests.ports import free_port

pytestmark = [pytest.mark.processes, pytest.mark.verify]


# -- etcd that cannot be reached ------------------------------------------------------------------


def test_a_ledger_without_a_listener_is_an_error() -> None:
    place = f"etcd://127.0.0.1:{free_port()}/x"
    for told in (serve(place), run(place)):
        check(told, ExitCode.COULD_NOT_MEET, "Connection refused", hint="check that etcd runs")
        assert told.took_s < UNREACHABLE_WITHIN_S


def test_an_agent_that_waits_for_its_ledger_logs_it() -> None:
    told = command(
        *("run", "--endpoint", f"etcd://127.0.0.1:{free_port()}/x"),
        *("--set", "connect_timeout=8"),
        *("--run-id", "job", "--no-python", "true"),
    )
    assert "waiting: etcd://127.0.0.1:" in told.said
    assert "/x has not answered yet" in told.said
    assert "warning: ledger unreachable" in told.said
    assert "the coordinator at" not in told.said


def test_an_unknown_name_is_an_error() -> None:
    place = "etcd://nobody.invalid:2379/x"
    for told in (serve(place), run(place)):
        check(told, ExitCode.COULD_NOT_MEET, "nobody.invalid:2379: ", hint="check that etcd runs")
        assert told.took_s < UNREACHABLE_WITHIN_S


def test_another_program_at_the_address_is_an_error() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        place = f"etcd://127.0.0.1:{server.server_port}/x"
        is_refused(place, ExitCode.USAGE, "is not etcd", hint="name etcd's client port")
        server.shutdown()
        thread.join()


# -- users and certificates -----------------------------------------------------------------------


def test_bad_users_and_passwords_are_reported(tmp_path: Path) -> None:
    with one_etcd() as cluster:
        asyncio.run(require_users(cluster))
        place = f"etcd://{cluster.endpoints[0]}/ours"
        usage = ExitCode.USAGE
        is_refused(place, usage, "asks for a user", hint="name a user")
        for user in ("ours", "nobody"):
            named, wrong = f"{place}?user={user}", {"RALLYPOINT_ETCD_PASSWORD": "wrong"}
            is_refused(named, usage, "refuses the user or the password", hint="check", **wrong)
        is_refused(f"{place}?user=ours", usage, "has no password", hint="password_file=FILE")
        missing = f"{place}?user=ours&password_file={tmp_path}/missing"
        is_refused(missing, usage, "No such file", hint="first line")
        theirs, right = place.replace("/ours", "/theirs"), "our-password"
        env = {"RALLYPOINT_ETCD_PASSWORD": right}
        is_refused(f"{theirs}?user=ours", usage, "permission denied", hint="grant the user", **env)
        told = run(f"{place}?user=ours", **env)
        assert told.code == ExitCode.DONE, told.said
        assert right not in told.said


def test_bad_certificates_are_reported(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    make_certificates(tmp_path)
    another_client(tmp_path)

    def file(name: str) -> str:
        return str(tmp_path / name)

    own = EtcdOptions(
        endpoints=("unused",),
        tls=True,
        ca_file=file("ca.pem"),
        cert_file=file("client.pem"),
        key_file=file("client.key"),
    )
    server = (
        f"--cert-file={file('server.pem')}",
        f"--key-file={file('server.key')}",
        f"--trusted-ca-file={file('ca.pem')}",
        "--client-cert-auth=true",
    )
    with one_etcd(*server, tls=own) as cluster:
        place = f"etcds://{cluster.endpoints[0]}/x"
        named = place.replace("127.0.0.1", "localhost")
        ca, cert = f"ca={file('ca.pem')}", f"cert={file('client.pem')}&key={file('client.key')}"
        others = f"cert={file('stranger.pem')}&key={file('stranger.key')}"
        mixed = f"cert={file('client.pem')}&key={file('stranger.key')}"
        usage = ExitCode.USAGE
        unknown = "unable to get local issuer certificate"
        for given, said, hint in [
            (f"ca={file('other-ca.pem')}&{cert}", unknown, "against"),
            (cert, unknown, "give the file of etcd's own CA"),
            (ca, "requires a client certificate", "give cert=FILE and key=FILE"),
            (
                f"{ca}&{others}",
                "rejected the client certificate",
                "signed by a CA that etcd trusts",
            ),
            (f"{ca}&{mixed}", "cannot be used", "must be that of the certificate"),
            (f"ca={file('missing.pem')}", "No such file", "PEM files"),
            (f"ca={file('server.key')}", "cannot be used", "PEM files"),
        ]:
            check(serve(f"{place}?{given}"), usage, said, hint=hint)
        is_refused(f"{named}?{ca}&{cert}", usage, "Hostname mismatch", hint="name the host as")
        without = serve(place.replace("etcds:", "etcd:"))
        check(without, ExitCode.COULD_NOT_MEET, "answered", hint="uses no TLS there")
        told = run(f"{place}?{ca}&{cert}")
        assert told.code == ExitCode.DONE, told.said


def another_client(folder: Path) -> None:
    """A client's certificate from a CA that etcd does not trust."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    name = ("-subj", "/CN=stranger", "-keyout", "stranger.key", "-out", "stranger.csr")
    _openssl(folder, "req", "-new", *curve, *name)
    ca = ("-CA", "other-ca.pem", "-CAkey", "other-ca.key", "-CAcreateserial", "-days", "2")
    files = ("-in", "stranger.csr", "-out", "stranger.pem", "-extfile", "extensions")
    _openssl(folder, "x509", "-req", *files, *ca)


# -- what a place holds already -------------------------------------------------------------------


async def put(options: EtcdOptions, key: str, value: bytes) -> None:
    client = EtcdClient(options)
    await client.open()
    try:
        await client.put(key.encode(), value)
    finally:
        await client.aclose()


async def keys_below(options: EtcdOptions, prefix: str) -> dict[bytes, bytes]:
    client = EtcdClient(options)
    await client.open()
    try:
        found = await client.range(prefix.encode(), prefix.encode() + b"0")
        return {each.key: each.value for each in found.kvs}
    finally:
        await client.aclose()


def test_a_prefix_with_other_data_is_refused(three_etcd: EtcdCluster) -> None:
    hosts, options = ",".join(three_etcd.endpoints), three_etcd.options
    newer = record_format.seal(b"", bytes(8), format=9)
    damaged = record_format.seal(b"value", bytes(8))[:-1]
    for key, value, code, said, hint in [
        ("theirs", b"1", ExitCode.USAGE, "holds something else: /", "nothing else uses"),
        ("ledger", b"1", ExitCode.USAGE, "holds something else: /", "nothing else uses"),
        ("ledger", newer, ExitCode.USAGE, "in format 9", "use the release that wrote it"),
        ("ledger", damaged, ExitCode.COULD_NOT_MEET, "is damaged", "from a backup"),
    ]:
        prefix = f"/test-{secrets.token_hex(6)}"
        asyncio.run(put(options, f"{prefix}/{key}", value))
        is_refused(f"etcd://{hosts}{prefix}", code, said, hint=hint)
        assert asyncio.run(keys_below(options, prefix)) == {f"{prefix}/{key}".encode(): value}


@pytest.mark.parametrize(
    ("value", "said", "hint"),
    [
        (record_format.seal(b"value", bytes(8))[:-1], "is damaged", "from a backup"),
        (
            record_format.seal(b"value", bytes(8), format=9),
            "in format 9",
            "use the release that wrote it",
        ),
        (record_format.seal(b"\x93\x01", bytes(8)), "cannot be read", "nothing has been changed"),
    ],
    ids=["damaged", "newer", "half"],
)
def test_an_unreadable_run_is_reported(
    three_etcd: EtcdCluster, tmp_path: Path, value: bytes, said: str, hint: str
) -> None:
    """Other runs continue; a node gets the reason from the ledger, or from `serve`."""
    place = f"etcd://{','.join(three_etcd.endpoints)}/test-{secrets.token_hex(6)}"
    prefix = place[place.rindex("/") :]

    async def begin() -> None:
        async with EtcdLedger(three_etcd.options, prefix):
            await put(three_etcd.options, f"{prefix}/r/runs/job", value)

    asyncio.run(begin())
    told = run(place)
    code = ExitCode.USAGE if "format 9" in said else ExitCode.COULD_NOT_MEET
    check(told, code, said, hint=hint)
    fleet = Fleet(tmp_path, place, place)
    try:
        replica = fleet.serve()
        told = run(f"http://127.0.0.1:{replica.port}")
        check(told, ExitCode.COULD_NOT_MEET, "'job' cannot be taken over", hint="before you clear")
        assert told.took_s < AT_ONCE_S
        other = command(
            *("run", "--endpoint", f"http://127.0.0.1:{replica.port}", "--run-id", "other"),
            *("--no-python", "true"),
        )
        assert other.code == ExitCode.DONE, other.said
        replica.process.line("ERROR run job")
        # Without a question there is no second line.
        said_once = [line for line in replica.process.lines if "ERROR run job" in line]
        assert len(said_once) == 1, replica.process.text
    finally:
        fleet.close()
    assert asyncio.run(keys_below(three_etcd.options, f"{prefix}/r/runs/job")) == {
        f"{prefix}/r/runs/job".encode(): value
    }


def test_a_folder_with_other_data_is_refused(tmp_path: Path) -> None:
    def folder(name: str, **files: bytes) -> str:
        made = tmp_path / name
        made.mkdir()
        for each, data in files.items():
            (made / each.replace("_", "-")).write_bytes(data)
        return f"file:{made}"

    marker = record_format.seal(b"value", bytes(8))
    theirs = folder("theirs", thing=b"x")
    is_refused(theirs, ExitCode.USAGE, "holds no ledger: thing", hint="name an empty folder")
    foreign = folder("foreign", rallypoint_ledger=b"hello")
    is_refused(foreign, ExitCode.USAGE, "is not a marker", hint="name another folder")
    newer = folder("newer", rallypoint_ledger=record_format.seal(b"", bytes(8), format=9))
    is_refused(newer, ExitCode.USAGE, "in format 9", hint="use the release that wrote it")
    for name, data in {"empty": b"", "half": marker[:-2], "bare": marker[:10]}.items():
        damaged = folder(name, rallypoint_ledger=data)
        is_refused(damaged, ExitCode.COULD_NOT_MEET, "is damaged", hint="from a backup")
        assert (tmp_path / name / "rallypoint-ledger").read_bytes() == data
    (tmp_path / "plain").write_bytes(b"x")
    is_refused(f"file:{tmp_path}/plain", ExitCode.USAGE, "is not a folder", hint="name a folder")
    missing = f"file:{tmp_path}/not/there"
    for told in (serve(missing), run(missing)):
        check(told, ExitCode.COULD_NOT_MEET, "there is no folder", hint="is the disk mounted?")
        assert told.took_s < UNREACHABLE_WITHIN_S


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    async def make(root: Path) -> Path:
        async with FileLedger(root) as ledger:
            await ledger.swap("runs/job", None, b"value")
            return root / f"ledger-{ledger.ledger_id}"

    backup = "from a backup"
    place = asyncio.run(make(tmp_path / "one"))
    (tmp_path / "one" / "rallypoint-ledger").unlink()
    is_refused(f"file:{tmp_path}/one", ExitCode.COULD_NOT_MEET, "is missing", hint=backup)
    place = asyncio.run(make(tmp_path / "two"))
    shutil.rmtree(place / "registers")
    lost = "has lost its registers"
    is_refused(f"file:{tmp_path}/two", ExitCode.COULD_NOT_MEET, lost, hint=backup)
    place = asyncio.run(make(tmp_path / "three"))
    for path in (place / "registers").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    told = run(f"file:{tmp_path}/three")
    check(told, ExitCode.COULD_NOT_MEET, "is damaged", hint=backup)
    assert told.took_s < AT_ONCE_S


# -- a log that cannot be read --------------------------------------------------------------------


async def _first_record(ledger: Path) -> bytes:
    """Of the log of the only round's store."""
    async with FileLedger(str(ledger)) as found:
        [log] = await found.logs("stores/")
        (_, value), *_ = await found.records(log)
        return value


def test_a_damaged_log_is_left_alone_and_its_nodes_say_why_they_wait(
    tmp_path: Path,
) -> None:
    """Acknowledged writes cannot be read until an operator repairs the log."""
    ledger = tmp_path / "ledger"
    fleet = Fleet(tmp_path / "fleet", f"file:{ledger}", f"file://{ledger}")
    fleet.machine.env["RALLYPOINT_HOST_COORDINATOR"] = "no"
    try:
        replica = fleet.serve()
        agents = fleet.start(2)
        fleet.at_work(1)
        fleet.counts_since(time.monotonic())
        replica.process.popen.kill()
        replica.process.popen.wait()
        records = [path for path in ledger.glob("ledger-*/logs/*/*") if path.is_file()]
        # The coordinator's events have a log, too.
        first = asyncio.run(_first_record(ledger))
        [damaged] = [path for path in records if first in path.read_bytes()]
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-1])
        before = {path: path.read_bytes() for path in records}
        fleet.serve()
        for each in agents:
            each.process.line("'job' cannot be taken over: .*is damaged")
        assert all(path.read_bytes() == data for path, data in before.items())
        damaged.write_bytes(whole)
        fleet.counts_since(time.monotonic())
        assert all(each["round"] == 1 for each in fleet.in_one_round())
    finally:
        fleet.close()
