"""Names, hosts and labels that come from other machines."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.core import naming
from rallypoint.core.values import NodeInfo

INFO = NodeInfo("n0", 1, "host", ("10.0.0.1",), 1, {"rack": "7"})


@pytest.mark.parametrize(
    "host",
    ["h", "host-1", "node_3.example.", "10.0.0.1", "::1", "fe80::1%eth0", "müller", "x" * 255],
)
def test_a_host_name_is_accepted(host: str) -> None:
    assert naming.is_host(host)


NO_HOSTS = ["", "a\0b", "a b", "a\nb", "a=b", "a\x1b[2Jb", "-x", "a;b", "$(id)", "[::1]", "h:1"]
NO_HOSTS += ["x" * 256, "ü" * 200, "fe80::1%", "fe80::1%a/b", "10.0.0.1%eth0", "a\u202eb", "a/b"]
NO_HOSTS += ["\ud800", "a'b"]


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_bad_host_name_is_refused(host: str) -> None:
    assert not naming.is_host(host)
    assert naming.host_problem("bootstrap host", host).isprintable()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a\nb"}, "node name 'a\\nb'"),
        ({"name": "a\0"}, "node name"),
        ({"host": "a\x1b[2J"}, "host"),
        ({"addresses": ("10.0.0.1", "a\0b")}, "address"),
        ({"labels": {"a\n": "x"}}, "the name of label"),
        ({"labels": {"a": "x\x1b"}}, "the value of label"),
        ({"labels": {f"{n:02}": "\U0001f600" * 250 for n in range(64)}}, "bytes"),
        ({"addresses": tuple("x" * 250 for _ in range(64))}, "bytes"),
    ],
)
def test_a_bad_node_name_is_refused(fields: dict[str, object], words: str) -> None:
    problem = naming.info_problem(msgspec.structs.replace(INFO, **fields))
    assert words in problem
    assert problem.isprintable()
    assert len(problem) < 200


def test_a_plain_node_name_is_accepted() -> None:
    assert naming.info_problem(INFO) == ""
    assert naming.info_bytes(INFO) == len("n0" + "host" + "10.0.0.1" + "rack" + "7")


def test_a_name_is_limited_in_bytes() -> None:
    room = naming.INFO_BYTES_MAX - naming.info_bytes(msgspec.structs.replace(INFO, labels={}))
    values = [250] * (room // 260) + [room % 260 - 10]
    labels = {f"{n:010}": "x" * size for n, size in enumerate(values)}
    info = msgspec.structs.replace(INFO, labels=labels)
    assert naming.info_bytes(info) == naming.INFO_BYTES_MAX
    assert naming.info_problem(info) == ""
    one_more = msgspec.structs.replace(info, labels=labels | {"0" * 10: "x" * 251})
    assert "bytes" in naming.info_problem(one_more)


@pytest.mark.parametrize("run_id", [".", "..", "a\x00"])
def test_a_run_id_that_a_path_cannot_have_is_refused(run_id: str) -> None:
    """Clients and proxies remove "." and ".." from the path of a request, also as %2E."""
    assert naming.run_id_problem(run_id)


@pytest.mark.parametrize("run_id", ["...", ".a", "a/..", "../a", "a.b"])
def test_other_run_ids_with_dots_are_accepted(run_id: str) -> None:
    assert naming.run_id_problem(run_id) == ""
