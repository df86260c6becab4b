"""The headers of every answer that protect the browser of a person who looks at the page.

The page has no inline code and fetches nothing from elsewhere, so its policy allows neither. No
header asks browsers to use https only (Strict-Transport-Security): that would hold for all ports
and programs of this host. A proxy that owns the host's name may add it.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

SERVER_NAME: Final = "rallypoint"
"""The Server header of every answer. It names no release, for security."""
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        # Code cannot make markup of a text, such as a node's name.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Final[dict[str, str]] = {
    "Server": SERVER_NAME,
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NO_STORE: Final = "no-store"


async def add(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers to an answer. A signal of aiohttp: `on_response_prepare`."""
    if isinstance(response, web.WebSocketResponse):
        response.headers["Server"] = SERVER_NAME  # A node reads no other.
        return
    add_to(response)


def add_to(response: web.StreamResponse) -> None:
    """Add the headers. What the handler has said about caching stays."""
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", NO_STORE)
