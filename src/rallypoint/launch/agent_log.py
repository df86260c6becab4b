"""The agent's own lines: on stderr, and in its file. No call waits for either.

This file must not handle the workers' output. The texts are in agent_messages.py, and the form of
the lines in logs.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from rallypoint import logs, runtime
from rallypoint.client.waiting import Why
from rallypoint.core.telling import Lines
from rallypoint.launch import agent_messages

LOGGER: Final = "rallypoint.agent"
"""The name of the logger in the records of the agent's own lines."""
LARGE: Final = 100
"""With more nodes, lines that all of them would write are shown by few."""
SPEAKERS: Final = 10
"""How many nodes of a large run show why they wait, on average. Which ones is random."""
COORDINATORS_OWN: Final = frozenset({"suspended", "deposed", "held_back"})
"""The events of a run that only the coordinator in this node says, and not its agent."""
HELD_MAX: Final = 1_000
"""How many lines wait until the folder of the files has been tested."""
_LEVELS: Final = {"warning: ": logging.WARNING, "error: ": logging.ERROR}


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent writes. `is_json`: each line is an object of docs/logs.md.

    `level`: the lowest level on stderr. The file has INFO as well, if that is higher.
    """

    is_json: bool = False
    level: int = logging.INFO

    @property
    def is_verbose(self) -> bool:
        """Whether records for developers are wanted, too."""
        return self.level < logging.INFO


class AgentLog:
    """The lines of one agent. For the thread of its event loop.

    `write` and `keep` write a line to stderr and to the agent's file, without waiting; `keep` None:
    there is no file. `nodes_max`: of the run. `hosts`: whether this node hosts the run now.
    """

    def __init__(
        self,
        place: logs.Place,
        write: Callable[[str], None],
        *,
        keep: Callable[[str], None] | None = None,
        options: LogOptions | None = None,
        nodes_max: int = 1,
        is_connected: Callable[[], bool] = lambda: True,
        hosts: Callable[[], bool] = lambda: False,
    ) -> None:
        self._place = place
        self._write = write
        self._keep = keep
        self._options = options or LogOptions()
        self._nodes_max = nodes_max
        self._is_connected = is_connected
        self._hosts = hosts
        self._waits = Lines()
        self._held: list[str] | None = []
        """The lines for the file, until `may_keep`; None from then on."""
        self._form = logs.JsonFormatter() if self._options.is_json else logs.TextFormatter()
        self._is_quiet_in_round = False
        self._speaks = True
        if nodes_max > LARGE:
            self._speaks = runtime.here().chance.random() < SPEAKERS / nodes_max

    def say(self, text: str, *, is_common: bool = False, is_trouble: bool = False) -> None:
        """Write a message of the agent. `is_common`, `is_trouble`: see agent_actions.Say."""
        begins = next((each for each in _LEVELS if text.startswith(each)), "")
        level = _LEVELS.get(begins, logging.ERROR if is_trouble else logging.INFO)
        told = agent_messages.shown(text.removeprefix(begins))
        record = logging.LogRecord(LOGGER, level, "", 0, told, None, None)
        self._take(record, text, is_shown=not (is_common and self._is_quiet_in_round))

    def waits(self, why: Why) -> None:
        """Write why the node waits, unless it was just written."""
        if self._waits.is_due(why.reason, asyncio.get_running_loop().time()):
            record = logging.LogRecord(LOGGER, logging.INFO, "", 0, why.text, None, None)
            # A node that has no coordinator may be the only one with this trouble.
            speaks = self._speaks or self._hosts() or not self._is_connected()
            self._take(record, why.text, is_shown=speaks)

    def fails(self, error: Exception) -> None:
        """Keep the error that ends the agent in its file. The command prints it."""
        if self._keep is not None and self._held is None:
            record = logging.LogRecord(LOGGER, logging.ERROR, "", 0, "%s", (str(error),), None)
            logs.locate(record, self._place)
            self._keep(self._form.format(record))

    def has_met(self, nodes: int = 1, node_rank: int = 0) -> None:
        """A round of so many nodes has begun: every reason of the next wait is new."""
        self._waits.forget()
        self._is_quiet_in_round = nodes > LARGE and node_rank > 0

    def may_keep(self) -> None:
        """The folder of the files has been tested: write what was held back."""
        held, self._held = self._held, None
        if self._keep is not None:
            for line in held or ():
                self._keep(line)

    @contextlib.contextmanager
    def with_loggers(self) -> Iterator[None]:
        """Write the records of all loggers here, too, as a handler of their own could block."""
        handler, root = _SayingHandler(self._take_record), logging.getLogger()
        changed = [logging.getLogger(name) for name in ("rallypoint", "rallypoint.client")]
        levels = [each.level for each in changed]
        root.addHandler(handler)
        wanted = min(self._options.level, logging.INFO)
        changed[1].setLevel(wanted)
        if self._keep is not None or self._options.is_verbose:
            changed[0].setLevel(wanted)
        try:
            yield
        finally:
            for logger, level in zip(changed, levels, strict=True):
                logger.setLevel(level)
            root.removeHandler(handler)

    def _take_record(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        trace = f"\n{record.exc_text}" if record.exc_text else ""
        # What the coordinator inside this node does is for its file, or with -v.
        is_minor = record.levelno < logging.WARNING or _is_said_anyway(record)
        is_detail = is_minor and not record.name.endswith(".client")
        text = f"{level}{record.getMessage()}{trace}"
        self._take(record, text, is_shown=not is_detail or self._options.is_verbose)

    def _take(self, record: logging.LogRecord, text: str, *, is_shown: bool) -> None:
        logs.locate(record, self._place)
        line = ""
        if self._keep is not None:
            line = self._form.format(record)
            if self._held is None:
                self._keep(line)
            elif len(self._held) < HELD_MAX:
                self._held.append(line)
        is_asked_for = is_shown or self._options.is_verbose
        if record.levelno < self._options.level or not is_asked_for:
            return
        if self._options.is_json:
            self._write(line or self._form.format(record))
        else:
            self._write(agent_messages.shown(f"[{self._place.node}] {text}"))


def _is_said_anyway(record: logging.LogRecord) -> bool:
    """Whether the agent says itself what the coordinator in this node says of the run."""
    event = getattr(record, "event", None)
    return event is not None and event not in COORDINATORS_OWN


class _SayingHandler(logging.Handler):
    def __init__(self, take: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.DEBUG)
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.INFO or record.name.startswith("rallypoint"):
            if record.exc_info and not record.exc_text:
                self.format(record)
            self._take(record)
