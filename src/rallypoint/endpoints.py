"""Endpoints: where the nodes of a run meet, from what a user wrote.

Only this file reads an endpoint's text. An endpoint contains no secret, so it can be shown, logged
and written down.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from rallypoint import ledger_schemes
from rallypoint.core import addresses, naming
from rallypoint.core.values import Address
from rallypoint.errors import EndpointError

DEFAULT_PORT: Final = 29400
"""The coordinator's port if an endpoint has none, as in torchrun's rendezvous."""
HOSTS_SHOWN: Final = 4
"""How many hosts of an endpoint are shown."""
ETCD_PORT: Final = 2379
ETCD_PREFIX: Final = "/rallypoint"


class EndpointKind(enum.StrEnum):
    """Where the coordinator of a run lives."""

    LOCAL = "local"
    """In this process, on loopback: one machine."""
    HOST = "host"
    """In a node on that host."""
    SERVED = "served"
    """In a separate process: `rallypoint serve`."""
    LEDGER = "ledger"
    """In the process that is elected through the ledger: a node, or a `rallypoint serve`."""


class EtcdPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger in etcd. `hosts`: each "host:port". The paths are of PEM files; "" is none.

    `password_file`: a file whose first line is the user's password.
    """

    hosts: tuple[str, ...]
    prefix: str = ETCD_PREFIX
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""


class FilePlace(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger in a folder: its absolute path."""

    folder: str


class PackagePlace(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger of another package, which has registered the scheme: see `ledger_schemes`.

    `scheme`: in lower case. `url`: the whole text, which only that package reads. `host`: the host
    in it; "" if there is none.
    """

    scheme: str
    url: str
    host: str = ""


class Endpoint(msgspec.Struct, frozen=True):
    """Where the nodes meet. `host`: a name or an address without brackets; "" if there is none.

    `text` is what the user wrote. `place` is set if `kind` is LEDGER: the ledger that names the
    coordinator. A ledger that a program passes in has no place; then `host` is that of its server,
    if known.

    With `kind` HOST, `others` are further hosts, in the order in which they are likely to host the
    coordinator. `spare_ports`: how many ports behind each one's port it may have instead, because
    another run had that port. `has_port`: whether the user wrote a port. `is_tls`: whether the user
    wrote https://.
    """

    kind: EndpointKind
    host: str = ""
    port: int = 0
    text: str = ""
    place: EtcdPlace | FilePlace | PackagePlace | None = None
    others: tuple[Address, ...] = ()
    spare_ports: int = 0
    has_port: bool = True
    is_tls: bool = False

    @property
    def hosts(self) -> tuple[Address, ...]:
        """All hosts at which the coordinator may be, with their first ports; empty for a ledger."""
        if not self.host or self.kind is EndpointKind.LEDGER:
            return ()
        return (Address(self.host, self.port), *self.others)

    @property
    def has_choice(self) -> bool:
        """Whether the coordinator may be at one of several addresses."""
        return bool(self.others or self.spare_ports)

    @property
    def is_loopback(self) -> bool:
        """Whether all its hosts mean this machine alone; False without a host."""
        others = all(is_loopback(each.host) for each in self.others)
        return bool(self.host) and is_loopback(self.host) and others

    def over(self, first: int, last: int) -> Endpoint:
        """The same hosts, each at any port of a range."""
        others = tuple(Address(each.host, first) for each in self.others)
        return msgspec.structs.replace(self, port=first, others=others, spare_ports=last - first)

    @property
    def url(self) -> str:
        """The URL of the coordinator's HTTP API, without a final slash; "" if it is not fixed."""
        if not self.host or self.kind is EndpointKind.LEDGER:
            return ""
        return f"{'https' if self.is_tls else 'http'}://{Address(self.host, self.port)}"

    def __str__(self) -> str:
        if len(self.others) >= HOSTS_SHOWN:
            shown = ",".join(map(str, self.hosts[:HOSTS_SHOWN]))
            return f"{shown} and {len(self.hosts) - HOSTS_SHOWN} more hosts"
        return self.text or "none (this machine only)"


_ANY_PORT: Final = re.compile(r"[^/]+:0")
_FORMS: Final = (
    "an endpoint is HOST:PORT, [IPV6]:PORT, HOST:PORT,HOST:PORT,..., http(s)://HOST:PORT, "
    "etcd://HOST:PORT,HOST:PORT/PREFIX or file:///FOLDER; none at all: one machine"
)
NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})\.?")


def asks_for_any_port(text: str) -> bool:
    """Whether an endpoint is HOST:0, which torch documents for one machine: any free port."""
    return _ANY_PORT.fullmatch(text.strip()) is not None


def parse_endpoint(text: str | None, *, may_end_here: bool = False) -> Endpoint:
    """Where a run meets, from what a user wrote. Raises EndpointError.

    None or "" is this machine alone. The port is DEFAULT_PORT unless given, etcd's ETCD_PORT.
    `may_end_here`: this machine may be the last of several hosts, as in a launcher's list. There,
    only its first node hosts the coordinator.
    """
    if not text:
        return Endpoint(EndpointKind.LOCAL)
    if text.lower().startswith("file:"):
        return _file(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _hosts(text, may_end_here=may_end_here)
    match scheme.lower():
        case "http" | "https":
            # RFC 6874: within a URL the % before a zone is written as %25.
            authority = re.sub(r"(?<=[0-9a-f:])%25(?=[^\]]+\])", "%", _authority(rest), flags=re.I)
            host, port = _host_and_port(authority, text)
            is_tls = scheme.lower() == "https"
            return Endpoint(EndpointKind.SERVED, host, port, text, is_tls=is_tls)
        case "etcd" | "etcds":
            return _etcd(text, rest, tls=scheme.lower() == "etcds")
    return _of_package(scheme.lower(), text, rest)


def parse_ledger(text: str) -> Endpoint:
    """A ledger for this machine's own use: an endpoint, or file:DIR, which may be relative.

    Raises EndpointError.
    """
    if text.startswith("file:") and not text.startswith("file://"):
        folder = text.removeprefix("file:")
        if not folder or "\0" in folder:
            raise EndpointError(f"{text!r} names no folder", hint="write file:DIR")
        return Endpoint(
            EndpointKind.LEDGER, text=text, place=FilePlace(folder=str(Path(folder).absolute()))
        )
    endpoint = parse_endpoint(text) if "://" in text else None
    if endpoint is None or endpoint.kind is not EndpointKind.LEDGER:
        raise EndpointError(
            f"{text!r} is not a ledger",
            hint="a ledger is etcd://HOST:PORT,.../PREFIX or file:DIR, or the URL of one that an "
            "installed package registers",
        )
    return endpoint


# -- ledgers -------------------------------------------------------------------------------------


_SECRETS: Final = frozenset({"password", "passwd", "pass", "token", "secret", "key"})
"""Options of a URL that are not accepted, because endpoints are shown and logged."""


def _of_package(scheme: str, text: str, rest: str) -> Endpoint:
    if ledger_schemes.registered(scheme) is None:
        near = ledger_schemes.nearest(scheme)
        raise EndpointError(
            f"an endpoint cannot begin with {scheme}://",
            hint=(f"did you mean {near}://? " if near else "")
            + _FORMS
            + f"; a ledger of another package needs that package in this Python: it registers the "
            f"scheme as an entry point of the group {ledger_schemes.GROUP}",
        )
    authority, _, _ = re.sub(r"[/?#]", "/", rest, count=1).partition("/")
    try:
        options = dict(parse_qsl(urlsplit(text).query, keep_blank_values=True))
        host = urlsplit(text).hostname or ""
    except ValueError as error:
        raise EndpointError(f"a {scheme}:// endpoint cannot be read: {error}") from error
    # The text is not shown, because it may contain a password.
    if "@" in authority or _SECRETS & {name.lower() for name in options}:
        raise EndpointError(
            f"a {scheme}:// endpoint must not contain a user or password, because it is shown and "
            "logged",
            hint="give them to the ledger's package in another way: its documentation says how",
        )
    place = PackagePlace(scheme=scheme, url=text, host=host)
    return Endpoint(EndpointKind.LEDGER, text=text, place=place)


def _file(text: str) -> Endpoint:
    rest = text[len("file:") :]
    folder = rest
    if rest.startswith("//"):
        host, _, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise EndpointError(
                f"endpoint {text!r} names a host, but a folder is a path on each node",
                hint=f"for the folder /{host}/{path} write file:///{host}/{path}",
            )
        folder = "/" + unquote(path)
    if not folder.startswith("/") or folder.strip("/") in ("", ".", "..") or "\0" in folder:
        raise EndpointError(
            f"endpoint {text!r} does not name a folder by its full path",
            hint="write file:///shared/folder: all nodes must find the same one",
        )
    return Endpoint(EndpointKind.LEDGER, text=text, place=FilePlace(folder=folder))


_ETCD_FORM: Final = "write etcd://HOST:PORT,HOST:PORT/PREFIX, or etcds:// for TLS"
_PASSWORD_HINT: Final = (
    "write ?user=NAME, and give the password by password_file=FILE or RALLYPOINT_ETCD_PASSWORD"
)
_TLS_OPTIONS: Final = ("ca", "cert", "key")
_ETCD_OPTIONS: Final = (*_TLS_OPTIONS, "user", "password_file")


def _etcd(text: str, rest: str, *, tls: bool) -> Endpoint:
    before, _, query = rest.partition("?")
    hosts, slash, path = before.partition("/")
    if "@" in hosts:
        # The text is not shown, because it may contain a password.
        raise EndpointError(
            "an etcd endpoint must not contain a user or password", hint=_PASSWORD_HINT
        )
    options = _etcd_options(text, query)
    _check_tls(text, options, tls)
    if "#" in before:
        raise EndpointError(f"endpoint {text!r} has a '#' in it", hint=_ETCD_FORM)
    prefix = "/" + unquote(path).strip("/") if slash and path.strip("/") else ETCD_PREFIX
    place = EtcdPlace(hosts=_etcd_hosts(hosts, text), prefix=prefix, tls=tls, **options)
    return Endpoint(EndpointKind.LEDGER, text=text, place=place)


def _etcd_hosts(hosts: str, text: str) -> tuple[str, ...]:
    if not hosts:
        raise EndpointError(f"endpoint {text!r} names no host of etcd", hint=_ETCD_FORM)
    found = [Address(*_host_and_port(each, text, ETCD_PORT)) for each in hosts.split(",")]
    return tuple(dict.fromkeys(map(str, found)))


def _etcd_options(text: str, query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    names = [name for name, _ in pairs]
    if "password" in names:
        raise EndpointError("an endpoint must not contain a password", hint=_PASSWORD_HINT)
    known = ", ".join(_ETCD_OPTIONS)
    for name, value in pairs:
        if name not in _ETCD_OPTIONS or not value or names.count(name) > 1:
            raise EndpointError(
                f"endpoint {text!r}: {name!r} is not an option, has no value, or is given twice",
                hint=f"the options of an etcd endpoint are {known}, each at most once",
            )
    return dict(pairs)


def _check_tls(text: str, options: dict[str, str], tls: bool) -> None:
    given = [name for name in _TLS_OPTIONS if name in options]
    if given and not tls:
        raise EndpointError(
            f"endpoint {text!r}: {', '.join(given)} needs TLS, which etcd:// does not use",
            hint="write etcds://",
        )
    if ("cert" in options) != ("key" in options):
        raise EndpointError(
            f"endpoint {text!r}: a certificate needs its key, and a key its certificate",
            hint="give both, cert=FILE and key=FILE",
        )
    if "password_file" in options and "user" not in options:
        raise EndpointError(f"endpoint {text!r}: password_file needs a user", hint="add user=NAME")


# -- hosts ---------------------------------------------------------------------------------------


def _hosts(text: str, *, may_end_here: bool) -> Endpoint:
    parts = text.split(",")
    first, *others = dict.fromkeys(Address(*_host_and_port(each, text)) for each in parts)
    own = [is_loopback(each.host) for each in (first, *others)]
    if any(own) and not all(own) and not (may_end_here and own == sorted(own)):
        here = next(each.host for each in (first, *others) if is_loopback(each.host))
        raise EndpointError(
            f"endpoint {text!r}: {here} means each machine itself, so it cannot stand among "
            "other hosts",
            hint="remove it, or give the name or address that other machines use",
        )
    has_port = any(_names_port(each) for each in parts)
    return Endpoint(
        EndpointKind.HOST, first.host, first.port, text, others=tuple(others), has_port=has_port
    )


def _names_port(authority: str) -> bool:
    return ":" in authority.rpartition("]")[2]


def _authority(rest: str) -> str:
    """The host and port of a URL that has no other parts. No error shows a password."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise EndpointError(
            "an endpoint must not contain a user or password",
            hint="write http://HOST:PORT, and give the token by --token-file or RALLYPOINT_TOKEN",
        )
    if rest not in (authority, authority + "/"):
        raise EndpointError(
            f"endpoint 'http://{rest}' must have only a host and a port",
            hint=f"write http://{authority}",
        )
    return authority


def _host_and_port(authority: str, text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    if authority.startswith("["):
        return _bracketed(authority, text, default_port)
    if authority.count(":") > 1:
        raise _unbracketed(authority, text, default_port)
    host, colon, port = authority.partition(":")
    number = _port(port, text, default_port) if colon else default_port
    return _checked_host(host, text), number


def _bracketed(authority: str, text: str, default_port: int) -> tuple[str, int]:
    host, bracket, rest = authority[1:].partition("]")
    is_ipv6 = is_ip(host, 6) and naming.is_host(host)  # the latter checks the zone
    if not bracket or (rest and not rest.startswith(":")) or not is_ipv6:
        raise EndpointError(
            f"endpoint {text!r} has no IPv6 address in its brackets",
            hint=f"write such an address as [::1]:{default_port}",
        )
    if addresses.needs_zone(host):
        raise EndpointError(
            f"endpoint {text!r}: the link-local address {host} needs its zone",
            hint=f"add the interface through which this machine reaches it, such as [{host}%eth0]; "
            "or give an address that is the same on all nodes",
        )
    return host, _port(rest[1:], text, default_port) if rest else default_port


def _unbracketed(authority: str, text: str, default_port: int) -> EndpointError:
    host, port = authority, str(default_port)
    if not is_ip(host, 6):
        host, _, port = authority.rpartition(":")
    if not is_ip(host, 6):
        return EndpointError(f"endpoint {text!r} has too many colons", hint=_FORMS)
    return EndpointError(
        f"endpoint {text!r}: an IPv6 address needs brackets, to separate it from a port",
        hint=f"write {text.replace(authority, f'[{host}]:{port}')}",
    )


def _checked_host(host: str, text: str) -> str:
    if not host:
        raise EndpointError(f"endpoint {text!r} names no host", hint=_FORMS)
    if re.fullmatch(r"[0-9.]+", host) and not is_ip(host, 4):
        raise EndpointError(f"endpoint {text!r}: {host!r} is not an IPv4 address", hint=_FORMS)
    if not NAME.fullmatch(host):
        raise EndpointError(f"endpoint {text!r}: {host!r} is not a host name", hint=_FORMS)
    return host


def _port(text: str, endpoint: str, default_port: int) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= 65_535:
        return int(text)
    raise EndpointError(
        f"endpoint {endpoint!r}: {text!r} is not a port",
        hint=f"a port is a number from 1 to 65535; without one it is {default_port}",
    )


def is_loopback(host: str) -> bool:
    """Whether an endpoint's host can only mean this machine."""
    return host == "localhost" or addresses.is_loopback(host)


def is_ip(host: str, version: int) -> bool:
    """Whether this is an address literal of IP version 4 or 6."""
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False
