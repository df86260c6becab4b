"""The reference, generated from the code: public modules, settings, errors and exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from rallypoint import errors, settings
from tools.docsite import commands, public
from tools.docsite.hints import Hint, hints
from tools.docsite.model import SourceFile
from tools.docsite.sources import listing_of, relative
from tools.docsite.text import cell, code, escaped, prose

FOLDER = PurePosixPath("reference")
INDEX = FOLDER / "index.md"
SETTINGS = FOLDER / "settings.md"
ERRORS = FOLDER / "errors.md"

_ERRORS_MODULE = errors.__name__
_SETTINGS_MODULE = settings.__name__


def page_of(module: str) -> PurePosixPath:
    """The place of the page of a public module within the site."""
    special = {_ERRORS_MODULE: ERRORS, _SETTINGS_MODULE: SETTINGS}
    return special.get(module, FOLDER / f"{module}.md")


def pages(root: Path, files: Sequence[SourceFile]) -> Iterator[tuple[PurePosixPath, str]]:
    """Every page of the reference as Markdown, with its path within the site."""
    src = root / "src"
    modules = public.modules(src)
    yield INDEX, index_page(src, modules)
    for module in modules:
        names = public.names(src, module)
        if module == _ERRORS_MODULE:
            meanings = exit_code_meanings((root / "docs/compatibility.md").read_text("utf-8"))
            yield ERRORS, errors_page(src, names, files, meanings)
        elif module == _SETTINGS_MODULE:
            yield SETTINGS, settings_page(names)
        else:
            yield page_of(module), module_page(src, module, names)
    yield commands.PAGE, commands.page()


def directive(module: str, name: str, level: int = 2) -> str:
    """The directive that mkdocstrings replaces by the documentation of a name."""
    return f"::: {module}.{name}\n    options:\n      heading_level: {level}"


def index_page(src: Path, modules: Sequence[str]) -> str:
    """Every public name, with a link to it."""
    parts = [
        "# Reference",
        "Every public name, made from the code. "
        f"[Command line]({relative(commands.PAGE, INDEX)}) has every command and option, "
        f"[settings]({relative(SETTINGS, INDEX)}) every setting and its variable, and "
        f"[errors]({relative(ERRORS, INDEX)}) every error, exit code and what to do.",
    ]
    for module in modules:
        page = relative(page_of(module), INDEX)
        about = public.MODULES.get(module) or ""
        links = ", ".join(
            f"[{code(each)}]({page}#{module}.{each})" for each in public.names(src, module)
        )
        parts += [f"## {code(module)}", f"{about} [Its page]({page}).".strip(), links]
    return "\n\n".join(parts) + "\n"


def module_page(src: Path, module: str, names: Sequence[str]) -> str:
    """A module's purpose and each of its public names."""
    parts = [f"# {module}", prose(public.docstring(src, module))]
    for each in names:
        parts.append(directive(module, each))
        if f"{module}.{each}" in public.MODULES:  # a public module with its own page
            parts[-1] += "\n      members: false"
            parts.append(f"[Its page]({relative(page_of(f'{module}.{each}'), page_of(module))}).")
    return "\n\n".join(parts) + "\n"


# -- settings ------------------------------------------------------------------------------------


def settings_page(names: Sequence[str]) -> str:
    """Every setting, then the public names of the module."""
    parts = [
        "# Settings",
        "An argument or option wins over the environment, and that over the default. Durations are "
        "seconds, or have a unit: `500ms`, `10s`, `2m`, `1h`. `rallypoint env` shows what holds "
        "here, and where each value comes from. Below are the name, the variable, the default, and "
        "what it is.",
        "\n".join(_setting_line(each) for each in settings.SETTINGS),
        "## In Python",
    ]
    parts += [directive(_SETTINGS_MODULE, each, 3) for each in names]
    return "\n\n".join(parts) + "\n"


def _setting_line(each: settings.Setting) -> str:
    default = settings.Resolved(each.name, each.default, "default").shown
    return f"- {code(each.name)}, {code(each.variable)}, {escaped(default)}: {escaped(each.help)}"


# -- errors --------------------------------------------------------------------------------------


def exit_code_meanings(compatibility: str) -> dict[int, str]:
    """The meaning of each exit code in docs/compatibility.md."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", compatibility, re.MULTILINE)
    return {int(number): meaning for number, meaning in rows}


def errors_page(
    src: Path, names: Sequence[str], files: Sequence[SourceFile], meanings: dict[int, str]
) -> str:
    """The exit codes, the tree of errors, and each error with its hints."""
    refused = {code.name: kind.__name__ for code, kind in errors._REFUSED.items()}
    given = hints((each for each in files if each.path.parts[0] == "src"), refused)
    exits = [
        f"| {each.value} | {code(each.name)} | {cell(meanings[each.value])} |"
        for each in errors.ExitCode
    ]
    parts = [
        "# Errors and exit codes",
        prose(public.docstring(src, _ERRORS_MODULE)),
        "## Exit codes",
        "| code | name | means |\n| --- | --- | --- |\n" + "\n".join(exits),
        "A process that signal n ends has code 128 + n.",
    ]
    for name in names:
        kind = getattr(errors, name)
        parts.append(directive(_ERRORS_MODULE, name))
        if isinstance(kind, type) and issubclass(kind, errors.RallypointError):
            ending = kind.exit_code
            parts.append(f"Exit code: {ending.value}, {escaped(meanings[ending.value])}.")
            parts.append(_what_to_do(given.get(name, [])))
    return "\n\n".join(part for part in parts if part) + "\n"


def _what_to_do(given: Sequence[Hint]) -> str:
    if not given:
        return ""
    lines = [
        f"- {escaped(each.text)} ([line {each.line} of {escaped(each.path.name)}]"
        f"({relative(listing_of(each.path), ERRORS)}#L-{each.line}))"
        for each in given
    ]
    return "What to do, as its hints say:\n\n" + "\n".join(lines)
