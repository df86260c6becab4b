"""What the holder of a token may do: its roles, and the runs for which they count.

A role grants rights, and each request needs one of them (`coordinator/guard.py` has the table). A
token has a pattern of run ids, such as `team-*`; its roles count only for runs that match.

This file must not know how a token is proved.
"""

from __future__ import annotations

import enum
import fnmatch
import functools
import re
import urllib.parse
from typing import Final

from rallypoint.core.printable import escaped
from rallypoint.core.values import FrozenStruct

PATTERN_CHARACTERS_MAX: Final = 200
PATTERNS_MAX: Final = 4
"""How many patterns a request may have: its token's, and those of who forwards it. Each run that is
listed is compared with every one."""
LIMITS_CHARACTERS_MAX: Final = 4_096
"""The longest text of `Principal.limits` that is read."""
ALL_RUNS: Final = "*"
_SHOWN_MAX: Final = 80


class Role(enum.StrEnum):
    """What a token is for."""

    NODE = "node"
    VIEWER = "viewer"
    OPERATOR = "operator"
    HOST = "host"


class Right(enum.Enum):
    """What a request needs."""

    NOTHING = enum.auto()
    """Everybody may, without a token."""
    ATTACH = enum.auto()
    """Be a node of a run."""
    READ = enum.auto()
    """Read the status and the events of runs."""
    MEASURE = enum.auto()
    """Read the metrics of the coordinator."""
    ACT = enum.auto()
    """Change a run from outside: close it, drain, evict or admit a node, scale it."""


RIGHTS: Final[dict[Role, frozenset[Right]]] = {
    Role.NODE: frozenset({Right.ATTACH, Right.READ}),
    Role.VIEWER: frozenset({Right.READ, Right.MEASURE}),
    Role.OPERATOR: frozenset({Right.READ, Right.MEASURE, Right.ACT}),
    # A host is a node, too. That it is a coordinator, it proves by its certificate.
    Role.HOST: frozenset({Right.ATTACH, Right.READ}),
}
ALL_ROLES: Final = tuple(Role)
"""In the order in which they are named."""
_NAMES: Final = {
    Right.ATTACH: "join a run",
    Right.READ: "read runs",
    Right.MEASURE: "read metrics",
    Right.ACT: "change a run",
}


class Denial(FrozenStruct, frozen=True):
    """Why a request is refused, and what its user can do.

    `reason` is for programs: "role" or "run".
    """

    message: str
    hint: str
    reason: str


def labelled(token_id: str, name: str) -> str:
    """A token for people: its id, and its name if it has one."""
    return f"{token_id} ({name})" if name else token_id


class Principal(FrozenStruct, frozen=True):
    """Who sends a request, as its token proves.

    `id` names the token, and is not secret. `runs`: patterns, all of which a run must match.
    `ends_at`: until when the token counts, in seconds since 1970 by the wall clock; None: without
    end. `source`: where the coordinator knows the token from, for people. `node`: the one node
    that it may be; None: any. `name`: how people call the token.
    """

    id: str = ""
    roles: tuple[Role, ...] = ALL_ROLES
    runs: tuple[str, ...] = ()
    ends_at: float | None = None
    source: str = ""
    node: str | None = None
    name: str = ""

    @property
    def label(self) -> str:
        """The id and the name, for people."""
        return labelled(self.id, self.name)

    @property
    def is_unlimited(self) -> bool:
        """Whether it may do everything in all runs."""
        return set(self.roles) == set(Role) and not self.patterns and self.node is None

    @property
    def patterns(self) -> tuple[str, ...]:
        """Those that some run may not match."""
        return tuple(each for each in self.runs if each != ALL_RUNS)

    def has(self, right: Right) -> bool:
        """Whether one of its roles grants this."""
        return right is Right.NOTHING or any(right in RIGHTS[each] for each in self.roles)

    def sees(self, run_id: str) -> bool:
        """Whether its roles count for this run."""
        return all(matches(each, run_id) for each in self.runs)

    def denial(self, right: Right, run_id: str | None = None) -> Denial | None:
        """Why it may not do this, in the run if one is given; None if it may.

        The answer about a run depends only on its id, and not on whether it exists. So it tells
        nobody which runs there are.
        """
        if not self.has(right):
            having = " and ".join(self.roles) or "no role"
            able = [each for each in Role if right in RIGHTS[each]]
            return Denial(
                f"this token ({having}) may not {_NAMES[right]}",
                f"use a token of the role {' or '.join(able)}",
                "role",
            )
        if run_id is not None and not self.sees(run_id):
            pattern = " and ".join(repr(shown(each)) for each in self.patterns)
            return Denial(
                f"this token is for runs that match {pattern}, and {shown(run_id)!r} does not",
                "check the run's id, or use a token for this run",
                "run",
            )
        return None

    def node_denial(self, name: str) -> Denial | None:
        """Why it may not be the node of this name; None if it may."""
        if self.node is None or self.node == name:
            return None
        return Denial(
            f"this certificate is of node {shown(self.node)!r}, and not of {shown(name)!r}",
            f"name the node so (--node-name), or use the certificate of {shown(name)!r}",
            "node",
        )

    def narrowed(self, text: str) -> Principal:
        """With no more rights than those in `text`, which `limits` has written.

        A text that cannot be read leaves no right, nor does one that is longer than
        LIMITS_CHARACTERS_MAX, or makes more than PATTERNS_MAX patterns.
        """
        try:
            named, patterns = _read_limits(text)
        except ValueError:
            named, patterns = set(), ()
        runs = tuple(dict.fromkeys((*self.patterns, *patterns)))
        if len(runs) > PATTERNS_MAX:
            named, runs = set(), self.runs
        kept = tuple(each for each in self.roles if each in named)
        return Principal(self.id, kept, runs, self.ends_at, self.source, self.node, self.name)

    def limits(self) -> str:
        """Its roles and patterns in ASCII, for another coordinator."""
        patterns = (urllib.parse.quote(each, safe="*?[]!") for each in self.patterns)
        return f"{','.join(self.roles)};{' '.join(patterns)}"


def _read_limits(text: str) -> tuple[set[Role], tuple[str, ...]]:
    """The roles and the patterns in a text of `limits`. Raises ValueError."""
    if len(text) > LIMITS_CHARACTERS_MAX:
        raise ValueError
    roles, _, limits = text.partition(";")
    named = {Role(each) for each in roles.split(",") if each}
    quoted = limits.split(maxsplit=PATTERNS_MAX)
    if len(quoted) > PATTERNS_MAX:
        raise ValueError
    found = (check_pattern(urllib.parse.unquote(each, errors="strict")) for each in quoted)
    return named, tuple(each for each in found if each != ALL_RUNS)


EVERYBODY: Final = Principal()
"""Who sends a request to a coordinator without a token."""


def matches(pattern: str, run_id: str) -> bool:
    """Whether the run's id matches: `*` is any text, `?` one character, `[ab]` one of these."""
    return pattern == ALL_RUNS or _compiled(pattern).match(run_id) is not None


@functools.lru_cache(maxsize=256)  # fnmatch itself keeps 32,768, and clients may send any pattern
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


def check_pattern(pattern: str) -> str:
    """The pattern. Raises ValueError for one that is empty, too long or cannot be printed."""
    if not pattern or not pattern.isprintable():
        raise ValueError("must be the id of a run, or a pattern such as 'team-*'")
    if len(pattern) > PATTERN_CHARACTERS_MAX:
        raise ValueError(f"has more than {PATTERN_CHARACTERS_MAX} characters")
    return pattern


def shown(text: str) -> str:
    """A pattern or a run's id, as it is shown."""
    return escaped(text[:_SHOWN_MAX])
