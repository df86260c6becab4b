"""Related files: those that a file imports, and those that import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from tools.docsite.model import Import, SourceFile


@dataclass
class Related:
    """The neighbours of one file, each by path."""

    imports: list[PurePosixPath] = field(default_factory=list)
    imported_by: list[PurePosixPath] = field(default_factory=list)
    tested_by: list[PurePosixPath] = field(default_factory=list)
    """The tests among the files that import it."""


def related_files(files: Sequence[SourceFile]) -> dict[PurePosixPath, Related]:
    """The neighbours of every file."""
    by_module = {each.module: each for each in files}
    found = {each.path: Related() for each in files}
    for each in files:
        targets = {_target(one, each, by_module) for one in each.imports}
        for path in sorted(target for target in targets if target not in (None, each.path)):
            assert path is not None
            found[each.path].imports.append(path)
            importers = found[path].tested_by if each.is_test else found[path].imported_by
            importers.append(each.path)
    return found


def _target(
    one: Import, importer: SourceFile, by_module: dict[str, SourceFile]
) -> PurePosixPath | None:
    """The file that an import loads: the longest part of its name that is a module.

    A script also finds the modules in its own folder.
    """
    folder = ".".join(importer.path.parent.parts)
    parts = one.name.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        target = by_module.get(name) or by_module.get(f"{folder}.{name}")
        if target is not None:
            return target.path
    return None
