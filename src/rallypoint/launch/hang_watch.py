"""The progress of this node's workers: what they report, what their output shows, where they stand.

It tells the node when a worker advances, warns of a rule that never fits, and finds the stacks when
the coordinator asks for them. The coordinator decides whether a round hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from rallypoint import runtime
from rallypoint.client.node import Node, Round
from rallypoint.client.stack_dump import FILE_PREFIX
from rallypoint.core.stacks import WorkerStack
from rallypoint.launch.progress_rule import SEARCH_S, OutputReader
from rallypoint.launch.worker_stacks import Asked, Dump
from rallypoint.settings import HangRule

_log = logging.getLogger("rallypoint.launch")

WARN_AFTER_S: Final = 180.0
"""After this time without any progress a warning says what the rule looks at; or after half of the
timeout, if that is less."""
FILE_LOOK_S: Final = 1.0


class HangWatch:
    """One agent's. All methods are for the agent's event loop, but `seen`.

    `rule`: what shows progress besides the workers' own reports; None: nothing. `say` writes a line
    of the agent. `pids`: of the present round's workers, by their local ranks. `find` finds out
    where workers stand, with so many bytes of texts.
    """

    def __init__(
        self,
        node: Node,
        rule: HangRule | None,
        say: Callable[[str], None],
        pids: Callable[[], Mapping[int, int]],
        find: Callable[[list[Asked], int], Awaitable[tuple[WorkerStack, ...]]],
    ) -> None:
        self._node = node
        self._rule = rule
        self._say = say
        self._pids = pids
        self._find = find
        timeout_s = node.settings.hang_timeout_s
        self._warn_after_s = min(WARN_AFTER_S, WARN_AFTER_S if timeout_s is None else timeout_s / 2)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._round: Round | None = None
        self._folder: Path | None = None
        self._steps: dict[int, int] = {}
        self._dumps: dict[int, Dump] = {}
        self._readers: dict[int, OutputReader] = {}
        self._pending: set[int] = set()
        """The workers whose output is to be looked at in the loop."""
        self._warning: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._has_advanced = False
        """Whether a worker of this node has ever advanced."""
        self._has_warned = False
        self._has_given_up = False
        self._told_back: dict[int, None] = {}
        if rule is not None and rule.is_output:
            node.watch_from_start()

    # -- rounds ----------------------------------------------------------------------------------

    def begin_round(self, found: Round, folder: Path | None) -> None:
        """The workers of this round start. `folder`: for the files of their stacks."""
        self.end_round()
        self._loop = asyncio.get_running_loop()
        self._round, self._folder = found, folder
        if self._rule is not None:
            rule = self._rule
            self._readers = {each: OutputReader(rule) for each in range(found.seat.workers)}
            if not (self._has_advanced or self._has_warned):
                self._warning = self._loop.call_later(self._warn_after_s, self._warn)
            if rule.path:
                self._looking = runtime.spawn(self._look_at_file(rule.path), _look_failed)

    def end_round(self) -> None:
        """The workers have ended. Idempotent."""
        if self._warning is not None:
            self._warning.cancel()
        if self._looking is not None:
            self._looking.cancel()
        self._warning = self._looking = None
        self._round = None
        self._steps.clear()
        self._dumps.clear()
        self._told_back.clear()
        self._readers = {}

    # -- progress --------------------------------------------------------------------------------

    def progressed(self, local_rank: int, step: int) -> None:
        """A worker has reported a step by itself. One that does not grow is no progress."""
        last = self._steps.get(local_rank)
        if self._round is None or (last is not None and step <= last):
            if last is not None and step < last:
                self._step_went_back(local_rank, step, last)
            return
        self._steps[local_rank] = step
        self._advance(step)

    def _advance(self, step: int | None) -> None:
        self._has_advanced = True
        self._node.advanced(step)

    def _step_went_back(self, local_rank: int, step: int, last: int) -> None:
        if self._round is None or local_rank in self._told_back:
            return
        self._told_back[local_rank] = None
        rank = self._round.seat.first_rank + local_rank
        self._say(
            f"warning: rank {rank}: step {step} after step {last} is no progress: a step must grow "
            "within a round"
        )

    def seen(self, local_rank: int, stream: int, data: bytes) -> None:
        """A worker has written this. Called from the thread that reads the output."""
        reader, loop = self._readers.get(local_rank), self._loop
        if reader is None or loop is None or self._rule is None or self._rule.path:
            return
        has_advanced = reader.feed(stream, data)
        is_odd = reader.went_back is not None or bool(reader.not_a_number or reader.too_slow)
        if not (has_advanced or is_odd) or local_rank in self._pending:
            return
        self._pending.add(local_rank)
        # The agent's loop may have ended.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._take_seen, local_rank, reader, has_advanced)

    def _take_seen(self, local_rank: int, reader: OutputReader, has_advanced: bool) -> None:
        self._pending.discard(local_rank)
        if self._readers.get(local_rank) is not reader or self._round is None:
            return
        if reader.went_back is not None:
            self._step_went_back(local_rank, *reader.went_back)
        if reader.not_a_number and not self._has_warned:
            self._has_warned = True
            self._say(
                f"warning: --hang: the group of the pattern matches {reader.not_a_number!r}, which "
                "is no number, so that is no progress"
            )
        if reader.too_slow and not self._has_given_up:
            self._has_given_up = True
            self._say(
                f"warning: --hang: the pattern takes more than {SEARCH_S:g} s for lines such as "
                f"{reader.too_slow!r}, so any output of that worker counts as progress from now "
                "on"
            )
        step, last = reader.step, self._steps.get(local_rank)
        if step is None or reader.too_slow:
            if has_advanced:
                self._advance(None)
        elif last is None or step > last:
            self._steps[local_rank] = step
            self._advance(step)

    async def _look_at_file(self, path: str) -> None:
        """Look again and again whether the file has changed. Its file system may hang."""
        before = await asyncio.to_thread(_state_of, path)
        while True:
            await asyncio.sleep(FILE_LOOK_S)
            now = await asyncio.to_thread(_state_of, path)
            if now is not None and now != before:
                self._advance(None)
            before = now

    def _warn(self) -> None:
        """The rule has fitted nothing so far: say so once, with what there was."""
        rule = self._rule
        if self._has_advanced or self._has_warned or rule is None:
            return
        self._has_warned = True
        self._say(f"warning: {_nothing_fits(rule, self._readers, self._warn_after_s)}")

    # -- stacks ----------------------------------------------------------------------------------

    def stacks_file(self, local_rank: int) -> str:
        """Where a worker of the present round writes its stacks; "" for nowhere."""
        if self._folder is None or self._round is None:
            return ""
        return str(self._folder / f"{FILE_PREFIX}{self._round.head.number}-{local_rank}.txt")

    def dumps_stacks(self, local_rank: int, pid: int, number: int) -> None:
        """A worker writes its stacks at this signal."""
        path = self.stacks_file(local_rank)
        if path:
            self._dumps[local_rank] = Dump(pid, number, Path(path))

    async def stacks(self, bytes_max: int) -> tuple[WorkerStack, ...]:
        """Where the workers of the present round stand."""
        found = self._round
        if found is None:
            return ()
        workers = [
            Asked(
                found.seat.first_rank + local_rank,
                local_rank,
                pid,
                self._dumps.get(local_rank),
                self._steps.get(local_rank),
            )
            for local_rank, pid in sorted(self._pids().items())
        ]
        stacks = await self._find(workers, bytes_max)
        if self._node.settings.share_lines > 0:
            return stacks
        # As for its output: only where it stands leaves this node.
        return tuple(msgspec.structs.replace(each, text="") for each in stacks)


def _look_failed(error: BaseException) -> None:
    _log.error("the file of --hang cannot be looked at", exc_info=error)


def _state_of(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _nothing_fits(rule: HangRule, readers: Mapping[int, OutputReader], after_s: float) -> str:
    when = f"for {after_s:.0f} s"
    if rule.path:
        return f"--hang: {rule.path!r} has not changed {when}, so no progress is seen"
    if rule.is_output:
        return f"--hang: the workers have written nothing {when}"
    lines = [line for reader in readers.values() for line in reader.last_lines]
    if not lines:
        return f"--hang: the workers have written no line {when}, so no progress is seen"
    shown = "; ".join(repr(line) for line in lines[-3:])
    return (
        f"--hang: no line of the workers' output has matched {rule.pattern!r} {when}, so no "
        f"progress is seen, and a hang would not be; the last lines: {shown}"
    )
