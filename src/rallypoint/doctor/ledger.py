"""The ledger of the endpoint: can it be reached and used, how fast is it, who coordinates in it.

It changes nothing that stays: a ledger that does not exist yet is not made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from rallypoint import ledger_schemes, runtime, threads
from rallypoint.core.sizes import size_text
from rallypoint.core.values import Address
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes, skipped, took_text
from rallypoint.doctor.leases import look_twice
from rallypoint.endpoints import EtcdPlace, FilePlace, PackagePlace
from rallypoint.errors import LedgerError, LedgerFullError, RallypointError, UsageError
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.options import EtcdOptions, tls_context
from rallypoint.ledger.etcd.wire import Status
from rallypoint.ledger.file.probe import PREFIX
from rallypoint.ledger.open import open_ledger

CHECK: Final = "ledger"
CALLS: Final = 5
"""How many reads and fsyncs are timed. The median counts."""
SLOW_READ_S: Final = 0.5
SLOW_SYNC_S: Final = 0.1
"""A lease of 5 s is renewed every 1.7 s, with one write."""
FREE_BYTES_MIN: Final = 256 << 20
_METRICS_S: Final = 2.0
_METRICS_BYTES_MAX: Final = 4 << 20


class Coordinator(msgspec.Struct, frozen=True):
    """A coordinator whose lease was renewed while the ledger was looked at."""

    process: str
    addresses: tuple[Address, ...]
    token: str = ""

    def __repr__(self) -> str:
        return f"Coordinator({self.process!r}, {self.addresses!r})"


class Looked(msgspec.Struct, frozen=True):
    """The finding, and the coordinators that are alive."""

    finding: Finding
    coordinators: tuple[Coordinator, ...] = ()


def look(case: Case) -> Looked:
    """Check the ledger of the endpoint, and find its coordinators."""
    place = case.endpoint.place
    if place is None:
        return Looked(skipped(CHECK, "the endpoint is not a ledger"))
    return threads.run(_look(case, place))


async def _look(case: Case, place: EtcdPlace | FilePlace | PackagePlace) -> Looked:
    notes = Notes(CHECK)
    _judge_packages(notes)
    found: tuple[Coordinator, ...] = ()
    try:
        if isinstance(place, EtcdPlace):
            await _check_members(case, place, notes)
        elif isinstance(place, FilePlace):
            await asyncio.gather(runtime.in_thread(lambda: _check_disk(Path(place.folder), notes)))
        found = await _use(case, notes)
    except LedgerError as error:
        notes.fail(error.message, error.hint)
    except UsageError as error:
        notes.fail(error.message, error.hint)
    return Looked(notes.finding(f"the ledger {case.endpoint} can be used"), found)


def _judge_packages(notes: Notes) -> None:
    """Name the ledgers of other packages that are never used."""
    for each in ledger_schemes.refused():
        notes.warn(
            f"an installed package registers a ledger that is not used: "
            f"{ledger_schemes.origin(each)}",
            "uninstall it, or ask its authors for another name: "
            f"{', '.join(ledger_schemes.OWN)} are Rallypoint's own schemes",
        )


async def _use(case: Case, notes: Notes) -> tuple[Coordinator, ...]:
    """Open the ledger if it exists, and read in it."""
    ledger = open_ledger(case.endpoint, case.etcd_password)
    try:
        ledger_id = await ledger.find()
        notes.facts["ledger_id"] = ledger_id
        if not ledger_id:
            notes.saw("there is no ledger yet: the first node or `rallypoint serve` makes it")
            return ()
        notes.saw(f"ledger {ledger_id}")
        await ledger.open()
        read_s = await _median_s(lambda: ledger.read("doctor"))
        notes.facts["read_s"] = round(read_s, 6)
        _judge_time(read_s, SLOW_READ_S, "a read takes", notes)
        return await _coordinators(ledger, notes)
    finally:
        await ledger.aclose()


async def _median_s(work: Callable[[], Awaitable[Any]]) -> float:
    took = []
    for _ in range(CALLS):
        began_s = time.monotonic()
        await work()
        took.append(time.monotonic() - began_s)
    return statistics.median(took)


def _judge_time(took_s: float, slow_s: float, what: str, notes: Notes) -> None:
    line = f"{what} {took_text(took_s)} (median of {CALLS})"
    if took_s > slow_s:
        advice = (
            "use a faster or less busy disk or network for the ledger, or a longer lease_ttl "
            "(RALLYPOINT_LEASE_TTL)"
        )
        notes.warn(line, advice)
    else:
        notes.saw(line)


# -- coordinators --------------------------------------------------------------------------------


async def _coordinators(ledger: Ledger, notes: Notes) -> tuple[Coordinator, ...]:
    """Those that are alive. A killed one leaves its lease for an hour."""
    found = await look_twice(ledger)
    if not found:
        notes.saw("no coordinator has a lease in it")
    alive = []
    for each in found:
        process, addresses = each.lease.process, each.lease.addresses
        if not each.is_renewed:
            notes.saw(f"the lease of {process} was not renewed within {took_text(each.pause_s)}")
            continue
        where = ", ".join(map(str, addresses)) or "no address"
        notes.saw(f"coordinator {process} renews its lease: {where}")
        alive.append(Coordinator(process, addresses, each.lease.token))
    notes.facts["coordinators"] = [each.process for each in alive]
    return tuple(alive)


# -- a folder ------------------------------------------------------------------------------------


def _check_disk(folder: Path, notes: Notes) -> None:
    """The disk of a folder: its room, and how long it takes to keep a write."""
    where = folder if folder.is_dir() else folder.parent
    if not where.is_dir():
        return  # `find` says so
    with contextlib.suppress(OSError):
        about = os.statvfs(where)
        free = about.f_bavail * about.f_frsize
        notes.facts |= {"free_bytes": free, "free_files": about.f_favail}
        line = f"{size_text(free)} are free on the disk of {where}"
        if free < FREE_BYTES_MIN:
            notes.warn(line, "make room: a full disk suspends the runs of the ledger")
        else:
            notes.saw(line)
        if about.f_files and not about.f_favail:
            notes.fail(f"the disk of {where} has no free inodes", "remove files on it (`df -i`)")
    if where != folder:
        return
    try:
        sync_s = statistics.median(_syncs_s(folder))
    except OSError:
        return  # `find` makes the same trial, and says why it failed
    notes.facts["fsync_s"] = round(sync_s, 6)
    _judge_time(sync_s, SLOW_SYNC_S, "a write with fsync takes", notes)


def _syncs_s(folder: Path) -> Iterator[float]:
    path = folder / f"{PREFIX}{runtime.token_hex(8)}"
    try:
        with path.open("xb", buffering=0) as file:
            for _ in range(CALLS):
                began_s = time.monotonic()
                file.write(bytes(4096))
                os.fsync(file.fileno())
                yield time.monotonic() - began_s
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


# -- etcd ----------------------------------------------------------------------------------------


async def _check_members(case: Case, place: EtcdPlace, notes: Notes) -> None:
    """Each member that the endpoint names, by itself: its release, leader, room and fsync."""
    options = _options(case, place)
    states = await asyncio.gather(*(_member(each, options, notes) for each in place.hosts))
    answered = [each for each in states if each is not None]
    notes.facts["members_answered"] = len(answered)
    if not answered:
        return  # `find` says so, with the error of each
    named = len(place.hosts)
    if len(answered) < named:
        notes.warn(
            f"{len(answered)} of {named} members of etcd answer",
            "start the members that do not answer: with half of them gone, all runs are suspended",
        )
    else:
        notes.saw(f"{named} of {named} named members answer")
    if not any(each.leader for each in answered):
        advice = "start more members: more than half of the cluster have to reach each other"
        notes.fail("the members of etcd that answer have no leader (no quorum)", advice)
    await _check_cluster(options, notes)


def _options(case: Case, place: EtcdPlace) -> EtcdOptions:
    return EtcdOptions(
        endpoints=place.hosts,
        tls=place.tls,
        ca_file=place.ca or None,
        cert_file=place.cert or None,
        key_file=place.key or None,
        user=place.user,
        password=case.etcd_password,
        timeout_s=3.0,
    )


async def _member(host: str, options: EtcdOptions, notes: Notes) -> Status | None:
    client = EtcdClient(msgspec.structs.replace(options, endpoints=(host,)))
    try:
        await client.open()
        state = await client.status()
    except RallypointError as error:
        notes.saw(f"{host}: {error.message}")
        return None
    finally:
        await client.aclose()
    role = "leader" if state.leader == state.header.member_id else "follower"
    role = role if state.leader else "without a leader"
    notes.saw(f"{host}: etcd {state.version}, {role}, {size_text(state.db_size)} of data")
    notes.facts.setdefault("etcd", {})[host] = {"version": state.version, "role": role}
    _judge_metrics(host, await _metrics(host, options), notes)
    return state


async def _check_cluster(options: EtcdOptions, notes: Notes) -> None:
    """How many members the cluster has, if this user may ask."""
    client = EtcdClient(options)
    try:
        await client.open()
        members = await client.members()
    except (LedgerFullError, RallypointError):
        return  # some users may not, and a cluster without quorum does not say
    finally:
        await client.aclose()
    notes.facts["cluster_members"] = len(members)
    if len(members) in (1, 2):
        size = "one member" if len(members) == 1 else "two members"
        advice = "run three or five members: then the loss of one is survived"
        notes.warn(f"the cluster of etcd has {size}, and survives the loss of none", advice)


async def _metrics(host: str, options: EtcdOptions) -> dict[str, float]:
    """Some of the metrics of a member; empty if they are not offered at this port."""
    scheme = "https" if options.tls else "http"
    found: dict[str, float] = {}
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with (
            asyncio.timeout(_METRICS_S),
            aiohttp.ClientSession() as session,
            session.get(
                f"{scheme}://{host}/metrics", ssl=tls_context(options) if options.tls else False
            ) as response,
        ):
            text = (await response.content.read(_METRICS_BYTES_MAX)).decode(errors="replace")
            while more := await response.content.read(_METRICS_BYTES_MAX):
                text += more.decode(errors="replace")
                if len(text) > _METRICS_BYTES_MAX:
                    break
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if name in _READ:
                with contextlib.suppress(ValueError):
                    found[name] = float(value)
    return found


_SYNC: Final = "etcd_disk_wal_fsync_duration_seconds"
_SIZE: Final = "etcd_mvcc_db_total_size_in_bytes"
_QUOTA: Final = "etcd_server_quota_backend_bytes"
_READ: Final = frozenset({f"{_SYNC}_sum", f"{_SYNC}_count", _SIZE, _QUOTA})
"""Source: etcd.io/docs, "Metrics"; they are the same in 3.4 to 3.6."""


def _judge_metrics(host: str, found: dict[str, float], notes: Notes) -> None:
    count = found.get(f"{_SYNC}_count", 0)
    if count:
        sync_s = found.get(f"{_SYNC}_sum", 0.0) / count
        notes.facts["etcd"][host]["fsync_s"] = round(sync_s, 6)
        line = f"{host}: a write with fsync has taken {took_text(sync_s)} on average"
        if sync_s > SLOW_SYNC_S:
            notes.warn(line, "give etcd a faster disk of its own (etcd.io/docs: hardware)")
        else:
            notes.saw(line)
    size, quota = found.get(_SIZE), found.get(_QUOTA)
    if size and quota:
        line = f"{host}: {size_text(int(size))} of at most {size_text(int(quota))} are used"
        if size > 0.8 * quota:
            notes.warn(line, "compact and defragment etcd: a full one suspends all runs")
        else:
            notes.saw(line)
