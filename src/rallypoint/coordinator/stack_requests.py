"""Questions to the nodes of a run where their workers stand, and their answers.

The core asks when no worker advances, and people ask at any time. The texts of one question are
bounded in all, however many nodes there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from rallypoint.coordinator.connections import Connections
from rallypoint.core import events as on
from rallypoint.core.membership import Membership
from rallypoint.core.printable import escaped
from rallypoint.core.reasons import tidy
from rallypoint.core.stacks import PLACE_CHARACTERS_MAX, Stacks, WorkerStack
from rallypoint.core.values import NodeId, Stamp
from rallypoint.wire import messages as wire

TEXTS_BYTES_MAX: Final = 16 * 1024**2
"""The most bytes of all texts that answer one question."""
NODE_BYTES_MIN: Final = 1_024
NODE_BYTES_MAX: Final = 512 * 1024


class Question(msgspec.Struct):
    """One question of a person. `told`: the answers so far, by the names of the nodes.

    `waits_for`: the nodes that were asked and have not answered. `cannot`: those of an earlier
    release, which cannot be asked. `is_answered` is set when all have answered.
    """

    waits_for: dict[str, None]
    cannot: tuple[str, ...]
    told: dict[str, Stacks]
    is_answered: asyncio.Event


class StackRequests:
    """The open questions of one run. Ids of the core are positive, those of people negative."""

    def __init__(
        self,
        membership: Membership,
        connections: Connections,
        post: Callable[[on.Event], None],
    ) -> None:
        self._membership = membership
        self._connections = connections
        self._post = post
        self._open: dict[int, Question] = {}
        self._last_id = 0

    def ask_round(self, stamp: Stamp, serial: int) -> None:
        """The core asks the members of the present round."""
        record = self._membership.round
        names = [member.name for member in record.members] if record is not None else []
        self._ask(stamp, serial, names)

    def ask(self, stamp: Stamp, names: Iterable[str]) -> tuple[int, Question]:
        """A person asks these nodes. Close the question with `close`."""
        self._last_id -= 1
        asked, cannot = self._ask(stamp, self._last_id, list(names))
        question = Question(dict.fromkeys(asked), tuple(cannot), {}, asyncio.Event())
        self._open[self._last_id] = question
        return self._last_id, question

    def close(self, request_id: int) -> None:
        """Nobody waits for these answers any more. Idempotent."""
        self._open.pop(request_id, None)

    def forgotten(self) -> None:
        """The run was forgotten here: give it no more events."""
        self._post = lambda event: None  # it refers to the run

    def _ask(self, stamp: Stamp, request_id: int, names: list[str]) -> tuple[list[str], list[str]]:
        """Ask the nodes that are connected. Returns those that were asked, and the others."""
        asked, cannot = list[str](), list[str]()
        share = min(max(TEXTS_BYTES_MAX // max(1, len(names)), NODE_BYTES_MIN), NODE_BYTES_MAX)
        payload = wire.encode(wire.AskStacks(stamp, request_id, share))
        for name in names:
            session = self._connections.by_name.get(name)
            if session is not None and session.tells_stacks:
                session.send(payload)
                asked.append(name)
            else:
                cannot.append(name)
        return asked, cannot

    def told(self, node: NodeId, message: wire.StacksTold) -> None:
        """A node has answered."""
        request_id = message.request_id
        # The texts are read only if they answer a question: a node may send any number of them.
        if request_id > 0:
            asking = self._membership.progress
            if asking.is_asking and request_id == asking.serial:
                is_new = node.name in asking.unanswered
                stacks = _tidied(message.stacks) if is_new else ()
                self._post(on.StacksTold(node, request_id, message.progress, stacks))
            return
        question = self._open.get(request_id)
        if question is not None and node.name in question.waits_for:
            del question.waits_for[node.name]
            question.told[node.name] = _tidied(message.stacks)
            if not question.waits_for:
                question.is_answered.set()


def _tidied(stacks: Stacks) -> Stacks:
    """The texts of a node as they are kept and shown: bounded in all, and each line escaped.

    A node may send more than it was asked for.
    """
    left = NODE_BYTES_MAX
    found: list[WorkerStack] = []
    for each in stacks:
        found.append(_tidy(each, left))
        left = max(0, left - len(found[-1].text))
    return tuple(found)


def _tidy(each: WorkerStack, characters_max: int) -> WorkerStack:
    lines = "\n".join(each.text[:characters_max].splitlines())
    return msgspec.structs.replace(
        each,
        state=tidy(each.state, PLACE_CHARACTERS_MAX),
        place=tidy(each.place, PLACE_CHARACTERS_MAX),
        source=tidy(each.source, PLACE_CHARACTERS_MAX),
        text=escaped(lines.expandtabs()[:characters_max], lines=True)[:characters_max],
    )
