"""Adapts links that work on GitHub to the site.

The pages of docs/ link to each other and to other files of the repository by relative paths. In the
site each target has another place. The target of a link to code is its page in the source index.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from tools.docsite.sources import page_of, relative

_LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s]+)(?=\))")
_FENCE = re.compile(r"^\s*```")


class LinkError(Exception):
    """A link without a target, or with a target that is not in the site."""


def headings(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: set[str] = set()
    in_code = False
    for line in text.splitlines():
        in_code ^= bool(_FENCE.match(line))
        if not in_code and (heading := re.match(r"#+ (.+)", line)):
            found.add(anchor(heading[1]))
    return found


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading: lower case, without signs, dashes for blanks."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def targets(text: str) -> list[str]:
    """Every relative link of a page outside code blocks."""
    found: list[str] = []

    def noted(target: str) -> str:
        found.append(target)
        return target

    _each_link(text, noted)
    return [each for each in found if "://" not in each and not each.startswith("mailto:")]


def problem(root: Path, page: PurePosixPath, target: str) -> str:
    """Why a relative link of a page does not work on GitHub; "" if it does."""
    path, _, fragment = target.partition("#")
    file = (root / page.parent / path).resolve() if path else root / page
    if not file.exists():
        return f"{page}: {target}: there is no such file"
    is_page = fragment and file.suffix == ".md"
    if is_page and fragment not in headings(file.read_text(encoding="utf-8")):
        return f"{page}: {target}: no heading there has this anchor"
    return ""


def adapted(
    root: Path,
    page: PurePosixPath,
    text: str,
    places: Mapping[PurePosixPath, PurePosixPath],
) -> str:
    """A page's text with links to the places of their targets in the site.

    `page` is a path in the repository. `places` maps each page and file to its place in the site.
    Raises LinkError for a link without a target.
    """
    place = places[page]

    def led(target: str) -> str:
        if "://" in target or target.startswith(("#", "mailto:")):
            return target
        path, sign, fragment = target.partition("#")
        file = (root / page.parent / path).resolve()
        if not file.is_relative_to(root.resolve()) or not file.exists():
            raise LinkError(f"{page}: {target} leads nowhere")
        found = PurePosixPath(file.relative_to(root.resolve()).as_posix())
        if file.is_dir():
            found /= "README.md"
        if found in places:
            return relative(places[found], place) + sign + fragment
        if found.suffix == ".py":
            return relative(page_of(found), place)
        raise LinkError(f"{page}: {target} is not in the site")

    return _each_link(text, led)


def _each_link(text: str, change: Callable[[str], str]) -> str:
    lines: list[str] = []
    in_code = False
    for line in text.splitlines(keepends=True):
        in_code ^= bool(_FENCE.match(line))
        lines.append(line if in_code else _LINK.sub(lambda found: change(found["target"]), line))
    return "".join(lines)
