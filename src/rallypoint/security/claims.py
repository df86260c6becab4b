"""What a signed claim says, and whether it counts now. Pure: the time is an argument.

    rlp1.<CA>.c.<payload>.<signature>

`<payload>` is JSON in base64url: the claim's id, its roles, a pattern of runs, from when and until
when it counts. `<signature>` is the CA's (ECDSA with SHA-256) over `signed`. So every coordinator
that has the CA's certificate can check a claim, without a list of tokens. A claim is sent whole,
and whoever has it has its rights: it is a secret like any other token.

Claims depend on the time of day, as certificates do (R9 excepts both): clocks may differ by LEEWAY.
"""

from __future__ import annotations

import base64
import datetime as dt
from typing import Final

import msgspec

from rallypoint.core.values import FrozenStruct
from rallypoint.security.roles import ALL_RUNS, Denial, Principal, Role, check_pattern, labelled

LEEWAY_S: Final = 300.0
"""How far the clocks of two machines may differ, in seconds."""
ID_LENGTH_MAX: Final = 64
NAME_LENGTH_MAX: Final = 64
PAYLOAD_LENGTH_MAX: Final = 2_000
SOURCE: Final = "a signed claim"
_DOMAIN: Final = "rallypoint claim 1"
"""What is signed begins with it, so that no signature of a claim is one of anything else that the
CA's key signs: a certificate begins with another byte."""
_NEW: Final = "make a new one with `rallypoint token new FILE --state DIR`"


class Claim(FrozenStruct, frozen=True):
    """A claim. `not_before`, `ends_at`: in seconds since 1970, by the wall clock.

    `name`: for people, and not unique; coordinators of earlier releases do not read it.
    """

    id: str
    roles: tuple[Role, ...]
    runs: str
    not_before: int
    ends_at: int
    name: str = ""

    @property
    def principal(self) -> Principal:
        """Who sends it."""
        runs, ends_at = (self.runs,), float(self.ends_at)
        return Principal(self.id, self.roles, runs, ends_at, SOURCE, name=self.name)

    def problem(self, now_s: float) -> Denial | None:
        """Why it does not count at this time; None if it does."""
        if now_s > self.ends_at + LEEWAY_S:
            return expired(f"claim {self.id}", self.ends_at)
        if now_s < self.not_before - LEEWAY_S:
            return Denial(
                f"claim {self.id} does not count before {time_text(self.not_before)}, and it is "
                f"{time_text(now_s)} here",
                "the clocks differ: run `date` on the coordinator's machine and where it was made",
                "not_yet",
            )
        return None

    def told(self) -> str:
        """The claim in words, without what makes it secret."""
        runs = "all runs" if self.runs == ALL_RUNS else f"runs {self.runs!r}"
        what, roles = labelled(self.id, self.name), ", ".join(self.roles)
        return f"claim {what}: {roles}, {runs}, until {time_text(self.ends_at)}"


DAMAGED: Final = Denial(
    "this claim is damaged: its authority has not signed it", f"copy it again, or {_NEW}", "damaged"
)


UNCHECKED: Final = Denial(
    "this claim is not checked now: too many logins from its address have failed",
    "try again in a few seconds",
    "unchecked",
)


UNREAD: Final = Denial(
    "this coordinator could not read yet which tokens were revoked: until then only those of its "
    "token file count",
    "try again in a few seconds; if it stays so, its log says what its ledger lacks",
    "unchecked",
)
"""Its reason lets a node try again, as for UNCHECKED."""


def expired(what: str, ends_at: float, hint: str = _NEW) -> Denial:
    """The denial of a credential whose time is over. `hint`: how to get another one."""
    return Denial(
        f"{what} expired at {time_text(ends_at)}", f"{hint}, or check the clocks", "expired"
    )


def has_ended(principal: Principal, now_s: float) -> bool:
    """Whether the time of a credential is over, which was accepted before."""
    leeway_s = LEEWAY_S if principal.source == SOURCE else 0.0
    return principal.ends_at is not None and now_s > principal.ends_at + leeway_s


def revoked(what: str, by: str = "") -> Denial:
    """The denial of a credential that was revoked. `by`: who has revoked it, if known."""
    return Denial(f"{what} was revoked{f' by {by}' if by else ''}", _NEW, "revoked")


def of_other_authority(named: str, own: tuple[str, ...]) -> Denial:
    """The denial of a claim whose CA this coordinator has no certificate of."""
    has = ", ".join(each[:16] for each in own) or "none"
    return Denial(
        f"this claim is of authority {named[:16]}, and this coordinator has {has}",
        "use a token of this coordinator's state directory",
        "other_authority",
    )


def check_name(name: str) -> str:
    """The name of a claim, which may be empty. Raises ValueError."""
    if len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise ValueError(f"is at most {NAME_LENGTH_MAX} printable characters")
    return name


def payload_of(claim: Claim) -> str:
    """The claim as text."""
    return base64.urlsafe_b64encode(msgspec.json.encode(claim)).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    """The bytes of base64url without padding. Raises ValueError for another text of the same bytes.

    Some last letters differ only in bits that no byte has (RFC 4648, 3.5).
    """
    found = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(found).rstrip(b"=") != text.encode():
        raise ValueError("is not canonical base64")
    return found


def read_payload(text: str) -> Claim:
    """The claim in this text, not checked. Raises ValueError."""
    try:
        if len(text) > PAYLOAD_LENGTH_MAX:
            raise ValueError
        claim = msgspec.json.decode(decoded(text), type=Claim)
        check_pattern(claim.runs)
        dt.datetime.fromtimestamp(claim.ends_at, dt.UTC)
        dt.datetime.fromtimestamp(claim.not_before, dt.UTC)
        if not 1 <= len(claim.id) <= ID_LENGTH_MAX or not claim.id.isprintable():
            raise ValueError
        check_name(claim.name)
    except (msgspec.DecodeError, ValueError, OverflowError, OSError):
        raise ValueError("is damaged: it has no claim (it is not shown here)") from None
    return claim


def signed(ca: str, payload: str) -> bytes:
    """What the CA signs."""
    return f"{_DOMAIN}\n{ca}\n{payload}".encode()


def time_text(seconds: float) -> str:
    """A time of day in UTC, for people."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
