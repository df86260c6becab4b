"""A server at an endpoint of etcd may answer anything. Each answer becomes a LedgerError."""

from __future__ import annotations

import re

import pytest

from rallypoint.errors import LedgerForeignError
from rallypoint.ledger.etcd import wire

STRANGE = {
    "deep": b'{"kvs":' + b"[" * 50_000,
    "deep, where it is skipped": b'{"other":' + b"[" * 50_000,
    "no UTF-8": b'{"kvs":[{"key":"\xff"}]}',
    "no JSON": b"<html>",
    "nothing": b"",
    "a number beyond all": b'{"header":{"revision":"' + b"9" * 5_000 + b'"}}',
    "no base64": b'{"kvs":[{"key":"!"}]}',
}


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE)
def test_a_strange_answer_is_no_etcd(data: bytes) -> None:
    with pytest.raises(LedgerForeignError, match=re.escape("10.0.0.1:2379")):
        wire.decode(data, wire.RangeResult, "10.0.0.1:2379")
    assert isinstance(wire.refusal(400, data, "10.0.0.1:2379"), LedgerForeignError | None)


@pytest.mark.parametrize(
    "data", [b'{"error":' + b"[" * 50_000, b'{"message":"\xff"}'], ids=["deep", "no UTF-8"]
)
def test_a_strange_refusal_of_a_proxy_leaves_it_open_whether_anything_was_done(data: bytes) -> None:
    assert wire.refusal(503, data, "10.0.0.1:2379") is None
