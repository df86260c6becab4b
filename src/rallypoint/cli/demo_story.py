"""The texts of `rallypoint demo`, made from the coordinator's answers and the nodes' output.

This file must not use I/O or a clock: the same answers always make the same story. Times are in
seconds of the wall clock, like the coordinator's. Both are on one machine, and the times are only
shown (R9).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

_EPOCH: Final = re.compile(r"epoch (\d+) of (\d+): loss ([\d.]+)")
_GOES_ON: Final = re.compile(r"round (\d+): \d+ workers go on from epoch (\d+) of (\d+)")
_ACCURACY: Final = re.compile(r"test accuracy ([\d.]+)")
_EPOCHS_BETWEEN_LINES: Final = 5


class Event(msgspec.Struct, frozen=True):
    """One sentence of the story. `kind`: its subject, which gives its colour."""

    at_s: float
    text: str
    kind: str = ""


class Kill(msgspec.Struct):
    """The kill of a node, and the times of what followed.

    Wall-clock seconds; None: it has not happened yet.
    """

    node: str
    at_s: float
    round: int
    noticed_s: float | None = None
    proof: str = ""
    """The coordinator's reason for the loss."""
    formed_s: float | None = None
    trained_s: float | None = None


class NodeRow(msgspec.Struct, frozen=True):
    """One node as a row of the table."""

    name: str
    state: str
    node_rank: int | None
    ranks: tuple[int, ...]


class Story:
    """One demo's story so far."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.kill: Kill | None = None
        self.rounds: list[Mapping[str, Any]] = []
        self.phase = "starting"
        self.epoch = 0
        self.epochs = 0
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.resumed_round = 0
        self._members: dict[str, Mapping[str, Any]] = {}
        self._started: dict[str, str] = {}
        self._formed: set[int] = set()
        self._ended: set[int] = set()

    @property
    def round(self) -> int:
        """The number of the last round; 0 before the first."""
        return self.rounds[-1]["number"] if self.rounds else 0

    def say(self, at_s: float, text: str, kind: str = "") -> None:
        """Add a sentence."""
        self.events.append(Event(at_s, text, kind))

    def started(self, name: str) -> None:
        """A node's agent was started."""
        self._started[name] = "starting"

    def killed(self, name: str, at_s: float, says: str) -> None:
        """A node's agent was killed."""
        self._started[name] = "killed"
        self.kill = Kill(name, at_s, self.round)
        self.say(at_s, says, "loss")

    @property
    def doing(self) -> str:
        """The state of the run, in few words."""
        if self.phase == "active":
            return "training" if self.resumed_round == self.round else "workers are starting"
        return self.phase

    def nodes(self) -> list[NodeRow]:
        """The table of nodes, in the order of their start."""
        return [self._row(name, state) for name, state in self._started.items()]

    def _row(self, name: str, state: str) -> NodeRow:
        member = self._members.get(name)
        if member is None:
            return NodeRow(name, state, None, ())
        shown = "killed, not noticed yet" if state == "killed" else str(member["state"])
        return NodeRow(name, shown, member["node_rank"], tuple(member["ranks"]))

    # -- the output of agents and workers ------------------------------------------------------

    def take_line(self, line: str, at_s: float) -> None:
        """Take a line of an agent or a worker. Most lines add nothing to the story."""
        if found := _EPOCH.search(line):
            self.epoch, self.epochs, self.loss = int(found[1]), int(found[2]), float(found[3])
            if self.epoch % _EPOCHS_BETWEEN_LINES == 0:
                self.say(at_s, f"epoch {self.epoch} of {self.epochs}, loss {self.loss:.3f}")
        elif found := _GOES_ON.search(line):
            self._goes_on(int(found[1]), int(found[2]), int(found[3]), at_s)
        elif found := _ACCURACY.search(line):
            self.accuracy = float(found[1])

    def _goes_on(self, number: int, epoch: int, epochs: int, at_s: float) -> None:
        self.resumed_round, self.epoch, self.epochs = number, epoch, epochs
        if self.kill is not None and self.kill.trained_s is None and number > self.kill.round:
            self.kill.trained_s = at_s
        if epoch:
            self.say(at_s, f"training continues from the checkpoint of epoch {epoch}", "round")
        else:
            self.say(at_s, "training begins")

    # -- the coordinator's answers -------------------------------------------------------------

    def take_status(self, status: Mapping[str, Any]) -> None:
        """Take an answer of the coordinator about the run."""
        self.phase = status["phase"]
        self.rounds = status["rounds"]
        self._members = {member["name"]: member for member in status["members"]}
        for name, state in self._started.items():
            if state == "starting" and name in self._members:
                self._started[name] = (
                    "ended"  # Shown when the coordinator does not list it any more.
                )
        for before, each in zip([None, *self.rounds], self.rounds, strict=False):
            number = each["number"]
            if each["published"] and number not in self._formed:
                self._formed.add(number)
                self._tell_formed(before, each)
            if each["ended"] and number not in self._ended:
                self._ended.add(number)
                self._tell_ended(each)

    def _tell_formed(self, before: Mapping[str, Any] | None, each: Mapping[str, Any]) -> None:
        at_s = formed_s(each)
        if self.kill is not None and self.kill.formed_s is None and before is not None:
            self.kill.formed_s = at_s
        if before is None:
            ranks = f"{in_words(each['members'])} have ranks 0 to {each['size'] - 1}"
            self.say(at_s, f"round 1 formed with {each['nodes']} nodes: {ranks}", "round")
            return
        self.say(at_s - each["committing_s"], _ready_again(before, each))
        moves = _moves(before["members"], each["members"])
        text = f"round {each['number']} formed with {each['nodes']} nodes: {moves}"
        self.say(at_s, text, "round")

    def _tell_ended(self, each: Mapping[str, Any]) -> None:
        at_s, kill = ended_s(each), self.kill
        if kill is not None and kill.noticed_s is None and _is_loss_of(kill.node, each):
            kill.noticed_s, kill.proof = at_s, each["change"]["detail"]
            self.say(
                at_s,
                f"noticed after {at_s - kill.at_s:.2f} s: {each['ended']}",
                "loss",
            )
        elif each["change"] is not None:
            self.say(at_s, f"round {each['number']} ends: {each['ended']}", "round")


# -- reading a round -----------------------------------------------------------------------------


def formed_s(each: Mapping[str, Any]) -> float:
    """When the round began, in seconds of the wall clock."""
    return float(each["formed_at"]) + float(each["committing_s"])


def ended_s(each: Mapping[str, Any]) -> float:
    """When it ended; if it has not, when it began."""
    return float(each["ended_at"] or formed_s(each))


def in_words(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _is_loss_of(node: str, each: Mapping[str, Any]) -> bool:
    change = each["change"]
    return change is not None and change["kind"] == "node_lost" and node in change["nodes"]


def _ready_again(before: Mapping[str, Any], each: Mapping[str, Any]) -> str:
    survivors = [name for name in before["members"] if name in each["members"]]
    return (
        f"{in_words(survivors)} have stopped their workers and are ready again after "
        f"{each['gathering_s']:.2f} s; their agents kept running"
    )


def _moves(before: Sequence[str], after: Sequence[str]) -> str:
    """The nodes that keep their rank, change it, or are new. Every node has one worker here."""
    ranks = {name: rank for rank, name in enumerate(before)}
    kept = [name for rank, name in enumerate(after) if ranks.get(name) == rank]
    parts = [f"{in_words(kept)} keep their ranks"] if kept else []
    for rank, name in enumerate(after):
        if name not in ranks:
            parts.append(f"{name} is new and has rank {rank}")
        elif ranks[name] != rank:
            parts.append(f"{name} moves from rank {ranks[name]} to {rank}")
    return ", ".join(parts)
