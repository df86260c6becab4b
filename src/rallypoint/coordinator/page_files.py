"""Serves the web page: `/` and its files. They are the same for everybody, and need no token.

The files are in `page/`, as people read them: no step builds them. They have nothing about any run;
the page asks the HTTP API for that, with the token that a person gives it.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from rallypoint.coordinator import http_api
from rallypoint.wire import api_paths

FOLDER: Final = Path(__file__).parent / "page"
_TYPES: Final = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


class PageFile(msgspec.Struct, frozen=True):
    """A file of the page. `etag` changes with its bytes."""

    body: bytes
    content_type: str
    etag: str


@functools.cache
def page_file(name: str) -> PageFile:
    """A file of the page. Raises KeyError if the page has none of that name."""
    # Only names in the folder's listing are opened, so no name leads out of it.
    found = {each.name: each for each in FOLDER.iterdir()}
    body = found[name].read_bytes()
    content_type = _TYPES[name.rpartition(".")[2]]
    return PageFile(body, content_type, hashlib.sha256(body).hexdigest()[:32])


def add_routes(app: web.Application) -> None:
    """Add the page to a coordinator."""
    app.router.add_get("/", _serve)
    app.router.add_get(api_paths.PAGE + "{name:[^/]*}", _serve)


async def _serve(request: web.Request) -> web.Response:
    try:
        file = page_file(request.match_info.get("name") or "index.html")
    except KeyError:
        return http_api.json_error(404, "the page has no such file", "begin at /")
    # A browser asks each time whether a file has changed, so files of two releases never mix.
    headers = {"Cache-Control": "no-cache"}
    response = web.Response(
        body=file.body, content_type=file.content_type, charset="utf-8", headers=headers
    )
    response.etag = file.etag
    known = request.if_none_match or ()
    if any(each.value in (file.etag, "*") for each in known):
        not_changed = web.Response(status=304, headers=headers)
        not_changed.etag = file.etag
        return not_changed
    return response
