"""Who answers at the endpoint's addresses, or at those of the coordinators in its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from rallypoint.core.values import Address
from rallypoint.doctor.answering import Answer, Kind, who_answers
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes, skipped, took_text
from rallypoint.net import describe_os_error, is_this_host
from rallypoint.security.access import NO_ACCESS, Access, CertificateFileError
from rallypoint.settings import EndpointKind
from rallypoint.threads import call

CHECK: Final = "port"
WITHIN_S: Final = 12.0
"""How long one host may take for all of its addresses, in seconds."""


class Asked(msgspec.Struct, frozen=True):
    """The answers of an address; or why there are none."""

    where: Address
    answers: tuple[Answer, ...] = ()
    problem: str = ""


def ask_all(addresses: Sequence[Address], access: Access = NO_ACCESS) -> list[Asked]:
    """Ask all addresses at the same time."""

    def one(where: Address) -> Asked:
        try:
            return Asked(where, tuple(who_answers(where, access)))
        except (OSError, UnicodeError) as error:
            return Asked(where, problem=describe_os_error(error))
        except CertificateFileError as error:
            return Asked(where, problem=str(error))

    calls = [(each, call(lambda each=each: one(each))) for each in addresses]  # type: ignore[misc]
    found = []
    for where, future in calls:
        try:
            found.append(future.result(WITHIN_S))
        except TimeoutError:
            found.append(Asked(where, problem=f"no answer within {WITHIN_S:g} s"))
    return found


def check(case: Case, asked: Sequence[Asked]) -> Finding:
    """Judge the answers by what the endpoint promises."""
    kind = case.endpoint.kind
    if kind is EndpointKind.LOCAL:
        return skipped(CHECK, "there is no endpoint: give one to ask who answers there")
    if kind is EndpointKind.LEDGER and not asked:
        return skipped(CHECK, "no coordinator is in the ledger now: the nodes elect one")
    notes = Notes(CHECK)
    found = [answer for each in asked for answer in each.answers]
    notes.facts["answers"] = [_fact(each) for each in found]
    has_one = any(each.is_coordinator for each in found)
    for each in asked:
        if each.problem:
            notes.fail(f"{each.where}: {each.problem}", "see the check of names")
        for answer in each.answers:
            _judge(case, answer, notes, has_one=has_one)
    coordinators = [f"{each.detail} at {each.where}" for each in found if each.is_coordinator]
    return notes.finding(coordinators[0] if coordinators else "nothing is in the way")


def _judge(case: Case, answer: Answer, notes: Notes, *, has_one: bool) -> None:
    where = _name(answer)
    line = f"{where}: {answer.detail}"
    match answer.kind:
        case Kind.COORDINATOR:
            notes.saw(f"{line}, connected in {took_text(answer.took_s)}")
        case Kind.REFUSED:
            _judge_refusal(case, answer, f"{where}: nothing listens there", notes, has_one)
        case Kind.SILENT | Kind.UNREACHABLE:
            judge = notes.warn if has_one else notes.fail
            judge(line, _CUT_OFF)
        case Kind.MUTE:
            notes.fail(line, _FROZEN)
        case _:
            is_choice = case.endpoint.has_choice and case.endpoint.kind is EndpointKind.HOST
            judge = notes.warn if is_choice else notes.fail
            judge(f"{line}, and no coordinator", _ADVICE.get(answer.kind, _STRANGER))


def _judge_refusal(case: Case, answer: Answer, text: str, notes: Notes, has_one: bool) -> None:
    if case.endpoint.kind is EndpointKind.LEDGER:
        notes.warn(f"{text}, although the ledger names it", _ENDED)
    elif case.endpoint.kind is EndpointKind.SERVED:
        notes.fail(text, f"start `rallypoint serve` on {answer.where.host}, or check --endpoint")
    elif has_one or is_this_host(answer.where.host):
        notes.saw(f"{text}, so a node may host a coordinator there")
    else:
        notes.saw(f"{text}: {answer.where.host} is reached, and its node hosts a coordinator later")


def _name(answer: Answer) -> str:
    is_same = answer.at == answer.where.host
    return str(answer.where) if is_same else f"{answer.where} ({answer.at})"


def _fact(answer: Answer) -> dict[str, Any]:
    return {
        "address": str(answer.where),
        "dialled": answer.at,
        "kind": answer.kind,
        "software": answer.software,
        "detail": answer.detail,
        "connect_s": round(answer.took_s, 6),
    }


_CUT_OFF: Final = (
    "check that the machine is up, that no firewall drops the port (--port-range limits the ports "
    "of Rallypoint), and that it is in a network of this machine (--interface there)"
)
_FROZEN: Final = (
    "find the program that holds the port there (`ss -ltnp`): it hangs, is stopped (SIGSTOP), or "
    "its machine swaps; restart it"
)
_ENDED: Final = (
    "if nodes are running, another coordinator takes over within seconds; if it stays, look at the "
    "log of that one"
)
_STRANGER: Final = "give another port in --endpoint, or end the program that holds this one"
_ADVICE: Final = {
    Kind.TLS: (
        "if it is a coordinator, give its token (--token-file FILE), or its authority (--tls-ca "
        "FILE): see the checks of certificate and token; else give another port"
    ),
    Kind.TCP_STORE: (
        "a job of torchrun or torch has this port (its c10d store): give --endpoint another port, "
        "or start that job with --rdzv-backend=rallypoint"
    ),
    Kind.ETCD: "this is etcd: write the endpoint as etcd://HOST:PORT/PREFIX",
}
