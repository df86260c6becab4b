"""The names of the HTTP headers of both sides. Imports nothing, because every command loads it."""

from __future__ import annotations

from typing import Final

CLIENT: Final = "Sec-Rallypoint-Client"
"""Nodes and commands send it. A browser does not let a web page set a header that begins with Sec-
(Fetch standard, section 2.2.2), so a request with this header does not come from a page."""
TOKEN: Final = "Rallypoint-Token"
"""A coordinator that needs no token sends it, with the value NO_TOKEN, to a node that attaches."""
NO_TOKEN: Final = "none"
ONE_RUN: Final = "Rallypoint-One-Run"
"""A node's coordinator, which admits one run, sends it to a node that attaches: the run's id,
percent-encoded (RFC 3986). `rallypoint serve` does not, because it admits any run."""

ONLY_OWN: Final = "Rallypoint-Only-Own"
"""Asks a coordinator to answer without asking others. A coordinator that forwards a request sends
it, and so does a command that reads the ledger itself. So a request is forwarded at most once."""

LIMITS: Final = "Rallypoint-Limits"
"""The roles and runs to which a forwarded request is limited: those of its first sender. Without
it, the request has all rights of the token that the forwarding coordinator sends."""

ASKED_BY: Final = "Rallypoint-Asked-By"
"""The address from which a forwarded request came, for the texts that people read. It is not
checked: a client with the token may give any reason anyway."""
