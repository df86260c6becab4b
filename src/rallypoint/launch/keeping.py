"""Which workers of a round keep their process for the next one (`--keep-workers`). Pure.

    joined ──▶ the round ends ──▶ asks for the next world in time: kept
      │                      └──▶ does not: stopped, and its place is started anew
      └ never joined: stopped at once, as without --keep-workers

This is a part of the agent's machine, and has the same form. A worker that has asked for the next
world has left its round: it makes no call of that round any more (R4), so a worker that is kept is
to the next round what one that was stopped and started would be (R13).
"""

from __future__ import annotations

from collections.abc import Iterable


class Keeping:
    """See above. All `now_s` are from one monotonic clock, in seconds.

    `unwind_s`: how many seconds a worker has, from the end of its round, to ask for the next world;
    None: no worker is kept. `explain_s`: how long one that has told an error waits for the cause.
    """

    def __init__(self, unwind_s: float | None, explain_s: float = 0.0) -> None:
        self.ends_s: float | None = None
        """When the present wait for the workers ends; None: there is none."""
        self._unwind_s = unwind_s
        self._explain_s = explain_s
        self._cause_ends_s = 0.0
        self._knows_cause = False
        self._joined: dict[int, None] = {}
        self._asked: dict[int, None] = {}
        self._raised: dict[int, None] = {}
        self._parted: dict[int, None] = {}
        self._has_said = False

    @property
    def is_on(self) -> bool:
        """Whether workers are kept at all."""
        return self._unwind_s is not None

    @property
    def unwind_s(self) -> float:
        """The time to ask for the next world, in seconds; 0 if no worker is kept."""
        return self._unwind_s or 0.0

    @property
    def has_joined(self) -> bool:
        """Whether a worker of this round has called `join`, and has not closed it again."""
        return bool(self._joined)

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, without times."""
        dicts = (self._joined, self._asked, self._raised, self._parted)
        flags = (self._unwind_s is None, self._has_said, self.ends_s is None, self._knows_cause)
        return (*flags, *map(tuple, dicts))

    def begin_round(self, kept: Iterable[int]) -> None:
        """A round begins, in which these local ranks have the processes of the last one."""
        self._joined = dict.fromkeys(kept)
        self._asked, self._raised, self._parted = {}, {}, {}
        self.ends_s, self._knows_cause = None, False

    def joined(self, local_rank: int) -> None:
        """The worker has called `join`."""
        self._joined[local_rank] = None
        self._parted.pop(local_rank, None)

    def parted(self, local_rank: int) -> None:
        """The worker has closed its connection, so it cannot be told of a next world."""
        if local_rank in self._joined:
            self._parted[local_rank] = None
        self._joined.pop(local_rank, None)
        self._asked.pop(local_rank, None)

    def asked(self, local_rank: int) -> None:
        """The worker has left its round, and asks for the next world."""
        if local_rank in self._joined:
            self._asked[local_rank] = None

    def raised(self, local_rank: int) -> None:
        """The worker has told its error, and waits for the cause."""
        self._raised[local_rank] = None

    def unaware(self, running: tuple[int, ...]) -> tuple[int, ...]:
        """Those of whose part in the end of the round nothing is known yet."""
        return tuple(
            each for each in running if each not in self._raised and each not in self._asked
        )

    def ending(self, running: tuple[int, ...]) -> tuple[int, ...]:
        """Those that have closed their connection: their program is about to end."""
        return tuple(each for each in running if each in self._parted)

    def kept(self, running: tuple[int, ...]) -> tuple[int, ...]:
        """Those that have asked for the next world."""
        return tuple(each for each in running if each in self._asked)

    def late(self, running: tuple[int, ...]) -> tuple[int, ...]:
        """Those that may still ask for it."""
        return tuple(each for each in running if each in self._joined and each not in self._asked)

    def begin_wait(self, running: tuple[int, ...], now_s: float) -> tuple[int, ...]:
        """The round is over for this node. Returns the workers that have not joined.

        Only the first time: later ones are no news.
        """
        self.ends_s = now_s + self.unwind_s
        self._cause_ends_s = self.ends_s + self._explain_s
        known = self._joined.keys() | self._parted.keys()
        strangers = tuple(each for each in running if each not in known)
        if not strangers or self._has_said:
            return ()
        self._has_said = True
        return strangers

    def wait_ends_s(self, late: tuple[int, ...], now_s: float, *, knows_cause: bool) -> float:
        """When the wait for these workers ends.

        One that has told an error waits for the confirmed cause, which may take the coordinator
        some seconds. Its time begins then.
        """
        assert self.ends_s is not None
        if not any(each in self._raised for each in late):
            return self.ends_s
        if not knows_cause:
            return self._cause_ends_s
        if not self._knows_cause:
            self._knows_cause = True
            self.ends_s = max(self.ends_s, now_s + self.unwind_s)
        return self.ends_s
