"""The token of this node: where it comes from, and whether the coordinators accept it.

`show` sends it to the coordinators that ask for one, and `check` judges what they answered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import msgspec

from rallypoint import runtime, settings, tokens
from rallypoint.client import untrusted
from rallypoint.doctor.answering import Answer, Kind
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes, skipped
from rallypoint.doctor.ports import Asked, ask_all
from rallypoint.errors import TokenError, UsageError
from rallypoint.security import token_form
from rallypoint.security.access import Access, Certificates
from rallypoint.security.roles import Role
from rallypoint.settings import EndpointKind

CHECK: Final = "token"


def show(case: Case, asked: Sequence[Asked]) -> list[Asked]:
    """The answers, with those of coordinators that were asked again with this node's token."""
    return [
        msgspec.structs.replace(one, answers=tuple(_shown(case, each) for each in one.answers))
        for one in asked
    ]


def _shown(case: Case, answer: Answer) -> Answer:
    keys = case.keys
    if case.certificates is not None and answer.kind == Kind.TLS:
        shown = _shown_by_pki(case, case.certificates, answer)
        if shown is not answer:
            return shown
    if keys is not None and answer.kind == Kind.TLS:
        return _shown_by_tls(keys, answer)
    if keys is None or not answer.is_locked:
        return answer
    if not keys.token and not keys.takes_home(_refusal(answer)):
        return answer
    with contextlib.suppress(UsageError):
        tokens.check_may_be_sent(keys.token, answer.where.host)
        return _asked_with(keys, answer)
    return answer


def _asked_with(keys: tokens.Keys, answer: Answer) -> Answer:
    again = [each for one in ask_all([answer.where], Access(keys.token)) for each in one.answers]
    found = [each for each in again if each.is_coordinator and not each.is_locked]
    if not found:
        return answer
    software = found[0].software
    detail = f"{software}, which needs a token"
    return msgspec.structs.replace(answer, software=software, detail=detail, is_accepted=True)


def _shown_by_pki(case: Case, own: Certificates, answer: Answer) -> Answer:
    access = Access(case.keys.token if case.keys is not None else "", own)
    again = [each for one in ask_all([answer.where], access) for each in one.answers]
    found = [each for each in again if each.is_coordinator]
    if not found or found[0].is_locked:
        return found[0] if found else answer
    detail = f"{found[0].software}, by certificates of a PKI"
    return msgspec.structs.replace(found[0], detail=detail, is_locked=True, is_accepted=True)


def _shown_by_tls(keys: tokens.Keys, answer: Answer) -> Answer:
    if not keys.token and not keys.takes_home(untrusted.needs_token(str(answer.where))):
        return answer
    if token_form.ca_of(keys.token) != answer.authority:
        return answer
    again = [each for one in ask_all([answer.where], Access(keys.token)) for each in one.answers]
    found = [each for each in again if each.is_coordinator]
    if not found:
        return answer
    if found[0].is_locked:
        return found[0]
    detail = f"{found[0].software}, which needs a token, and uses TLS"
    return msgspec.structs.replace(found[0], detail=detail, is_locked=True, is_accepted=True)


def _refusal(answer: Answer) -> TokenError:
    told = (answer.fingerprint, answer.origin, answer.reason)
    return tokens.token_error(answer.message, answer.hint, *told)


def check(case: Case, asked: Sequence[Asked]) -> Finding:
    """Compare this node's token with those that coordinators ask for, and show it to those."""
    if case.keys is None:
        notes = Notes(CHECK)
        notes.fail(*case.no_keys)
        return notes.finding("")
    found = [each for one in asked for each in one.answers if each.is_coordinator]
    if case.endpoint.kind is EndpointKind.LOCAL:
        return skipped(CHECK, "without an endpoint each process makes its own token")
    notes = Notes(CHECK)
    _check_own(case, notes)
    for each in found:
        _compare(case.keys, each, notes)
    others = [each for one in asked for each in one.answers if each.kind == Kind.TLS]
    for each in others if case.certificates in (None, Certificates()) else ():
        _compare_authority(case.keys, each, notes)
    if not found and not case.keys.token:
        notes.missed("this node has no token, and no coordinator has answered that may need one")
    if any(each.is_accepted for each in found):
        return notes.finding("the coordinator accepts this node's token")
    return notes.finding(
        f"this node's token is from {case.keys.known.place}; nobody has checked it"
        if case.keys.token
        else "no token is needed"
    )


def _check_own(case: Case, notes: Notes) -> None:
    known = case.keys.known if case.keys is not None else tokens.NONE
    mark = tokens.fingerprint(known.token) if known.token else ""
    notes.facts |= {"origin": known.origin, "place": known.place, "fingerprint": mark}
    if not known.token:
        return
    notes.saw(f"own token: from {known.place}, {f'fingerprint {mark}' if mark else 'guessable'}")
    if not mark:
        bits = settings.TOKEN_BITS_MIN
        advice = f"make another one: {settings.DRAW_A_TOKEN}"
        notes.warn(f"the token can be guessed: it has fewer than {bits} bits", advice)
    parts = token_form.parse(known.token)
    if parts is not None and parts.signed is not None:
        claim = parts.signed.claim
        notes.facts |= {"claim": claim.id, "roles": list(claim.roles), "runs": claim.runs}
        notes.saw(claim.told())
        problem = claim.problem(runtime.here().wall_s())
        if problem is not None:
            notes.fail(problem.message, problem.hint)
        elif Role.NODE not in claim.roles:
            notes.warn("with this token no node can join", "use one of the role node for nodes")
    path = settings.resolve("token_file", case.token_file).value
    if path is not None and settings.is_readable_by_others(path):
        notes.warn(f"the token file {path} can be read by other users", f"chmod 600 {path}")


def _compare_authority(keys: tokens.Keys, answer: Answer, notes: Notes) -> None:
    """The server uses TLS, and has no certificate of this token's authority."""
    where, shown = answer.where, answer.authority[: untrusted.DIGITS_SHOWN]
    notes.facts |= {"accepted": False, "authority": answer.authority}
    wanted = token_form.ca_of(keys.token)
    if wanted:
        error = untrusted.other_authority(str(where), wanted, answer.authority)
        told = keys.explained_authority(error)
        notes.fail(told.message, told.hint)
        return
    error = untrusted.needs_token(str(where))
    notes.fail(f"{error.message} ({shown})", error.hint)


def _compare(keys: tokens.Keys, answer: Answer, notes: Notes) -> None:
    where = answer.where
    if not answer.is_locked:
        if token_form.names_ca(keys.token):
            notes.fail(
                f"the coordinator at {where} uses no TLS, which this node's token asks for",
                "start it with the same token (--token-file); or use no token here",
            )
        elif keys.token:
            notes.warn(
                f"the coordinator at {where} asks for no token, although this node has one",
                "start it with --token-file: everybody who reaches it can join and end runs",
            )
        else:
            notes.saw(f"the coordinator at {where} asks for none")
        return
    if answer.is_accepted:
        notes.saw(f"the coordinator at {where} accepts the token from {keys.known.place}")
        notes.facts["accepted"] = True
        return
    refused = _refusal(answer)
    notes.facts |= {"accepted": False, "wanted_fingerprint": answer.fingerprint}
    explained = keys.explained(refused)
    own = explained.message if refused.reason else tokens.compared(refused, keys.known)
    notes.fail(f"the coordinator at {where} refuses this node's token: {own}", explained.hint)
