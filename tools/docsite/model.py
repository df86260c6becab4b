"""The description of a source file. Values only: `reading` creates them, the pages show them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

Kind = Literal["class", "function", "method", "constant"]


@dataclass(frozen=True)
class Definition:
    """A class, function, method or constant. `name` is dotted within its file: `Run.close`."""

    name: str
    kind: Kind
    line: int
    signature: str
    purpose: str
    """The first sentence of its docstring; "" if it has none."""


@dataclass(frozen=True)
class Import:
    """One import. `name` is absolute and dotted, with the imported name as its last part."""

    name: str
    line: int
    is_lazy: bool
    """Whether it is inside a function, and so runs only when the function is called."""


@dataclass(frozen=True)
class SourceFile:
    """A Python file. `path` begins at the root of the repository."""

    path: PurePosixPath
    module: str
    purpose: str
    text: str
    definitions: tuple[Definition, ...]
    imports: tuple[Import, ...]

    @property
    def is_test(self) -> bool:
        return self.path.parts[0] == "tests"
