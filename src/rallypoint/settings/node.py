"""The settings of one node. Other nodes of its run may have others."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from rallypoint.core import naming
from rallypoint.core.values import NAME_LENGTH_MAX, STOP_S_MAX
from rallypoint.endpoints import DEFAULT_PORT, Endpoint, EndpointKind
from rallypoint.environments import Found
from rallypoint.errors import UsageError
from rallypoint.security import token_form
from rallypoint.security.access import SYSTEM, CertificateFileError, Certificates
from rallypoint.settings.credentials import check_token_strength, etcd_password, resolve_token
from rallypoint.settings.environment import Environ
from rallypoint.settings.launcher import launched
from rallypoint.settings.resolution import Resolved, read, refuse_unknown, resolve
from rallypoint.settings.table import BY_NAME, SECRETS
from rallypoint.settings.values import PortRange, shortened

NEW_TOKEN: Final = "`rallypoint token new FILE`"
LABELS_MAX: Final = 64
FOUND_PORTS: Final = PortRange(DEFAULT_PORT, DEFAULT_PORT + 15)
"""The ports of an endpoint that a launcher gave: one job takes the first that no other has."""
LABELS_BYTES_MAX: Final = naming.INFO_BYTES_MAX - 4 * 1024
"""The rest is for the node's name, its host and its addresses."""
LEASE_TTL_MIN_S: Final = 0.3
LEASE_TTL_MAX_S: Final = 300.0


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One node's own settings; other nodes may have others. Durations in seconds.

    `node_name`, `local_addr` and `interface`: None lets the node find its own. `port_range` None:
    the endpoint's port for a coordinator, and any for rank 0.
    `token`: the one that was given; "" if none was (see `tokens`). `token_place`: where it was
    found, for people. `insecure`: without a given token, a `host:port` node has none.
    `tls_ca`, `tls_cert`, `tls_key`: files for a `serve` with `--tls-cert`, see security/pki.py.
    `orphan_s` None: LOST_ORPHAN_S once the run is known to be lost, if it has other nodes;
    infinite: never.
    `attach_grace_s` None: derived, see `attach_grace_s`. `hang_timeout_s` None: a round in which no
    worker advances goes on.
    `node_settings` fills one from arguments and environment.

    Raises:
        UsageError: from the constructor, naming the field.
    """

    endpoint: Endpoint = Endpoint(EndpointKind.LOCAL)
    run_id: str
    node_name: str | None = None
    node_index: int | None = None
    local_addr: str | None = None
    interface: str | None = None
    port_range: PortRange | None = None
    token: str = ""
    token_place: str = ""
    insecure: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    host_coordinator: str = BY_NAME["host_coordinator"].default
    join_timeout_s: float = BY_NAME["join_timeout_s"].default
    connect_timeout_s: float = BY_NAME["connect_timeout_s"].default
    coordinator_silence_s: float = BY_NAME["coordinator_silence_s"].default
    coordinator_lost_after_s: float = BY_NAME["coordinator_lost_after_s"].default
    drain_timeout_s: float = BY_NAME["drain_timeout_s"].default
    goodbye_timeout_s: float = BY_NAME["goodbye_timeout_s"].default
    linger_s: float = BY_NAME["linger_s"].default
    orphan_s: float | None = BY_NAME["orphan_s"].default
    etcd_password: str = ""
    candidates: int = BY_NAME["candidates"].default
    lease_ttl_s: float = BY_NAME["lease_ttl_s"].default
    attach_grace_s: float | None = BY_NAME["attach_grace_s"].default
    yield_after_s: float = BY_NAME["yield_after_s"].default
    stop_s: float = BY_NAME["stop_s"].default
    hang_timeout_s: float | None = BY_NAME["hang_timeout_s"].default
    share_lines: int = BY_NAME["share_lines"].default
    labels: dict[str, str] = {}

    def __post_init__(self) -> None:
        for name in ("run_id", "node_name", "local_addr", "interface", "token", "host_coordinator"):
            value = getattr(self, name)
            if value is not None and (name, value) != ("token", ""):
                read(BY_NAME[name], value, name)
        for name in _NODE_DURATIONS:
            if (name, getattr(self, name)) not in _NO_DURATIONS:
                check_duration_s(name, getattr(self, name))
        check_lease_ttl_s(self.lease_ttl_s)
        check_stop_s(self.stop_s)
        for name in ("candidates", "share_lines", "node_index"):
            if getattr(self, name) is not None:
                read(BY_NAME[name], str(getattr(self, name)), name)
        _check_labels(self.labels)

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        for name in SECRETS:
            shown[name] = "set" if shown[name] else ""
        return f"NodeSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


_NODE_DURATIONS: Final = tuple(
    name for name in NodeSettings.__struct_fields__ if name.endswith("_s")
)
_NO_DURATIONS: Final = (
    ("orphan_s", None),
    ("orphan_s", math.inf),
    ("attach_grace_s", None),
    ("hang_timeout_s", None),
)
LOST_ORPHAN_S: Final = 600.0
"""How long workers go on in a run that is lost and has other nodes, unless `orphan_s` is set."""
_MAY_BE_ZERO: Final = (
    "connect_timeout_s",
    "drain_timeout_s",
    "goodbye_timeout_s",
    "linger_s",
    "stop_timeout_s",
    "stop_s",
)
_DURATION_MAX_S: Final = 365 * 86_400.0


def check_duration_s(name: str, seconds: float) -> None:
    """Raises UsageError unless the setting `name` can have this many seconds."""
    if not 0 <= seconds <= _DURATION_MAX_S:
        raise UsageError(f"{name} must be within 0 and {_DURATION_MAX_S:g} s, not {seconds}")
    if seconds == 0 and name in _NODE_DURATIONS and name not in _MAY_BE_ZERO:
        raise UsageError(f"{name} must be more than 0 s")


ATTACH_MARGIN_S: Final = 7.0
"""The time from a node's notice of the loss until it is attached to the next coordinator: it dials
the old address (2 s), reads the ledger (up to 1.5 s), dials the new address (2 s) and attaches. The
rest is a margin."""


def attach_grace_s(given_s: float | None, silence_s: float) -> float:
    """How long a new coordinator waits for the nodes of the one before it, in seconds.

    `given_s`: the setting; None: derived. A node checks for silence at least three times within
    `silence_s`, so it notices a loss after at most 4/3 of it.
    """
    return ATTACH_MARGIN_S + silence_s * 4 / 3 if given_s is None else given_s


def check_stop_s(stop_s: float) -> None:
    """Raises UsageError unless a node's place may be kept for that long."""
    if not 0 <= stop_s <= STOP_S_MAX:
        raise UsageError(f"stop_s must be within 0 and {STOP_S_MAX:g} s, not {stop_s:g}")


def check_lease_ttl_s(ttl_s: float) -> None:
    """Raises UsageError unless a lease of this length can be kept over a network."""
    if not LEASE_TTL_MIN_S <= ttl_s <= LEASE_TTL_MAX_S:
        raise UsageError(
            f"lease_ttl_s must be within {LEASE_TTL_MIN_S:g} and {LEASE_TTL_MAX_S:g} s, "
            f"not {ttl_s:g}",
            hint="an elected coordinator writes to the ledger three times in this time",
        )


def _check_labels(labels: Mapping[Any, Any]) -> None:
    if len(labels) > LABELS_MAX:
        raise UsageError(f"a node has at most {LABELS_MAX} labels, not {len(labels)}")
    for name, value in labels.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise UsageError(
                f"label {name!r}: names and values are text, and {value!r} is of type "
                f"{type(value).__name__}",
                hint='write labels={"rack": "7"}',
            )
        if not 1 <= len(name) <= NAME_LENGTH_MAX or len(value) > NAME_LENGTH_MAX:
            raise UsageError(
                f"label {shortened(name)!r}: a name has 1 to {NAME_LENGTH_MAX} characters, "
                f"a value at most {NAME_LENGTH_MAX}"
            )
        problem = naming.label_problem(name, value)
        if problem:
            raise UsageError(problem)
    size = sum(len(each.encode()) for label in labels.items() for each in label)
    if size > LABELS_BYTES_MAX:
        raise UsageError(
            f"the labels of a node have at most {LABELS_BYTES_MAX} bytes, and these have {size}",
            hint="they are sent to every node of the run: put larger values into the store",
        )


def check_own_token(node: NodeSettings) -> None:
    """Raises UsageError if this node may host the coordinator, and its token is too weak for that.

    All nodes of a run have the same token, so every node raises it, not only the host.
    """
    endpoint = node.endpoint
    is_inside = endpoint.kind is EndpointKind.LEDGER or (
        endpoint.kind is EndpointKind.HOST and not endpoint.is_loopback
    )
    if node.token and is_inside and node.host_coordinator != "no" and not node.insecure:
        check_token_strength(node.token)
    check_not_in_clear(node)


def check_not_in_clear(node: NodeSettings) -> None:
    """Raises UsageError if this node would send its token in clear to another machine."""
    endpoint = node.endpoint
    is_far = endpoint.kind is EndpointKind.LEDGER or not endpoint.is_loopback
    if _own_certificates(node) is not None and endpoint.kind is EndpointKind.HOST:
        raise UsageError(
            "tls_ca and tls_cert are for a coordinator with a certificate, and at HOST:PORT a node "
            "hosts it, by the token's authority",
            hint="use https://HOST:PORT with `rallypoint serve --tls-cert`, or remove them",
        )
    if certificates_for(node, node.token) is not None:
        return
    if endpoint.kind is EndpointKind.LOCAL or not is_far or node.insecure or not node.token:
        return
    if not token_form.names_ca(node.token):
        raise UsageError(
            "this token names no certificate authority, so it would be sent to other machines in "
            "clear",
            hint=f"make a new one and give it to all nodes: {NEW_TOKEN}; or --insecure, in a "
            "network in which everybody may read and change the traffic",
        )


def certificates_for(node: NodeSettings, token: str) -> Certificates | None:
    """By which certificates of a PKI the coordinator of this node's endpoint proves itself.

    None: by those of the CA that `token` names; in clear, if it names none.
    """
    given = _own_certificates(node)
    if given is not None:
        return given if node.endpoint.kind is not EndpointKind.LOCAL else None
    is_public = node.endpoint.is_tls and not token_form.names_ca(token)
    return Certificates() if is_public else None


def _own_certificates(node: NodeSettings) -> Certificates | None:
    return certificates(node.tls_ca, node.tls_cert, node.tls_key)


def certificates(ca: str | None, cert: str | None, key: str | None) -> Certificates | None:
    """What these settings say; None if none of them is set. Raises UsageError for half a pair."""
    if ca is None and cert is None and key is None:
        return None
    if key is not None and cert is None:
        raise UsageError("tls_key is given without tls_cert", hint="give both: --tls-cert FILE")
    return Certificates(ca or SYSTEM, cert, key)


def certificates_of_command(endpoint: Endpoint, token: str) -> Certificates | None:
    """As `certificates_for`, for a command: from the environment. Raises UsageError."""
    given = certificates(*(resolve(name).value for name in ("tls_ca", "tls_cert", "tls_key")))
    if given is None and endpoint.is_tls and not token_form.names_ca(token):
        given = Certificates()
    return given


def check_certificates(files: Certificates | None, client_ca: str | None = None) -> None:
    """Raises UsageError if one of these files cannot be used. Reads them."""
    if files is None:
        return
    from rallypoint.security import pki  # here, because it loads ssl

    try:
        pki.check(files, client_ca)
    except CertificateFileError as error:
        raise UsageError(
            str(error),
            hint="give PEM files: --tls-ca (trusted authorities, or `system`), --tls-cert (a "
            "certificate with its chain) and --tls-key (its key, without a password)",
        ) from None


def node_settings(
    *,
    environ: Environ | None = None,
    found: Found | None = None,
    token_file: str | None = None,
    labels: Mapping[str, str] | None = None,
    **explicit: Any,
) -> NodeSettings:
    """A node's settings from arguments named as its fields, environment, launcher and defaults.

    `found`: what the launcher says, see `launched`; None: it is asked. None counts as not given. A
    run without endpoint and run id gets a random id: no other process can reach it, so none needs
    its id.

    Raises:
        UsageError: for a value that is not allowed, or an endpoint without a run id.
        TypeError: for an argument that is no field.
    """
    refuse_unknown(explicit, NodeSettings.__struct_fields__)
    token = explicit.pop("token", None)
    password = explicit.pop("etcd_password", None)
    given_id = explicit.pop("run_id", None)
    if found is None:
        found = launched(environ, run_id=given_id, **explicit)
    values = {
        name: resolve(name, explicit.get(name), environ, found).value
        for name in NodeSettings.__struct_fields__
        if name not in _RESOLVED_APART
    }
    values["endpoint"] = with_ports(
        resolve("endpoint", explicit.get("endpoint"), environ, found), values["port_range"]
    )
    given = resolve_token(token_file, environ) if token is None else None
    return NodeSettings(
        **values,
        etcd_password=password or etcd_password(values["endpoint"], environ),
        run_id=_run_id(resolve("run_id", given_id, environ, found).value, values["endpoint"]),
        token=token if given is None else given.value,
        token_place=given.source if given is not None and given.value else "",
        labels={name: each.text for name, each in found.labels.items()} | dict(labels or {}),
    )


_RESOLVED_APART: Final = ("endpoint", "token", "token_place", "labels", "run_id", "etcd_password")


def with_ports(endpoint: Resolved, port_range: PortRange | None) -> Endpoint:
    """The endpoint with the ports at which its coordinator may be.

    An endpoint without a port has those of `port_range`. Without that, one that a launcher gave has
    FOUND_PORTS, because two of its jobs may share a host, and neither knows of the other.
    """
    place: Endpoint = endpoint.value
    if place.kind is not EndpointKind.HOST or place.has_port:
        return place
    if port_range is None and endpoint.source.startswith("launcher"):
        port_range = FOUND_PORTS
    return place if port_range is None else place.over(port_range.first, port_range.last)


def _run_id(given: str | None, endpoint: Endpoint) -> str:
    if given is not None:
        return given
    if endpoint.kind is EndpointKind.LOCAL:
        return f"local-{os.urandom(6).hex()}"
    raise UsageError(
        f"a run that meets at {endpoint} needs a run id",
        hint="give every node the same --run-id, or set RALLYPOINT_RUN_ID",
    )
