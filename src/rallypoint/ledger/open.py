"""Opens the ledger of an endpoint. Only the module of its engine is loaded."""

from __future__ import annotations

from typing import Final

from rallypoint.endpoints import Endpoint, EtcdPlace
from rallypoint.errors import EndpointError
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
        EndpointError: the endpoint names no ledger.
    """
    place = endpoint.place
    if place is None:
        raise EndpointError(
            f"endpoint {endpoint} is not a ledger",
            hint="a ledger is etcd://HOST:PORT,.../PREFIX or file:///FOLDER",
        )
    if isinstance(place, EtcdPlace):
        return _etcd(place, password, call_timeout_s)
    from rallypoint.ledger.file.ledger import FileLedger

    return FileLedger(place.folder)


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
