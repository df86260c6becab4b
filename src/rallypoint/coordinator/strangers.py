"""Log lines about refused clients: one line for each, limited in rate, without tracebacks.

aiohttp would log a traceback for each request that it cannot read, which has as few as nine bytes.
"""

from __future__ import annotations

import logging
from typing import Final

from aiohttp.http_exceptions import HttpProcessingError

from rallypoint import logs
from rallypoint.core.addresses import plain

_log = logging.getLogger("rallypoint.coordinator")

LINES_AT_ONCE: Final = 5
"""The most lines of one kind in ten seconds."""
SCHEME_S: Final = 60.0
"""One line in this time, in seconds, about clients that speak TLS or not: a health check repeats.
"""


class _BadRequests(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg = "a request from %s cannot be read: %s"
        peer = record.args[0] if isinstance(record.args, tuple) and record.args else "a stranger"
        record.args = (plain(str(peer)), error.message.strip().partition("\n")[0][:200])
        record.exc_info = None
        record.__dict__.update(logs.limit(LINES_AT_ONCE))
        return True


def _http_logger() -> logging.Logger:
    logger = logging.getLogger("rallypoint.coordinator.http_api")
    if not any(isinstance(each, _BadRequests) for each in logger.filters):
        logger.addFilter(_BadRequests())  # before `tidy`, which turns the error into text
    return logs.tidy(logger.name)


HTTP_LOG: Final = _http_logger()
"""The logger for aiohttp in a coordinator."""


def login_refused(peer: str | None, why: str, level: int) -> None:
    """Log a request without an accepted token. `peer`: its address, if it is known."""
    where = plain(peer) if peer else "a local peer"
    limit = logs.limit(LINES_AT_ONCE)
    _log.log(level, "a request from %s was refused: %s", where, why, extra=limit)


def other_scheme(peer: str | None, *, has_tls: bool) -> None:
    """Log a connection that cannot be read, as only one side speaks TLS. `has_tls`: this one does.

    With TLS, the client gets no answer: nodes without a token learn from that that they need one.
    It is no warning, since nodes and `doctor` find out in this way what a port speaks.
    """
    where = plain(peer) if peer else "a local peer"
    what = (
        "a client at %s speaks plain HTTP, and this port speaks TLS: use https://, and in a node "
        "or a command the coordinator's token"
        if has_tls
        else "a client at %s speaks TLS, and this port speaks plain HTTP: use http://, and in a "
        "node or a command no token that names a certificate authority"
    )
    _log.info(what, where, extra=logs.limit(1, SCHEME_S))
