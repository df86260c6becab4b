"""Checks the built site: every link has a target, and no page loads anything from the network.

Zensical's strict mode checks the links between pages and the references of mkdocstrings. It does
not check the files that a template loads, the lines of listings, and whether every public name
exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
_LOADING_LINKS = {"stylesheet", "icon", "preload", "preconnect", "modulepreload"}
_LISTING_ANCHOR = re.compile(r'id="(L-\d+)"')
_IN_STYLE = re.compile(r"(?:url\(|@import)\s*['\"]?(https?:)?//")
_UNRESOLVED = re.compile(r"\[[^\[\]]+\]\[[\w.]*\]")


@dataclass
class _Page(HTMLParser):
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)
    _code_depth: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors.update(given[each] for each in ("id", "name") if each in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "autoref":
            self.unresolved.append(given.get("identifier", "autoref"))
        if tag in ("code", "pre", "script", "style"):
            self._code_depth += 1
        place = _LOADS.get(tag)
        if place in given and (tag != "link" or given.get("rel") in _LOADING_LINKS):
            self.loads.append(given[place or ""])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("code", "pre", "script", "style"):
            self._code_depth -= 1

    def handle_data(self, data: str) -> None:
        if not self._code_depth:
            self.unresolved += _UNRESOLVED.findall(data)


def problems(site: Path, anchors: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Return all problems of the site, one line each.

    `anchors` are the anchors that must exist, each with its page.
    """
    found: list[str] = []
    listings = {path: _listing_anchors(path) for path in site.rglob("*.py.html")}
    pages = {path: _read(path) for path in sorted(site.rglob("*.html")) if path not in listings}
    known = {path: page.anchors for path, page in pages.items()} | listings
    for path, page in pages.items():
        where = path.relative_to(site)
        found += [f"{where}: {each} is not resolved" for each in page.unresolved]
        found += [f"{where}: loads {each}" for each in page.loads if _is_elsewhere(each)]
        found += [f"{where}: {each}" for each in _broken(site, path, page, known)]
    for style in site.rglob("*.css"):
        if _IN_STYLE.search(style.read_text(encoding="utf-8")):
            found.append(f"{style.relative_to(site)}: loads from elsewhere")
    for name, anchor in anchors:
        if anchor not in known.get(site / name, set()):
            found.append(f"{name}: {anchor} is missing")
    return found


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def _listing_anchors(path: Path) -> set[str]:
    return set(_LISTING_ANCHOR.findall(path.read_text(encoding="utf-8")))


def _is_elsewhere(target: str) -> bool:
    return target.startswith(("http://", "https://", "//"))


def _broken(site: Path, path: Path, page: _Page, known: dict[Path, set[str]]) -> Iterator[str]:
    for link in {*page.links, *page.loads}:
        if re.match(r"[a-z]+:", link) or link.startswith("//"):
            continue
        name, _, fragment = unquote(link).partition("#")
        name = name.partition("?")[0]
        target = (path.parent / name).resolve() if name else path
        if path.name == "404.html" and name.startswith("/"):
            target = site / name.lstrip("/")
        if target.is_dir():
            target /= "index.html"
        if not target.exists():
            yield f"{link} leads nowhere"
        elif fragment and target in known and fragment not in known[target]:
            yield f"{link}: there is no such anchor"
