"""The options of `rallypoint simulate` that describe the job and its machines: a table.

The command line and `--compare` read their texts here. Each `parse` raises ValueError with a
sentence that can follow the name of the option.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from rallypoint.errors import UsageError
from rallypoint.settings import parse_duration_s
from rallypoint.settings.values import one_of, whole
from rallypoint.simulation.fleet.settings import full_name
from rallypoint.simulation.fleet.workload import (
    HOUR_S,
    KINDS,
    LEDGERS,
    Burst,
    Workload,
)

HOURS_MAX: Final = 24 * 366.0
RACK_MTBF_HOURS: Final = 50_000.0


class Option(msgspec.Struct, frozen=True):
    """One option: its name, the field of Workload that it sets, and how its text is read."""

    name: str
    field: str
    parse: Callable[[str], Any]


def _count(least: int, most: int = 100_000) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = whole(text)
        if not least <= number <= most:
            raise ValueError(f"must be within {least} and {most:,}, not {text!r}")
        return number

    return parse


def _hours_s(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours <= HOURS_MAX:
        raise ValueError(
            f"must be a number of hours, above 0 and at most {HOURS_MAX:g}, not {text!r}"
        )
    return hours * HOUR_S


def _mtbf_s(text: str) -> float:
    if text == "never":
        return math.inf
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours < math.inf:
        raise ValueError(f"must be a number of hours above 0, or never, not {text!r}")
    return hours * HOUR_S


def _duration(least_s: float = 0.0) -> Callable[[str], float]:
    def parse(text: str) -> float:
        seconds = parse_duration_s(text)
        if seconds < least_s:
            raise ValueError(f"must be at least {least_s:g} s, not {text!r}")
        return seconds

    return parse


def _interval_s(text: str) -> float:
    return math.inf if text == "never" else _duration(1.0)(text)


def share(text: str) -> float:
    """A part of a whole: "30%" or 0.3."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(%?)", text.strip())
    if found is None:
        raise ValueError(f"must be a share such as 30% or 0.3, not {text!r}")
    part = float(found[1]) / (100.0 if found[2] else 1.0)
    if part > 1:
        raise ValueError(f"must be a share of at most 100%, not {text!r}")
    return part


def _burst(amount: Callable[[str], float], example: str) -> Callable[[str], tuple[Burst, ...]]:
    def parse(text: str) -> tuple[Burst, ...]:
        return tuple(map(one, text.split(",")))

    def one(text: str) -> Burst:
        found = re.fullmatch(r"([^@/]+)([@/])([^@/]+)", text.strip())
        if found is None:
            raise ValueError(f"must be such as {example}, not {text!r}")
        when_s = parse_duration_s(found[3])
        if found[2] == "@":
            return Burst(amount(found[1]), when_s)
        if when_s < 1:
            raise ValueError(f"must be at most once a second, not {text!r}")
        return Burst(amount(found[1]), when_s, when_s)

    return parse


def _kinds(text: str) -> dict[str, float]:
    found = dict.fromkeys(KINDS, 0.0)
    for part in text.split(","):
        kind, separator, amount = part.strip().partition("=")
        if not separator or kind not in KINDS:
            raise ValueError(f"must be KIND=SHARE,..., each of {', '.join(KINDS)}, not {part!r}")
        found[kind] = share(amount)
    total = sum(found.values())
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ValueError(f"must add up to 100%, and {text!r} adds up to {total:.0%}")
    return found


OPTIONS: Final = (
    Option("nodes", "nodes", _count(1)),
    Option("min-nodes", "min_nodes", _count(1)),
    Option("spares", "spares", _count(0)),
    Option("nproc", "nproc", _count(1, 4_096)),
    Option("hours", "seconds", _hours_s),
    Option("mtbf-hours", "mtbf_s", _mtbf_s),
    Option("kinds", "shares", _kinds),
    Option("mttr", "mttr_s", _duration()),
    Option("restart", "restart_s", _duration()),
    Option("freeze", "freeze_s", _duration(0.001)),
    Option("preempt", "preemptions", _burst(share, "30%@3h (once) or 5%/3h (every 3 hours)")),
    Option("notice", "notice_s", _duration()),
    Option("rack", "rack", _count(2)),
    Option("rack-mtbf-hours", "rack_mtbf_s", _mtbf_s),
    Option("start", "start_s", _duration()),
    Option("stop", "stop_s", _duration()),
    Option("checkpoint", "checkpoint_every_s", _interval_s),
    Option("checkpoint-cost", "checkpoint_s", _duration()),
    Option("save-on-change", "saves_on_change", lambda text: one_of("yes", "no")(text) == "yes"),
    Option("peers", "peers_fail", lambda text: one_of("fail", "hang")(text) == "fail"),
    Option("coordinator", "coordinator", one_of("node", "apart")),
    Option("coordinator-mtbf-hours", "coordinator_mtbf_s", _mtbf_s),
    Option("ledger", "ledger", one_of(*LEDGERS)),
    Option(
        "ledger-away",
        "outages",
        _burst(parse_duration_s, "2m@6h (once) or 2m/6h (every 6 hours)"),
    ),
)
BY_NAME: Final = {each.name: each for each in OPTIONS}


def workload_of(texts: Mapping[str, str]) -> Workload:
    """The workload from the options' texts, by their names. Raises UsageError."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        option = BY_NAME[name]
        try:
            values[option.field] = option.parse(text)
        except ValueError as error:
            hint = "`rallypoint simulate --help` has the option's meaning and default"
            raise UsageError(f"--{name} {error}", hint=hint) from error
    if "rack_mtbf_s" in values and "rack" not in values:
        raise UsageError(
            "--rack-mtbf-hours needs the size of a rack", hint="give --rack, for example --rack 32"
        )
    if "rack" in values:
        values.setdefault("rack_mtbf_s", RACK_MTBF_HOURS * HOUR_S)
    return Workload(**values)


class Comparison(msgspec.Struct, frozen=True):
    """What to compare: an option of the workload, or else a setting, and its values."""

    name: str
    option: str
    values: tuple[str, ...]


def comparison(text: str) -> Comparison:
    """ "lost_after=30,60". Raises UsageError."""
    name, separator, rest = text.partition("=")
    values = tuple(each.strip() for each in rest.split(","))
    if not separator or len(values) < 2 or not all(values):
        raise UsageError(
            f"--compare must be NAME=VALUE,VALUE,... with two values or more, not {text!r}",
            hint="for example --compare lost_after=10s,30s or --compare spares=0,8",
        )
    if len(dict.fromkeys(values)) < len(values):
        raise UsageError(f"--compare has a value twice: {text!r}", hint="give different values")
    name = name.strip()
    plain = name.removeprefix("--").replace("_", "-").lower()
    if plain in BY_NAME and plain != "kinds":
        return Comparison(name, plain, values)
    return Comparison(name, "", values) if _is_setting(name) else _refuse(name)


def _is_setting(name: str) -> bool:
    full_name(name)
    return True


def _refuse(name: str) -> Comparison:
    raise UsageError(f"--compare: there is nothing named {name!r}", hint="see --help")


def assignments(given: list[str]) -> dict[str, str]:
    """The settings of `--set NAME=VALUE`, by their full names. Raises UsageError."""
    found: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not value:
            raise UsageError(
                f"--set must be NAME=VALUE, not {text!r}", hint="for example --set lost_after=60s"
            )
        full = full_name(name)
        if full in found:
            raise UsageError(f"--set gives {name.strip()!r} twice", hint="give it once")
        found[full] = value
    return found


def nearest_option(name: str) -> list[str]:
    """The names of options that are like this one."""
    return difflib.get_close_matches(name, list(BY_NAME), n=3, cutoff=0.5)
