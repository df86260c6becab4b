"""`rallypoint serve`: the checks before a coordinator listens. Its process is in serving.py.

It listens on loopback by default. Other addresses require a token, because without one, everybody
who reaches the coordinator can end every run on it.
"""

from __future__ import annotations

import errno
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from rallypoint import settings
from rallypoint.cli import limits
from rallypoint.cli.common import (
    LogFormatOption,
    QuietOption,
    TokenFileOption,
    VerboseOption,
    accepted_of,
    log_choice,
)
from rallypoint.cli.hangups import Hangups
from rallypoint.cli.own_certificates import NO_CERTIFICATES, OwnCertificates, own_certificates
from rallypoint.client.interfaces import NOWHERE, interfaces, source_towards
from rallypoint.core import addresses
from rallypoint.core.values import Address
from rallypoint.endpoints import Endpoint, parse_endpoint, parse_ledger
from rallypoint.endpoints import is_loopback as names_loopback
from rallypoint.errors import EndpointError, UsageError
from rallypoint.security import token_form
from rallypoint.security.files import signatures
from rallypoint.security.identities import Identities, NoIdentityError

EVERY_ADDRESS: Final = ("::", "*")
"""Hosts that mean: all addresses of this machine, IPv4 and IPv6."""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="HOST", help="The address to listen at; `::` means all of them."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", metavar="PORT", min=0, max=65_535, help="0: any free port."),
    ] = settings.DEFAULT_PORT,
    token_file: TokenFileOption = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="A directory of `rallypoint token new --state`, in place of --token-file: the "
            "certificate authority and the tokens of nodes.",
        ),
    ] = None,
    tls_cert: Annotated[
        str | None,
        typer.Option(
            "--tls-cert",
            metavar="FILE",
            help="PEM: a certificate, with its chain, of one's own authority for this coordinator. "
            "Nodes use https://NAME:PORT and --tls-ca.",
        ),
    ] = None,
    tls_key: Annotated[
        str | None,
        typer.Option(
            "--tls-key", metavar="FILE", help="PEM: its private key (default: in --tls-cert)."
        ),
    ] = None,
    client_ca: Annotated[
        str | None,
        typer.Option(
            "--client-ca",
            metavar="FILE",
            help="PEM: authorities of clients. A client's certificate then gives its role: "
            "spiffe://rallypoint/ROLE/RUNS/NODE. With --tls-cert.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen beyond this machine without a token, or TLS."),
    ] = False,
    ledger: Annotated[
        str | None,
        typer.Option(
            "--ledger",
            metavar="LEDGER",
            help="etcd://HOST:PORT,.../PREFIX or file:DIR: keep the runs there, and share them "
            "with every `serve` on this ledger. Without a ledger, runs end with this process.",
        ),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            "--advertise",
            metavar="HOST",
            help="The address at which nodes that use the ledger reach this machine.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Memory for all runs together, such as 2GiB (default: half of the memory "
            "of its cgroup or machine).",
        ),
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option(
            "--audit",
            metavar="FILE",
            help="Append to this file who changed a run, and who was refused, as JSON lines; "
            "- is stderr [RALLYPOINT_AUDIT].",
        ),
    ] = None,
    log_format: LogFormatOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a coordinator for many runs. Prints its endpoint on stdout when it is ready.

    On SIGHUP, or once they have changed, it reads the files of tokens and certificates again. Each
    line of the token file is an accepted token. SIGHUP also opens the audit log again.
    """
    settings.check_platform()
    log = log_choice(log_format, verbose=verbose, quiet=quiet)
    limits.check("`rallypoint serve`", limits.SERVE_FILES)
    token_file = _tokens_from(token_file, state)
    host = written_out(host)
    hangups = Hangups()
    with hangups.taken():  # before the file is read, so that no later change is missed
        own = own_certificates(tls_cert, tls_key, client_ca)
        path = settings.resolve("token_file", token_file).value
        watched = tuple(map(Path, (*([] if path is None else [path]), *own.files)))
        seen = signatures(watched)
        accepted = accepted_of(token_file)
        exposure = Exposure(host, is_loopback(host), insecure, own)
        exposure.check(accepted.tokens)
        is_tls = _is_tls(accepted.tokens, own)
        place = _ledger_of(ledger, advertise)
        memory_bytes_max = _memory_of(memory)
        audit_path = settings.resolve("audit", audit).value
        sock = _bind(host, port)
        from rallypoint.cli import serving

        bound, bound_port = sock.getsockname()[:2]
        serving.run(
            sock,
            endpoint_text(host, bound_port, bound, is_tls=is_tls),
            accepted,
            place,
            advertise or (None if is_everywhere(host) else host),
            serving.Reloads(hangups, _rereading(token_file, exposure), watched, seen),
            memory_bytes_max,
            log,
            audit_path,
            own,
        )


def _tokens_from(token_file: str | None, state: str | None) -> str | None:
    """The file or directory of the tokens. Raises UsageError."""
    if state is None:
        return token_file
    if token_file is not None:
        raise UsageError(
            "--state and --token-file are both given, and each has the tokens",
            hint="give one of them",
        )
    if not settings.is_folder(state):
        raise UsageError(
            f"there is no directory {state!r}",
            hint=f"make it: rallypoint token new --state {shlex.quote(state)}",
        )
    return state


def _rereading(
    token_file: str | None, exposure: Exposure
) -> Callable[[], settings.Accepted] | None:
    """A function that reads the tokens again, with the checks of the start. None: there is no file.

    It may be called in any thread, and raises UsageError.
    """
    path = settings.resolve("token_file", token_file).value
    own = exposure.own
    if path is None and not own.files:
        return None

    def read() -> settings.Accepted:
        settings.check_certificates(own.certificates, own.client_ca)
        accepted = settings.resolve_accepted(path)
        if path is None:
            return accepted
        if settings.is_readable_by_others(path):
            raise UsageError(f"token file {path!r} can be read by others", hint=f"chmod 600 {path}")
        exposure.check(accepted.tokens)
        _is_tls(accepted.tokens, own)
        return accepted

    return read


def _memory_of(text: str | None) -> int | None:
    """The given limit in bytes; None if not given. Raises UsageError."""
    size: int | None
    if text is None:
        size = settings.resolve("memory").value
    else:
        size = settings.read(settings.setting("memory"), text, "--memory")
    return size


def _ledger_of(text: str | None, advertise: str | None) -> Endpoint | None:
    """The given ledger.

    Raises UsageError for a value that is not allowed, before anything listens.
    """
    if text is None:
        if advertise is not None:
            raise UsageError(
                "--advertise is for nodes that use a ledger, and no ledger is given",
                hint="add --ledger, or remove --advertise",
            )
        return None
    if advertise is not None:
        settings.read(settings.setting("local_addr"), advertise, "--advertise")
    endpoint = parse_ledger(text)
    settings.etcd_password(endpoint)
    return endpoint


# -- checks before it listens --------------------------------------------------------------------


class Exposure(msgspec.Struct, frozen=True):
    """Which machines reach the coordinator, whether --insecure was given, and its PKI's files."""

    host: str
    is_loopback: bool
    is_insecure: bool
    own: OwnCertificates = NO_CERTIFICATES

    def check(self, tokens: tuple[str, ...]) -> None:
        """Raises UsageError if other machines could join with these tokens, without --insecure."""
        if self.is_loopback or self.is_insecure:
            return
        if not tokens and self.own.client_ca is not None:
            return
        if not tokens:
            raise UsageError(
                f"host {self.host!r} can be reached from other machines, and there is no token",
                hint="give the token of your own nodes with --token-file ~/.rallypoint/token; or "
                "make a new one with `rallypoint token new FILE`, and give that; --insecure lets "
                "everybody join",
            )
        for each in tokens:
            settings.check_token_strength(each)
            if not token_form.names_ca(each) and self.own.certificates is None:
                raise UsageError(
                    f"host {self.host!r} can be reached from other machines, and this token names "
                    "no certificate authority: the traffic would be in clear",
                    hint=f"make a new one and give it to all nodes: {settings.NEW_TOKEN}; or "
                    "--insecure",
                )


def written_out(host: str) -> str:
    """The host, with a short form of an address (127.1, 0, 0x7f000001) written in full.

    Raises UsageError for a link-local address without its zone.
    """
    if addresses.needs_zone(host):
        raise UsageError(
            f"{host} is a link-local address, and its interface is missing",
            hint=f"add the interface (the zone): {host}%eth0",
        )
    from rallypoint.net import numeric

    if addresses.literal(host) is None:
        return numeric(host) or host
    return addresses.plain(host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host, at any of its addresses.

    Raises UsageError if the name cannot be resolved.
    """
    from rallypoint.net import resolves_to_loopback

    if host in EVERY_ADDRESS:
        return False
    try:
        return resolves_to_loopback(host)
    except (OSError, UnicodeError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot resolve host {host!r}: {problem}", hint="give an address of this machine"
        ) from error


def _is_tls(tokens: tuple[str, ...], own: OwnCertificates) -> bool:
    """Whether a coordinator with these tokens uses TLS. Raises UsageError if it cannot."""
    if any(map(token_form.is_claim, tokens)):
        raise UsageError(
            "this token is a signed claim, which is for nodes and commands",
            hint="give the state directory that has signed it (--state DIR): it accepts all of its "
            "claims",
        )
    try:
        return bool(Identities(tokens, own.certificates, own.client_ca))
    except NoIdentityError as error:
        raise UsageError(
            f"a token names authority {str(error)[:16]}, and has no certificate of it: it is a "
            "node's token, with which a coordinator cannot prove itself",
            hint="give the state directory (--state DIR), or a host's token (`rallypoint token new "
            "--state DIR --role host`)",
        ) from None
    except ValueError as error:
        raise UsageError(f"the token's certificate {error}") from None


def endpoint_text(host: str, port: int, bound: str = "127.0.0.1", *, is_tls: bool = False) -> str:
    """The endpoint for nodes of this coordinator. `bound`: the address where it listens."""
    is_all = is_everywhere(host)
    scheme = "https" if is_tls else "http"
    text = f"{scheme}://{Address(socket.gethostname() if is_all else host, port)}"
    try:
        endpoint = parse_endpoint(text)
    except EndpointError:  # such a name can be resolved here, but is not allowed in an endpoint
        endpoint = None
    if endpoint is not None and not (is_all and names_loopback(endpoint.host)):
        return text
    return f"{scheme}://{Address(_own_address() if is_all else bound, port)}"


def _own_address() -> str:
    sources = [each for each in map(source_towards, NOWHERE) if each]
    own = addresses.own_addresses(sources, interfaces())
    return own[0].host if own else "127.0.0.1"


def is_everywhere(host: str) -> bool:
    """Whether this means all addresses of the machine."""
    return host in EVERY_ADDRESS or addresses.is_unspecified(host)


def _bind(host: str, port: int) -> socket.socket:
    from rallypoint.net import bind

    try:
        return bind(None if is_everywhere(host) and host != "0.0.0.0" else host, port)
    except OSError as error:
        raise _bind_error(Address(host, port), error) from error


def _bind_error(where: Address, error: OSError) -> UsageError:
    problem = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return UsageError(
            f"port {where.port} is taken: another process listens at {where}",
            hint="`rallypoint status` shows whether it is a coordinator; or give another --port",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(
            f"{where.host} is not an address of this machine",
            hint="give one of its own addresses, or `--host ::` for all of them",
        )
    return UsageError(f"cannot listen at {where}: {problem}", hint="give another --host or --port")
