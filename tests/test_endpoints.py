"""Endpoints and ledgers: what is accepted, what is refused and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from rallypoint import settings
from rallypoint.endpoints import EtcdPlace, FilePlace, parse_ledger
from rallypoint.errors import EndpointError, UsageError
from rallypoint.settings import EndpointKind, parse_endpoint

# -- endpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "host", "port"),
    [
        (None, EndpointKind.LOCAL, "", 0),
        ("", EndpointKind.LOCAL, "", 0),
        ("node0", EndpointKind.HOST, "node0", 29400),
        ("node0:1", EndpointKind.HOST, "node0", 1),
        ("a-b.example.com.:65535", EndpointKind.HOST, "a-b.example.com.", 65535),
        ("trainer_0:5", EndpointKind.HOST, "trainer_0", 5),
        ("1.2.3.4:5", EndpointKind.HOST, "1.2.3.4", 5),
        ("[::1]:6", EndpointKind.HOST, "::1", 6),
        ("[fe80::1%eth0]", EndpointKind.HOST, "fe80::1%eth0", 29400),
        ("http://node0", EndpointKind.SERVED, "node0", 29400),
        ("http://node0:80/", EndpointKind.SERVED, "node0", 80),
        ("https://node0", EndpointKind.SERVED, "node0", 29400),
        ("HTTPS://[::1]:6", EndpointKind.SERVED, "::1", 6),
        ("HTTP://[::1]:6", EndpointKind.SERVED, "::1", 6),
        ("http://[fe80::1%eth0]:6", EndpointKind.SERVED, "fe80::1%eth0", 6),
        ("http://[fe80::1%25eth0]:6", EndpointKind.SERVED, "fe80::1%eth0", 6),
        ("[fe80::1%25eth0]:6", EndpointKind.HOST, "fe80::1%25eth0", 6),
    ],
)
def test_an_endpoint_is_read(text: str | None, kind: EndpointKind, host: str, port: int) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.kind, endpoint.host, endpoint.port) == (kind, host, port)
    assert endpoint.text == (text or "")


@pytest.mark.parametrize(
    ("text", "hosts", "has_port"),
    [
        ("n1:5", ["n1:5"], True),
        ("n1", ["n1:29400"], False),
        ("n1,n2", ["n1:29400", "n2:29400"], False),
        ("n1,n2:7,[fd00::1]:8,1.2.3.4", ["n1:29400", "n2:7", "[fd00::1]:8", "1.2.3.4:29400"], True),
        ("n2:5,n1:5,n2:5,n2:6", ["n2:5", "n1:5", "n2:6"], True),
        ("localhost:1,127.0.0.1:2", ["localhost:1", "127.0.0.1:2"], True),
    ],
)
def test_an_endpoint_may_have_several_hosts(text: str, hosts: list[str], has_port: bool) -> None:
    endpoint = parse_endpoint(text)
    assert endpoint.kind is EndpointKind.HOST
    assert list(map(str, endpoint.hosts)) == hosts
    assert str(endpoint) == endpoint.text == text
    assert endpoint.has_port is has_port
    assert endpoint.has_choice is (len(hosts) > 1)


def test_an_endpoint_of_many_hosts_is_shown_short() -> None:
    endpoint = parse_endpoint(",".join(f"n{number}" for number in range(64)))
    assert str(endpoint) == "n0:29400,n1:29400,n2:29400,n3:29400 and 60 more hosts"


def test_the_hosts_of_an_endpoint_can_have_a_range_of_ports() -> None:
    endpoint = parse_endpoint("n1,n2").over(30000, 30003)
    assert list(map(str, endpoint.hosts)) == ["n1:30000", "n2:30000"]
    assert endpoint.spare_ports == 3
    assert endpoint.has_choice


@pytest.mark.parametrize(
    ("text", "is_loopback"),
    [("localhost:1,[::1]:2", True), ("n1,n2", False), ("127.0.0.1", True), ("n1", False)],
)
def test_an_endpoint_knows_whether_only_this_machine_reaches_it(
    text: str, is_loopback: bool
) -> None:
    assert parse_endpoint(text).is_loopback is is_loopback


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("n1,,n2", "names no host", "HOST:PORT"),
        ("n1,n2,", "names no host", "HOST:PORT"),
        ("n1,n 2", "'n 2' is not a host name", "HOST:PORT"),
        ("n1,localhost", "localhost means each machine itself", "remove it"),
        ("127.0.0.1,n1,n2", "127.0.0.1 means each machine itself", "remove it"),
        ("n1,::1", "needs brackets", "write n1,[::1]:29400"),
        ("host:0", "'0' is not a port", "1 to 65535"),
        ("host:65536", "'65536' is not a port", "1 to 65535"),
        ("host:", "'' is not a port", "29400"),
        ("host:-1", "'-1' is not a port", "1 to 65535"),
        ("host:٣", "is not a port", "1 to 65535"),
        (":29400", "names no host", "HOST:PORT"),
        ("http://", "names no host", "HOST:PORT"),
        ("http://:80", "names no host", "HOST:PORT"),
        (" ", "not a host name", "HOST:PORT"),
        ("my host:1", "not a host name", "HOST:PORT"),
        ("host :1", "not a host name", "HOST:PORT"),
        ("-host:1", "not a host name", "HOST:PORT"),
        ("1.2.3.400:5", "not an IPv4 address", "HOST:PORT"),
        ("::1", "needs brackets", "write [::1]:29400"),
        ("fe80::1:29400", "needs brackets", "write [fe80::1]:29400"),
        ("http://::1", "needs brackets", "write http://[::1]:29400"),
        ("a:b:c", "too many colons", "HOST:PORT"),
        ("[node0]:1", "no IPv6 address", "[::1]:29400"),
        ("[::1", "no IPv6 address", "[::1]:29400"),
        ("[::1]1", "no IPv6 address", "[::1]:29400"),
        ("[fe80::1]:1", "needs its zone", "[fe80::1%eth0]"),
        ("http://[FE80::1]", "needs its zone", "[FE80::1%eth0]"),
        ("etcd://[fe80::1]:2379/p", "needs its zone", "[fe80::1%eth0]"),
        ("[fe80::1%]:1", "no IPv6 address", "[::1]:29400"),
        ("[fe80::1%a b]:1", "no IPv6 address", "[::1]:29400"),
        ("etcd://", "names no host of etcd", "HOST:PORT"),
        ("etcd:///prefix", "names no host of etcd", "HOST:PORT"),
        ("etcd://a:2379,", "names no host", "HOST:PORT"),
        ("etcd://a:0", "'0' is not a port", "it is 2379"),
        ("etcd://a:2379/p?nonsense=1", "'nonsense' is not an option", "ca, cert, key"),
        ("etcd://a:2379/p?user=", "'user' is not an option", "ca, cert, key"),
        ("etcds://a?ca=x&ca=y", "is given twice", "at most once"),
        ("etcd://a:2379/p?ca=ca.pem", "etcd:// does not use", "etcds://"),
        ("etcds://a:2379/p?cert=c.pem", "a certificate needs its key", "key=FILE"),
        ("etcd://a?password_file=f", "needs a user", "user=NAME"),
        ("etcd://a/p#b", "'#'", "etcd://"),
        ("file://", "does not name a folder", "file:///"),
        ("file:///", "does not name a folder", "file:///"),
        ("file:shared", "does not name a folder", "file:///"),
        ("file://shared/dir", "names a host", "file:///shared/dir"),
        ("tcp://node0:1", "cannot begin with tcp://", "HOST:PORT"),
        ("://node0:1", "cannot begin with ://", "HOST:PORT"),
        ("http://node0:1/path", "must have only a host and a port", "write http://node0:1"),
        ("http://node0:1?a=b", "must have only a host and a port", "write http://node0:1"),
    ],
)
def test_an_endpoint_is_refused(text: str, told: str, hint: str) -> None:
    with pytest.raises(EndpointError) as caught:
        parse_endpoint(text)
    assert told in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0.0.0.0", "means all of them"),
        ("::", "means all of them"),
        ("fe80::1", "must have its zone, as fe80::1%eth0"),
        ("fe80::1%a b", "must be a host name or an address"),
        ("10.1", "must be a host name or an address"),
        ("node0:1", "must be a host name or an address"),
    ],
)
def test_an_address_that_others_cannot_reach_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match="local_addr") as caught:
        settings.node_settings(endpoint="node0", run_id="r", local_addr=text)
    assert told in caught.value.message


@pytest.mark.parametrize("text", ["10.0.0.5", "2001:db8::1", "fe80::1%eth0", "node0.example"])
def test_an_address_that_others_can_reach_is_accepted(text: str) -> None:
    assert settings.node_settings(endpoint="node0", run_id="r", local_addr=text).local_addr == text


@pytest.mark.parametrize(
    "text",
    [
        "http://me:hunter2@node0:1",
        "etcd://me:hunter2@node0:1/p",
        "etcds://a,me:hunter2@b:1",
        "etcd://a/p?user=me&password=hunter2",
    ],
)
def test_a_password_in_an_endpoint_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(EndpointError) as caught:
        parse_endpoint(text)
    assert "hunter2" not in str(caught.value)
    assert "RALLYPOINT_" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("etcd://a", EtcdPlace(hosts=("a:2379",))),
        ("etcd://a:1,b,[::1]:3/", EtcdPlace(hosts=("a:1", "b:2379", "[::1]:3"))),
        ("etcd://a/jobs/mine/", EtcdPlace(hosts=("a:2379",), prefix="/jobs/mine")),
        ("etcd://a/a%20b", EtcdPlace(hosts=("a:2379",), prefix="/a b")),
        ("etcd://a?user=me", EtcdPlace(hosts=("a:2379",), user="me")),
        (
            "ETCDS://a/p?ca=/ca.pem&cert=/c.pem&key=/k.pem&user=me&password_file=/pw",
            EtcdPlace(
                hosts=("a:2379",),
                prefix="/p",
                tls=True,
                ca="/ca.pem",
                cert="/c.pem",
                key="/k.pem",
                user="me",
                password_file="/pw",
            ),
        ),
        ("file:///shared/dir", FilePlace(folder="/shared/dir")),
        ("file://localhost/shared/a%20b", FilePlace(folder="/shared/a b")),
        ("file:/shared", FilePlace(folder="/shared")),
    ],
)
def test_a_ledger_is_an_endpoint(text: str, place: EtcdPlace | FilePlace) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.kind, endpoint.place) == (EndpointKind.LEDGER, place)
    assert (endpoint.text, endpoint.url) == (text, "")


def test_a_ledger_of_this_machine_may_be_a_relative_folder(tmp_path: Path) -> None:
    expected = FilePlace(folder=str(Path("ledger").absolute()))
    assert parse_ledger("file:ledger").place == expected
    assert parse_ledger(f"file:{tmp_path}").place == FilePlace(folder=str(tmp_path))
    assert parse_ledger("etcd://a/p").place == EtcdPlace(hosts=("a:2379",), prefix="/p")
    for text in ("file:", "node0:1", "http://node0", ""):
        with pytest.raises(EndpointError):
            parse_ledger(text)


def test_the_password_of_etcd_comes_from_a_file_before_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("correct horse\n")
    environ = {"RALLYPOINT_ETCD_PASSWORD": "staple"}
    named = parse_endpoint(f"etcd://a?user=me&password_file={path}")
    unnamed = parse_endpoint("etcd://a?user=me")
    assert settings.etcd_password(named, environ) == "correct horse"
    assert settings.etcd_password(unnamed, environ) == "staple"
    assert settings.etcd_password(parse_endpoint("etcd://a"), environ) == ""
    assert settings.etcd_password(parse_endpoint("file:///a"), environ) == ""
    with pytest.raises(UsageError, match="user 'me' has no password") as caught:
        settings.etcd_password(unnamed, {})
    assert "RALLYPOINT_ETCD_PASSWORD" in caught.value.hint
    with pytest.raises(UsageError, match="No such file"):
        settings.etcd_password(parse_endpoint("etcd://a?user=me&password_file=/none"), environ)


def test_a_node_on_etcd_has_its_password_and_never_shows_it() -> None:
    environ = {"RALLYPOINT_ETCD_PASSWORD": "hunter2"}
    node = settings.node_settings(environ=environ, endpoint="etcd://a?user=me", run_id="r")
    assert node.etcd_password == "hunter2"
    shown = settings.resolve("etcd_password", None, environ)
    assert "hunter2" not in repr(node) + repr(shown) + shown.shown


def test_an_endpoint_has_a_url() -> None:
    assert parse_endpoint("[::1]:6").url == "http://[::1]:6"
    assert parse_endpoint("http://node0/").url == "http://node0:29400"
    assert parse_endpoint(None).url == ""
