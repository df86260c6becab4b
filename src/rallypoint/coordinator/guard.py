"""Which right each request needs: one table for all routes. A route that is not in it is refused.

`security/roles.py` says which roles grant a right, and `tokens.py` who sends a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from rallypoint import runtime
from rallypoint.security import claims, client_certificates
from rallypoint.security.roles import (
    ALL_ROLES,
    EVERYBODY,
    Denial,
    Principal,
    Right,
    Role,
)
from rallypoint.wire import api_paths, headers
from rallypoint.wire import messages as wire

PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)
"""Who sends the request, once its token was accepted."""
RUN: Final = f"{api_paths.RUNS}/{{run_id}}"

NEEDS: Final[dict[tuple[str, str], Right]] = {
    ("GET", "/healthz"): Right.NOTHING,
    ("GET", "/readyz"): Right.NOTHING,
    ("GET", "/"): Right.NOTHING,  # the web page, which is the same for everybody
    ("GET", f"{api_paths.PAGE}{{name}}"): Right.NOTHING,
    ("GET", "/metrics"): Right.MEASURE,
    ("GET", wire.ATTACH_PATH): Right.ATTACH,  # The session checks the run, which it names itself.
    ("GET", api_paths.ME): Right.READ,
    ("GET", api_paths.COORDINATORS): Right.READ,
    ("GET", api_paths.RUNS): Right.READ,
    ("GET", RUN): Right.READ,
    ("GET", f"{RUN}/events"): Right.READ,
    ("POST", f"{RUN}/close"): Right.ACT,
    ("POST", f"{RUN}/drain"): Right.ACT,
    ("POST", f"{RUN}/evict"): Right.ACT,
    ("POST", f"{RUN}/admit"): Right.ACT,
    ("POST", f"{RUN}/scale"): Right.ACT,
    ("POST", f"{RUN}/stacks"): Right.ACT,
}
"""What each route needs, by its method and path. A handler of a route with `{run_id}` is called
only if the principal's roles count for that run. A route without it shows only runs that
`Principal.sees`."""

_GIVE_A_CERTIFICATE: Final = (
    "give one with a role: --tls-cert and --tls-key, or RALLYPOINT_TLS_CERT; or a token: "
    "--token-file FILE"
)
NO_CERTIFICATE: Final = Denial(
    "this coordinator needs a client's certificate or a token, and there is none",
    _GIVE_A_CERTIFICATE,
    "",
)
_NOT_IN_THE_TABLE: Final = Denial(
    "nobody may use this path: it is not in the table of rights",
    "this is a fault of Rallypoint; please report it",
    "role",
)


def principal_of(request: web.Request) -> Principal:
    """Who sends the request."""
    found: Principal = request.get(PRINCIPAL, EVERYBODY)
    return found


def narrowed(principal: Principal, request: web.Request) -> Principal:
    """The principal of a request that another coordinator may have forwarded.

    Such a request has no more rights than the one that was forwarded. The header only takes rights
    away, so anybody may send it.
    """
    limits = request.headers.get(headers.LIMITS)
    return principal if limits is None else principal.narrowed(limits)


def of_certificate(
    certificate: Mapping[str, Any] | None, request: web.Request
) -> Principal | Denial:
    """Who sends a request, by the certificate of its connection, if it has one.

    A coordinator that forwards a request has all rights, of which it keeps those of the sender: it
    could be the coordinator of each run itself. It forwards no node, so it is none by that.
    """
    if not certificate:
        return NO_CERTIFICATE
    try:
        found = client_certificates.principal_of(certificate)
    except client_certificates.UnknownClientError as error:
        return Denial(str(error), _GIVE_A_CERTIFICATE, "certificate")
    if claims.has_ended(found, runtime.here().wall_s()):
        # TLS has checked the time only when the connection began.
        assert found.ends_at is not None
        return claims.expired(found.id, found.ends_at, "use a new one")
    if Role.HOST in found.roles and _is_forwarded(request):
        return msgspec.structs.replace(found, roles=ALL_ROLES)
    return found


def _is_forwarded(request: web.Request) -> bool:
    """Whether another coordinator sends this request in the name of its own client."""
    shown = request.headers
    is_so = shown.get(headers.CLIENT) == "coordinator" and headers.ONLY_OWN in shown
    return is_so and right_of(request) is not Right.ATTACH


def denial(request: web.Request, principal: Principal) -> Denial | None:
    """Why this request is refused; None if it is not.

    A path that does not exist is left to the router, which answers 404 or 405.
    """
    if request.match_info.http_exception is not None:
        return None
    right = right_of(request)
    if right is None:
        return _NOT_IN_THE_TABLE
    return principal.denial(right, request.match_info.get("run_id"))


def right_of(request: web.Request) -> Right | None:
    """What the request needs; None if its route is not in the table."""
    return NEEDS.get((_method(request), _path(request)))


def action_of(request: web.Request) -> str:
    """What the request wants to do, for the audit log: "close", "attach", "read" and so on."""
    right = right_of(request)
    if right is Right.ACT:
        return _path(request).rpartition("/")[2]
    return "none" if right is None else right.name.lower()


def _method(request: web.Request) -> str:
    return "GET" if request.method == "HEAD" else request.method


def _path(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical
