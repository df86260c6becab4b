"""How the text of each setting is read.

Each `parse_...` takes a user's text and raises ValueError with a sentence that can follow the name
of an option or variable: "must be ..., not ...". No function here depends on the setting that it
reads.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Final

import msgspec

from rallypoint.core import addresses, naming
from rallypoint.core.budget import BYTES_MIN
from rallypoint.core.sizes import parse_size, size_text
from rallypoint.core.values import EXIT_CODES_MAX, NAME_LENGTH_MAX, STOP_S_MAX
from rallypoint.endpoints import NAME, is_ip
from rallypoint.security import token_form

TOKEN_LENGTH_MAX: Final = 512
WORKERS_MAX: Final = 1_000_000
CANDIDATES_MAX: Final = 100
SHARE_LINES_MAX: Final = 64
MEMORY_BYTES_MAX: Final = 1024**5


class HangRule(msgspec.Struct, frozen=True):
    """What shows that a worker advances. Exactly one is set.

    `pattern`: a regular expression that a line of its output matches; its first group, if it has
    one, is a number that grows. `is_output`: any output. `path`: a file whose time changes.
    """

    pattern: str = ""
    is_output: bool = False
    path: str = ""


class NodeRange(msgspec.Struct, frozen=True):
    """How many nodes a round has, at least and at most."""

    min: int
    max: int

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}:{self.max}"


def parse_nnodes(text: str) -> NodeRange:
    """ "4" or "2:4". Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,7})(?::([0-9]{1,7}))?", text.strip())
    if found is None:
        raise ValueError(f'must be a number of nodes ("4") or MIN:MAX ("2:4"), not {text!r}')
    least = int(found[1])
    most = int(found[2] or least)
    if least < 1:
        raise ValueError(f"must be at least one node, not {text!r}")
    if most < least:
        raise ValueError(f"must be MIN:MAX with MIN not above MAX, not {text!r}")
    return NodeRange(least, most)


class PortRange(msgspec.Struct, frozen=True):
    """The ports that this node may listen on, both ends included."""

    first: int
    last: int

    @property
    def ports(self) -> range:
        """All of them, in order."""
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"


def parse_port_range(text: str) -> PortRange:
    """ "29400:29410", or "29400" for one port. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,5})(?::([0-9]{1,5}))?", text.strip())
    if found is None:
        raise ValueError(f'must be A:B ("29400:29410"), not {shortened(text)!r}')
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= 65_535:
        raise ValueError(f"must be A:B with 1 <= A <= B <= 65535, not {text!r}")
    return PortRange(first, last)


_UNITS_S: Final = {
    "": 1.0,
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3_600.0,
    "d": 86_400.0,
    "w": 7 * 86_400.0,
}


def parse_duration_s(text: str) -> float:
    """Seconds from "1.5", "90", "500ms", "10s", "2m", "1h", "7d" or "2w". Raises ValueError."""
    number = r"[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}"
    found = re.fullmatch(rf"({number})\s*(ms|s|m|h|d|w|)", text.strip())
    if found is None:
        raise ValueError(
            f"must be a duration such as 1.5, 500ms, 90s, 2m, 1h, 7d or 2w, not {text!r}"
        )
    return float(found[1]) * _UNITS_S[found[2]]


def parse_workers(text: str) -> int | str:
    """A number of workers, or "auto", "cpu" or "gpu". Raises ValueError."""
    if text in ("auto", "cpu", "gpu"):
        return text
    workers = whole(text, "a number of workers, or auto, cpu or gpu")
    if not 1 <= workers <= WORKERS_MAX:
        raise ValueError(f"must be at least one worker, not {text!r}")
    return workers


def whole(text: str, what: str = "a whole number") -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise ValueError(f"must be {what}, not {text!r}")
    return int(text)


def parse_interface(text: str) -> str:
    """The name of an interface, or a network as ADDRESS/BITS. Raises ValueError."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        # Source: dev_valid_name in net/core/dev.c of Linux.
        if not re.fullmatch(r"[^\s/:]{1,15}", text) or text in (".", ".."):
            raise ValueError(
                "must be the name of an interface (eth0) or a network (10.0.0.0/8), not "
                f"{shortened(text)!r}"
            ) from None
    return text


def parse_node_index(text: str) -> int:
    """The place of a node among those that were started: 0 is the first. Raises ValueError."""
    return whole(text, "a number from 0 on")


def parse_restarts(text: str) -> int | None:
    return None if text == "any" else whole(text, "a number of restarts, or any")


def parse_exit_codes(text: str) -> tuple[int, ...]:
    """ "2,78": the exit codes of workers, each once and in order. Raises ValueError."""
    codes = sorted({whole(each, 'exit codes such as "2,78"') for each in text.split(",")})
    if len(codes) > EXIT_CODES_MAX or not all(1 <= each <= 255 for each in codes):
        raise ValueError(
            f"must be at most {EXIT_CODES_MAX} exit codes within 1 and 255, not {text!r}"
        )
    return tuple(codes)


def parse_same_failure(text: str) -> int:
    """After how many equal failures a run ends. Raises ValueError."""
    number = whole(text, "a number of failures")
    if number < 2:
        raise ValueError(f"must be at least 2 failures, not {text!r}")
    return number


def parse_fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 <= fraction <= 1:
        raise ValueError(f"must be a fraction within 0 and 1, not {text!r}")
    return fraction


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {text!r}")
        return text

    return parse


def parse_name(text: str) -> str:
    if not 1 <= len(text) <= NAME_LENGTH_MAX or not text.isprintable() or text != text.strip():
        raise ValueError(
            f"must have 1 to {NAME_LENGTH_MAX} printable characters and no space at either end, "
            f"not {shortened(text)!r}"
        )
    return text


def parse_run_id(text: str) -> str:
    run_id = parse_name(text)
    problem = naming.run_id_problem(run_id)
    if problem:
        raise ValueError(f"must be another one: {problem}")
    return run_id


def parse_orphan(text: str) -> float:
    return math.inf if text == "never" else parse_duration_s(text)


def parse_stop_s(text: str) -> float:
    seconds = parse_duration_s(text)
    if seconds > STOP_S_MAX:
        raise ValueError(f"must be at most {STOP_S_MAX:g} s, not {text!r}")
    return seconds


def parse_share_lines(text: str) -> int:
    lines = whole(text, "a number of lines")
    if lines > SHARE_LINES_MAX:
        raise ValueError(f"must be at most {SHARE_LINES_MAX} lines, not {text!r}")
    return lines


def parse_hang(text: str) -> HangRule:
    """ "output", "file:PATH" or a regular expression. Raises ValueError."""
    if text == "output":
        return HangRule(is_output=True)
    if text.startswith("file:"):
        path = text.removeprefix("file:")
        if not path or "\0" in path:
            raise ValueError(f"must name a file after file:, not {shortened(text)!r}")
        return HangRule(path=path)
    import regex  # It searches later: see launch/progress_rule.py. Most processes need no pattern.

    try:
        found = regex.compile(text)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f"must be output, file:PATH or a regular expression, and {shortened(text)!r} does not "
            f"compile: {error}"
        ) from error
    if found.search("", timeout=1.0) is not None:
        raise ValueError(f"must be a regular expression that not every line matches, not {text!r}")
    return HangRule(pattern=text)


def parse_at_least_one(text: str) -> int:
    number = whole(text)
    if number < 1:
        raise ValueError(f"must be at least 1, not {text!r}")
    return number


def parse_candidates(text: str) -> int:
    candidates = whole(text, "a number of nodes")
    if not 1 <= candidates <= CANDIDATES_MAX:
        raise ValueError(f"must be within 1 and {CANDIDATES_MAX} nodes, not {text!r}")
    return candidates


def parse_address(text: str) -> str:
    is_number = re.fullmatch(r"[0-9.]+", text) is not None  # such as 10.1, which is no name
    is_name = NAME.fullmatch(text) is not None and not is_number
    is_six = is_ip(text, 6) and naming.is_host(text)  # The latter looks at the zone, too.
    if not (is_ip(text, 4) or is_six or is_name):
        raise ValueError(f"must be a host name or an address without a port, not {text!r}")
    if addresses.is_unspecified(text):
        raise ValueError(f"must be one address of this machine, and {text!r} means all of them")
    if addresses.needs_zone(text):
        raise ValueError(f"must have its zone, as {text}%eth0: it is a link-local address")
    return text


def parse_token(text: str) -> str:
    """The text must not be in the message: it may be most of a secret."""
    if token_form.names_ca(text):
        token_form.parse(text)  # raises ValueError
        return text
    if not 1 <= len(text) <= TOKEN_LENGTH_MAX or not all("!" <= each <= "~" for each in text):
        raise ValueError(
            f"must be 1 to {TOKEN_LENGTH_MAX} visible ASCII characters (it is not shown here)"
        )
    return text


def parse_password(text: str) -> str:
    if not text or len(text) > TOKEN_LENGTH_MAX or not text.isprintable():
        raise ValueError(
            f"must be 1 to {TOKEN_LENGTH_MAX} printable characters (it is not shown here)"
        )
    return text


def parse_memory(text: str) -> int:
    size = parse_size(text)
    if not BYTES_MIN <= size <= MEMORY_BYTES_MAX:
        least = size_text(BYTES_MIN)
        raise ValueError(f"must be within {least} and {size_text(MEMORY_BYTES_MAX)}, not {text!r}")
    return size


def parse_yes_no(text: str) -> bool:
    # What torch's RendezvousParameters.get_as_bool takes (rendezvous/api.py).
    if text.strip().lower() in ("1", "true", "t", "yes", "y"):
        return True
    if text.strip().lower() in ("0", "false", "f", "no", "n"):
        return False
    raise ValueError(f"must be yes or no, not {shortened(text)!r}")


def parse_check(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError(f"must be a command, not {text!r}")
    return text


def parse_path(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"must be a path, not {text!r}")
    return text


def shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."
