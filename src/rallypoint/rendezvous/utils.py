"""The public function of `torch.distributed.elastic.rendezvous.utils`: it reads an endpoint.

It follows torch's rules, as its users expect. `rallypoint.endpoints` reads Rallypoint's own
endpoints, with more forms and stricter rules.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["parse_rendezvous_endpoint"]

_PORT: Final = re.compile(r"[0-9]{1,5}")
_HOST: Final = re.compile(r"[\w.:-]+")


def parse_rendezvous_endpoint(endpoint: str | None, default_port: int) -> tuple[str, int]:
    """The host and the port of `host`, `host:port`, `[IPv6]` or `[IPv6]:port`.

    None or "" is ("localhost", default_port). Spaces around it are ignored, and the brackets of an
    IPv6 address are removed. A port is below 65536. Raises ValueError, with the reason.
    """
    text = (endpoint or "").strip()
    if not text:
        return "localhost", default_port
    if text.startswith("[") and text.endswith("]"):
        host, port = text, default_port
    else:
        host, colon, after = text.rpartition(":")
        host, port = (host, _port(after, text)) if colon else (text, default_port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not _HOST.fullmatch(host):
        raise ValueError(
            f"The hostname of the rendezvous endpoint '{text}' must be a dot-separated list of "
            "labels, an IPv4 address, or an IPv6 address."
        )
    return host, port


def _port(digits: str, endpoint: str) -> int:
    if _PORT.fullmatch(digits) and int(digits) < 2**16:
        return int(digits)
    raise ValueError(
        f"The port number of the rendezvous endpoint '{endpoint}' must be an integer between 0 and "
        "65536."
    )
