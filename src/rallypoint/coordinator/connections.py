"""The connections of one run: one for each attached node, and which nodes are silent.

Silence is detected here and not in the core, because a heartbeat is no event of the protocol. The
core gets an event when a node falls silent, and when it is heard again. It decides what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from rallypoint.coordinator.session import Session
from rallypoint.core import events as on
from rallypoint.core.membership import Membership
from rallypoint.core.reasons import Refusal
from rallypoint.core.values import NodeId, RoundMember
from rallypoint.core.witnesses import missed_after_s
from rallypoint.wire import messages as wire

LISTEN_MAX_S: Final = 60.0
"""Every session is checked at least this often, so that one that has ended is dropped soon."""


class Connections:
    """One for each attached node. `by_name` has them by the names of the nodes.

    `post` gives an event to the run. `listen` arranges a call of `check_silence` at a time on the
    clock `now_s`.
    """

    def __init__(
        self,
        membership: Membership,
        post: Callable[[on.Event], None],
        listen: Callable[[Session, float], None],
        now_s: Callable[[], float],
    ) -> None:
        self.by_name: dict[str, Session] = {}
        self._silent: dict[str, NodeId] = {}
        self._missed: dict[str, NodeId] = {}
        """Nodes of which two heartbeats are missing."""
        self._membership = membership
        self._post = post
        self._listen = listen
        self._now_s = now_s

    def __len__(self) -> int:
        return len(self.by_name)

    def close(self) -> None:
        """The run was forgotten here: give it no more events."""
        self._post = lambda event: None  # it refers to the run

    # -- connections by node -------------------------------------------------------------------

    def of(self, node: NodeId) -> Session | None:
        """The node's connection."""
        session = self.by_name.get(node.name)
        return session if session is not None and session.node == node else None

    def of_each(self, members: Iterable[RoundMember]) -> Iterator[Session | None]:
        """The connection of each member; None if it has none, or if another start of it attached.

        O(N), twice for each round, so it makes no call for each member.
        """
        sessions = self.by_name
        for member in members:
            session = sessions.get(member.name)
            node = session.node if session is not None else None
            is_it = node is not None and node.incarnation == member.incarnation
            yield session if is_it else None

    def add(self, session: Session, node: NodeId) -> None:
        """The node has attached with this connection, and counts as heard now."""
        session.node = node
        session.heard_s = self._now_s()
        self.by_name[node.name] = session
        self._listen_again(session, node)

    def remove(self, session: Session, name: str) -> bool:
        """The connection of this name has ended. Returns whether this session was the one."""
        if self.by_name.get(name) is not session:
            return False
        del self.by_name[name]
        self.forget(name)
        return True

    def forget(self, name: str) -> None:
        """The node is no member any more, whether it is connected or not."""
        self._silent.pop(name, None)
        self._missed.pop(name, None)

    def send_to(self, node: NodeId, message: wire.FromCoordinator) -> None:
        """Send a message to the node, if it is connected."""
        session = self.of(node)
        if session is not None:
            session.send(wire.encode(message))

    # -- all of them ---------------------------------------------------------------------------

    def send_to_all(self, payload: bytes) -> None:
        """Send one message to every node."""
        for session in list(self.by_name.values()):
            session.send(payload)

    def close_all(self, reason: str) -> None:
        """Close every connection."""
        for session in list(self.by_name.values()):
            session.close(reason)

    def send_away(self, refusal: Refusal) -> None:
        """Refuse the nodes that cannot read the ledger to find another coordinator."""
        for session in list(self.by_name.values()):
            if not session.reads_ledger:
                session.refuse(refusal)

    # -- silence -------------------------------------------------------------------------------

    def heard(self, session: Session, node: NodeId) -> None:
        """A message of the node has arrived. This is called for every message."""
        session.heard_s = self._now_s()
        is_missed = self._missed and node.name in self._missed
        if is_missed or (self._silent and node.name in self._silent):
            self._listen_again(session, node)

    def check_silence(self, session: Session, now_s: float) -> None:
        """Tell the core if this node was not heard for `suspect_after_s`.

        Each session is checked about once in that time, no matter how often it is heard.
        """
        node, settings = session.node, self._membership.settings
        if settings is None or node is None or self.by_name.get(node.name) is not session:
            return
        if session.input_turns.are_due:
            # R8: the node is not silent, as its input waits in this process.
            session.heard_s = now_s
        if session.heard_s + settings.suspect_after_s <= now_s:
            self._silent[node.name] = node
            self._post(on.NodeSilent(node, now_s - session.heard_s))
            return
        is_new = node.name not in self._missed and self._asks_witnesses
        if is_new and session.heard_s + missed_after_s(settings.suspect_after_s) <= now_s:
            self._missed[node.name] = node
            self._post(on.BeatsMissed(node, now_s - session.heard_s))
        self._listen_until(session, now_s)

    @property
    def _asks_witnesses(self) -> bool:
        return self._membership.witnesses.watching.has_witnesses

    def _listen_again(self, session: Session, node: NodeId) -> None:
        was_missed = self._missed.pop(node.name, None) is not None
        if self._silent.pop(node.name, None) is not None or was_missed:
            self._post(on.NodeHeard(node))
        self._listen_until(session, session.heard_s)

    def _listen_until(self, session: Session, now_s: float) -> None:
        settings = self._membership.settings
        if settings is not None:
            due_s = session.heard_s + settings.suspect_after_s
            if self._asks_witnesses and session.node and session.node.name not in self._missed:
                due_s = session.heard_s + missed_after_s(settings.suspect_after_s)
            self._listen(session, min(due_s, now_s + LISTEN_MAX_S))

    def hears(self, name: str) -> bool:
        """Whether a node of this name is attached and not silent. O(1)."""
        return name in self.by_name and name not in self._silent

    def hears_another_than(self, name: str) -> bool:
        """Whether a node of another name is attached and not silent. O(1)."""
        return len(self.by_name) - len(self._silent) > self.hears(name)
