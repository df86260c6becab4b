"""Frozen, validated settings; endpoints; and the only reader of the environment.

Everything that a user can set has one entry in `SETTINGS`: its name, its variable, how its text is
read and what it is when nobody says. An explicit argument wins over the environment, and that over
the default; a variable that is set to nothing counts as not set. What is in here must stay quick to
import: every command and every `import rallypoint` pays for it.
"""

from __future__ import annotations

import math
import os
import re
import stat
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from rallypoint.core import addresses, naming
from rallypoint.core.budget import BYTES_MIN
from rallypoint.core.ranks import POLICIES
from rallypoint.core.sizes import parse_size, size_text
from rallypoint.core.values import NAME_LENGTH_MAX, STOP_S_MAX, RunSettings
from rallypoint.endpoints import DEFAULT_PORT as DEFAULT_PORT
from rallypoint.endpoints import NAME, EtcdPlace, is_ip, is_loopback
from rallypoint.endpoints import Endpoint as Endpoint
from rallypoint.endpoints import EndpointKind as EndpointKind
from rallypoint.endpoints import parse_endpoint as parse_endpoint
from rallypoint.errors import EndpointError, PlatformError, UsageError

Environ = Mapping[str, str]

TOKEN_LENGTH_MAX: Final = 512
LABELS_MAX: Final = 64
LABELS_BYTES_MAX: Final = naming.INFO_BYTES_MAX - 4 * 1024
"""The rest is for the node's name, its host and its addresses."""
WORKERS_MAX: Final = 1_000_000
CANDIDATES_MAX: Final = 100
SHARE_LINES_MAX: Final = 64
MEMORY_BYTES_MAX: Final = 1024**5
LEASE_TTL_MIN_S: Final = 0.3
LEASE_TTL_MAX_S: Final = 300.0


# -- reading text --------------------------------------------------------------------------------
#
# Each of these takes a user's text and raises ValueError with a sentence that can follow the name
# of an option or variable: "must be ..., not ...".


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


_UNITS_S: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0}


def parse_duration_s(text: str) -> float:
    """Seconds from "1.5", "90", "500ms", "10s", "2m" or "1h". Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})\s*(ms|s|m|h|)", text.strip())
    if found is None:
        raise ValueError(f"must be a duration such as 1.5, 500ms, 90s, 2m or 1h, not {text!r}")
    return float(found[1]) * _UNITS_S[found[2]]


def parse_workers(text: str) -> int | str:
    """A number of workers, or "auto", "cpu" or "gpu". Raises ValueError."""
    if text in ("auto", "cpu", "gpu"):
        return text
    workers = _whole(text, "a number of workers, or auto, cpu or gpu")
    if not 1 <= workers <= WORKERS_MAX:
        raise ValueError(f"must be at least one worker, not {text!r}")
    return workers


def _whole(text: str, what: str = "a whole number") -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise ValueError(f"must be {what}, not {text!r}")
    return int(text)


def _restarts(text: str) -> int | None:
    return None if text == "any" else _whole(text, "a number of restarts, or any")


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 <= fraction <= 1:
        raise ValueError(f"must be a fraction within 0 and 1, not {text!r}")
    return fraction


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {text!r}")
        return text

    return parse


def _name(text: str) -> str:
    if not 1 <= len(text) <= NAME_LENGTH_MAX or not text.isprintable() or text != text.strip():
        raise ValueError(
            f"must have 1 to {NAME_LENGTH_MAX} printable characters and no blank at either end, "
            f"not {_shortened(text)!r}"
        )
    return text


def _orphan(text: str) -> float:
    return math.inf if text == "never" else parse_duration_s(text)


def _stop_s(text: str) -> float:
    seconds = parse_duration_s(text)
    if seconds > STOP_S_MAX:
        raise ValueError(f"must be at most {STOP_S_MAX:g} s, not {text!r}")
    return seconds


def _share_lines(text: str) -> int:
    lines = _whole(text, "a number of lines")
    if lines > SHARE_LINES_MAX:
        raise ValueError(f"must be at most {SHARE_LINES_MAX} lines, not {text!r}")
    return lines


def _at_least_one(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise ValueError(f"must be at least 1, not {text!r}")
    return number


def _candidates(text: str) -> int:
    candidates = _whole(text, "a number of nodes")
    if not 1 <= candidates <= CANDIDATES_MAX:
        raise ValueError(f"must be within 1 and {CANDIDATES_MAX} nodes, not {text!r}")
    return candidates


def _address(text: str) -> str:
    is_number = re.fullmatch(r"[0-9.]+", text) is not None  # such as 10.1, which is no name
    is_name = NAME.fullmatch(text) is not None and not is_number
    is_six = is_ip(text, 6) and naming.is_host(text)  # The latter looks at the zone, too.
    if not (is_ip(text, 4) or is_six or is_name):
        raise ValueError(f"must be a host name or an address without a port, not {text!r}")
    if addresses.is_unspecified(text):
        raise ValueError(f"must be one address of this machine, not {text!r}, which is all of them")
    if addresses.needs_zone(text):
        raise ValueError(f"must have its zone, as {text}%eth0: it is a link-local address")
    return text


def _token(text: str) -> str:
    """The text must not be in the message: it may be most of a secret."""
    if not 1 <= len(text) <= TOKEN_LENGTH_MAX or not all("!" <= each <= "~" for each in text):
        raise ValueError(
            f"must be 1 to {TOKEN_LENGTH_MAX} visible ASCII characters (it is not shown here)"
        )
    return text


def _password(text: str) -> str:
    if not text or len(text) > TOKEN_LENGTH_MAX or not text.isprintable():
        raise ValueError(
            f"must be 1 to {TOKEN_LENGTH_MAX} printable characters (it is not shown here)"
        )
    return text


def _memory(text: str) -> int:
    size = parse_size(text)
    if not BYTES_MIN <= size <= MEMORY_BYTES_MAX:
        least = size_text(BYTES_MIN)
        raise ValueError(f"must be within {least} and {size_text(MEMORY_BYTES_MAX)}, not {text!r}")
    return size


def _yes_no(text: str) -> bool:
    # What torch's RendezvousParameters.get_as_bool takes (rendezvous/api.py).
    if text.strip().lower() in ("1", "true", "t", "yes", "y"):
        return True
    if text.strip().lower() in ("0", "false", "f", "no", "n"):
        return False
    raise ValueError(f"must be yes or no, not {_shortened(text)!r}")


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"must be a path, not {text!r}")
    return text


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."


# -- the settings --------------------------------------------------------------------------------


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be set. `parse` turns text into its value, or raises ValueError."""

    name: str
    variable: str
    parse: Callable[[str], Any]
    default: Any
    help: str

    @property
    def secret(self) -> bool:
        """Whether its value must never be shown."""
        return self.name in _SECRETS


_SECRETS: Final = ("token", "etcd_password")


class Resolved(msgspec.Struct, frozen=True):
    """The value of a setting, and for people where it came from."""

    name: str
    value: Any
    source: str

    @property
    def shown(self) -> str:
        """The value for people: a secret only as "set"."""
        if self.value == math.inf:
            return "never"
        if self.value is None or self.value == "":
            return "unset"
        if self.name in _SECRETS:
            return "set"
        if self.name == "memory":
            return size_text(self.value)
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)

    def __repr__(self) -> str:
        return f"Resolved({self.name!r}, {self.shown!r}, {self.source!r})"


def _setting(name: str, parse: Callable[[str], Any], default: Any, help: str) -> Setting:
    variable = f"RALLYPOINT_{name.removesuffix('_s').upper()}"
    return Setting(name=name, variable=variable, parse=parse, default=default, help=help)


_RUN_DEFAULTS: Final = RunSettings()


def _run_setting(name: str, parse: Callable[[str], Any], help: str) -> Setting:
    """A setting of the run itself: core knows its default."""
    return _setting(name, parse, getattr(_RUN_DEFAULTS, name), help)


SETTINGS: Final = (
    _setting(
        "endpoint",
        parse_endpoint,
        Endpoint(EndpointKind.LOCAL),
        "where the nodes meet: HOST:PORT, http://HOST:PORT, etcd://HOST:PORT,... or file:///FOLDER",
    ),
    # No default: where a coordinator is shared, two jobs that both left a default in place would
    # meet each other. Only a run that nobody else can reach is given a name by chance.
    _setting("run_id", _name, None, "the run's name; needed unless there is no endpoint"),
    _setting(
        "nnodes",
        parse_nnodes,
        NodeRange(_RUN_DEFAULTS.min_nodes, _RUN_DEFAULTS.max_nodes),
        "how many nodes: N or MIN:MAX",
    ),
    _run_setting("expected_nodes", _whole, "how many nodes were started, if that is known"),
    _setting("nproc_per_node", parse_workers, 1, "workers on this node: N, auto, gpu or cpu"),
    _setting("node_name", _name, None, "this node's name; made from host and process if unset"),
    _setting("local_addr", _address, None, "the address at which other nodes reach this one"),
    _setting("token_file", _path, None, "a file whose first line is the coordinator's token"),
    _setting("token", _token, "", "the coordinator's token; a file is safer"),
    _setting(
        "insecure",
        _yes_no,
        False,
        "whether a node at HOST:PORT goes without a token where none is given: everybody is let in",
    ),
    _setting(
        "host_coordinator",
        _one_of("auto", "yes", "no"),
        "auto",
        "whether this node hosts the coordinator: auto, yes or no",
    ),
    _setting("join_timeout_s", parse_duration_s, 600.0, "how long to wait for a round"),
    _setting(
        "connect_timeout_s",
        parse_duration_s,
        60.0,
        "how long to try an endpoint that nobody answers at",
    ),
    _setting(
        "coordinator_silence_s",
        parse_duration_s,
        6.0,
        "silence after which the coordinator is connected to anew",
    ),
    _setting(
        "coordinator_lost_after_s",
        parse_duration_s,
        60.0,
        "how long a node without running workers looks for a coordinator that it has lost",
    ),
    _setting("goodbye_timeout_s", parse_duration_s, 5.0, "how long a goodbye may take"),
    _setting(
        "linger_s",
        parse_duration_s,
        30.0,
        "how long a node that hosts the coordinator waits for the others at the end",
    ),
    _setting(
        "orphan_s",
        _orphan,
        None,
        "how long workers go on without a coordinator, or never: for ever; "
        "if unset, 10 min once the run is known to be lost",
    ),
    _setting("etcd_password", _password, "", "the password of an etcd endpoint's user"),
    _setting(
        "candidates", _candidates, 3, "about how many nodes stand at once where a ledger elects one"
    ),
    _setting(
        "lease_ttl_s",
        parse_duration_s,
        5.0,
        "how long the lease of a coordinator stands that is elected through a ledger",
    ),
    _setting(
        "attach_grace_s",
        parse_duration_s,
        None,
        "how long a new coordinator waits for the nodes of the one before it; "
        "if unset, 7 s and 4/3 of coordinator_silence",
    ),
    _setting(
        "yield_after_s",
        parse_duration_s,
        10.0,
        "after how long an elected coordinator that nobody reaches lets another try",
    ),
    _setting(
        "closed_run_keep_s",
        parse_duration_s,
        3_600.0,
        "how long `serve` keeps a run that is over: then it is swept, from its ledger too",
    ),
    _setting(
        "memory",
        _memory,
        None,
        "how many bytes a coordinator keeps for all its runs; if unset, half of the memory of its "
        "cgroup or machine, and inside a node at most 1 GiB",
    ),
    _setting(
        "runs_max",
        _at_least_one,
        10_000,
        "how many runs `serve` keeps; the last eighth is for addresses that have few",
    ),
    _setting(
        "sessions_max",
        _at_least_one,
        200_000,
        "how many connections of nodes `serve` takes, if its limit on open files allows; likewise",
    ),
    _setting(
        "new_run_rate",
        _at_least_one,
        100,
        "how fast `serve` begins runs for one token at one address, after the first 1,000",
    ),
    _setting(
        "stop_timeout_s", parse_duration_s, 25.0, "from the first signal to workers to SIGKILL"
    ),
    _setting(
        "regroup_stop_timeout_s", parse_duration_s, 5.0, "the same when workers stop to regroup"
    ),
    _setting(
        "stop_s",
        _stop_s,
        5.0,
        "how long this node takes to stop its work when a round ends; its place is kept so long",
    ),
    _setting("log_dir", _path, None, "a directory for the output of each worker"),
    _setting(
        "share_lines",
        _share_lines,
        20,
        "how many last lines of a failed worker all nodes and the coordinator are told; 0: no word",
    ),
    _run_setting("max_restarts", _restarts, "rounds that may end by the program's fault, or any"),
    _run_setting(
        "last_call_s", parse_duration_s, "the wait for more nodes once the minimum is there"
    ),
    _run_setting("settle_s", parse_duration_s, "the wait for simultaneous arrivals"),
    _run_setting("scale_up_delay_s", parse_duration_s, "the wait before newcomers are announced"),
    _run_setting(
        "reconnect_grace_s", parse_duration_s, "how long a node may be without its connection"
    ),
    _run_setting("suspect_after_s", parse_duration_s, "silence after which a node is suspect"),
    _run_setting("probe_s", parse_duration_s, "how long a suspect may take to answer"),
    _run_setting("lost_after_s", parse_duration_s, "silence after which a node is lost"),
    _run_setting("mass_min", _whole, "as many nodes may go missing before it counts as an outage"),
    _run_setting("mass_fraction", _fraction, "the same as a fraction of all nodes"),
    _run_setting("mass_grace_s", parse_duration_s, "how long nobody is lost in an outage"),
    _run_setting("rank_policy", _one_of(*POLICIES), f"how ranks are given: {', '.join(POLICIES)}"),
)
"""All settings, in the order in which `rallypoint env` shows them."""

_BY_NAME: Final = {each.name: each for each in SETTINGS}


def setting(name: str) -> Setting:
    """The setting of that name, also without its unit or with dashes. Raises UsageError."""
    plain = name.replace("-", "_").lower()
    found = _BY_NAME.get(plain) or _BY_NAME.get(f"{plain}_s")
    if found is None:
        raise UsageError(
            f"there is no setting {_shortened(name)!r}", hint="`rallypoint env` lists all settings"
        )
    return found


def resolve(name: str, explicit: Any = None, environ: Environ | None = None) -> Resolved:
    """A setting's value: the explicit argument, else the environment's, else the default.

    Text is parsed alike from both; an argument that is no text is taken as it is, and None is none.

    Raises:
        UsageError: naming the setting or the variable, if the text cannot be read.
    """
    known = setting(name)
    if explicit is not None:
        value = read(known, explicit, known.name) if isinstance(explicit, str) else explicit
        return Resolved(known.name, value, "argument")
    text = _environ(environ).get(known.variable)
    if text:
        return Resolved(
            known.name, read(known, text, known.variable), f"environment {known.variable}"
        )
    return Resolved(known.name, known.default, "default")


def read(known: Setting, text: str, called: str) -> Any:
    """The value that a text means. Raises UsageError, which says `called` for the setting."""
    try:
        return known.parse(text)
    except EndpointError as error:
        raise EndpointError(f"{called}: {error.message}", hint=error.hint) from None
    except ValueError as error:
        raise UsageError(f"{called} {error}", hint=known.help) from None


def _environ(environ: Environ | None) -> Environ:
    if environ is not None:
        return environ
    return ChainMap(os.environ, _withheld) if _withheld else os.environ


_withheld: Final[dict[str, str]] = {}
WITHHELD_PREFIXES: Final = ("RALLYPOINT_TOKEN", "RALLYPOINT_ETCD_PASSWORD")
"""Variables that admit to a coordinator or to a ledger, or name a file that does."""


def withhold_secrets() -> None:
    """Take this process's tokens and passwords out of its environment, which children inherit.

    They can be resolved here as before; a variable that is set anew wins. For a process whose
    children are programs of the user's: torch's agent gives its workers a copy of its environment.
    """
    for name in [each for each in os.environ if each.startswith(WITHHELD_PREFIXES)]:
        _withheld[name] = os.environ.pop(name)


def home(environ: Environ | None = None) -> str:
    """The folder of this user, as HOME says; "" if it says none."""
    folder = _environ(environ).get("HOME", "")
    return folder if folder.startswith("/") else ""


# -- the token -----------------------------------------------------------------------------------


def resolve_token(token_file: str | None = None, environ: Environ | None = None) -> Resolved:
    """The token: from `token_file`, else RALLYPOINT_TOKEN_FILE, else RALLYPOINT_TOKEN, else "".

    Never from a command line, which every user of the machine can read. Raises UsageError for a
    file that cannot be read or that holds no token.
    """
    path = resolve("token_file", token_file, environ)
    if path.value is None:
        return resolve("token", None, environ)
    token = _read_secret(path.value, "token", _token)
    return Resolved("token", token, f"file {path.value} ({path.source})")


def resolve_tokens(token_file: str | None = None, environ: Environ | None = None) -> Resolved:
    """All tokens that a coordinator accepts, as a tuple: empty if there is none.

    From where `resolve_token` has the one that a node shows, which is the first. A file has one on
    each line, so that old and new ones are accepted while the nodes change over. Raises UsageError
    as `resolve_token` does.
    """
    path = resolve("token_file", token_file, environ)
    if path.value is None:
        token = resolve("token", None, environ)
        return Resolved("token", (token.value,) if token.value else (), token.source)
    return Resolved("token", _read_tokens(path.value), f"file {path.value} ({path.source})")


def _read_tokens(path: str) -> tuple[str, ...]:
    """The first line as `_read_secret` reads it, and all others that are not empty."""
    first, *others = _lines_of_secret(path, "token", _TOKEN_LINES_MAX)
    tokens = [_parsed_secret(path, "token", _token, first)]
    for number, line in enumerate(others, 2):
        if line:
            tokens.append(_parsed_secret(path, "token", _token, line, f"line {number}: "))
    if len(tokens) > TOKENS_MAX or others[-1]:
        raise UsageError(
            f"token file {path!r} has more than {TOKENS_MAX} tokens",
            hint="take out those that no node has any more",
        )
    return tuple(dict.fromkeys(tokens))


TOKENS_MAX: Final = 16
"""A coordinator compares each request with all of them."""
_TOKEN_LINES_MAX: Final = 100
TOKEN_BITS_MIN: Final = 128
DRAW_A_TOKEN: Final = (
    "`rallypoint token new FILE`, or python -c 'import secrets; print(secrets.token_urlsafe(32))'"
)
_ALPHABETS: Final = (
    (re.compile(r"[0-9]+"), 10),
    (re.compile(r"[0-9a-f]+|[0-9A-F]+"), 16),
    (re.compile(r"[a-z]+|[A-Z]+"), 26),
    (re.compile(r"[^A-Z]+|[^a-z]+"), 36),
)
_MIXED: Final = 64
_DIFFERENT_MIN: Final = 8


def token_bits(token: str) -> int:
    """At most so many bits were drawn for a token, to judge by its characters and its length.

    22 characters of base64 or 32 hexadecimal digits hold 128 bits. One of fewer than 8 different
    characters was not drawn, and counts as none.
    """
    if len(set(token)) < _DIFFERENT_MIN:
        return 0
    size = next((size for looks, size in _ALPHABETS if looks.fullmatch(token)), _MIXED)
    return int(len(token) * math.log2(size))


def check_token_strength(token: str) -> None:
    """Raises UsageError for a token that others could guess. For a port that they can reach."""
    if token_bits(token) < TOKEN_BITS_MIN:
        raise UsageError(
            "this token can be guessed, and other machines can reach the coordinator: a token has "
            f"at least {TOKEN_BITS_MIN} bits, which is 22 characters of base64 or 32 hexadecimal "
            "digits drawn by chance",
            hint=f"draw one: {DRAW_A_TOKEN}",
        )


def check_token(text: str, called: str) -> None:
    """Raises UsageError, which does not show it, unless this can be a token."""
    try:
        _token(text)
    except ValueError as error:
        raise UsageError(
            f"{called}: token {error}", hint="`rallypoint token new` makes one"
        ) from None


def _read_secret(path: str, what: str, parse: Callable[[str], str]) -> str:
    return _parsed_secret(path, what, parse, _lines_of_secret(path, what, 1)[0])


def _lines_of_secret(path: str, what: str, lines_max: int) -> list[str]:
    """The first lines of the file, at least one; "" for one that is not there."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            return [file.readline(TOKEN_LENGTH_MAX + 2).strip() for _ in range(lines_max)]
    except OSError as error:
        problem = error.strerror or str(error)
        hint = _secret_hint(what)
        raise UsageError(f"cannot read {what} file {path!r}: {problem}", hint=hint) from error
    except UnicodeDecodeError as error:
        hint = _secret_hint(what)
        raise UsageError(f"{what} file {path!r} is no text", hint=hint) from error


def _parsed_secret(
    path: str, what: str, parse: Callable[[str], str], text: str, where: str = ""
) -> str:
    try:
        return parse(text)
    except ValueError as error:
        problem = f"{what} {error}" if text else "its first line is empty"
        message = f"{what} file {path!r}: {where}{problem}"
        raise UsageError(message, hint=_secret_hint(what)) from None


def _secret_hint(what: str) -> str:
    return f"write the {what} on its first line, and make it yours alone: chmod 600"


def etcd_password(endpoint: Endpoint, environ: Environ | None = None) -> str:
    """The password of the endpoint's etcd user: from its `password_file`, else the environment.

    "" if the endpoint has no user. Raises UsageError if there is none, or it cannot be read.
    """
    place = endpoint.place
    if not isinstance(place, EtcdPlace) or not place.user:
        return ""
    if place.password_file:
        return _read_secret(place.password_file, "password", _password)
    password: str = resolve("etcd_password", None, environ).value
    if not password:
        raise UsageError(
            f"etcd user {place.user!r} has no password",
            hint="write it into a file and add password_file=FILE to the endpoint, or set "
            "RALLYPOINT_ETCD_PASSWORD",
        )
    return password


def is_readable_by_others(path: str) -> bool:
    """Whether users other than the file's owner may read it. False if there is no such file."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return bool(mode & (stat.S_IRGRP | stat.S_IROTH))


# -- a node, a run, a worker ---------------------------------------------------------------------


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One node's own settings; other nodes may have others. Durations in seconds.

    `node_name` and `local_addr`: None lets the node find its own.
    `token`: the one that was given; "" if none was (see `tokens`). `token_place`: where it was
    found, for people. `insecure`: without a given token, a `host:port` node has none.
    `orphan_s` None: LOST_ORPHAN_S once the run is known to be lost, if it has other nodes;
    infinite: never.
    `attach_grace_s` None: derived, see `attach_grace_s`.
    `node_settings` fills one from arguments and environment.

    Raises:
        UsageError: from the constructor, naming the field.
    """

    endpoint: Endpoint = Endpoint(EndpointKind.LOCAL)
    run_id: str
    node_name: str | None = None
    local_addr: str | None = None
    token: str = ""
    token_place: str = ""
    insecure: bool = False
    host_coordinator: str = _BY_NAME["host_coordinator"].default
    join_timeout_s: float = _BY_NAME["join_timeout_s"].default
    connect_timeout_s: float = _BY_NAME["connect_timeout_s"].default
    coordinator_silence_s: float = _BY_NAME["coordinator_silence_s"].default
    coordinator_lost_after_s: float = _BY_NAME["coordinator_lost_after_s"].default
    goodbye_timeout_s: float = _BY_NAME["goodbye_timeout_s"].default
    linger_s: float = _BY_NAME["linger_s"].default
    orphan_s: float | None = _BY_NAME["orphan_s"].default
    etcd_password: str = ""
    candidates: int = _BY_NAME["candidates"].default
    lease_ttl_s: float = _BY_NAME["lease_ttl_s"].default
    attach_grace_s: float | None = _BY_NAME["attach_grace_s"].default
    yield_after_s: float = _BY_NAME["yield_after_s"].default
    stop_s: float = _BY_NAME["stop_s"].default
    share_lines: int = _BY_NAME["share_lines"].default
    labels: dict[str, str] = {}

    def __post_init__(self) -> None:
        for name in ("run_id", "node_name", "local_addr", "token", "host_coordinator"):
            value = getattr(self, name)
            if value is not None and (name, value) != ("token", ""):
                read(_BY_NAME[name], value, name)
        for name in _NODE_DURATIONS:
            if (name, getattr(self, name)) not in _NO_DURATIONS:
                check_duration_s(name, getattr(self, name))
        check_lease_ttl_s(self.lease_ttl_s)
        check_stop_s(self.stop_s)
        for name in ("candidates", "share_lines"):
            read(_BY_NAME[name], str(getattr(self, name)), name)
        _check_labels(self.labels)

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        for name in _SECRETS:
            shown[name] = "set" if shown[name] else ""
        return f"NodeSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


_NODE_DURATIONS: Final = tuple(
    name for name in NodeSettings.__struct_fields__ if name.endswith("_s")
)
_NO_DURATIONS: Final = (("orphan_s", None), ("orphan_s", math.inf), ("attach_grace_s", None))
LOST_ORPHAN_S: Final = 600.0
"""How long workers go on in a run that is lost and has other nodes, unless `orphan_s` is set."""
_MAY_BE_ZERO: Final = (
    "connect_timeout_s",
    "goodbye_timeout_s",
    "linger_s",
    "stop_timeout_s",
    "stop_s",
)
_DURATION_MAX_S: Final = 365 * 86_400.0


def check_duration_s(name: str, seconds: float) -> None:
    """Raises UsageError unless this is a bounded number of seconds that makes sense for `name`."""
    if not 0 <= seconds <= _DURATION_MAX_S:
        raise UsageError(f"{name} must be within 0 and {_DURATION_MAX_S:g} s, not {seconds}")
    if seconds == 0 and name in _NODE_DURATIONS and name not in _MAY_BE_ZERO:
        raise UsageError(f"{name} must be more than 0 s")


ATTACH_MARGIN_S: Final = 7.0
"""From the moment that a node notices the loss until it is attached to the next coordinator: it
dials the old address (2 s), looks into the ledger (up to 1.5 s), dials the new one (2 s), and is
let in; all of that may be slow for as long again as the last of these takes."""


def attach_grace_s(given_s: float | None, silence_s: float) -> float:
    """How long a new coordinator waits for the nodes of the one before it, in seconds.

    `given_s`: the setting; None: derived. A node that hears nothing notices it after `silence_s`,
    which it checks at least thrice in that time: so up to 4/3 of it later.
    """
    return ATTACH_MARGIN_S + silence_s * 4 / 3 if given_s is None else given_s


def check_stop_s(stop_s: float) -> None:
    """Raises UsageError unless a node's place may be kept for so long."""
    if not 0 <= stop_s <= STOP_S_MAX:
        raise UsageError(f"stop_s must be within 0 and {STOP_S_MAX:g} s, not {stop_s:g}")


def check_lease_ttl_s(ttl_s: float) -> None:
    """Raises UsageError unless a lease of this length can be kept over a network."""
    if not LEASE_TTL_MIN_S <= ttl_s <= LEASE_TTL_MAX_S:
        raise UsageError(
            f"lease_ttl_s must be within {LEASE_TTL_MIN_S:g} and {LEASE_TTL_MAX_S:g} s, "
            f"not {ttl_s:g}",
            hint="a third of it is how often an elected coordinator writes to the ledger",
        )


def _check_labels(labels: Mapping[Any, Any]) -> None:
    if len(labels) > LABELS_MAX:
        raise UsageError(f"a node has at most {LABELS_MAX} labels, not {len(labels)}")
    for name, value in labels.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise UsageError(
                f"label {name!r}: names and values are text, and {value!r} is of type "
                f"{type(value).__name__}",
                hint='write labels={"rack": "7"}',
            )
        if not 1 <= len(name) <= NAME_LENGTH_MAX or len(value) > NAME_LENGTH_MAX:
            raise UsageError(
                f"label {_shortened(name)!r}: a name has 1 to {NAME_LENGTH_MAX} characters, "
                f"a value at most {NAME_LENGTH_MAX}"
            )
        problem = naming.label_problem(name, value)
        if problem:
            raise UsageError(problem)
    size = sum(len(each.encode()) for label in labels.items() for each in label)
    if size > LABELS_BYTES_MAX:
        raise UsageError(
            f"the labels of a node have at most {LABELS_BYTES_MAX} bytes, and these have {size}",
            hint="every node of the run is told of them: put what is longer into the store",
        )


def check_own_token(node: NodeSettings) -> None:
    """Raises UsageError if this node may carry the coordinator, and its token is too weak for it.

    All nodes of a run have the same token, so each says so, whichever would carry it.
    """
    endpoint = node.endpoint
    is_inside = endpoint.kind is EndpointKind.LEDGER or (
        endpoint.kind is EndpointKind.HOST and not is_loopback(endpoint.host)
    )
    if node.token and is_inside and node.host_coordinator != "no" and not node.insecure:
        check_token_strength(node.token)


def node_settings(
    *,
    environ: Environ | None = None,
    token_file: str | None = None,
    labels: Mapping[str, str] | None = None,
    **explicit: Any,
) -> NodeSettings:
    """A node's settings from arguments named as its fields, environment and defaults.

    None, and leaving it out, are the same. Where there is no endpoint and no run id, the run gets
    one by chance: nobody else can reach it, so nobody needs to know it.

    Raises:
        UsageError: for a value that cannot be, or an endpoint without a run id.
        TypeError: for an argument that is no field.
    """
    _refuse_unknown(explicit, NodeSettings.__struct_fields__)
    token = explicit.pop("token", None)
    password = explicit.pop("etcd_password", None)
    given_id = explicit.pop("run_id", None)
    values = {
        name: resolve(name, explicit.get(name), environ).value
        for name in NodeSettings.__struct_fields__
        if name not in ("token", "token_place", "labels", "run_id", "etcd_password")
    }
    found = resolve_token(token_file, environ) if token is None else None
    return NodeSettings(
        **values,
        etcd_password=password or etcd_password(values["endpoint"], environ),
        run_id=_run_id(resolve("run_id", given_id, environ).value, values["endpoint"]),
        token=token if found is None else found.value,
        token_place=found.source if found is not None and found.value else "",
        labels=dict(labels or {}),
    )


def _run_id(given: str | None, endpoint: Endpoint) -> str:
    if given is not None:
        return given
    if endpoint.kind is EndpointKind.LOCAL:
        return f"local-{os.urandom(6).hex()}"
    raise UsageError(
        f"a run that meets at {endpoint} needs a run id",
        hint="give every node the same --run-id, or RALLYPOINT_RUN_ID",
    )


def run_settings(*, environ: Environ | None = None, **explicit: Any) -> RunSettings:
    """A run's settings, on which its nodes must agree, from arguments, environment and defaults.

    The arguments are RunSettings' fields, and `nnodes` (text or NodeRange) for both bounds. None,
    and leaving it out, are the same: for no bound of restarts, `max_restarts` is "any". A bound
    alone leaves the other as the environment has it; else a minimum is also the maximum.

    Raises:
        UsageError: for a value that cannot be, or values that contradict each other.
        TypeError: for an argument that is no field.
    """
    _refuse_unknown(explicit, (*RunSettings.__struct_fields__, "nnodes"))
    least, most = explicit.pop("min_nodes", None), explicit.pop("max_nodes", None)
    nodes = _node_range(resolve("nnodes", explicit.pop("nnodes", None), environ), least, most)
    values = {
        name: resolve(name, explicit.get(name), environ).value
        for name in RunSettings.__struct_fields__
        if name not in ("min_nodes", "max_nodes")
    }
    try:
        return RunSettings(min_nodes=nodes.min, max_nodes=nodes.max, **values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _node_range(nnodes: Resolved, least: int | None, most: int | None) -> NodeRange:
    known: NodeRange = nnodes.value
    if nnodes.source == "default" and least is not None and most is None:
        return NodeRange(least, least)
    return NodeRange(known.min if least is None else least, known.max if most is None else most)


def _refuse_unknown(explicit: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = [name for name in explicit if name not in known]
    if unknown:
        raise TypeError(f"no such setting: {', '.join(unknown)}")


class WorkerChannel(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker of `rallypoint run` is told: its agent's local socket, and its place."""

    agent: str
    secret: str
    run_id: str
    node: str
    round: int
    term: int
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    nodes: int

    def __repr__(self) -> str:
        return f"WorkerChannel({self.run_id!r}, round {self.round}, rank {self.rank})"


_WORKER_NUMBERS: Final = {
    "round": "RALLYPOINT_ROUND",
    "term": "RALLYPOINT_TERM",
    "rank": "RANK",
    "local_rank": "LOCAL_RANK",
    "world_size": "WORLD_SIZE",
    "local_world_size": "LOCAL_WORLD_SIZE",
    "node_rank": "GROUP_RANK",
    "nodes": "GROUP_WORLD_SIZE",
}
_WORKER_TEXTS: Final = {
    "agent": "RALLYPOINT_AGENT",
    "secret": "RALLYPOINT_AGENT_SECRET",
    "run_id": "RALLYPOINT_RUN_ID",
    "node": "RALLYPOINT_NODE",
}


def worker_channel(environ: Environ | None = None) -> WorkerChannel | None:
    """How this worker reaches its agent; None if it was not started by `rallypoint run`.

    Raises UsageError if what the agent set has been lost or changed on the way.
    """
    variables = _environ(environ)
    if not variables.get("RALLYPOINT_AGENT"):
        return None
    texts = {name: _worker_text(variables, each) for name, each in _WORKER_TEXTS.items()}
    numbers = {name: _worker_number(variables, each) for name, each in _WORKER_NUMBERS.items()}
    for place, size in (("rank", "world_size"), ("local_rank", "local_world_size")):
        if numbers[place] >= numbers[size]:
            raise _worker_error(
                f"{_WORKER_NUMBERS[place]} is {numbers[place]} with "
                f"{_WORKER_NUMBERS[size]} {numbers[size]}"
            )
    return WorkerChannel(**texts, **numbers)  # type: ignore[arg-type]


def _worker_text(variables: Environ, variable: str) -> str:
    text = variables.get(variable)
    if not text:
        raise _worker_error(f"{variable} is not set")
    return text


def _worker_number(variables: Environ, variable: str) -> int:
    try:
        return _whole(_worker_text(variables, variable))
    except UsageError:
        raise
    except ValueError as error:
        raise _worker_error(f"{variable} {error}") from None


def _worker_error(problem: str) -> UsageError:
    return UsageError(
        f"this process has RALLYPOINT_AGENT set as a worker of `rallypoint run`, but {problem}",
        hint="pass the agent's environment on unchanged, or unset RALLYPOINT_AGENT",
    )


# -- the machine ---------------------------------------------------------------------------------


def shares_torch_store(environ: Environ | None = None) -> bool:
    """Whether torch's workers use a store that their agent serves: torch's own variable, 1 is no.

    Source: torch 2.13, DynamicRendezvousHandler.use_agent_store.
    """
    return _environ(environ).get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"


def etcd_binary(environ: Environ | None = None) -> str | None:
    """The etcd program that TORCHELASTIC_ETCD_BINARY_PATH names, as for torch; None if none is.

    Source: torch 2.13, elastic/rendezvous/etcd_server.py.
    """
    return _environ(environ).get("TORCHELASTIC_ETCD_BINARY_PATH") or None


def process_environment() -> Environ:
    """The variables of this process, for what a pure function judges as a whole."""
    return os.environ


def visible_gpus(environ: Environ | None = None) -> tuple[str, ...] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves this process; None if it is not set.

    As the CUDA driver reads it: the list ends at the first entry that is no device ("-1").
    """
    text = _environ(environ).get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    devices: list[str] = []
    for each in text.split(","):
        if not re.fullmatch(r"[0-9]+|(GPU|MIG)-\S+", each.strip()):
            break
        devices.append(each.strip())
    return tuple(devices)


def check_platform(platform: str | None = None) -> None:
    """Raises PlatformError, naming the platform, unless this is Linux or macOS."""
    platform = sys.platform if platform is None else platform
    if not platform.startswith(("linux", "darwin")):
        raise PlatformError(
            f"rallypoint runs on Linux and, for development, on macOS, not on {platform}",
            hint="on Windows, use the Windows Subsystem for Linux",
        )
