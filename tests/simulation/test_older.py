"""Processes of an older release in the simulator: what they drop, and what they keep."""

from __future__ import annotations

import asyncio

import msgspec

from rallypoint.core.election.records import (
    FORMAT,
    Lease,
    RunRegister,
    decode_lease,
    decode_run,
    encode,
)
from rallypoint.core.progress import Progress
from rallypoint.core.registers import Swapped
from rallypoint.core.values import EndedOwner, NodeInfo, RunSettings, Stamp
from rallypoint.ledger.keys import lease_key, run_key
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.simulation.older import make_older, of_older
from rallypoint.wire import messages as wire

STAMP = Stamp("ledger", 1, 0)
RUN = RunRegister(FORMAT, "ledger", "run", 1, "owner", unsure_s=5.0)


def test_it_does_not_say_that_an_owner_has_ended() -> None:
    settings = RunSettings(min_nodes=1, max_nodes=1)
    ended = EndedOwner("owner", 3)
    told = wire.Attach(STAMP, 1, "run", NodeInfo("a", 1, "a"), settings, ended=ended)
    seen = wire.decode_from_node(of_older(wire.encode(told)))
    assert seen == msgspec.structs.replace(told, ended=None)
    assert len(of_older(wire.encode(told))) < len(wire.encode(told))


def test_other_messages_are_the_same() -> None:
    message = wire.encode(wire.Alive(STAMP))
    assert of_older(message) == message


def test_its_heartbeats_report_no_progress() -> None:
    told = wire.Heartbeat(STAMP, Progress(1, 5, 0.5, 60.0))
    assert wire.decode_from_node(of_older(wire.encode(told))) == wire.Heartbeat(STAMP)


def test_it_does_not_see_newer_fields_and_keeps_them() -> None:
    async def written() -> tuple[RunRegister, RunRegister, Lease, bytes]:
        newer, older = MemoryLedger(), MemoryLedger()
        await newer.open()
        older.__dict__.update(newer.__dict__)
        make_older(older)
        first = await newer.swap(run_key("run"), None, encode(RUN))
        assert isinstance(first, Swapped)
        found = await older.read(run_key("run"))
        assert found is not None
        seen = decode_run(found.value)
        following = encode(seen.following(seen))
        assert isinstance(await older.swap(run_key("run"), found.version, following), Swapped)
        own = Lease(FORMAT, "own", 1)
        assert isinstance(await older.swap(lease_key("own"), None, encode(own)), Swapped)
        kept, lease = await newer.read(run_key("run")), await newer.read(lease_key("own"))
        assert kept is not None
        assert lease is not None
        return seen, decode_run(kept.value), decode_lease(lease.value), lease.value

    seen, kept, lease, value = asyncio.run(written())
    assert seen.unsure_s == 0.0
    assert kept.unsure_s == RUN.unsure_s
    assert kept.sequence == RUN.sequence + 1
    assert not lease.is_early
    assert len(msgspec.msgpack.decode(value)) == len(Lease.__struct_fields__) - 2
