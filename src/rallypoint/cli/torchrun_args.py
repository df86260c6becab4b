"""Rewrites torchrun's forms of options into Rallypoint's before the command line is read.

torchrun's parser accepts `--tee 3`, `-t 3` and any unambiguous beginning of a long option. Here
`--tee` is a flag, so its value becomes a separate option, and abbreviations are expanded. So does
the value of `--preload=NAMES`. Arguments after the program are not changed, because they belong to
it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from rallypoint.launch.console_rule import is_streams

TORCHRUN: Final = frozenset(
    (
        *("--duplicate-stderr-filters", "--duplicate-stdout-filters"),
        *("--event-log-handler", "--help", "--local-addr", "--local-ranks-filter"),
        *("--log-dir", "--logs-specs", "--master-addr", "--master-port", "--max-restarts"),
        *("--module", "--monitor-interval", "--nnodes", "--no-python", "--node-rank"),
        *("--nproc-per-node", "--numa-binding", "--rdzv-backend", "--rdzv-conf"),
        *("--rdzv-endpoint", "--rdzv-id", "--redirects", "--role", "--run-path"),
        *("--shutdown-timeout", "--signals-to-handle", "--standalone", "--start-method"),
        *("--tee", "--virtual-local-rank"),
    )
)
"""torchrun's long options (torch 2.13). What begins only one of them means that one: an option of
ours that begins in the same way must not change what a command of torchrun does.
"""


def rewritten(arguments: Sequence[str], takes_value: Mapping[str, bool]) -> list[str]:
    """The arguments with each option under its whole name.

    `takes_value`: for every option (with its dashes), whether a value follows it.
    """
    done: list[str] = []
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word in ("-", "--") or not word.startswith("-"):
            return [*done, word, *left]
        name, equals, value = _split(word, takes_value)
        if name in ("--tee", "-t") and not equals and left and is_streams(left[0]):
            equals, value = "=", left.pop(0)
        if name == "-t" or (name == "--tee" and equals):
            name = "--tee-streams"
        if name == "--preload" and equals:
            name = "--preload-modules"
        if equals:
            done += [name, value] if takes_value.get(name, False) else [f"{name}={value}"]
        else:
            done.append(name)
            if takes_value.get(name, False) and left:
                done.append(left.pop(0))
    return done


def _split(word: str, known: Mapping[str, bool]) -> tuple[str, str, str]:
    """An option's whole name, "=" if it has a value of its own, and the value."""
    if not word.startswith("--"):
        # `-r3` is `-r 3`. Flags of one letter are not changed.
        is_joined = len(word) > 2 and (known.get(word[:2], False) or word[:2] == "-t")
        return (word[:2], "=", word[2:].removeprefix("=")) if is_joined else (word, "", "")
    name, equals, value = word.partition("=")
    return _whole(name.replace("_", "-"), known), equals, value


def _whole(name: str, known: Mapping[str, bool]) -> str:
    """The only option with this beginning, as in argparse; otherwise the name as written."""
    if name in known:
        return name
    return _only(name, TORCHRUN.intersection(known)) or _only(name, known) or name


def _only(name: str, options: Collection[str]) -> str | None:
    found = [each for each in options if each.startswith(name)]
    return found[0] if len(found) == 1 else None
