"""The agent's own lines on stderr. No call waits for the console.

This file must not handle the workers' output. The texts are in agent_messages.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from rallypoint.client.waiting import Why
from rallypoint.core.telling import Lines
from rallypoint.launch import agent_messages


class AgentLog:
    """The lines of one agent, each with its node's name. For the thread of its event loop.

    `write`: writes a line without waiting.
    """

    def __init__(self, name: str, write: Callable[[str], None]) -> None:
        self._name = name
        self._write = write
        self._waits = Lines()

    def say(self, text: str) -> None:
        """Write a message of the agent."""
        self._write(agent_messages.shown(f"[{self._name}] {text}"))

    def waits(self, why: Why) -> None:
        """Write why the node waits, unless it was just written."""
        if self._waits.is_due(why.reason, asyncio.get_running_loop().time()):
            self.say(why.text)

    def has_met(self) -> None:
        """A round has begun: every reason of the next wait is new."""
        self._waits.forget()

    @contextlib.contextmanager
    def with_loggers(self) -> Iterator[None]:
        """Write the records of all loggers here, too, as a handler of their own could block."""
        handler, root = _SayingHandler(self.say), logging.getLogger()
        client = logging.getLogger("rallypoint.client")
        level = client.level
        root.addHandler(handler)
        client.setLevel(logging.INFO)
        try:
            yield
        finally:
            client.setLevel(level)
            root.removeHandler(handler)


class _SayingHandler(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self._say(f"{level}{self.format(record)}")
