"""Runs all checks of one case, each in a thread and with a deadline.

A check of the first kind looks at this machine, its network or the ledger. One of the second kind
needs to know who answers at the coordinators' addresses. To add a check, write a file with its
function and add it here.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, TypeVar

import msgspec

from rallypoint._version import __version__
from rallypoint.doctor import (
    certificates,
    clocks,
    ledger,
    limits,
    names,
    own_addresses,
    ports,
    proxies,
    room,
    token,
    versions,
    wire,
)
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Report, Verdict, worst
from rallypoint.doctor.ledger import Coordinator, Looked
from rallypoint.doctor.ports import Asked
from rallypoint.settings import EndpointKind
from rallypoint.threads import call
from rallypoint.tokens import Keys, KnownToken, Origin

T = TypeVar("T")

WITHIN_S: Final = 15.0
"""How long each check may take, in seconds. All of one kind run at the same time."""
COORDINATORS_MAX: Final = 8
ADDRESSES_MAX: Final = 16

_FIRST: Final[dict[str, Callable[[Case], Finding]]] = {
    names.CHECK: names.check,
    own_addresses.CHECK: own_addresses.check,
    proxies.CHECK: proxies.check,
    limits.CHECK: limits.check,
    room.CHECK: room.check,
}
_SECOND: Final[dict[str, Callable[[Case, Sequence[Asked]], Finding]]] = {
    ports.CHECK: ports.check,
    certificates.CHECK: certificates.check,
    token.CHECK: token.check,
    wire.CHECK: wire.check,
    clocks.CHECK: clocks.check,
    versions.CHECK: versions.check,
}
ORDER: Final = (
    *(names.CHECK, own_addresses.CHECK, ports.CHECK, certificates.CHECK, token.CHECK),
    *(wire.CHECK, ledger.CHECK),
    *(proxies.CHECK, clocks.CHECK, limits.CHECK, room.CHECK, versions.CHECK),
)
"""The order in which findings are shown: as a node meets the things."""


def examine(case: Case, within_s: float = WITHIN_S) -> Report:
    """Run all checks. Each has `within_s` seconds; those that hang are reported, and left behind.

    Blocks for at most four times `within_s`. Raises RuntimeError if the system grants no thread.
    """
    began_s = time.monotonic()
    first = {name: call(partial(_timed, check, case)) for name, check in _FIRST.items()}
    looking = call(partial(_looked, case))
    looked = _result(looking, within_s, began_s, Looked(_hangs(ledger.CHECK, within_s)))
    asking = call(partial(_asked, case, looked.coordinators))
    asked = _result(asking, within_s, time.monotonic(), [])
    case = _with_lease_token(case, looked.coordinators)
    showing = call(partial(token.show, case, asked))
    asked = _result(showing, within_s, time.monotonic(), asked)
    began_second_s = time.monotonic()
    second = {name: call(partial(_timed, check, case, asked)) for name, check in _SECOND.items()}
    found = {ledger.CHECK: looked.finding}
    for calls, since_s in ((first, began_s), (second, began_second_s)):
        for name, future in calls.items():
            found[name] = _result(future, within_s, since_s, _hangs(name, within_s))
    checks = tuple(found[name] for name in ORDER)
    return Report(
        host=socket.gethostname(),
        endpoint=case.endpoint.text,
        version=__version__,
        at=time.time(),
        verdict=worst([each.verdict for each in checks]),
        checks=checks,
    )


def _timed(check: Callable[..., Finding], *arguments: object) -> Finding:
    began_s = time.monotonic()
    finding = check(*arguments)
    return msgspec.structs.replace(finding, took_s=round(time.monotonic() - began_s, 3))


def _looked(case: Case) -> Looked:
    found: list[Looked] = []

    def check() -> Finding:
        found.append(ledger.look(case))
        return found[0].finding

    finding = _timed(check)
    return msgspec.structs.replace(found[0], finding=finding)


def _asked(case: Case, coordinators: Sequence[Coordinator]) -> list[Asked]:
    if case.endpoint.kind is not EndpointKind.LEDGER:
        return ports.ask_all(case.addresses)
    shown = [each for one in coordinators[:COORDINATORS_MAX] for each in one.addresses]
    return ports.ask_all(shown[:ADDRESSES_MAX])


def _with_lease_token(case: Case, coordinators: Sequence[Coordinator]) -> Case:
    """The case with the token of an elected coordinator's lease, as a node without one uses it."""
    tokens = [each.token for each in coordinators if each.token]
    if case.keys is None or case.keys.token or not tokens:
        return case
    known = KnownToken(tokens[0], Origin.LEASE, "the coordinator's lease")
    return msgspec.structs.replace(case, keys=Keys(known))


def _result(future: Future[T], within_s: float, since_s: float, late: T) -> T:
    """The outcome of a check; `late` if it is not there in time."""
    try:
        return future.result(max(0.0, since_s + within_s - time.monotonic()))
    except TimeoutError:
        if future.done():
            raise
        return late


def _hangs(name: str, within_s: float) -> Finding:
    what = _HANGING.get(name, "the system does not answer")
    return Finding(
        name,
        Verdict.FAILED,
        f"the check has not ended within {within_s:g} s: {what}",
        what_to_do=("find out what hangs; the other checks are not affected",),
        took_s=within_s,
    )


_HANGING: Final = {
    names.CHECK: "the look-up of a name hangs (DNS)",
    ledger.CHECK: "the disk or the server of the ledger hangs",
    token.CHECK: "the file of the token, or the coordinator, hangs",
    room.CHECK: "a file system hangs",
}
