"""The process of `rallypoint serve`, from its bound socket to its end.

The checks before that are in serve.py, which every command imports. Only this file loads asyncio
and aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from rallypoint import logs, settings
from rallypoint._version import __version__
from rallypoint.cli import output
from rallypoint.cli.audit_file import AuditFile
from rallypoint.cli.common import LogChoice
from rallypoint.cli.hangups import Hangups
from rallypoint.cli.own_certificates import NO_CERTIFICATES, OwnCertificates
from rallypoint.cli.reloading import Reloader, Watch
from rallypoint.client.identity import may_be_one_machine, own_addresses
from rallypoint.coordinator.audit import Audit
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.listener import allow_many_descriptors
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.printable import counted, some
from rallypoint.core.reasons import first_names
from rallypoint.core.sizes import size_text
from rallypoint.core.values import Address
from rallypoint.endpoints import Endpoint, is_loopback
from rallypoint.ledger.open import open_ledger
from rallypoint.memory import default_budget
from rallypoint.security.identities import Prepared
from rallypoint.tokens import Origin

STOP_WITHIN_S: Final = 2.5
"""How many seconds a clean end may take. The rest then ends with the process."""
RUNS_TOLD_MAX: Final = 8
"""How many runs without a ledger are named when their coordinator ends."""
HAND_OVER_WITHIN_S: Final = 5.0
"""The same with a ledger, where the lease is handed over so that others take the runs at once."""


class Reloads(msgspec.Struct, frozen=True):
    """When and how the tokens are read again. `reread`: see `Reloader`.

    `paths`: their file, and those of certificates. `seen`: their `signatures` before they were
    read. `audit_file`: opened again at each SIGHUP.
    """

    hangups: Hangups
    reread: Callable[[], settings.Accepted] | None
    paths: tuple[Path, ...] = ()
    seen: tuple[object, ...] | None = None
    audit_file: AuditFile | None = None


def run(
    sock: socket.socket,
    endpoint: str,
    accepted: settings.Accepted,
    place: Endpoint | None,
    advertised: str | None,
    reloads: Reloads,
    memory_bytes_max: int | None = None,
    log: LogChoice | None = None,
    audit_path: str | None = None,
    own: OwnCertificates = NO_CERTIFICATES,
) -> None:
    """Coordinate on a bound socket until SIGINT or SIGTERM; `endpoint` is printed when ready.

    `accepted`: the tokens; without any, everybody is admitted. `place`: the ledger of the
    runs, if any; `advertised`: the host where its nodes reach this process, if known.
    `memory_bytes_max`: the memory for all runs; None: half of the process's limit. `log`: how it
    logs. `audit_path`: the file of the audit log, if any. `own`: the certificates of a PKI. Raises
    LedgerError; UsageError if that file cannot be opened.
    """
    _set_up_logging(log or LogChoice(logging.INFO, False))
    allow_many_descriptors()
    memory = _memory(memory_bytes_max)
    with _audit_file(audit_path) as file, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        audit = Audit(None if file is None else file.write)
        reloads = msgspec.structs.replace(reloads, audit_file=file)
        if place is None:
            config = CoordinatorConfig(
                **_of(accepted),
                closed_run_keep_s=_seconds("closed_run_keep_s"),
                **_limits(),
                hosts=(urlsplit(endpoint).hostname or "",),
                memory_bytes_max=memory,
                certificates=own.certificates,
                client_ca=own.client_ca,
            )
            server = CoordinatorServer(config, audit=audit)
            runner.run(_serve(server, sock, endpoint, reloads))
        else:
            runner.run(
                _serve_ledger(
                    place, advertised, sock, endpoint, accepted, reloads, memory, audit, own
                )
            )


@contextlib.contextmanager
def _audit_file(path: str | None) -> Iterator[AuditFile | None]:
    file = None if path is None else AuditFile(path)
    try:
        yield file
    finally:
        if file is not None:
            file.close()


def _set_up_logging(log: LogChoice) -> None:
    """Write all records to stderr, also those of libraries, which repeat received text."""
    # -v is about this program: at DEBUG the libraries log each of their steps.
    logging.basicConfig(level=max(log.level, logging.INFO))
    logging.getLogger("rallypoint").setLevel(log.level)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logs.JsonFormatter() if log.is_json else logs.TextFormatter())


def _memory(given: int | None) -> int:
    if given is not None:
        return given
    found = default_budget(is_embedded=False)
    output.note(f"memory for all runs: {size_text(found.bytes)}, {found.source} (--memory)")
    return found.bytes


async def _serve_ledger(
    place: Endpoint,
    advertised: str | None,
    sock: socket.socket,
    endpoint: str,
    accepted: settings.Accepted,
    reloads: Reloads,
    memory_bytes_max: int,
    audit: Audit,
    own_files: OwnCertificates,
) -> None:
    config = CoordinatorConfig(
        **_of(accepted),
        lease_ttl_s=_seconds("lease_ttl_s"),
        attach_grace_s=settings.attach_grace_s(
            settings.resolve("attach_grace_s").value, _seconds("coordinator_silence_s")
        ),
        yield_after_s=_seconds("yield_after_s"),
        closed_run_keep_s=_seconds("closed_run_keep_s"),
        **_limits(),
        hosts=(urlsplit(endpoint).hostname or "",),
        memory_bytes_max=memory_bytes_max,
        certificates=own_files.certificates,
        client_ca=own_files.client_ca,
    )
    settings.check_lease_ttl_s(config.lease_ttl_s)
    own = () if advertised else await own_addresses(place)
    hosts = [advertised] if advertised else [each.host for each in own] or ["127.0.0.1"]
    if is_loopback(hosts[0]) and not may_be_one_machine(place):
        output.warn(
            f"nodes on other machines cannot reach {hosts[0]}, which is loopback: "
            "give --host, or --advertise with an address of this machine"
        )
    addresses = tuple(Address(each, sock.getsockname()[1]) for each in hosts)
    try:
        async with open_ledger(place, settings.etcd_password(place)) as ledger:
            server = CoordinatorServer(config, ledger=ledger, audit=audit)
            output.note(f"runs are kept in {place}; nodes connect to {addresses[0]}")
            await _serve(server, sock, endpoint, reloads, addresses, str(place))
    finally:
        sock.close()


def _seconds(name: str) -> float:
    seconds: float = settings.resolve(name).value
    return seconds


def _of(accepted: settings.Accepted) -> dict[str, Any]:
    """The tokens of the configuration."""
    first, others = accepted.tokens[:1], accepted.tokens[1:]
    return {
        "token": first[0] if first else "",
        "more_tokens": others,
        "hashed_tokens": accepted.hashed,
        "revoked_tokens": accepted.revoked,
        "revoked_by": accepted.revoked_by,
        "token_origin": Origin.GIVEN if len(accepted) else "",
    }


def _limits() -> dict[str, Any]:
    """Limits for clients with a valid token."""
    return {
        "runs_max": settings.resolve("runs_max").value,
        "sessions_max": settings.resolve("sessions_max").value,
        "token_runs_max": settings.resolve("token_runs_max").value,
        "token_sessions_max": settings.resolve("token_sessions_max").value,
        "token_bytes_max": settings.resolve("token_memory").value,
        "new_runs_per_s": settings.resolve("new_run_rate").value,
    }


async def _serve(
    server: CoordinatorServer,
    sock: socket.socket,
    endpoint: str,
    reloads: Reloads,
    addresses: tuple[Address, ...] = (),
    ledger: str = "",
) -> None:
    within_s = STOP_WITHIN_S if server.ownership.is_in_memory else HAND_OVER_WITHIN_S
    ends = contextlib.ExitStack()
    try:
        await server.start([sock], addresses)
        stop = _stop_signal()
        reloader = Reloader(_read_and_prepare(server, reloads), partial(_use, server))
        loop = asyncio.get_running_loop()

        def hung_up() -> None:
            if reloads.audit_file is not None:
                reloads.audit_file.reopen()
            reloader.ask()

        reloads.hangups.pass_on(loop, hung_up)
        if reloads.paths:
            ask = partial(loop.call_soon_threadsafe, reloader.ask)
            watch = Watch(reloads.paths, ask, reloads.seen)
            ends.callback(watch.stop)
            watch.start()
        _spare_the_collector()
        output.tell_result(endpoint)
        output.note(f"coordinator {__version__} is ready at {endpoint}; Ctrl-C stops it")
        number = await stop
        output.note(f"{signal.Signals(number).name}: stopping the coordinator")
        for line in last_words(server.coordinator.runs.values(), ledger):
            output.note(output.clean(line))
    finally:
        ends.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await server.aclose()


def last_words(runs: Iterable[HostedRun], ledger: str) -> list[str]:
    """What becomes of the runs that are open when the coordinator ends. `ledger`: "" for none."""
    open_runs = [run for run in runs if not run.is_closed and len(run.membership.roster)]
    if not open_runs:
        return []
    if ledger:
        names = some(first_names(repr(run.run_id) for run in open_runs), len(open_runs))
        which = f"run {names} goes" if len(open_runs) == 1 else f"runs {names} go"
        return [f"{which} on: the next coordinator of {ledger} takes over"]
    lines = []
    for run in open_runs[:RUNS_TOLD_MAX]:
        members = run.membership.roster
        names = some(first_names(each.name for each in members), len(members))
        lines.append(f"run {run.run_id!r} ends with this coordinator, as it has no ledger: {names}")
    left = len(open_runs) - len(lines)
    return lines + ([f"so do {counted(left, 'other run')}"] if left else [])


class _Reread(msgspec.Struct, frozen=True):
    """What was read again, with all that needs files."""

    accepted: settings.Accepted
    identities: Prepared

    def __len__(self) -> int:
        return len(self.accepted)


def _read_and_prepare(server: CoordinatorServer, reloads: Reloads) -> Callable[[], _Reread] | None:
    reread = reloads.reread
    if reread is None:
        return None

    def read() -> _Reread:
        accepted = reread()
        return _Reread(accepted, server.prepare(accepted.tokens))

    return read


def _use(server: CoordinatorServer, found: _Reread) -> int:
    now = found.accepted
    return server.replace_tokens(
        now.tokens, now.hashed, now.revoked, found.identities, revoked_by=now.revoked_by
    )


def _stop_signal() -> asyncio.Future[int]:
    """The first SIGINT or SIGTERM. A second one ends the process at once."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[int] = loop.create_future()

    def stop(number: int) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        came.set_result(number)

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop, int(each))
    return came


def _spare_the_collector() -> None:
    """Make collections rare: members and sessions live long, and a scan takes milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's factory if it is installed, as this process runs no other code.

    None: asyncio's own.
    """
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
