"""Writes the pages of the site into a folder, with the menu and the generator's configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tools.docsite import listings, public, reading, reference, sources
from tools.docsite.commands import PAGE as COMMANDS
from tools.docsite.links import adapted
from tools.docsite.plan import DESIGN, GUIDE, PROJECT, TASKS, place_of, places

CONFIG = "zensical.toml"
PAGES = "pages"
_HERE = Path(__file__).parent


def stage(root: Path, folder: Path) -> None:
    """Empty `folder`, and write all input of the site into it.

    Raises LinkError if a page has a link without a target.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / PAGES
    where = places(root)
    for path, place in where.items():
        if path.suffix == ".md":
            text = (root / path).read_text(encoding="utf-8")
            _write(pages / place, adapted(root, path, text, where))
        else:
            (pages / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, pages / place)
    files = reading.read_all(root)
    for place, text in sources.pages(files):
        _write(pages / place, text)
    for each in files:
        place = sources.listing_of(each.path)
        _write(pages / place, listings.listing(each, place))
    _write(pages / listings.STYLESHEET, listings.stylesheet())
    for place, text in reference.pages(root, files):
        _write(pages / place, text)
    shutil.copytree(_HERE / "theme", folder / "theme")
    shutil.copytree(_HERE / "style", pages / "style")
    _write(folder / CONFIG, config(root))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def config(root: Path) -> str:
    """The generator's configuration: the committed file, and the menu."""
    text = (_HERE / CONFIG).read_text(encoding="utf-8")
    source = json.dumps(str((root / "src").resolve()))
    return text.replace('["SOURCE"]', f"[{source}]").replace("nav = []", f"nav = {menu(root)}")


def menu(root: Path) -> str:
    """The menu as TOML. The source index is one entry, because it has the most pages."""
    groups = [
        *_entries(GUIDE),
        _group("Guide", _entries(TASKS)),
        _group("Reference", list(_reference(root))),
        _group("Design", _entries(DESIGN)),
        _group(
            "Source",
            [
                _entry("Files", sources.INDEX),
                _entry("Keywords", sources.KEYWORDS / "index.md"),
                *_entries(PROJECT),
            ],
        ),
    ]
    return f"[{', '.join(groups)}]"


def _reference(root: Path) -> Iterator[str]:
    special = {reference.ERRORS: "Errors and exit codes", reference.SETTINGS: "Settings"}
    prefix = f"{public.SUBMODULES}."
    modules = public.modules(root / "src")
    inside = [each for each in modules if each.startswith(prefix)]
    yield _entry("All names", reference.INDEX)
    for module in modules:
        if module in inside:
            continue
        page = reference.page_of(module)
        yield _entry(special.get(page, module), page)
    yield _entry("Command line", COMMANDS)
    # A group: names alone, such as "api" and "utils", do not say to which package they belong.
    pages = [_entry(each.removeprefix(prefix), reference.page_of(each)) for each in inside]
    yield _group(f"In {public.SUBMODULES}", pages)


def _entries(pages: dict[str, str]) -> list[str]:
    return [_entry(title, place_of(PurePosixPath(path))) for path, title in pages.items()]


def _entry(title: str, page: PurePosixPath) -> str:
    return f"{{{json.dumps(title)} = {json.dumps(str(page))}}}"


def _group(title: str, entries: list[str]) -> str:
    return f"{{{json.dumps(title)} = [{', '.join(entries)}]}}"
