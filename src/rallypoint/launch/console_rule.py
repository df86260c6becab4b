"""Which output of the workers goes to the agent's console: torchrun's --redirects, --tee, filter.

Pure: texts in, a rule out. It does not apply to files, which contain all output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

STDOUT: Final = 1
STDERR: Final = 2
_STREAMS: Final = re.compile(r"[0-3]|[0-9]+:[0-3](?:,[0-9]+:[0-3])*")
_RANKS: Final = re.compile(r"[0-9]+(?:,[0-9]+)*")


class Streams(msgspec.Struct, frozen=True):
    """Streams for each local rank, as bits: STDOUT, STDERR, both or none.

    `others`: the streams of all local ranks that are not in `by_rank`.
    """

    by_rank: Mapping[int, int]
    others: int

    def has(self, local_rank: int, stream: int) -> bool:
        return bool(self.by_rank.get(local_rank, self.others) & stream)


NO_STREAMS: Final = Streams({}, 0)


def is_streams(text: str) -> bool:
    """Whether torchrun would read the text as streams: `3`, or `0:1,1:3`."""
    return _STREAMS.fullmatch(text) is not None


def read_streams(text: str) -> Streams:
    """The streams in `3` or `0:1,1:3`, as torch's `Std.from_str` reads them.

    Raises ValueError.
    """
    if not is_streams(text):
        raise ValueError(f"must be 0 to 3, or RANK:N,RANK:N with such numbers, not {text!r}")
    if ":" not in text:
        return Streams({}, int(text))
    pairs = (part.split(":") for part in text.split(","))
    return Streams({int(rank): int(bits) for rank, bits in pairs}, 0)


def read_local_ranks(text: str) -> frozenset[int]:
    """The local ranks in `0,1,2`. Raises ValueError."""
    if not _RANKS.fullmatch(text):
        raise ValueError(f"must be local ranks such as 0,1,2, not {text!r}")
    return frozenset(map(int, text.split(",")))


class ConsoleRule(msgspec.Struct, frozen=True, kw_only=True):
    """The rule for what the console shows.

    A redirected stream is not shown, unless it is also teed. `local_ranks`: show only these; None
    for all. `tee`: False shows nothing.
    """

    tee: bool = True
    redirected: Streams = NO_STREAMS
    teed: Streams = NO_STREAMS
    local_ranks: frozenset[int] | None = None

    @property
    def needs_files(self) -> bool:
        """Whether a redirected stream is not shown, so that only a file can keep it."""
        named = (self.redirected, self.teed)
        return any(each.others or any(each.by_rank.values()) for each in named)

    def shows(self, local_rank: int, stream: int) -> bool:
        """Whether the console shows this stream (STDOUT or STDERR) of this worker."""
        if not self.tee or (self.local_ranks is not None and local_rank not in self.local_ranks):
            return False
        is_redirected = self.redirected.has(local_rank, stream)
        return not is_redirected or self.teed.has(local_rank, stream)


SHOW_ALL: Final = ConsoleRule()
