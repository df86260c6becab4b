"""Names of HTTP headers on which both sides agree. Loads nothing: every command imports it."""

from __future__ import annotations

from typing import Final

CLIENT: Final = "Sec-Rallypoint-Client"
"""Nodes and commands send it. Browsers let no web page set a header that begins with Sec- (Fetch
standard, section 2.2.2), so a request that has it comes from no page."""
TOKEN: Final = "Rallypoint-Token"
"""A coordinator that asks for no token sends it, with NO_TOKEN, when a node attaches."""
NO_TOKEN: Final = "none"

ONLY_OWN: Final = "Rallypoint-Only-Own"
"""Asks a coordinator for what it knows itself: another one, or a command that reads the ledger,
asks the others too. So a question is passed on at most once."""

ASKED_BY: Final = "Rallypoint-Asked-By"
"""The address from which a question came that a coordinator passes on. For people: it is believed
because whoever shows the token may give any reason."""
