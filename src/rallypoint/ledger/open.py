"""Opens the ledger of an endpoint. Only the module of its engine is loaded."""

from __future__ import annotations

import traceback
from typing import Final

from rallypoint import ledger_schemes
from rallypoint.endpoints import Endpoint, EtcdPlace, FilePlace, PackagePlace
from rallypoint.errors import EndpointError, RallypointError
from rallypoint.ledger.contract import Ledger

CALL_TIMEOUT_S: Final = 5.0
"""The default time limit of a call to an engine behind a network, in seconds."""


def open_ledger(
    endpoint: Endpoint, password: str = "", *, call_timeout_s: float = CALL_TIMEOUT_S
) -> Ledger:
    """The endpoint's ledger, not open yet and not connected.

    `password`: of the endpoint's etcd user, if it has one. `call_timeout_s`: the time limit of a
    call to an engine behind a network, in seconds.

    Raises:
        EndpointError: the endpoint names no ledger, or one of a package that cannot be loaded.
        RallypointError: the package of the ledger refuses the endpoint.
    """
    place = endpoint.place
    if place is None:
        raise EndpointError(
            f"endpoint {endpoint} is not a ledger",
            hint="a ledger is etcd://HOST:PORT,.../PREFIX or file:///FOLDER",
        )
    if isinstance(place, EtcdPlace):
        return _etcd(place, password, call_timeout_s)
    if isinstance(place, FilePlace):
        from rallypoint.ledger.file.ledger import FileLedger

        return FileLedger(place.folder)
    return _of_package(place, call_timeout_s)


def _of_package(place: PackagePlace, call_timeout_s: float) -> Ledger:
    entry = ledger_schemes.registered(place.scheme)
    if entry is None:
        raise EndpointError(f"no package registers ledgers for {place.scheme}:// any more")
    origin = ledger_schemes.origin(entry)
    try:
        ledger = entry.load()(place.url, call_timeout_s)
    except RallypointError:
        raise
    except Exception as error:
        raise EndpointError(
            f"the ledger {place.scheme}:// ({origin}) cannot be opened: {_last_line(error)}",
            hint="this is a fault of that package, or of what it needs: install it again, or "
            "report it to its authors",
        ) from error
    if not isinstance(ledger, Ledger):
        raise EndpointError(
            f"the ledger {place.scheme}:// ({origin}) is of type {type(ledger).__name__}, which "
            "is not a rallypoint.ledger.contract.Ledger",
            hint="report this to the authors of that package",
        )
    return ledger


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _etcd(place: EtcdPlace, password: str, call_timeout_s: float) -> Ledger:
    from rallypoint.ledger.etcd.ledger import EtcdLedger
    from rallypoint.ledger.etcd.options import EtcdOptions

    options = EtcdOptions(
        endpoints=place.hosts,
        tls=place.tls,
        ca_file=place.ca or None,
        cert_file=place.cert or None,
        key_file=place.key or None,
        user=place.user,
        password=password,
        timeout_s=call_timeout_s,
    )
    return EtcdLedger(options, place.prefix)
