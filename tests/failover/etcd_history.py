"""Every write to a ledger in etcd, in etcd's order, checked against the rules.

etcd keeps every revision until it is compacted, and no test compacts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import urllib.parse
from collections import defaultdict

from rallypoint.checkers.election_checker import ElectionChecker
from rallypoint.coordinator.log_records import Record, decode_record
from rallypoint.core import election as e
from rallypoint.core.store import StoreValue
from rallypoint.core.store.data import Put
from rallypoint.core.store.snapshot import Settled
from rallypoint.ledger import record_format
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.ledger.etcd.wire import KeyValue, prefix_end
from rallypoint.ledger.keys import EVENTS

READ_WITHIN_S = 60.0
_END = b".end"

Written = tuple[str, bytes | None]
"""A key below the prefix, and what was put there; None if it was deleted."""


def history(options: EtcdOptions, prefix: str) -> list[Written]:
    """Every write below the prefix, the first one first."""
    return asyncio.run(asyncio.wait_for(_history(options, prefix.encode()), READ_WITHIN_S))


async def _history(options: EtcdOptions, prefix: bytes) -> list[Written]:
    client = EtcdClient(options)
    await client.open()
    written: list[Written] = []
    try:
        last = (await client.range(prefix + b"/ledger")).header.revision
        watch = client.watch(prefix, prefix_end(prefix), start_revision=1)
        # The watch has no end: a write of its own, under another key of the prefix, is one.
        await client.put(prefix + _END, b"")
        async with contextlib.aclosing(watch) as batches:
            async for events in batches:
                for event in events:
                    if event.kv.key != prefix + _END:
                        written.append(_written(prefix, event.kv, event.type))
                    elif event.kv.mod_revision > last:
                        return written
    finally:
        await client.aclose()
    raise AssertionError("a watch does not end by itself")


def _written(prefix: bytes, found: KeyValue, kind: str) -> Written:
    key = found.key.removeprefix(prefix + b"/").decode()
    return key, record_format.unseal(found.value, key).value if kind == "PUT" else None


def check(written: list[Written]) -> dict[int, int]:
    """R1, R5, R6, R11, R13 in the registers and logs. Returns what each round has counted.

    Raises InvariantViolation or AssertionError.
    """
    checker = ElectionChecker()
    logs: dict[str, list[Record]] = defaultdict(list)
    for key, value in written:
        kind, _, rest = key.partition("/")
        if kind == "r":
            _check_register(checker, rest, value)
        elif kind == "l" and value is not None:
            log, _, index = rest.rpartition("/")
            name = urllib.parse.unquote(log)
            if name.startswith(EVENTS):
                continue  # for people: no rule depends on it
            assert int(index, 16) == len(logs[name]), f"R5: {key} is out of order"
            logs[name].append(decode_record(value))
    added: dict[int, int] = defaultdict(int)
    for name, records in logs.items():
        # A round has one log or more: <number>.<term>.<segment>.<writer>.
        added[int(name.rpartition("/")[2].partition(".")[0])] += _check_log(name, records)
    return added


def _check_register(checker: ElectionChecker, key: str, value: bytes | None) -> None:
    kind, _, name = key.partition("/")
    if kind == "runs":
        assert value is not None, "a run was swept while it was on"
        checker.run_written(e.decode_run(value))
    elif kind == "floor":
        assert value is not None, "the floor is never removed"
        checker.floor_written(e.decode_floor(value))
    elif kind != "coordinators":
        pass  # Chunks of member tables: content that a head names.
    elif value is None:
        checker.lease_swept(name)
    else:
        checker.lease_written(e.decode_lease(value))


def _check_log(name: str, records: list[Record]) -> int:
    terms = [record.term for record in records]
    assert terms == sorted(terms), f"R5: {name} was written by terms {terms}"
    for before, after in itertools.pairwise(records):
        assert after.is_seal or before.term == after.term, f"R5: {name}: a term without a seal"
    calls = [each for record in records for each in record.entries]
    requests = [(call.node, call.request_id) for call in calls]
    assert len(requests) == len(set(requests)), f"R11: {name} has a call twice"
    return sum(_is_sum(call) for call in calls)


def _is_sum(call: Settled) -> bool:
    """Whether it is an `add`, each of which adds one: it writes what it answers."""
    match call:
        case Settled(result=StoreValue(value=int(total)), writes=(Put(value=written),)):
            return written == b"%d" % total
        case _:
            return False
