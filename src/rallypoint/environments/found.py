"""What a launcher's variables say: values of settings with their origins, problems, warnings."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import msgspec

from rallypoint.core.printable import shortened
from rallypoint.core.values import FrozenStruct

Environ = Mapping[str, str]
Files = Callable[[str], str | None]
"""Reads a small text file of this machine; None if it cannot be read."""

_TEXT_SHOWN: Final = 120
_ID_PART_LENGTH_MAX: Final = 100
NUMBER_MAX: Final = 10_000_000


class Value(FrozenStruct, frozen=True):
    """A setting's value as a user would write it, and the variables that it comes from."""

    text: str
    origin: str
    launcher: str

    @property
    def source(self) -> str:
        return f"launcher {self.launcher}: {self.origin}"


class Problem(FrozenStruct, frozen=True):
    """Why a value cannot be had from the launcher. Raised as an error when the value is needed."""

    message: str
    hint: str
    launcher: str = ""

    @property
    def source(self) -> str:
        return f"launcher {self.launcher}" if self.launcher else "environment"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher of this process says.

    `launcher`: its name; "" if there is none. `values` and `problems`: by the settings' names. A
    setting with a value has no problem. `labels`: by their names. `warnings`: for the user.
    `nodes`: how many nodes the launcher has started; 0 if that is not known. `crowded`: raised if
    this node has more than one worker, because the launcher has started several nodes on one host.
    `ends_at_s`: when the launcher ends the job, as Unix time; None if that is not known.
    `is_id_of_endpoint`: the run's id is only good for the coordinator at the endpoint, which has no
    other run.
    """

    launcher: str = ""
    values: dict[str, Value] = {}
    problems: dict[str, Problem] = {}
    labels: dict[str, Value] = {}
    warnings: tuple[str, ...] = ()
    nodes: int = 0
    crowded: Problem | None = None
    ends_at_s: float | None = None
    is_id_of_endpoint: bool = False

    def without(self, names: Collection[str]) -> Found:
        """The same, without these settings."""
        return msgspec.structs.replace(
            self,
            values={name: each for name, each in self.values.items() if name not in names},
            problems={name: each for name, each in self.problems.items() if name not in names},
        )


NOTHING: Final = Found()
OVERRIDES: Final = (
    "give --nnodes, --endpoint and --run-id on every node (RALLYPOINT_NNODES, RALLYPOINT_ENDPOINT, "
    "RALLYPOINT_RUN_ID); or --nnodes 1 if this process is to run alone"
)
PLACE: Final = ("nnodes", "endpoint", "run_id")
"""The settings without which nodes cannot meet."""


class BadVariablesError(Exception):
    """Variables of a launcher cannot be read, or contradict each other. Becomes a Problem.

    `hint`: what to do, if there is better advice than to unset the launcher's variables. It goes
    on with how to override them.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Variables:
    """The variables of one launcher. Its methods raise BadVariablesError."""

    def __init__(self, launcher: str, environ: Environ) -> None:
        self.launcher = launcher
        self.environ = environ

    def text(self, name: str) -> str:
        """The variable's text without space at its ends; "" if it is not set."""
        return self.environ.get(name, "").strip()

    def has(self, name: str) -> bool:
        """Whether the variable is set, perhaps to nothing."""
        return name in self.environ

    def id_part(self, name: str) -> str:
        """The variable's text as a part of a run id: only with characters that one may have."""
        return re.sub(r"[^A-Za-z0-9_.@-]", "-", self.text(name))[:_ID_PART_LENGTH_MAX]

    def number(self, name: str, *, most: int = NUMBER_MAX) -> int | None:
        """A whole number from 0 to `most`; None if the variable is not set."""
        text = self.text(name)
        return None if not text else self._read(name, text, most)

    def needed(self, name: str, because: str) -> int:
        """A number that the launcher always sets together with the variable `because`."""
        text = self.text(name)
        if not text:
            raise BadVariablesError(
                f"{because}={shown(self.text(because))} is set, but {name} is not, and "
                f"{self.launcher} sets both"
            )
        return self._read(name, text, NUMBER_MAX)

    def value(self, text: object, *names: str) -> Value:
        """A value that comes from these variables."""
        return Value(str(text), ", ".join(names), self.launcher)

    def below(self, index: str, count: str) -> int:
        """The number `index`, which must be below the number `count`."""
        found, limit = self.needed(index, count), self.needed(count, index)
        if found >= limit:
            raise BadVariablesError(f"{index}={found} and {count}={limit} contradict each other")
        return found

    def _read(self, name: str, text: str, most: int) -> int:
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(most))
        if not is_number or int(text) > most:
            raise BadVariablesError(f"{name}={shown(text)} is not a number")
        return int(text)


def broken(launcher: str, error: BadVariablesError, names: Iterable[str] = PLACE) -> Found:
    """A launcher whose variables cannot be used: each of these settings has the same problem."""
    unset = f"unset the variables of {launcher} if it did not start this process; or"
    return refused(launcher, str(error), f"{error.hint or unset} {OVERRIDES}", names)


def refused(launcher: str, message: str, hint: str, names: Iterable[str] = PLACE) -> Found:
    """A launcher from which these settings cannot be had, for one reason."""
    problem = Problem(message, hint, launcher)
    return Found(launcher=launcher, problems=dict.fromkeys(names, problem))


def shown(text: str) -> str:
    """A variable's text, fit for an error."""
    return shortened(ascii(text)[1:-1], _TEXT_SHOWN)
