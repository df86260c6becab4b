"""From an endpoint to its ledger. Each engine's module is loaded only when it is the one."""

from __future__ import annotations

from rallypoint.endpoints import Endpoint, EtcdPlace
from rallypoint.errors import EndpointError
from rallypoint.ledger.contract import Ledger


def open_ledger(endpoint: Endpoint, password: str = "") -> Ledger:
    """The endpoint's ledger; nothing is reached before its `open`.

    `password`: of the endpoint's etcd user, if it has one. Raises EndpointError if the endpoint
    names no ledger.
    """
    place = endpoint.place
    if place is None:
        raise EndpointError(
            f"endpoint {endpoint} is no ledger",
            hint="a ledger is etcd://HOST:PORT,.../PREFIX or file:///FOLDER",
        )
    if isinstance(place, EtcdPlace):
        return _etcd(place, password)
    from rallypoint.ledger.file import FileLedger

    return FileLedger(place.folder)


def _etcd(place: EtcdPlace, password: str) -> Ledger:
    from rallypoint.ledger.etcd import EtcdLedger
    from rallypoint.ledger.etcd_client import EtcdOptions

    options = EtcdOptions(
        endpoints=place.hosts,
        tls=place.tls,
        ca_file=place.ca or None,
        cert_file=place.cert or None,
        key_file=place.key or None,
        user=place.user,
        password=password,
    )
    return EtcdLedger(options, place.prefix)
