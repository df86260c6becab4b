"""The certificates that the coordinators show: whose they are, for whom, and until when."""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from typing import Final

from rallypoint.client import untrusted
from rallypoint.doctor.answering import Answer, Kind, connected
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes, skipped
from rallypoint.doctor.ports import Asked
from rallypoint.security import first_look, pki, tls, token_form
from rallypoint.security.access import CertificateFileError, Certificates
from rallypoint.security.claims import time_text
from rallypoint.security.der import ENDS_SOON_S, public_key_hash, validity

CHECK: Final = "certificate"
_CLOCKS: Final = "renew it, or compare the clocks of both machines (`date`)"
_RENEW: Final = (
    "give the coordinator a new host token or new files of --tls-cert; `serve --state` makes its "
    "own certificate anew each day"
)


def check(case: Case, asked: Sequence[Asked]) -> Finding:
    """Look at each certificate. Whether it is this node's coordinator's is part of it."""
    notes = Notes(CHECK)
    _check_own(case.certificates, notes)
    kinds = (Kind.COORDINATOR, Kind.TLS)
    places = [each for one in asked for each in one.answers if each.kind in kinds]
    found = [_look(case, each, notes) for each in places]
    if not any(found) and not notes.facts:
        return skipped(CHECK, "nobody who speaks TLS has answered")
    return notes.finding("each certificate counts")


def _check_own(own: Certificates | None, notes: Notes) -> None:
    if own is None or own.cert is None:
        return
    try:
        pki.check(own)
        _judge(pki.own_certificate(own), f"this node's certificate {own.cert}", notes, "own")
    except CertificateFileError as error:
        notes.fail(str(error), untrusted.FILES_HINT)


def _look(case: Case, answer: Answer, notes: Notes) -> bool:
    """Whether there was a certificate to look at."""
    where, own = answer.where, case.certificates
    wanted = token_form.ca_of(case.keys.token) if case.keys is not None else ""
    name = where.host if own is not None else tls.NO_AUTHORITY
    if own is None and wanted:
        name = tls.server_name(wanted)
    try:
        shown = first_look.shown_blocking(connected(where, answer.at), name)
    except OSError:
        return False
    if not shown:
        return False
    _judge(shown[0], f"the certificate at {where}", notes, str(where), public_key_hash(shown[-1]))
    if own is not None:
        _verify(own, answer, shown, notes)
    return True


def _verify(own: Certificates, answer: Answer, shown: tuple[bytes, ...], notes: Notes) -> None:
    where = answer.where
    try:
        pki.secured(own, where.host, lambda: connected(where, answer.at), ssl.SSLSocket).close()
    except ssl.SSLCertVerificationError as error:
        told = untrusted.by_pki(str(where), where.host, own, error, shown)
        notes.fail(told.message, told.hint)
    except CertificateFileError as error:
        notes.fail(str(error), untrusted.FILES_HINT)
    except OSError as error:
        notes.fail(f"{where}: the TLS handshake failed: {error}", _RENEW)
    else:
        notes.saw(f"it is trusted, by {pki.trusted_words(own)}")


def _judge(certificate: bytes, what: str, notes: Notes, key: str, authority: str = "") -> None:
    """Say whose it is and until when it counts. `key`: its name among the facts."""
    mark = pki.fingerprint(certificate)
    begin, end = validity(certificate)
    now = time.time()
    notes.facts[key] = {"sha256": mark, "authority": authority, "ends_at": end}
    named = ", ".join(pki.names_of(certificate))
    signer = f", of authority {authority[: untrusted.DIGITS_SHOWN]}" if authority else ""
    until = time_text(end)
    notes.saw(
        f"{what}: SHA-256 {mark[: untrusted.DIGITS_SHOWN]}{signer}"
        f"{f', for {named}' if named else ''}, until {until}"
    )
    if end < now:
        notes.fail(f"{what} has ended, at {until}", _CLOCKS)
    elif begin > now:
        notes.fail(f"{what} does not count yet", _CLOCKS)
    elif end - now < ENDS_SOON_S:
        notes.warn(f"{what} ends soon, at {until}", _RENEW)
