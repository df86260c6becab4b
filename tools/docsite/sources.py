"""The source index: a page for each Python file, one for each folder, and the keyword index."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from tools.docsite.model import Definition, Import, SourceFile
from tools.docsite.relations import Related, related_files
from tools.docsite.text import code, escaped, first_sentence, prose

FOLDER = PurePosixPath("source")
INDEX = FOLDER / "index.md"
KEYWORDS = FOLDER / "keywords"

_NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def page_of(path: PurePosixPath) -> PurePosixPath:
    """The place of a Python file's page within the site."""
    return FOLDER / path.with_suffix(".md")


def listing_of(path: PurePosixPath) -> PurePosixPath:
    """The place of a Python file's listing within the site."""
    return FOLDER / path.with_suffix(".py.html")


def pages(files: Sequence[SourceFile]) -> Iterator[tuple[PurePosixPath, str]]:
    """Every page of the source index as Markdown, with its path within the site."""
    related = related_files(files)
    for each in files:
        yield page_of(each.path), file_page(each, related[each.path])
    yield INDEX, index_page(files)
    yield from keyword_pages(files)


# -- the page of a file --------------------------------------------------------------------------


def file_page(file: SourceFile, related: Related) -> str:
    """One file: its purpose, its definitions and imports, and related files."""
    listing = listing_of(file.path).name
    lines = file.text.count("\n")
    parts = [
        f"{'' if file.path.parts[0] == 'src' else _NOT_SEARCHED}# {escaped(file.path.name)}",
        f"{code(str(file.path))} · module {code(file.module)} · [{lines} lines]({listing}) · "
        f"[all files]({relative(INDEX, page_of(file.path))}) · "
        f"[keywords]({relative(KEYWORDS / 'index.md', page_of(file.path))})",
        prose(file.purpose) or "*It has no module docstring.*",
        _defined("Classes", _classes(file, listing)),
        _defined("Functions", _lines(file, "function", listing)),
        _defined("Constants", _lines(file, "constant", listing)),
        _defined("Imports", _import_lines(file.imports, listing)),
        _related(file.path, related),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _defined(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) if lines else ""


def _classes(file: SourceFile, listing: str) -> list[str]:
    lines: list[str] = []
    for each in file.definitions:
        if each.kind == "class":
            lines.append(_line(each, listing))
        elif each.kind == "method":
            lines.append(f"    {_line(each, listing)}")
    return lines


def _lines(file: SourceFile, kind: str, listing: str) -> list[str]:
    return [_line(each, listing) for each in file.definitions if each.kind == kind]


def _line(each: Definition, listing: str) -> str:
    purpose = f": {escaped(each.purpose)}" if each.purpose else ""
    return f"- [{code(each.signature)}]({listing}#L-{each.line}){purpose}"


def _import_lines(imports: Sequence[Import], listing: str) -> list[str]:
    """One line for each module or name, with every line of the file that imports it."""
    places: dict[str, list[Import]] = defaultdict(list)
    for each in imports:
        places[each.name].append(each)
    return [
        f"- {code(name)}: "
        + ", ".join(
            f"[line {one.line}]({listing}#L-{one.line}){' when called' if one.is_lazy else ''}"
            for one in found
        )
        for name, found in sorted(places.items())
    ]


def _related(path: PurePosixPath, related: Related) -> str:
    groups = (
        ("It imports", related.imports),
        ("Imported by", related.imported_by),
        ("Imported by tests", related.tested_by),
    )
    parts = [
        f"### {title}\n\n" + "\n".join(f"- {_link(path, each)}" for each in found)
        for title, found in groups
        if found
    ]
    return "\n\n".join(["## Related files", *parts]) if parts else ""


def _link(start: PurePosixPath, path: PurePosixPath) -> str:
    target = relative(page_of(path), page_of(start))
    return f"[{code(str(path))}]({target})"


def relative(target: PurePosixPath, page: PurePosixPath) -> str:
    """The link from a page to a target; both are in the site."""
    return PurePosixPath(os.path.relpath(target, page.parent)).as_posix()


# -- the index -----------------------------------------------------------------------------------


def index_page(files: Sequence[SourceFile]) -> str:
    """Every file with the first sentence of its purpose, by folder."""
    folders: dict[PurePosixPath, list[SourceFile]] = defaultdict(list)
    for each in files:
        folders[each.path.parent].append(each)
    parts = [
        "# Source index",
        "Made from the code at each build. A page for each Python file says what the file is for, "
        "what it defines and imports, and which files import it. The "
        f"[keyword index]({relative(KEYWORDS / 'index.md', INDEX)}) has every name.",
    ]
    for folder, found in sorted(folders.items()):
        lines = [
            f"- [{code(each.path.name)}]({relative(page_of(each.path), INDEX)})"
            + (f": {escaped(first_sentence(each.purpose))}" if each.purpose else "")
            for each in found
        ]
        parts.append(f"## {escaped(str(folder))}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def keyword(name: str) -> str:
    """The key of a name: for a test, what it tests; otherwise the name without underscores."""
    last = name.rpartition(".")[2].strip("_").lower()
    return last.removeprefix("test_") or last


def keyword_pages(files: Sequence[SourceFile]) -> Iterator[tuple[PurePosixPath, str]]:
    """A page for each first letter with every defined name, and an index of these pages."""
    letters: dict[str, list[tuple[str, str, SourceFile, Definition]]] = defaultdict(list)
    for file in files:
        for each in file.definitions:
            filed = keyword(each.name)
            if filed and not each.name.rpartition(".")[2].startswith("__"):
                letter = filed[0] if filed[0].isalpha() else "0"
                letters[letter].append((filed, each.name, file, each))
    index = KEYWORDS / "index.md"
    listed = " · ".join(f"[{each.upper()}]({each}.md)" for each in sorted(letters))
    yield (
        index,
        (
            "# Keyword index\n\n"
            "Every class, function, method and constant of the source, its tests, examples and "
            "benchmarks. A test is filed under the word that follows `test_`.\n\n"
            f"{listed}\n"
        ),
    )
    for letter, found in sorted(letters.items()):
        page = KEYWORDS / f"{letter}.md"
        lines = [
            f"- [{code(name)}]({relative(listing_of(file.path), page)}#L-{each.line}), {each.kind} "
            f"in [{code(str(file.path))}]({relative(page_of(file.path), page)})"
            for _, name, file, each in sorted(found, key=lambda one: (one[0], str(one[2].path)))
        ]
        title = f"# Keywords: {letter.upper()}"
        yield page, f"{_NOT_SEARCHED}{title}\n\n{listed}\n\n" + "\n".join(lines) + "\n"
