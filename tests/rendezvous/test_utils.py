"""Reading a rendezvous endpoint, by torch's rules."""

from __future__ import annotations

import pytest

from rallypoint.rendezvous import utils
from rallypoint.rendezvous.utils import parse_rendezvous_endpoint


def test_one_name_is_public() -> None:
    assert utils.__all__ == ["parse_rendezvous_endpoint"]


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [
        (None, "localhost", 123),
        ("", "localhost", 123),
        ("   ", "localhost", 123),
        ("node9", "node9", 123),
        ("  node9:45  ", "node9", 45),
        ("node_9.rack-1.example:45", "node_9.rack-1.example", 45),
        ("10.0.0.1", "10.0.0.1", 123),
        ("10.0.0.1:0", "10.0.0.1", 0),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("[::1]", "::1", 123),
        ("[::1]:45", "::1", 45),
        ("[2001:db8::7]:00045", "2001:db8::7", 45),
    ],
)
def test_an_endpoint_is_a_host_and_perhaps_a_port(
    endpoint: str | None, host: str, port: int
) -> None:
    assert parse_rendezvous_endpoint(endpoint, 123) == (host, port)


@pytest.mark.parametrize("default", [-1, 0, 29400])
def test_the_default_port_is_given_back_as_it_is(default: int) -> None:
    assert parse_rendezvous_endpoint("node9", default) == ("node9", default)


@pytest.mark.parametrize(
    "port", ["65536", "99999", "123456", "-1", "+1", "a", "", " 5", "5 5", "1.0", "١"]
)
def test_a_bad_port_is_an_error_that_shows_it(port: str) -> None:
    endpoint = f"node9:{port}"
    with pytest.raises(ValueError, match="port") as raised:
        parse_rendezvous_endpoint(endpoint, 123)
    assert f"'{endpoint.strip()}'" in str(raised.value)


@pytest.mark.parametrize("host", ["~", "node 9", "a/b", "http://node9", "a,b", "no\nde", "[", "[]"])
def test_a_bad_host_is_an_error_that_shows_it(host: str) -> None:
    with pytest.raises(ValueError, match="host") as raised:
        parse_rendezvous_endpoint(f"{host}:45", 123)
    assert f"'{host}:45'" in str(raised.value)


def test_an_endpoint_of_only_a_port_has_no_host() -> None:
    with pytest.raises(ValueError, match="host"):
        parse_rendezvous_endpoint(":45", 123)
