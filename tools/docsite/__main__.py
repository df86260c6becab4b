"""`python -m tools.docsite`: build the site into `site/`, and fail on any warning.

It stages its pages in build/docs, which may be deleted at any time.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tools.docsite import built, public, reference, site
from tools.docsite.links import LinkError

ROOT = Path(__file__).parents[2]
STAGED = ROOT / "build" / "docs"
SITE = ROOT / "site"
SHOWN_MAX = 50

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Zensical counts only its own warnings; mkdocstrings and griffe print theirs.
_WARNING = re.compile(r"\b(warning|error)\b|griffe:|mkdocstrings:|could not be", re.IGNORECASE)


def main() -> int:
    """Build the site. Return exit code 1 if there is any problem."""
    began = time.monotonic()
    try:
        site.stage(ROOT, STAGED)
    except LinkError as error:
        return _failed([str(error)])
    zensical = Path(sys.executable).parent / "zensical"
    if not zensical.exists():
        return _failed(["zensical is not installed: `make docs` installs it"])
    done = subprocess.run(
        [str(zensical), "build", "--strict", "--config-file", site.CONFIG],
        cwd=STAGED,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = _COLOUR.sub("", done.stdout)
    warnings = [line for line in said.splitlines() if _WARNING.search(line)]
    if done.returncode or warnings:
        print(said, file=sys.stderr)
        return _failed(warnings or [f"zensical ended with {done.returncode}"])
    made = STAGED / "site"
    found = built.problems(made, public_anchors())
    if found:
        return _failed(found)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(made, SITE)
    pages = sum(1 for _ in SITE.rglob("*.html"))
    print(f"{pages} pages in {SITE.name}/ after {time.monotonic() - began:.0f} s: open index.html")
    return 0


def public_anchors() -> list[tuple[str, str]]:
    """The anchor that each public name must have, with its page."""
    src = ROOT / "src"
    return [
        (str(reference.page_of(module).with_suffix(".html")), f"{module}.{name}")
        for module in public.modules(src)
        for name in public.names(src, module)
    ]


def _failed(found: list[str]) -> int:
    for each in found[:SHOWN_MAX]:
        print(f"error: {each}", file=sys.stderr)
    print(f"error: {len(found)} in all; at most {SHOWN_MAX} are shown", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
