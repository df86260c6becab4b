"""Listings: a plain HTML page for each Python file. The source index links to their lines.

They are not Markdown, so the site's generator copies them unchanged. Their text is not in the
search index: otherwise most results of a search would be listings.
"""

from __future__ import annotations

import html
from pathlib import PurePosixPath

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from tools.docsite.model import SourceFile
from tools.docsite.sources import FOLDER, page_of, relative

STYLESHEET = FOLDER / "listing.css"

_LEXER = PythonLexer(stripnl=False)
_FORMATTER = HtmlFormatter(cssclass="listing")

_PLAIN_STYLE = """\
:root { color-scheme: light dark; }
body { margin: 0; font: 14px/1.5 system-ui, sans-serif; background: #fff; color: #1f2328; }
header { padding: 12px 16px; border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
header a { color: #3f51b5; }
.listing pre { margin: 0; padding: 12px 0; overflow-x: auto; counter-reset: line;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.line { display: block; min-height: 1.5em; padding-right: 16px; scroll-margin-top: 30vh; }
.line::before { counter-increment: line; content: counter(line); display: inline-block;
  width: 4em; margin-right: 1.5em; text-align: right; color: #8b949e; user-select: none; }
.line:target { background: #ffe58a80; }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3; }
  header a { color: #8c9eff; }
  .line:target { background: #6b540080; }
}
"""


def listing(file: SourceFile, place: PurePosixPath) -> str:
    """The listing of a file as a page at `place`: line n has the anchor `L-n`."""
    marked = highlight(file.text, _LEXER, _FORMATTER)
    begin, _, rest = marked.partition("<pre>")
    body, _, end = rest.rpartition("</pre>")
    lines = _lines(body)
    name = html.escape(str(file.path))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{name}</title>\n<link rel="icon" href="data:,">\n'
        f'<link rel="stylesheet" href="{relative(STYLESHEET, place)}">\n</head>\n<body>\n'
        f"<header>{name} · "
        f'<a href="{relative(page_of(file.path).with_suffix(".html"), place)}">about this file</a>'
        f"</header>\n{begin}<pre>{lines}</pre>{end}</body>\n</html>\n"
    )


def _lines(body: str) -> str:
    """Each line in its own span, with its anchor."""
    lines = body.removesuffix("\n").split("\n")
    marked = [
        f'<span class="line" id="L-{number}">{line}</span>'
        for number, line in enumerate(lines, start=1)
    ]
    return "".join(marked)


def stylesheet() -> str:
    """The style of all listings, in light and dark."""
    light = HtmlFormatter(style="default").get_style_defs(".listing")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".listing")
    syntax = [
        "\n".join(line for line in style.splitlines() if line.startswith(".listing ."))
        for style in (str(light), str(dark))
    ]
    return (
        f"{_PLAIN_STYLE}{syntax[0]}\n@media (prefers-color-scheme: dark) {{\n{syntax[1]}\n"
        ".listing .w { color: inherit }\n}\n"
    )
